"""prove: odd containers, codecs without a header reader and any encoding give the frames of a whole decode."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.metadata import coverage
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.video_info import read_video_info
from pipelines.synthetic import render
from tests.helpers.mp4_boxes import build_mp4, encode_stream
from tests.helpers.streams import ALT_REF, FRAMES, mpeg2_field_pictures, packets_of, rewrite_packets, write_frames
from tests.helpers.whole_decode import check_against_whole_decode, decode_whole

X264 = {"x264-params": "bframes=2:keyint=12:scenecut=0"}
ONE_THREAD = "pools=none:frame-threads=1"  # of x265

# --- boxes of MP4 and encryption --------------------------------------------------------------------------------------

EDITS = {  # edits as of build_mp4(), and the number of frames where it is known
    "plain offset": ([(40, 1)], 40),
    "empty edit first": ([(10, -1), (40, 1)], 40),
    "begins between key frames": ([(30, 9)], None),
    "two edits": ([(6, 1), (10, 21)], None),
    "same edit twice": ([(8, 1), (8, 1)], None),
    "ends early": ([(17, 1)], None),
    "empty edit in the middle": ([(9, 1), (5, -1), (9, 20)], None),
}


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
@pytest.mark.parametrize("name", EDITS)
def test_frames_match_whole_decode_with_edit_list(tmp_path: Path, codec: str, name: str) -> None:
    edits, num_frames = EDITS[name]
    options, bframes = (X264, 2) if codec == "libx264" else ({}, 0)
    stream = encode_stream(FRAMES, codec, options=options, bframes=bframes)
    if codec != "libx264":  # without B-frames the first frame is at tick 0
        edits = [(length, max(first - 1, -1) if first > 0 else first) for length, first in edits]
    (tmp_path / "x.mp4").write_bytes(build_mp4(stream, edits=edits))
    info = check_against_whole_decode(tmp_path / "x.mp4")
    assert info.proof == "bitstream" if name == "plain offset" else info.proof in ("decoded", "sequential")
    assert num_frames is None or info.num_frames == num_frames


@pytest.mark.parametrize("second_options", [{"x264-params": "cabac=0:keyint=12:bframes=0"}, X264])
def test_frames_match_whole_decode_with_several_sample_descriptions(
    tmp_path: Path, second_options: dict[str, str]
) -> None:
    first = encode_stream(FRAMES[:20], options=X264, bframes=2)
    second = encode_stream(FRAMES[20:], options=second_options, bframes=2 if second_options is X264 else 0)
    samples = [*first.samples, *(replace(sample, description=2) for sample in second.samples)]
    (tmp_path / "x.mp4").write_bytes(build_mp4(replace(first, samples=samples), entries=[first.entry, second.entry]))
    assert check_against_whole_decode(tmp_path / "x.mp4").num_frames == 40


@pytest.mark.parametrize(
    "fragments",
    [
        [(0, range(12)), (12, range(12, 24)), (24, range(24, 40))],
        [(0, range(12)), (6, range(12, 24)), (24, range(24, 40))],
        [(0, range(12)), (0, range(12)), (24, range(24, 40))],
        [(24, range(24, 40)), (0, range(12)), (12, range(12, 24))],
        [(0, range(24)), (12, range(12, 40))],
    ],
)
def test_frames_match_whole_decode_with_fragments(tmp_path: Path, fragments: list[tuple[int, range]]) -> None:
    (tmp_path / "x.mp4").write_bytes(build_mp4(encode_stream(FRAMES, options=X264, bframes=2), fragments=fragments))
    info = check_against_whole_decode(tmp_path / "x.mp4")
    assert info.proof in ("decoded", "sequential")


def test_encrypted_mp4_is_refused(tmp_path: Path) -> None:
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": 32 * "7", "encryption_kid": 32 * "5"}
    plain = tmp_path / "plain.mp4"
    plain.write_bytes(build_mp4(encode_stream(FRAMES, options=X264, bframes=2)))
    path = tmp_path / "x.mp4"
    with av.open(str(plain)) as old, av.open(str(path), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    assert read_video_info(str(plain)).error == ""
    assert read_video_info(str(path)).error == "encrypted"
    with pytest.raises(ValueError, match=re.escape(f"{path}: encrypted")):
        VideoDemuxer(path)
    infos = [read_video_info(str(plain)), read_video_info(str(path))]
    assert "1 unusable" in coverage(infos)


def test_scrambled_transport_stream_is_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "x.ts", FRAMES, "libx264")
    assert check_against_whole_decode(tmp_path / "x.ts").proof == "bitstream"
    data = bytearray((tmp_path / "x.ts").read_bytes())
    for packet in range(0, len(data), 188):
        if (data[packet + 1] & 0x1F) << 8 | data[packet + 2] == 256 and packet > 188 * 10:
            data[packet + 3] |= 0x80  # transport_scrambling_control
    (tmp_path / "y.ts").write_bytes(data)
    assert read_video_info(str(tmp_path / "y.ts")).error == "encrypted"


# --- codecs whose packets are not read --------------------------------------------------------------------------------

INTER_CODECS = {  # container suffix and pixel format
    "cinepak": ("avi", "rgb24"),
    "msvideo1": ("avi", "rgb555le"),
    "mpeg2video": ("mkv", "yuv420p"),
    "msmpeg4": ("avi", "yuv420p"),
    "svq1": ("mov", "yuv410p"),
}


@pytest.mark.parametrize("codec", INTER_CODECS)
def test_packets_wrongly_flagged_as_key_frames_are_no_entry_points(tmp_path: Path, codec: str) -> None:
    frames = list(render(0, 0, 1, 16, 96, 64))
    suffix, pix_fmt = INTER_CODECS[codec]
    plain = write_frames(tmp_path / f"plain.{suffix}", frames, codec, pix_fmt, gop=8)

    def change(number: int, packet: av.Packet) -> av.Packet:
        packet.is_keyframe = True
        return packet

    path = rewrite_packets(plain, tmp_path / f"x.{suffix}", change)
    packets, _ = packets_of(path.read_bytes())
    info = check_against_whole_decode(path)
    assert info.num_frames == 16 and info.proof in ("decoded", "sequential")
    if all(packet.is_keyframe for packet in packets):
        assert len(info.keyframes) < 16, "an inter frame must not be an entry point"


CODEC_AND_SUFFIX = [
    "libx264 ts",
    "mpeg2video ts",
    "mpeg2video mkv",
    "mpeg4 avi",
    "mpeg4 mkv",
    "libx265 ts",
    "libvpx-vp9 webm",
    "libvpx webm",
]


@pytest.mark.parametrize("kind", CODEC_AND_SUFFIX)
@pytest.mark.parametrize("first", [1, 3])
def test_frames_match_whole_decode_without_key_frame_at_start(tmp_path: Path, kind: str, first: int) -> None:
    codec, suffix = kind.split()
    options = {"x265_params": "log-level=none:pools=none:bframes=2"} if codec == "libx265" else {}
    bframes = 0 if "vpx" in codec else 2
    plain = write_frames(tmp_path / f"plain.{suffix}", FRAMES, codec, bframes=bframes, **options)
    path = rewrite_packets(plain, tmp_path / f"x.{suffix}", lambda number, packet: packet if number >= first else None)
    assert check_against_whole_decode(path).proof in ("decoded", "sequential")


SUFFIX_OF_CODEC = {
    "rv20": "rm",
    "mpeg2video": "m2v",
    "mpeg1video": "mpg",
    "h263": "3gp",
    "libx264": "h264",
    "libx265": "hevc",
    "mpeg4": "m4v",
    "mjpeg": "mjpeg",
    "prores": "mov",
    "ffv1": "mkv",
    "huffyuv": "avi",
    "flv": "flv",
    "wmv2": "asf",
    "snow": "avi",
    "qtrle": "mov",
    "zmbv": "avi",
    "gif": "gif",
    "rawvideo": "avi",
}
PIX_FMTS = {
    "mjpeg": "yuvj420p",
    "prores": "yuv422p10le",
    "huffyuv": "yuv422p",
    "qtrle": "rgb24",
    "zmbv": "bgr0",
    "gif": "rgb8",
}


@pytest.mark.parametrize("codec", SUFFIX_OF_CODEC)
def test_frames_match_whole_decode_for_other_codecs(tmp_path: Path, codec: str) -> None:
    options = {"strict": "experimental"} if codec == "snow" else {}
    if codec == "libx265":
        options = {"x265_params": "log-level=none:pools=none:bframes=2"}
    frames = list(render(0, 0, 1, 30, *((176, 144) if codec == "h263" else (96, 64))))
    bframes = 2 if codec in ("mpeg2video", "mpeg1video", "libx264", "mpeg4") else 0
    path = tmp_path / f"x.{SUFFIX_OF_CODEC[codec]}"
    write_frames(path, frames, codec, PIX_FMTS.get(codec, "yuv420p"), bframes=bframes, **options)
    assert check_against_whole_decode(path).num_frames in (29, 30)  # an MPEG-1 program stream may lose a frame


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("suffix", ["ts", "mkv", "m2v", "avi"])
def test_frames_match_whole_decode_for_mpeg2_field_pictures(tmp_path: Path, suffix: str, joined: bool) -> None:
    fields = mpeg2_field_pictures([image[parity::2] for image in FRAMES[:12] for parity in (0, 1)])
    with av.open(str(write_frames(tmp_path / "plain.mkv", FRAMES[:2], "mpeg2video"))) as old:
        with av.open(str(tmp_path / f"x.{suffix}"), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
            fields_per_packet = 2 if joined else 1
            for number in range(0, len(fields), fields_per_packet):
                packet = av.Packet(b"".join(fields[number : number + fields_per_packet]))
                packet.stream, packet.time_base = stream, Fraction(1, 50)
                packet.pts = packet.dts = number
                packet.is_keyframe = number % 2 == 0
                new.mux(packet)
    info = check_against_whole_decode(tmp_path / f"x.{suffix}")
    assert info.num_frames == 12 and info.proof in ("decoded", "sequential") and info.interlaced


# --- frame sizes, and random encodings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 1), (3, 5), (8, 8), (17, 9), (33, 34), (66, 66), (66, 1), (175, 143)]
)
@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx", "mpeg2video"])
def test_frames_match_whole_decode_for_odd_sizes(tmp_path: Path, codec: str, size: tuple[int, int]) -> None:
    width, height = size
    frames = [np.ascontiguousarray(image[:height, :width]) for image in render(0, 0, 1, 14, 192, 160)]
    path = write_frames(tmp_path / ("x.mkv" if codec == "mpeg2video" else "x.webm"), frames, codec, gop=6)
    info = check_against_whole_decode(path)
    assert (info.width, info.height, info.num_frames) == (width, height, 14)
    boxes = np.array([[0, 0, height, width]], np.float32)
    views = decode_views(str(path), np.array([[0, 13]]), boxes, 32, table=info.table)
    with av.open(str(path)) as file:
        rgb = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    means = [rgb[number].mean() for number in (0, 13)]
    assert np.abs(views[0].mean(axis=(0, 2, 3)) - means).max() < 6


SUFFIXES_OF_CODEC = {
    "libx264": ("mp4", "mkv", "ts", "avi", "mov", "flv", "h264"),
    "libx265": ("mp4", "mkv", "ts", "hevc"),
    "libvpx-vp9": ("webm", "mp4", "mkv", "ivf"),
    "libvpx": ("webm", "mkv", "avi", "ivf"),
    "mpeg4": ("avi", "mp4", "mkv", "m4v"),
    "mpeg2video": ("ts", "mkv", "avi", "m2v"),
    "mjpeg": ("avi", "mov"),
    "wmv2": ("asf", "avi"),
    "msmpeg4": ("avi",),
    "ffv1": ("mkv", "avi"),
}


@settings(max_examples=60)
@given(st.data())
def test_frames_match_whole_decode_for_any_encoding(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    """Draw codec, container, length of the groups of pictures, number of B-frames, size and number of frames."""
    codec = data.draw(st.sampled_from(sorted(SUFFIXES_OF_CODEC)), label="codec")
    suffix = data.draw(st.sampled_from(SUFFIXES_OF_CODEC[codec]), label="container")
    gop = data.draw(st.integers(1, 20), label="gop")
    can_reorder = codec in ("libx264", "libx265", "mpeg4", "mpeg2video")
    bframes = data.draw(st.integers(0, 3), label="B-frames") if can_reorder else 0
    is_open = data.draw(st.booleans(), label="open groups")
    multiple = 1 if codec in ("libvpx-vp9", "libvpx", "mpeg2video") else 2
    min_side = 64 if codec == "libx265" else 16  # x265 writes out of bounds with smaller frames
    width, height = (
        multiple * data.draw(st.integers(min_side // multiple, 70 // multiple), label=name)
        for name in ("width", "height")
    )
    num_frames = data.draw(st.integers(1, 30), label="frames")
    parameters = f"keyint={gop}:bframes={bframes}:open-gop={int(is_open)}"
    options = {
        "libx264": {"x264_params": parameters},
        "libvpx": {"deadline": "realtime", "cpu_used": "8"},
        "libx265": {"preset": "ultrafast", "x265_params": f"{parameters}:log-level=none:{ONE_THREAD}"},
        "libvpx-vp9": ALT_REF | {"auto_alt_ref": str(int(is_open))},
    }.get(codec, {})
    frames = [np.ascontiguousarray(image[:height, :width]) for image in render(0, 0, 1, num_frames, 80, 80)]
    path = tmp_path_factory.mktemp("chain") / f"x.{suffix}"
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    write_frames(path, frames, codec, pix_fmt, gop=gop, bframes=bframes, **options)
    if read_video_info(str(path)).error:  # FFmpeg does not recognize a transport stream of a few packets
        with pytest.raises(av.error.FFmpegError):
            decode_whole(path)
        return
    check_against_whole_decode(path, draws=2)
