"""prove: files whose packets are not what they seem give the frames of a whole decode, each of them, or are refused."""

from __future__ import annotations

import io
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
from pipelines.decode import demuxer as video_module
from pipelines.decode.frame_table import COUNTED, UNFIT, FrameTable
from pipelines.decode.predict import Prediction
from pipelines.decode.prove import open_video
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.trim import trim
from pipelines.decode.video_info import read_row
from pipelines.synthetic import render
from tests.helpers.mp4_boxes import Sample, encode, mp4
from tests.helpers.whole_decode import check, decode_whole

FRAMES = list(render(0, 0, 1, 40, 96, 64))
X265_ALONE = "pools=none:frame-threads=1"  # one thread
X264 = {"x264-params": "bframes=2:keyint=12:scenecut=0"}


def packets_of(data: bytes) -> tuple[list[av.Packet], av.VideoStream]:
    container = av.open(io.BytesIO(data))
    stream = container.streams.video[0]
    return [packet for packet in container.demux(stream) if packet.size], stream


def write(path: Path, frames, codec: str, pix_fmt: str = "yuv420p", gop: int = 12, bframes: int = 0, **options) -> Path:
    """Frames with an encoder into the container that the name says."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(
            codec, rate=25, options={key.replace("_", "-"): value for key, value in options.items()}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, bframes
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def rewrite(source: Path, target: Path, change) -> Path:
    """The packets of a video, as `change(number, packet)` gives them (None: left out), in another file."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            changed = change(number, packet)
            if changed is not None:
                changed.stream = stream
                new.mux(changed)
    return target


# --- MPEG-4 part 2 with packed B-frames ---------------------------------------------------------------------------


def pack_b_frames(source: Path, target: Path, placeholder: str) -> Path:
    """As XviD does: a B picture joins the packet of the reference picture before it, every further one moves a packet
    on, and a placeholder stands in the last place."""
    packets, stream = packets_of(source.read_bytes())
    contents = [bytes(packet) for packet in packets]
    types = [content[content.index(b"\0\0\1\xb6") + 4] >> 6 for content in contents]
    assert types.count(2) > len(types) / 3, "B pictures are there to be packed"
    user_data = b"\0\0\1\xb2DivX503b1393p"
    packed: list[bytes] = []
    number = 0
    while number < len(contents):
        run = 1
        while number + run < len(contents) and types[number + run] == 2:
            run += 1
        group = contents[number : number + run]
        if run > 1:
            empty = b"\x7f" if placeholder == "byte" else _empty_vop(group[0], stream)
            group = [group[0] + group[1], *group[2:], empty]
        packed += group
        number += run
    vop = packed[0].index(b"\0\0\1\xb6")
    packed[0] = packed[0][:vop] + user_data + packed[0][vop:]
    with av.open(str(target), "w") as new:
        out = new.add_stream_from_template(stream, opaque=True)
        for place, content in enumerate(packed):
            packet = av.Packet(content)
            packet.stream, packet.time_base = out, Fraction(1, 25)
            packet.pts = packet.dts = place
            packet.is_keyframe = place == 0 or len(content) == 1  # as XviD's files have it
            new.mux(packet)
    return target


def _empty_vop(reference: bytes, stream: av.VideoStream) -> bytes:
    """A picture that is not coded, of the same time as a reference picture."""
    from pipelines.decode.bitstream.mpeg4 import _layers

    layer = next(iter(_layers((stream.codec_context.extradata or b"") + reference).values()))
    vop = reference.index(b"\0\0\1\xb6") + 4
    bits = "".join(f"{byte:08b}" for byte in reference[vop : vop + 16])
    end = bits.index("0", 2) + 2 + layer.increment_bits + 1  # type, seconds, marker, increment, marker
    bits = "01" + bits[2:end] + "0"
    bits += "0" + "1" * (-(len(bits) + 1) % 8)
    return b"\0\0\1\xb6" + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


@pytest.mark.parametrize("placeholder", ["byte", "picture"])
@pytest.mark.parametrize("bframes", [1, 2, 3])
def test_packed_b_frames(tmp_path: Path, bframes: int, placeholder: str) -> None:
    plain = write(tmp_path / "plain.avi", FRAMES, "mpeg4", bframes=bframes, b_strategy="0", sc_threshold="1000000000")
    packed = pack_b_frames(plain, tmp_path / "packed.avi", placeholder)
    with av.open(str(packed)) as file:
        sizes = [packet.size for packet in file.demux(video=0)]
    assert min(size for size in sizes if size) < 20
    row = check(packed)
    assert (row.proof, row.irregularity, row.num_frames) == ("decoded", "packed B-frames", 40)
    assert len(row.keyframes) == 4
    assert decode_whole(packed) == decode_whole(plain)


def test_a_picture_that_is_not_coded_is_no_frame(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.avi", FRAMES, "mpeg4")
    packets, stream = packets_of(plain.read_bytes())

    def change(number: int, packet: av.Packet) -> av.Packet:
        if number != 7:
            return packet
        empty = av.Packet(_empty_vop(bytes(packet), stream))
        empty.pts, empty.dts, empty.time_base = packet.pts, packet.dts, packet.time_base
        return empty

    row = check(rewrite(plain, tmp_path / "x.avi", change))
    assert (row.num_frames, row.irregularity) == (39, "packed B-frames")


# --- hidden frames ------------------------------------------------------------------------------------------------

ALT_REF = {"auto_alt_ref": "1", "lag_in_frames": "25", "deadline": "realtime", "cpu_used": "5", "b": "200k"}
MOVING = list(render(0, 0, 1, 48, 160, 128))


@pytest.mark.parametrize("suffix", ["webm", "mkv", "ivf", "avi"])
def test_alternate_references_of_vp8(tmp_path: Path, suffix: str) -> None:
    """libvpx makes them in two passes only, so some of its frames are told not to be shown (RFC 6386, 9.1)."""
    hidden = {5, 11, 14, 30}

    def change(number: int, packet: av.Packet) -> av.Packet:
        if number not in hidden:
            return packet
        data = bytearray(bytes(packet))
        data[0] &= ~0x10
        changed = av.Packet(bytes(data))
        changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
        changed.is_keyframe = packet.is_keyframe
        return changed

    plain = write(tmp_path / f"plain.{suffix}", FRAMES, "libvpx", deadline="realtime", cpu_used="8")
    row = check(rewrite(plain, tmp_path / f"x.{suffix}", change))
    assert (row.num_frames, row.irregularity) == (36, "hidden frames") and row.proof != "sequential"
    assert len(row.keyframes) >= 3


@pytest.mark.parametrize("suffix", ["webm", "mp4"])
def test_alternate_references_of_vp9(tmp_path: Path, suffix: str) -> None:
    row = check(write(tmp_path / f"x.{suffix}", MOVING, "libvpx-vp9", gop=24, **ALT_REF))
    assert (row.num_frames, row.irregularity, row.proof) == (48, "hidden frames", "bitstream")


def test_hidden_frames_of_vp9_in_packets_of_their_own(tmp_path: Path) -> None:
    """Not as the specification has it, but some files are so."""
    path = write(tmp_path / "x.webm", MOVING, "libvpx-vp9", gop=24, **ALT_REF)
    packets, stream = packets_of(path.read_bytes())
    frames = []
    for packet in packets:
        data = bytes(packet)
        if data[-1] >> 5 != 0b110:
            frames.append(data)
            continue
        count, size_bytes = (data[-1] & 7) + 1, (data[-1] >> 3 & 3) + 1
        index, at = len(data) - 1 - count * size_bytes, 0
        for number in range(count):
            place = index + number * size_bytes
            size = int.from_bytes(data[place : place + size_bytes], "little")
            frames.append(data[at : at + size])
            at += size
    assert len(frames) > len(packets)
    stream = encode(MOVING[:2], "libvpx-vp9")
    stream = replace(stream, samples=[Sample(data, number == 0) for number, data in enumerate(frames)])
    (tmp_path / "x.mp4").write_bytes(mp4(stream))
    row = check(tmp_path / "x.mp4")
    assert (row.num_frames, row.irregularity) == (48, "hidden frames") and row.proof != "sequential"


def test_av1_with_hidden_frames(tmp_path: Path) -> None:
    row = check(write(tmp_path / "x.mp4", FRAMES, "libsvtav1", preset="10"))
    assert (row.num_frames, row.proof) == (40, "bitstream")


def test_av1_that_changes_its_size_is_refused_and_superres_is_not(tmp_path: Path) -> None:
    resized = write(tmp_path / "x.mp4", FRAMES, "libsvtav1", preset="10", **{"svtav1-params": "resize-mode=2"})
    assert re.fullmatch(r"the frame size changes from \d+x\d+ to \d+x\d+ midway", read_row(str(resized)).error)
    row = check(write(tmp_path / "y.mkv", FRAMES, "libsvtav1", preset="10", **{"svtav1-params": "superres-mode=2"}))
    assert row.proof == "bitstream"


# --- what a decoder remembers -------------------------------------------------------------------------------------


def replaced(old: bytes, new: bytes):
    """A change of packets for rewrite()."""

    def change(number: int, packet: av.Packet) -> av.Packet:
        data = bytes(packet).replace(old, new)
        changed = av.Packet(data)
        changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
        changed.is_keyframe = packet.is_keyframe
        return changed

    return change


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_a_coder_whose_mistakes_ffmpeg_makes_up_for(tmp_path: Path, suffix: str) -> None:
    """Only the first packet names it: who begins to decode later does not know. (Found in a file of DeepLabCut's.)"""
    plain = write(
        tmp_path / f"plain.{suffix}", FRAMES, "libx264", "yuv444p", gop=8, x264_params="keyint=8:bframes=2:qp=4"
    )
    assert check(plain).proof == "bitstream"
    build = re.search(rb"x264 - core (\d+)", plain.read_bytes())
    path = rewrite(plain, tmp_path / f"x.{suffix}", replaced(build[0], b"x264 - core 148"))
    assert decode_whole(path) != decode_whole(plain)
    assert check(path).proof in ("decoded", "sequential")


def test_user_data_that_only_the_first_packet_has(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.mp4", FRAMES, "mpeg4")

    def change(number: int, packet: av.Packet) -> av.Packet:
        if number:
            return packet
        return replaced(b"\0\0\1\xb6", b"\0\0\1\xb2DivX412\0\0\1\xb6")(number, packet)

    path = rewrite(plain, tmp_path / "x.mp4", change)
    assert check(plain).proof == "bitstream" and check(path).proof in ("decoded", "sequential")


@pytest.mark.parametrize("table", [b"\xff\xdb", b"\xff\xc4"])
def test_jpeg_tables_that_only_the_first_packet_has(tmp_path: Path, table: bytes) -> None:
    plain = write(tmp_path / "plain.avi", FRAMES, "mjpeg", "yuvj420p", qmin="9", qmax="9", huffman="optimal")

    def change(number: int, packet: av.Packet) -> av.Packet:
        data = bytes(packet)
        while number and table in data[:600]:
            at = data.index(table)
            data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
        return replaced(bytes(packet), data)(number, packet)

    path = rewrite(plain, tmp_path / "x.avi", change)
    assert check(plain).proof == "bitstream" and check(path).proof in ("decoded", "sequential")


# --- times, and parameter sets ------------------------------------------------------------------------------------


def test_times_that_are_not_in_the_order_of_the_frames(tmp_path: Path) -> None:
    stream = encode(FRAMES, options=X264, bframes=2)
    assert any(sample.shift for sample in stream.samples)
    unshifted = [replace(sample, shift=0) for sample in stream.samples]
    (tmp_path / "x.mp4").write_bytes(mp4(replace(stream, samples=unshifted)))
    row = check(tmp_path / "x.mp4")
    assert (row.num_frames, row.proof, len(row.keyframes)) == (40, "decoded", 4)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("size", [(96, 64), (64, 64)])
def test_parameter_sets_that_change_midway(tmp_path: Path, codec: str, size: tuple[int, int]) -> None:
    """Two streams behind each other: of the same size they make one video, else none."""
    name = codec.replace("lib", "")
    quiet = ":log-level=none:pools=none" if codec == "libx265" else ""
    first, second = (f"keyint=8:bframes={bframes}:ref={bframes + 1}{quiet}" for bframes in (0, 2))
    one = write(tmp_path / "one.ts", FRAMES[:20], codec, **{f"{name}_params": first})
    frames = [np.ascontiguousarray(picture[: size[1], : size[0]]) for picture in FRAMES[20:]]
    two = write(tmp_path / "two.ts", frames, codec, **{f"{name}_params": second})
    with av.open(str(tmp_path / "x.mkv"), "w") as new:
        shift, stream = 0, None
        for path in (one, two):
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
        row = check(tmp_path / "x.mkv")
        assert row.num_frames == 40 and row.proof in ("decoded", "sequential")
    else:
        assert read_row(str(tmp_path / "x.mkv")).error == "the frame size changes from 96x64 to 64x64 midway"


def test_pictures_that_are_shown_before_the_idr_picture_they_follow(tmp_path: Path) -> None:
    """HEVC's RADL pictures, of which H.264 has the like: an MP4 muxer's edit list would hide them."""
    options = "keyint=10:min-keyint=10:bframes=3:b-adapt=0:radl=2:open-gop=0:log-level=none:pools=none"
    path = write(tmp_path / "x.mp4", FRAMES, "libx265", x265_params=options)
    row = check(path, draws=8)
    whole = decode_whole(path)
    for frame in range(40):
        data, (position,) = trim(path, [frame], table=row.table)
        assert decode_whole(data)[position] == whole[frame]
    assert row.proof == "bitstream" and row.num_frames == 40
    with open_video(path) as video:
        table = video.frame_table
        assert any(table.rank[start + 1] < table.rank[start] for start in np.flatnonzero(table.is_closed[:-1]))


# --- what MP4 boxes say -------------------------------------------------------------------------------------------

EDITS = {
    "plain offset": ([(40, 1)], 40),
    "an empty edit": ([(10, -1), (40, 1)], 40),
    "begins between key frames": ([(30, 9)], None),
    "two edits": ([(6, 1), (10, 21)], None),
    "the same twice": ([(8, 1), (8, 1)], None),
    "ends early": ([(17, 1)], None),
    "an empty edit in the middle": ([(9, 1), (5, -1), (9, 20)], None),
}


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
@pytest.mark.parametrize("name", EDITS)
def test_edit_lists(tmp_path: Path, codec: str, name: str) -> None:
    edits, frames = EDITS[name]
    stream = encode(FRAMES, codec, X264 if codec == "libx264" else {}, bframes=2 if codec == "libx264" else 0)
    if codec != "libx264":
        edits = [(length, max(first - 1, -1) if first > 0 else first) for length, first in edits]
    (tmp_path / "x.mp4").write_bytes(mp4(stream, edits=edits))
    row = check(tmp_path / "x.mp4")
    assert row.proof == "bitstream" if name == "plain offset" else row.proof in ("decoded", "sequential")
    assert frames is None or row.num_frames == frames


@pytest.mark.parametrize("other", [{"x264-params": "cabac=0:keyint=12:bframes=0"}, X264])
def test_several_sample_descriptions(tmp_path: Path, other: dict[str, str]) -> None:
    first = encode(FRAMES[:20], options=X264, bframes=2)
    second = encode(FRAMES[20:], options=other, bframes=2 if other is X264 else 0)
    samples = [*first.samples, *(replace(sample, description=2) for sample in second.samples)]
    (tmp_path / "x.mp4").write_bytes(mp4(replace(first, samples=samples), entries=[first.entry, second.entry]))
    assert check(tmp_path / "x.mp4").num_frames == 40


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
def test_fragments(tmp_path: Path, fragments: list[tuple[int, range]]) -> None:
    (tmp_path / "x.mp4").write_bytes(mp4(encode(FRAMES, options=X264, bframes=2), fragments=fragments))
    row = check(tmp_path / "x.mp4")
    assert row.proof in ("decoded", "sequential")


def test_encrypted_files_are_refused(tmp_path: Path) -> None:
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": 32 * "7", "encryption_kid": 32 * "5"}
    plain = tmp_path / "plain.mp4"
    plain.write_bytes(mp4(encode(FRAMES, options=X264, bframes=2)))
    path = tmp_path / "x.mp4"
    with av.open(str(plain)) as old, av.open(str(path), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    assert read_row(str(plain)).error == ""
    assert read_row(str(path)).error == "encrypted"
    with pytest.raises(ValueError, match=re.escape(f"{path}: encrypted")):
        video_module.Video(path)
    rows = [read_row(str(plain)), read_row(str(path))]
    assert "1 unusable" in coverage(rows)


def test_scrambled_transport_streams_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.ts", FRAMES, "libx264")
    assert check(tmp_path / "x.ts").proof == "bitstream"
    data = bytearray((tmp_path / "x.ts").read_bytes())
    for at in range(0, len(data), 188):
        if (data[at + 1] & 0x1F) << 8 | data[at + 2] == 256 and at > 188 * 10:
            data[at + 3] |= 0x80
    (tmp_path / "y.ts").write_bytes(data)
    assert read_row(str(tmp_path / "y.ts")).error == "encrypted"


# --- codecs whose packets are not read ----------------------------------------------------------------------------


ALL_KEYS = {"cinepak": ("avi", "rgb24"), "msvideo1": ("avi", "rgb555le"), "mpeg2video": ("mkv", "yuv420p"),
            "msmpeg4": ("avi", "yuv420p"), "svq1": ("mov", "yuv410p")}  # fmt: skip


@pytest.mark.parametrize("codec", ALL_KEYS)
def test_packets_that_are_all_called_key_frames(tmp_path: Path, codec: str) -> None:
    frames = list(render(0, 0, 1, 16, 96, 64))
    suffix, pix_fmt = ALL_KEYS[codec]
    plain = write(tmp_path / f"plain.{suffix}", frames, codec, pix_fmt, gop=8)

    def change(number: int, packet: av.Packet) -> av.Packet:
        packet.is_keyframe = True
        return packet

    path = rewrite(plain, tmp_path / f"x.{suffix}", change)
    packets, _ = packets_of(path.read_bytes())
    row = check(path)
    assert row.num_frames == 16 and row.proof in ("decoded", "sequential")
    if all(packet.is_keyframe for packet in packets):
        assert len(row.keyframes) < 16, "an inter frame is no place to begin"


HEADLESS = ["libx264 ts", "mpeg2video ts", "mpeg2video mkv", "mpeg4 avi", "mpeg4 mkv", "libx265 ts", "libvpx-vp9 webm",
            "libvpx webm"]  # fmt: skip


@pytest.mark.parametrize("kind", HEADLESS)
@pytest.mark.parametrize("first", [1, 3])
def test_files_that_begin_without_a_key_frame(tmp_path: Path, kind: str, first: int) -> None:
    codec, suffix = kind.split()
    options = {"x265_params": "log-level=none:pools=none:bframes=2"} if codec == "libx265" else {}
    bframes = 0 if "vpx" in codec else 2
    plain = write(tmp_path / f"plain.{suffix}", FRAMES, codec, bframes=bframes, **options)
    path = rewrite(plain, tmp_path / f"x.{suffix}", lambda number, packet: packet if number >= first else None)
    assert check(path).proof in ("decoded", "sequential")


OTHERS = {
    "rv20": "rm", "mpeg2video": "m2v", "mpeg1video": "mpg", "h263": "3gp", "libx264": "h264", "libx265": "hevc",
    "mpeg4": "m4v", "mjpeg": "mjpeg", "prores": "mov", "ffv1": "mkv", "huffyuv": "avi", "flv": "flv", "wmv2": "asf",
    "snow": "avi", "qtrle": "mov", "zmbv": "avi", "gif": "gif", "rawvideo": "avi",
}  # fmt: skip
PIX_FMTS = {"mjpeg": "yuvj420p", "prores": "yuv422p10le", "huffyuv": "yuv422p", "qtrle": "rgb24", "zmbv": "bgr0",
            "gif": "rgb8"}  # fmt: skip


@pytest.mark.parametrize("codec", OTHERS)
def test_other_codecs_and_containers(tmp_path: Path, codec: str) -> None:
    options = {"strict": "experimental"} if codec == "snow" else {}
    if codec == "libx265":
        options = {"x265_params": "log-level=none:pools=none:bframes=2"}
    frames = list(render(0, 0, 1, 30, *((176, 144) if codec == "h263" else (96, 64))))
    bframes = 2 if codec in ("mpeg2video", "mpeg1video", "libx264", "mpeg4") else 0
    path = tmp_path / f"x.{OTHERS[codec]}"
    write(path, frames, codec, PIX_FMTS.get(codec, "yuv420p"), bframes=bframes, **options)
    assert check(path).num_frames in (29, 30)  # an MPEG-1 program stream may lose one


def field_pictures(frames: list[np.ndarray]) -> list[bytes]:
    """MPEG-2 intra pictures that are fields: frames of half the height, told to be so (ISO/IEC 13818-2, 6.2.3.1)."""
    container = av.open(io.BytesIO(), "w", format="mpeg2video")
    stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+bitexact"})
    stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
    stream.codec_context.gop_size = 1
    packets: list[bytes] = []
    for number, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        packets += [bytes(packet) for packet in stream.encode(frame)]
    packets += [bytes(packet) for packet in stream.encode(None)]
    fields = []
    for number, packet in enumerate(packets):
        data = bytearray(packet)
        size = data.find(b"\0\0\1\xb3")
        if size >= 0:  # 12 bits of width, 12 of height
            data[size + 5 : size + 7] = bytes([data[size + 5] & 0xF0 | 64 >> 8, 64 & 0xFF])
        for kind, at in ((1, data.find(b"\0\0\1\xb5\x14")), (8, data.find(b"\0\0\1\xb5\x8f"))):
            if kind == 1 and at >= 0:
                data[at + 5] &= ~0x08  # progressive_sequence
            elif kind == 8:
                data[at + 6] = data[at + 6] & ~0x03 | (2 if number % 2 else 1)  # picture_structure
                data[at + 7] &= ~0xC0  # top_field_first, frame_pred_frame_dct
                data[at + 8] &= ~0x80  # progressive_frame
        fields.append(bytes(data if number % 2 == 0 else data[data.index(b"\0\0\1\0") :]))
    return fields


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("suffix", ["ts", "mkv", "m2v", "avi"])
def test_mpeg2_in_field_pictures(tmp_path: Path, suffix: str, joined: bool) -> None:
    fields = field_pictures([picture[half::2] for picture in FRAMES[:12] for half in (0, 1)])
    with av.open(str(write(tmp_path / "plain.mkv", FRAMES[:2], "mpeg2video"))) as old:
        with av.open(str(tmp_path / f"x.{suffix}"), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
            step = 2 if joined else 1
            for number in range(0, len(fields), step):
                packet = av.Packet(b"".join(fields[number : number + step]))
                packet.stream, packet.time_base = stream, Fraction(1, 50)
                packet.pts = packet.dts = number
                packet.is_keyframe = number % 2 == 0
                new.mux(packet)
    row = check(tmp_path / f"x.{suffix}")
    assert row.num_frames == 12 and row.proof in ("decoded", "sequential") and row.interlaced


# --- a table that lies --------------------------------------------------------------------------------------------


def lose_a_frame(table: FrameTable) -> FrameTable:
    is_displayed = table.is_displayed.copy()
    is_displayed[7] = False
    return replace(table, is_displayed=is_displayed)


def swap_two_frames(table: FrameTable) -> FrameTable:
    rank = table.rank.copy()
    rank[[4, 5]] = rank[[5, 4]]
    return replace(table, rank=rank)


def add_an_entry(table: FrameTable) -> FrameTable:
    is_random_access = table.is_random_access.copy()
    is_random_access[6] = True
    return replace(table, is_random_access=is_random_access)


def lose_a_reference(table: FrameTable) -> FrameTable:
    is_reference = table.is_reference.copy()
    is_reference[[1, 2, 3]] = False
    return replace(table, is_reference=is_reference)


@pytest.mark.parametrize("lie", [lose_a_frame, swap_two_frames, add_an_entry, lose_a_reference])
@pytest.mark.parametrize("kind", ["mpeg2video mkv", "wmv2 asf", "mpeg1video mkv", "msmpeg4 avi", "libx264 avi"])
def test_a_table_that_lies_is_noticed(tmp_path: Path, monkeypatch, lie, kind: str) -> None:
    codec, suffix = kind.split()
    bframes = 2 if codec in ("mpeg2video", "mpeg1video", "libx264") else 0
    options = {"x264_params": "bframes=2:keyint=12"} if codec == "libx264" else {}
    path = write(tmp_path / f"x.{suffix}", FRAMES, codec, bframes=bframes, **options)
    honest = check(path)
    assert honest.proof == "decoded" and honest.irregularity in ("", UNFIT)
    real = video_module.predict

    def predict(*arguments, **named) -> Prediction:
        prediction = real(*arguments, **named)
        return prediction._replace(table=lie(prediction.table))

    monkeypatch.setattr(video_module, "predict", predict)
    row = check(path)
    assert row.irregularity == COUNTED and row.num_frames == honest.num_frames


# --- sizes, and everything together -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 1), (3, 5), (8, 8), (17, 9), (33, 34), (66, 66), (66, 1), (175, 143)]
)
@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx", "mpeg2video"])
def test_odd_sizes_of_subsampled_frames(tmp_path: Path, codec: str, size: tuple[int, int]) -> None:
    width, height = size
    frames = [np.ascontiguousarray(picture[:height, :width]) for picture in render(0, 0, 1, 14, 192, 160)]
    path = write(tmp_path / ("x.mkv" if codec == "mpeg2video" else "x.webm"), frames, codec, gop=6)
    row = check(path)
    assert (row.width, row.height, row.num_frames) == (width, height, 14)
    boxes = np.array([[0, 0, height, width]], np.float32)
    views = decode_views(str(path), np.array([[0, 13]]), boxes, 32, table=row.table)
    with av.open(str(path)) as file:
        rgb = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    means = [rgb[number].mean() for number in (0, 13)]
    assert np.abs(views[0].mean(axis=(0, 2, 3)) - means).max() < 6


CHAIN = {
    "libx264": ("mp4", "mkv", "ts", "avi", "mov", "flv", "h264"), "libx265": ("mp4", "mkv", "ts", "hevc"),
    "libvpx-vp9": ("webm", "mp4", "mkv", "ivf"), "libvpx": ("webm", "mkv", "avi", "ivf"),
    "mpeg4": ("avi", "mp4", "mkv", "m4v"), "mpeg2video": ("ts", "mkv", "avi", "m2v"), "mjpeg": ("avi", "mov"),
    "wmv2": ("asf", "avi"), "msmpeg4": ("avi",), "ffv1": ("mkv", "avi"),
}  # fmt: skip


@settings(max_examples=60)
@given(st.data())
def test_the_whole_chain(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    """Any codec, container, group of pictures, number of B-frames, size and clip."""
    codec = data.draw(st.sampled_from(sorted(CHAIN)), label="codec")
    suffix = data.draw(st.sampled_from(CHAIN[codec]), label="container")
    gop = data.draw(st.integers(1, 20), label="gop")
    can_reorder = codec in ("libx264", "libx265", "mpeg4", "mpeg2video")
    bframes = data.draw(st.integers(0, 3), label="B-frames") if can_reorder else 0
    is_open = data.draw(st.booleans(), label="open groups")
    step = 1 if codec in ("libvpx-vp9", "libvpx", "mpeg2video") else 2
    least = 64 if codec == "libx265" else 16  # x265 writes past its memory on smaller frames
    width, height = (
        step * data.draw(st.integers(least // step, 70 // step), label=name) for name in ("width", "height")
    )
    count = data.draw(st.integers(1, 30), label="frames")
    parameters = f"keyint={gop}:bframes={bframes}:open-gop={int(is_open)}"
    options = {"libx264": {"x264_params": parameters}, "libvpx": {"deadline": "realtime", "cpu_used": "8"},
               "libx265": {"preset": "ultrafast", "x265_params": f"{parameters}:log-level=none:{X265_ALONE}"},
               "libvpx-vp9": ALT_REF | {"auto_alt_ref": str(int(is_open))}}.get(codec, {})  # fmt: skip
    frames = [np.ascontiguousarray(picture[:height, :width]) for picture in render(0, 0, 1, count, 80, 80)]
    path = tmp_path_factory.mktemp("chain") / f"x.{suffix}"
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    write(path, frames, codec, pix_fmt, gop=gop, bframes=bframes, **options)
    if read_row(str(path)).error:  # FFmpeg does not know a transport stream of a few packets
        with pytest.raises(av.error.FFmpegError):
            decode_whole(path)
        return
    check(path, draws=2)
