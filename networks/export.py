"""Export a trained network for use without this code, by torch.export or as ONNX, for any batch size:

    python -m networks.export runs/NAME net.pt2      torch.export.load("net.pt2").module()(video) -> logits
    python -m networks.export runs/NAME net.onnx     for ONNX Runtime; needs pip install onnx onnxscript onnxruntime

The source is a run, or a folder with model.safetensors. net.json, written beside the file, describes the input (video
is (B, 3, T, H, W) float32, (pixel / 255 - mean) / std, with these frames, stride, size, mean and std) and lists the
classes. The file is read back and compared with the network; the exit status is 1 if the logits differ.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from networks import weights
from networks.adapters import is_mergeable, merge_adapter
from networks.run_length import all_tokens
from utils.cli import run_command

TOLERANCE = 1e-4  # largest difference of logits that is accepted


def export(network: nn.Module, path: Path) -> float:
    """Write a network in eval mode to a .pt2 or .onnx file; return the largest difference of its logits, read back.

    Raises ValueError for another suffix, and if the packages for ONNX are missing.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"{path}: expected a name that ends in .pt2 or .onnx")
    shape = input_shape(network)
    generator = torch.Generator().manual_seed(0)
    videos = {n: torch.randn(n, *shape, generator=generator) for n in (1, 2, 3)}
    dynamic_shapes = ({0: torch.export.Dim("batch", min=1, max=65536)},)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), all_tokens(network):
        warnings.simplefilter("ignore")  # torch's own exporter raises several
        if path.suffix == ".pt2":
            torch.export.save(torch.export.export(network, (videos[2],), dynamic_shapes=dynamic_shapes), path)
            exported: Callable[[Tensor], Tensor] = torch.export.load(path).module()
        else:
            exported = _export_onnx(network, path, videos[2], dynamic_shapes)
    with torch.inference_mode(), all_tokens(network):
        return max((exported(video) - network(video)).abs().max().item() for video in videos.values())


def input_shape(network: nn.Module) -> tuple[int, ...]:
    """Return (C, T, H, W), or (L, C, T, H, W) of a network that pools L clips of a video."""
    shape: tuple[int, ...] = network.patch_embed.input_shape  # type: ignore[union-attr,assignment]
    num_clips: int = getattr(network, "num_clips", 1)  # type: ignore[assignment]
    return (num_clips, *shape) if num_clips > 1 else shape


def _export_onnx(network: nn.Module, path: Path, video: Tensor, dynamic_shapes: tuple) -> Callable[[Tensor], Tensor]:
    """Write an .onnx file; return a function that runs it with ONNX Runtime."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ValueError(f"{path}: {error.name} is missing: pip install onnx onnxscript onnxruntime") from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        network,
        (video,),
        path,
        dynamo=True,
        dynamic_shapes=dynamic_shapes,
        input_names=["video"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)
    return lambda videos: torch.from_numpy(session.run(None, {"video": videos.numpy()})[0])


def export_run(argv: Sequence[str]) -> int:
    """Export the network of a run and describe it in a .json file beside; return 1 if the logits differ, else 0."""
    if len(argv) != 2:
        raise ValueError(f"expected a run and a file to write, got {' '.join(argv)}")
    source, path = map(Path, argv)
    network, config = weights.load_network(source / "best" if (source / "best").is_dir() else source)
    if is_mergeable(network):
        merge_adapter(network)
    difference = export(network, path)
    if getattr(network, "rlt_threshold", 0):
        print("run-length tokenization is not exported: the file has the network with all tokens")
    num_outputs = len(config.get("id2label", {}))
    config |= {
        "shape": {"video": ["batch", *input_shape(network)], "logits": ["batch", num_outputs]},
        "max_logit_difference": difference,
    }
    json_path = path.with_suffix(".json")
    json_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path} and {json_path}; the largest difference of logits is {difference:.1e}")
    return 0 if difference < TOLERANCE else 1


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    return run_command("networks.export", __doc__, export_run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
