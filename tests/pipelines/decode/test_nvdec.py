"""What a card's NVDEC can decode: by the table of its capabilities, by what the index knows of a video."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext

from pipelines.decode import first_frame, nvdec
from pipelines.decode.bitstream.parameter_sets import SequenceParameters
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.frame_table import COUNTED
from pipelines.decode.nvdec import HOPPER, Limits, chroma_and_depth, reason_refused
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.remux import replace_frame_size
from pipelines.decode.video_info import VideoInfo, read_video_info
from tests.helpers.videos import write_video

DECODABLE = VideoInfo("decodable.mp4", codec="h264", pix_fmt="yuv420p", coded_width=352, coded_height=256)


@pytest.mark.parametrize(
    ("changes", "reason"),
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
        ({"codec": "vp9", "coded_width": 340}, "vp9 whose sides are not multiples of 16"),
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
def test_reason_refused_by_a_hopper(changes: dict, reason: str) -> None:
    assert reason_refused(dataclasses.replace(DECODABLE, **changes), HOPPER) == reason


def test_reason_refused_without_capabilities_is_the_codec() -> None:
    assert reason_refused(DECODABLE, {}) == "h264"


def test_chroma_and_depth_of_pixel_formats() -> None:
    expected = {
        "yuv420p": ("4:2:0", 8),
        "nv12": ("4:2:0", 8),
        "yuv410p": ("4:1:0", 8),
        "yuv411p": ("4:1:1", 8),
        "yuv440p": ("4:4:0", 8),
        "p010le": ("4:2:0", 10),
        "rgb24": ("RGB", 8),
        "gray": ("4:0:0", 8),
    }
    assert {name: chroma_and_depth(name) for name in expected} == expected


def test_query_asks_a_card_for_every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = []

    def answer(caps):
        caps = caps._obj
        queries.append((caps.codec, caps.chroma, caps.depth_minus_8))
        if (caps.codec, caps.chroma, caps.depth_minus_8) in ((4, 1, 0), (11, 1, 2)):  # H.264, and AV1 of 10 bit
            caps.is_supported, caps.engines = 1, 5
            caps.min_width, caps.min_height, caps.max_width, caps.max_height = 48, 16, 4096, 4096
            caps.max_macroblocks = 65536
        return 0

    limits = Limits(48, 16, 4096, 4096, 65536, 5)
    capabilities = nvdec.query_all_formats(answer)
    assert capabilities == {("h264", "4:2:0", 8): limits, ("av1", "4:2:0", 10): limits}
    assert len(queries) == 6 * 4 * 3
    assert nvdec.usable_capabilities(capabilities) == {("h264", "4:2:0", 8): limits}
    assert nvdec.query_all_formats(lambda caps: 100) is None, "CUDA_ERROR_NO_DEVICE"
    with_one_error = nvdec.query_all_formats(lambda caps: answer(caps) if caps._obj.codec != 2 else 1)
    assert with_one_error == capabilities, "a query that the driver refuses must not spoil the others"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert nvdec.query_capabilities() is None


# --- what the index knows of a video ------------------------------------------------------------------------------


def test_index_keeps_what_decides_about_nvdec(tmp_path: Path) -> None:
    videos = {
        "hevc 4:2:0 10 bit": ("libx265", 160, 146, {"pix_fmt": "yuv420p10le"}),
        "h264 4:4:4 8 bit": ("libx264", 160, 146, {"pix_fmt": "yuv444p"}),
        "interlaced h264": ("libx264", 160, 148, {"options": {"x264-params": "interlaced=1"}}),
        "mjpeg": ("mjpeg", 160, 146, {"pix_fmt": "yuvj420p"}),
        "av1": ("libsvtav1", 160, 146, {}),
        "vp9 below 128x128": ("libvpx-vp9", 100, 134, {}),
        "": ("libx264", 160, 146, {}),
    }
    for number, (reason, (encoder, width, height, options)) in enumerate(videos.items()):
        path = write_video(tmp_path / f"{number}.mp4", encoder, width, height, num_frames=3, **options)
        info = read_video_info(str(path))
        assert not info.error and reason_refused(info, HOPPER) == reason
        assert (info.width, info.height) == (width, height)
        if encoder in ("libx264", "libx265"):
            assert (info.coded_width, info.coded_height) >= (160, 152) and info.profile
        else:
            assert (info.coded_width, info.coded_height) == (width, height)


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
def test_index_notes_packets_that_are_not_shown(tmp_path: Path, encoder: str, options: dict) -> None:
    """On a GPU DALI counts packets; a packet with an alternate reference holds two frames and shows one."""
    path = write_video(tmp_path / "a.mp4", encoder, 160, 128, num_frames=48, options=options)
    info = read_video_info(str(path))
    assert info.num_frames == 48
    assert info.irregularity == ("hidden frames" if "auto-alt-ref" in options else "")


@pytest.mark.parametrize(("codec", "encoder"), [("h264", "libx264"), ("hevc", "libx265")])
def test_frames_cropped_at_the_left_are_left_to_pyav(tmp_path: Path, codec: str, encoder: str) -> None:
    uncropped = write_video(tmp_path / "uncropped.mp4", encoder, 192, 160, num_frames=6, still=True)
    path = tmp_path / "cropped.mp4"
    with av.open(str(uncropped)) as source, av.open(str(path), "w") as target:
        stream_in = source.streams.video[0]
        stream_out = target.add_stream_from_template(stream_in, opaque=True)
        crop = BitStreamFilterContext(f"{codec}_metadata=crop_left=8:crop_top=4", stream_out, stream_out)
        for packet in source.demux(stream_in):
            if packet.size:
                for cropped in crop.filter(packet):
                    cropped.stream = stream_out
                    target.mux(cropped)
    path.write_bytes(replace_frame_size(path.read_bytes(), (184, 156)))
    info = read_video_info(str(path))
    assert (info.width, info.height, info.crop_offset) == (184, 156, (8, 4))
    assert reason_refused(info, HOPPER) == f"{codec} that is cropped at its top or left"
    expected, actual = (
        decode_views(str(file), np.array([[0, 3]]), np.array([box]), 64)
        for file, box in ((uncropped, (4, 8, 160, 192)), (path, (0, 0, 156, 184)))
    )
    assert np.abs(expected.astype(int) - actual).mean() < 1


def test_color_matrix_that_cannot_be_converted_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4", "libx264", 160, 128, num_frames=3, options={"x264-params": "colormatrix=ycgco"}
    )
    info = read_video_info(str(path))
    assert info.colorspace == "other" and reason_refused(info, HOPPER) == "h264 of an unusual color matrix"
    with pytest.raises(ValueError, match="a.mp4: its frames cannot be converted to RGB"):
        decode_views(str(path), np.array([[0]]), np.array([[0, 0, 128, 160]]), 32)


def test_parameter_set_of_another_size_makes_the_coded_size_unknown(tmp_path: Path, monkeypatch) -> None:
    path = write_video(tmp_path / "a.mp4", "libx264", 170, 146, num_frames=3)
    assert reason_refused(read_video_info(str(path)), HOPPER) == ""
    monkeypatch.setattr(first_frame, "read_sps", lambda *_: SequenceParameters(320, 240, 0, 0, 0, 0, False))
    assert reason_refused(read_video_info(str(path)), HOPPER) == "h264 of unknown coded size"


def test_index_notes_packets_without_a_picture(tmp_path: Path) -> None:
    for encoder in ("libx264", "libx265"):
        path = write_video(tmp_path / f"{encoder}.mp4", encoder, 160, 128, num_frames=20)
        content = bytearray(path.read_bytes())
        with VideoDemuxer(bytes(content)) as video:
            start, end = video.byte_ranges[5]
        content[start + 4 : end] = b"\x0c\xff" + b"\xff" * (end - start - 6)  # filler data of H.264
        if encoder == "libx265":
            content[start + 4 : start + 6] = b"\x4c\x01"  # filler data of HEVC
        path.write_bytes(content)
        info = read_video_info(str(path))
        assert not info.error and info.irregularity == "packets without a picture"
        assert "packets without a picture" in reason_refused(info, HOPPER)
