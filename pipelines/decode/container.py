"""Open a container, find the video stream in it, and give the packets that it stores."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import av

logging.getLogger("libav").setLevel(logging.CRITICAL)  # damage is reported as a ValueError, once, with the path
av.logging.set_level(av.logging.PANIC)

# Titles in other encodings than UTF-8 are no reason to refuse a video; PyAV 19 no longer asks.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_container(where: Any, name: str) -> av.container.InputContainer:
    """Open a path or a file object. Raises ValueError with `name` and the reason for what is no video."""
    if isinstance(where, io.BytesIO) and not where.getbuffer().nbytes:
        raise ValueError(f"{name}: empty file")
    try:
        return av.open(where, "r", **_ANY_METADATA)
    except av.error.FFmpegError as error:
        raise ValueError(f"{name}: not a readable video: {error.strerror}") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None


def moving_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """Return a container's video stream; an album's cover is none. Raises ValueError with `name` if it has none."""
    if not container.streams.video:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no streams at all"
        raise ValueError(f"{name}: no video stream (the file has: {kinds})")
    pictures = av.stream.Disposition.attached_pic
    moving = [s for s in container.streams.video if not s.disposition & pictures]
    stream = (moving or container.streams.video)[0]
    if stream.codec_context is None:
        raise ValueError(f"{name}: the video stream is of a codec that FFmpeg does not know")
    # FFmpeg else moves what is cropped at the left, so that rows begin at addresses that it likes.
    stream.codec_context.flags |= av.codec.context.Flags.unaligned
    return stream


def stored_packets(container: av.container.InputContainer, stream: av.VideoStream, name: str) -> Iterator[av.Packet]:
    """Yield the packets of a stream that hold something; of a file cut short those before the cut.

    Raises ValueError with `name` and the reason if a fault leaves none.
    """
    some = False
    try:
        for packet in container.demux(stream):
            if packet.size:
                some = True
                yield packet
    except (av.error.FFmpegError, IndexError) as error:  # an IndexError is PyAV's, of a stream that turned up midway
        if not some:
            raise ValueError(f"{name}: unreadable: {getattr(error, 'strerror', error)}") from None
