"""Find out from a container what its packets do not tell: encryption, and signs that they are not the frames shown."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

_TREE = {b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"}  # boxes that hold boxes (ISO/IEC 14496-12)
_ENCRYPTED = {b"encv", b"drmi"}  # sample entries: common encryption, and that of bought videos
_ASF_ENCRYPTION = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e")  # of the Content Encryption Object
_ASF_EXTENDED_ENCRYPTION = bytes.fromhex("14e68a29c2264c17b935dae07ee9289c")
_TS_PACKET, _TS_SYNC = 188, b"\x47"
_TS_READ = 1 << 24  # bytes of a transport stream that are looked at
_SAMPLE_AES = 0xDB  # stream type of H.264 whose samples are encrypted in part
_MOST_BOXES = 1 << 16
_DEEPEST = 10  # boxes within boxes

ReadBytes = Callable[[int, int], bytes]  # the bytes from a place of the file to another; fewer at its end


class ContainerSigns(NamedTuple):
    """What was found; `doubt` says why the packets may not be the frames, empty: nothing was seen."""

    is_encrypted: bool = False
    in_fragments: bool = False  # of an MP4: its packets are listed bit by bit all over the file
    doubt: str = ""


def inspect_container(format_name: str, read: ReadBytes, metadata: Mapping[str, str], stream_id: int) -> ContainerSigns:
    """Look for signs in a container; `format_name` is FFmpeg's, the others are of the video stream."""
    if "mp4" in format_name:
        return _inspect_mp4(read)
    if "matroska" in format_name:
        return ContainerSigns("enc_key_id" in {key.lower() for key in metadata})
    if format_name == "asf":
        head = read(0, 1 << 16)
        return ContainerSigns(_ASF_ENCRYPTION in head or _ASF_EXTENDED_ENCRYPTION in head)
    if format_name == "mpegts":
        return ContainerSigns(is_scrambled(read(0, _TS_READ), stream_id))
    return ContainerSigns()


def is_scrambled(data: bytes, pid: int) -> bool:
    """Tell whether the stream `pid` of an MPEG transport stream is encrypted (ISO/IEC 13818-1, 2.4.3.2): its packets,
    or, as HTTP Live Streaming does it, parts of its samples."""
    start = data.find(_TS_SYNC)
    count = (len(data) - start) // _TS_PACKET
    if start < 0 or not count:
        return False
    packets = np.frombuffer(data, np.uint8, count * _TS_PACKET, start).reshape(count, _TS_PACKET)
    pids = (packets[:, 1].astype(int) & 0x1F) << 8 | packets[:, 2]
    is_synced = packets[:, 0] == _TS_SYNC[0]
    if (is_synced & (pids == pid) & (packets[:, 3] >> 6 != 0)).any():
        return True

    def section(of: int) -> bytes:
        """The first section of a stream, as far as one packet holds it."""
        found = np.flatnonzero(is_synced & (pids == of) & (packets[:, 1] >> 6 & 1 == 1))
        if not len(found):
            return b""
        packet = packets[found[0]].tobytes()
        payload = packet[5 + packet[4] :] if packet[3] & 0x20 else packet[4:]
        return payload[1 + payload[0] :] if payload else b""

    programs = section(0)
    for at in range(8, min(len(programs), 3 + _length(programs, 1)) - 4, 4):
        streams = section(_length(programs, at + 2, 0x1FFF))
        end = min(len(streams), 3 + _length(streams, 1)) - 4
        at_stream = 12 + _length(streams, 10)
        while at_stream + 5 <= end:
            if _length(streams, at_stream + 1, 0x1FFF) == pid:
                return streams[at_stream] == _SAMPLE_AES
            at_stream += 5 + _length(streams, at_stream + 3)
    return False


def _length(data: bytes, at: int, mask: int = 0xFFF) -> int:
    return int.from_bytes(data[at : at + 2], "big") & mask


def _inspect_mp4(read: ReadBytes) -> ContainerSigns:
    at, signs, has_movie = 0, ContainerSigns(), False
    for _ in range(_MOST_BOXES):
        head = read(at, at + 16)
        if len(head) < 8:
            break
        size, kind = struct.unpack_from(">I4s", head)
        if size == 1 and len(head) == 16:
            (size,) = struct.unpack_from(">Q", head, 8)
        if kind == b"moof":
            return signs._replace(in_fragments=True, doubt=signs.doubt or "fragments")
        if kind == b"moov" and not has_movie:  # FFmpeg passes over a second one
            has_movie = True
            signs = _inspect_movie(read(at, at + size if size else at + (1 << 40)))
        if size < 8:  # it goes on to the end
            break
        at += size
    return signs


def _inspect_movie(moov: bytes) -> ContainerSigns:
    """Look at the video tracks of a moov box."""
    encrypted, doubt = False, ""
    for kind, start, end in _boxes(moov, 8, len(moov)):
        if kind != b"trak":
            continue
        boxes = {name: moov[first:last] for name, first, last in _tree(moov, start, end)}
        if boxes.get(b"hdlr", b"")[8:12] != b"vide":
            continue
        descriptions = boxes.get(b"stsd", b"")
        encrypted = encrypted or any(kind in _ENCRYPTED for kind, _, _ in _boxes(descriptions, 8, len(descriptions)))
        if int.from_bytes(descriptions[4:8], "big") > 1:
            doubt = doubt or "several sample descriptions"
        if not _is_plain_offset(boxes.get(b"elst", b"")):
            doubt = doubt or "an edit list"
    return ContainerSigns(encrypted, False, doubt)


def _is_plain_offset(elst: bytes) -> bool:
    """Tell whether an edit list only says when the first frame is shown (8.6.6)."""
    if len(elst) < 8:
        return True
    entry = struct.Struct(">QqI" if elst[0] == 1 else ">IiI")
    if int.from_bytes(elst[4:8], "big") != 1 or len(elst) < 8 + entry.size:
        return int.from_bytes(elst[4:8], "big") == 0
    _, media_time, rate = entry.unpack_from(elst, 8)
    return media_time >= 0 and rate == 1 << 16


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of a range: kind, where the content begins, where it ends."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            (size,), head = struct.unpack_from(">Q", data, start + 8), 16
        last = min(start + size, end) if size else end
        if last < start + head:
            return
        yield kind, start + head, last
        start = last


def _tree(data: bytes, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    for kind, first, last in _boxes(data, start, end):
        yield kind, first, last
        if kind in _TREE and depth < _DEEPEST:
            yield from _tree(data, first, last, depth + 1)
