"""What only a GPU can prove: NVDEC's frames are PyAV's, and the loader's batches and the training behind it hold there.

Every test also runs on a CPU as far as it can, so that its own code is tried where there is no GPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import train as train_command
from configs import loading
from pipelines.dali_probe import probe_dali
from pipelines.decode import nvdec
from pipelines.decode.video_info import read_row
from pipelines.loader import VideoLoader, build_loader
from tests.helpers.runs import STEADY, losses, same_weights
from tests.helpers.videos import write_video
from training.history import read_metrics
from training.parallel import distribute
from utils.distributed import World

DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]
GRAY_LEVELS = 2.0  # mean difference of 255 between two color conversions and two scalers
SIZES = [(160, 160), (170, 146), (180, 202), (340, 256), (454, 256)]
QUIET = "pools=none:log-level=none"
# x264's and x265's references among B-frames, deep and open groups of pictures: the order of frames is at stake.
CODINGS = {
    "h264": ("libx264", {"x264-params": "bframes=0:keyint=12"}),
    "h264_pyramid": ("libx264", {"x264-params": "bframes=15:b-adapt=0:b-pyramid=normal:keyint=40"}),
    "h264_open": ("libx264", {"x264-params": "bframes=3:b-adapt=0:open-gop=1:keyint=12"}),
    "hevc": ("libx265", {"x265-params": f"bframes=4:keyint=12:{QUIET}"}),
    "hevc_pyramid": ("libx265", {"x265-params": f"bframes=15:b-adapt=0:rc-lookahead=40:keyint=40:{QUIET}"}),
    "hevc_open": ("libx265", {"x265-params": f"bframes=4:open-gop=1:keyint=12:{QUIET}"}),
    "vp9": ("libvpx-vp9", {}),
    "mpeg4": ("mpeg4", {"qscale": "3"}),
    "av1": ("libsvtav1", {}),
}
# DALI's CPU decoder knows only VP9 of these.
CASES = [("vp9", "cpu"), *(pytest.param(coding, "cuda", marks=pytest.mark.gpu) for coding in CODINGS)]


def make(folder: Path, device: str, *overrides: str, files: int, split: str = "train") -> VideoLoader:
    path = folder / "list.txt"
    path.write_text("".join(f"{number}.mp4 {number % 6}\n" for number in range(files)))
    cfg = loading.load(None, [
        f"data.train={path}", f"data.val={path}", "data.frames=6", "data.stride=3", "data.size=64", "data.batch=2",
        "data.workers=2", "data.scale=0.4,1", "eval.batch=2", *overrides,
    ])  # fmt: skip
    return build_loader(cfg, split, [str(i) for i in range(6)], World(), torch.device(device))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean distance of normalized clips, in gray levels."""
    return float((a.float().cpu() - b.float().cpu()).abs().mean() * 255 * 0.225)


def decodes(device: str, path: Path) -> bool:
    return not nvdec.reason_refused(read_row(str(path)), probe_dali(torch.device(device)).capabilities)


@pytest.mark.parametrize(("coding", "device"), CASES)
def test_frames_of_every_codec_and_size_are_those_of_pyav(tmp_path: Path, coding: str, device: str) -> None:
    encoder, options = CODINGS[coding]
    for number, size in enumerate(SIZES):
        write_video(tmp_path / f"{number}.mp4", encoder, *size, frames=48, seed=number, options=options)
        if not decodes(device, tmp_path / "0.mp4"):
            pytest.skip(f"DALI does not decode {coding} on this {device}")
    dali = make(tmp_path, device, "data.decoder=dali", "data.batch=5", files=5)
    host = make(tmp_path, "cpu", "data.decoder=host", "data.batch=5", files=5)
    assert dali.source.decoders.pyav_share == 0
    for _ in range(3):  # the second and third time from sessions that are there
        for a, b in zip(dali, host, strict=True):
            assert a.video.device.type == device and a.sample.tolist() == b.sample.tolist()
            for row, one, other in zip(b.sample.tolist(), a.video, b.video, strict=True):
                assert difference(one, other) < GRAY_LEVELS, SIZES[row]
    assert dali.decoder.slow_steps == 0


@pytest.mark.parametrize(
    ("encoder", "device"),
    [("libvpx-vp9", "cpu"), *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in ("libx264", "libx265"))],
)
def test_sizes_that_share_a_session_keep_their_colors(tmp_path: Path, encoder: str, device: str) -> None:
    """640x360 is coded as 640x368: a session of the one serves the other, and its chroma must be looked for there."""
    for number, height in enumerate((368, 360, 368, 360)):
        write_video(tmp_path / f"{number}.mp4", encoder, 640, height, frames=24, still=True)
    if not decodes(device, tmp_path / "0.mp4"):
        pytest.skip(f"DALI does not decode {encoder} on this {device}")
    whole = ["data.batch=1", "data.scale=1,1", "data.ratio=1,2", "data.flip=0", "data.threads=1"]
    for _ in range(2):
        dali, host = (make(tmp_path, where, f"data.decoder={decoder}", *whole, files=4)
                      for where, decoder in ((device, "dali"), ("cpu", "host")))  # fmt: skip
        for a, b in zip(dali, host, strict=True):
            apart = (a.video.float().cpu() - b.video).abs().mean((0, 2, 4)) * 255 * 0.225  # (3, H)
            assert apart.max() < 2 * GRAY_LEVELS, "no row has other colors"


@pytest.mark.parametrize("device", DEVICES)
def test_files_that_no_card_decodes_share_a_batch_with_good_ones(tmp_path: Path, device: str) -> None:
    write_video(tmp_path / "0.mp4", "libvpx-vp9", 170, 146, seed=0)
    write_video(tmp_path / "1.mp4", "libx265", 170, 146, seed=1, pix_fmt="yuv420p10le")
    write_video(tmp_path / "2.mp4", "libvpx-vp9", 100, 134, seed=2)
    write_video(tmp_path / "3.mp4", "libx264", 170, 146, seed=3, pix_fmt="yuv444p")
    dali = make(tmp_path, device, "data.decoder=dali", "data.batch=4", files=4)
    host = make(tmp_path, "cpu", "data.decoder=host", "data.batch=4", files=4)
    for _ in range(4):
        for a, b in zip(dali, host, strict=True):
            assert a.sample.tolist() == b.sample.tolist() and difference(a.video, b.video) < GRAY_LEVELS
    assert not dali.bad and dali.decoder.slow_steps == 0, "nothing was tried in vain"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("decoder", ["dali", "host", "both"])
def test_batches_that_are_held_stay_as_they_were(tmp_path: Path, device: str, decoder: str) -> None:
    for number in range(8):
        write_video(tmp_path / f"{number}.mp4", "libvpx-vp9", 170, 146, seed=number)
    loader = make(tmp_path, device, f"data.decoder={decoder}", "data.pyav_share=0.5", files=8)
    held = [(batch, batch.video.clone(), batch.label.clone()) for _ in range(3) for batch in loader]
    assert len(held) == 12
    assert all(torch.equal(batch.video, video) and torch.equal(batch.label, label) for batch, video, label in held)
    assert len({batch.video.data_ptr() for batch, *_ in held}) == 12


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_run_in_bf16_resumes_as_if_it_had_not_stopped(gpu_arguments, tmp_path: Path, device: str) -> None:
    more = [f"run.device={device}", "run.amp=bf16", f"run.compile={'yes' if device == 'cuda' else 'no'}", *STEADY]
    plain = [*gpu_arguments, *more]
    assert train_command.main([*plain, "run.name=whole", "optim.epochs=3"]) == 0
    assert train_command.main([*plain, "run.name=parts", "optim.epochs=3", "run.log_every=2"]) == 0
    state = torch.load(tmp_path / "parts" / "previous.pt", weights_only=True)
    torch.save(state, tmp_path / "parts" / "last.pt")  # as it was an epoch before the end
    assert train_command.main([*plain, "run.name=parts", "optim.epochs=3"]) == 0
    assert len(losses(tmp_path / "whole")) == 12
    if device == "cpu":
        assert same_weights(tmp_path / "parts", tmp_path / "whole")
    one, other = ([row["loss"] for row in read_metrics(tmp_path / name) if row["kind"] == "val"] for name in ("whole", "parts"))  # fmt: skip  # noqa: E501
    assert one == pytest.approx(other, rel=2e-2), "a GPU's sums are not the same to the bit"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shard", [False, True])
def test_a_network_in_a_process_group_learns_what_one_alone_does(tmp_path: Path, device: str, shard: bool) -> None:
    """DDP and FSDP2 over NCCL (gloo on a CPU); one card allows one process."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x).relu()
            return x

    where = torch.device(device)
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        results = []
        for grouped in (False, True):
            torch.manual_seed(0)
            network = Network().to(where)
            processes = 1 if shard else 2  # DDP is wanted, though the group has one process
            model = distribute(network, processes, where, shard, 1) if grouped else network
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            for step in range(3):
                torch.manual_seed(step)
                loss = model(torch.randn(4, 8, device=where)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            results.append(loss.item())
        assert results[0] == pytest.approx(results[1], rel=1e-4)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.gpu
def test_a_gpu_is_asked_and_decodes(capsys: pytest.CaptureFixture[str]) -> None:
    """What the card's driver says is written down by bench.gpu; here only that it says something sensible."""
    dali = probe_dali(torch.device("cuda", 0))
    assert not dali.problem and ("h264", "4:2:0", 8) in dali.capabilities
    assert all(limits.max_width >= 2000 and limits.engines >= 1 for limits in dali.capabilities.values())
    assert "is taken for it" not in capsys.readouterr().out, "the driver answers"
    assert os.path.exists("/dev/nvidia0")
