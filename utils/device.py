"""Where a network computes, and how precisely."""

from __future__ import annotations

import contextlib
import glob

import torch

NVIDIA_DEVICES = "/dev/nvidia[0-9]*"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision in `dtype`; float32 means none."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """`auto` takes this rank's GPU if there is one."""
    if wanted not in ("auto", "cuda", "cpu"):
        raise ValueError(f"device={wanted}: expected auto, cuda or cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device=cuda: torch finds no GPU; use run.device=auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        if wanted == "auto" and glob.glob(NVIDIA_DEVICES):
            reason = f"torch {torch.__version__} cannot use this machine's NVIDIA GPU"
            print(f"{reason}: the CPU is taken. Builds for CUDA 13 need a driver of 580 or newer", flush=True)
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def choose_dtype(amp: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 without."""
    if amp == "auto":
        amp = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[amp]
