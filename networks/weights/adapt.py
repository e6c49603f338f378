"""Weights of one network adapted to another: other frames, sizes or classes, or those of an image model.

Strict: every key of the source and of the network is mapped, reshaped, created or dropped, otherwise it is an error.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from networks.argument_checks import check_choice, to_3tuple
from networks.hiera import Hiera
from networks.jepa import JEPA
from networks.mvit import MViT
from networks.pretraining import PretrainingNetwork
from networks.timesformer import TimeSformer
from networks.videoprism import VideoPrism
from networks.vivit import ViViT
from networks.vjepa2 import VJEPA2
from networks.weights.architecture import check_num_heads, misfit_hints
from networks.weights.pretraining_parts import PREDICTION_WEIGHTS, is_of_pretraining, with_teacher_weights
from networks.weights.read import shorten
from networks.weights.rename_keys import RenamedWeights
from networks.weights.report import AS_INITIALIZED, CREATED, DROPPED, MAPPED, RESHAPED, KeyRecord, KeyReport
from networks.weights.resize import Resizer

SOURCE_ARCHITECTURES: dict[type, tuple[str, ...]] = {
    TimeSformer: ("timesformer", "image"),
    ViViT: ("vivit", "image"),
    MViT: ("mvit",),
    Hiera: ("hiera",),
    VJEPA2: ("vjepa2",),
    VideoPrism: ("videoprism",),
}
# Arguments that change what a network computes but not the shapes of its weights, or not all of them.
COMPARED_ARGUMENTS = {
    "attention",
    "attn_softcap",
    "expand_attn",
    "gelu",
    "kv_stride",
    "norm_eps",
    "pool_keys",
    "pool_kernel",
    "pool_norm_eps",
    "pool_queries",
    "pooling",
    "pos_embed",
    "q_strides",
    "ref_grid_size",
    "residual_pooling",
    "rope_layout",
    "tubelet_size",
}
INFLATION = ("central", "average")
TEMPORAL = ("copy", "zero")
HEAD = ("auto", "new")


def adapt(
    source: RenamedWeights,
    network: nn.Module,
    *,
    inflation: str = "central",
    temporal: str = "copy",
    head: str = "auto",
    source_grid: Sequence[int] | None = None,
) -> tuple[dict[str, Tensor], KeyReport]:
    """Return a complete state dict for `network`, which is left as it is, and what became of every key.

    inflation: a kernel over one frame is put at the middle frame of a tubelet ("central", ViViT section 3.4) or divided
    among all frames ("average"). temporal: attention over time that the source lacks starts as a copy of the attention
    over space ("copy"), or with an output of zero ("zero"); temporal_fc starts at zero in any case, so that TimeSformer
    starts as the image model (section 4 of its paper). head: "auto" keeps the head of a video network with the same
    number of classes, "new" keeps none, and no decoder or predictor of a pre-training. source_grid: (t, h, w) of the
    source's position embeddings, where their number does not determine it.

    Raises ValueError that lists every key of the source that the network has not, every key of the network that the
    source has not, and every pair of keys with different shapes.
    """
    check_choice("inflation", inflation, INFLATION)
    check_choice("temporal", temporal, TEMPORAL)
    check_choice("head", head, HEAD)
    grid = to_3tuple("source_grid", source_grid) if source_grid is not None else None
    source = source if isinstance(network, JEPA) else with_teacher_weights(source)
    body = network.backbone if isinstance(network, PretrainingNetwork) else network
    kind = type(network).__name__
    if source.format.architecture not in SOURCE_ARCHITECTURES[type(body)]:
        raise ValueError(f"a {source.format.name} checkpoint cannot fill a {kind}: it is of another architecture")
    check_num_heads("num_heads", source.kwargs, body.kwargs)  # type: ignore[arg-type]
    for part in ("decoder", "predictor"):
        if any(key.startswith(f"{part}_") for key in source.state) and head != "new":
            check_num_heads(f"{part}_num_heads", source.kwargs, network.kwargs)  # type: ignore[arg-type]
    target_state = {key.removeprefix("backbone."): tensor for key, tensor in network.state_dict().items()}
    resizer = Resizer(source, body, target_state, inflation=inflation, source_grid=grid)
    adapter = _Adapter(source, body, target_state, resizer, temporal=temporal, head=head)
    for key, tensor in target_state.items():
        adapter.fill(key, tensor)
    adapter.drop_unused()
    if adapter.problems:
        problems = adapter.problems if len(adapter.problems) <= 10 else [shorten(adapter.problems)]
        problems += misfit_hints(adapter.problems, source.kwargs, body.kwargs | network.kwargs)  # type: ignore
        raise ValueError(f"a {source.format.name} checkpoint does not fit this {kind}\n  " + "\n  ".join(problems))
    return dict(zip(network.state_dict(), adapter.state.values(), strict=True)), adapter.report


class _Adapter:
    """Fills the keys of the target one by one, and keeps the state, the report and the problems so far.

    `target_state` are the tensors of `network` by key, with those of a pre-training around it.
    """

    def __init__(
        self,
        source: RenamedWeights,
        network: nn.Module,
        target_state: dict[str, Tensor],
        resizer: Resizer,
        *,
        temporal: str,
        head: str,
    ):
        self.source, self.network, self.resizer = source, network, resizer
        self.temporal, self.head = temporal, head
        self.kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
        self.unused = dict(source.state)
        self.state: dict[str, Tensor] = {}
        self.problems: list[str] = []
        self.report = KeyReport(f"{source.format.name} -> {type(network).__name__}")
        self.report.notes = sorted([*source.notes, *self.compare_arguments()])
        # Keys of the source that the network could take by name and shape but should not, with the reason.
        self.unwanted = {
            **self.unwanted_head(),
            **self.unwanted_norm(),
            **self.unwanted_pos_embed(target_state),
            **self.unwanted_tokens(target_state),
            **self.unwanted_pooler(),
        }
        # If the source has a part of a family, it must have the rest too.
        self.families = {family(key) for key in source.state if key not in self.unwanted}
        if "temporal" in self.families:
            self.families.add("time_embed")

    def compare_arguments(self) -> list[str]:
        source_kwargs = self.source.kwargs
        return [
            f"{name} is {source_kwargs[name]} in the checkpoint, {self.kwargs[name]} in the network: its outputs differ"
            for name in COMPARED_ARGUMENTS & source_kwargs.keys() & self.kwargs.keys()
            if source_kwargs[name] != self.kwargs[name]
        ]

    def unwanted_head(self) -> dict[str, str]:
        if "head.weight" not in self.source.state:
            return {}
        source_classes, num_classes = len(self.source.state["head.weight"]), self.kwargs["num_classes"]
        if self.source.format.architecture == "image":
            reason = "classes of images"
        elif not num_classes:
            reason = "the network has no head"
        elif source_classes != num_classes:
            reason = f"head of {source_classes} classes, the network has {num_classes}"
        elif self.head == "new":
            reason = "a new head was asked for"
        else:
            return {}
        return dict.fromkeys(("head.weight", "head.bias"), reason)

    def unwanted_norm(self) -> dict[str, str]:
        if not self.source.format.pretraining or self.kwargs["pooling"] != "fc_norm":
            return {}
        reason = "fine-tuning with fc_norm starts with a fresh norm, as in MAE and VideoMAE"
        return dict.fromkeys(("norm.weight", "norm.bias"), reason)

    def unwanted_pos_embed(self, target_state: dict[str, Tensor]) -> dict[str, str]:
        is_fixed = self.kwargs.get("pos_embed") == "sincos"
        reason = "the position embeddings of the network are fixed" if is_fixed else "the network has no such positions"
        keys = ("pos_embed", "time_embed", "temporal_pos_embed")
        return {key: reason for key in keys if key in self.source.state and key not in target_state}

    def unwanted_tokens(self, target_state: dict[str, Tensor]) -> dict[str, str]:
        unwanted = {}
        if "cls_token" not in target_state:
            unwanted["cls_token"] = "the network has no class token"
        own_parts = [key for key in self.source.state if is_of_pretraining(key)]
        if not all(key in target_state for key in own_parts if key in PREDICTION_WEIGHTS):
            unwanted |= dict.fromkeys(own_parts, "mask token, decoder, predictor or HOG head of the pre-training")
        elif self.head == "new":
            parts = (key for key in own_parts if not key.startswith("teacher."))
            unwanted |= dict.fromkeys(parts, "a new decoder or predictor was asked for")
        return unwanted

    def unwanted_pooler(self) -> dict[str, str]:
        if self.kwargs["pooling"] == "attentive":
            return {}
        reason = "the network has no attentive pooler"
        return {key: reason for key in self.source.state if key.startswith("pooler.")}

    def fill(self, key: str, target: Tensor) -> None:
        """Take the tensor of this key from the source, in the size of `target`, or create it."""
        tensor = None if key in self.unwanted else self.unused.pop(key, None)
        if tensor is None:
            return self.create(key, target)
        misfit = f"{key}: {tuple(tensor.shape)}, the network has {tuple(target.shape)}"
        if tensor.ndim != target.ndim or 0 in tensor.shape:
            self.problems.append(misfit)
            return None
        value, detail = tensor, ""
        try:
            could_have_another_grid = key == "pos_embed" or (key == "pos_embed_spatial" and self.resizer.source_grid)
            if could_have_another_grid or tensor.shape != target.shape:
                value, detail = self.resizer.resize(key, tensor, target)
        except ValueError as error:
            self.problems.append(f"{key}: {error}")
            return None
        if value.shape != target.shape:
            self.problems.append(misfit)
            return None
        record = self.source.records[key]
        detail = "; ".join(part for part in (record.detail, detail) if part)
        self.add(value, status=RESHAPED if detail else MAPPED, sources=record.sources, target=key, detail=detail)

    def add(self, value: Tensor, *, target: str, status: str, sources: tuple[str, ...] = (), detail: str = "") -> None:
        self.state[target] = value
        self.report.records.append(KeyRecord(status=status, sources=sources, target=target, detail=detail))

    def create(self, key: str, target: Tensor) -> None:
        """Create a tensor that the source does not have, by the rule for its name; without a rule it is a problem."""
        value, detail = (target, "") if family(key) in self.families else self.initial_value(key, target)
        if detail:
            self.add(value, status=CREATED, target=key, detail=detail)
        else:
            self.problems.append(f"{key}: missing in the checkpoint")

    def initial_value(self, key: str, target: Tensor) -> tuple[Tensor, str]:
        """Return the tensor to start with and where it comes from, "" if there is no rule for this key."""
        parts = key.split(".")
        if parts[0] == "teacher":  # a JEPA that starts from an encoder: so far both are equal
            return self.state[key.removeprefix("teacher.")].clone(), "copy of the encoder"
        reason = self.reason_for_initialization(key)
        if reason:
            return target, f"{reason}; {AS_INITIALIZED}"
        if key == "time_embed":
            return torch.zeros_like(target), "zeros: the source has no time"
        if key == "pos_embed" and self.source.kwargs.get("pos_embed") == "sincos":
            return self.resizer.sincos_pos_embed(target), "the fixed sine-cosine positions of the source"
        if parts[0].startswith("temporal_") and self.source.format.architecture == "image":
            return target, f"encoder over time: {AS_INITIALIZED}"
        if len(parts) > 2 and parts[2].startswith("temporal_"):
            return self.initial_temporal_attention(key, target)
        return target, ""

    def reason_for_initialization(self, key: str) -> str:
        """Return why a tensor stays as it was initialized, "" if it does not."""
        first = key.split(".")[0]
        if first == "head":
            return self.unwanted.get(key, "the source has no head")
        if key in self.unwanted or first in self.source.format.missing_parts:
            return self.unwanted.get(key, "the source has none")
        if is_of_pretraining(key):
            return "the source is not such a pre-training"
        if key == "cls_token" and self.source.format.architecture != "mvit":
            return "the source has no class token"
        return ""

    def initial_temporal_attention(self, key: str, target: Tensor) -> tuple[Tensor, str]:
        """Start the attention over time of a block: temporal_norm1, temporal_attn, and TimeSformer's temporal_fc."""
        _, _, module, *names = key.split(".")
        if module == "temporal_fc":
            return torch.zeros_like(target), "zeros: the block starts as that of the image model"
        spatial = self.source.state.get(key.replace("temporal_", ""))
        if self.temporal == "copy" and spatial is not None and spatial.shape == target.shape:
            return spatial.clone(), f"copy of {module.removeprefix('temporal_')}"
        if (
            self.temporal == "zero"
            and module == "temporal_attn"
            and names[0] == "proj"
            and isinstance(self.network, ViViT)
        ):
            return torch.zeros_like(target), "zeros: attention over time adds nothing at first"
        return target, AS_INITIALIZED

    def drop_unused(self) -> None:
        """Record the unwanted keys of the source as dropped; any other key that was not used is a problem."""
        for key in self.unused:
            sources = self.source.records[key].sources
            if key in self.unwanted:
                self.report.records.append(KeyRecord(status=DROPPED, sources=sources, detail=self.unwanted[key]))
            else:
                self.problems.append(f"{' + '.join(sources)}: the network has no {key}")
        self.report.records += self.source.dropped


def family(key: str) -> str:
    """Return the group of parameters that a checkpoint contains completely or not at all: a head, a norm, the
    attention over time of all blocks, position embeddings, a teacher, or what else a pre-training adds."""
    parts = key.split(".")
    if parts[0] == "blocks":
        return "temporal" if parts[2].startswith("temporal_") else "blocks"
    return "pretraining" if is_of_pretraining(key) and parts[0] != "teacher" else parts[0]
