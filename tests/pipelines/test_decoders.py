"""decoders, nvdec, faults: every video goes to a decoder that can take it, and the stream is the same whoever does."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from hypothesis import given
from hypothesis import strategies as st

import train as train_command
from configs import loading
from pipelines import loader as loader_module
from pipelines import sample_source as source_module
from pipelines.dali_workers import Readers
from pipelines.decode import decoder_choice as decoders_module
from pipelines.decode import demuxer as video_module
from pipelines.decode import nvdec
from pipelines.decode.bitstream.parameter_sets import SequenceParameters
from pipelines.decode.decoder_choice import Dali, Decoders, choose_decoders, describe_decoders, pyav_share
from pipelines.decode.demuxer import Video
from pipelines.decode.frame_table import COUNTED
from pipelines.decode.nvdec import HOPPER, Limits, chroma_and_depth, reason_refused
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.remux import with_size
from pipelines.decode.video_info import Row, read_row
from pipelines.known_faults import REFUSED, UNREADABLE, Faults
from pipelines.loader import VideoLoader, build_loader, dali_threads
from pipelines.sample_source import Source, Unreadable
from tests.helpers.runs import SMALL, STEADY
from tests.helpers.videos import write_video
from tests.pipelines.test_loader import same, stream
from utils.distributed import World

# A card of which the CPU's DALI can play the part: it decodes VP9 from 128x128 pixels on, as NVDEC does.
CARD = {("vp9", "4:2:0", 8): HOPPER["vp9", "4:2:0", 8]._replace(alignment=1)}
AUGMENTED = ["data.rand_augment=m7-n2-mstd0.5", "data.repeats=3"]
GOOD = Row("good", codec="h264", pix_fmt="yuv420p", coded_width=352, coded_height=256)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"codec": "hevc"}, ""),
        ({"codec": "vp8"}, ""),
        ({"pix_fmt": "yuvj420p"}, ""),
        ({"codec": "mpeg4"}, ""),
        ({"codec": "vp9", "coded_width": 128, "coded_height": 128}, ""),
        ({"codec": "vp9", "coded_width": 100, "coded_height": 134}, "vp9 below 128x128"),
        ({"codec": "hevc", "coded_width": 352, "coded_height": 136}, "hevc below 144x144"),
        ({"codec": "hevc", "pix_fmt": "yuv420p10le"}, "hevc 4:2:0 10 bit"),
        ({"pix_fmt": "yuv444p"}, "h264 4:4:4 8 bit"),
        ({"pix_fmt": "yuv422p"}, "h264 4:2:2 8 bit"),
        ({"pix_fmt": "gray"}, "h264 4:0:0 8 bit"),
        ({"pix_fmt": "gbrp"}, "h264 RGB 8 bit"),
        ({"codec": "av1"}, "av1"),
        ({"codec": "vp9", "coded_width": 340}, "vp9 whose sides are no multiples of 16"),
        ({"codec": "vp9", "irregularity": "hidden frames"}, "vp9 with hidden frames"),
        ({"colorspace": "other"}, "h264 of an unusual color matrix"),
        ({"irregularity": COUNTED}, "h264 with frames that have to be counted"),
        ({"codec": "mjpeg", "pix_fmt": "yuvj420p"}, "mjpeg"),
        ({"codec": "prores", "pix_fmt": "yuv422p10le"}, "prores"),
        ({"interlaced": True}, "interlaced h264"),
        ({"crop_offset": (0, 8)}, "h264 that is cropped at its top or left"),
        ({"coded_width": 0, "coded_height": 0}, "h264 of unknown coded size"),
        ({"coded_width": 8192, "coded_height": 256}, "h264 above 4096x4096"),
        ({"codec": "mpeg4", "coded_width": 2048, "coded_height": 1152}, "mpeg4 above 2032x2032"),
        ({"pix_fmt": ""}, "h264 of unknown pixel format"),
    ],
)
def test_a_hopper_is_given_what_it_decodes(change: dict, reason: str) -> None:
    assert reason_refused(dataclasses.replace(GOOD, **change), HOPPER) == reason


def test_without_a_table_nothing_is_decodable() -> None:
    assert reason_refused(GOOD, {}) == "h264"


def test_pixel_formats_are_read() -> None:
    known = {"yuv420p": ("4:2:0", 8), "nv12": ("4:2:0", 8), "yuv410p": ("4:1:0", 8), "yuv411p": ("4:1:1", 8),
             "yuv440p": ("4:4:0", 8), "p010le": ("4:2:0", 10), "rgb24": ("RGB", 8), "gray": ("4:0:0", 8)}  # fmt: skip
    assert {name: chroma_and_depth(name) for name in known} == known


def test_the_index_keeps_what_a_decoder_asks_for(tmp_path: Path) -> None:
    kinds = {
        "hevc 4:2:0 10 bit": ("libx265", 160, 146, {"pix_fmt": "yuv420p10le"}),
        "h264 4:4:4 8 bit": ("libx264", 160, 146, {"pix_fmt": "yuv444p"}),
        "interlaced h264": ("libx264", 160, 148, {"options": {"x264-params": "interlaced=1"}}),
        "mjpeg": ("mjpeg", 160, 146, {"pix_fmt": "yuvj420p"}),
        "av1": ("libsvtav1", 160, 146, {}),
        "vp9 below 128x128": ("libvpx-vp9", 100, 134, {}),
        "": ("libx264", 160, 146, {}),
    }
    for number, (reason, (encoder, width, height, more)) in enumerate(kinds.items()):
        row = read_row(str(write_video(tmp_path / f"{number}.mp4", encoder, width, height, frames=3, **more)))
        assert not row.error and reason_refused(row, HOPPER) == reason
        assert (row.width, row.height) == (width, height)
        if encoder in ("libx264", "libx265"):
            assert (row.coded_width, row.coded_height) >= (160, 152) and row.profile
        else:
            assert (row.coded_width, row.coded_height) == (width, height)


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "25", "cpu-used": "5", "b": "200k"}),
        ("libvpx-vp9", {}),
        ("mpeg4", {"bf": "2"}),
        ("libx264", {"x264-params": "bframes=3:b-pyramid=normal:open-gop=1"}),
        ("libx265", {"x265-params": "bframes=4:open-gop=1:pools=none:log-level=none"}),
    ],
)
def test_a_packet_that_is_no_frame_is_seen_by_the_index(tmp_path: Path, encoder: str, options: dict) -> None:
    """What DALI counts on a GPU are packets: those of alternate references hold two frames and show one."""
    path = write_video(tmp_path / "a.mp4", encoder, 160, 128, frames=48, options=options)
    row = read_row(str(path))
    assert row.num_frames == 48
    assert row.irregularity == ("hidden frames" if "auto-alt-ref" in options else "")


@pytest.mark.parametrize(("codec", "encoder"), [("h264", "libx264"), ("hevc", "libx265")])
def test_frames_that_are_cropped_at_the_left_are_decoded_by_pyav_alone(
    tmp_path: Path, codec: str, encoder: str
) -> None:
    whole = write_video(tmp_path / "whole.mp4", encoder, 192, 160, frames=6, still=True)
    path = tmp_path / "cropped.mp4"
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        stream_in = old.streams.video[0]
        stream_out = new.add_stream_from_template(stream_in, opaque=True)
        crop = BitStreamFilterContext(f"{codec}_metadata=crop_left=8:crop_top=4", stream_out, stream_out)
        for packet in old.demux(stream_in):
            if packet.size:
                for cropped in crop.filter(packet):
                    cropped.stream = stream_out
                    new.mux(cropped)
    content = with_size(path.read_bytes(), (184, 156))
    path.write_bytes(content)
    row = read_row(str(path))
    assert (row.width, row.height, row.crop_offset) == (184, 156, (8, 4))
    assert reason_refused(row, HOPPER) == f"{codec} that is cropped at its top or left"
    views = [decode_views(str(file), np.array([[0, 3]]), np.array([box]), 64)
             for file, box in ((whole, (4, 8, 160, 192)), (path, (0, 0, 156, 184)))]  # fmt: skip
    assert np.abs(views[0].astype(int) - views[1]).mean() < 1


def test_colors_that_nobody_converts_are_an_error_of_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", "libx264", 160, 128, frames=3, options={"x264-params": "colormatrix=ycgco"})
    row = read_row(str(path))
    assert row.colorspace == "other" and reason_refused(row, HOPPER) == "h264 of an unusual color matrix"
    with pytest.raises(ValueError, match="a.mp4: its frames cannot be converted to RGB"):
        decode_views(str(path), np.array([[0]]), np.array([[0, 0, 128, 160]]), 32)


def test_a_parameter_set_that_is_not_the_frames_own_is_not_believed(tmp_path: Path, monkeypatch) -> None:
    path = write_video(tmp_path / "a.mp4", "libx264", 170, 146, frames=3)
    assert reason_refused(read_row(str(path)), HOPPER) == ""
    monkeypatch.setattr(video_module, "read_sps", lambda *_: SequenceParameters(320, 240, 0, 0, 0, 0, False))
    assert reason_refused(read_row(str(path)), HOPPER) == "h264 of unknown coded size"


def test_a_picture_that_was_lost_is_seen_by_the_index(tmp_path: Path) -> None:
    for encoder in ("libx264", "libx265"):
        path = write_video(tmp_path / f"{encoder}.mp4", encoder, 160, 128, frames=20)
        content = bytearray(path.read_bytes())
        with Video(bytes(content)) as video:
            start, end = video._ranges[5]
        content[start + 4 : end] = b"\x0c\xff" + b"\xff" * (end - start - 6)  # filler data, of H.264 at least
        if encoder == "libx265":
            content[start + 4 : start + 6] = b"\x4c\x01"  # filler data of HEVC
        path.write_bytes(content)
        row = read_row(str(path))
        assert not row.error and row.irregularity == "packets without a picture"
        assert "packets without a picture" in reason_refused(row, HOPPER)


def test_dali_is_asked_for_each_frame_once(mixed_list) -> None:
    """For one that it has passed it would decode the file anew: ten clips of a short video share their frames."""
    loader = make(mixed_list, "data.decoder=dali", "data.frames=16", "eval.clips=10", "eval.batch=1", split="test")
    _, positions, frame_order, *_ = loader.source.sample(0, 0)
    assert len(frame_order) == 160 and (np.diff(positions) > 0).all()
    assert (loader.source.choose(0, np.random.default_rng(0))[0].ravel() < 24).all() and len(positions) <= 24
    dali, host = (next(iter(make(mixed_list, f"data.decoder={name}", "data.frames=16", "eval.clips=10", "eval.batch=1",
                                 split="test"))).video for name in ("dali", "host"))  # fmt: skip
    assert (dali - host).abs().mean() * 255 * 0.225 < 2


def test_a_card_is_asked_for_every_format_and_its_answer_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(caps):
        caps = caps._obj
        asked.append((caps.codec, caps.chroma, caps.depth_minus_8))
        if (caps.codec, caps.chroma, caps.depth_minus_8) in ((4, 1, 0), (11, 1, 2)):  # H.264, and AV1 of 10 bit
            caps.is_supported, caps.engines = 1, 5
            caps.min_width, caps.min_height, caps.max_width, caps.max_height = 48, 16, 4096, 4096
            caps.max_macroblocks = 65536
        return 0

    limits = Limits(48, 16, 4096, 4096, 65536, 5)
    answers = nvdec._ask_all(answer)
    assert answers == {("h264", "4:2:0", 8): limits, ("av1", "4:2:0", 10): limits} and len(asked) == 6 * 4 * 3
    assert nvdec.usable(answers) == {("h264", "4:2:0", 8): limits}
    assert nvdec._ask_all(lambda caps: 100) is None, "CUDA_ERROR_NO_DEVICE"
    one_refused = nvdec._ask_all(lambda caps: answer(caps) if caps._obj.codec != 2 else 1)
    assert one_refused == answers, "a question that the driver does not take spoils no other answer"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert nvdec.query_capabilities() is None


# --- the choice -----------------------------------------------------------------------------------------------------

VP9 = dataclasses.replace(GOOD, codec="vp9")
AV1 = dataclasses.replace(GOOD, codec="av1")
GPU, CPU = Dali(True, HOPPER), Dali(False, nvdec.CPU)
BROKEN = Dali(True, {}, "NVDEC does not decode a test stream")


@pytest.mark.parametrize(
    ("wanted", "rows", "dali", "line"),
    [
        ("auto", [GOOD, VP9], CPU, "PyAV, which is faster than DALI without a GPU"),
        ("host", [GOOD], GPU, "PyAV, as data.decoder=host asks"),
        ("dali", [GOOD, VP9], GPU, "DALI NVDEC for 2 videos (h264, vp9)"),
        (
            "dali", [GOOD, VP9], CPU, "DALI CPU for 1 video (vp9); PyAV for 1 that DALI does not decode without a GPU "
            "(1 h264)",
        ),
        (
            "auto", [GOOD, AV1], GPU, "DALI NVDEC for 1 video (h264), of which PyAV takes a share of 0.25; PyAV for 1 "
            "that DALI does not decode on this GPU (1 av1)",
        ),
        ("auto", [AV1, AV1], GPU, "PyAV, since DALI NVDEC decodes none of the videos (2 av1)"),
        ("auto", [GOOD], BROKEN, f"PyAV, since DALI NVDEC decodes none of the videos ({BROKEN.problem})"),
    ],
)  # fmt: skip
def test_a_line_says_who_decodes_and_why(wanted: str, rows: list[Row], dali: Dali, line: str) -> None:
    decoders = choose_decoders(rows, wanted, 0.25, dali, 4)
    assert decoders.uses_dali is line.startswith("DALI") and describe_decoders(rows, decoders, wanted, dali) == line


@pytest.mark.parametrize("wanted", ["dali", "both"])
def test_dali_that_can_decode_nothing_is_refused(wanted: str) -> None:
    with pytest.raises(ValueError, match=rf"data.decoder={wanted}: DALI decodes none of the 2 videos.*\(2 h264\)"):
        choose_decoders([GOOD, GOOD], wanted, 0.5, CPU, 2)
    with pytest.raises(ValueError, match="NVDEC does not decode a test stream"):
        choose_decoders([GOOD], wanted, 0.5, BROKEN, 2)


@given(st.integers(1, 200), st.integers(1, 8), st.sampled_from([(352, 256), (464, 256), (1920, 1088)]))
def test_the_share_of_pyav_grows_with_cores_and_falls_with_engines(cores: int, engines: int, size: tuple) -> None:
    rows = [dataclasses.replace(GOOD, coded_width=size[0], coded_height=size[1])]

    def share(cores: int, engines: int) -> float:
        return pyav_share(rows, {("h264", "4:2:0", 8): Limits(engines=engines)}, cores)

    assert 0 < share(cores, engines) < 1
    assert share(cores, engines) <= share(cores + 1, engines) and share(cores, engines) >= share(cores, engines + 1)


def test_the_share_on_an_h100_with_16_cores_is_that_of_the_published_rates() -> None:
    """15 x 3,700 frames of 340x256 a second beside 7 x 3,150."""
    assert pyav_share([GOOD], HOPPER, 15) == pytest.approx(15 * 3700 / (15 * 3700 + 7 * 3150), abs=0.02)


def test_what_only_pyav_decodes_counts_as_its_share() -> None:
    balanced = choose_decoders([GOOD] * 100, "auto", -1, GPU, 14).pyav_share
    some = choose_decoders([GOOD] * 80 + [AV1] * 20, "auto", -1, GPU, 14).pyav_share
    assert 20 + 80 * some == pytest.approx(100 * balanced, abs=0.1)
    most = choose_decoders([GOOD] * 10 + [AV1] * 90, "auto", -1, GPU, 14)
    assert most.pyav_share == 0 and most.needs_pyav and most.uses_dali
    assert not choose_decoders([GOOD], "dali", -1, GPU, 14).needs_pyav


@given(st.floats(0.05, 0.95), st.integers(0, 2**31), st.integers(0, 100))
def test_a_share_is_drawn_for_each_video_and_epoch(share: float, seed: int, epoch: int) -> None:
    decoders = Decoders(HOPPER, share)
    drawn = [decoders.chooses_pyav(GOOD, seed, epoch, number) for number in range(400)]
    assert abs(np.mean(drawn) - share) < 0.13
    assert drawn == [decoders.chooses_pyav(GOOD, seed, epoch, number) for number in range(400)]
    assert all(decoders.chooses_pyav(AV1, seed, epoch, number) for number in range(9)), "what DALI cannot, PyAV does"


# --- the stream -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos: four of a size and kind that the card of these tests decodes, five that no card does."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, size in enumerate(((160, 128), (128, 160), (146, 130), (176, 144))):
        write_video(folder / f"{number}.mp4", "libvpx-vp9", *size, seed=number)
    write_video(folder / "4.mp4", "libvpx-vp9", 100, 134, seed=4)
    write_video(folder / "5.mp4", "libx265", 160, 146, seed=5, pix_fmt="yuv420p10le")
    write_video(folder / "6.mp4", "libx264", 160, 146, seed=6, pix_fmt="yuv444p")
    write_video(folder / "7.mp4", "mjpeg", 160, 146, seed=7, pix_fmt="yuvj420p")
    write_video(folder / "8.mp4", "libx264", 160, 148, seed=8, options={"x264-params": "interlaced=1"})
    path = folder / "list.txt"
    path.write_text("".join(f"{number}.mp4 {number % 6}\n" for number in range(9)))
    return path


def make(path: Path, *overrides: str, split: str = "train") -> VideoLoader:
    cfg = loading.load(None, [
        f"data.train={path}", f"data.val={path}", "data.frames=4", "data.stride=3", "data.size=32", "data.batch=3",
        "data.workers=0", "data.threads=1", "data.scale=0.4,1", "eval.clips=2", "eval.batch=3", *overrides,
    ])  # fmt: skip
    return build_loader(cfg, split, [str(i) for i in range(6)], World(), torch.device("cpu"))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "probe_dali", lambda device: Dali(True, CARD))


def by_sample(batches: list) -> dict[tuple[int, int], torch.Tensor]:
    """The clips of a stream by the number of the batch of three epochs and the sample."""
    return {(number // 3, row): clip for number, (_, rows, video) in enumerate(batches)
            for row, clip in zip(rows, video, strict=True)}  # fmt: skip


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("extra", [[], AUGMENTED, ["data.crop=letterbox", "eval.crops=1"]])
def test_what_a_card_cannot_decode_goes_to_pyav_in_the_same_batch(mixed_list, card, split, extra, capsys) -> None:
    """Its clips are those of PyAV, the others' those of DALI, bit for bit; one line says how many and why."""
    mixed = stream(make(mixed_list, "data.decoder=dali", *extra, split=split), 1)
    said = capsys.readouterr().out
    assert "DALI NVDEC for 4 videos (vp9); PyAV for 5 that DALI does not decode on this GPU (" in said
    for reason in ("1 hevc", "2 h264", "1 mjpeg", "1 vp9 below 128x128"):
        assert reason in said
    host = stream(make(mixed_list, "data.decoder=host", *extra, split=split), 1)
    assert [batch[:2] for batch in mixed] == [batch[:2] for batch in host]
    for (_, rows, a), (_, _, b) in zip(mixed, host, strict=True):
        for row, one, other in zip(rows, a, b, strict=True):
            assert one.shape == other.shape and torch.isfinite(one).all()
            assert torch.equal(one, other) is (row > 3), row
            assert (one - other).abs().mean() * 255 * 0.225 < (30 if extra is AUGMENTED else 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_share_of_the_videos_goes_to_pyav_and_the_stream_stays_the_same(mixed_list, card, workers) -> None:
    share = ["data.decoder=both", "data.pyav_share=0.5"]
    both = stream(make(mixed_list, *share), 3)
    assert same(both, stream(make(mixed_list, *share, f"data.workers={workers}"), 3))
    dali, host = (by_sample(stream(make(mixed_list, f"data.decoder={name}"), 3)) for name in ("dali", "host"))
    taken = {"dali": 0, "host": 0}
    for place, clip in by_sample(both).items():
        one, other = torch.equal(clip, dali[place]), torch.equal(clip, host[place])
        assert one or other
        if place[1] < 4:
            taken["dali" if one else "host"] += 1
    assert min(taken.values()) >= 2, taken
    resumed = make(mixed_list, *share)
    first = make(mixed_list, *share)
    parts = [(b.label.tolist(), b.sample.tolist(), b.video.clone()) for b, _ in zip(first, range(2), strict=False)]
    resumed.load_state_dict({"epoch": 0, "seen": 6, "faults": []})
    assert same(parts + stream(resumed, 3), both)


def lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that promises more than DALI's decoder keeps, as NVDEC may refuse what its driver says it takes."""
    every = {(codec, chroma, depth): Limits() for codec in ("vp9", "h264", "hevc", "mjpeg")
             for chroma in ("4:2:0",) for depth in (8,)}  # fmt: skip
    monkeypatch.setattr(loader_module, "probe_dali", lambda device: Dali(True, every))


@pytest.fixture
def refusing_list(tmp_path: Path) -> Path:
    for number in range(8):
        encoder = "libx264" if number in (2, 5) else "libvpx-vp9"
        write_video(tmp_path / f"{number}.mp4", encoder, 160, 128, seed=number)
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{number}.mp4 {number % 6}\n" for number in range(8)))
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refusal_is_found_out_about_once(refusing_list, workers, monkeypatch, capsys) -> None:
    """DALI's CPU decoder refuses H.264: at most one slow step for each such file, in five epochs."""
    honest = stream(make(refusing_list, "data.decoder=dali", "data.batch=2"), 5)
    lie(monkeypatch)
    loader = make(refusing_list, "data.decoder=dali", "data.batch=2", f"data.workers={workers}")
    capsys.readouterr()
    assert same(stream(loader, 5), honest), "PyAV decodes them, as if it had been known"
    assert 1 <= loader.decoder.slow_steps <= 2 and not loader.bad
    assert capsys.readouterr().out.count("); PyAV decodes it from now on") == 2


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_refused_file_of_a_tiny_list_is_found_out_about_once(refusing_list, workers, monkeypatch) -> None:
    """One batch an epoch: workers have begun the next ones with the same file when its refusal shows."""
    refusing_list.write_text("1.mp4 1\n2.mp4 2\n")
    lie(monkeypatch)
    loader = make(refusing_list, "data.decoder=dali", "data.batch=2", f"data.workers={workers}")
    assert len(stream(loader, 12)) == 12 and loader.decoder.slow_steps == 1


def test_what_was_found_of_a_file_holds_for_that_file_alone(refusing_list, monkeypatch) -> None:
    lie(monkeypatch)
    words = ["data.decoder=dali", "data.batch=2", "data.max_bad=1"]
    loader = make(refusing_list, *words)
    stream(loader, 1)
    loader.bad[3] = "gone for a moment"
    loader.source.faults.add(3, UNREADABLE, 1)
    state = loader.state_dict()
    same_list = make(refusing_list, *words)
    same_list.load_state_dict(state)
    assert same_list.bad == loader.bad and same_list.source.faults.state() == loader.source.faults.state()
    lines = refusing_list.read_text().splitlines()
    os.utime(refusing_list.parent / "3.mp4")  # it was mended
    refusing_list.write_text("\n".join([*lines[:5], *lines[6:]]) + "\n")  # and 5.mp4, which DALI refuses, taken out
    other = make(refusing_list, *words)
    other.load_state_dict(state)
    assert other.bad == {} and [row for row, *_ in other.source.faults.state()] == [2]


def test_a_file_that_cannot_be_made_fit_for_dali_is_decoded_by_pyav(mixed_list, card, monkeypatch, capsys) -> None:
    def refuse(source, *more):
        raise ValueError(f"{source}: its parameter sets cannot be rewritten")

    host = stream(make(mixed_list, "data.decoder=host"), 1)
    monkeypatch.setattr(source_module, "trim", refuse)
    loader = make(mixed_list, "data.decoder=dali")
    assert same(stream(loader, 1), host) and not loader.bad
    assert capsys.readouterr().err.count("cannot be rewritten; PyAV decodes it instead") >= 4


def test_a_refusal_is_known_after_a_resume(refusing_list, monkeypatch) -> None:
    lie(monkeypatch)
    loader = make(refusing_list, "data.decoder=dali", "data.batch=2")
    whole = stream(loader, 1)
    resumed = make(refusing_list, "data.decoder=dali", "data.batch=2")
    state = loader.state_dict()
    assert {row for row, kind, *_ in state["faults"] if kind == REFUSED} == {2, 5}
    resumed.load_state_dict(state)
    assert same(stream(resumed, 1), stream(loader, 1)) and resumed.decoder.slow_steps == 0 and len(whole) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_decoded_one_by_one_once(clips_folder, tmp_path, workers, monkeypatch) -> None:
    """Neither DALI nor PyAV decodes it, which its first picture did not tell."""
    path = clips_folder(tmp_path, 8)
    content = bytearray((tmp_path / "6.mp4").read_bytes())
    (tmp_path / "6.mp4").unlink()
    with Video(bytes(content)) as video:
        for start, end in video._ranges[1:]:
            content[start + 9 : end - 1] = b"\xff" * (end - start - 10)  # what the index reads of it is right
            content[end - 1] = 0
    (tmp_path / "6.mp4").write_bytes(content)
    loader = make(path, "data.decoder=dali", "data.max_bad=0.5", "data.batch=2", f"data.workers={workers}")
    batches = stream(loader, 5)
    assert loader.decoder.slow_steps == 1 and set(loader.bad) == {6}
    tried = []
    real = Source._load

    def load(self, row, *more, **named):
        tried.append(row)
        return real(self, row, *more, **named)

    monkeypatch.setattr(Source, "_load", load)
    again = make(path, "data.decoder=dali", "data.max_bad=0.5", "data.batch=2")
    assert same(stream(again, 5), batches), "what is remembered changes nothing of the stream"
    assert tried.count(6) <= 6, "for DALI, twice alone, for PyAV, for the reason, and once by a batch read ahead"


def test_a_batch_that_fails_as_a_whole_is_said_and_three_end_the_run(mixed_list, card, monkeypatch, capsys) -> None:
    """No sample of it does by itself: too little memory, for instance."""
    whole = stream(make(mixed_list, "data.decoder=dali"), 2)
    loader = make(mixed_list, "data.decoder=dali")
    real, failing = Readers.run, {1, 3, 4}
    calls = itertools.count()

    def run(self, *stream_):
        outputs = real(self, *stream_)
        if next(calls) in failing:
            raise RuntimeError("Error in operator,\nencountered:\n\nCUDA allocation failed\n")
        return outputs

    monkeypatch.setattr(Readers, "run", run)
    assert same(stream(loader, 2), whole) and loader.decoder.slow_steps == 3
    assert capsys.readouterr().err.count("and on none of its samples: CUDA allocation failed") == 3
    failing |= set(range(100))
    with pytest.raises(Unreadable, match=r"none of its samples: CUDA allocation failed \(three times in a row\)"):
        stream(loader, 2)
    assert loader.decoder.slow_steps == 6 and not loader.source.faults.state()


# --- what is remembered ---------------------------------------------------------------------------------------------


def test_a_fault_counts_from_the_next_batch_and_for_others_from_the_next_epoch() -> None:
    own, other = Faults(5, 10, rank=0), Faults(5, 10, rank=1)
    own.add(3, REFUSED, 24)
    assert [own.is_known(3, REFUSED, step) for step in (24, 25)] == [False, True]
    assert not own.is_known(3, UNREADABLE, 25) and not own.is_known(2, REFUSED, 25)
    other.merge(own.state())
    assert [other.is_known(3, REFUSED, step) for step in (25, 29, 30)] == [False, False, True]
    again = Faults(5, 10, rank=0)
    again.merge(other.state())
    assert [again.is_known(3, REFUSED, step) for step in (24, 25)] == [False, True], "from a checkpoint of all ranks"
    both = Faults(5, 10, rank=1)
    both.add(3, REFUSED, 21)
    both.merge(own.state())
    third = Faults(5, 10, rank=1)
    third.merge(both.state())
    assert third.is_known(3, REFUSED, 22), "a rank's own finding is kept beside another's of the same file"
    fewer_steps = Faults(5, 3, rank=0)
    fewer_steps.merge(own.state())
    assert fewer_steps.is_known(3, REFUSED, 9), "of a run on more processes"
    own.add(3, REFUSED, 99)
    assert own.state() == other.state() == [[3, REFUSED, 2, 4, 0]], "the first time counts"


def test_a_worker_sees_what_is_found_after_it_was_started() -> None:
    faults = Faults(4, 10, rank=0)
    worker = pickle.loads(pickle.dumps(faults))
    faults.add(1, UNREADABLE, 3)
    assert worker.is_known(1, UNREADABLE, 4) and len(pickle.dumps(faults)) < 300


# --- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_keeps_the_share_that_was_worked_out_when_it_began(
    mixed_list, card, tmp_path, monkeypatch, capsys
) -> None:
    """config.yaml holds the number, and a resumed run decodes by it on a machine with other cores."""
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{mixed_list.parent}/{number}.mp4 {number % 6}\n" for number in (0, 1, 2, 3, 8)))
    words = [f"data.train={listed}", f"run.folder={tmp_path}", "run.name=a", *SMALL, *STEADY, "data.batch=4"]
    assert train_command.main([*words, "optim.epochs=2"]) == 0
    said = capsys.readouterr().out
    share = loading.load(tmp_path / "a" / "config.yaml").data.pyav_share
    assert 0 < share < 1 and f"of which PyAV takes a share of {share:g}" in said
    monkeypatch.setattr(decoders_module, "_PYAV_PIXELS_PER_S", 1)
    assert train_command.main([*words, "optim.epochs=3"]) == 0
    said = capsys.readouterr().out
    assert (
        "resumed from" in said
        and f"of which PyAV takes a share of {share:g}" in said
        and "changed since: data" not in said
    )
    assert loading.load(tmp_path / "a" / "config.yaml").data.pyav_share == share
    assert train_command.main([*words, "run.name=b", "data.pyav_share=0.75"]) == 0
    assert loading.load(tmp_path / "b" / "config.yaml").data.pyav_share == 0.75


def test_threads_follow_the_engines_of_a_card() -> None:
    assert dali_threads("auto", Decoders(HOPPER, 0.5)) == 14 and dali_threads("3", Decoders(HOPPER, 0.5)) == 3
    assert 1 <= dali_threads("auto", Decoders(nvdec.CPU, 0.0)) <= 4
