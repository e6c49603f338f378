"""The model card of an exported network, a README.md as hubs show it: license, figures, how to use the network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from utils.files import atomic_write_text

# By the end of the name of a class of transformers: its Auto class, and its task on the hub.
USES = {
    "ForVideoClassification": ("AutoModelForVideoClassification", "video-classification"),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "ForPreTraining": ("AutoModelForPreTraining", None),
    "VJEPA2Model": ("AutoModel", None),
}


def write_model_card(
    folder: Path,
    description: str,
    hf_config: Mapping[str, Any],
    *,
    license_name: str,
    figures: Mapping[str, Any],
    title: str,
    address: str,
) -> None:
    """Write README.md.

    `description` says what the network is, `figures` are the summaries of tests by their names, `address` is what
    from_pretrained is given.
    """
    auto_class, task = use_of(hf_config)
    metadata: dict[str, Any] = {"license": license_name, "library_name": "transformers", "tags": ["video", "clipline"]}
    if task:
        metadata["pipeline_tag"] = task
    sections = [
        f"# {title}",
        description,
        describe_figures(figures),
        f"## Use\n\n```python\n{usage(hf_config, auto_class, address)}```",
        f"## License\n\n{describe_license(license_name)}",
    ]
    front_matter = "".join(f"{key}: {json.dumps(value)}\n" for key, value in metadata.items())  # JSON is YAML too
    atomic_write_text(folder / "README.md", f"---\n{front_matter}---\n\n" + "\n\n".join(filter(None, sections)) + "\n")


def use_of(hf_config: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the Auto class of transformers and the task of the hub, None if it has none."""
    name = hf_config["architectures"][0]
    return next(use for end, use in USES.items() if name.endswith(end))


def describe_network(
    network: nn.Module, hf_config: Mapping[str, Any], clip: Mapping[str, Any], *, num_parameters: int
) -> str:
    """Say in a paragraph what the network is and what it takes; `clip` describes its input."""
    kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
    num_classes, name = kwargs.get("num_classes", 0), hf_config["architectures"][0]
    what = f"{name} with {num_parameters / 1e6:.1f} M parameters"
    what += f" for {num_classes} classes" if num_classes else ", pre-trained without labels"
    size = kwargs["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    frames = kwargs["num_frames"]
    taken = f"clips of {frames} frames" if frames > 1 else "single frames"
    text = f"{what}, written by Clipline. It takes {taken} of {height}x{width} pixels"
    if frames > 1 and clip.get("frame_stride"):
        rate = f" at {clip['fps']:g} frames per second" if clip.get("fps") else ""
        text += f", {clip['frame_stride']} frames apart{rate}"
    if clip.get("mean") and clip.get("std"):
        text += f", normalized with mean {clip['mean']} and standard deviation {clip['std']}"
    text += "."
    if name == "VJEPA2Model":
        text += " The encoder is the teacher of the pre-training, the EMA of the one that was trained."
    elif hf_config["model_type"] == "vjepa2":
        text += (
            " transformers also builds a predictor, which this network does not need: it reports that weights of the "
            "predictor are missing, and the logits are right all the same."
        )
    if hf_config.get("norm_pix_loss") is False:
        text += (
            " It predicts pixels from 0 to 1, which are not normalized for each patch. The loss of transformers takes "
            "clips to be normalized with ImageNet's mean and standard deviation: with others it is wrong, while the "
            "predictions are right."
        )
    return text


def describe_figures(figures: Mapping[str, Any]) -> str:
    """Return a table of the tests of the run, "" if there are none."""
    rows = []
    for test, summary in figures.items():
        if "map" in summary:
            accuracy = f"mAP {100 * summary['map']:.2f} % | "
            rows.append(f"| {test} | {summary['scored']} of {summary['videos']} | {accuracy} |")
        elif "top1" in summary:
            accuracy = f"{100 * summary['top1']:.2f} % | {100 * summary['top5']:.2f} %"
            rows.append(f"| {test} | {summary['scored']} of {summary['videos']} | {accuracy} |")
    if rows:
        return "\n".join(["## Results", "", "| clips x crops | videos | top-1 | top-5 |", "|---|---|---|---|", *rows])
    losses = [
        f"Loss {summary['loss']:.4f} on {summary['videos']} videos; predicting the mean target gives "
        f"{summary['mean_target_loss']:.4f}." + (f" Masks: {summary['masks']}." if "masks" in summary else "")
        for summary in figures.values()
        if "mean_target_loss" in summary
    ]
    return "\n\n".join(["## Results", *losses]) if losses else ""


def usage(hf_config: Mapping[str, Any], auto_class: str, address: str) -> str:
    """Return a few lines of Python that load the folder and run it."""
    is_pretraining, kind = auto_class.endswith("PreTraining"), hf_config["model_type"]
    lines = ["import torch", f"from transformers import {auto_class}", ""]
    lines.append(f'model = {auto_class}.from_pretrained("{address}").eval()')
    if kind == "hiera":
        height, width = hf_config["image_size"]
        lines.append(f"images = torch.zeros(1, {hf_config['num_channels']}, {height}, {width})  # normalized")
        call = "model(images)"
    else:
        size = hf_config.get("crop_size", hf_config.get("image_size"))
        height, width = (size, size) if isinstance(size, int) else size
        frames = hf_config.get("frames_per_clip", hf_config.get("num_frames"))
        channels = hf_config.get("in_chans", hf_config.get("num_channels"))
        lines.append(f"clips = torch.zeros(1, {frames}, {channels}, {height}, {width})  # normalized")
        call = f"model({'pixel_values_videos=' if kind == 'vjepa2' else ''}clips)"
    if is_pretraining and kind == "videomae":
        tubelets = frames // hf_config["tubelet_size"]
        patches = (height // hf_config["patch_size"]) * (width // hf_config["patch_size"])
        ratio = hf_config["mask_ratio"]
        comment = f"a tube mask, {100 * ratio:g} % of the patches"
        hidden = f"torch.randperm({patches}).lt({round(ratio * patches)}).repeat({tubelets})[None]"
        lines.append(f"hidden = {hidden}  # {comment}")
        call = "model(clips, hidden)"
    if auto_class == "AutoModel":
        call, result = "model(pixel_values_videos=clips, skip_predictor=True)", "last_hidden_state.mean(1)"
    else:
        several = hf_config.get("problem_type") == "multi_label_classification"
        result = "loss" if is_pretraining else "logits.sigmoid()" if several else "logits.softmax(-1)"
    lines += ["with torch.no_grad():", f"    print({call}.{result})"]
    return "\n".join(lines) + "\n"


def describe_license(name: str) -> str:
    """Say under what license the weights are, or that nobody has said."""
    if name == "unknown":
        return "Not stated. Weights that were fine-tuned from others are under the terms of those."
    return f"{name}, as stated by who exported these weights."
