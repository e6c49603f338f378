"""Read a checkpoint in any container into {key as stored: tensor}, without running code that it contains.

A source is a file, a folder with config.json, the folder of a run, "timm:vit_base_patch16_224" or
"hf:google/vivit-b-16x2"; only the last two may download.
"""

import argparse
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

from networks.weights.source_config import (
    CONFIG,
    SourceConfig,
    describe_timm_vit,
    parse_source_config,
    read_json,
)

WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
VIDEO_PREPROCESSOR = "video_preprocessor_config.json"  # of models that transformers has for videos only
FOLDER_FILES = (WEIGHTS, "pytorch_model.bin")

# Keys under which projects keep the weights inside their files; the first that exists is used, and they may be nested.
# V-JEPA stores the trained encoder and its EMA, which is the one that is evaluated.
WRAPPERS = ("model_state", "state_dict", "model", "module", "network", "ema_encoder", "target_encoder", "encoder")

# Classes beside tensors and containers that these files contain and that run no code when they are unpickled.
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    np.float64,
    np.int64,
    type(np.dtype("f8")),
    type(np.dtype("i8")),
]

CONVERT_SNIPPET = (
    "import sys, torch; c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "torch.save({'state_dict': c.get('state_dict', c)}, 'weights.pth')"
)

# Raised by timm and by the hub for an unknown name, missing weights, no network connection or a full disk.
DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError)

FLAX_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint32": torch.uint32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


class UnsupportedCheckpoint(ValueError):
    """An undamaged file of a kind that cannot be read here."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file under the keys stored in it, and what the JSON files beside it tell."""

    source: str
    state: dict[str, Tensor]
    config: SourceConfig = field(default_factory=SourceConfig)


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Read a checkpoint.

    A folder with an adapter is read as the network that it makes of its base. Raises ValueError with the source and the
    reason: missing, damaged, an unknown container, or a pickle that could run code.
    """
    from networks.weights.adapter import read_adapter  # here, as the base of an adapter is a checkpoint, too

    source = str(source)
    try:
        if source.startswith("timm:"):
            return read_timm(source)
        if adapter := read_adapter(source):
            return adapter
        path = download(source.removeprefix("hf:")) if source.startswith("hf:") else locate(Path(source))
        preprocessor = read_json_beside(path, PREPROCESSOR) or read_json_beside(path, VIDEO_PREPROCESSOR)
        config = parse_source_config(read_json_beside(path, CONFIG), preprocessor)
        return Checkpoint(source=source, state=read_state(path), config=config)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(source) else f"{source}: {error}") from error


def locate(path: Path) -> Path:
    """Return the file with the weights: the path itself, that in a folder, or the best one in the folder of a run."""
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
    except DOWNLOAD_ERRORS as error:
        raise ValueError(f"timm cannot create {name!r}: {first_line(error)}") from error
    preset: Any = network.pretrained_cfg
    blocks: Any = getattr(network, "blocks", None)
    if not blocks or not hasattr(blocks[0], "attn"):
        raise ValueError(f"timm's {name!r} is not a vision transformer")
    config = {"architecture": name.partition(".")[0], **describe_timm_vit(network)}
    preprocessor = {"image_mean": list(preset["mean"]), "image_std": list(preset["std"])}
    return Checkpoint(source=source, state=network.state_dict(), config=parse_source_config(config, preprocessor))


def download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(repository, allow_patterns=[*FOLDER_FILES, CONFIG, PREPROCESSOR, VIDEO_PREPROCESSOR])
        )
    except DOWNLOAD_ERRORS as error:
        raise ValueError(f"cannot be downloaded: {first_line(error)}") from error
    return locate(folder)


def read_json_beside(path: Path, name: str) -> dict[str, Any]:
    """Return the JSON file of this name beside the weights of a folder, {} if there is none."""
    is_in_folder = path.name in FOLDER_FILES and (path.parent / name).is_file()
    return read_json(path.parent / name) if is_in_folder else {}


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of one file, detecting its container from the first bytes. Errors do not repeat the path."""
    try:
        with path.open("rb") as file:
            first_bytes = file.read(2)
    except OSError as error:
        raise ValueError(error.strerror or f"cannot be read: {error}") from error
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".npz":
        kind, reader = ".npz file", read_npz
    elif is_msgpack_map(first_bytes):
        kind, reader = "flax checkpoint", read_flax
    else:
        kind, reader = "PyTorch checkpoint", read_torch
    try:
        return reader(path)
    except UnsupportedCheckpoint:
        raise
    except Exception as error:  # a damaged file raises whatever zip, NumPy or the unpickler raises first
        raise ValueError(f"not a complete {kind}: {first_line(error)}") from error


def is_msgpack_map(first_bytes: bytes) -> bool:
    if not first_bytes:
        return False
    is_small_map = 0x81 <= first_bytes[0] <= 0x8F
    return is_small_map or first_bytes[0] in (0xDE, 0xDF)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as error:
        raise ValueError(error.strerror or f"cannot be read: {error}") from error
    except SafetensorError as error:
        raise ValueError(f"not a complete safetensors file: {error}") from error


def read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            expected = "expected .pt, .pth, .safetensors or .npz, or the folder of a run"
            raise ValueError(f"damaged, or of another kind: {expected}") from error
        reason = str(error).split("Check the documentation")[0].split("WeightsUnpickler error:")[-1].strip()
        raise UnsupportedCheckpoint(
            f"contains more than tensors, and reading it could run code: {reason.splitlines()[0]}\n"
            "  If you trust the file, extract its tensors once, in an environment where its classes can be imported:\n"
            f"  python -c {shlex.quote(CONVERT_SNIPPET)} {shlex.quote(str(path))}"
        ) from error
    return tensors_of(content)


def tensors_of(content: Any) -> dict[str, Tensor]:
    """Unwrap the weights. Raises UnsupportedCheckpoint if their dictionary contains anything but tensors."""
    predictor: dict[str, Tensor] = {}
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        predictor, content = predictor_of(content), inner
    if predictor and isinstance(content, Mapping):
        content = {str(key).removeprefix("module."): value for key, value in content.items()} | predictor
    if not isinstance(content, Mapping) or not content:
        raise UnsupportedCheckpoint(f"expected a dictionary of tensors, found {type(content).__name__}")
    other_keys = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if other_keys:
        raise UnsupportedCheckpoint(
            f"expected only tensors under {', '.join(WRAPPERS)} or at the top level, found {shorten(other_keys)}"
        )
    return {str(key): value for key, value in content.items()}


def predictor_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the predictor that V-JEPA 2 stores beside its encoders, with its mask tokens joined, {} without one."""
    stored = content["predictor"] if isinstance(content.get("predictor"), Mapping) else {}
    plain = {str(key).removeprefix("module.").removeprefix("backbone."): value for key, value in stored.items()}
    tokens = [plain.pop(f"mask_tokens.{number}") for number in range(len(plain)) if f"mask_tokens.{number}" in plain]
    if not tokens or not all(isinstance(token, Tensor) for token in tokens):
        return {}  # such as that of V-JEPA 2-AC, which predicts what actions lead to
    return {f"predictor.{key}": value for key, value in (plain | {"mask_tokens": torch.cat(tokens)}).items()}


def read_flax(path: Path) -> dict[str, Tensor]:
    """Read a `checkpoint` file of scenic: MessagePack as flax.serialization writes it. Keys are joined by "/"."""
    try:
        import msgpack
    except ImportError:
        raise UnsupportedCheckpoint(
            "a flax checkpoint: install the package msgpack to read it (pip install msgpack)"
        ) from None
    content = msgpack.unpackb(path.read_bytes(), ext_hook=flax_array, raw=False, strict_map_key=False)
    if "params" not in content and isinstance(content.get("optimizer"), dict):
        content = content["optimizer"].get("target", {})
    state = dict(flatten(content.get("params", content)))
    if not state:
        raise UnsupportedCheckpoint("not a flax checkpoint: there are no arrays under params or optimizer/target")
    return state


def flax_array(code: int, data: bytes) -> Tensor:
    import msgpack

    if code not in (1, 3):  # 1 is an array, 3 a NumPy scalar
        raise ValueError(f"extension type {code} is not an array")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True)
    if dtype.decode() not in FLAX_DTYPES:
        raise ValueError(f"arrays of dtype {dtype.decode()!r} are not supported")
    return torch.frombuffer(bytearray(buffer), dtype=FLAX_DTYPES[dtype.decode()]).reshape(shape)


def flatten(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, Tensor]]:
    """Nested dictionaries -> [("a/b/c", tensor)]; arrays that flax split into chunks are joined."""
    tensors: list[tuple[str, Tensor]] = []
    for key, value in tree.items():
        value_path = f"{path}/{key}" if path else str(key)
        if isinstance(value, Mapping) and value.get("__msgpack_chunked_array__"):
            shape, chunks = (
                [value[part][number] for number in sorted(value[part], key=int)] for part in ("shape", "chunks")
            )
            tensors.append((value_path, torch.cat(chunks).reshape(shape)))
        elif isinstance(value, Mapping):
            tensors += flatten(value, value_path)
        elif isinstance(value, Tensor):
            tensors.append((value_path, value))
        else:
            raise ValueError(f"{value_path}: expected an array, found {type(value).__name__}")
    return tensors


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def shorten(names: list[str], max_listed: int = 10) -> str:
    num_omitted = len(names) - max_listed
    return "; ".join(names[:max_listed]) + (f"; and {num_omitted} more" if num_omitted > 0 else "")
