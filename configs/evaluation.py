"""The sections of the configuration about frozen evaluation (`probe`) and tests (`eval`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from configs.section import Section, option

# The views of the multi-view tests behind published figures.
PRESETS: dict[str, dict[str, Any]] = {
    "timesformer": {"num_clips": 1, "num_crops": 3, "clip_placement": "from_start", "short_side": "image_size"},
    "vivit": {"num_clips": 4, "num_crops": 3, "clip_placement": "uniform", "short_side": "image_size"},
    "mvit": {"num_clips": 5, "num_crops": 1, "clip_placement": "uniform", "short_side": "8/7"},
    "mvit-b": {"num_clips": 10, "num_crops": 3, "clip_placement": "uniform", "short_side": "image_size"},
    "maskfeat": {"num_clips": 10, "num_crops": 1, "clip_placement": "uniform", "short_side": "8/7"},
    "videomae": {"num_clips": 5, "num_crops": 3, "clip_placement": "uniform", "short_side": "image_size"},
    "vjepa2": {"num_clips": 8, "num_crops": 3, "clip_placement": "uniform", "short_side": "image_size"},
    "ssv2": {"num_clips": 2, "num_crops": 3, "clip_placement": "uniform", "short_side": "image_size"},
}


ProbeKind = Annotated[str, Field(pattern=r"^(attentive(_[1-9]\d*)?|linear(_bn)?)$")]


class Probe(Section):
    """The probes that are trained side by side on one frozen network: every kind with every lr and weight decay."""

    kinds: tuple[ProbeKind, ...] = option(
        ("attentive",),
        "attentive (a pooler of one block), attentive_N (N blocks), linear (mean token), linear_bn (with batch norm)",
    )
    lr: tuple[float, ...] = option((), "peak learning rates, scaled as optim.lr is (empty: optim.lr)")
    weight_decay: tuple[float, ...] = option((), "weight decays (empty: optim.weight_decay)")
    layers: tuple[str, ...] = option(
        (), "layers whose tokens are classified together: blocks.5,blocks.11 (empty: those that the network ends with)"
    )
    num_heads: int = option(0, "attention heads of attentive probes (0: as many as the network's last block)", ge=0)
    halving_epochs: int = option(
        0, "epochs after which the worse half of the probes stops, again and again: successive halving (0: off)", ge=0
    )


class Eval(Section):
    """Views of the multi-view test, and other uses of the test videos."""

    preset: Literal["", "timesformer", "vivit", "mvit", "mvit-b", "maskfeat", "videomae", "vjepa2", "ssv2"] = option(
        "", "the views of a published test; keys after it on the command line override single values"
    )
    num_clips: int = option(4, "clips per video", ge=1)
    clip_placement: Literal["uniform", "from_start", "segment_center"] = option(
        "uniform",
        "where clips lie: spread from the first to the last possible start, one after the other from frame 0, or each "
        "in the middle of its segment",
    )
    num_crops: int = option(3, "crops per clip: 1 (center) or 3 (along the longer side)")
    average: Literal["probs", "logits", "max"] = option(
        "probs",
        "what is averaged over the views of a video; max: the largest probability of each class, as on Charades",
    )
    metric: Literal["auto", "top1", "macro_top1", "map", "loss"] = option(
        "auto",
        "which validation is the best, whose network is kept; macro_top1: the mean of the accuracies of the classes "
        "(auto: top1, of several labels map, of a pre-training the loss)",
    )
    shots: tuple[int, int] = option(
        (20, 100),
        "head, middle and tail of the classes in a report: by more training videos than the second number, and fewer "
        "than the first",
    )
    attention_map: Literal["", "last", "rollout"] = option(
        "", "figure of the attention in four videos: of the last layer, or rolled out over all layers (empty: none)"
    )
    perturbations: Literal["", "motion", "corruptions", "all"] = option(
        "",
        "also test clips that are changed after decoding; motion: one frame repeated, shuffled, reversed, half rate; "
        "corruptions: noise, blur, brightness, dropped frames and compression, each at five strengths",
    )
    rlt_thresholds: tuple[float, ...] = option(
        (), "also test at these thresholds of run-length tokenization (model.args.rlt_threshold), and time the network"
    )
    features_path: str = option(
        "", "write features of the videos to this folder, .npz or .safetensors file instead of a test"
    )
    feature_layer: str = option("", "layer that features are taken from, blocks.5 (empty: the input of the head)")
    feature_pool: Literal["mean", "cls", "tokens"] = option(
        "mean", "mean of the tokens (of the last layer: the head's input), class token of feature_layer, or all tokens"
    )
    batch_size: int = option(4, "videos per batch in the multi-view test, each with num_clips x num_crops views", ge=1)
    short_side: Literal["image_size", "8/7"] | int = option(
        "image_size", "short side of a frame before cropping: pixels, image_size, or 8/7 of it (256 for 224)"
    )
