"""probe, readers: what is found out about a machine before the first batch, and what is said when it is too small."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines import dali_probe
from pipelines.batch_decoder import shared_bytes
from pipelines.dali_workers import Readers, check_shared_memory
from pipelines.decode import nvdec
from pipelines.decode.nvdec import HOPPER, Limits
from pipelines.sample_source import Unreadable
from tests.pipelines.test_decoders import make
from utils import device as device_module

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def forget_cards() -> None:
    dali_probe._probe_gpu.cache_clear()


def test_a_stream_that_dali_decodes_is_no_failure_and_one_that_it_refuses_is_named() -> None:
    """The same code as on a GPU, with DALI's CPU decoder, which knows VP9 and no H.264."""
    assert dali_probe.failure("vp9", None) == ""
    assert "Failed to create video decoder" in dali_probe.failure("h264", None)


@pytest.mark.parametrize(
    ("clip", "problem"),
    [
        (np.zeros((2, 256, 256, 3), np.uint8), "to other frames"),
        (np.zeros((2, 272, 256, 3), np.uint8), "expected (2, 256, 256, 3)"),
    ],
)
def test_a_decoder_that_gives_other_frames_is_not_trusted(clip, problem, monkeypatch) -> None:
    class Clips:
        def as_tensor(self) -> torch.Tensor:
            return torch.from_numpy(clip)[None]

    monkeypatch.setattr(dali_probe, "_decoder", lambda *_: SimpleNamespace(run=lambda: [Clips()]))
    assert problem in dali_probe.failure("h264", 0)


def test_a_card_is_believed_once_it_has_decoded(monkeypatch, capsys) -> None:
    monkeypatch.setattr(dali_probe, "failure", lambda codec, device_id: "")
    answers = {("h264", "4:2:0", 8): Limits(48, 16, 4096, 4096, 65536, 5), ("hevc", "4:2:0", 10): Limits(144, 144)}
    monkeypatch.setattr(nvdec, "query_capabilities", lambda index: answers)
    dali = dali_probe.probe_dali(GPU)
    assert dali.on_gpu and dict(dali.capabilities) == {("h264", "4:2:0", 8): answers["h264", "4:2:0", 8]}
    assert not dali.problem and capsys.readouterr().out == ""


def test_a_card_that_does_not_answer_is_taken_for_a_hopper_and_that_is_said_once(monkeypatch, capsys) -> None:
    monkeypatch.setattr(dali_probe, "failure", lambda codec, device_id: "")
    monkeypatch.setattr(nvdec, "query_capabilities", lambda index: None)
    assert dict(dali_probe.probe_dali(GPU).capabilities) == HOPPER == dict(dali_probe.probe_dali(GPU).capabilities)
    assert capsys.readouterr().out.count("the table of a Hopper is taken for it") == 1


def test_a_card_that_does_not_decode_leaves_everything_to_pyav(monkeypatch) -> None:
    monkeypatch.setattr(nvdec, "query_capabilities", lambda index: HOPPER)
    monkeypatch.setattr(dali_probe, "failure", lambda codec, device_id: "CUDA_ERROR_NO_DEVICE")
    dali = dali_probe.probe_dali(GPU)
    assert not dali.capabilities
    assert "CUDA_ERROR_NO_DEVICE" in dali.problem and "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in dali.problem


# --- shared memory --------------------------------------------------------------------------------------------------


def test_too_little_shared_memory_is_said_before_the_first_batch(clips_folder, tmp_path, monkeypatch) -> None:
    path = clips_folder(tmp_path, 6)
    loader = make(path, "data.workers=1", "data.decoder=host")
    needed = shared_bytes(loader.source, loader.graph.prefetch)
    assert needed == 2 * 2 * 3 * (3 * 4 * 32 * 32), "two batches each that workers write and that DALI holds"
    assert shared_bytes(make(path, "data.decoder=dali").source, 2) == 0, "files are small, and how large is not known"
    assert shared_bytes(make(path, "data.decoder=both", "data.pyav_share=0.1").source, 2) == needed
    real = os.statvfs
    blocks = needed // 4096
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=blocks, f_frsize=4096))
    next(iter(loader))
    check_shared_memory(blocks * 4096)
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=blocks - 1, f_frsize=4096))
    with pytest.raises(ValueError, match=r"/dev/shm has 0 MiB free.*at least 0 MiB of shared memory; .*--shm-size"):
        next(iter(make(path, "data.workers=1", "data.decoder=host")))
    next(iter(make(path, "data.workers=0", "data.decoder=host")))
    monkeypatch.setattr(os, "statvfs", real)


def test_a_reader_that_finds_shared_memory_full_names_it_and_no_videos(clips_folder, tmp_path, monkeypatch) -> None:
    loader = make(clips_folder(tmp_path, 6), "data.workers=1")
    real = Readers.run

    def run(self, *stream):
        os.kill(self.processes[0].pid, signal.SIGBUS)
        return real(self, *stream)

    monkeypatch.setattr(Readers, "run", run)
    with pytest.raises(Unreadable, match=r"^a reader process found shared memory, /dev/shm, full; .*--shm-size"):
        next(iter(loader))


def test_a_gpu_that_torch_cannot_use_is_said(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device_module.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    assert device_module.choose_device("auto").type == "cpu"
    assert "NVIDIA GPU: the CPU is taken. Builds for CUDA 13 need a driver of 580" in capsys.readouterr().out
    assert device_module.choose_device("cpu").type == "cpu"
    monkeypatch.setattr(device_module.glob, "glob", lambda pattern: [])
    assert device_module.choose_device("auto").type == "cpu" and capsys.readouterr().out == ""
