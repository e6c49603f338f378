"""Streams that were cut, joined or lost packets, that lean on what came before, and files made to do harm."""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines import index
from pipelines.decode.bitstream import parameter_sets
from pipelines.decode.container import stored_packets
from pipelines.decode.frame_table import COUNTED, count_decoded
from pipelines.decode.prove import open_video
from pipelines.decode.trim import trim
from pipelines.decode.video_info import read_row
from tests.helpers.mp4_boxes import encode, mp4
from tests.helpers.whole_decode import check, decode_whole
from tests.pipelines.decode.test_prove import FRAMES, _empty_vop, packets_of, rewrite, write

B_FRAMES = {"bframes": 2, "b_strategy": "0", "sc_threshold": "1000000000"}
X265 = "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:log-level=none:pools=none:frame-threads=1:"


def key_packets(path: Path) -> list[int]:
    return [number for number, packet in enumerate(packets_of(path.read_bytes())[0]) if packet.is_keyframe]


def with_content(packet: av.Packet, content: bytes) -> av.Packet:
    other = av.Packet(content)
    other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
    other.is_keyframe = packet.is_keyframe
    return other


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4", "avi"])
def test_b_frames_of_mpeg4_whose_first_reference_was_cut_off_give_no_frames(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"whole.{suffix}", FRAMES, "mpeg4", **B_FRAMES)
    second = key_packets(whole)[1]
    cut = rewrite(whole, tmp_path / f"cut.{suffix}", lambda number, packet: packet if number >= second else None)
    row = check(cut)
    assert row.num_frames < len(packets_of(cut.read_bytes())[0]) and "second picture" in row.irregularity


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_a_vop_that_is_not_coded_is_no_frame_however_long_its_packet(tmp_path: Path, suffix: str) -> None:
    plain = write(tmp_path / f"plain.{suffix}", FRAMES, "mpeg4")
    stream = packets_of(plain.read_bytes())[1]

    def change(number: int, packet: av.Packet) -> av.Packet:
        return packet if number != 7 else with_content(packet, _empty_vop(bytes(packet), stream) + bytes(24))

    assert check(rewrite(plain, tmp_path / f"padded.{suffix}", change)).num_frames == 39


@pytest.mark.parametrize("suffix", ["h264", "mkv", "mp4"])
def test_parameter_sets_that_come_back(tmp_path: Path, suffix: str) -> None:
    """Sets A, B for one group, and A again, in its first picture alone: later groups need what that one says."""
    one = {"x264-params": "bframes=0:keyint=8:min-keyint=8:scenecut=0:qp=20"}
    other = {"x264-params": "bframes=0:keyint=8:min-keyint=8:scenecut=0:qp=40:cabac=0"}
    path = tmp_path / f"x.{suffix}"
    if suffix == "mp4":
        first, second, third = (encode(FRAMES[at], options=o) for at, o in (
            (slice(16), one), (slice(16, 24), other), (slice(24, 40), one)))  # fmt: skip
        samples = [*first.samples, *(replace(sample, description=2) for sample in second.samples), *third.samples]
        path.write_bytes(mp4(replace(first, samples=samples), entries=[first.entry, second.entry]))
    else:
        raw = tmp_path / "x.h264"
        content = b""
        for number, (at, options) in enumerate([(slice(16), one), (slice(16, 24), other), (slice(24, 40), one)]):
            part = write(tmp_path / f"{number}.h264", FRAMES[at], "libx264", **options)
            packets = [bytes(packet) for packet in packets_of(part.read_bytes())[0]]
            content += b"".join([packets[0], *map(without_parameter_sets, packets[1:])])
        raw.write_bytes(content)
        if suffix == "mkv":
            spaced(raw, path)
    row = check(path, draws=24)
    assert row.num_frames == 40 and row.irregularity == COUNTED


def without_parameter_sets(packet: bytes) -> bytes:
    units = parameter_sets.nal_units(packet, 0)
    return b"".join(b"\0\0\0\1" + unit for unit in units if unit and unit[0] & 31 not in (7, 8))


def spaced(source: Path, target: Path) -> None:
    """A raw stream in a container, a frame a tick."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            new.mux(packet)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_open_groups_of_hevc_that_were_joined(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"whole.{suffix}", FRAMES, "libx265", x265_params=X265 + "open-gop=1")
    keys = key_packets(whole)
    packets = packets_of(whole.read_bytes())[0]
    gap = packets[keys[2]].dts - packets[keys[1]].dts

    def change(number: int, packet: av.Packet) -> av.Packet | None:
        if keys[1] <= number < keys[2]:
            return None
        if number >= keys[2]:
            packet.pts, packet.dts = packet.pts - gap, packet.dts - gap
        return packet

    assert check(rewrite(whole, tmp_path / f"joined.{suffix}", change)).proof != "bitstream"


MISSING = ["libx264 mp4", "libx264 ts", "libx265 mp4", "libsvtav1 mp4", "libsvtav1 webm"]


@pytest.mark.parametrize("lost", [1, 4, 13])
@pytest.mark.parametrize("kind", MISSING)
def test_a_picture_that_others_refer_to_is_missing(tmp_path: Path, kind: str, lost: int) -> None:
    codec, suffix = kind.split()
    options = {
        "libx264": {"x264_params": "bframes=2:keyint=12:scenecut=0"},
        "libx265": {"x265_params": X265 + "open-gop=0"},
        "libsvtav1": {"preset": "10", "svtav1_params": "lp=1:keyint=12"},
    }[codec]
    whole = write(tmp_path / f"whole.{suffix}", FRAMES, codec, **options)
    with open_video(str(whole)) as video:
        lost += int(np.flatnonzero(video.frame_table.is_reference[lost:])[0])  # any other may be left out
    assert check(whole).proof == "bitstream"
    row = check(rewrite(whole, tmp_path / f"lost.{suffix}", lambda number, p: None if number == lost else p))
    assert row.proof != "bitstream"


def test_a_damaged_picture_of_a_file_in_doubt_is_that_of_the_whole_decode(tmp_path: Path) -> None:
    """What FFmpeg makes up for the end of the last picture depends on those that are left out when it is trimmed."""
    path = write(tmp_path / "x.h264", FRAMES, "libx264", x264_params="bframes=3:keyint=20:qp=8:scenecut=0")
    content = path.read_bytes()
    last_unit = content.rindex(b"\0\0\1")
    path.write_bytes(content[: (last_unit + len(content)) // 2])
    row = check(path, draws=12)
    last = row.num_frames - 1
    with open_video(str(path), table=row.table) as video:
        assert count_decoded(video.frame_table, [last]) == last - row.keyframes[-1] + 1


def test_jpeg_images_of_which_one_brings_the_others_a_second_table(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.avi", FRAMES, "mjpeg", "yuvj420p", qmin="9", qmax="9")

    def change(number: int, packet: av.Packet) -> av.Packet:
        image = bytearray(bytes(packet))
        tables, frame = image.index(b"\xff\xdb"), image.index(b"\xff\xc0")
        image[frame + 15] = image[frame + 18] = 1  # chroma is quantized by table 1
        if number == 0:
            length = int.from_bytes(image[tables + 2 : tables + 4], "big")
            second = bytes([1]) + bytes(max(1, step // 4) for step in image[tables + 5 : tables + 69])
            image[tables + 2 : tables + 4] = struct.pack(">H", length + 65)
            image[tables + 2 + length : tables + 2 + length] = second
        return with_content(packet, bytes(image))

    assert check(rewrite(plain, tmp_path / "x.avi", change)).proof == "sequential"


def test_a_coder_that_only_the_container_names(tmp_path: Path) -> None:
    """FFmpeg takes an AVI of the name XVID for XviD's, which rounded otherwise; the trimmed file is an MP4."""
    plain = write(tmp_path / "plain.avi", FRAMES, "mpeg4", flags="+bitexact")
    content = plain.read_bytes().replace(b"FMP4", b"XVID")
    assert b"Lavc" not in content.replace(b"Lavf", b"")
    (tmp_path / "x.avi").write_bytes(content)
    row = check(tmp_path / "x.avi")
    assert row.proof == "decoded"
    data, positions = trim(str(tmp_path / "x.avi"), [25, 3], table=row.table)
    assert [decode_whole(data)[at] for at in positions] == [decode_whole(tmp_path / "x.avi")[at] for at in (25, 3)]


def test_a_file_without_a_table_is_proven_as_the_index_does(tmp_path: Path) -> None:
    """The AVI says 96x64; each packet holds an image of half the height, and FFmpeg makes one frame of two."""
    half = [np.ascontiguousarray(picture[::2]) for picture in FRAMES]
    path = write(tmp_path / "x.avi", half, "mjpeg", "yuvj420p")
    content = bytearray(path.read_bytes())
    header = content.index(b"strf") + 8
    content[header + 8 : header + 12] = struct.pack("<I", 64)
    path.write_bytes(content)
    whole, row = decode_whole(path), read_row(str(path))
    assert row.num_frames == len(whole) == 20
    with open_video(str(path)) as video:
        assert (video.frame_table.num_frames, video.frame_table.proof) == (20, row.proof)
    data, positions = trim(str(path), [3, 7, 11])
    assert [decode_whole(data)[at] for at in positions] == [whole[at] for at in (3, 7, 11)]


def test_every_picture_of_a_codec_without_others_stays_a_place_to_begin(tmp_path: Path) -> None:
    frames = [FRAMES[number % 40] for number in range(340)]
    row = check(write(tmp_path / "x.mov", frames, "prores_ks", "yuv422p10le", profile="0"))
    assert row.proof == "decoded" and len(row.keyframes) == 340


# --- files that are made to do harm -------------------------------------------------------------------------------


def test_proving_has_more_time_than_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.mkv", FRAMES, "mpeg2video")
    clock = iter(range(0, 100_000, 1))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * 0.05)  # a twentieth of a second each time
    monkeypatch.setattr(index, "SECONDS", 2)
    assert read_row(str(path)).error == ""
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * 5.0)
    assert "not read within" in read_row(str(path)).error


@pytest.mark.parametrize("content", [b"\0\0\1\xb5" + bytes(40), b"\x7f"])
def test_mpeg4_without_a_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    plain = write(tmp_path / "plain.avi", FRAMES, "mpeg4")
    empty = rewrite(plain, tmp_path / "x.avi", lambda _, packet: with_content(packet, content))
    assert read_row(str(empty)).error == "none of its 40 packets can be decoded"


def test_streams_that_turn_up_midway_end_a_file_and_no_more(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ts", FRAMES, "mpeg2video")
    packets, stream = packets_of(path.read_bytes())

    class Container:
        """PyAV looks past its list of streams, after the last packet."""

        def __init__(self, packets: list[av.Packet]):
            self.packets = packets

        def demux(self, stream: av.VideoStream):
            yield from self.packets
            raise IndexError("list index out of range")

    assert list(stored_packets(Container(packets), stream, "x.ts")) == packets  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x.ts: unreadable: list index out of range"):
        list(stored_packets(Container([]), stream, "x.ts"))  # type: ignore[arg-type]


def test_a_second_movie_box_and_boxes_in_boxes_are_passed_over(tmp_path: Path) -> None:
    nested = b""
    for _ in range(3000):
        nested = struct.pack(">I4s", 8 + len(nested), b"edts") + nested
    track = struct.pack(">I4s", 8 + len(nested), b"trak") + nested
    (tmp_path / "x.mp4").write_bytes(mp4(encode(FRAMES)) + struct.pack(">I4s", 8 + len(track), b"moov") + track)
    assert check(tmp_path / "x.mp4").proof == "bitstream"


def test_numbers_of_parameter_sets_and_headers_do_not_cost_more_than_their_bytes(tmp_path: Path) -> None:
    def golomb(number: int) -> str:
        return "0" * ((number + 1).bit_length() - 1) + f"{number + 1:b}"

    bits = "1" + golomb(0) + golomb(1) + "0" + golomb(0) * 2 + golomb(900_000)  # frame_num, POC type 1, its cycle
    bits = f"{7:08b}{66:08b}{0:016b}" + bits + "1" * 900_000
    unit = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big")
    start = time.process_time()
    assert parameter_sets.parse_sps("h264", unit) is None
    plain = write(tmp_path / "plain.avi", FRAMES[:2], "mpeg4")
    first = bytes(packets_of(plain.read_bytes())[0][0])
    with av.open(str(plain)) as old, av.open(str(tmp_path / "x.avi"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number in range(8000):
            packet = av.Packet(b"\0\0\1\xb5" + b"x" * 1000 if number % 7999 else first)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), number, number
            new.mux(packet)
    read_row(str(tmp_path / "x.avi"))
    assert time.process_time() - start < 8
