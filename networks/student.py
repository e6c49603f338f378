"""A student beside its teacher: a network whose forward pass in training also returns features like the teacher's.

Shapes: B clips, K classes, D the dimension of the teacher's features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks.extend import extend

PROJECTION = "teacher_projection."  # begins the keys that the student has for training alone


class Student(nn.Module):
    """Extend a network to return its features, too, projected to the dimension of its teacher's; in eval mode not."""

    teacher_projection: nn.Linear

    def forward(self, video: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, T, H, W) -> logits (B, K), and in training features (B, D)."""
        if not self.training:
            return super().forward(video)  # type: ignore[misc]
        features = self.forward_features(video)  # type: ignore[operator]
        return self.forward_head(features), self.teacher_projection(features)  # type: ignore[operator]


def make_student(network: nn.Module, feature_dim: int) -> None:
    """Turn a network into a Student of a teacher with features of a dimension, in place."""
    network.teacher_projection = nn.Linear(network.head.in_features, feature_dim)  # type: ignore[arg-type,union-attr]
    extend(network, Student)


def feature_dim(network: nn.Module) -> int:
    """Return the dimension of the features that a network's head classifies."""
    weight = next(network.parameters())
    clip = weight.new_zeros(1, *network.patch_embed.input_shape)  # type: ignore[misc,union-attr]
    with torch.inference_mode():
        return network.forward_features(clip).shape[-1]  # type: ignore[operator,no-any-return]
