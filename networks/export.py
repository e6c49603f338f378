"""A trained network for use without this code: torch.export or ONNX, any number of clips at once.

    python -m networks.export runs/NAME net.pt2      torch.export.load("net.pt2").module()(video) -> logits
    python -m networks.export runs/NAME net.onnx     for ONNX Runtime; needs pip install onnx onnxscript onnxruntime

SRC is a run, or a folder with model.safetensors. Beside the file net.json says what goes in (frames, stride, size, mean
and std; video is (B, 3, T, H, W) float32, (pixel / 255 - mean) / std) and what the classes are. What was written is
read back and compared with the network; the exit status is 1 if their logits differ.
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

TOLERANCE = 1e-4  # of logits


def export(network: nn.Module, path: Path) -> float:
    """Write a network in eval mode to a .pt2 or .onnx file; returns the largest difference of its logits, read back.

    Raises ValueError for another suffix, and where ONNX's packages are not installed.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"{path}: expected a name that ends in .pt2 or .onnx")
    shape: tuple[int, ...] = network.patch_embed.input_shape  # type: ignore[union-attr,assignment]
    generator = torch.Generator().manual_seed(0)
    clips = {n: torch.randn(n, *shape, generator=generator) for n in (1, 2, 3)}
    batch = ({0: torch.export.Dim("batch", min=1, max=65536)},)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own exporter
        if path.suffix == ".pt2":
            torch.export.save(torch.export.export(network, (clips[2],), dynamic_shapes=batch), path)
            again: Callable[[Tensor], Tensor] = torch.export.load(path).module()
        else:
            again = _through_onnx(network, path, clips[2], batch)
    with torch.inference_mode():
        return max((again(video) - network(video)).abs().max().item() for video in clips.values())


def _through_onnx(network: nn.Module, path: Path, video: Tensor, batch: tuple) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ValueError(f"{path}: {error.name} is missing: pip install onnx onnxscript onnxruntime") from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(network, (video,), path, dynamo=True, dynamic_shapes=batch, input_names=["video"],
                      output_names=["logits"], external_data=False, verbose=False)  # fmt: skip
    session = onnxruntime.InferenceSession(path)
    return lambda clips: torch.from_numpy(session.run(None, {"video": clips.numpy()})[0])


def main(words: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if len(words) != 2 or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(words) else 2
    source, path = map(Path, words)
    try:
        network, about = weights.load(source / "best" if (source / "best").is_dir() else source)
        apart = export(network, path)
    except (ValueError, OSError) as error:
        print(f"networks.export: {error}", file=sys.stderr)
        return 2
    channels, frames, height, width = network.patch_embed.input_shape  # type: ignore[union-attr,misc]
    shape = {"video": ["batch", channels, frames, height, width], "logits": ["batch", len(about.get("id2label", {}))]}
    about = {**about, "shape": shape, "largest_difference_of_logits": apart}
    path.with_suffix(".json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path}, {path.with_suffix('.json')}; its logits differ by {apart:.1e} at most")
    return 0 if apart < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
