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

from pipelines.bit_reader import BitReader
from pipelines.bitstream import StreamHeaders

PACKED = "packed B-frames"
_CUT = "B-frames before the second picture that they refer to"
_START_CODE, _VOP, _USER_DATA = b"\0\0\1", 0xB6, 0xB2
_VOL = range(0x20, 0x30)
_MOST_HEADERS = 1 << 16  # bytes of headers that are kept for the next picture
_I, _B = 0, 2  # vop_coding_type; P is 1, S (a sprite, predicted like P) 3
# FFmpeg decodes a stream that an unknown coder made according to its container's name for it, and rounds as that
# coder did. A trimmed file has another name.
_CODER = re.compile(rb"XviD|DivX|Lavc|FFmpe|ffmpeg", re.I)
_NAMES_WITHOUT_MEANING = {"mp4v", "fmp4", "\0\0\0\0"}
_NAMES_OF_CODERS = {"xvid", "divx", "dx50"}  # whose user data says the same


class _Vop(NamedTuple):
    kind: int
    is_coded: bool  # False: it repeats the picture before, and no decoder gives a frame for it


_NO_VOP = _Vop(1, False)


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


def _read_vop(data: bytes, increment_bits: int) -> _Vop:
    """Read a VOP's header, behind its start code (6.2.5); ValueError where it is cut short."""
    bits = BitReader(data)
    kind = bits.read(2)
    while bits.read():  # modulo_time_base
        pass
    bits.read(1 + increment_bits + 1)
    return _Vop(kind, bool(bits.read()))


def _start_codes(data: bytes, of: int) -> list[int]:
    """Where the start codes of a kind lie in a packet."""
    code, found = _START_CODE + bytes([of]), []
    at = data.find(code)
    while at >= 0:
        found.append(at)
        at = data.find(code, at + 4)
    return found


def unpack(packets: Sequence[av.Packet]) -> list[av.Packet]:
    """Packets of one picture each, in decode order; the same ones if none holds two or only stands for one."""
    contents = [bytes(packet) for packet in packets]
    vops = [_start_codes(content, _VOP) for content in contents]
    if all(len(starts) == 1 for starts in vops) or not any(vops):
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
    """Read the type of each picture: B pictures are shown at once, all others once the next of them comes."""
    layers, known_data = _layers(extradata), _user_data(extradata)
    bits = _increment_bits(layers)
    vops = []
    doubt = ""
    for data in packets:
        starts = _start_codes(data, _VOP)
        if len(starts) != 1:
            doubt = doubt or PACKED
        if starts != [0]:
            head = data[: starts[0]] if starts else data
            layers |= _layers(head)
            bits = _increment_bits(layers)
            if not _user_data(head) <= known_data:
                # It names the coder, whose mistakes FFmpeg makes up for once it has seen it.
                doubt = doubt or "user data beside the parameter sets"
        try:
            vops.append(_read_vop(data[starts[0] + 4 : starts[0] + 20], bits) if starts else _NO_VOP)
        except ValueError:
            vops.append(_NO_VOP)
            doubt = doubt or "headers that cannot be read"
    if len(layers) > 1:
        doubt = doubt or "parameter sets that change midway"
    if any(vop.kind == _B for vop in vops) and not all(layer and layer.low_delay is False for layer in layers.values()):
        doubt = doubt or "B-frames that its header does not announce"
    is_output = _are_output(vops)
    irregularity = ""
    if not all(is_output):
        irregularity = _CUT if all(vop.is_coded for vop in vops) else PACKED
        doubt = doubt or irregularity
    return StreamHeaders(
        is_random_access=np.array([vop.kind == _I and vop.is_coded for vop in vops]),
        is_closed=np.zeros(len(vops), bool),
        is_reference=np.array([vop.kind != _B and vop.is_coded for vop in vops]),
        is_output=np.array(is_output),
        order=_display_order(vops),
        irregularity=irregularity,
        doubt=doubt,
        changes_sets=len(layers) > 1,
    )


def _increment_bits(layers: Mapping[bytes, _Layer | None]) -> int:
    layer = next(iter(layers.values()), None)
    return layer.increment_bits if layer else 1


def _are_output(vops: Sequence[_Vop]) -> list[bool]:
    """Whether a decoder gives a frame for each; for B pictures only once it has two pictures to predict them from."""
    given, before = [], 0
    for vop in vops:
        given.append(vop.is_coded and (vop.kind != _B or before > 1))
        before += vop.is_coded and vop.kind != _B
    return given


def _layers(data: bytes) -> dict[bytes, _Layer | None]:
    """The video object layers among some headers, by their bytes up to the next start code."""
    found: dict[bytes, _Layer | None] = {}
    for kind in _VOL if data else ():
        for at in _start_codes(data, kind):
            end = data.find(_START_CODE, at + 4)
            content = data[at + 4 : end if end >= 0 else len(data)].rstrip(b"\0")
            found[content] = _read_layer(content + bytes(4))
    return found


def _user_data(data: bytes) -> set[bytes]:
    """The user data among some headers."""
    found = set()
    for at in _start_codes(data, _USER_DATA) if data else ():
        end = data.find(_START_CODE, at + 4)
        found.add(data[at : end if end >= 0 else len(data)].rstrip(b"\0"))
    return found


def _display_order(vops: Sequence[_Vop]) -> np.ndarray:
    order = np.zeros(len(vops), np.int64)
    place, waiting = 0, -1
    for number, vop in enumerate(vops):
        if vop.kind != _B and vop.is_coded:
            if waiting >= 0:
                order[waiting] = place
                place += 1
            waiting = number
        else:
            order[number] = place
            place += vop.is_coded
    if waiting >= 0:
        order[waiting] = place
    return order
