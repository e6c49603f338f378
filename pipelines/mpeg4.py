"""Read the headers of MPEG-4 part 2 video (ISO/IEC 14496-2), and take apart packets that hold two pictures.

XviD and DivX wrote streams with B-frames into AVI, which has no place for two times of a frame, as *packed* packets:
one holds a P picture and the B picture that is shown before it, a later one of a few bytes only keeps the count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import av
import numpy as np

from pipelines.bit_reader import BitReader
from pipelines.bitstream import StreamHeaders

PACKED = "packed B-frames"
_START_CODE, _VOP, _USER_DATA = b"\0\0\1", 0xB6, 0xB2
_VOL = range(0x20, 0x30)
_I, _B = 0, 2  # vop_coding_type; P is 1, S (a sprite, predicted like P) 3
_MOST_PLACEHOLDER = 19  # bytes of a packet that may stand for a picture which came before; FFmpeg's bound


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


def _read_vop(data: bytes, layers: Mapping[bytes, _Layer | None]) -> _Vop:
    """Read a VOP's header, behind its start code (6.2.5); ValueError where it is cut short."""
    bits, layer = BitReader(data[:32]), next(iter(layers.values()), None)
    kind = bits.read(2)
    if len(data) > _MOST_PLACEHOLDER:
        return _Vop(kind, True)
    while bits.read():  # modulo_time_base
        pass
    bits.read(1 + (layer.increment_bits if layer else 1) + 1)
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
    if not any(len(starts) > 1 or not starts for starts in vops):
        return list(packets)
    unpacked: list[av.Packet] = []
    ahead = b""  # headers of a packet without a picture belong to the next one
    for packet, content, starts in zip(packets, contents, vops, strict=True):
        if not starts:
            ahead += content if content.startswith(_START_CODE) else b""
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
    vops = []
    doubt = ""
    for data in packets:
        starts = _start_codes(data, _VOP)
        layers |= _layers(data[: starts[0]] if starts else data)
        if len(starts) != 1:
            doubt = doubt or PACKED
        if not _user_data(data[: starts[0]] if starts else data) <= known_data:
            # It names the coder, whose mistakes FFmpeg makes up for once it has seen it.
            doubt = doubt or "user data beside the parameter sets"
        try:
            vops.append(_read_vop(data[starts[0] + 4 :], layers) if starts else _NO_VOP)
        except ValueError:
            vops.append(_NO_VOP)
            doubt = doubt or "headers that cannot be read"
    if len(layers) > 1:
        doubt = doubt or "parameter sets that change midway"
    if any(vop.kind == _B for vop in vops) and not all(layer and layer.low_delay is False for layer in layers.values()):
        doubt = doubt or "B-frames that its header does not announce"
    is_output = [vop.is_coded for vop in vops]
    if not all(is_output):
        doubt = doubt or "packets without a picture"
    return StreamHeaders(
        is_random_access=np.array([vop.kind == _I and vop.is_coded for vop in vops]),
        is_closed=np.zeros(len(vops), bool),
        is_reference=np.array([vop.kind != _B and vop.is_coded for vop in vops]),
        is_output=np.array(is_output),
        order=_display_order(vops),
        irregularity="" if all(is_output) else PACKED,
        doubt=doubt,
    )


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
