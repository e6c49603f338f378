"""Weights of one network fitted to another: other frames, other sizes, other classes, an image model's to a video's.

Strict: every key of the source and of the target ends as mapped, reshaped, created or dropped, or it is an error.
"""

import re
from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from networks.layers import Triple, check_choice, triple
from networks.maskfeat import MaskFeat
from networks.mvit import MViT
from networks.pos_embed import resize_grid, resize_line, sincos_table
from networks.timesformer import TimeSformer
from networks.vivit import ViViT
from networks.weights.read import shorten
from networks.weights.rename_keys import PATCH_KERNEL, Translated
from networks.weights.report import CREATED, DROPPED, MAPPED, RESHAPED, Report, Row

FILLS: dict[type, tuple[str, ...]] = {
    TimeSformer: ("timesformer", "image"), ViViT: ("vivit", "image"), MViT: ("mvit",),
}  # fmt: skip
# Arguments that change what a network computes but not the shapes of its weights, or not all of them.
COMPARED = {
    "attention", "gelu", "key_stride", "norm_eps", "pool_keys", "pool_kernel", "pool_norm_eps",
    "pool_queries", "pooling", "positions", "query_strides", "residual_pooling", "tubelet", "width_change",
}  # fmt: skip
INFLATION = ("central", "average")
TEMPORAL = ("copy", "zero")
HEAD = ("auto", "new")


def transfer(
    source: Translated,
    network: nn.Module,
    inflation: str = "central",
    temporal: str = "copy",
    head: str = "auto",
    source_grid: Sequence[int] | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """-> a whole state dict for `network`, and what became of every key. The network itself is left as it is.

    inflation: a kernel over one frame becomes one over a tubelet by putting it at the middle frame ("central", ViViT
    section 3.4) or by sharing it among all ("average"). temporal: attention over time that the source lacks starts as
    a copy of the attention over space, or with an output of zero; temporal_fc starts at zero in any case, so that
    TimeSformer starts as the image model (section 4 of its paper). head: "auto" keeps a video head of the same number
    of classes, "new" none. source_grid: (t, h, w) of the source's positions where their number leaves it open.

    Raises ValueError that lists every key that has no place, no source or another shape.
    """
    check_choice("inflation", inflation, INFLATION)
    check_choice("temporal", temporal, TEMPORAL)
    check_choice("head", head, HEAD)
    body = network.backbone if isinstance(network, MaskFeat) else network
    kind = type(network).__name__
    grid = triple("source_grid", source_grid) if source_grid is not None else None
    if source.format.network not in FILLS[type(body)]:
        raise ValueError(f"a {source.format.name} checkpoint cannot fill a {kind}: it is of another architecture")
    theirs, ours = source.settings.get("heads"), body.kwargs["heads"]  # type: ignore[index]
    if theirs is not None and theirs != ours:
        raise ValueError(f"its attention has heads={theirs}, the network heads={ours}: equal shapes, other meaning")
    own = {key.removeprefix("backbone."): tensor for key, tensor in network.state_dict().items()}
    fitting = _Fitting(source, body, own, inflation, temporal, head, grid)
    for key, tensor in own.items():
        fitting.fill(key, tensor)
    fitting.drop_the_rest()
    if fitting.problems:
        raise ValueError(
            f"a {source.format.name} checkpoint does not fit this {kind}\n  " + "\n  ".join(fitting.problems)
        )
    return dict(zip(network.state_dict(), fitting.state.values(), strict=True)), fitting.report


class _Fitting:
    """One transfer: the target's tensors so far, the report so far, the source keys not used yet.

    `own` are the target's tensors by name: those of `network`, and with them those of MaskFeat around it.
    """

    def __init__(
        self,
        source: Translated,
        network: nn.Module,
        own: dict[str, Tensor],
        inflation: str,
        temporal: str,
        head: str,
        source_grid: Triple | None,
    ):
        self.source, self.network, self.own = source, network, own
        self.inflation, self.temporal, self.head, self.source_grid = inflation, temporal, head, source_grid
        self.kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
        self.grid: Triple = network.patch_embed.grid  # type: ignore[union-attr,assignment]
        self.left = dict(source.state)
        self.state: dict[str, Tensor] = {}
        self.problems: list[str] = []
        self.report = Report(f"{source.format.name} -> {type(network).__name__}", notes=list(source.notes))
        for setting in COMPARED & source.settings.keys() & self.kwargs.keys():
            theirs, ours = source.settings[setting], self.kwargs[setting]
            if theirs != ours:
                self.report.notes.append(f"{setting} is {theirs} in the checkpoint and {ours} here: other outputs")
        self.report.notes.sort()
        self.unwanted: dict[str, str] = {}  # key of the source -> why it is dropped
        self.choose_unwanted()
        # what the source has a part of, so that the rest of it must be there too
        self.families = {family(key) for key in source.state if key not in self.unwanted}
        if "temporal" in self.families:
            self.families.add("time_embed")

    def choose_unwanted(self) -> None:
        """What the target could hold by name and shape, but should not take."""
        source, own = self.source, self.own
        if "head.weight" in source.state:
            theirs, ours = len(source.state["head.weight"]), self.kwargs["num_classes"]
            why = ""
            if source.format.network == "image":
                why = "classes of images"
            elif ours != theirs:
                why = f"head of {theirs} classes, the network has {ours}" if ours else "the network has no head"
            elif self.head == "new":
                why = "a new head was asked for"
            self.unwanted |= dict.fromkeys(("head.weight", "head.bias"), why) if why else {}
        if source.format.pretraining and self.kwargs["pooling"] == "fc_norm":
            for key in ("norm.weight", "norm.bias"):
                self.unwanted[key] = "fine-tuning with fc_norm starts with a fresh norm, as MAE and VideoMAE do"
        for key in ("pos_embed", "time_embed", "temporal_pos_embed"):
            if key not in own and key in source.state:
                fixed = self.kwargs.get("positions") == "sincos"
                self.unwanted[key] = "the network's positions are fixed" if fixed else "the network has none"
        if "cls_token" not in own:
            self.unwanted["cls_token"] = "the network has no class token"
        if "predict.weight" not in own:
            for key in ("mask_token", "predict.weight", "predict.bias"):
                self.unwanted[key] = "mask token or HOG head of the pre-training"

    def fill(self, key: str, own: Tensor) -> None:
        theirs = None if key in self.unwanted else self.left.pop(key, None)
        if theirs is None:
            return self.create(key, own)
        row = self.source.rows[key]
        value, how = theirs, ""
        if theirs.ndim != own.ndim or 0 in theirs.shape:
            self.problems.append(f"{key}: {tuple(theirs.shape)}, the network has {tuple(own.shape)}")
            return None
        try:
            if key == "pos_embed" or theirs.shape != own.shape:
                value, how = self.reshape(key, theirs, own)
        except ValueError as error:
            self.problems.append(f"{key}: {error}")
            return None
        if value.shape != own.shape:
            self.problems.append(f"{key}: {tuple(theirs.shape)}, the network has {tuple(own.shape)}")
            return None
        how = "; ".join(part for part in (row.how, how) if part)
        self.add(key, value, Row(RESHAPED if how else MAPPED, row.sources, key, how))

    def add(self, key: str, value: Tensor, row: Row) -> None:
        self.state[key] = value
        self.report.rows.append(row)

    def reshape(self, key: str, theirs: Tensor, own: Tensor) -> tuple[Tensor, str]:
        """For the tensors whose size follows from frames, rows and columns; others come back as they are."""
        name = key.rpartition(".")[2]
        if key.startswith(("pos_", "time_", "temporal_pos")) and theirs.shape[::2] != own.shape[::2]:
            return theirs, ""  # a table of another width
        if (
            key == PATCH_KERNEL
            and theirs.shape[2] == 1
            and theirs.shape[:2] + theirs.shape[3:] == own.shape[:2] + own.shape[3:]
        ):
            return inflate(theirs, own.shape[2], self.inflation), f"inflated to {own.shape[2]} frames, {self.inflation}"
        if key == "pos_embed":
            return self.positions(theirs, own)
        if key in ("time_embed", "pos_embed_temporal"):
            return resize_line(theirs, own.shape[1]), f"{theirs.shape[1]} -> {own.shape[1]} frames, linear"
        if key == "temporal_pos_embed":
            cls = int(self.kwargs["cls_token"])
            places = resize_line(theirs[:, cls:], own.shape[1] - cls)
            return torch.cat([theirs[:, :cls], places], dim=1), f"{theirs.shape[1]} -> {own.shape[1]} rows, linear"
        if key == "pos_embed_spatial":
            old, new = (1, *self.square(theirs.shape[1])), (1, *self.grid[1:])
            return resize_grid(theirs, old, new), described(old, new)
        if re.fullmatch("rel_pos_[thw]", name) and theirs.shape[1] == own.shape[1]:
            return resize_line(theirs[None], len(own))[0], f"{len(theirs)} -> {len(own)} distances, linear"
        return theirs, ""

    def positions(self, theirs: Tensor, own: Tensor) -> tuple[Tensor, str]:
        """A table over a frame or a clip -> another: resized, and tiled over the frames if the source has none."""
        theirs_cls = int("cls_token" in self.source.state)
        own_cls = int("cls_token" in self.own)
        new = self.grid_of_target(own.shape[1] - own_cls)
        old = self.grid_of_source(theirs.shape[1] - theirs_cls, new)
        places, hows = theirs[:, theirs_cls:], []
        if old != new and old[0] == 1 and new[0] > 1:
            places, old = repeat(places, "one n D -> one (t n) D", t=new[0]), (new[0], *old[1:])
            hows.append(f"tiled over {new[0]} frames")
        if old != new:
            places = resize_grid(places, old, new)
            hows.append(described(old, new))
        rows = theirs[:, :theirs_cls][:, :own_cls]
        if theirs_cls and not own_cls:
            hows.append("row of the class token left out")
        if own_cls and not theirs_cls:
            rows = torch.zeros_like(own[:, :1])
            hows.append("row of zeros for the class token")
        return torch.cat([rows, places], dim=1), ", ".join(hows)

    def grid_of_target(self, places: int) -> Triple:
        t, h, w = self.grid
        return (t, h, w) if places == t * h * w and places != h * w else (1, h, w)

    def grid_of_source(self, places: int, new: Triple) -> Triple:
        """As given; else a square frame, or a clip as large as the target's; anything else has to be given."""
        if places < 1:
            raise ValueError("it holds no positions but the class token's")
        if self.source_grid:
            t, h, w = self.source_grid
            if places not in (t * h * w, h * w):
                raise ValueError(f"{places} positions are not those of {t} x {h} x {w}")
            return (t, h, w) if places == t * h * w else (1, h, w)
        joint = self.source.format.network == "vivit" and "temporal_pos_embed" not in self.source.state
        if not joint:
            return 1, *self.square(places)
        if places == new[0] * new[1] * new[2]:
            return new
        raise ValueError(f"{places} positions could be of several grids; say which: source_grid=[t, h, w]")

    def square(self, places: int) -> tuple[int, int]:
        if self.source_grid:
            _, h, w = self.source_grid
            if h * w != places:
                raise ValueError(f"{places} positions are not those of {h} x {w}")
            return h, w
        side = isqrt(places)
        if side * side != places:
            raise ValueError(f"{places} positions are no square; say their grid: source_grid=[t, h, w]")
        return side, side

    def create(self, key: str, own: Tensor) -> None:
        """What the source does not have, by the rule for its name; a name without a rule is a problem."""
        parts = key.split(".")
        value, how = own, ""
        if family(key) in self.families:
            self.problems.append(f"{key}: missing in the checkpoint")
            return
        if parts[0] == "head":
            how = self.unwanted.get(key, "the source has no head") + "; new, as initialised"
        elif key in self.unwanted or parts[0] in self.source.format.lacks:
            how = self.unwanted.get(key, "the source has none") + "; as initialised"
        elif parts[0] in ("mask_token", "predict"):
            how = "the source is no MaskFeat; as initialised"
        elif key == "cls_token" and self.source.format.network != "mvit":
            how = "the source has no class token; as initialised"
        elif key == "time_embed":
            value, how = torch.zeros_like(own), "zeros: the source has no time"
        elif key == "pos_embed" and self.source.settings.get("positions") == "sincos":
            value, how = self.sincos(own), "the source's fixed sine-cosine table"
        elif parts[0].startswith("temporal_") and self.source.format.network == "image":
            how = "encoder over time: as initialised"
        elif len(parts) > 2 and parts[2].startswith("temporal_"):
            value, how = self.create_attention(key, parts, own)
        if not how:
            self.problems.append(f"{key}: missing in the checkpoint")
            return
        self.add(key, value, Row(CREATED, (), key, how))

    def create_attention(self, key: str, parts: list[str], own: Tensor) -> tuple[Tensor, str]:
        """Attention over time in a block: temporal_norm1, temporal_attn, TimeSformer's temporal_fc."""
        if parts[2] == "temporal_fc":
            return torch.zeros_like(own), "zeros: the block starts as the image model's"
        spatial = self.source.state.get(key.replace("temporal_", ""))
        if self.temporal == "copy" and spatial is not None and spatial.shape == own.shape:
            return spatial.clone(), f"copy of {parts[2].removeprefix('temporal_')}"
        if self.temporal == "zero" and parts[2:4] == ["temporal_attn", "proj"] and isinstance(self.network, ViViT):
            return torch.zeros_like(own), "zeros: attention over time adds nothing at first"
        return own, "as initialised"

    def sincos(self, own: Tensor) -> Tensor:
        cls = int("cls_token" in self.own)
        t, h, w = self.grid_of_target(own.shape[1] - cls)
        image = self.source.format.network == "image"
        table = sincos_table(h * w if image else t * h * w, own.shape[2])
        table = repeat(table, "one n D -> one (t n) D", t=t) if image else table
        return torch.cat([torch.zeros_like(own[:, :cls]), table.to(own)], dim=1)

    def drop_the_rest(self) -> None:
        for key in self.left:
            row = self.source.rows[key]
            if key in self.unwanted:
                self.report.rows.append(Row(DROPPED, row.sources, "", self.unwanted[key]))
            else:
                self.problems.append(f"{' + '.join(row.sources)}: the network has no {key}")
        self.report.rows += self.source.dropped
        if len(self.problems) > 10:
            self.problems = [shorten(self.problems)]


def family(key: str) -> str:
    """What a source has as a whole or not at all: a head, a norm, attention over time in its blocks, a table, what
    MaskFeat adds."""
    parts = key.split(".")
    if parts[0] == "blocks":
        return "temporal" if parts[2].startswith("temporal_") else "blocks"
    return "maskfeat" if parts[0] in ("mask_token", "predict") else parts[0]


def inflate(kernel: Tensor, frames: int, inflation: str) -> Tensor:
    """(D, C, 1, p, p) -> (D, C, frames, p, p): at the middle frame (scenic: index frames // 2), or shared by all."""
    if inflation == "average":
        return repeat(kernel, "D C 1 p q -> D C t p q", t=frames) / frames
    middle = frames // 2
    return F.pad(kernel, (0, 0, 0, 0, middle, frames - 1 - middle))


def described(old: Sequence[int], new: Sequence[int]) -> str:
    ways = [
        way for way, differs in (("bicubic", old[1:] != new[1:]), ("linear over frames", old[0] != new[0])) if differs
    ]
    return f"{'x'.join(map(str, old))} -> {'x'.join(map(str, new))}, {', '.join(ways)}" if ways else ""
