"""Read from the first frame of a video what its container does not say reliably."""

from __future__ import annotations

from typing import NamedTuple

import av

from pipelines.decode.bitstream.parameter_sets import read_sps
from pipelines.decode.color import name_colorspace
from pipelines.decode.demuxer import VideoDemuxer


class FirstFrame(NamedTuple):
    """Properties of a video, read from its first frame and from the parameter set that this was decoded with."""

    rotation: int  # quarter turns, counterclockwise, by which a player turns the frames
    pix_fmt: str
    interlaced: bool
    coded_size: tuple[int, int]  # width, height; (0, 0) if unknown
    crop_offset: tuple[int, int]  # left, top
    colorspace: str  # as `VideoInfo.colorspace`


def read_first_frame(video: VideoDemuxer, frame: av.VideoFrame | None = None) -> FirstFrame:
    """Return the properties of the first frame, which is decoded from the first packet unless it is passed.

    If the first packet gives no frame, the container's values are returned and the frame table is in doubt.
    """
    context = video.stream.codec_context
    if frame is None:
        frame = next(video.decode(video.first_packet()), None)
        context.flush_buffers()
        video.doubt = video.doubt or _doubt_of_first_frame(video, frame)
    video.first_frame = frame
    sps = read_sps(video.codec, context.extradata or b"", bytes(video.raw_packets[0]))
    if sps and sps.visible_size != (video.width, video.height):  # the frames are decoded with another SPS
        coded_size, crop_offset = (0, 0), (0, 0)
    elif sps:
        coded_size, crop_offset = (sps.coded_width, sps.coded_height), (sps.crop_left, sps.crop_top)
    else:  # decoders crop only H.264 and HEVC, and only their SPS says by how much
        coded_size = (0, 0) if video.codec in ("h264", "hevc") else (video.width, video.height)
        crop_offset = (0, 0)
    if frame is None:
        return FirstFrame(
            rotation=0,
            pix_fmt=context.pix_fmt or "",
            interlaced=bool(sps and sps.interlaced),
            coded_size=coded_size,
            crop_offset=crop_offset,
            colorspace="",
        )
    return FirstFrame(
        rotation=round(frame.rotation / 90) % 4,
        pix_fmt=frame.format.name,
        interlaced=sps.interlaced if sps else frame.interlaced_frame,
        coded_size=coded_size,
        crop_offset=crop_offset,
        colorspace=name_colorspace(frame.colorspace),
    )


def _doubt_of_first_frame(video: VideoDemuxer, frame: av.VideoFrame | None) -> str:
    """Return the reason why a first frame casts doubt on the frame table; empty if it does not."""
    if frame is None:
        return "a first packet without a frame"
    if frame.is_corrupt:
        return "a damaged first frame"
    if (frame.width, frame.height) != (video.width, video.height):
        return "frames of another size than the container says"
    return ""
