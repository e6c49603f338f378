"""A foreign checkpoint under the names of this project: its format is detected, and each key is renamed or dropped."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from networks.weights.formats import FORMATS, Format
from networks.weights.key_rules import AXIS_SIZES, HEADS_INSIDE, matches, rename
from networks.weights.read import shorten
from networks.weights.report import DROPPED, MAPPED, RESHAPED, KeyRecord

PATCH_KERNEL = "patch_embed.proj.weight"
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile put them before every key
QKV = {"q": "query", "k": "key", "v": "value"}


class Weights(dict[str, Tensor]):
    """Tensors by their names here; asking for a missing one raises ValueError, since the checkpoint is at fault."""

    def __missing__(self, key: str) -> Tensor:
        raise ValueError(f"missing in the checkpoint: {key}")


@dataclass(frozen=True, kw_only=True)
class RenamedWeights:
    """The weights of a checkpoint under the names of this project, and for each the record of where it comes from.

    `kwargs` are the constructor arguments that the format, the shapes or a config.json tell; `grid` is the (t, h, w) of
    the position embeddings, if a config.json tells it.
    """

    format: Format
    state: Weights
    records: dict[str, KeyRecord]
    dropped: list[KeyRecord]
    kwargs: dict[str, Any]
    notes: list[str]
    grid: list[int] | None = None


class Part(NamedTuple):
    """A tensor of the file that becomes a tensor here or one part of it, and how its axes are rearranged."""

    key: str
    axes: str


# By role: "" the whole tensor; plus_one the whole minus one; q, k, v a part of a fused qkv or kv; scale a LayerScale.
Parts = dict[str, Part]


def rename_keys(state: Mapping[str, Tensor]) -> RenamedWeights:
    """Detect the format of a checkpoint and rename its keys.

    Raises ValueError that lists each key which no rule matches, which means the same as another, which has an
    impossible shape, or whose tensor is not floating point.
    """
    state = without_prefix(state)
    file_format = detect_format(state)
    parts_of, dropped, key_problems = assign_keys(state, file_format)
    dropped_keys = {key for record in dropped for key in record.sources}
    problems = [
        f"{key}: expected a floating-point tensor, got {tensor.dtype}"
        for key, tensor in state.items()
        if not tensor.is_floating_point() and key not in dropped_keys
    ]
    problems += key_problems
    renamed, records = Weights(), {}
    for target, parts in parts_of.items():
        try:
            renamed[target], records[target] = assemble(target, parts, state, file_format)
        except (ValueError, RuntimeError) as error:
            problems.append(f"{target}: {error}")
    if problems:
        raise ValueError(f"a {file_format.name} checkpoint, but damaged or changed\n  " + "\n  ".join(problems))
    if "mask_token" in renamed and "head.weight" not in renamed:
        file_format = dataclasses.replace(file_format, pretraining=True)
    if file_format.architecture == "vivit" and "time_embed" in renamed:
        join_pos_embed(renamed, records)
    return RenamedWeights(
        format=file_format,
        state=renamed,
        records=records,
        dropped=dropped,
        kwargs={**file_format.kwargs, **infer_num_heads(state, parts_of)},
        notes=[*file_format.notes, *describe_oddities(state, renamed, file_format)],
    )


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers put before every key."""
    stored_keys = dict(zip(state, state, strict=True))
    for prefix in WRAPPER_PREFIXES * 2:
        if all(key.startswith(prefix) for key in stored_keys):
            stored_keys = {key.removeprefix(prefix): stored_key for key, stored_key in stored_keys.items()}
    return {key: state[stored_key] for key, stored_key in stored_keys.items()}


def detect_format(state: Mapping[str, Tensor]) -> Format:
    """Return the only format that the keys fit. Raises ValueError if there is none, or more than one."""
    candidates = [candidate for candidate in FORMATS if matches_format(state, candidate)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError("the keys fit several formats: " + ", ".join(candidate.name for candidate in candidates))
    names = ", ".join(candidate.name for candidate in FORMATS)
    raise ValueError(f"not a known checkpoint format. Keys: {shorten(list(state))}\n  Known formats: {names}")


def matches_format(state: Mapping[str, Tensor], candidate: Format) -> bool:
    def any_key(pattern: str) -> bool:
        return any(matches(pattern, key) for key in state)

    if not all(any_key(pattern) for pattern in candidate.required_keys):
        return False
    if any(any_key(pattern) for pattern in candidate.forbidden_keys):
        return False
    if not candidate.patch_kernel_ndim:
        return True
    kernel = next((key for key in state if (rename(key, candidate.rules) or ("", ""))[0] == PATCH_KERNEL), None)
    return kernel is not None and state[kernel].ndim == candidate.patch_kernel_ndim


def assign_keys(
    state: Mapping[str, Tensor], file_format: Format
) -> tuple[dict[str, Parts], list[KeyRecord], list[str]]:
    """Return the parts of each tensor here, the records of dropped keys, and a problem per kind of misfit."""
    parts_of: dict[str, Parts] = defaultdict(dict)
    dropped, unknown_keys, duplicates = [], [], []
    for key in state:
        reason = next((reason for pattern, reason in file_format.dropped_keys.items() if matches(pattern, key)), None)
        if reason is not None:
            dropped.append(KeyRecord(status=DROPPED, sources=(key,), detail=reason))
            continue
        name_and_axes = rename(key, file_format.rules)
        if name_and_axes is None:
            unknown_keys.append(key)
            continue
        name, axes = name_and_axes
        target, _, role = name.partition("#")
        if role == "scale":
            targets = [f"{target}.weight", f"{target}.bias"]
        else:
            targets, role = [target], role if role == "plus_one" else role[:1]  # query or q
        for part_target in targets:
            if role in parts_of[part_target]:
                duplicates.append(f"{key} and {parts_of[part_target][role].key} (both are {target})")
            parts_of[part_target][role] = Part(key, axes)
    problems = []
    if unknown_keys:
        problems.append(f"{len(unknown_keys)} unknown keys: {shorten(unknown_keys)}")
    if duplicates:
        problems.append(f"{len(duplicates)} keys that mean the same: {shorten(duplicates)}")
    return parts_of, dropped, problems


def assemble(target: str, parts: Parts, state: Mapping[str, Tensor], file_format: Format) -> tuple[Tensor, KeyRecord]:
    """Make one tensor from one of the file, from query, key and value, or from biases of query and value alone."""
    sources = tuple(part.key for part in parts.values())
    roles = parts.keys() - {"scale"}
    if roles == {""}:
        value, detail = rearranged(parts[""], state), parts[""].axes
    elif roles == {"plus_one"}:
        value, detail = rearranged(parts["plus_one"], state) + 1, "1 added"
    elif roles == QKV.keys():
        value, detail = join_qkv([parts[role] for role in QKV], state)
    elif roles == {"k", "v"} and target.split(".")[-2] == "kv":
        value, detail = join_qkv([parts["k"], parts["v"]], state)
    elif roles == {"q", "v"} and file_format.no_key_bias and target.endswith("bias"):
        query, value_bias = rearranged(parts["q"], state), rearranged(parts["v"], state)
        value = torch.cat([query, torch.zeros_like(query), value_bias])
        detail = "query, no key bias (0), value joined"
    else:
        missing = ", ".join(name for role, name in QKV.items() if role not in roles) if roles else target
        raise ValueError(f"{' + '.join(sources)}: without {missing}")
    if "scale" in parts:
        scale = state[parts["scale"].key]
        value = value * (scale[:, None] if value.ndim == 2 else scale)
        detail = "multiplied by its LayerScale"
    if target == PATCH_KERNEL and value.ndim == 4:
        value, detail = value.unsqueeze(2), "kernel over one frame: depth 1 added"
    status = RESHAPED if detail else MAPPED
    return value, KeyRecord(status=status, sources=sources, target=target, detail=detail)


def rearranged(part: Part, state: Mapping[str, Tensor]) -> Tensor:
    tensor = state[part.key]
    if not part.axes:
        return tensor
    try:
        return rearrange(tensor, part.axes, **AXIS_SIZES.get(part.axes, {})).contiguous()
    except (RuntimeError, ValueError) as error:  # the message of einops spans several lines
        expected = part.axes.split("->")[0].strip()
        raise ValueError(f"{part.key} has shape {tuple(tensor.shape)}, expected {expected}") from error


def join_qkv(parts: list[Part], state: Mapping[str, Tensor]) -> tuple[Tensor, str]:
    tensors = [rearranged(part, state) for part in parts]
    names = list(QKV.values())[-len(parts) :]
    if len({tensor.shape for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"{', '.join(names[:-1])} and value have different shapes: {shapes}")
    axes = parts[0].axes
    return torch.cat(tensors), f"{', '.join(names)} joined" + (f", each {axes}" if axes else "")


def join_pos_embed(state: Weights, records: dict[str, KeyRecord]) -> None:
    """Add up the embeddings of space and of time that ViViT has in VideoTransformer-pytorch: here it has one of both,
    (1, 1 + t n, D)."""
    space, time = state["pos_embed"], state.pop("time_embed")
    if space.ndim != 3 or time.ndim != 3 or space.shape[2] != time.shape[2]:
        raise ValueError(f"pos_embed {tuple(space.shape)} and time_embed {tuple(time.shape)} do not go together")
    patches = rearrange(space[:, 1:], "one n D -> one 1 n D") + rearrange(time, "one t D -> one t 1 D")
    state["pos_embed"] = torch.cat([space[:, :1], rearrange(patches, "one t n D -> one (t n) D")], dim=1)
    records["pos_embed"] = KeyRecord(
        status=RESHAPED,
        sources=records["pos_embed"].sources + records.pop("time_embed").sources,
        target="pos_embed",
        detail="positions in space and time added up",
    )


def infer_num_heads(state: Mapping[str, Tensor], parts_of: Mapping[str, Parts]) -> dict[str, int]:
    """Return num_heads if the kernels have an axis of heads, as those of flax do."""
    all_parts = [part for parts in parts_of.values() for part in parts.values()]
    num_heads = {state[part.key].shape[1] for part in all_parts if part.axes == HEADS_INSIDE}
    return {"num_heads": num_heads.pop()} if len(num_heads) == 1 else {}


def describe_oddities(state: Mapping[str, Tensor], renamed: Weights, file_format: Format) -> list[str]:
    notes = []
    if file_format.name == "TimeSformer" and "time_embed" not in renamed:
        notes.append("read as a TimeSformer with space attention: an image ViT of a trainer has the same keys")
    nonfinite = [key for key, tensor in state.items() if not tensor.isfinite().all()]
    if nonfinite:
        notes.append(f"{len(nonfinite)} tensors with values that are not finite: {shorten(nonfinite)}")
    return notes
