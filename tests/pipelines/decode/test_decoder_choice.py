"""Which decoder a video goes to: the plan and the line that explains it, PyAV's share, DALI's threads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decode import nvdec
from pipelines.decode.decoder_choice import DaliSupport, DecoderPlan, balanced_pyav_share, describe_plan, plan_decoders
from pipelines.decode.nvdec import HOPPER, Limits
from pipelines.decode.video_info import VideoInfo
from pipelines.loader import dali_threads

H264 = VideoInfo("h264.mp4", codec="h264", pix_fmt="yuv420p", coded_width=352, coded_height=256)
VP9 = dataclasses.replace(H264, codec="vp9")
AV1 = dataclasses.replace(H264, codec="av1")  # which DALI does not decode
JPEG = VideoInfo("clip", codec="jpeg_images", num_frames=9, pix_fmt="yuvj444p", coded_width=351, coded_height=9)
GPU, CPU = DaliSupport(True, {**HOPPER, **nvdec.IMAGES}), DaliSupport(False, nvdec.CPU)
BROKEN = DaliSupport(True, {}, "NVDEC does not decode a test stream")
IMAGES_ONLY = DaliSupport(True, nvdec.IMAGES, BROKEN.problem)


@pytest.mark.parametrize(
    ("wanted", "infos", "dali", "line"),
    [
        ("auto", [H264, VP9], CPU, "PyAV, which is faster than DALI without a GPU"),
        ("pyav", [H264], GPU, "PyAV, as data.decoder=pyav asks"),
        ("dali", [H264, VP9], GPU, "DALI NVDEC for 2 videos (h264, vp9)"),
        (
            "dali",
            [H264, VP9],
            CPU,
            "DALI CPU for 1 video (vp9); PyAV for 1 that DALI does not decode without a GPU (1 h264)",
        ),
        (
            "auto",
            [H264, AV1],
            GPU,
            "DALI NVDEC for 1 video (h264), of which PyAV takes a share of 0.25; PyAV for 1 "
            "that DALI does not decode on this GPU (1 av1)",
        ),
        ("dali", [JPEG, JPEG], GPU, "DALI nvJPEG for 2 videos (jpeg_images)"),
        ("dali", [JPEG, H264], GPU, "DALI NVDEC and nvJPEG for 2 videos (h264, jpeg_images)"),
        ("dali", [JPEG, VP9], CPU, "DALI CPU for 2 videos (jpeg_images, vp9)"),
        (
            "dali",
            [JPEG, H264],
            IMAGES_ONLY,
            "DALI nvJPEG for 1 video (jpeg_images); PyAV for 1 that DALI does not decode on this GPU "
            f"({BROKEN.problem})",
        ),
        ("auto", [AV1, AV1], GPU, "PyAV, since DALI NVDEC decodes none of the videos (2 av1)"),
        ("auto", [H264], BROKEN, f"PyAV, since DALI NVDEC decodes none of the videos ({BROKEN.problem})"),
    ],
)
def test_plan_is_described_in_a_line(wanted: str, infos: list[VideoInfo], dali: DaliSupport, line: str) -> None:
    plan = plan_decoders(infos, wanted, 0.25, dali, 4)
    assert plan.uses_dali is line.startswith("DALI")
    assert describe_plan(infos, plan, wanted, dali) == line


def test_plan_says_how_many_images_dali_decodes_of_a_folder() -> None:
    longer = dataclasses.replace(JPEG, num_frames=300, codec="png_images")
    plan = plan_decoders([JPEG, longer, AV1], "dali", 0, GPU, 2)
    assert (plan.max_images, plan.needs_video_decoder) == (300, False)
    plan = plan_decoders([JPEG, H264], "dali", 0, GPU, 2)
    assert (plan.max_images, plan.needs_video_decoder) == (9, True)
    assert plan_decoders([H264], "dali", 0, GPU, 2).max_images == 0


@pytest.mark.parametrize("wanted", ["dali", "both"])
def test_plan_with_dali_is_refused_if_dali_decodes_nothing(wanted: str) -> None:
    with pytest.raises(ValueError, match=rf"data.decoder={wanted}: DALI decodes none of the 2 videos.*\(2 h264\)"):
        plan_decoders([H264, H264], wanted, 0.5, CPU, 2)
    with pytest.raises(ValueError, match="NVDEC does not decode a test stream"):
        plan_decoders([H264], wanted, 0.5, BROKEN, 2)


@given(st.integers(1, 200), st.integers(1, 8), st.sampled_from([(352, 256), (464, 256), (1920, 1088)]))
def test_pyav_share_grows_with_cores_and_falls_with_engines(cores: int, engines: int, size: tuple[int, int]) -> None:
    infos = [dataclasses.replace(H264, coded_width=size[0], coded_height=size[1])]

    def share(cores: int, engines: int) -> float:
        return balanced_pyav_share(infos, {("h264", "4:2:0", 8): Limits(engines=engines)}, cores)

    assert 0 < share(cores, engines) < 1
    assert share(cores, engines) <= share(cores + 1, engines)
    assert share(cores, engines) >= share(cores, engines + 1)


def test_pyav_share_on_an_h100_with_16_cores_is_that_of_published_speeds() -> None:
    """A core decodes 3,700 frames of 340x256 per second, an engine 3,150."""
    assert balanced_pyav_share([H264], HOPPER, 15) == pytest.approx(15 * 3700 / (15 * 3700 + 7 * 3150), abs=0.02)


def test_plan_counts_what_only_pyav_decodes_as_part_of_its_share() -> None:
    balanced = plan_decoders([H264] * 100, "auto", "auto", GPU, 14).pyav_share
    with_some_av1 = plan_decoders([H264] * 80 + [AV1] * 20, "auto", "auto", GPU, 14).pyav_share
    assert 20 + 80 * with_some_av1 == pytest.approx(100 * balanced, abs=0.1)
    mostly_av1 = plan_decoders([H264] * 10 + [AV1] * 90, "auto", "auto", GPU, 14)
    assert mostly_av1.pyav_share == 0 and mostly_av1.needs_pyav and mostly_av1.uses_dali
    assert not plan_decoders([H264], "dali", "auto", GPU, 14).needs_pyav


@given(st.floats(0.05, 0.95), st.integers(0, 2**31), st.integers(0, 100))
def test_plan_draws_the_decoder_of_each_video_and_epoch(share: float, seed: int, epoch: int) -> None:
    plan = DecoderPlan(HOPPER, share)
    draws = [plan.chooses_pyav(H264, seed, epoch, index) for index in range(400)]
    assert abs(np.mean(draws) - share) < 0.13
    assert draws == [plan.chooses_pyav(H264, seed, epoch, index) for index in range(400)]
    assert all(plan.chooses_pyav(AV1, seed, epoch, index) for index in range(9)), "DALI does not decode AV1"


def test_dali_threads_auto_is_two_per_engine() -> None:
    assert dali_threads("auto", DecoderPlan(HOPPER, 0.5)) == 14
    assert dali_threads("3", DecoderPlan(HOPPER, 0.5)) == 3
    assert 1 <= dali_threads("auto", DecoderPlan(nvdec.CPU, 0.0)) <= 4
