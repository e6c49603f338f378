"""Read the headers of MPEG-4 part 2 video (ISO/IEC 14496-2), and split packets that hold several pictures.

AVI has no separate decoding and presentation times. XviD and DivX therefore wrote streams with B-frames as *packed*
packets: one packet holds a P picture and the B picture that is shown before it, and a later placeholder packet of a few
bytes keeps the number of packets right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import av
import numpy as np

from pipelines.decode.bitstream.bit_reader import BitReader
from pipelines.decode.bitstream.headers import StreamHeaders

PACKED = "packed B-frames"
_CUT = "B-frames before the second picture that they refer to"
_START_CODE, _VOP = b"\0\0\1", b"\0\0\1\xb6"
_VOL = re.compile(rb"\x00\x00\x01[\x20-\x2f](.*?)(?=\x00\x00\x01|\Z)", re.S)  # up to the next start code
_USER_DATA = re.compile(rb"\x00\x00\x01\xb2(.*?)(?=\x00\x00\x01|\Z)", re.S)
_MAX_HEADER_BYTES = 1 << 16  # bytes of headers without a picture that are kept for the next picture
_I, _P, _B = 0, 1, 2  # vop_coding_type; 3 is S, a sprite, predicted like P
# If the user data does not name the encoder, FFmpeg infers it from the codec tag of the container and imitates that
# encoder's rounding. A trimmed file has another codec tag.
_ENCODER_NAME = re.compile(rb"XviD|DivX|Lavc|FFmpe|ffmpeg", re.I)
_NEUTRAL_TAGS = {"mp4v", "fmp4", "\0\0\0\0"}
_ENCODER_TAGS = {"xvid", "divx", "dx50"}  # these encoders also write their name as user data


class VideoObjectLayer(NamedTuple):
    """Fields of a video object layer (6.2.3)."""

    increment_bits: int  # of vop_time_increment
    low_delay: bool | None  # True: no frame is reordered; None: not stated


def _read_layer(data: bytes) -> VideoObjectLayer | None:
    """Read a video object layer; None if it cannot be read or its shape is not rectangular."""
    bits = BitReader(data)
    try:
        bits.read(1 + 8)  # random access, type of object
        if bits.read():
            bits.read(4 + 3)  # version, priority
        if bits.read(4) == 15:
            bits.read(8 + 8)  # pixel aspect ratio
        low_delay = None
        if bits.read():  # vol_control_parameters
            bits.read(2)
            low_delay = bool(bits.read())
            if bits.read():
                bits.read(79)  # vbv_parameters
        if bits.read(2) != 0:  # not rectangular
            return None
        bits.read()
        resolution = bits.read(16)
    except ValueError:
        return None
    return VideoObjectLayer(max((resolution - 1).bit_length(), 1), low_delay)


def depends_on_codec_tag(codec_tag: str, headers: bytes) -> bool:
    """Return whether decoding depends on the container's codec tag (four characters), not only on the headers."""
    tag = codec_tag.lower()
    return tag not in _NEUTRAL_TAGS and (tag not in _ENCODER_TAGS or not _ENCODER_NAME.search(headers))


def _read_vop(data: bytes, increment_bits: int) -> tuple[int, bool]:
    """Read the type of a VOP and whether it is coded, from the bytes after its start code (6.2.5).

    A VOP that is not coded repeats the picture before it, and no decoder gives a frame for it. Raises ValueError or
    IndexError if it is truncated.
    """
    if not data[0] & 0x20:  # the usual case: it is shown within the same second as the one before
        bit = 5 + increment_bits
        return data[0] >> 6, bool(data[bit >> 3] >> 7 - (bit & 7) & 1)
    bits = BitReader(data)
    kind = bits.read(2)
    while bits.read():  # modulo_time_base
        pass
    bits.read(1 + increment_bits + 1)
    return kind, bool(bits.read())


def _vop_offsets(data: bytes) -> list[int]:
    """Return the offsets of the VOPs in a packet."""
    starts, offset = [], data.find(_VOP)
    while offset >= 0:
        starts.append(offset)
        offset = data.find(_VOP, offset + 4)
    return starts


def _holds_one_vop(data: bytes) -> bool:
    offset = data.find(_VOP)
    return offset >= 0 and data.find(_VOP, offset + 4) < 0


def split_packed_packets(packets: Sequence[av.Packet]) -> list[av.Packet]:
    """Return packets of one picture each, in decode order: the same objects if each already holds exactly one."""
    if all([_holds_one_vop(bytes(packet)) for packet in packets]):
        return list(packets)
    contents = [bytes(packet) for packet in packets]
    starts_of_packets = [_vop_offsets(content) for content in contents]
    if not any(starts_of_packets):
        return list(packets)
    pictures: list[av.Packet] = []
    pending_headers = b""  # of packets without a picture; they belong to the next picture
    for packet, content, starts in zip(packets, contents, starts_of_packets, strict=True):
        if not starts:
            is_header = content.startswith(_START_CODE) and len(pending_headers) < _MAX_HEADER_BYTES
            pending_headers += content if is_header else b""
            continue
        for number, start in enumerate(starts):
            end = starts[number + 1] if number + 1 < len(starts) else len(content)
            data = pending_headers + content[start if number else 0 : end]
            picture = av.Packet(len(data))
            picture.update(data)  # av.Packet(data) would lack the zero padding that decoders read past the end
            picture.stream, picture.time_base = packet.stream, packet.time_base
            picture.pts, picture.dts, picture.duration = packet.pts, packet.dts, packet.duration
            picture.is_keyframe = packet.is_keyframe and not number
            pending_headers = b""
            pictures.append(picture)
    return pictures


def read_mpeg4(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Read the type of each picture: a B picture is shown at once, any other when the next non-B picture arrives.

    Each packet holds one picture, as from split_packed_packets().
    """
    layers, known_user_data = read_layers(extradata), _read_user_data(extradata)
    increment_bits = _increment_bits(layers)
    known_headers: set[bytes] = set()
    kinds: list[int] = []
    coded: list[bool] = []
    doubt = ""
    for data in packets:
        start = data.find(_VOP)
        if start < 0:
            doubt = doubt or PACKED
        if start and (header := data[:start] if start > 0 else data) not in known_headers:
            known_headers.add(header)
            layers |= read_layers(header)
            increment_bits = _increment_bits(layers)
            if not _read_user_data(header) <= known_user_data:
                # It names the encoder, whose bugs FFmpeg works around from the packet on in which it reads the name.
                doubt = doubt or "user data beside the parameter sets"
        try:
            kind, is_coded = _read_vop(data[start + 4 : start + 20], increment_bits) if start >= 0 else (_P, False)
        except (ValueError, IndexError):
            kind, is_coded = _P, False
            doubt = doubt or "headers that cannot be read"
        kinds.append(kind)
        coded.append(is_coded)
    if len(layers) > 1:
        doubt = doubt or "parameter sets that change midway"
    if _B in kinds and not all(layer and layer.low_delay is False for layer in layers.values()):
        doubt = doubt or "B-frames that its header does not announce"
    is_coded_vop, is_b = np.array(coded, bool), np.array(kinds) == _B
    is_anchor = is_coded_vop & ~is_b
    # A decoder gives a frame for a B picture only once it has two pictures to predict it from.
    is_output = is_coded_vop & (~is_b | (np.cumsum(is_anchor) > 1))
    irregularity = ""
    if not is_output.all():
        irregularity = _CUT if is_coded_vop.all() else PACKED
        doubt = doubt or irregularity
    return StreamHeaders(
        is_random_access=(np.array(kinds) == _I) & is_coded_vop,
        is_closed=np.zeros(len(kinds), bool),
        is_reference=is_anchor,
        is_output=is_output,
        order=_presentation_order(is_anchor, is_coded_vop),
        irregularity=irregularity,
        doubt=doubt,
        changes_parameter_sets=len(layers) > 1,
    )


def _increment_bits(layers: Mapping[bytes, VideoObjectLayer | None]) -> int:
    layer = next(iter(layers.values()), None)
    return layer.increment_bits if layer else 1


def read_layers(data: bytes) -> dict[bytes, VideoObjectLayer | None]:
    """Read the video object layers in some headers; the keys are their bytes up to the next start code."""
    contents = (match[1].rstrip(b"\0") for match in _VOL.finditer(data))
    return {content: _read_layer(content + bytes(4)) for content in contents}


def _read_user_data(data: bytes) -> set[bytes]:
    return {match[1].rstrip(b"\0") for match in _USER_DATA.finditer(data)}


def _presentation_order(is_anchor: np.ndarray, is_coded: np.ndarray) -> np.ndarray:
    """Return (N,) positions in presentation order; an anchor is a picture that B pictures are predicted from."""
    if is_anchor.all():
        return np.arange(len(is_anchor))
    order = np.zeros(len(is_anchor), np.int64)
    position, waiting_anchor = 0, -1
    for number, (anchor, coded) in enumerate(zip(is_anchor.tolist(), is_coded.tolist(), strict=True)):
        if anchor:
            if waiting_anchor >= 0:
                order[waiting_anchor] = position
                position += 1
            waiting_anchor = number
        else:
            order[number] = position
            position += coded
    if waiting_anchor >= 0:
        order[waiting_anchor] = position
    return order
