"""Open a container, find its video stream and read its packets."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import av

logging.getLogger("libav").setLevel(logging.CRITICAL)  # damage is reported once, as a ValueError with the path
av.logging.set_level(av.logging.PANIC)

# A title in another encoding than UTF-8 is no reason to refuse a video. PyAV 19 has no such option any more.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_container(file: Any, name: str) -> av.container.InputContainer:
    """Open a path or a file object. Raises ValueError with `name` and the reason if it is not a video."""
    if isinstance(file, io.BytesIO) and not file.getbuffer().nbytes:
        raise ValueError(f"{name}: empty file")
    try:
        return av.open(file, "r", **_ANY_METADATA)
    except av.error.FFmpegError as error:
        raise ValueError(f"{name}: not a readable video: {error.strerror}") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None


def video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """Return the first video stream, one that is not a cover picture if there is one.

    Raises ValueError with `name` if there is no video stream or FFmpeg does not know its codec.
    """
    if not container.streams.video:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no streams at all"
        raise ValueError(f"{name}: no video stream (the file has: {kinds})")
    cover = av.stream.Disposition.attached_pic
    without_covers = [stream for stream in container.streams.video if not stream.disposition & cover]
    stream = (without_covers or container.streams.video)[0]
    if stream.codec_context is None:
        raise ValueError(f"{name}: FFmpeg does not know the codec of the video stream")
    # Otherwise FFmpeg crops less at the left than the stream says, to keep rows aligned in memory.
    stream.codec_context.flags |= av.codec.context.Flags.unaligned
    return stream


def read_packets(container: av.container.InputContainer, stream: av.VideoStream, name: str) -> Iterator[av.Packet]:
    """Yield the packets of a stream that are not empty; of a truncated file those before its end.

    Raises ValueError with `name` and the reason if reading fails before the first packet.
    """
    has_packets = False
    try:
        for packet in container.demux(stream):
            if packet.size:
                has_packets = True
                yield packet
    except (av.error.FFmpegError, IndexError) as error:  # PyAV raises IndexError if a stream appears midway
        if not has_packets:
            raise ValueError(f"{name}: unreadable: {getattr(error, 'strerror', error)}") from None
