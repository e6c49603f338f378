"""dali_probe, dali_workers: what a machine decodes, and the errors if its shared memory is too small."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines import dali_probe
from pipelines.batch_decoder import shared_bytes
from pipelines.dali_workers import DaliPipeline, check_shared_memory
from pipelines.decode import nvdec
from pipelines.decode.nvdec import HOPPER, Limits
from pipelines.sample_source import TooManyUnreadableVideos
from tests.helpers.image_folders import encode_image
from tests.helpers.loaders import make_loader
from utils import device as device_module

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def forget_cards() -> None:
    dali_probe._probe_gpu.cache_clear()


@pytest.fixture
def decoded_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the card decode the test image."""
    monkeypatch.setattr(dali_probe, "image_problem", lambda device_id: "")


def test_decoding_problem_is_empty_for_a_decoded_stream_and_describes_a_refusal() -> None:
    """The same code as on a GPU, with DALI's CPU decoder, which decodes VP9 but not H.264."""
    assert dali_probe.decoding_problem("vp9", None) == ""
    assert "Failed to create video decoder" in dali_probe.decoding_problem("h264", None)


@pytest.mark.parametrize(
    ("clip", "problem"),
    [
        (np.zeros((2, 256, 256, 3), np.uint8), "to wrong frames"),
        (np.zeros((2, 272, 256, 3), np.uint8), "expected (2, 256, 256, 3)"),
    ],
)
def test_decoding_problem_describes_wrong_frames(clip, problem, monkeypatch) -> None:
    class Clips:
        def as_tensor(self) -> torch.Tensor:
            return torch.from_numpy(clip)[None]

    monkeypatch.setattr(dali_probe, "_decoder", lambda *_: SimpleNamespace(run=lambda: [Clips()]))
    assert problem in dali_probe.decoding_problem("h264", 0)


def test_card_that_decodes_the_test_stream_is_trusted(monkeypatch, decoded_image, capsys) -> None:
    monkeypatch.setattr(dali_probe, "decoding_problem", lambda codec, device_id: "")
    reported = {("h264", "4:2:0", 8): Limits(48, 16, 4096, 4096, 65536, 5), ("hevc", "4:2:0", 10): Limits(144, 144)}
    monkeypatch.setattr(nvdec, "query_capabilities", lambda index: reported)
    dali = dali_probe.probe_dali(GPU)
    expected = {("h264", "4:2:0", 8): reported["h264", "4:2:0", 8], **nvdec.IMAGES}
    assert dali.on_gpu and dict(dali.capabilities) == expected
    assert not dali.problem and capsys.readouterr().out == ""


def test_card_without_capability_report_is_assumed_to_be_a_hopper_with_one_warning(
    monkeypatch, decoded_image, capsys
) -> None:
    monkeypatch.setattr(dali_probe, "decoding_problem", lambda codec, device_id: "")
    monkeypatch.setattr(nvdec, "query_capabilities", lambda index: None)
    assert dict(dali_probe.probe_dali(GPU).capabilities) == {**HOPPER, **nvdec.IMAGES}
    assert dali_probe.probe_dali(GPU) == dali_probe.probe_dali(GPU)
    assert capsys.readouterr().out.count("assuming the capabilities of a Hopper") == 1


def test_card_that_fails_the_test_stream_leaves_videos_to_pyav(monkeypatch, decoded_image) -> None:
    monkeypatch.setattr(nvdec, "query_capabilities", lambda index: HOPPER)
    monkeypatch.setattr(dali_probe, "decoding_problem", lambda codec, device_id: "CUDA_ERROR_NO_DEVICE")
    dali = dali_probe.probe_dali(GPU)
    assert dict(dali.capabilities) == nvdec.IMAGES
    assert "CUDA_ERROR_NO_DEVICE" in dali.problem and "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in dali.problem


def test_image_problem_is_empty_for_a_decoded_image_and_describes_a_wrong_one(monkeypatch) -> None:
    """The same code as on a GPU, with DALI's CPU decoder."""
    assert dali_probe.image_problem(None) == ""
    decoder = dali_probe._image_decoder
    gray = np.frombuffer(encode_image(np.full((256, 256, 3), 128, np.uint8)), np.uint8)
    monkeypatch.setattr(dali_probe, "_image_decoder", lambda data, device_id: decoder(gray, device_id))
    assert "to a wrong one, (256, 256, 3), whose mean color is [128. 128. 128.]" in dali_probe.image_problem(None)
    monkeypatch.setattr(dali_probe, "_image_decoder", lambda data, device_id: decoder(data[:99], device_id))
    assert "DALI does not decode a test image: " in dali_probe.image_problem(None)


def test_card_that_fails_the_test_image_leaves_folders_to_pyav(monkeypatch, capsys) -> None:
    monkeypatch.setattr(nvdec, "query_capabilities", lambda index: HOPPER)
    monkeypatch.setattr(dali_probe, "decoding_problem", lambda codec, device_id: "")
    monkeypatch.setattr(dali_probe, "image_problem", lambda device_id: "nvJPEG is missing")
    assert dict(dali_probe.probe_dali(GPU).capabilities) == HOPPER
    assert "PyAV decodes folders of images: nvJPEG is missing" in capsys.readouterr().out


# --- shared memory --------------------------------------------------------------------------------------------------


def test_too_little_shared_memory_is_reported_before_the_first_batch(clips_folder, tmp_path, monkeypatch) -> None:
    path = clips_folder(tmp_path, 6)
    loader = make_loader(path, "data.num_workers=1", "data.decoder=pyav")
    needed = shared_bytes(loader.source, loader.pipeline.prefetch)
    assert needed == 2 * 2 * 3 * (3 * 4 * 32 * 32), "two batches each that workers write and that DALI holds"
    assert shared_bytes(make_loader(path, "data.decoder=dali").source, 2) == 0, (
        "files are small, and how large is not known"
    )
    assert shared_bytes(make_loader(path, "data.decoder=both", "data.pyav_share=0.1").source, 2) == needed
    real = os.statvfs
    blocks = needed // 4096
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=blocks, f_frsize=4096))
    next(iter(loader))
    check_shared_memory(blocks * 4096)
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=blocks - 1, f_frsize=4096))
    with pytest.raises(ValueError, match=r"/dev/shm has 0 MiB free.*at least 0 MiB of shared memory; .*--shm-size"):
        next(iter(make_loader(path, "data.num_workers=1", "data.decoder=pyav")))
    next(iter(make_loader(path, "data.num_workers=0", "data.decoder=pyav")))
    monkeypatch.setattr(os, "statvfs", real)


def test_worker_that_finds_shared_memory_full_blames_no_videos(clips_folder, tmp_path, monkeypatch) -> None:
    loader = make_loader(clips_folder(tmp_path, 6), "data.num_workers=1")
    real = DaliPipeline.run

    def run(self, *stream):
        os.kill(self.processes[0].pid, signal.SIGBUS)
        return real(self, *stream)

    monkeypatch.setattr(DaliPipeline, "run", run)
    with pytest.raises(
        TooManyUnreadableVideos, match=r"^a worker process found shared memory, /dev/shm, full; .*--shm-size"
    ):
        next(iter(loader))


def test_choose_device_warns_about_a_gpu_that_torch_cannot_use(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device_module.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    assert device_module.choose_device("auto").type == "cpu"
    assert "NVIDIA GPU: using the CPU. Builds for CUDA 13 need driver 580 or newer" in capsys.readouterr().out
    assert device_module.choose_device("cpu").type == "cpu"
    monkeypatch.setattr(device_module.glob, "glob", lambda pattern: [])
    assert device_module.choose_device("auto").type == "cpu" and capsys.readouterr().out == ""
