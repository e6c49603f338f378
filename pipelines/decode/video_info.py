"""Read the properties of one video: of a file by demuxing it and reading the headers of its packets, of a folder of
images by decoding the first and the last one.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np

from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.image_folder import IMAGE_CODECS, ImageFolder, is_image_folder
from pipelines.decode.pack_table import pack_table
from pipelines.decode.prove import prove_frame_table
from pipelines.storage import fingerprint

VERSION = 11  # of the fields of VideoInfo; an index with records of another version is read again
NO_FILE = "no such file"
INDEX_TIMEOUT = 300  # seconds for demuxing a file; proving its frame table has additional time per packet


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video, a file or a folder of images. If it cannot be used, `error` says why and num_frames is 0.

    width and height are those of the displayed frame, after `rotation` quarter turns, counterclockwise, of the stored
    one.
    """

    path: str
    # The size in bytes and mtime tell whether the file has changed since, or which images are in the folder.
    size: int = 0
    mtime_ns: int = 0
    num_frames: int = 0
    fps: float = 0.0  # 0: unknown, as of a folder of images
    width: int = 0
    height: int = 0
    codec: str = ""
    keyframes: tuple[int, ...] = ()  # frame numbers at which decoding can begin; empty for a folder: all
    rotation: int = 0  # quarter turns
    pix_fmt: str = ""  # FFmpeg's name of the pixel format: chroma and bits per component
    profile: str = ""
    interlaced: bool = False  # H.264: pictures may be coded as fields; other codecs: the first frame is interlaced
    coded_width: int = 0  # of the stored frame before a decoder crops it; 0: unknown
    coded_height: int = 0
    crop_offset: tuple[int, ...] = (0, 0)  # left and top of the visible part of the coded frame
    irregularity: str = ""  # why packets and frames do not correspond one to one (`FrameTable.irregularity`)
    colorspace: str = ""  # the color matrix if the file states another than BT.601's
    proof: str = ""  # how the frame table was proven (`FrameTable.proof`)
    table: str = ""  # the packed frame table (`pack_table`, `ImageFolder.packed_table`)
    packed_times: str = ""  # of the frames, if their rate varies (`pack_times`)
    error: str = ""
    version: int = 0  # VERSION of the code that read the file

    @property
    def frame_times(self) -> np.ndarray | None:
        """The seconds from the first frame to each, (F,), if the frame rate varies; None if it is constant."""
        return unpack_times(self.packed_times) if self.packed_times else None

    @property
    def is_image_folder(self) -> bool:
        return self.codec in IMAGE_CODECS.values()

    @property
    def missing(self) -> bool:
        return self.error == NO_FILE


def pack_times(seconds: np.ndarray) -> str:
    """Return ascending times (F,), which begin with 0, as a short text; they are rounded to microseconds."""
    microseconds = np.round(1e6 * seconds).astype("<i8")
    return base64.b85encode(zlib.compress(np.diff(microseconds).tobytes(), 9)).decode()


def unpack_times(text: str) -> np.ndarray:
    """Return the times (F,) that pack_times() packed, in seconds."""
    steps = np.frombuffer(zlib.decompress(base64.b85decode(text)), "<i8")
    return np.concatenate([[0], np.cumsum(steps)]) / 1e6


def unreadable_video_info(path: str, reason: str) -> VideoInfo:
    """Return the record of a file that cannot be used."""
    size, mtime_ns = fingerprint(path)
    error = reason.removeprefix(f"{path}: ") or "unreadable"
    return VideoInfo(path, size=size, mtime_ns=mtime_ns, error=error, version=VERSION)


def read_video_info(path: str) -> VideoInfo:
    """Read the properties of one video. A bad one raises nothing: `error` of the result says what is wrong with it."""
    size, mtime_ns = fingerprint(path)
    try:
        if is_image_folder(path):
            return _read_folder_info(path, size, mtime_ns)
        with VideoDemuxer(path, timeout=INDEX_TIMEOUT) as video:
            first_frame = prove_frame_table(video)
            assert first_frame, "prove_frame_table() returns None only for a stored table"
            table, rotation = video.frame_table, first_frame.rotation
            if not table.num_frames:
                raise ValueError(f"{path}: the video has no displayed frames")
            return VideoInfo(
                path=path,
                size=size,
                mtime_ns=mtime_ns,
                num_frames=table.num_frames,
                fps=round(float(video.fps), 4),
                width=video.height if rotation % 2 else video.width,
                height=video.width if rotation % 2 else video.height,
                codec=video.codec,
                keyframes=tuple(table.keyframes.tolist()),
                rotation=rotation,
                pix_fmt=first_frame.pix_fmt,
                profile=video.stream.codec_context.profile or "",
                interlaced=first_frame.interlaced,
                coded_width=first_frame.coded_size[0],
                coded_height=first_frame.coded_size[1],
                crop_offset=first_frame.crop_offset,
                irregularity=table.irregularity,
                colorspace=first_frame.colorspace,
                proof=table.proof,
                table=pack_table(video),
                packed_times=_varying_times(video),
                version=VERSION,
            )
    except ValueError as error:
        return unreadable_video_info(path, str(error))


def _read_folder_info(path: str, size: int, mtime_ns: int) -> VideoInfo:
    """Read the properties of a folder of images, all of which are taken to be like the first and the last one."""
    with ImageFolder(path, timeout=INDEX_TIMEOUT) as folder:
        folder.check_one_sequence()
        first, _ = folder.decode(0), folder.decode(folder.num_frames - 1)
        rotation = round(first.rotation / 90) % 4  # by EXIF
        return VideoInfo(
            path=path,
            size=size,
            mtime_ns=mtime_ns,
            num_frames=folder.num_frames,
            width=first.height if rotation % 2 else first.width,
            height=first.width if rotation % 2 else first.height,
            codec=IMAGE_CODECS[folder.kind],
            rotation=rotation,
            pix_fmt=folder.pix_fmt,
            coded_width=first.width,
            coded_height=first.height,
            proof="bitstream",
            table=folder.packed_table(),
            version=VERSION,
        )


def _varying_times(video: VideoDemuxer) -> str:
    """Return the packed times of the frames if their rate varies and they are known; otherwise an empty text."""
    times = video.frame_times
    if times is None or not video.has_variable_frame_rate or video.stream.time_base is None:
        return ""
    return pack_times((times - times[0]) * float(video.stream.time_base))
