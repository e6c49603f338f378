"""List the images of a folder in their natural order, and read or decode some of them: frames of a video.

Datasets ship such folders: clip_0001/img_00001.jpg. Where the names are consecutive numbers the index keeps their
pattern, so that no folder is listed for a clip:

    340x256 yuvj420p 1 300 img_%05d.jpg     300 images of this size and pixel format, from img_00001.jpg on
    340x256 yuvj420p                        other names: the folder is listed each time
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from pipelines.storage import as_value_error, is_remote

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}
IMAGE_CODECS = {"jpeg": "jpeg_images", "png": "png_images"}  # kind of image -> `VideoInfo.codec` of a folder of them
DEFAULT_FPS = 30  # of a video that is made of a folder: images have no rate
_DECODERS = {"jpeg": "mjpeg", "png": "png"}  # kind of image -> FFmpeg's decoder
_NUMBER = re.compile(r"([0-9]+)")
_PNG_START, _JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# JPEG markers: those of frame headers, and those without a length.
_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = {0x01, *range(0xD0, 0xD9)}


class ImageHeader(NamedTuple):
    """The kind of an encoded image, jpeg or png, and its size as it is stored."""

    kind: str
    width: int
    height: int


class ImageFolder:
    """The images of a folder as the frames of a video, numbered from 0 in the natural order of their names.

    `table` is packed_table() of an earlier call, which says what all images must be. Without it the first image that is
    read says so. Raises ValueError with the path for a folder without images, for an image that is missing, broken or
    of another kind, size or pixel format, and if more than `timeout` seconds have passed since the folder was opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = math.inf, table: str = ""):
        self.name, self.timeout, self._opened_at = os.fspath(path), timeout, time.monotonic()
        size, self.pix_fmt, *pattern = table.split(" ", 2) if table else ("", "")
        self.size = tuple(map(int, size.split("x"))) if size else ()  # width, height; empty until an image is read
        self.kind = ""  # of the images, jpeg or png; empty until one is read
        self._context: Any = None
        self.names = expand_pattern(pattern[0]) if pattern else list_images(self.name)
        if not self.names:
            raise ValueError(f"{self.name}: a folder without images ({', '.join(sorted(IMAGE_SUFFIXES))})")

    def __enter__(self) -> ImageFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._context = None

    @property
    def num_frames(self) -> int:
        return len(self.names)

    def check_one_sequence(self) -> None:
        """Raise ValueError if there are images of several numbered names, as where optical flow lies beside the frames.

        Their order would be that of the names, one sequence after the other.
        """
        counts = Counter(_NUMBER.sub("#", os.path.splitext(name)[0]) for name in self.names)
        sequences = [f"{name} ({count})" for name, count in counts.items() if "#" in name and count > 1]
        if len(sequences) > 1:
            some = ", ".join(sequences[:4])
            raise ValueError(f"{self.name}: {len(sequences)} sequences of images, {some}: expected one per folder")

    def packed_table(self) -> str:
        """Return what the index keeps, after an image was decoded."""
        assert self.pix_fmt, "no image was decoded"
        return f"{self.size[0]}x{self.size[1]} {self.pix_fmt} {find_pattern(self.names)}".rstrip()

    def read(self, number: int) -> bytes:
        """Return an encoded image."""
        if time.monotonic() - self._opened_at > self.timeout:
            raise ValueError(f"{self.name}: not read within {self.timeout:g} seconds")
        name = self.names[number]
        with as_value_error(f"{self.name}: {name}"), open(os.path.join(self.name, name), "rb", buffering=0) as file:
            data = file.read()
        header = read_header(data)
        if header is None:
            raise ValueError(f"{self.name}: {name}: {'not a JPEG or PNG image' if data else 'empty file'}")
        kind, *size = header
        self.kind, self.size = self.kind or kind, self.size or tuple(size)
        if kind != self.kind:
            raise ValueError(f"{self.name}: the kind of image changes from {self.kind} to {kind} at {name}")
        if tuple(size) != self.size:
            before, after = (f"{width}x{height}" for width, height in (self.size, size))
            raise ValueError(f"{self.name}: the frame size changes from {before} to {after} at {name}")
        return data

    def decode(self, number: int) -> av.VideoFrame:
        """Decode an image on one thread, because worker processes run in parallel."""
        data, name = self.read(number), self.names[number]
        # FFmpeg's PNG decoder cannot be used twice: it predicts the next image from remains of the one before.
        if self._context is None or self.kind == "png":
            self._context = av.CodecContext.create(_DECODERS[self.kind], "r")
            self._context.thread_count = 1
            self._context.options = {"err_detect": "explode"}  # without it, what is damaged becomes gray
        try:
            (frame,) = self._context.decode(av.Packet(data))
        except (av.error.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", "") or "it gives no frame"
            raise ValueError(f"{self.name}: {name}: a broken {self.kind} image: {reason}") from None
        self.pix_fmt = self.pix_fmt or frame.format.name
        if frame.format.name != self.pix_fmt:
            change = f"from {self.pix_fmt} to {frame.format.name}"
            raise ValueError(f"{self.name}: the pixel format changes {change} at {name}")
        return frame

    def clamp(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frame numbers of which those past the end mean the last image. Raises ValueError for negative ones."""
        numbers = np.asarray(numbers, np.int64)
        if numbers.min(initial=0) < 0:
            raise ValueError(f"{self.name}: frame number {numbers.min()}: expected 0 or more")
        return np.minimum(numbers, len(self.names) - 1)

    def decode_frames(self, numbers: Sequence[int] | np.ndarray) -> Iterator[tuple[av.VideoFrame, list[int]]]:
        """Yield each requested frame once, ascending, with its positions in `numbers`, as `frames.decode_frames`."""
        clamped = self.clamp(numbers)
        for number in np.unique(clamped).tolist():
            yield self.decode(number), np.flatnonzero(clamped == number).tolist()


def is_image_folder(source: Any) -> bool:
    """Return whether a path is that of a local folder, which is then read as a folder of images."""
    return isinstance(source, (str, os.PathLike)) and not is_remote(os.fspath(source)) and os.path.isdir(source)


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of the images in a folder, in natural order; hidden files are none."""
    with as_value_error(os.fspath(folder)):
        return sorted(filter(is_image_name, os.listdir(folder)), key=natural_key)


def holds_images(folder: str | os.PathLike[str]) -> bool:
    """Return whether there is an image in a folder, without listing all of it."""
    with as_value_error(os.fspath(folder)), os.scandir(folder) as entries:
        return any(is_image_name(entry.name) for entry in entries)


def is_image_name(name: str) -> bool:
    """Return whether a file is an image by its name; macOS leaves hidden ones (._img_1.jpg) that are none."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def natural_key(name: str) -> tuple[Any, ...]:
    """Return a key that sorts numbers in names by their value: img_2 before img_10."""
    return tuple(int(part) if index % 2 else part for index, part in enumerate(_NUMBER.split(name))), name


def find_pattern(names: Sequence[str]) -> str:
    """Return 'first count pattern' for names that are consecutive numbers and else alike, otherwise an empty text.

    The pattern is that of printf: img_%05d.jpg.
    """
    numbered = list(_NUMBER.finditer(os.path.splitext(names[0])[0]))
    if not numbered:
        return ""
    start, end = numbered[-1].span()
    digits, before, after = names[0][start:end], names[0][:start], names[0][end:]
    width = f"0{len(digits)}" if digits.startswith("0") else ""
    packed = f"{int(digits)} {len(names)} {before.replace('%', '%%')}%{width}d{after.replace('%', '%%')}"
    return packed if expand_pattern(packed) == list(names) else ""


def expand_pattern(packed: str) -> list[str]:
    """Return the names that find_pattern() packed."""
    first, count, pattern = packed.split(" ", 2)
    return [pattern % number for number in range(int(first), int(first) + int(count))]


def read_header(data: bytes) -> ImageHeader | None:
    """Return the kind and size of an encoded image; None for what is no JPEG or PNG."""
    if data.startswith(_PNG_START) and len(data) >= 24:
        return ImageHeader("png", int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    if not data.startswith(_JPEG_START):
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _FRAME_HEADERS:
            height, width = (int.from_bytes(data[position + at : position + at + 2], "big") for at in (5, 7))
            return ImageHeader("jpeg", width, height)
        if marker in _BARE_MARKERS or marker == 0xFF:  # 0xFF: a fill byte
            position += 1 if marker == 0xFF else 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
