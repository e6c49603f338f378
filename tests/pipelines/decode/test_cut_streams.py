"""Streams that were cut or joined, that lost packets or depend on earlier ones, and files made to do harm."""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.decode import video_info
from pipelines.decode.bitstream import parameter_sets
from pipelines.decode.container import read_packets
from pipelines.decode.frame_table import COUNTED, count_decoded
from pipelines.decode.prove import open_video
from pipelines.decode.trim import trim
from pipelines.decode.video_info import read_video_info
from tests.helpers.mp4_boxes import build_mp4, encode_stream
from tests.helpers.streams import FRAMES, empty_vop, packets_of, rewrite_packets, with_content, write_frames
from tests.helpers.whole_decode import check_against_whole_decode, decode_whole

B_FRAMES = {"bframes": 2, "b_strategy": "0", "sc_threshold": "1000000000"}
X265 = "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:log-level=none:pools=none:frame-threads=1:"


def key_packets(path: Path) -> list[int]:
    return [number for number, packet in enumerate(packets_of(path.read_bytes())[0]) if packet.is_keyframe]


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4", "avi"])
def test_mpeg4_b_frames_before_second_reference_give_no_frames(tmp_path: Path, suffix: str) -> None:
    whole = write_frames(tmp_path / f"whole.{suffix}", FRAMES, "mpeg4", **B_FRAMES)
    second = key_packets(whole)[1]
    cut = rewrite_packets(
        whole, tmp_path / f"cut.{suffix}", lambda number, packet: packet if number >= second else None
    )
    info = check_against_whole_decode(cut)
    assert info.num_frames < len(packets_of(cut.read_bytes())[0]) and "second picture" in info.irregularity


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_vop_that_is_not_coded_gives_no_frame_in_padded_packet(tmp_path: Path, suffix: str) -> None:
    plain = write_frames(tmp_path / f"plain.{suffix}", FRAMES, "mpeg4")
    stream = packets_of(plain.read_bytes())[1]

    def change(number: int, packet: av.Packet) -> av.Packet:
        return packet if number != 7 else with_content(packet, empty_vop(bytes(packet), stream) + bytes(24))

    assert check_against_whole_decode(rewrite_packets(plain, tmp_path / f"padded.{suffix}", change)).num_frames == 39


@pytest.mark.parametrize("suffix", ["h264", "mkv", "mp4"])
def test_parameter_sets_that_return_to_earlier_values_are_counted(tmp_path: Path, suffix: str) -> None:
    """Sets A, then B, then A again: the first packet of each part has the sets, and later groups depend on it."""
    set_a = {"x264-params": "bframes=0:keyint=8:min-keyint=8:scenecut=0:qp=20"}
    set_b = {"x264-params": "bframes=0:keyint=8:min-keyint=8:scenecut=0:qp=40:cabac=0"}
    parts = [(FRAMES[:16], set_a), (FRAMES[16:24], set_b), (FRAMES[24:40], set_a)]
    path = tmp_path / f"x.{suffix}"
    if suffix == "mp4":
        first, second, third = (encode_stream(frames, options=options) for frames, options in parts)
        samples = [*first.samples, *(replace(sample, description=2) for sample in second.samples), *third.samples]
        path.write_bytes(build_mp4(replace(first, samples=samples), entries=[first.entry, second.entry]))
    else:
        raw = tmp_path / "x.h264"
        content = b""
        for number, (frames, options) in enumerate(parts):
            part = write_frames(tmp_path / f"{number}.h264", frames, "libx264", **options)
            packets = [bytes(packet) for packet in packets_of(part.read_bytes())[0]]
            content += b"".join([packets[0], *map(without_parameter_sets, packets[1:])])
        raw.write_bytes(content)
        if suffix == "mkv":
            remux_with_regular_times(raw, path)
    info = check_against_whole_decode(path, draws=24)
    assert info.num_frames == 40 and info.irregularity == COUNTED


def without_parameter_sets(packet: bytes) -> bytes:
    units = parameter_sets.nal_units(packet, 0)
    return b"".join(b"\0\0\0\1" + unit for unit in units if unit and unit[0] & 31 not in (7, 8))


def remux_with_regular_times(source: Path, target: Path) -> None:
    """Write a raw stream into a container, one frame per tick."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            new.mux(packet)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_joined_open_groups_of_hevc_are_not_proven_by_bitstream(tmp_path: Path, suffix: str) -> None:
    whole = write_frames(tmp_path / f"whole.{suffix}", FRAMES, "libx265", x265_params=X265 + "open-gop=1")
    keys = key_packets(whole)
    packets = packets_of(whole.read_bytes())[0]
    gap = packets[keys[2]].dts - packets[keys[1]].dts

    def change(number: int, packet: av.Packet) -> av.Packet | None:
        if keys[1] <= number < keys[2]:
            return None
        if number >= keys[2]:
            packet.pts, packet.dts = packet.pts - gap, packet.dts - gap
        return packet

    assert (
        check_against_whole_decode(rewrite_packets(whole, tmp_path / f"joined.{suffix}", change)).proof != "bitstream"
    )


CODEC_AND_SUFFIX = ["libx264 mp4", "libx264 ts", "libx265 mp4", "libsvtav1 mp4", "libsvtav1 webm"]


@pytest.mark.parametrize("lost", [1, 4, 13])
@pytest.mark.parametrize("kind", CODEC_AND_SUFFIX)
def test_missing_reference_picture_is_not_proven_by_bitstream(tmp_path: Path, kind: str, lost: int) -> None:
    codec, suffix = kind.split()
    options = {
        "libx264": {"x264_params": "bframes=2:keyint=12:scenecut=0"},
        "libx265": {"x265_params": X265 + "open-gop=0"},
        "libsvtav1": {"preset": "10", "svtav1_params": "lp=1:keyint=12"},
    }[codec]
    whole = write_frames(tmp_path / f"whole.{suffix}", FRAMES, codec, **options)
    with open_video(str(whole)) as video:
        lost += int(np.flatnonzero(video.frame_table.is_reference[lost:])[0])  # losing another picture is harmless
    assert check_against_whole_decode(whole).proof == "bitstream"
    info = check_against_whole_decode(
        rewrite_packets(whole, tmp_path / f"lost.{suffix}", lambda number, packet: None if number == lost else packet)
    )
    assert info.proof != "bitstream"


def test_damaged_last_picture_is_decoded_from_key_frame(tmp_path: Path) -> None:
    """FFmpeg conceals the missing end of a picture with the help of pictures that trimming would leave out."""
    path = write_frames(tmp_path / "x.h264", FRAMES, "libx264", x264_params="bframes=3:keyint=20:qp=8:scenecut=0")
    content = path.read_bytes()
    last_unit = content.rindex(b"\0\0\1")
    path.write_bytes(content[: (last_unit + len(content)) // 2])
    info = check_against_whole_decode(path, draws=12)
    last = info.num_frames - 1
    with open_video(str(path), table=info.table) as video:
        assert count_decoded(video.frame_table, [last]) == last - info.keyframes[-1] + 1


def test_mjpeg_with_second_table_only_in_first_packet_is_sequential(tmp_path: Path) -> None:
    plain = write_frames(tmp_path / "plain.avi", FRAMES, "mjpeg", "yuvj420p", qmin="9", qmax="9")

    def change(number: int, packet: av.Packet) -> av.Packet:
        image = bytearray(bytes(packet))
        tables, frame = image.index(b"\xff\xdb"), image.index(b"\xff\xc0")
        image[frame + 15] = image[frame + 18] = 1  # chroma is quantized by table 1
        if number == 0:
            length = int.from_bytes(image[tables + 2 : tables + 4], "big")
            second = bytes([1]) + bytes(max(1, divisor // 4) for divisor in image[tables + 5 : tables + 69])
            image[tables + 2 : tables + 4] = struct.pack(">H", length + 65)
            image[tables + 2 + length : tables + 2 + length] = second
        return with_content(packet, bytes(image))

    assert check_against_whole_decode(rewrite_packets(plain, tmp_path / "x.avi", change)).proof == "sequential"


def test_mpeg4_encoder_named_only_by_codec_tag_is_decoded_whole(tmp_path: Path) -> None:
    """FFmpeg imitates XviD's rounding for an AVI with the codec tag XVID, which the trimmed MP4 does not have."""
    plain = write_frames(tmp_path / "plain.avi", FRAMES, "mpeg4", flags="+bitexact")
    content = plain.read_bytes().replace(b"FMP4", b"XVID")
    assert b"Lavc" not in content.replace(b"Lavf", b"")
    (tmp_path / "x.avi").write_bytes(content)
    info = check_against_whole_decode(tmp_path / "x.avi")
    assert info.proof == "decoded"
    data, positions = trim(str(tmp_path / "x.avi"), [25, 3], table=info.table)
    assert [decode_whole(data)[position] for position in positions] == [
        decode_whole(tmp_path / "x.avi")[frame] for frame in (25, 3)
    ]


def test_open_video_without_table_proves_as_index_does(tmp_path: Path) -> None:
    """The AVI says 96x64; each packet holds an image of half the height, and FFmpeg makes one frame of two."""
    half_frames = [np.ascontiguousarray(image[::2]) for image in FRAMES]
    path = write_frames(tmp_path / "x.avi", half_frames, "mjpeg", "yuvj420p")
    content = bytearray(path.read_bytes())
    header = content.index(b"strf") + 8
    content[header + 8 : header + 12] = struct.pack("<I", 64)
    path.write_bytes(content)
    whole, info = decode_whole(path), read_video_info(str(path))
    assert info.num_frames == len(whole) == 20
    with open_video(str(path)) as video:
        assert (video.frame_table.num_frames, video.frame_table.proof) == (20, info.proof)
    data, positions = trim(str(path), [3, 7, 11])
    assert [decode_whole(data)[position] for position in positions] == [whole[frame] for frame in (3, 7, 11)]


def test_all_pictures_of_intra_codec_are_entry_points(tmp_path: Path) -> None:
    frames = [FRAMES[number % 40] for number in range(340)]
    info = check_against_whole_decode(write_frames(tmp_path / "x.mov", frames, "prores_ks", "yuv422p10le", profile="0"))
    assert info.proof == "decoded" and len(info.keyframes) == 340


# --- files made to do harm ----------------------------------------------------------------------------------------


def test_proving_extends_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_frames(tmp_path / "x.mkv", FRAMES, "mpeg2video")
    clock = iter(range(0, 100_000, 1))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * 0.05)  # a twentieth of a second per call
    monkeypatch.setattr(video_info, "INDEX_TIMEOUT", 2)
    assert read_video_info(str(path)).error == ""
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * 5.0)
    assert "not read within" in read_video_info(str(path)).error


@pytest.mark.parametrize("content", [b"\0\0\1\xb5" + bytes(40), b"\x7f"])
def test_mpeg4_without_pictures_is_refused(tmp_path: Path, content: bytes) -> None:
    plain = write_frames(tmp_path / "plain.avi", FRAMES, "mpeg4")
    empty = rewrite_packets(plain, tmp_path / "x.avi", lambda _, packet: with_content(packet, content))
    assert read_video_info(str(empty)).error == "none of its 40 packets can be decoded"


def test_read_packets_stops_at_stream_that_appears_midway(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "x.ts", FRAMES, "mpeg2video")
    packets, stream = packets_of(path.read_bytes())

    class Container:
        """A container of PyAV, which looks past its list of streams after the last packet."""

        def __init__(self, packets: list[av.Packet]):
            self.packets = packets

        def demux(self, stream: av.VideoStream):
            yield from self.packets
            raise IndexError("list index out of range")

    assert list(read_packets(Container(packets), stream, "x.ts")) == packets  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x.ts: unreadable: list index out of range"):
        list(read_packets(Container([]), stream, "x.ts"))  # type: ignore[arg-type]


def test_inspect_container_ignores_second_moov_and_deep_nesting(tmp_path: Path) -> None:
    nested = b""
    for _ in range(3000):
        nested = struct.pack(">I4s", 8 + len(nested), b"edts") + nested
    track = struct.pack(">I4s", 8 + len(nested), b"trak") + nested
    (tmp_path / "x.mp4").write_bytes(
        build_mp4(encode_stream(FRAMES)) + struct.pack(">I4s", 8 + len(track), b"moov") + track
    )
    assert check_against_whole_decode(tmp_path / "x.mp4").proof == "bitstream"


def test_huge_counts_in_headers_are_refused_quickly(tmp_path: Path) -> None:
    def golomb(number: int) -> str:
        return "0" * ((number + 1).bit_length() - 1) + f"{number + 1:b}"

    # frame_num bits, POC type 1, and the length of its cycle, which is at most 255 in a valid stream
    bits = "1" + golomb(0) + golomb(1) + "0" + golomb(0) * 2 + golomb(900_000)
    bits = f"{7:08b}{66:08b}{0:016b}" + bits + "1" * 900_000
    unit = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big")
    start = time.process_time()
    assert parameter_sets.parse_sps("h264", unit) is None
    plain = write_frames(tmp_path / "plain.avi", FRAMES[:2], "mpeg4")
    first = bytes(packets_of(plain.read_bytes())[0][0])
    with av.open(str(plain)) as old, av.open(str(tmp_path / "x.avi"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number in range(8000):
            packet = av.Packet(b"\0\0\1\xb5" + b"x" * 1000 if number % 7999 else first)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), number, number
            new.mux(packet)
    read_video_info(str(tmp_path / "x.avi"))
    assert time.process_time() - start < 8
