"""Encode frames into video files: fixed groups of pictures, tagged colors, one packet per picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

CODECS = {"vp9": "libvpx-vp9", "h264": "libx264", "hevc": "libx265", "mjpeg": "mjpeg"}
_DEFAULT_OPTIONS = {
    "vp9": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "auto-alt-ref": "0", "b": "0"},
    "h264": {"preset": "veryfast", "x264-params": "force-cfr=1"},
    "hevc": {"preset": "ultrafast", "x265-params": "pools=none:frame-threads=1:log-level=none"},
}
CRF = {"vp9": 30, "h264": 23, "hevc": 26, "mjpeg": 5}  # mjpeg: quantizer scale, 2 (best) to 31
GOP = 12


def check_coding(codec: str, gop: int | None, bframes: int, open_gop: bool = False) -> None:
    """Raise ValueError for settings that a codec does not support."""
    if codec not in CODECS:
        raise ValueError(f"codec={codec}: expected one of {', '.join(CODECS)}")
    if gop is not None and gop < 1:
        raise ValueError(f"gop={gop}: expected a whole number of at least 1")
    if codec == "mjpeg" and gop not in (None, 1):
        raise ValueError(f"gop={gop}: expected 1 or nothing, since every mjpeg picture is a key frame")
    if bframes < 0 or bframes > 0 and codec not in ("h264", "hevc"):
        raise ValueError(f"bframes={bframes}: expected 0, or more with codec=h264 or hevc")
    if open_gop and not bframes:
        raise ValueError(
            "open_gop=True: expected bframes > 0, since without B-frames every group of pictures is closed"
        )


# One keyword per property of the file: a settings object would only repeat them.
def encode_video(  # noqa: PLR0913
    file: str | os.PathLike | BinaryIO,
    frames: Iterable[np.ndarray | av.VideoFrame],
    fps: Fraction | int,
    codec: str = "vp9",
    *,
    gop: int | None = None,
    bframes: int = 0,
    open_gop: bool = False,
    crf: int | None = None,
    options: Mapping[str, str] | None = None,
    encoder: str = "",
) -> None:
    """Encode uint8 (H, W, 3) RGB arrays, or FFmpeg's frames, as MP4 to a path or a seekable file object.

    H and W must be even. There is a key frame every `gop` frames (default 12; mjpeg: every frame) and nowhere else, one
    packet per picture, a constant rate, and always `bframes` B-frames between two P-frames. crf: quality, lower is
    better (mjpeg: quantizer scale, 2 to 31). Colors are BT.601, limited range (mjpeg: full range), 4:2:0. `options` of
    the encoder replace the defaults for the codec; `encoder` is the name of an NVENC encoder.

    Raises ValueError for settings that the codec does not support.
    """
    check_coding(codec, gop, bframes, open_gop)
    gop, crf = gop or GOP, CRF[codec] if crf is None else crf
    pix_fmt, color_range = ("yuvj420p", ColorRange.JPEG) if codec == "mjpeg" else ("yuv420p", ColorRange.MPEG)
    if codec == "mjpeg":
        encoder_options = {"qmin": f"{crf}", "qmax": f"{crf}"}
    elif encoder:
        encoder_options = _nvenc_options(codec, gop, bframes, crf)
    else:
        encoder_options = _software_options(_DEFAULT_OPTIONS[codec] | dict(options or {}), gop, bframes, open_gop, crf)
    target: Any = file if hasattr(file, "write") else os.fspath(file)
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream(encoder or CODECS[codec], rate=Fraction(fps), options=encoder_options)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt, stream.colorspace, stream.color_range = pix_fmt, Colorspace.ITU601, color_range
        if codec == "hevc":
            stream.codec_context.codec_tag = "hvc1"
        reformatter = VideoReformatter()  # one for all frames: setting it up takes longer than converting a small frame
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24") if isinstance(image, np.ndarray) else image
            if index == 0:
                stream.height, stream.width = frame.height, frame.width
            frame = reformatter.reformat(
                frame, format=pix_fmt, dst_colorspace=Colorspace.ITU601, dst_color_range=color_range
            )
            frame.pict_type = av.video.frame.PictureType.NONE  # the encoder would keep the type of a decoded frame
            frame.pts, frame.time_base = index, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _software_options(options: dict[str, str], gop: int, bframes: int, open_gop: bool, crf: int) -> dict[str, str]:
    """Return `options` of libvpx, x264 or x265 with quality and the structure of the groups of pictures added."""
    options = options | {"crf": f"{crf}", "g": f"{gop}", "keyint_min": f"{gop}", "threads": "1"}
    structure = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:b-adapt=0:open-gop={int(open_gop)}"
    for name in {"x264-params", "x265-params"} & set(options):
        options[name] += f":{structure}"
    return options


def _nvenc_options(codec: str, gop: int, bframes: int, crf: int) -> dict[str, str]:
    """Return options of NVENC: constant quality, IDR pictures at fixed distances, B-frames not used as references."""
    options = {
        "g": f"{gop}",
        "bf": f"{bframes}",
        "cq": f"{crf}",
        "rc": "vbr",
        "preset": "p4",
        "b_adapt": "0",
        "no-scenecut": "1",
        "forced-idr": "1",
        "strict_gop": "1",
        "b_ref_mode": "disabled",
    }
    return options | {"coder": "cavlc"} if codec == "h264" else options
