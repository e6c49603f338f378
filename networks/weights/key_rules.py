"""Families of rules that rename the keys of foreign checkpoints, for `networks.weights.formats`.

A rule is (pattern of a whole key, our name, how the axes of the tensor are rearranged, if they are). Our names:
blocks.N.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}, with temporal_ in front for attention over time. A name
that ends in #q, #k or #v is a third of the fused qkv; #scale multiplies the rows of weight and bias (LayerScale).
"""

from collections.abc import Mapping

Rule = tuple[str, str] | tuple[str, str, str]

WB = r"(weight|bias)"
HEADS_INSIDE = "D h d -> (h d) D"  # axes that tell the number of heads
# MaskFeat's 216 numbers of a token as VideoTransformer-pytorch orders them: frame, cell, colour, bin
FRAME_CELL_COLOUR_BIN = "(f a b C o) ... -> (f C o a b) ..."
SIZES = {FRAME_CELL_COLOUR_BIN: {"a": 2, "b": 2, "C": 3, "o": 9}}


def vit(root: str = "") -> tuple[Rule, ...]:
    """timm's names, which are ours."""
    return (
        (rf"{root}(cls_token|pos_embed)", r"\1"),
        (rf"{root}patch_embed\.proj\.{WB}", r"patch_embed.proj.\1"),
        (rf"{root}(norm|head)\.{WB}", r"\1.\2"),
        (rf"{root}blocks\.(\d+)\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.{WB}", r"blocks.\1.\2.\3"),
    )


def timesformer(root: str) -> tuple[Rule, ...]:
    parts = r"temporal_norm1|temporal_attn\.qkv|temporal_attn\.proj|temporal_fc"
    return (
        *vit(root),
        (rf"{root}time_embed", "time_embed"),
        (rf"{root}blocks\.(\d+)\.({parts})\.{WB}", r"blocks.\1.\2.\3"),
    )


FC_NORM: Rule = (rf"fc_norm\.{WB}", r"norm.\1")  # a norm after pooling, instead of the one before
# BEiT's attention, which VideoMAE and MAE-pytorch took over: biases of query and value beside a qkv without one
BEIT: tuple[Rule, ...] = (
    (r"(?:encoder\.)?(pos_embed)", r"\1"),
    (rf"(?:encoder\.)?patch_embed\.proj\.{WB}", r"patch_embed.proj.\1"),
    (rf"(?:encoder\.)?(?:norm|fc_norm)\.{WB}", r"norm.\1"),
    (rf"head\.{WB}", r"head.\1"),
    (r"(?:encoder\.)?blocks\.(\d+)\.attn\.([qv])_bias", r"blocks.\1.attn.qkv.bias#\2"),
    (r"(?:encoder\.)?blocks\.(\d+)\.attn\.qkv\.weight", r"blocks.\1.attn.qkv.weight"),
    (rf"(?:encoder\.)?blocks\.(\d+)\.(norm[12]|attn\.proj|mlp\.fc[12])\.{WB}", r"blocks.\1.\2.\3"),
    (r"(?:encoder\.)?blocks\.(\d+)\.gamma_1", r"blocks.\1.attn.proj#scale"),
    (r"(?:encoder\.)?blocks\.(\d+)\.gamma_2", r"blocks.\1.mlp.fc2#scale"),
)
BEIT_DECODER = (
    (r"decoder\..*", "decoder of the pre-training"),
    (r"encoder_to_decoder\..*", "decoder of the pre-training"),
    (r"mask_token", "decoder of the pre-training"),
)


def mm_block(spelling: str, ours: str, *, rest: str = "temporal_fc") -> tuple[Rule, ...]:
    """One attention of mmaction2's and the seed's blocks, whose projections have either of two spellings."""
    return (
        (rf"{spelling}\.attn\.(?:qkv\.|in_proj_){WB}", rf"{ours}attn.qkv.\2"),
        (rf"{spelling}\.attn\.(?:proj|out_proj)\.{WB}", rf"{ours}attn.proj.\2"),
        (rf"{spelling}\.{rest}\.{WB}", rf"{ours.removesuffix('temporal_')}temporal_fc.\2"),
    )


def mm_transformer(root: str, layers: str, *, divided: bool, blocks: str = "blocks") -> tuple[Rule, ...]:
    """mmaction2's and the seed's transformer layers: attentions.0 (over time, if there are two), ffns.0."""
    layer = rf"{root}{layers}\.(\d+)"
    space = "1" if divided else "0"
    time: tuple[Rule, ...] = (
        (rf"{layer}\.(?:attentions\.0\.norm|norms\.0)\.{WB}", rf"{blocks}.\1.temporal_norm1.\2"),
        *mm_block(rf"{layer}\.attentions\.0", rf"{blocks}.\1.temporal_"),
    )
    second = "2" if divided else "1"
    return (
        *(time if divided else ()),
        (rf"{layer}\.(?:attentions\.{space}\.norm|norms\.{space})\.{WB}", rf"{blocks}.\1.norm1.\2"),
        *mm_block(rf"{layer}\.attentions\.{space}", rf"{blocks}.\1.")[:2],
        (rf"{layer}\.(?:ffns\.0\.norm|norms\.{second})\.{WB}", rf"{blocks}.\1.norm2.\2"),
        (rf"{layer}\.ffns\.0\.layers\.0\.0\.{WB}", rf"{blocks}.\1.mlp.fc1.\2"),
        (rf"{layer}\.ffns\.0\.layers\.1\.{WB}", rf"{blocks}.\1.mlp.fc2.\2"),
    )


def mm_stem(root: str, head: str) -> tuple[Rule, ...]:
    return (
        (rf"{root}(cls_token|pos_embed|time_embed)", r"\1"),
        (rf"{root}patch_embed\.projection\.{WB}", r"patch_embed.proj.\1"),
        (rf"{root}norm\.{WB}", r"norm.\1"),
        (rf"{head}\.{WB}", r"head.\1"),
    )


def flax_attention(prefix: str, number: str, ours: str) -> tuple[Rule, ...]:
    """flax's MultiHeadDotProductAttention: kernels (D, heads, d), its output (heads, d, D)."""
    name = rf"{prefix}/MultiHeadDotProductAttention_{number}"
    return (
        (rf"{name}/(query|key|value)/kernel", rf"{ours}attn.qkv.weight#\2", HEADS_INSIDE),
        (rf"{name}/(query|key|value)/bias", rf"{ours}attn.qkv.bias#\2", "h d -> (h d)"),
        (rf"{name}/out/kernel", rf"{ours}attn.proj.weight", "h d D -> D (h d)"),
        (rf"{name}/out/bias", rf"{ours}attn.proj.bias"),
    )


def flax_norm(name: str, ours: str) -> tuple[Rule, ...]:
    return ((rf"{name}/scale", f"{ours}.weight"), (rf"{name}/bias", f"{ours}.bias"))


def flax_dense(name: str, ours: str) -> tuple[Rule, ...]:
    return ((rf"{name}/kernel", f"{ours}.weight", "i o -> o i"), (rf"{name}/bias", f"{ours}.bias"))


def flax_encoder(root: str, blocks: str, numbers: tuple[str, str, str, str], positions: str, norm: str) -> tuple:
    """`numbers` are flax's counters of the first norm, the attention, the second norm and the MLP."""
    layer, ours = rf"{root}/encoderblock_(\d+)", rf"{blocks}.\1."
    first, attention, second, mlp = numbers
    return (
        *flax_norm(rf"{layer}/LayerNorm_{first}", ours + "norm1"),
        *flax_attention(layer, attention, ours),
        *flax_norm(rf"{layer}/LayerNorm_{second}", ours + "norm2"),
        *flax_dense(rf"{layer}/MlpBlock{mlp}/Dense_0", ours + "mlp.fc1"),
        *flax_dense(rf"{layer}/MlpBlock{mlp}/Dense_1", ours + "mlp.fc2"),
        (rf"{root}/posembed_input/pos_embedding", positions),
        *flax_norm(rf"{root}/encoder_norm", norm),
    )


SCENIC_ENDS: tuple[Rule, ...] = (
    (r"embedding/kernel", "patch_embed.proj.weight", "t p q C D -> D C t p q"),
    (r"embedding/bias", "patch_embed.proj.bias"),
    *flax_dense("output_projection", "head"),
)
NPZ = r"(?:params/|opt/target/)?"

HF_BLOCK = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", r"attention\.output\.dense": "attn.proj",
    r"intermediate\.dense": "mlp.fc1", r"output\.dense": "mlp.fc2",
}  # fmt: skip


def hf_block(layer: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    return tuple((rf"{layer}\.(\d+)\.{theirs}\.{WB}", rf"blocks.\1.{ours}.\2") for theirs, ours in names.items())


def hf_ends(root: str) -> tuple[Rule, ...]:
    return (
        (rf"{root}\.embeddings\.cls_token", "cls_token"),
        (rf"{root}\.embeddings\.position_embeddings", "pos_embed"),
        (rf"{root}\.embeddings\.patch_embeddings\.projection\.{WB}", r"patch_embed.proj.\1"),
        (rf"{root}\.layernorm\.{WB}", r"norm.\1"),
        (rf"fc_norm\.{WB}", r"norm.\1"),
        (rf"classifier\.{WB}", r"head.\1"),
    )


def hf_query_key_value(layer: str) -> tuple[Rule, ...]:
    return ((rf"{layer}\.(\d+)\.attention\.attention\.(query|key|value)\.{WB}", r"blocks.\1.attn.qkv.\3#\2"),)


def mvit_block(root: str = "") -> tuple[Rule, ...]:
    block = rf"{root}blocks\.(\d+)"
    return (
        (rf"{block}\.(norm[12]|attn\.(?:qkv|proj|norm_[qkv])|mlp\.fc[12]|proj)\.{WB}", r"blocks.\1.\2.\3"),
        (rf"{block}\.attn\.([qkv])\.{WB}", r"blocks.\1.attn.qkv.\3#\2"),
        (rf"{block}\.attn\.(pool_[qkv]\.weight|rel_pos_[hwt])", r"blocks.\1.attn.\2"),
    )


SLOWFAST: tuple[Rule, ...] = (
    *mvit_block(),
    (r"(cls_token|pos_embed_(?:spatial|temporal|class))", r"\1"),
    (rf"patch_embed\.proj\.{WB}", r"patch_embed.proj.\1"),
)
PYTORCHVIDEO: tuple[Rule, ...] = (
    *mvit_block(r"(?:model\.mvit\.)?"),
    (rf"(?:model\.)?patch_embed\.patch_model\.{WB}", r"patch_embed.proj.\1"),
    (r"(?:model\.mvit\.)?cls_positional_encoding\.(cls_token|pos_embed_(?:spatial|temporal|class))", r"\1"),
    (rf"(?:model\.mvit\.)?norm_embed\.{WB}", r"norm.\1"),
    (rf"head\.proj\.{WB}", r"head.\1"),
    (rf"cls_head\.cls_head\.{WB}", r"head.\1"),
)
