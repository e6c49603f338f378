"""Find out what DALI decodes on a device of this machine: ask the card, then let it decode a video and an image."""

from __future__ import annotations

import functools
import io
from fractions import Fraction

import av
import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.dali_workers import reason_of
from pipelines.decode import nvdec
from pipelines.decode.decoder_choice import DaliSupport
from pipelines.decode.encoder import encode_video
from pipelines.decode.trim import trim

SIZE, NUM_FRAMES = 256, 4  # of the test stream; every NVDEC decodes this size
TOLERANCE = 12.0  # mean difference per value, of 255: the stream is lossy, and a wrong frame differs by far more
NVDEC_HINT = "in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"


def probe_dali(device: torch.device) -> DaliSupport:
    """Return what DALI decodes on a device. A card is trusted only after it has decoded a test stream or image."""
    return _probe_gpu(device.index or 0) if device.type == "cuda" else DaliSupport(False, nvdec.CPU)


@functools.cache  # the loaders of a run ask for the same card
def _probe_gpu(index: int) -> DaliSupport:
    capabilities = nvdec.query_capabilities(index)
    if capabilities is None and not index:  # once per machine
        print("the driver does not report what NVDEC decodes: assuming the capabilities of a Hopper", flush=True)
    images: nvdec.Capabilities = nvdec.IMAGES
    if problem := image_problem(index):
        print(f"PyAV decodes folders of images: {problem}", flush=True)
        images = {}
    if problem := decoding_problem("h264", index):
        return DaliSupport(True, images, f"{problem}; {NVDEC_HINT}")
    videos = nvdec.usable_capabilities(nvdec.HOPPER if capabilities is None else capabilities)
    return DaliSupport(True, {**videos, **images})


def decoding_problem(codec: str, device_id: int | None) -> str:
    """Decode a test stream with DALI on a card, or on the CPU (None); describe the failure, or return ""."""
    shades = np.linspace(30, 220, NUM_FRAMES).astype(np.uint8)
    frames = [np.full((SIZE, SIZE, 3), shade, np.uint8) for shade in shades]
    stream = io.BytesIO()
    encode_video(stream, frames, Fraction(30), codec=codec, gop=NUM_FRAMES)
    data, positions = trim(stream.getvalue(), [NUM_FRAMES - 1, 1])
    try:
        (decoded,) = _decoder(np.frombuffer(data, np.uint8), positions, device_id).run()
        actual = torch.from_dlpack(decoded.as_tensor())[0].cpu().float().numpy()
    except RuntimeError as error:
        return f"NVDEC does not decode a test stream: {reason_of(error)}"
    expected = np.stack([frames[NUM_FRAMES - 1], frames[1]])
    if actual.shape != expected.shape:
        return f"NVDEC decodes a test stream to {actual.shape}, expected {expected.shape}"
    difference = np.abs(actual - expected).mean()
    if difference < TOLERANCE:
        return ""
    return f"NVDEC decodes a test stream to wrong frames, which differ by {difference:.0f} of 255 on average"


def image_problem(device_id: int | None) -> str:
    """Decode a test image with DALI on a card, or on the CPU (None); describe the failure, or return ""."""
    expected = np.full((SIZE, SIZE, 3), (200, 100, 50), np.uint8)
    context = av.VideoCodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt, context.time_base = SIZE, SIZE, "yuvj420p", Fraction(1)
    frame = av.VideoFrame.from_ndarray(expected).reformat(format="yuvj420p")
    data = np.frombuffer(b"".join(map(bytes, [*context.encode(frame), *context.encode(None)])), np.uint8)
    try:
        (decoded,) = _image_decoder(data, device_id).run()
        actual = torch.from_dlpack(decoded.as_tensor())[0].cpu().float().numpy()
    except RuntimeError as error:
        return f"DALI does not decode a test image: {reason_of(error)}"
    if actual.shape == expected.shape and np.abs(actual - expected).mean() < TOLERANCE:
        return ""
    return f"DALI decodes a test image to a wrong one, {actual.shape}, whose mean color is {actual.mean((0, 1))}"


def _image_decoder(data: np.ndarray, device_id: int | None) -> Pipeline:
    @pipeline_def(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True)
    def decode() -> object:
        encoded = fn.external_source(lambda: [data], dtype=types.UINT8, ndim=1)
        return fn.decoders.image(encoded, device="cpu" if device_id is None else "mixed")

    return decode()


def _decoder(data: np.ndarray, positions: np.ndarray, device_id: int | None) -> Pipeline:
    @pipeline_def(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True)
    def decode() -> object:
        encoded = fn.external_source(lambda: [data], dtype=types.UINT8, ndim=1)
        frames = fn.external_source(lambda: [positions], dtype=types.INT32, ndim=1)
        return fn.decoders.video(encoded, frames=frames, device="cpu" if device_id is None else "mixed")

    return decode()
