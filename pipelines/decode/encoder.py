"""Frames into video files: fixed groups of pictures, tagged colours, one packet a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

CODECS = {"vp9": "libvpx-vp9", "h264": "libx264", "hevc": "libx265", "mjpeg": "mjpeg"}
CODER = {
    "vp9": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "auto-alt-ref": "0", "b": "0"},
    "h264": {"preset": "veryfast", "x264-params": "force-cfr=1"},
    "hevc": {"preset": "ultrafast", "x265-params": "pools=none:frame-threads=1:log-level=none"},
}
CRF = {"vp9": 30, "h264": 23, "hevc": 26, "mjpeg": 5}  # for mjpeg the quantiser scale, 2 (best) to 31
GOP = 12


def check_coding(codec: str, gop: int | None, bframes: int, open_gop: bool = False) -> None:
    """ValueError for what a codec cannot do."""
    if codec not in CODECS:
        raise ValueError(f"codec={codec}: expected one of {', '.join(CODECS)}")
    if gop is not None and gop < 1:
        raise ValueError(f"gop={gop}: expected a whole number of at least 1")
    if codec == "mjpeg" and gop not in (None, 1):
        raise ValueError(f"gop={gop}: every mjpeg picture is a key frame, expected 1 or nothing")
    if bframes < 0 or bframes > 0 and codec not in ("h264", "hevc"):
        raise ValueError(f"bframes={bframes}: expected 0, or more with codec=h264 or hevc")
    if open_gop and not bframes:
        raise ValueError("open_gop=True: expected bframes > 0, without them every group of pictures is closed")


def encode(
    file: str | os.PathLike | BinaryIO,
    frames: Iterable[np.ndarray | av.VideoFrame],
    fps: Fraction | int,
    codec: str = "vp9",
    gop: int | None = None,
    bframes: int = 0,
    open_gop: bool = False,
    crf: int | None = None,
    coder: Mapping[str, str] | None = None,
    encoder: str = "",
) -> None:
    """uint8 (H, W, 3) RGB, or FFmpeg's frames → mp4 at a path or in a writable, seekable binary file. H and W even.

    A key frame every `gop` frames (12 when None; mjpeg: all), nowhere else; one packet a picture; constant rate.
    `bframes` between two P pictures, always as many. crf: quality, lower is better (mjpeg: quantiser scale, 2-31).
    Colours are BT.601, limited range (mjpeg: full range), 4:2:0. `coder` are options of the encoder that replace those
    of CODER, `encoder` is one of NVENC's.
    """
    check_coding(codec, gop, bframes, open_gop)
    gop, crf = gop or GOP, CRF[codec] if crf is None else crf
    x26 = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:b-adapt=0:open-gop={int(open_gop)}"
    if codec == "mjpeg":
        options, pix_fmt, colour_range = {"qmin": f"{crf}", "qmax": f"{crf}"}, "yuvj420p", ColorRange.JPEG
    else:
        pix_fmt, colour_range = "yuv420p", ColorRange.MPEG
        options = CODER[codec] | dict(coder or {})
        options |= {"crf": f"{crf}", "g": f"{gop}", "keyint_min": f"{gop}", "threads": "1"}
        for name in {"x264-params", "x265-params"} & set(options):
            options[name] += f":{x26}"
        if encoder:  # constant quality, key frames IDR at fixed places, B-frames no references
            options = {"g": f"{gop}", "bf": f"{bframes}", "cq": f"{crf}", "rc": "vbr", "preset": "p4", "b_adapt": "0",
                       "no-scenecut": "1", "forced-idr": "1", "strict_gop": "1", "b_ref_mode": "disabled"}  # fmt: skip
            options |= {"coder": "cavlc"} if codec == "h264" else {}
    target: Any = file if hasattr(file, "write") else os.fspath(file)
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream(encoder or CODECS[codec], rate=Fraction(fps), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt, stream.colorspace, stream.color_range = pix_fmt, Colorspace.ITU601, colour_range
        if codec == "hevc":
            stream.codec_context.codec_tag = "hvc1"
        reformatter = VideoReformatter()  # one for all frames: what it prepares takes longer than a small frame
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24") if isinstance(picture, np.ndarray) else picture
            if i == 0:
                stream.height, stream.width = frame.height, frame.width
            frame = reformatter.reformat(
                frame, format=pix_fmt, dst_colorspace=Colorspace.ITU601, dst_color_range=colour_range
            )
            frame.pict_type = av.video.frame.PictureType.NONE  # a decoded frame's own would be taken for a wish
            frame.pts, frame.time_base = i, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
