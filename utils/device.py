"""Choose the device and the precision of the forward and backward pass."""

from __future__ import annotations

import contextlib
import glob

import numpy as np
import torch

NVIDIA_DEVICES = "/dev/nvidia[0-9]*"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Return a context of mixed precision in `dtype`; float32 means full precision."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """Return the device that run.device asks for; `auto` is this rank's GPU if there is one.

    Raises ValueError if a GPU is asked for and torch finds none.
    """
    if wanted not in ("auto", "cuda", "cpu"):
        raise ValueError(f"device={wanted}: expected auto, cuda or cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device=cuda: torch finds no GPU; use run.device=auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        if wanted == "auto" and glob.glob(NVIDIA_DEVICES):
            reason = f"torch {torch.__version__} cannot use this machine's NVIDIA GPU"
            print(f"{reason}: using the CPU. Builds for CUDA 13 need driver 580 or newer", flush=True)
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype that run.precision asks for; `auto` is bf16 on a GPU and fp32 on a CPU."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def clip_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the clips for a forward pass in `dtype`: DALI writes float32 and float16, no bfloat16."""
    return torch.float32 if dtype is torch.float32 else torch.float16


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to the device without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
