"""What only a GPU can prove: NVDEC's frames equal PyAV's, batches are not overwritten, training resumes.

Every test also runs on a CPU as far as possible, so that its code is checked where there is no GPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipelines.dali_probe import probe_dali
from pipelines.decode import nvdec
from pipelines.decode.video_info import read_video_info
from pipelines.loader import VideoLoader
from tests.helpers.loaders import gray_levels, make_loader
from tests.helpers.runs import NO_DROPOUT, has_same_weights, losses, metrics, train
from tests.helpers.videos import write_video
from training.parallel import distribute

DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]
GRAY_LEVELS = 2.0  # mean difference of 255 between two color conversions and two scalers
SIZES = [(160, 160), (170, 146), (180, 202), (340, 256), (454, 256)]
QUIET = "pools=none:log-level=none"
# B-frames that are references, long and open groups of pictures: the order of frames is at stake.
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


def gpu_loader(folder: Path, device: str, *overrides: str, num_videos: int) -> VideoLoader:
    """Build a training loader over the videos 0.mp4, 1.mp4, ... of a folder."""
    path = folder / "list.txt"
    path.write_text("".join(f"{index}.mp4 {index % 6}\n" for index in range(num_videos)))
    sizes = ["data.num_frames=6", "data.image_size=64", "data.batch_size=2", "data.num_workers=2", "eval.batch_size=2"]
    return make_loader(path, *sizes, "data.dali_threads=auto", *overrides, device=torch.device(device))


def difference(video: Tensor, other: Tensor) -> float:
    """Return the mean distance of normalized clips in gray levels."""
    return float(gray_levels((video.float().cpu() - other.float().cpu()).abs().mean()))


def skip_unless_decodable(device: str, path: Path) -> None:
    if nvdec.reason_refused(read_video_info(str(path)), probe_dali(torch.device(device)).capabilities):
        pytest.skip(f"DALI does not decode {path} on this {device}")


@pytest.mark.parametrize(("coding", "device"), CASES)
def test_nvdec_frames_of_every_codec_and_size_equal_those_of_pyav(tmp_path: Path, coding: str, device: str) -> None:
    encoder, options = CODINGS[coding]
    for index, size in enumerate(SIZES):
        write_video(tmp_path / f"{index}.mp4", encoder, *size, num_frames=48, seed=index, options=options)
        skip_unless_decodable(device, tmp_path / "0.mp4")
    dali = gpu_loader(tmp_path, device, "data.decoder=dali", "data.batch_size=5", num_videos=5)
    pyav = gpu_loader(tmp_path, "cpu", "data.decoder=pyav", "data.batch_size=5", num_videos=5)
    assert dali.source.decoders.pyav_share == 0
    for _ in range(3):  # the second and third time NVDEC's sessions exist already
        for actual, expected in zip(dali, pyav, strict=True):
            indices = expected.sample_index.tolist()
            assert actual.video.device.type == device and actual.sample_index.tolist() == indices
            for index, clip, expected_clip in zip(indices, actual.video, expected.video, strict=True):
                assert difference(clip, expected_clip) < GRAY_LEVELS, SIZES[index]
    assert dali.decoder.slow_batches == 0


@pytest.mark.parametrize(
    ("encoder", "device"),
    [
        pytest.param("libvpx-vp9", "cpu", marks=pytest.mark.slow),
        *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in ("libx264", "libx265")),
    ],
)
def test_sizes_that_share_an_nvdec_session_keep_their_colors(tmp_path: Path, encoder: str, device: str) -> None:
    """640x360 is coded as 640x368, so one session serves both sizes, and the coded size says where chroma is."""
    for index, height in enumerate((368, 360, 368, 360)):
        write_video(tmp_path / f"{index}.mp4", encoder, 640, height, num_frames=24, still=True)
    skip_unless_decodable(device, tmp_path / "0.mp4")
    whole = ["data.batch_size=1", "data.crop_scale=1,1", "data.crop_ratio=1,2", "data.hflip=0", "data.dali_threads=1"]
    for _ in range(2):
        dali, pyav = (
            gpu_loader(tmp_path, where, f"data.decoder={decoder}", *whole, num_videos=4)
            for where, decoder in ((device, "dali"), ("cpu", "pyav"))
        )
        for actual, expected in zip(dali, pyav, strict=True):
            by_row = gray_levels((actual.video.float().cpu() - expected.video).abs().mean((0, 2, 4)))  # (3, H)
            assert by_row.max() < 2 * GRAY_LEVELS, "no row may have other colors"


@pytest.mark.parametrize("device", DEVICES)
def test_videos_that_no_card_decodes_share_a_batch_with_others(tmp_path: Path, device: str) -> None:
    write_video(tmp_path / "0.mp4", "libvpx-vp9", 170, 146, seed=0)
    write_video(tmp_path / "1.mp4", "libx265", 170, 146, seed=1, pix_fmt="yuv420p10le")
    write_video(tmp_path / "2.mp4", "libvpx-vp9", 100, 134, seed=2)
    write_video(tmp_path / "3.mp4", "libx264", 170, 146, seed=3, pix_fmt="yuv444p")
    dali = gpu_loader(tmp_path, device, "data.decoder=dali", "data.batch_size=4", num_videos=4)
    pyav = gpu_loader(tmp_path, "cpu", "data.decoder=pyav", "data.batch_size=4", num_videos=4)
    for _ in range(4):
        for actual, expected in zip(dali, pyav, strict=True):
            assert actual.sample_index.tolist() == expected.sample_index.tolist()
            assert difference(actual.video, expected.video) < GRAY_LEVELS
    assert not dali.bad_videos and dali.decoder.slow_batches == 0, "nothing may be tried in vain"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("decoder", ["dali", "pyav", "both"])
def test_kept_batches_are_not_overwritten(tmp_path: Path, device: str, decoder: str) -> None:
    for index in range(8):
        write_video(tmp_path / f"{index}.mp4", "libvpx-vp9", 170, 146, seed=index)
    loader = gpu_loader(tmp_path, device, f"data.decoder={decoder}", "data.pyav_share=0.5", num_videos=8)
    kept = [(batch, batch.video.clone(), batch.label.clone()) for _ in range(3) for batch in loader]
    assert len(kept) == 12
    assert all(torch.equal(batch.video, video) and torch.equal(batch.label, label) for batch, video, label in kept)
    assert len({batch.video.data_ptr() for batch, *_ in kept}) == 12


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_compiled_bf16_run_resumes_as_if_it_had_not_stopped(gpu_arguments, device: str) -> None:
    compiled = "yes" if device == "cuda" else "no"
    overrides = [f"run.device={device}", "run.precision=bf16", f"run.compile={compiled}", *NO_DROPOUT, "optim.epochs=3"]
    expected = train(gpu_arguments, "whole", *overrides)
    actual = train(gpu_arguments, "parts", *overrides, "run.log_interval=2")
    state = torch.load(actual / "previous.pt", weights_only=True)
    torch.save(state, actual / "last.pt")  # as it was an epoch before the end
    train(gpu_arguments, "parts", *overrides)
    assert len(losses(expected)) == 12
    if device == "cpu":
        assert has_same_weights(actual, expected)
    validations, expected_validations = (
        [row["loss"] for row in metrics(run_dir, "val")] for run_dir in (actual, expected)
    )
    assert expected_validations == pytest.approx(validations, rel=2e-2), "sums on a GPU are not the same to the bit"


class TwoBlocks(nn.Module):
    """A network with blocks to shard."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return x


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shard", [False, True])
def test_distributed_network_learns_as_a_plain_one(tmp_path: Path, device: str, shard: bool) -> None:
    """DDP and FSDP2 over NCCL (gloo on a CPU); one card allows one process."""
    torch_device = torch.device(device)
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    world_size = 1 if shard else 2  # with 2 the network is wrapped in DDP, though the group has one process
    try:
        last_losses = []
        for is_distributed in (False, True):
            torch.manual_seed(0)
            network = model = TwoBlocks().to(torch_device)
            if is_distributed:
                model = distribute(network, world_size, torch_device, shard=shard, grad_accum_steps=1)
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            for step in range(3):
                torch.manual_seed(step)
                loss = model(torch.randn(4, 8, device=torch_device)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            last_losses.append(loss.item())
        assert last_losses[0] == pytest.approx(last_losses[1], rel=1e-4)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.gpu
def test_probe_of_a_gpu_finds_nvdec(capsys: pytest.CaptureFixture[str]) -> None:
    """bench.gpu writes down what the driver says; here it only has to be sensible."""
    dali = probe_dali(torch.device("cuda", 0))
    assert not dali.problem and ("h264", "4:2:0", 8) in dali.capabilities
    assert all(limits.max_width >= 2000 and limits.engines >= 1 for limits in dali.capabilities.values())
    assert "Hopper" not in capsys.readouterr().out, "the driver must answer, so that nothing is assumed"
    assert os.path.exists("/dev/nvidia0")
