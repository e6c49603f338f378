"""Find out what DALI decodes on a device of this machine: ask the card, and have it decode a small stream."""

from __future__ import annotations

import functools
import io
from fractions import Fraction

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.dali_workers import reason_of
from pipelines.decode import nvdec
from pipelines.decode.decoder_choice import Dali
from pipelines.decode.encoder import encode
from pipelines.decode.trim import trim

SIZE, FRAMES = 256, 4  # of the stream, which every NVDEC takes
TOLERANCE = 12.0  # mean difference of a frame, of 255: the stream is coded with loss, and what is wrong is far off
MORE_CAPABILITIES = "in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"


def probe_dali(device: torch.device) -> Dali:
    """Return what DALI decodes on a device. A card is asked, and has to decode a stream before it is trusted."""
    return _probe_gpu(device.index or 0) if device.type == "cuda" else Dali(False, nvdec.CPU)


@functools.cache  # the loaders of a run ask for the same card
def _probe_gpu(index: int) -> Dali:
    asked = nvdec.query_capabilities(index)
    if asked is None and not index:  # once on a machine
        print("the driver does not say what NVDEC decodes; the table of a Hopper is taken for it", flush=True)
    if problem := failure("h264", index):
        return Dali(True, {}, f"{problem}; {MORE_CAPABILITIES}")
    return Dali(True, nvdec.usable(nvdec.HOPPER if asked is None else asked))


def failure(codec: str, device_id: int | None) -> str:
    """Say how decoding a stream with DALI fails on a card, or on the CPU (None); empty if it does not."""
    shades = np.linspace(30, 220, FRAMES).astype(np.uint8)
    frames = [np.full((SIZE, SIZE, 3), shade, np.uint8) for shade in shades]
    stream = io.BytesIO()
    encode(stream, frames, Fraction(30), codec=codec, gop=FRAMES)
    data, positions = trim(stream.getvalue(), [FRAMES - 1, 1])
    try:
        (decoded,) = _decoder(np.frombuffer(data, np.uint8), positions, device_id).run()
        clip = torch.from_dlpack(decoded.as_tensor())[0].cpu().float().numpy()
    except RuntimeError as error:
        return f"NVDEC does not decode a test stream: {reason_of(error)}"
    expected = np.stack([frames[FRAMES - 1], frames[1]])
    if clip.shape != expected.shape:
        return f"NVDEC decodes a test stream to {clip.shape}, expected {expected.shape}"
    difference = np.abs(clip - expected).mean()
    return (
        "" if difference < TOLERANCE else f"NVDEC decodes a test stream to other frames, {difference:.0f} of 255 apart"
    )


def _decoder(data: np.ndarray, positions: np.ndarray, device_id: int | None) -> Pipeline:
    @pipeline_def(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True)
    def decode() -> object:
        encoded = fn.external_source(lambda: [data], dtype=types.UINT8, ndim=1)
        frames = fn.external_source(lambda: [positions], dtype=types.INT32, ndim=1)
        return fn.decoders.video(encoded, frames=frames, device="cpu" if device_id is None else "mixed")

    return decode()
