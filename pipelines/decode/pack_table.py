"""Pack the proven frame table of a video, with what is needed to open the file quickly the next time."""

from __future__ import annotations

import av

from pipelines.decode.color import name_colorspace
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.frame_table import StoredTable, pack_frame_table
from pipelines.decode.frames import frame_digest
from pipelines.decode.mp4_table import SampleTable, find_sample_table, open_decoder, read_sample_table

_BYTES_PER_COMPARISON = 1 << 22
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG; a file that states no range has limited range


def pack_table(video: VideoDemuxer) -> str:
    """Return the proven frame table as a text, to open the file with later and not prove it again."""
    has_byte_ranges = _has_byte_ranges(video)
    return pack_frame_table(
        StoredTable(
            table=video.frame_table,
            num_packets=len(video.raw_packets),
            num_bytes=sum(packet.size for packet in video.raw_packets),
            has_byte_ranges=has_byte_ranges,
            frame_size=(video.width, video.height),
            sample_table=_find_sample_table(video) if has_byte_ranges else None,
        )
    )


def _find_sample_table(video: VideoDemuxer) -> SampleTable | None:
    """Return where the sample table is if it lists the same packets, and if a decoder that has not seen the
    container gives the same first frame."""
    if "mp4" not in video.container.format.name or video.first_frame is None:
        return None
    config = video.stream.codec_context.extradata or b""
    with video.random_reads() as read:
        table = find_sample_table(read, video.stream.id, config)
        content = read(table.start, table.start + table.size) if table else b""
    try:
        packet_table = read_sample_table(content, table) if table else None
    except ValueError:
        return None
    if not packet_table or packet_table.byte_ranges != video.byte_ranges or packet_table.config != config:
        return None
    frame = next(video.decode(video.first_packet(), open_decoder(packet_table)), None)
    return table if frame is not None and _describe_frame(frame) == _describe_frame(video.first_frame) else None


def _describe_frame(frame: av.VideoFrame) -> tuple[object, ...]:
    """Return what decides which colors are shown: the format, matrix, range and samples of a frame.

    Comparing RGB would not do: a matrix that only the container states makes no difference to a frame that is gray.
    """
    is_full_range = frame.color_range == _FULL_RANGE
    return frame.format.name, name_colorspace(frame.colorspace), is_full_range, frame_digest(frame)


def _has_byte_ranges(video: VideoDemuxer) -> bool:
    """Return whether the packets are exactly the byte ranges of the file that the container's index lists."""
    packets, ranges = video.raw_packets, video.byte_ranges
    if video.frame_table.seek_points or video.is_unpacked or video.is_fragmented or video.has_side_data:
        return False
    if [packet.size for packet in packets] != [end - start for start, end in ranges]:
        return False
    first = num_bytes = 0
    for last, packet in enumerate(packets, 1):
        num_bytes += packet.size
        if num_bytes >= _BYTES_PER_COMPARISON or last == len(packets):
            contents = video.read_ranges(ranges[first:last])
            if any(bytes(p) != content for p, content in zip(packets[first:last], contents, strict=True)):
                return False
            first, num_bytes = last, 0
    return True
