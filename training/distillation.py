"""Distillation: a classifier learns from the labels and from a teacher that sees the same clips, decoded once.

Shapes: B clips, K classes, D the dimension of the teacher's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import Config
from networks import weights
from networks.adapters import MERGEABLE
from networks.student import feature_dim
from networks.weights.source_config import CONFIG, read_json
from training.losses import Loss
from training.tasks import Classify, LabeledClips


class Teacher:
    """A trained network that is fixed, in the precision of the training step.

    `scale` and `offset` (3,) turn clips that are normalized for the student into what the teacher was trained on.
    `class_names` are those of its logits, "" where the checkpoint has none; `source` is where it was read from.
    """

    def __init__(  # noqa: PLR0913  # what a checkpoint tells
        self,
        network: nn.Module,
        scale: Tensor,
        offset: Tensor,
        *,
        compiled: bool = False,
        class_names: Sequence[str] = (),
        source: str = "",
    ):
        self.network = network.eval().requires_grad_(False)
        self.feature_dim, self.class_names, self.source = feature_dim(network), class_names, source
        channels = (1, -1, 1, 1, 1)
        self.scale, self.offset = scale.view(channels), offset.view(channels)
        self._same_normalization = bool((scale == 1).all() and (offset == 0).all())
        compute: Any = torch.compile if compiled else lambda function: function
        self._logits, self._features = compute(network), compute(network.forward_features)

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the weights."""
        return next(self.network.parameters()).dtype

    def _clips(self, video: Tensor) -> Tensor:
        if self._same_normalization:
            return video.to(self.dtype)
        return (video.float() * self.scale + self.offset).to(self.dtype)

    @property
    def description(self) -> str:
        """Describe the network in a few words."""
        millions = sum(parameter.numel() for parameter in self.network.parameters()) / 1e6
        return f"{type(self.network).__name__}, {millions:.2f} M parameters, {str(self.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def logits(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, K) float32."""
        return self._logits(self._clips(video)).float()

    @torch.no_grad()
    def features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D) float32."""
        return self._features(self._clips(video)).float()

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise ValueError if its logits are not those of these classes."""
        if len(self.class_names) != len(classes):
            raise ValueError(
                f"task.teacher={self.source}: it has {len(self.class_names)} classes, and the training list "
                f"{len(classes)}; expected the same, or task.distillation=features"
            )
        for own, other in zip(weights.normalize(self.class_names), weights.normalize(classes), strict=True):
            if own and not own.isdecimal() and not other.isdecimal() and own != other:
                raise ValueError(
                    f"task.teacher={self.source}: its class '{own}' is '{other}' in the training list; expected the "
                    "same classes in the same order, or task.distillation=features"
                )


def load_teacher(cfg: Config, device: torch.device, dtype: torch.dtype, compiled: bool = False) -> Teacher:
    """Load task.teacher for the clips of the student: its positions are resized to them.

    Raises ValueError for a checkpoint that is no classifier, and if logits are compared, for one that knows several
    labels per video where the student learns one, or one where it learns several.
    """
    data, source = cfg.data, cfg.task.teacher
    network, card = _read_teacher(source, num_frames=data.num_frames, image_size=data.image_size)
    if cfg.task.distillation == "logits" and card.get("multi_label", data.multi_label) != data.multi_label:
        own_labels, labels = (
            "several labels" if several else "one label" for several in (not data.multi_label, data.multi_label)
        )
        expected = f"expected {labels}, as the student, or task.distillation=features"
        raise ValueError(f"task.teacher={source}: it knows {own_labels} per video; {expected}")
    own = card.get("input", {})
    stats = {key: torch.tensor(own.get(key) or getattr(data, key)) for key in ("mean", "std")}
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    scale, offset = std / stats["std"], (mean - stats["mean"]) / stats["std"]
    id2label = card.get("id2label", {})
    num_classes: int = network.kwargs.get("num_classes", 0)  # type: ignore[operator,union-attr,assignment]
    names = [id2label.get(str(index), "") for index in range(num_classes)]
    options: dict[str, Any] = {"compiled": compiled, "class_names": names, "source": source}
    return Teacher(network.to(device, dtype), scale.to(device), offset.to(device), **options)


def _read_teacher(source: str, **sizes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network for clips of these sizes, and what its file tells of classes and input.

    One with an adapter that is a part of it keeps the sizes that it was trained with, which must be the same.
    """
    folder = next((path for path in (Path(source), Path(source) / "best") if (path / CONFIG).is_file()), None)
    stored = read_json(folder / CONFIG) if folder else {}
    if folder is None or stored.get("adapter", {}).get("name", MERGEABLE[0]) in MERGEABLE:
        network, config, _ = weights.convert(source, **sizes)
        return network, config["extra"]
    network, card = weights.load_network(folder)
    own: dict[str, Any] = network.kwargs  # type: ignore[assignment]
    differing = [f"{key}={own[key]}" for key, value in sizes.items() if own[key] != value]
    if differing:
        expected = "expected the student's, as its adapter is a part of it"
        raise ValueError(f"task.teacher={source}: it was trained with {', '.join(differing)}; {expected}")
    names = {str(number): name for number, name in card.get("id2label", {}).items()}
    return network, card | {"id2label": names, "multi_label": bool(card.get("multi_label"))}


class Distill(Classify):
    """The loss of the labels, and how far the student is from its teacher (Hinton et al., 2015, section 2).

    The total is (1 - alpha) times the first and alpha times the second. kind="logits" compares probabilities at a
    temperature of `tau`: tau^2 times the Kullback-Leibler divergence. With several labels per video it is that of each
    class's own, and as in the loss of the labels their mean over the classes, or for the asymmetric loss their sum.
    "features" compares the features that the heads classify, those of the student projected: 2 - 2 times their cosine.
    """

    def __init__(self, loss: Loss, teacher: Teacher, kind: str = "logits", alpha: float = 0.5, tau: float = 1.0):
        super().__init__(loss)
        self.teacher, self.kind, self.alpha, self.tau = teacher, kind, alpha, tau

    @property
    def description(self) -> str:
        """Describe in a line what is learned from whom."""
        how = f"temperature {self.tau:g}, " if self.kind == "logits" else ""
        return f"learns the {self.kind} of a teacher ({self.teacher.description}); {how}{self.alpha:g} of the loss"

    def __call__(self, network: nn.Module, batch: LabeledClips) -> dict[str, Tensor]:
        """Return loss (), its parts label_loss () and distillation_loss (), and logits (B, K).

        The network is one that make_student() extended if features are compared.
        """
        if self.kind == "logits":
            logits = network(batch.video)
            divergence = binary_divergence if self.loss.multi_label else soft_divergence
            distance = divergence(logits, self.teacher.logits(batch.video), self.tau)
            if self.loss.multi_label and self.loss.name == "asymmetric":
                distance = distance * logits.shape[-1]
        else:
            logits, features = network(batch.video)
            distance = cosine_distance(features, self.teacher.features(batch.video))
        label_loss = self.loss(logits, batch.label)
        loss = (1 - self.alpha) * label_loss + self.alpha * distance
        parts = {"label_loss": label_loss.detach(), "distillation_loss": distance.detach()}
        return {"loss": loss, "logits": logits, **parts}


def soft_divergence(logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """Return tau^2 times the mean divergence () of softened probabilities, for logits (B, K)."""
    log_probs, teacher = (values.float() / tau for values in (logits, teacher_logits))
    pairs = log_probs.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(*pairs, reduction="batchmean", log_target=True) * tau**2


def binary_divergence(logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """Return tau^2 times the mean divergence () of the softened probability of each class, for logits (B, K).

    It is multi-label logits distillation (Yang et al., 2023), over K as the binary cross-entropy here.
    """
    student, teacher = (values.float() / tau for values in (logits, teacher_logits))
    probs = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher, probs)
    return (F.binary_cross_entropy_with_logits(student, probs) - entropy) * tau**2


def cosine_distance(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return 2 - 2 cos, the squared distance of normalized features (B, D), as a mean ()."""
    return (2 - 2 * F.cosine_similarity(features.float(), teacher_features.float(), dim=-1)).mean()
