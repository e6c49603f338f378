"""Read the headers of MPEG-4 part 2 video (ISO/IEC 14496-2), and take apart packets that hold two pictures.

XviD and DivX wrote streams with B-frames into AVI, which has no place for two times of a frame, as *packed* packets:
one holds a P picture and the B picture that is shown before it, a later one of a few bytes only keeps the count.
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
_MOST_HEADERS = 1 << 16  # bytes of headers that are kept for the next picture
_I, _P, _B = 0, 1, 2  # vop_coding_type; P is 1, S (a sprite, predicted like P) 3
# FFmpeg decodes a stream that an unknown coder made according to its container's name for it, and rounds as that
# coder did. A trimmed file has another name.
_CODER = re.compile(rb"XviD|DivX|Lavc|FFmpe|ffmpeg", re.I)
_NAMES_WITHOUT_MEANING = {"mp4v", "fmp4", "\0\0\0\0"}
_NAMES_OF_CODERS = {"xvid", "divx", "dx50"}  # whose user data says the same


class _Layer(NamedTuple):
    """Of a video object layer (6.2.3)."""

    increment_bits: int  # of vop_time_increment
    low_delay: bool | None  # whether no frame is reordered; None: it does not say


def _read_layer(data: bytes) -> _Layer | None:
    bits = BitReader(data)
    try:
        bits.read(1 + 8)  # random access, type of object
        if bits.read():
            bits.read(4 + 3)  # version, priority
        if bits.read(4) == 15:
            bits.read(8 + 8)  # the shape of a pixel
        low_delay = None
        if bits.read():  # vol_control_parameters
            bits.read(2)
            low_delay = bool(bits.read())
            if bits.read():
                bits.read(79)  # of the buffer
        if bits.read(2) != 0:  # its shape is no rectangle
            return None
        bits.read()
        resolution = bits.read(16)
    except ValueError:
        return None
    return _Layer(max((resolution - 1).bit_length(), 1), low_delay)


def depends_on_name(name: str, headers: bytes) -> bool:
    """Tell whether a decoder needs the codec's name in the container (four characters) beside the stream's headers."""
    name = name.lower()
    return name not in _NAMES_WITHOUT_MEANING and (name not in _NAMES_OF_CODERS or not _CODER.search(headers))


def _read_vop(data: bytes, increment_bits: int) -> tuple[int, bool]:
    """Read the type of a VOP and whether it is coded, behind its start code (6.2.5); ValueError where it is cut short.

    One that is not coded repeats the picture before, and no decoder gives a frame for it.
    """
    if not data[0] & 0x20:  # as most: within the same second
        at = 5 + increment_bits
        return data[0] >> 6, bool(data[at >> 3] >> 7 - (at & 7) & 1)
    bits = BitReader(data)
    kind = bits.read(2)
    while bits.read():  # modulo_time_base
        pass
    bits.read(1 + increment_bits + 1)
    return kind, bool(bits.read())


def _starts(data: bytes) -> list[int]:
    """Return where the VOPs of a packet begin."""
    found, at = [], data.find(_VOP)
    while at >= 0:
        found.append(at)
        at = data.find(_VOP, at + 4)
    return found


def _holds_one(data: bytes) -> bool:
    at = data.find(_VOP)
    return at >= 0 and data.find(_VOP, at + 4) < 0


def unpack(packets: Sequence[av.Packet]) -> list[av.Packet]:
    """Packets of one picture each, in decode order; the same ones if none holds two or only stands for one."""
    if all([_holds_one(bytes(packet)) for packet in packets]):
        return list(packets)
    contents = [bytes(packet) for packet in packets]
    vops = [_starts(content) for content in contents]
    if not any(vops):
        return list(packets)
    unpacked: list[av.Packet] = []
    ahead = b""  # headers of a packet without a picture belong to the next one
    for packet, content, starts in zip(packets, contents, vops, strict=True):
        if not starts:
            is_header = content.startswith(_START_CODE) and len(ahead) < _MOST_HEADERS
            ahead += content if is_header else b""
            continue
        for number, start in enumerate(starts):
            end = starts[number + 1] if number + 1 < len(starts) else len(content)
            data = ahead + content[start if number else 0 : end]
            picture = av.Packet(len(data))
            picture.update(data)  # a packet made of bytes has no zeros behind them, and decoders read on
            picture.stream, picture.time_base = packet.stream, packet.time_base
            picture.pts, picture.dts, picture.duration = packet.pts, packet.dts, packet.duration
            picture.is_keyframe = packet.is_keyframe and not number
            ahead = b""
            unpacked.append(picture)
    return unpacked


def read_mpeg4(packets: Iterable[bytes], extradata: bytes) -> StreamHeaders:
    """Read the type of each picture: B pictures are shown at once, all others once the next of them comes.

    The packets hold one picture each, as unpack() makes them.
    """
    layers, known_data = _layers(extradata), _user_data(extradata)
    bits = _increment_bits(layers)
    heads: set[bytes] = set()
    kinds: list[int] = []
    coded: list[bool] = []
    doubt = ""
    for data in packets:
        start = data.find(_VOP)
        if start < 0:
            doubt = doubt or PACKED
        if start and (head := data[:start] if start > 0 else data) not in heads:
            heads.add(head)
            layers |= _layers(head)
            bits = _increment_bits(layers)
            if not _user_data(head) <= known_data:
                # It names the coder, whose mistakes FFmpeg makes up for once it has seen it.
                doubt = doubt or "user data beside the parameter sets"
        try:
            kind, is_coded = _read_vop(data[start + 4 : start + 20], bits) if start >= 0 else (_P, False)
        except (ValueError, IndexError):
            kind, is_coded = _P, False
            doubt = doubt or "headers that cannot be read"
        kinds.append(kind)
        coded.append(is_coded)
    if len(layers) > 1:
        doubt = doubt or "parameter sets that change midway"
    if _B in kinds and not all(layer and layer.low_delay is False for layer in layers.values()):
        doubt = doubt or "B-frames that its header does not announce"
    are_coded, is_b = np.array(coded, bool), np.array(kinds) == _B
    # A decoder gives a frame for a B picture only once it has two pictures to predict it from.
    is_output = are_coded & (~is_b | (np.cumsum(are_coded & ~is_b) > 1))
    irregularity = ""
    if not is_output.all():
        irregularity = _CUT if are_coded.all() else PACKED
        doubt = doubt or irregularity
    return StreamHeaders(
        is_random_access=(np.array(kinds) == _I) & are_coded,
        is_closed=np.zeros(len(kinds), bool),
        is_reference=are_coded & ~is_b,
        is_output=is_output,
        order=_display_order(are_coded & ~is_b, are_coded),
        irregularity=irregularity,
        doubt=doubt,
        changes_sets=len(layers) > 1,
    )


def _increment_bits(layers: Mapping[bytes, _Layer | None]) -> int:
    layer = next(iter(layers.values()), None)
    return layer.increment_bits if layer else 1


def _layers(data: bytes) -> dict[bytes, _Layer | None]:
    """The video object layers among some headers, by their bytes up to the next start code."""
    contents = (match[1].rstrip(b"\0") for match in _VOL.finditer(data))
    return {content: _read_layer(content + bytes(4)) for content in contents}


def _user_data(data: bytes) -> set[bytes]:
    """The user data among some headers."""
    return {match[1].rstrip(b"\0") for match in _USER_DATA.finditer(data)}


def _display_order(is_anchor: np.ndarray, is_coded: np.ndarray) -> np.ndarray:
    """(N,) places in presentation order; an anchor is what B pictures are predicted from."""
    if is_anchor.all():
        return np.arange(len(is_anchor))
    order = np.zeros(len(is_anchor), np.int64)
    place, waiting = 0, -1
    for number, (anchor, coded) in enumerate(zip(is_anchor.tolist(), is_coded.tolist(), strict=True)):
        if anchor:
            if waiting >= 0:
                order[waiting] = place
                place += 1
            waiting = number
        else:
            order[number] = place
            place += coded
    if waiting >= 0:
        order[waiting] = place
    return order
