"""Write small videos with any encoder of FFmpeg, and change their packets in ways that no encoder does."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipelines.decode.bitstream.mpeg4 import read_layers
from pipelines.synthetic import render

FRAMES = list(render(0, 0, 1, 40, 96, 64))
FPS = 25
# Options of libvpx-vp9 with which it makes hidden alternate reference frames.
ALT_REF = {"auto_alt_ref": "1", "lag_in_frames": "25", "deadline": "realtime", "cpu_used": "5", "b": "200k"}
_VOP = b"\0\0\1\xb6"
_B_VOP = 2  # vop_coding_type

PacketChange = Callable[[int, av.Packet], av.Packet | None]


def packets_of(data: bytes) -> tuple[list[av.Packet], av.VideoStream]:
    """Return the packets of a file's first video stream that are not empty, and the stream."""
    container = av.open(io.BytesIO(data))
    stream = container.streams.video[0]
    return [packet for packet in container.demux(stream) if packet.size], stream


def write_frames(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str,
    pix_fmt: str = "yuv420p",
    *,
    gop: int = 12,
    bframes: int = 0,
    **options: str,
) -> Path:
    """Encode RGB frames into the container that the path's suffix names; `options` with _ for - go to the encoder."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(
            codec, rate=FPS, options={name.replace("_", "-"): value for name, value in options.items()}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, bframes
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def rewrite_packets(source: Path, target: Path, change: PacketChange) -> Path:
    """Write the packets that `change(number, packet)` returns into another file; None removes a packet."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            changed = change(number, packet)
            if changed is not None:
                changed.stream = stream
                new.mux(changed)
    return target


def with_content(packet: av.Packet, content: bytes) -> av.Packet:
    """Return a packet of other bytes with the times and the key frame flag of `packet`."""
    changed = av.Packet(content)
    changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
    changed.is_keyframe = packet.is_keyframe
    return changed


def pack_b_frames(source: Path, target: Path, placeholder: str) -> Path:
    """Pack the B pictures of an MPEG-4 part 2 video as XviD does.

    The first B picture after a reference picture joins the packet of that, each further one moves to the packet before
    its own, and a placeholder ("byte" or "picture") fills the last one.
    """
    packets, stream = packets_of(source.read_bytes())
    contents = [bytes(packet) for packet in packets]
    kinds = [content[content.index(_VOP) + 4] >> 6 for content in contents]
    assert kinds.count(_B_VOP) > len(kinds) / 3, "the source has no B pictures to pack"
    user_data = b"\0\0\1\xb2DivX503b1393p"
    packed: list[bytes] = []
    number = 0
    while number < len(contents):
        run = 1
        while number + run < len(contents) and kinds[number + run] == _B_VOP:
            run += 1
        group = contents[number : number + run]
        if run > 1:
            filler = b"\x7f" if placeholder == "byte" else empty_vop(group[0], stream)
            group = [group[0] + group[1], *group[2:], filler]
        packed += group
        number += run
    vop = packed[0].index(_VOP)
    packed[0] = packed[0][:vop] + user_data + packed[0][vop:]
    with av.open(str(target), "w") as new:
        new_stream = new.add_stream_from_template(stream, opaque=True)
        for tick, content in enumerate(packed):
            packet = av.Packet(content)
            packet.stream, packet.time_base = new_stream, Fraction(1, FPS)
            packet.pts = packet.dts = tick
            packet.is_keyframe = tick == 0 or len(content) == 1  # as in XviD's files
            new.mux(packet)
    return target


def empty_vop(reference: bytes, stream: av.VideoStream) -> bytes:
    """Return an MPEG-4 part 2 picture that is not coded, with the time of a reference picture."""
    layer = next(iter(read_layers((stream.codec_context.extradata or b"") + reference).values()))
    assert layer
    vop = reference.index(_VOP) + 4
    bits = "".join(f"{byte:08b}" for byte in reference[vop : vop + 16])
    end = bits.index("0", 2) + 2 + layer.increment_bits + 1  # type, seconds, marker, increment, marker
    bits = "01" + bits[2:end] + "0"
    bits += "0" + "1" * (-(len(bits) + 1) % 8)
    return _VOP + bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))


def mpeg2_field_pictures(frames: list[np.ndarray]) -> list[bytes]:
    """Return MPEG-2 intra pictures that are fields, with headers of frames of twice the height.

    They are encoded as frames; then the headers are changed (ISO/IEC 13818-2, 6.2.2.1, 6.2.2.3 and 6.2.3.1).
    """
    container = av.open(io.BytesIO(), "w", format="mpeg2video")
    stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+bitexact"})
    stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
    stream.codec_context.gop_size = 1
    packets: list[bytes] = []
    for number, image in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        packets += [bytes(packet) for packet in stream.encode(frame)]
    packets += [bytes(packet) for packet in stream.encode(None)]
    fields = []
    for number, packet in enumerate(packets):
        data = bytearray(packet)
        sequence_header = data.find(b"\0\0\1\xb3")
        if sequence_header >= 0:  # 12 bits of width, 12 of height
            size = slice(sequence_header + 5, sequence_header + 7)
            data[size] = bytes([data[sequence_header + 5] & 0xF0 | 64 >> 8, 64 & 0xFF])
        sequence_extension = data.find(b"\0\0\1\xb5\x14")
        if sequence_extension >= 0:
            data[sequence_extension + 5] &= ~0x08  # progressive_sequence
        picture_extension = data.find(b"\0\0\1\xb5\x8f")
        structure = 2 if number % 2 else 1  # bottom field, top field
        data[picture_extension + 6] = data[picture_extension + 6] & ~0x03 | structure  # picture_structure
        data[picture_extension + 7] &= ~0xC0  # top_field_first, frame_pred_frame_dct
        data[picture_extension + 8] &= ~0x80  # progressive_frame
        fields.append(bytes(data if number % 2 == 0 else data[data.index(b"\0\0\1\0") :]))
    return fields
