"""The section `task` of the configuration: what a network learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.section import Arguments, Section, option


class Task(Section):
    """The objective: classification, by the network or by probes on it frozen, or pre-training without labels."""

    name: Literal["classify", "probe", "maskfeat", "mae", "jepa"] = option(
        "classify",
        "classify; probe: classify by probes on the frozen network; pre-training without labels: maskfeat predicts "
        "HOG, mae pixels (VideoMAE, Hiera), jepa the features of a teacher (V-JEPA)",
    )
    loss: Literal["auto", "cross_entropy", "bce", "focal", "asymmetric", "poly", "gce"] = option(
        "auto",
        "loss of a classifier (auto: cross_entropy, of several labels bce); bce: binary cross-entropy of each class; "
        "focal, and for several labels asymmetric: less weight on what is easy; poly: Poly-1; gce: generalized "
        "cross-entropy, for noisy labels",
    )
    loss_args: Arguments = option(
        {},
        "arguments of the loss: focal gamma, alpha; asymmetric gamma_pos, gamma_neg, clip; poly epsilon; gce q",
    )
    label_smoothing: float = option(0.0, "part of the target that is spread over all classes", ge=0, lt=1)
    logit_adjustment: float = option(
        0.0, "tau of logit adjustment, for classes of different sizes; 1 as published (0: off)", ge=0
    )
    class_balance_beta: float = option(
        0.0,
        "beta of the class-balanced loss, which weighs classes by their effective sizes; 0.999 (0: off)",
        ge=0,
        lt=1,
    )
    teacher: str = option(
        "", "checkpoint of a teacher that a classifier also learns from, in any known format (empty: none)"
    )
    distillation: Literal["logits", "features"] = option(
        "logits", "what is learned from the teacher: its probabilities, or the features that its head classifies"
    )
    distillation_alpha: float = option(0.5, "part of the loss that compares with the teacher", gt=0, le=1)
    distillation_tau: float = option(1.0, "temperature of the probabilities of teacher and student", gt=0)
    mask: Literal["auto", "cube", "tube", "random", "frame_runs"] = option(
        "auto",
        "what pre-training masks; frame_runs: whole frames, with the loss on the middle frame of each run (auto: as "
        "published: cube for MaskFeat, tube for VideoMAE, random for Hiera)",
    )
    mask_ratio: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] = option(
        "auto", "fraction of the tokens that pre-training masks (auto: as published, 0.4 for MaskFeat, 0.9 for mae)"
    )
    decoder_mask_ratio: float = option(
        0, "mae: fraction of the tokens that the decoder leaves out, 0.5 in VideoMAE v2 (0: none)", ge=0, lt=1
    )
    norm_pix_loss: bool = option(True, "mae: each patch is normalized by its own mean and standard deviation")
    hog_window: int = option(
        0, "width in pixels of the Gaussian that weighs the gradients of MaskFeat's HOG (0: none; mmselfsup: 16)", ge=0
    )
    hog_gradient: Literal["sobel", "central"] = option(
        "sobel", "gradient filter of MaskFeat's HOG targets; central is that of scikit-image"
    )
    figure_epochs: int = option(10, "epochs between two figures of what pre-training predicts", ge=1)

    @property
    def is_pretraining(self) -> bool:
        """Return whether there are no classes."""
        return self.name in ("maskfeat", "mae", "jepa")
