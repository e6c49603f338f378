"""Reads a checkpoint, whatever its container, into {key as stored: tensor}, without running anything that is in it.

`read("model.pth")`, a folder with config.json, a run folder, "timm:vit_base_patch16_224", "hf:google/vivit-b-16x2";
only the last two may download.
"""

import argparse
import json
import pickle
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
FOLDER_FILES = (WEIGHTS, "pytorch_model.bin")

# Where the projects we read keep the weights inside their files; the first that is there wins, and may nest.
WRAPPERS = ("model_state", "state_dict", "model", "module", "network")

# Classes beyond tensors and containers that these files hold and that run nothing when they are rebuilt.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    np.float64,
    np.int64,
    type(np.dtype("f8")),
    type(np.dtype("i8")),
]

WAY_OUT = (
    "import sys, torch; c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "torch.save({'state_dict': c.get('state_dict', c)}, 'weights.pth')"
)

# What timm and the hub raise: an unknown name, no weights for it, no network, a full disk.
UNAVAILABLE = (OSError, RuntimeError, ValueError)

FLAX_DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64,
    "int32": torch.int32, "int64": torch.int64, "uint32": torch.uint32, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip


class Refused(ValueError):
    """A whole file, but not one that we read; what says so is not to be taken for damage."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file under the keys it has for them, and the JSON that lies beside it, {} if none does."""

    source: str
    state: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)


def read(source: str | Path) -> Checkpoint:
    """Raises ValueError with the source and the reason: missing, damaged, not a checkpoint, a pickle that runs code."""
    text = str(source)
    try:
        if text.startswith("timm:"):
            return read_timm(text)
        path = download(text.removeprefix("hf:")) if text.startswith("hf:") else locate(Path(source))
        config, preprocessor = (
            read_json(path.parent / name) if path.name in FOLDER_FILES and (path.parent / name).is_file() else {}
            for name in (CONFIG, PREPROCESSOR)
        )
        return Checkpoint(text, read_state(path), config, preprocessor)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(text) else f"{text}: {error}") from error


def locate(path: Path) -> Path:
    """The file with the weights: itself, or the folder's, or of a run folder the best."""
    if not path.exists():
        raise ValueError("No such file or directory")
    if path.is_file():
        return path
    for name in (*FOLDER_FILES, f"best/{WEIGHTS}"):
        if (path / name).is_file():
            return path / name
    raise ValueError(f"a folder without {WEIGHTS}, pytorch_model.bin or best/{WEIGHTS}")


def read_timm(source: str) -> Checkpoint:
    import timm  # here, because it takes a second to import

    name = source.removeprefix("timm:")
    try:
        network = timm.create_model(name, pretrained=True)
    except UNAVAILABLE as error:
        raise ValueError(f"timm cannot give {name!r}: {first_line(error)}") from error
    preset: Any = network.pretrained_cfg
    blocks: Any = getattr(network, "blocks", None)
    if not blocks or not hasattr(blocks[0], "attn"):
        raise ValueError(f"timm's {name!r} is no vision transformer")
    act = blocks[0].mlp.act
    exact = isinstance(act, torch.nn.GELU) and act.approximate == "none"
    config = {"timm": name, "num_attention_heads": blocks[0].attn.num_heads, "layer_norm_eps": blocks[0].norm1.eps,
              "hidden_act": "gelu" if exact else type(act).__name__}  # fmt: skip
    return Checkpoint(
        source, network.state_dict(), config, {f"image_{key}": list(preset[key]) for key in ("mean", "std")}
    )


def download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*FOLDER_FILES, CONFIG, PREPROCESSOR]))
    except UNAVAILABLE as error:
        raise ValueError(f"cannot be downloaded: {first_line(error)}") from error
    return locate(folder)


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of one file; the container is told from its first bytes. The message does not repeat the path."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise ValueError(error.strerror or f"cannot be read: {error}") from error
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".npz":
        kind, read_it = ".npz file", read_npz
    elif start[:1] and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        kind, read_it = "flax checkpoint", read_flax
    else:
        kind, read_it = "PyTorch checkpoint", read_torch
    try:
        return read_it(path)
    except Refused:
        raise
    except Exception as error:  # damage surfaces as whatever error zip, NumPy or an unpickler meets first
        raise ValueError(f"not a whole {kind}: {first_line(error)}") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as error:
        raise ValueError(error.strerror or f"cannot be read: {error}") from error
    except SafetensorError as error:
        raise ValueError(f"not a whole safetensors file: {error}") from error


def read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise
        reason = str(error).split("Check the documentation")[0].split("WeightsUnpickler error:")[-1].strip()
        raise Refused(
            f"holds more than tensors, and reading that could run code: {reason.splitlines()[0]}\n"
            "  If you trust the file, reduce it to its tensors once, where its classes can be imported:\n"
            f"  python -c {shlex.quote(WAY_OUT)} {shlex.quote(str(path))}"
        ) from error
    return tensors_of(content)


def tensors_of(content: Any) -> dict[str, Tensor]:
    """Unwraps the weights and refuses a dictionary that holds anything else beside them."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise Refused(f"holds no dictionary of tensors, but {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise Refused(f"expected tensors only under {', '.join(WRAPPERS)} or at the top, found {shorten(others)}")
    return {str(key): value for key, value in content.items()}


def read_flax(path: Path) -> dict[str, Tensor]:
    """scenic's `checkpoint` files: MessagePack, as flax.serialization writes it; keys joined by '/'."""
    try:
        import msgpack
    except ImportError:
        raise Refused("a flax checkpoint: reading it needs the package msgpack (pip install msgpack)") from None
    content = msgpack.unpackb(path.read_bytes(), ext_hook=flax_array, raw=False, strict_map_key=False)
    if "params" not in content and isinstance(content.get("optimizer"), dict):
        content = content["optimizer"].get("target", {})
    state = dict(flatten(content.get("params", content)))
    if not state:
        raise Refused("not a flax checkpoint: neither params nor optimizer/target holds arrays")
    return state


def flax_array(code: int, data: bytes) -> Tensor:
    import msgpack

    if code not in (1, 3):  # an array, a NumPy scalar
        raise ValueError(f"extension type {code} is not an array")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True)
    if dtype.decode() not in FLAX_DTYPES:
        raise ValueError(f"arrays of dtype {dtype.decode()!r} are not supported")
    return torch.frombuffer(bytearray(buffer), dtype=FLAX_DTYPES[dtype.decode()]).reshape(shape)


def flatten(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, Tensor]]:
    """Nested dictionaries -> [("a/b/c", tensor)]; arrays that flax cut into chunks are put together again."""
    found: list[tuple[str, Tensor]] = []
    for key, value in tree.items():
        here = f"{path}/{key}" if path else str(key)
        if isinstance(value, Mapping) and value.get("__msgpack_chunked_array__"):
            shape, chunks = (
                [value[part][number] for number in sorted(value[part], key=int)] for part in ("shape", "chunks")
            )
            found.append((here, torch.cat(chunks).reshape(shape)))
        elif isinstance(value, Mapping):
            found += flatten(value, here)
        elif isinstance(value, Tensor):
            found.append((here, value))
        else:
            raise ValueError(f"{here}: expected an array, found {type(value).__name__}")
    return found


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def shorten(names: list[str], listed: int = 10) -> str:
    left_out = len(names) - listed
    return "; ".join(names[:listed]) + (f"; and {left_out} more" if left_out > 0 else "")
