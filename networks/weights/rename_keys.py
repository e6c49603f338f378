"""A foreign checkpoint under our names: the format is told from the keys, and every key is renamed or dropped."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from networks.weights.formats import FORMATS, Format
from networks.weights.key_rules import HEADS_INSIDE, SIZES
from networks.weights.read import shorten
from networks.weights.report import DROPPED, MAPPED, RESHAPED, Row

PATCH_KERNEL = "patch_embed.proj.weight"
PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's, before every key
THIRDS = {"q": "query", "k": "key", "v": "value"}


class Weights(dict[str, Tensor]):
    """Tensors by our names; asking for one that is not there is the checkpoint's fault, and says so."""

    def __missing__(self, key: str) -> Tensor:
        raise ValueError(f"missing in the checkpoint: {key}")


@dataclass(frozen=True)
class Translated:
    """The weights under our names, and for each the row that says what it was made of.

    `settings` are arguments of the network that the format, the shapes or a config.json tell.
    """

    format: Format
    state: Weights
    rows: dict[str, Row]
    dropped: list[Row]
    settings: dict[str, Any]
    notes: list[str]
    grid: list[int] | None = None  # (t, h, w) of the positions, if a config.json says


def detect(state: Mapping[str, Tensor]) -> Format:
    """The only format whose marks the keys bear. Raises ValueError if there is none."""
    found = [candidate for candidate in FORMATS if bears_marks(state, candidate)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError("the keys fit several formats: " + ", ".join(candidate.name for candidate in found))
    names = ", ".join(candidate.name for candidate in FORMATS)
    raise ValueError(f"not a format that is known here. Keys: {shorten(list(state))}\n  Known: {names}")


def bears_marks(state: Mapping[str, Tensor], candidate: Format) -> bool:
    def any_key(pattern: str) -> bool:
        matches = re.compile(pattern).fullmatch
        return any(matches(key) for key in state)

    if not all(any_key(mark) for mark in candidate.marks) or any(any_key(mark) for mark in candidate.absent):
        return False
    if not candidate.patch_dims:
        return True
    kernel = next((key for key in state if (ours(key, candidate) or ("", ""))[0] == PATCH_KERNEL), None)
    return kernel is not None and state[kernel].ndim == candidate.patch_dims


def ours(key: str, source: Format) -> tuple[str, str] | None:
    """-> (our name, rearrangement of the axes) by the first rule that fits; None if there is none."""
    for pattern, target, *axes in source.rules:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(target), axes[0] if axes else ""
    return None


def translate(state: Mapping[str, Tensor]) -> Translated:
    """Raises ValueError with every key that no rule knows, that two keys would become, or whose shape is impossible."""
    state = without_prefix(state)
    source = detect(state)
    pieces: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)  # our name -> part -> (their key, axes)
    dropped, unknown, twice = [], [], []
    for key in state:
        why = next((why for pattern, why in source.dropped if re.fullmatch(pattern, key)), None)
        rule = ours(key, source)
        if why is not None:
            dropped.append(Row(DROPPED, (key,), "", why))
        elif rule is None:
            unknown.append(key)
        else:
            target, _, part = rule[0].partition("#")
            if part == "scale":
                scaled = [f"{target}.weight", f"{target}.bias"]
            else:
                scaled = [target]
                part = part[:1]
            for name in scaled:
                if part in pieces[name]:
                    twice.append(f"{key} and {pieces[name][part][0]} (both are {target})")
                pieces[name][part] = (key, rule[1])
    problems = [
        f"{key}: {tensor.dtype} is no weight" for key, tensor in state.items() if not tensor.is_floating_point()
    ]
    if unknown:
        problems.append(f"{len(unknown)} unknown keys: {shorten(unknown)}")
    if twice:
        problems.append(f"{len(twice)} keys that mean the same: {shorten(twice)}")
    renamed, rows = Weights(), {}
    for target, parts in pieces.items():
        try:
            renamed[target], rows[target] = assemble(target, parts, state, source)
        except (ValueError, RuntimeError) as error:
            problems.append(f"{target}: {error}")
    if problems:
        raise ValueError(f"a {source.name} checkpoint, but damaged or changed\n  " + "\n  ".join(problems))
    if "mask_token" in renamed and "head.weight" not in renamed:
        source = dataclasses.replace(source, pretraining=True)
    if source.network == "vivit" and "time_embed" in renamed:
        join_positions(renamed, rows)
    settings, notes = dict(source.settings), list(source.notes)
    heads = {state[key].shape[1] for parts in pieces.values() for key, axes in parts.values() if axes == HEADS_INSIDE}
    if len(heads) == 1:
        settings["heads"] = heads.pop()
    if source.name == "TimeSformer" and "time_embed" not in renamed:
        notes.append("taken as a TimeSformer with space attention: an image ViT of a trainer has the same keys")
    broken = [key for key, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        notes.append(f"{len(broken)} tensors with values that are not finite: {shorten(broken)}")
    return Translated(source, renamed, rows, dropped, settings, notes)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without what a wrapper put before every one of them."""
    keys = dict(zip(state, state, strict=True))
    for prefix in PREFIXES * 2:
        if all(key.startswith(prefix) for key in keys):
            keys = {key.removeprefix(prefix): stored for key, stored in keys.items()}
    return {key: state[stored] for key, stored in keys.items()}


def assemble(
    target: str, parts: Mapping[str, tuple[str, str]], state: Mapping[str, Tensor], source: Format
) -> tuple[Tensor, Row]:
    """One tensor of ours from one of theirs, from three of them, or from two biases of three."""
    sources = tuple(key for key, _ in parts.values())

    def tensor(part: str) -> Tensor:
        key, axes = parts[part]
        try:
            return rearrange(state[key], axes, **SIZES.get(axes, {})).contiguous() if axes else state[key]
        except (RuntimeError, ValueError) as error:  # einops's message spans lines
            raise ValueError(
                f"{key} of shape {tuple(state[key].shape)} is not {axes.split('->')[0].strip()}"
            ) from error

    rest = set(parts) - {"scale"}
    how = parts[min(rest)][1] if rest else ""
    if rest == {""}:
        value = tensor("")
    elif rest == set(THIRDS):
        thirds = [tensor(part) for part in THIRDS]
        if len({third.shape for third in thirds}) > 1:
            raise ValueError(f"query, key and value of shapes {', '.join(str(tuple(third.shape)) for third in thirds)}")
        value = torch.cat(thirds)
        how = f"query, key, value joined{', each ' + how if how else ''}"
    elif rest == {"q", "v"} and source.no_key_bias and target.endswith("bias"):
        value = torch.cat([tensor("q"), torch.zeros_like(tensor("q")), tensor("v")])
        how = "query, no key bias (0), value joined"
    else:
        missing = [name for letter, name in THIRDS.items() if letter not in rest]
        raise ValueError(f"{' + '.join(sources)}: without {', '.join(missing) if rest else target}")
    if "scale" in parts:
        scale = state[parts["scale"][0]]
        value = value * (scale[:, None] if value.ndim == 2 else scale)
        how = "multiplied by its LayerScale"
    if target == PATCH_KERNEL and value.ndim == 4:
        value, how = value.unsqueeze(2), "kernel over one frame: depth 1 added"
    return value, Row(RESHAPED if how else MAPPED, sources, target, how)


def join_positions(state: Weights, rows: dict[str, Row]) -> None:
    """The seed's ViViT adds a table over space and one over time; ours has one over both, (1, 1 + t n, D)."""
    space, time = state["pos_embed"], state.pop("time_embed")
    if space.ndim != 3 or time.ndim != 3 or space.shape[2] != time.shape[2]:
        raise ValueError(f"pos_embed {tuple(space.shape)} and time_embed {tuple(time.shape)} do not go together")
    places = rearrange(space[:, 1:], "one n D -> one 1 n D") + rearrange(time, "one t D -> one t 1 D")
    state["pos_embed"] = torch.cat([space[:, :1], rearrange(places, "one t n D -> one (t n) D")], dim=1)
    sources = rows["pos_embed"].sources + rows.pop("time_embed").sources
    rows["pos_embed"] = Row(RESHAPED, sources, "pos_embed", "positions in space and time added up")
