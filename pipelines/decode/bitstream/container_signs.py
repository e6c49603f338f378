"""Look in a container for what its packets do not show: encryption, and signs that not all packets are displayed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

_PARENT_BOXES = {b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"}  # boxes that contain boxes (ISO/IEC 14496-12)
_ENCRYPTED_ENTRIES = {b"encv", b"drmi"}  # sample entries: common encryption, and that of purchased videos
_ASF_ENCRYPTION = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e")  # GUID of the Content Encryption Object
_ASF_EXTENDED_ENCRYPTION = bytes.fromhex("14e68a29c2264c17b935dae07ee9289c")
_TS_PACKET, _TS_SYNC = 188, b"\x47"
_TS_MAX_BYTES = 1 << 24  # bytes that are inspected of a transport stream
_SAMPLE_AES = 0xDB  # stream type of H.264 with partly encrypted samples
_MAX_BOXES = 1 << 16
_MAX_BOX_DEPTH = 10  # levels of boxes within boxes

ReadBytes = Callable[[int, int], bytes]  # (start, end) -> these bytes of the file, fewer at its end


class ContainerSigns(NamedTuple):
    """Signs in a container; `doubt` says why packets may not correspond to displayed frames, empty if they seem to."""

    is_encrypted: bool = False
    is_fragmented: bool = False  # an MP4 that lists its packets in fragments all over the file
    doubt: str = ""


def inspect_container(format_name: str, read: ReadBytes, metadata: Mapping[str, str], stream_id: int) -> ContainerSigns:
    """Look for signs in a container; `format_name` is FFmpeg's, `metadata` and `stream_id` are the video stream's."""
    if "mp4" in format_name:
        return _inspect_mp4(read)
    if "matroska" in format_name:
        return ContainerSigns(is_encrypted="enc_key_id" in {key.lower() for key in metadata})
    if format_name == "asf":
        head = read(0, 1 << 16)
        return ContainerSigns(is_encrypted=_ASF_ENCRYPTION in head or _ASF_EXTENDED_ENCRYPTION in head)
    if format_name == "mpegts":
        return ContainerSigns(is_encrypted=is_scrambled(read(0, _TS_MAX_BYTES), stream_id))
    return ContainerSigns()


def is_scrambled(data: bytes, pid: int) -> bool:
    """Return whether the stream `pid` of an MPEG transport stream is encrypted (ISO/IEC 13818-1, 2.4.3.2).

    Either its packets are, or, in HTTP Live Streaming, parts of its samples.
    """
    start = data.find(_TS_SYNC)
    count = (len(data) - start) // _TS_PACKET
    if start < 0 or not count:
        return False
    packets = np.frombuffer(data, np.uint8, count * _TS_PACKET, start).reshape(count, _TS_PACKET)
    pids = (packets[:, 1].astype(int) & 0x1F) << 8 | packets[:, 2]
    is_synced = packets[:, 0] == _TS_SYNC[0]
    if (is_synced & (pids == pid) & (packets[:, 3] >> 6 != 0)).any():
        return True

    def first_section(section_pid: int) -> bytes:
        """Return the first section of a stream, as far as one packet contains it."""
        matches = np.flatnonzero(is_synced & (pids == section_pid) & (packets[:, 1] >> 6 & 1 == 1))
        if not len(matches):
            return b""
        packet = packets[matches[0]].tobytes()
        payload = packet[5 + packet[4] :] if packet[3] & 0x20 else packet[4:]
        return payload[1 + payload[0] :] if payload else b""

    programs = first_section(0)
    for program in range(8, min(len(programs), 3 + _read_length(programs, 1)) - 4, 4):
        streams = first_section(_read_length(programs, program + 2, 0x1FFF))
        end = min(len(streams), 3 + _read_length(streams, 1)) - 4
        stream = 12 + _read_length(streams, 10)
        while stream + 5 <= end:
            if _read_length(streams, stream + 1, 0x1FFF) == pid:
                return streams[stream] == _SAMPLE_AES
            stream += 5 + _read_length(streams, stream + 3)
    return False


def _read_length(data: bytes, offset: int, mask: int = 0xFFF) -> int:
    return int.from_bytes(data[offset : offset + 2], "big") & mask


def _inspect_mp4(read: ReadBytes) -> ContainerSigns:
    """Look at the top-level boxes of an MP4 up to its first fragment."""
    signs, has_movie = ContainerSigns(), False
    for kind, start, end in top_level_boxes(read):
        if kind == b"moof":
            return signs._replace(is_fragmented=True, doubt=signs.doubt or "fragments")
        if kind == b"moov" and not has_movie:  # FFmpeg ignores a second one
            has_movie = True
            signs = _inspect_movie(read(start, end))
    return signs


def top_level_boxes(read: ReadBytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the content of each box of a file; one that extends to its end has a large end."""
    offset = 0
    for _ in range(_MAX_BOXES):
        header = read(offset, offset + 16)
        if len(header) < 8:
            return
        size, kind = struct.unpack_from(">I4s", header)
        header_size = 8
        if size == 1 and len(header) == 16:
            (size,), header_size = struct.unpack_from(">Q", header, 8), 16
        yield kind, offset + header_size, offset + size if size else offset + (1 << 40)
        if size < 8:  # 0: the box extends to the end of the file
            return
        offset += size


def _inspect_movie(moov: bytes) -> ContainerSigns:
    """Look at the video tracks of a moov box."""
    is_encrypted, doubt = False, ""
    for kind, start, end in boxes(moov, 0, len(moov)):
        if kind != b"trak":
            continue
        contents = {name: moov[first:last] for name, first, last in nested_boxes(moov, start, end)}
        if contents.get(b"hdlr", b"")[8:12] != b"vide":
            continue
        descriptions = contents.get(b"stsd", b"")
        entries = boxes(descriptions, 8, len(descriptions))
        is_encrypted = is_encrypted or any(entry_kind in _ENCRYPTED_ENTRIES for entry_kind, _, _ in entries)
        if int.from_bytes(descriptions[4:8], "big") > 1:
            doubt = doubt or "several sample descriptions"
        if not _is_plain_offset(contents.get(b"elst", b"")):
            doubt = doubt or "an edit list"
    return ContainerSigns(is_encrypted=is_encrypted, doubt=doubt)


def _is_plain_offset(elst: bytes) -> bool:
    """Return whether an edit list only states when the first frame is shown (8.6.6)."""
    if len(elst) < 8:
        return True
    entry = struct.Struct(">QqI" if elst[0] == 1 else ">IiI")
    if int.from_bytes(elst[4:8], "big") != 1 or len(elst) < 8 + entry.size:
        return int.from_bytes(elst[4:8], "big") == 0
    _, media_time, rate = entry.unpack_from(elst, 8)
    return media_time >= 0 and rate == 1 << 16


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the content of each box in a range."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        header_size = 8
        if size == 1 and start + 16 <= end:
            (size,), header_size = struct.unpack_from(">Q", data, start + 8), 16
        box_end = min(start + size, end) if size else end
        if box_end < start + header_size:
            return
        yield kind, start + header_size, box_end
        start = box_end


def nested_boxes(data: bytes, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Yield the boxes of a range and, after each, the boxes within it."""
    for kind, first, last in boxes(data, start, end):
        yield kind, first, last
        if kind in _PARENT_BOXES and depth < _MAX_BOX_DEPTH:
            yield from nested_boxes(data, first, last, depth + 1)
