"""prove: streams whose packets and frames do not correspond one to one give the frames of a whole decode."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.decode import demuxer
from pipelines.decode.frame_table import COUNTED, NOT_REMUXABLE, FrameTable
from pipelines.decode.predict import Prediction
from pipelines.decode.prove import open_video
from pipelines.decode.trim import trim
from pipelines.decode.video_info import read_video_info
from pipelines.synthetic import render
from tests.helpers.mp4_boxes import Sample, build_mp4, encode_stream
from tests.helpers.streams import (
    ALT_REF,
    FRAMES,
    PacketChange,
    empty_vop,
    pack_b_frames,
    packets_of,
    rewrite_packets,
    with_content,
    write_frames,
)
from tests.helpers.whole_decode import check_against_whole_decode, decode_whole

X264 = {"x264-params": "bframes=2:keyint=12:scenecut=0"}

# --- MPEG-4 part 2 with packed B-frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("placeholder", ["byte", "picture"])
@pytest.mark.parametrize("bframes", [1, 2, 3])
def test_frame_table_of_packed_b_frames_gives_frames_of_unpacked_video(
    tmp_path: Path, bframes: int, placeholder: str
) -> None:
    plain = write_frames(
        tmp_path / "plain.avi", FRAMES, "mpeg4", bframes=bframes, b_strategy="0", sc_threshold="1000000000"
    )
    packed = pack_b_frames(plain, tmp_path / "packed.avi", placeholder)
    with av.open(str(packed)) as file:
        sizes = [packet.size for packet in file.demux(video=0)]
    assert min(size for size in sizes if size) < 20
    info = check_against_whole_decode(packed)
    assert (info.proof, info.irregularity, info.num_frames) == ("decoded", "packed B-frames", 40)
    assert len(info.keyframes) == 4
    assert decode_whole(packed) == decode_whole(plain)


def test_frame_table_skips_vop_that_is_not_coded(tmp_path: Path) -> None:
    plain = write_frames(tmp_path / "plain.avi", FRAMES, "mpeg4")
    _, stream = packets_of(plain.read_bytes())

    def change(number: int, packet: av.Packet) -> av.Packet:
        return packet if number != 7 else with_content(packet, empty_vop(bytes(packet), stream))

    info = check_against_whole_decode(rewrite_packets(plain, tmp_path / "x.avi", change))
    assert (info.num_frames, info.irregularity) == (39, "packed B-frames")


# --- hidden frames ----------------------------------------------------------------------------------------------------

LARGE_FRAMES = list(render(0, 0, 1, 48, 160, 128))


@pytest.mark.parametrize("suffix", ["webm", "mkv", "ivf", "avi"])
def test_frame_table_skips_hidden_frames_of_vp8(tmp_path: Path, suffix: str) -> None:
    """libvpx makes hidden frames only in two passes, so the test clears show_frame of some frames (RFC 6386, 9.1)."""
    hidden_frames = {5, 11, 14, 30}

    def change(number: int, packet: av.Packet) -> av.Packet:
        if number not in hidden_frames:
            return packet
        data = bytearray(bytes(packet))
        data[0] &= ~0x10
        return with_content(packet, bytes(data))

    plain = write_frames(tmp_path / f"plain.{suffix}", FRAMES, "libvpx", deadline="realtime", cpu_used="8")
    info = check_against_whole_decode(rewrite_packets(plain, tmp_path / f"x.{suffix}", change))
    assert (info.num_frames, info.irregularity) == (36, "hidden frames") and info.proof != "sequential"
    assert len(info.keyframes) >= 3


@pytest.mark.parametrize("suffix", ["webm", "mp4"])
def test_frame_table_skips_hidden_frames_in_superframes_of_vp9(tmp_path: Path, suffix: str) -> None:
    info = check_against_whole_decode(
        write_frames(tmp_path / f"x.{suffix}", LARGE_FRAMES, "libvpx-vp9", gop=24, **ALT_REF)
    )
    assert (info.num_frames, info.irregularity, info.proof) == (48, "hidden frames", "bitstream")


def test_frame_table_skips_hidden_frames_in_separate_packets_of_vp9(tmp_path: Path) -> None:
    """The specification requires a superframe instead, but such files exist."""
    path = write_frames(tmp_path / "x.webm", LARGE_FRAMES, "libvpx-vp9", gop=24, **ALT_REF)
    packets, _ = packets_of(path.read_bytes())
    frames = []
    for packet in packets:
        data = bytes(packet)
        if data[-1] >> 5 != 0b110:
            frames.append(data)
            continue
        count, size_bytes = (data[-1] & 7) + 1, (data[-1] >> 3 & 3) + 1
        index, start = len(data) - 1 - count * size_bytes, 0
        for number in range(count):
            offset = index + number * size_bytes
            size = int.from_bytes(data[offset : offset + size_bytes], "little")
            frames.append(data[start : start + size])
            start += size
    assert len(frames) > len(packets)
    stream = encode_stream(LARGE_FRAMES[:2], "libvpx-vp9")
    stream = replace(stream, samples=[Sample(data, number == 0) for number, data in enumerate(frames)])
    (tmp_path / "x.mp4").write_bytes(build_mp4(stream))
    info = check_against_whole_decode(tmp_path / "x.mp4")
    assert (info.num_frames, info.irregularity) == (48, "hidden frames") and info.proof != "sequential"


def test_frame_table_of_av1_with_hidden_frames_is_proven_by_bitstream(tmp_path: Path) -> None:
    info = check_against_whole_decode(write_frames(tmp_path / "x.mp4", FRAMES, "libsvtav1", preset="10"))
    assert (info.num_frames, info.proof) == (40, "bitstream")


def test_index_refuses_av1_with_changing_size_but_reads_superres(tmp_path: Path) -> None:
    resized = write_frames(tmp_path / "x.mp4", FRAMES, "libsvtav1", preset="10", **{"svtav1-params": "resize-mode=2"})
    assert re.fullmatch(r"the frame size changes from \d+x\d+ to \d+x\d+ midway", read_video_info(str(resized)).error)
    info = check_against_whole_decode(
        write_frames(tmp_path / "y.mkv", FRAMES, "libsvtav1", preset="10", **{"svtav1-params": "superres-mode=2"})
    )
    assert info.proof == "bitstream"


# --- state that a decoder keeps between packets -----------------------------------------------------------------------


def replace_bytes(old: bytes, new: bytes) -> PacketChange:
    """Return a change for rewrite_packets() that replaces bytes in every packet."""
    return lambda number, packet: with_content(packet, bytes(packet).replace(old, new))


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_stream_of_encoder_with_known_bugs_is_proven_by_decoding(tmp_path: Path, suffix: str) -> None:
    """Only the first packet states the build, so a decoder that begins later does not know it."""
    plain = write_frames(
        tmp_path / f"plain.{suffix}", FRAMES, "libx264", "yuv444p", gop=8, x264_params="keyint=8:bframes=2:qp=4"
    )
    assert check_against_whole_decode(plain).proof == "bitstream"
    build = re.search(rb"x264 - core (\d+)", plain.read_bytes())
    path = rewrite_packets(plain, tmp_path / f"x.{suffix}", replace_bytes(build[0], b"x264 - core 148"))
    assert decode_whole(path) != decode_whole(plain)
    assert check_against_whole_decode(path).proof in ("decoded", "sequential")


def test_mpeg4_with_user_data_only_in_first_packet_is_proven_by_decoding(tmp_path: Path) -> None:
    plain = write_frames(tmp_path / "plain.mp4", FRAMES, "mpeg4")

    def change(number: int, packet: av.Packet) -> av.Packet:
        if number:
            return packet
        return with_content(packet, bytes(packet).replace(b"\0\0\1\xb6", b"\0\0\1\xb2DivX412\0\0\1\xb6"))

    path = rewrite_packets(plain, tmp_path / "x.mp4", change)
    assert check_against_whole_decode(plain).proof == "bitstream"
    assert check_against_whole_decode(path).proof in ("decoded", "sequential")


@pytest.mark.parametrize("table", [b"\xff\xdb", b"\xff\xc4"])
def test_mjpeg_with_tables_only_in_first_packet_is_proven_by_decoding(tmp_path: Path, table: bytes) -> None:
    plain = write_frames(tmp_path / "plain.avi", FRAMES, "mjpeg", "yuvj420p", qmin="9", qmax="9", huffman="optimal")

    def change(number: int, packet: av.Packet) -> av.Packet:
        data = bytes(packet)
        while number and table in data[:600]:
            start = data.index(table)
            data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
        return with_content(packet, data)

    path = rewrite_packets(plain, tmp_path / "x.avi", change)
    assert check_against_whole_decode(plain).proof == "bitstream"
    assert check_against_whole_decode(path).proof in ("decoded", "sequential")


# --- packet times and parameter sets ----------------------------------------------------------------------------------


def test_packet_times_that_contradict_frame_order_are_proven_by_decoding(tmp_path: Path) -> None:
    stream = encode_stream(FRAMES, options=X264, bframes=2)
    assert any(sample.shift for sample in stream.samples)
    unshifted = [replace(sample, shift=0) for sample in stream.samples]
    (tmp_path / "x.mp4").write_bytes(build_mp4(replace(stream, samples=unshifted)))
    info = check_against_whole_decode(tmp_path / "x.mp4")
    assert (info.num_frames, info.proof, len(info.keyframes)) == (40, "decoded", 4)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("size", [(96, 64), (64, 64)])
def test_parameter_sets_that_change_midway_are_decoded_unless_size_changes(
    tmp_path: Path, codec: str, size: tuple[int, int]
) -> None:
    """Two concatenated streams are one video if their sizes are equal, and are refused otherwise."""
    name = codec.replace("lib", "")
    quiet = ":log-level=none:pools=none" if codec == "libx265" else ""
    first_params, second_params = (f"keyint=8:bframes={bframes}:ref={bframes + 1}{quiet}" for bframes in (0, 2))
    first = write_frames(tmp_path / "first.ts", FRAMES[:20], codec, **{f"{name}_params": first_params})
    frames = [np.ascontiguousarray(image[: size[1], : size[0]]) for image in FRAMES[20:]]
    second = write_frames(tmp_path / "second.ts", frames, codec, **{f"{name}_params": second_params})
    with av.open(str(tmp_path / "x.mkv"), "w") as new:
        shift, stream = 0, None
        for path in (first, second):
            with av.open(str(path)) as old:
                stream = stream or new.add_stream_from_template(old.streams.video[0], opaque=True)
                packets = [packet for packet in old.demux(video=0) if packet.size]
                start = min(packet.dts for packet in packets)
                for packet in packets:
                    packet.pts += shift - start
                    packet.dts += shift - start
                    packet.stream = stream
                end = max(packet.pts for packet in packets) + 2 * 3600
                for packet in packets:
                    new.mux(packet)
                shift = end
    if size == (96, 64):
        info = check_against_whole_decode(tmp_path / "x.mkv")
        assert info.num_frames == 40 and info.proof in ("decoded", "sequential")
    else:
        assert read_video_info(str(tmp_path / "x.mkv")).error == "the frame size changes from 96x64 to 64x64 midway"


def test_trim_keeps_leading_pictures_of_idr(tmp_path: Path) -> None:
    """RADL pictures of HEVC, and similar ones of H.264, are shown before the IDR; an edit list would hide them."""
    options = "keyint=10:min-keyint=10:bframes=3:b-adapt=0:radl=2:open-gop=0:log-level=none:pools=none"
    path = write_frames(tmp_path / "x.mp4", FRAMES, "libx265", x265_params=options)
    info = check_against_whole_decode(path, draws=8)
    whole = decode_whole(path)
    for frame in range(40):
        data, (position,) = trim(path, [frame], table=info.table)
        assert decode_whole(data)[position] == whole[frame]
    assert info.proof == "bitstream" and info.num_frames == 40
    with open_video(path) as video:
        table = video.frame_table
        assert any(table.rank[start + 1] < table.rank[start] for start in np.flatnonzero(table.is_closed[:-1]))


# --- wrong predictions ------------------------------------------------------------------------------------------------


def hide_frame(table: FrameTable) -> FrameTable:
    is_displayed = table.is_displayed.copy()
    is_displayed[7] = False
    return replace(table, is_displayed=is_displayed)


def swap_frames(table: FrameTable) -> FrameTable:
    rank = table.rank.copy()
    rank[[4, 5]] = rank[[5, 4]]
    return replace(table, rank=rank)


def add_entry_point(table: FrameTable) -> FrameTable:
    is_random_access = table.is_random_access.copy()
    is_random_access[6] = True
    return replace(table, is_random_access=is_random_access)


def clear_reference_flags(table: FrameTable) -> FrameTable:
    is_reference = table.is_reference.copy()
    is_reference[[1, 2, 3]] = False
    return replace(table, is_reference=is_reference)


@pytest.mark.parametrize("corrupt", [hide_frame, swap_frames, add_entry_point, clear_reference_flags])
@pytest.mark.parametrize("kind", ["mpeg2video mkv", "wmv2 asf", "mpeg1video mkv", "msmpeg4 avi", "libx264 avi"])
def test_wrong_predicted_table_is_replaced_by_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corrupt: Callable[[FrameTable], FrameTable], kind: str
) -> None:
    codec, suffix = kind.split()
    bframes = 2 if codec in ("mpeg2video", "mpeg1video", "libx264") else 0
    options = {"x264_params": "bframes=2:keyint=12"} if codec == "libx264" else {}
    path = write_frames(tmp_path / f"x.{suffix}", FRAMES, codec, bframes=bframes, **options)
    correct = check_against_whole_decode(path)
    assert correct.proof == "decoded" and correct.irregularity in ("", NOT_REMUXABLE)
    predict_correctly = demuxer.predict_frame_table

    def predict(*args, **kwargs) -> Prediction:
        prediction = predict_correctly(*args, **kwargs)
        return prediction._replace(table=corrupt(prediction.table))

    monkeypatch.setattr(demuxer, "predict_frame_table", predict)
    info = check_against_whole_decode(path)
    assert info.irregularity == COUNTED and info.num_frames == correct.num_frames
