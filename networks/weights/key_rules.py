"""Rules that rename the keys of foreign checkpoints, and the tables of rules that several projects share.

A rule is an entry of a dictionary, {pattern of whole keys: name of the key here}. Patterns may contain:

    {n}, {s}    the number of a block or a stage  {word}      one word (letters, digits, underscores)
    {param}     weight or bias                    {name:a|b}  a or b
    {qkv}       q, k, v, query, key or value      [a|b]       a, b or nothing
    {axis}      h, w or t                         *           any text

The name repeats the placeholders of its pattern. Blocks here have norm1, attn.qkv, attn.proj, norm2, mlp.fc1 and
mlp.fc2, with temporal_ in front for attention over time. A name that ends in #{qkv} is a part of a fused qkv or kv; one
that ends in #scale multiplies the rows of a weight and a bias (LayerScale); to one that ends in #plus_one, 1 is added.
A pair (name, axes) also rearranges the axes of the tensor, in the notation of einops.
"""

import re
from collections.abc import Mapping
from functools import cache

Rules = dict[str, str | tuple[str, str]]

PLACEHOLDERS = {
    "n": r"\d+",
    "s": r"\d+",
    "param": "weight|bias",
    "qkv": "query|key|value|q|k|v",
    "axis": "h|w|t",
    "word": r"\w+",
}
TOKEN = re.compile(r"\{(?P<name>\w+)(?::(?P<choices>[^}]*))?\}|\[(?P<optional>[^]]*)\]|\*")

HEADS_INSIDE = "D h d -> (h d) D"  # axes that tell the number of heads
# The 216 numbers that MaskFeat predicts per token, as VideoTransformer-pytorch orders them: frame, cell, color, bin.
FRAME_CELL_COLOR_BIN = "(f a b C o) ... -> (f C o a b) ..."
QKV_ROLES = ("query", "key", "value")
AXIS_SIZES = {FRAME_CELL_COLOR_BIN: {"a": 2, "b": 2, "C": 3, "o": 9}}


@cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Translate a pattern into a regular expression that has a named group for each placeholder."""
    regex, end = "", 0
    for token in TOKEN.finditer(pattern):
        regex += re.escape(pattern[end : token.start()])
        end = token.end()
        if token["optional"] is not None:
            regex += f"(?:{any_of(token['optional'])})?"
        elif token["name"] is None:
            regex += ".*"
        else:
            choices = PLACEHOLDERS[token["name"]] if token["choices"] is None else any_of(token["choices"])
            regex += f"(?P<{token['name']}>{choices})"
    return re.compile(regex + re.escape(pattern[end:]))


def any_of(choices: str) -> str:
    return "|".join(re.escape(choice) for choice in choices.split("|"))


def matches(pattern: str, key: str) -> bool:
    """Return whether the pattern describes the whole key."""
    return compile_pattern(pattern).fullmatch(key) is not None


def rename(key: str, rules: Rules) -> tuple[str, str] | None:
    """Return the name here and the rearrangement of the axes by the first rule that matches, None if there is none."""
    for pattern, target in rules.items():
        match = compile_pattern(pattern).fullmatch(key)
        if match:
            name, axes = (target, "") if isinstance(target, str) else target
            return fill_placeholders(name, match.groupdict()), axes
    return None


def fill_placeholders(name: str, values: Mapping[str, str]) -> str:
    return TOKEN.sub(lambda token: values[token["name"]], name)


def rename_back(name: str, rules: Rules) -> dict[str, str]:
    """Return the keys that become the tensor of this name, by their role: {"": key}, or query, key and value.

    How a rule rearranges the axes is left to the caller. Raises ValueError for a name that no rule gives.
    """
    for pattern, target in rules.items():
        target_name, _, role = (target if isinstance(target, str) else target[0]).partition("#")
        choices = {token["name"]: token["choices"] for token in TOKEN.finditer(pattern) if token["name"]}
        regex, end = "", 0
        for token in TOKEN.finditer(target_name):
            regex += re.escape(target_name[end : token.start()])
            end, word = token.end(), token["name"]
            regex += f"(?P<{word}>{any_of(choices[word]) if choices[word] else PLACEHOLDERS[word]})"
        match = re.fullmatch(regex + re.escape(target_name[end:]), name)
        if match and role == "{qkv}":
            values = [match.groupdict() | {"qkv": choice} for choice in choices["qkv"].split("|")]
            return dict(
                zip(QKV_ROLES[-len(values) :], (fill_placeholders(pattern, value) for value in values), strict=True)
            )
        if match:
            return {"": fill_placeholders(pattern, match.groupdict())}
    raise ValueError(f"{name}: no rule gives this name")


def with_prefix(prefix: str, rules: Rules, name_prefix: str = "") -> Rules:
    """Return rules for the same keys behind a prefix, whose names here have a prefix too."""
    prefixed: Rules = {}
    for pattern, target in rules.items():
        if isinstance(target, str):
            prefixed[prefix + pattern] = name_prefix + target
        else:
            name, axes = target
            prefixed[prefix + pattern] = (name_prefix + name, axes)
    return prefixed


def same_names(*names: str) -> Rules:
    """Return rules for keys that are called the same here."""
    return {name: name for name in names}


# ---- tables that several projects share ------------------------------------------------------------------------------

# The names of timm, which are also those of this project.
VIT = same_names(
    "cls_token",
    "pos_embed",
    "patch_embed.proj.{param}",
    "norm.{param}",
    "head.{param}",
    "blocks.{n}.{layer:norm1|norm2|attn.qkv|attn.proj|mlp.fc1|mlp.fc2}.{param}",
)

# The attention of BEiT, taken over by VideoMAE and MAE-pytorch: biases of query and value beside a qkv without bias.
BEIT_BLOCK: Rules = {
    "norm1.{param}": "norm1.{param}",
    "attn.qkv.weight": "attn.qkv.weight",
    "attn.{qkv:q|v}_bias": "attn.qkv.bias#{qkv}",
    "attn.proj.{param}": "attn.proj.{param}",
    "gamma_1": "attn.proj#scale",
    "norm2.{param}": "norm2.{param}",
    "mlp.fc1.{param}": "mlp.fc1.{param}",
    "mlp.fc2.{param}": "mlp.fc2.{param}",
    "gamma_2": "mlp.fc2#scale",
}
BEIT: Rules = {
    "head.{param}": "head.{param}",
    **with_prefix(
        "[encoder.]",
        {
            "pos_embed": "pos_embed",
            "patch_embed.proj.{param}": "patch_embed.proj.{param}",
            "norm.{param}": "norm.{param}",
            "fc_norm.{param}": "norm.{param}",
            **with_prefix("blocks.{n}.", BEIT_BLOCK, "blocks.{n}."),
        },
    ),
}
PRETRAINING_DECODER = "decoder of the pre-training"
BEIT_DECODER = dict.fromkeys(("decoder.*", "encoder_to_decoder.*", "mask_token"), PRETRAINING_DECODER)

# SlowFast, and pytorchvideo, which took it over.
MVIT_BLOCKS: Rules = {
    "blocks.{n}.{layer:norm1|norm2|mlp.fc1|mlp.fc2|proj}.{param}": "blocks.{n}.{layer}.{param}",
    "blocks.{n}.attn.{layer:qkv|proj}.{param}": "blocks.{n}.attn.{layer}.{param}",
    "blocks.{n}.attn.{qkv:q|k|v}.{param}": "blocks.{n}.attn.qkv.{param}#{qkv}",
    "blocks.{n}.attn.norm_{qkv:q|k|v}.{param}": "blocks.{n}.attn.norm_{qkv}.{param}",
    "blocks.{n}.attn.pool_{qkv:q|k|v}.weight": "blocks.{n}.attn.pool_{qkv}.weight",
    "blocks.{n}.attn.rel_pos_{axis}": "blocks.{n}.attn.rel_pos_{axis}",
}
# pytorchvideo, and VideoTransformer-pytorch, which wraps it.
PYTORCHVIDEO: Rules = {
    "[model.]patch_embed.patch_model.{param}": "patch_embed.proj.{param}",
    "head.proj.{param}": "head.{param}",
    "cls_head.cls_head.{param}": "head.{param}",
    **with_prefix(
        "[model.mvit.]",
        {
            "cls_positional_encoding.cls_token": "cls_token",
            "cls_positional_encoding.pos_embed_{part:spatial|temporal|class}": "pos_embed_{part}",
            "norm_embed.{param}": "norm.{param}",
            **MVIT_BLOCKS,
        },
    ),
}

# mmaction2, and VideoTransformer-pytorch, which builds its transformers likewise.
MM_STEM: Rules = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "time_embed": "time_embed",
    "patch_embed.projection.{param}": "patch_embed.proj.{param}",
    "norm.{param}": "norm.{param}",
}
MM_ATTENTION: Rules = {
    "attn.qkv.{param}": "attn.qkv.{param}",
    "attn.in_proj_{param}": "attn.qkv.{param}",
    "attn.proj.{param}": "attn.proj.{param}",
    "attn.out_proj.{param}": "attn.proj.{param}",
}
MM_MLP: Rules = {
    "{n}.ffns.0.norm.{param}": "blocks.{n}.norm2.{param}",
    "{n}.ffns.0.layers.0.0.{param}": "blocks.{n}.mlp.fc1.{param}",
    "{n}.ffns.0.layers.1.{param}": "blocks.{n}.mlp.fc2.{param}",
}
MM_BLOCKS: Rules = {
    "{n}.attentions.0.norm.{param}": "blocks.{n}.norm1.{param}",
    "{n}.norms.0.{param}": "blocks.{n}.norm1.{param}",
    **with_prefix("{n}.attentions.0.", MM_ATTENTION, "blocks.{n}."),
    "{n}.norms.1.{param}": "blocks.{n}.norm2.{param}",
    **MM_MLP,
}
# Attention over time comes first, then attention over space.
MM_DIVIDED_BLOCKS: Rules = {
    "{n}.attentions.0.norm.{param}": "blocks.{n}.temporal_norm1.{param}",
    "{n}.norms.0.{param}": "blocks.{n}.temporal_norm1.{param}",
    **with_prefix("{n}.attentions.0.", MM_ATTENTION, "blocks.{n}.temporal_"),
    "{n}.attentions.0.temporal_fc.{param}": "blocks.{n}.temporal_fc.{param}",
    "{n}.attentions.1.norm.{param}": "blocks.{n}.norm1.{param}",
    "{n}.norms.1.{param}": "blocks.{n}.norm1.{param}",
    **with_prefix("{n}.attentions.1.", MM_ATTENTION, "blocks.{n}."),
    "{n}.norms.2.{param}": "blocks.{n}.norm2.{param}",
    **MM_MLP,
}


# ---- flax: scenic and Google's vision_transformer --------------------------------------------------------------------


def flax_norm(flax_name: str, name: str) -> Rules:
    return {f"{flax_name}/scale": f"{name}.weight", f"{flax_name}/bias": f"{name}.bias"}


def flax_dense(flax_name: str, name: str) -> Rules:
    return {f"{flax_name}/kernel": (f"{name}.weight", "i o -> o i"), f"{flax_name}/bias": f"{name}.bias"}


def flax_attention(flax_name: str, name: str) -> Rules:
    """MultiHeadDotProductAttention, whose kernels are (D, heads, d) and whose output kernel is (heads, d, D)."""
    return {
        f"{flax_name}/{{qkv}}/kernel": (f"{name}.qkv.weight#{{qkv}}", HEADS_INSIDE),
        f"{flax_name}/{{qkv}}/bias": (f"{name}.qkv.bias#{{qkv}}", "h d -> (h d)"),
        f"{flax_name}/out/kernel": (f"{name}.proj.weight", "h d D -> D (h d)"),
        f"{flax_name}/out/bias": f"{name}.proj.bias",
    }


def flax_block(flax_name: str, name: str, *, norm1: str, attention: str, norm2: str, mlp: str) -> Rules:
    """One encoder block, in which flax numbers the layers in an order that differs from code to code."""
    return {
        **flax_norm(f"{flax_name}/{norm1}", f"{name}.norm1"),
        **flax_attention(f"{flax_name}/{attention}", f"{name}.attn"),
        **flax_norm(f"{flax_name}/{norm2}", f"{name}.norm2"),
        **flax_dense(f"{flax_name}/{mlp}/Dense_0", f"{name}.mlp.fc1"),
        **flax_dense(f"{flax_name}/{mlp}/Dense_1", f"{name}.mlp.fc2"),
    }
