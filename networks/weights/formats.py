"""The checkpoint formats that we read: how to tell each by its keys, and what its keys are called here.

A format is data: rules that rename its keys, reasons to drop some. Every key of a file must be met by exactly one;
`networks.weights.rename_keys` applies them. Families of rules that several formats share are in `spellings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from networks.weights.key_rules import (
    BEIT,
    BEIT_DECODER,
    FC_NORM,
    FRAME_CELL_COLOUR_BIN,
    HF_BLOCK,
    NPZ,
    PYTORCHVIDEO,
    SCENIC_ENDS,
    SLOWFAST,
    WB,
    Rule,
    flax_attention,
    flax_dense,
    flax_encoder,
    flax_norm,
    hf_block,
    hf_ends,
    hf_query_key_value,
    mm_stem,
    mm_transformer,
    timesformer,
    vit,
)

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
KINETICS = {"mean": [0.45, 0.45, 0.45], "std": [0.225, 0.225, 0.225]}


@dataclass(frozen=True)
class Format:
    """`network` is what its weights are of: timesformer, vivit, mvit, or image (a ViT, which fills the first two).

    A file has the format if each of `marks` matches a key, none of `absent` does, and its patch kernel has `patch_dims`
    dimensions (0: any). `settings` are constructor arguments that the keys do not show, `input` the normalisation,
    `lacks` the parts of ours that its networks do not have.
    """

    name: str
    network: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    absent: tuple[str, ...] = ()
    patch_dims: int = 0
    dropped: tuple[tuple[str, str], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, list[float]] = field(default_factory=dict)
    no_key_bias: bool = False
    pretraining: bool = False
    lacks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


SCENIC_JOINT: tuple[Rule, ...] = (
    *SCENIC_ENDS,
    (r"cls", "cls_token"),
    *flax_encoder("Transformer", "blocks", ("0", "0", "1", "_0"), "pos_embed", "norm"),
)
VIDEOMAE = {"gelu": "exact", "cls_token": False, "positions": "sincos", "pooling": "fc_norm"}
HF_VIDEOMAE: tuple[Rule, ...] = (
    *hf_ends("videomae"),
    *hf_query_key_value(r"videomae\.encoder\.layer"),
    (r"videomae\.encoder\.layer\.(\d+)\.attention\.attention\.([qv])_bias", r"blocks.\1.attn.qkv.bias#\2"),
    *hf_block(r"videomae\.encoder\.layer", HF_BLOCK),
)

FORMATS = (
    Format(
        "TimeSformer", "timesformer", (r"model\.blocks\.\d+\.attn\.qkv\.weight", r"model\.patch_embed\.proj\.weight"),
        timesformer(r"model\."), patch_dims=4, absent=(r".*pool_[qkv].*", r".*fc_norm.*"), input=KINETICS,
    ),
    Format(
        "TimeSformer, unprefixed", "timesformer", (r"time_embed", r"blocks\.\d+\.attn\.qkv\.weight"), timesformer(""),
        input=KINETICS,
    ),
    Format(
        "transformers TimeSformer", "timesformer", (r"timesformer\.encoder\.layer\..*",),
        (*hf_ends("timesformer"), (r"timesformer\.embeddings\.time_embeddings", "time_embed"),
         *hf_block(r"timesformer\.encoder\.layer", HF_BLOCK | {
             r"attention\.attention\.qkv": "attn.qkv", "temporal_layernorm": "temporal_norm1",
             r"temporal_attention\.attention\.qkv": "temporal_attn.qkv",
             r"temporal_attention\.output\.dense": "temporal_attn.proj", "temporal_dense": "temporal_fc"})),
        input=KINETICS,
    ),
    Format(
        "mmaction2 TimeSformer, divided", "timesformer",
        (r"backbone\.transformer_layers\.layers\.\d+\.attentions\.1\..*",),
        (*mm_stem(r"backbone\.", r"cls_head\.fc_cls"),
         *mm_transformer(r"backbone\.", r"transformer_layers\.layers", divided=True)),
        input=HALF,
    ),
    Format(
        "mmaction2 TimeSformer, joint or space", "timesformer", (r"backbone\.transformer_layers\.layers\..*",),
        (*mm_stem(r"backbone\.", r"cls_head\.fc_cls"),
         *mm_transformer(r"backbone\.", r"transformer_layers\.layers", divided=False)),
        absent=(r".*attentions\.1\..*",), input=HALF,
    ),
    Format(
        "mmaction2 ViT", "image", (r"transformer_layers\.layers\..*", r"patch_embed\.projection\.weight"),
        (*mm_stem("", r"(?:head|cls_head\.\w+)"), *mm_transformer("", r"transformer_layers\.layers", divided=False)),
        patch_dims=4, input=HALF, settings={"gelu": "exact"}, absent=(r".*attentions\.1\..*", r"time_embed"),
    ),
    Format(
        "VideoTransformer-pytorch TimeSformer, divided", "timesformer",
        (r"model\.transformer_layers\.layers\.\d+\.attentions\.1\..*",),
        (*mm_stem(r"model\.", r"cls_head\.cls_head"),
         *mm_transformer(r"model\.", r"transformer_layers\.layers", divided=True)),
        settings={"norm_eps": 1e-5}, input=KINETICS,
    ),
    Format(
        "VideoTransformer-pytorch TimeSformer, joint or space", "timesformer",
        (r"model\.transformer_layers\.layers\..*",),
        (*mm_stem(r"model\.", r"cls_head\.cls_head"),
         *mm_transformer(r"model\.", r"transformer_layers\.layers", divided=False)),
        absent=(r".*attentions\.1\..*",), patch_dims=4, settings={"norm_eps": 1e-5}, input=KINETICS,
    ),
    Format(
        "VideoTransformer-pytorch ViViT, joint", "vivit", (r"model\.transformer_layers\.layers\..*",),
        (*mm_stem(r"model\.", r"cls_head\.cls_head"),
         *mm_transformer(r"model\.", r"transformer_layers\.layers", divided=False)),
        absent=(r".*attentions\.1\..*",), patch_dims=5, settings={"norm_eps": 1e-5, "gelu": "exact"}, input=KINETICS,
    ),
    Format(
        "VideoTransformer-pytorch ViViT, factorised encoder", "vivit",
        (r"model\.transformer_layers\.0\.layers\..*", r"model\.transformer_layers\.1\.layers\..*"),
        ((r"model\.(cls_token|pos_embed)", r"\1"), (r"model\.time_embed", "temporal_pos_embed"),
         (rf"model\.norm\.{WB}", r"temporal_norm.\1"), *mm_stem(r"model\.", r"cls_head\.cls_head")[1:],
         *mm_transformer(r"model\.", r"transformer_layers\.0\.layers", divided=False),
         *mm_transformer(r"model\.", r"transformer_layers\.1\.layers", divided=False, blocks="temporal_blocks")),
        settings={"norm_eps": 1e-5, "gelu": "exact"}, input=KINETICS, lacks=("norm", "temporal_cls_token"),
        notes=("a starting point, not the same function: there the clips of a batch share their class tokens, frame "
               "features are means of patches, and no norm stands between the encoders",),
    ),
    Format(
        "VideoTransformer-pytorch MViT", "mvit", (r"model\.mvit\.blocks\..*",),
        (*PYTORCHVIDEO, (r"model\.mask_token", "mask_token"),
         (rf"model\.decoder_pred\.{WB}", r"predict.\1", FRAME_CELL_COLOUR_BIN)),
        settings={"pool_norm_eps": 1e-5, "mask_cell": 1}, input=KINETICS,
    ),
    Format(
        "pytorchvideo MViT", "mvit", (r"cls_positional_encoding\..*", r"blocks\.\d+\.attn\.pool_k\.weight"),
        PYTORCHVIDEO, settings={"pool_norm_eps": 1e-5}, input=KINETICS,
    ),
    Format(
        "SlowFast MaskFeat", "mvit", (r"pred_head\..*", r"blocks\.\d+\.attn\.pool_k\.weight"),
        (*SLOWFAST, ("mask_token", "mask_token"), (rf"pred_head\.transforms\.0\.0\.{WB}", r"norm.\1"),
         (rf"pred_head\.projections\.0\.{WB}", r"predict.\1")),
        dropped=((r"hogs\..*", "constants of the HOG targets"),), settings={"mask_cell": 2},
        input=KINETICS, pretraining=True,
    ),
    Format(
        "SlowFast MViT", "mvit", (r"blocks\.\d+\.attn\.pool_k\.weight", r"patch_embed\.proj\.weight"),
        (*SLOWFAST, (rf"norm\.{WB}", r"norm.\1"), (rf"head\.projection\.{WB}", r"head.\1")),
        absent=(r"pred_head.*",), input=KINETICS,
    ),
    Format(
        "torchvision MViT", "mvit", (r"conv_proj\.weight", r"pos_encoding\.class_token"),
        ((rf"conv_proj\.{WB}", r"patch_embed.proj.\1"),
         (r"pos_encoding\.class_token", "cls_token", "D -> 1 1 D"),
         (r"pos_encoding\.class_pos", "pos_embed_class", "D -> 1 1 D"),
         (r"pos_encoding\.(spatial|temporal)_pos", r"pos_embed_\1", "n D -> 1 n D"),
         (rf"blocks\.(\d+)\.(norm[12]|attn\.qkv)\.{WB}", r"blocks.\1.\2.\3"),
         (rf"blocks\.(\d+)\.attn\.project\.0\.{WB}", r"blocks.\1.attn.proj.\2"),
         (r"blocks\.(\d+)\.attn\.pool_([qkv])\.pool\.weight", r"blocks.\1.attn.pool_\2.weight"),
         (rf"blocks\.(\d+)\.attn\.pool_([qkv])\.norm_act\.0\.{WB}", r"blocks.\1.attn.norm_\2.\3"),
         (r"blocks\.(\d+)\.attn\.(rel_pos_[hwt])", r"blocks.\1.attn.\2"),
         (rf"blocks\.(\d+)\.mlp\.0\.{WB}", r"blocks.\1.mlp.fc1.\2"),
         (rf"blocks\.(\d+)\.mlp\.3\.{WB}", r"blocks.\1.mlp.fc2.\2"),
         (rf"blocks\.(\d+)\.project\.{WB}", r"blocks.\1.proj.\2"),
         (rf"norm\.{WB}", r"norm.\1"), (rf"head\.1\.{WB}", r"head.\1")),
        input=KINETICS,
    ),
    Format(
        "transformers ViViT", "vivit", (r"vivit\.encoder\.layer\..*",),
        (*hf_ends("vivit"), *hf_query_key_value(r"vivit\.encoder\.layer"),
         *hf_block(r"vivit\.encoder\.layer", HF_BLOCK)),
        settings={"gelu": "tanh"}, input=HALF,
    ),
    Format(
        "transformers ViViT, version 5", "vivit", (r"vivit\.layers\..*",),
        (*hf_ends("vivit"), (rf"vivit\.layers\.(\d+)\.attention\.([qkv])_proj\.{WB}", r"blocks.\1.attn.qkv.\3#\2"),
         *hf_block(r"vivit\.layers", {
             "layernorm_before": "norm1", "layernorm_after": "norm2", r"attention\.o_proj": "attn.proj",
             r"mlp\.fc1": "mlp.fc1", r"mlp\.fc2": "mlp.fc2"})),
        settings={"gelu": "tanh"}, input=HALF,
    ),
    Format(
        "transformers VideoMAE", "vivit", (r"videomae\.encoder\.layer\..*",), HF_VIDEOMAE,
        absent=(r"decoder\..*", r"videomae\.layernorm\..*"), no_key_bias=True, input=IMAGENET, settings=VIDEOMAE,
    ),
    Format(
        "transformers VideoMAE pre-training", "vivit", (r"videomae\.encoder\.layer\..*", r"decoder\..*"), HF_VIDEOMAE,
        dropped=BEIT_DECODER, no_key_bias=True, pretraining=True, input=IMAGENET, lacks=("norm",),
        settings=VIDEOMAE | {"pooling": "mean"},
    ),
    Format(
        "VideoMAE", "vivit", (r"blocks\.\d+\.attn\.q_bias", r"fc_norm\.weight"), BEIT,
        patch_dims=5, no_key_bias=True, input=IMAGENET, settings=VIDEOMAE,
    ),
    Format(
        "VideoMAE pre-training", "vivit", (r"encoder\.blocks\.\d+\.attn\.q_bias",), BEIT, patch_dims=5,
        dropped=BEIT_DECODER, no_key_bias=True, pretraining=True, input=IMAGENET,
        settings=VIDEOMAE | {"pooling": "mean"},
    ),
    Format(
        "MAE-pytorch", "image", (r"(?:encoder\.)?blocks\.\d+\.attn\.q_bias",), BEIT, patch_dims=4,
        dropped=BEIT_DECODER, no_key_bias=True, pretraining=True, input=IMAGENET,
        settings={"positions": "sincos", "gelu": "exact"},
    ),
    Format(
        "MAE", "image", (r"decoder_embed\.weight", r"blocks\.\d+\.attn\.qkv\.weight"), vit(),
        dropped=((r"decoder_.*", "decoder of the pre-training"), (r"mask_token", "decoder of the pre-training")),
        pretraining=True, input=IMAGENET, settings={"gelu": "exact"},
    ),
    Format(
        "timm ViT", "image", (r"blocks\.\d+\.attn\.qkv\.weight", r"patch_embed\.proj\.weight", r"cls_token"),
        (*vit(), FC_NORM),
        absent=(r"decoder_.*", r"time_embed", r".*pool_[qkv].*", r"blocks\.\d+\.attn\.q_bias"), patch_dims=4,
        input=HALF, settings={"gelu": "exact"},
    ),
    Format(
        "ViT .npz", "image", (rf"{NPZ}Transformer/encoderblock_\d+/.*", rf"{NPZ}embedding/kernel"),
        ((rf"{NPZ}embedding/kernel", "patch_embed.proj.weight", "p q C D -> D C p q"),
         (rf"{NPZ}embedding/bias", "patch_embed.proj.bias"), (rf"{NPZ}cls", "cls_token"),
         (rf"{NPZ}pos_embedding", "pos_embed"), *flax_dense(f"{NPZ}head", "head"),
         *flax_encoder(rf"{NPZ}Transformer", "blocks", ("0", "[01]", "[12]", r"_[03]"), "pos_embed", "norm")),
        dropped=((rf"{NPZ}pre_logits/.*", "the image model's layer before its head"),), patch_dims=4, input=HALF,
        absent=(r"output_projection/.*",),
    ),
    Format(
        "scenic ViViT, joint", "vivit",
        (r"Transformer/encoderblock_\d+/LayerNorm_0/scale", r"output_projection/kernel", r"cls"), SCENIC_JOINT,
        patch_dims=5, settings={"gelu": "tanh"}, input=HALF,
    ),
    Format(
        "scenic ViViT, joint, mean-pooled", "vivit",
        (r"Transformer/encoderblock_\d+/LayerNorm_0/scale", r"output_projection/kernel"), SCENIC_JOINT,
        absent=(r"cls",), patch_dims=5, settings={"gelu": "tanh"}, input=HALF,
        notes=("taken as model 1: model 4 (factorised dot-product attention, not built here) has the same keys",),
    ),
    Format(
        "scenic ViViT, factorised encoder", "vivit", (r"SpatialTransformer/.*", r"TemporalTransformer/.*"),
        (*SCENIC_ENDS, (r"cls_SpatialTransformer", "cls_token"), (r"cls_TemporalTransformer", "temporal_cls_token"),
         *flax_encoder("SpatialTransformer", "blocks", ("0", "0", "1", "_0"), "pos_embed", "norm"),
         *flax_encoder("TemporalTransformer", "temporal_blocks", ("0", "0", "1", "_0"), "temporal_pos_embed",
                       "temporal_norm")),
        settings={"gelu": "tanh"}, input=HALF,
    ),
    Format(
        "scenic ViViT, factorised self-attention", "vivit", (r"Transformer/encoderblock_\d+/LayerNorm_time/scale",),
        (*SCENIC_ENDS,
         *flax_encoder("Transformer", "blocks", ("space", "space", "mlp", ""), "pos_embed", "norm"),
         *flax_norm(r"Transformer/encoderblock_(\d+)/LayerNorm_time", r"blocks.\1.temporal_norm1"),
         *flax_attention(r"Transformer/encoderblock_(\d+)", "time", r"blocks.\1.temporal_")),
        settings={"gelu": "tanh"}, input=HALF, notes=("taken as time before space, the default of its code",),
    ),
)  # fmt: skip
