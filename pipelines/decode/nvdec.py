"""Tell which videos DALI can decode: size limits by codec, chroma and bit depth, of an NVIDIA card or of the CPU.

Everything except `query_capabilities` is a pure function of tables, so that a machine without a card can test it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import av

from pipelines.decode.image_folder import IMAGE_CODECS
from pipelines.decode.video_info import VideoInfo


class Limits(NamedTuple):
    """Coded sizes that a decoder takes; a maximum of 0 means unlimited."""

    min_width: int = 0
    min_height: int = 0
    max_width: int = 0
    max_height: int = 0
    max_macroblocks: int = 0  # of 16x16 video_format
    engines: int = 1  # that decode at the same time
    alignment: int = 1  # width and height must be multiples of it


Format = tuple[str, str, int]  # FFmpeg's name of the codec, chroma ("4:2:0"), bit depth
Capabilities = Mapping[Format, Limits]

# DALI outputs 8-bit RGB and is known to read only this surface format correctly; PyAV decodes all others.
CHROMA, DEPTH = "4:2:0", 8
# Codecs that DALI 2.4 gives to NVDEC and whose frames it numbers correctly -> what width and height must be multiples
# of. DALI refuses MJPEG on NVDEC, although its documentation lists it. It counts every coded frame of AV1 as displayed,
# and almost every AV1 file has hidden frames. Sides of NVDEC's surfaces are multiples of 16, but DALI computes the
# position of chroma from the displayed size: with other sizes colors may be wrong. H.264 and HEVC may have any size,
# since `trim` removes their cropping.
NVDEC_CODECS = {"h264": 1, "hevc": 1, "vp8": 16, "vp9": 16, "mpeg4": 16}
# Folders of images of any chroma and bit depth: DALI decodes them by nvJPEG on a card, and on the CPU.
IMAGES: Capabilities = {(codec, "", 0): Limits() for codec in IMAGE_CODECS.values()}
# DALI's build for the CPU decodes these codecs in any size.
CPU: Capabilities = {**{(codec, CHROMA, DEPTH): Limits() for codec in ("vp8", "vp9", "mjpeg")}, **IMAGES}
# Assumed for a card whose driver does not answer. Hopper has no AV1 decoder (NVDEC application note 13.0).
HOPPER: Capabilities = {
    ("h264", CHROMA, DEPTH): Limits(
        min_width=48, min_height=16, max_width=4096, max_height=4096, max_macroblocks=65_536, engines=7
    ),
    ("hevc", CHROMA, DEPTH): Limits(
        min_width=144, min_height=144, max_width=8192, max_height=8192, max_macroblocks=262_144, engines=7
    ),
    ("vp8", CHROMA, DEPTH): Limits(
        min_width=48, min_height=16, max_width=4096, max_height=4096, max_macroblocks=65_536, engines=7, alignment=16
    ),
    ("vp9", CHROMA, DEPTH): Limits(
        min_width=128, min_height=128, max_width=8192, max_height=8192, max_macroblocks=262_144, engines=7, alignment=16
    ),
    ("mpeg4", CHROMA, DEPTH): Limits(
        min_width=48, min_height=16, max_width=2032, max_height=2032, max_macroblocks=8_192, engines=7, alignment=16
    ),
}

_CODEC_IDS = {"mpeg4": 2, "h264": 4, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}  # cudaVideoCodec
_CHROMA_IDS = {"4:0:0": 0, "4:2:0": 1, "4:2:2": 2, "4:4:4": 3}  # cudaVideoChromaFormat


def reason_refused(info: VideoInfo, capabilities: Capabilities) -> str:
    """Return why DALI cannot decode a video; empty if it can.

    The reason does not mention values of the single file, so that files can be counted by reason.
    """
    chroma, depth = chroma_and_depth(info.pix_fmt)
    limits = capabilities.get((info.codec, chroma, depth))
    is_known = any(codec == info.codec for codec, _, _ in capabilities)
    if not is_known or info.is_image_folder:
        return "" if is_known else info.codec
    if not depth:
        return f"{info.codec} of unknown pixel format"
    if (chroma, depth) != (CHROMA, DEPTH) or limits is None:
        return f"{info.codec} {chroma} {depth} bit"
    if info.irregularity:
        return f"{info.codec} with {info.irregularity}"
    if info.colorspace == "other":
        return f"{info.codec} of an unusual color matrix"
    if info.interlaced:
        return f"interlaced {info.codec}"
    if any(info.crop_offset):
        return f"{info.codec} that is cropped at its top or left"
    if not info.coded_width or not info.coded_height:
        return f"{info.codec} of unknown coded size"
    if info.coded_width < limits.min_width or info.coded_height < limits.min_height:
        return f"{info.codec} below {limits.min_width}x{limits.min_height}"
    macroblocks = -(-info.coded_width // 16) * -(-info.coded_height // 16)
    if (
        0 < limits.max_width < info.coded_width
        or 0 < limits.max_height < info.coded_height
        or 0 < limits.max_macroblocks < macroblocks
    ):
        return f"{info.codec} above {limits.max_width}x{limits.max_height}"
    if info.coded_width % limits.alignment or info.coded_height % limits.alignment:
        return f"{info.codec} whose sides are not multiples of {limits.alignment}"
    return ""


@functools.cache
def chroma_and_depth(pix_fmt: str) -> tuple[str, int]:
    """Return the chroma subsampling ("4:2:0") and bits per component of a pixel format; ("", 0) if it is unknown."""
    try:
        video_format = av.VideoFormat(pix_fmt)
    except ValueError:
        return "", 0
    depth = max(component.bits for component in video_format.components)
    if video_format.is_rgb:
        return "RGB", depth
    if len(video_format.components) < 3:
        return "4:0:0", depth
    horizontal, vertical = 16 // video_format.chroma_width(16), 16 // video_format.chroma_height(16)
    names = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1", (4, 4): "4:1:0"}
    return names.get((horizontal, vertical), ""), depth


def usable_capabilities(capabilities: Capabilities) -> Capabilities:
    """Keep the formats that DALI can use: its codecs, in the only surface format that it reads correctly."""
    return {
        key: limits._replace(alignment=NVDEC_CODECS[key[0]])
        for key, limits in capabilities.items()
        if key[0] in NVDEC_CODECS and key[1:] == (CHROMA, DEPTH)
    }


class _DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS of NVIDIA's cuviddec.h: the first three fields are the question, the others the answer."""

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
        ("_rest", ctypes.c_ubyte * 64),  # histograms, reserved fields, and room for fields of later drivers
    ]


def query_capabilities(device_index: int = 0) -> dict[Format, Limits] | None:
    """Return the limits of every format that a card's NVDEC decodes; None if the driver cannot be asked."""
    import torch  # not at the top: worker processes import this module and must not load torch

    if not torch.cuda.is_available():
        return None
    try:
        get_decoder_caps = ctypes.CDLL("libnvcuvid.so.1").cuvidGetDecoderCaps
    except (OSError, AttributeError):
        return None
    with torch.cuda.device(device_index):
        torch.cuda.synchronize()  # creates the device's context if there is none yet
        return query_all_formats(get_decoder_caps)


def query_all_formats(get_decoder_caps: Callable[..., int]) -> dict[Format, Limits] | None:
    """Call cuvidGetDecoderCaps for every format; return the limits of the supported ones, None if no call succeeds."""
    capabilities: dict[Format, Limits] = {}
    num_answers = 0
    for video_format, caps in _queries():
        if get_decoder_caps(ctypes.byref(caps)) != 0:
            continue
        num_answers += 1
        if caps.is_supported:
            capabilities[video_format] = Limits(
                min_width=caps.min_width,
                min_height=caps.min_height,
                max_width=caps.max_width,
                max_height=caps.max_height,
                max_macroblocks=caps.max_macroblocks,
                engines=caps.engines or 1,
            )
    return capabilities if num_answers else None


def _queries() -> Iterator[tuple[Format, _DecodeCaps]]:
    for codec, codec_id in _CODEC_IDS.items():
        for chroma, chroma_id in _CHROMA_IDS.items():
            for depth in (8, 10, 12):
                yield (codec, chroma, depth), _DecodeCaps(codec_id, chroma_id, depth - 8)
