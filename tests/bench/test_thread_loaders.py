"""Test the baseline loaders that decode in threads, with stand-ins for the libraries."""

import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch

from bench.baselines import thread_loaders
from bench.baselines.clips import DrawnClip


def drawn_clips(count: int) -> list[DrawnClip]:
    return [DrawnClip(f"{i}.mp4", (3, 5, 3), (0, 0, 8, 8), i % 2 == 1, 0) for i in range(count)]


def clip_reader(case: str, num_threads: int) -> thread_loaders.ClipReader:
    return thread_loaders.ClipReader(
        case,
        torch.device("cpu"),
        max_size=(8, 8),
        num_threads=num_threads,
        image_size=4,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )


def test_iterate_batches_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(*_: object) -> thread_loaders.Reader:
        def read(path: str, frames: tuple[int, ...]) -> torch.Tensor:
            number = int(path.partition(".")[0])
            time.sleep(0.02 * (3 - number % 4))  # later clips are ready first
            return torch.full((len(frames), 3, 8, 8), number, dtype=torch.uint8)

        return read

    monkeypatch.setitem(thread_loaders.READERS, "fake", (reader, False))
    batches = list(thread_loaders.iterate_batches(clip_reader("fake", 4), drawn_clips(9), 2, 2))
    assert [batch.shape for batch in batches] == [(2, 3, 3, 4, 4)] * 4, "the last, incomplete one is dropped"
    assert (255 * torch.cat(batches)).round()[:, 0, 0, 0, 0].tolist() == list(range(8))


def test_clip_reader_refuses_a_cpu_for_a_gpu_case() -> None:
    with pytest.raises(RuntimeError, match="torchcodec_cuda needs a GPU"):
        clip_reader("torchcodec_cuda", 4)


def test_unavailable_reason_is_the_error_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(*_: object) -> thread_loaders.Reader:
        raise ImportError("No module named 'fake'\nfor long reasons")

    monkeypatch.setitem(thread_loaders.READERS, "fake", (reader, False))
    fake = clip_reader("fake", 2)
    assert thread_loaders.unavailable_reason(fake, drawn_clips(1)[0]) == "No module named 'fake'"
    with pytest.raises(ImportError):
        next(thread_loaders.iterate_batches(fake, drawn_clips(4), 2, 2))


def test_pynvvideocodec_is_reconfigured_and_reads_each_frame_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    class SimpleDecoder:
        def __init__(self, path: str, **options: object):
            calls.append((path, options["max_width"], options["max_height"]))

        def reconfigure_decoder(self, path: str) -> None:
            calls.append(path)

        def get_batch_frames_by_index(self, frames: list[int]) -> list[torch.Tensor]:
            return [torch.full((4, 6, 3), frame, dtype=torch.uint8) for frame in frames]

    module = ModuleType("PyNvVideoCodec")
    module.SimpleDecoder, module.OutputColorType = SimpleDecoder, SimpleNamespace(RGB="rgb")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    read = thread_loaders.PyNvVideoCodec(torch.device("cuda", 0), (352, 256), 2)
    video = read("a.mp4", (3, 5, 3))
    assert video.shape == (3, 3, 4, 6) and video[:, 0, 0, 0].tolist() == [3, 5, 3]
    read("b.mp4", (0,))
    assert calls == [("a.mp4", 352, 256), "b.mp4"]


def test_spdl_cuda_decodes_only_the_packets_of_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clip has frames 12 and 16 with key frames every 10: packets from 10 on, not stored in presentation order."""
    windows = []

    def demux_video(path: str, timestamp: tuple[float, float] | None = None) -> SimpleNamespace:
        if timestamp is None:
            return SimpleNamespace(get_timestamps=lambda: [n / 30 for n in range(20)])
        windows.append([30 * time for time in timestamp])
        raw = [10, 14, 12, 11, 13, 17, 16, 15]
        return SimpleNamespace(
            codec=SimpleNamespace(name="h264"), get_timestamps=lambda raw=False, r=raw: [n / 30 for n in r]
        )

    decoded = torch.arange(10, 18).reshape(8, 1, 1, 1).expand(8, 3, 4, 6)
    module = ModuleType("spdl.io")
    for name, value in {
        "demux_video": demux_video,
        "apply_bsf": lambda packets, name: packets,
        "cuda_config": lambda **options: options,
        "nvdec_decoder": lambda config, codec: SimpleNamespace(decode_packets=lambda packets: decoded),
        "nv12_to_rgb": lambda surfaces, device_config, coeff: surfaces,
        "to_torch": lambda buffer: buffer,
    }.items():
        setattr(module, name, value)
    parent = ModuleType("spdl")
    parent.io = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spdl", parent)
    monkeypatch.setitem(sys.modules, "spdl.io", module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    read = thread_loaders.SpdlCuda(torch.device("cuda", 0), (352, 256), 2)
    assert read("a.mp4", (16, 12, 16))[:, 0, 0, 0].tolist() == [16, 12, 16]
    assert windows == [[pytest.approx(12), pytest.approx(16.5)]]
