"""What DALI's decoders take: limits of size by codec, chroma and bit depth, of an NVIDIA card or of the CPU.

Everything but `query_capabilities` is a pure function of tables, so that a machine without a card can test it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import av

from pipelines.decode.video_info import Row


class Limits(NamedTuple):
    """Coded sizes that a decoder takes; 0 means unlimited. `engines` of a card decode at the same time, and sides have
    to be multiples of `alignment`."""

    min_width: int = 0
    min_height: int = 0
    max_width: int = 0
    max_height: int = 0
    max_macroblocks: int = 0  # of 16x16 pixels
    engines: int = 1
    alignment: int = 1


Format = tuple[str, str, int]  # FFmpeg's name of the codec, chroma ("4:2:0"), bit depth
Capabilities = Mapping[Format, Limits]

# DALI hands out 8-bit RGB and is known to read only this surface right: deeper or finer ones go to PyAV.
CHROMA, DEPTH = "4:2:0", 8
# Codecs that DALI 2.4 gives to NVDEC and whose frames it numbers rightly, and what their sides must be multiples of.
# MJPEG is refused there, whatever its documentation says; of AV1 every coded frame is taken for one that is shown, and
# almost every file has hidden ones. NVDEC's surfaces have sides of multiples of 16, and DALI looks for chroma by the
# size that is shown: other sizes may get wrong colors. H.264 and HEVC take any size, since `trim` has them show all.
NVDEC_CODECS = {"h264": 1, "hevc": 1, "vp8": 16, "vp9": 16, "mpeg4": 16}
# What DALI's own build for the CPU decodes, of any size.
CPU: Capabilities = {(codec, CHROMA, DEPTH): Limits() for codec in ("vp8", "vp9", "mjpeg")}
# A card that cannot be asked is taken for a Hopper, which has no AV1 decoder (NVDEC application note 13.0).
HOPPER: Capabilities = {
    ("h264", CHROMA, DEPTH): Limits(48, 16, 4096, 4096, 65_536, engines=7),
    ("hevc", CHROMA, DEPTH): Limits(144, 144, 8192, 8192, 262_144, engines=7),
    ("vp8", CHROMA, DEPTH): Limits(48, 16, 4096, 4096, 65_536, engines=7, alignment=16),
    ("vp9", CHROMA, DEPTH): Limits(128, 128, 8192, 8192, 262_144, engines=7, alignment=16),
    ("mpeg4", CHROMA, DEPTH): Limits(48, 16, 2032, 2032, 8_192, engines=7, alignment=16),
}

_CODEC_IDS = {"mpeg4": 2, "h264": 4, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}  # cudaVideoCodec
_CHROMA_IDS = {"4:0:0": 0, "4:2:0": 1, "4:2:2": 2, "4:4:4": 3}  # cudaVideoChromaFormat


def reason_refused(row: Row, capabilities: Capabilities) -> str:
    """Say why DALI should not be given a video; empty if it decodes it.

    The reason names no sizes or other facts of the one file, so that files can be counted by it.
    """
    chroma, depth = chroma_and_depth(row.pix_fmt)
    limits = capabilities.get((row.codec, chroma, depth))
    if not any(codec == row.codec for codec, _, _ in capabilities):
        return row.codec
    if not depth:
        return f"{row.codec} of unknown pixel format"
    if (chroma, depth) != (CHROMA, DEPTH) or limits is None:
        return f"{row.codec} {chroma} {depth} bit"
    if row.irregularity:
        return f"{row.codec} with {row.irregularity}"
    if row.colorspace == "other":
        return f"{row.codec} of an unusual color matrix"
    if row.interlaced:
        return f"interlaced {row.codec}"
    if any(row.crop_offset):
        return f"{row.codec} that is cropped at its top or left"
    if not row.coded_width or not row.coded_height:
        return f"{row.codec} of unknown coded size"
    if row.coded_width < limits.min_width or row.coded_height < limits.min_height:
        return f"{row.codec} below {limits.min_width}x{limits.min_height}"
    macroblocks = -(-row.coded_width // 16) * -(-row.coded_height // 16)
    if (
        0 < limits.max_width < row.coded_width
        or 0 < limits.max_height < row.coded_height
        or 0 < limits.max_macroblocks < macroblocks
    ):
        return f"{row.codec} above {limits.max_width}x{limits.max_height}"
    if row.coded_width % limits.alignment or row.coded_height % limits.alignment:
        return f"{row.codec} whose sides are no multiples of {limits.alignment}"
    return ""


@functools.cache
def chroma_and_depth(pix_fmt: str) -> tuple[str, int]:
    """Return how a pixel format samples chroma, as "4:2:0", and its bits per component; ("", 0) if it is unknown."""
    try:
        pixels = av.VideoFormat(pix_fmt)
    except ValueError:
        return "", 0
    depth = max(component.bits for component in pixels.components)
    if pixels.is_rgb:
        return "RGB", depth
    if len(pixels.components) < 3:
        return "4:0:0", depth
    across, down = 16 // pixels.chroma_width(16), 16 // pixels.chroma_height(16)
    names = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1", (4, 4): "4:1:0"}
    return names.get((across, down), ""), depth


def usable(capabilities: Capabilities) -> Capabilities:
    """Keep what DALI can make use of: its codecs, in the one surface that it reads right."""
    return {
        key: limits._replace(alignment=NVDEC_CODECS[key[0]])
        for key, limits in capabilities.items()
        if key[0] in NVDEC_CODECS and key[1:] == (CHROMA, DEPTH)
    }


class _DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS of NVIDIA's cuviddec.h: three numbers in, the others out."""

    _fields_ = [
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("depth_minus_8", ctypes.c_uint),
        ("_reserved_in", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("engines", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("_rest", ctypes.c_ubyte * 64),  # histograms, reserved; room for what later drivers add
    ]


def query_capabilities(device_index: int = 0) -> dict[Format, Limits] | None:
    """Ask a card's driver what its NVDEC decodes, deeper and finer formats too; None if it cannot be asked."""
    import torch  # here: workers import this module, and not torch

    if not torch.cuda.is_available():
        return None
    try:
        ask = ctypes.CDLL("libnvcuvid.so.1").cuvidGetDecoderCaps
    except (OSError, AttributeError):
        return None
    with torch.cuda.device(device_index):
        torch.cuda.synchronize()  # makes the device's context, if there is none yet
        return _ask_all(ask)


def _ask_all(ask: Callable[..., int]) -> dict[Format, Limits] | None:
    """Collect what cuvidGetDecoderCaps says of every format; None if it never answers."""
    capabilities: dict[Format, Limits] = {}
    answers = 0
    for video_format, caps in _questions():
        if ask(ctypes.byref(caps)) != 0:
            continue
        answers += 1
        if caps.is_supported:
            smallest, largest = (caps.min_width, caps.min_height), (caps.max_width, caps.max_height)
            capabilities[video_format] = Limits(*smallest, *largest, caps.max_macroblocks, caps.engines or 1)
    return capabilities if answers else None


def _questions() -> Iterator[tuple[Format, _DecodeCaps]]:
    for codec, codec_id in _CODEC_IDS.items():
        for chroma, chroma_id in _CHROMA_IDS.items():
            for depth in (8, 10, 12):
                yield (codec, chroma, depth), _DecodeCaps(codec_id, chroma_id, depth - 8)
