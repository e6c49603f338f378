"""What one video file holds, found by demuxing it and reading the headers of its packets."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.decode.demuxer import Video
from pipelines.decode.prove import prove
from pipelines.storage import stamp

NO_FILE = "no such file"
SECONDS = 300  # that demuxing a file may take; proving its frame table has more for each packet


VERSION = 8  # of what a row says


@dataclass(frozen=True)
class Row:
    """One file: its frames, and why it cannot be used if `error` is not empty (then num_frames is 0).

    width and height are of the frame as it is shown: after `turns` quarter turns, anticlockwise, of the stored one.
    """

    path: str
    size: int = 0  # bytes; with `changed`, tells whether the row still holds
    changed: int = 0  # nanoseconds
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    keyframes: tuple[int, ...] = ()
    turns: int = 0
    pix_fmt: str = ""  # FFmpeg's name of the pixel format: chroma and bits per component
    profile: str = ""
    interlaced: bool = False  # H.264: pictures may be coded as fields; else the first frame says so
    coded_width: int = 0  # of the stored frame with what a decoder cuts off; 0: unknown
    coded_height: int = 0
    crop_offset: tuple[int, ...] = (0, 0)  # left and top, of the part of the coded frame that is shown
    irregularity: str = ""  # why its packets are not each one frame (`FrameTable.irregularity`)
    colorspace: str = ""  # the matrix of its colors, if the file names another than BT.601's
    proof: str = ""  # how its frame table was proven (`FrameTable.proof`)
    table: str = ""  # which packets give which frames (`Video.table`)
    error: str = ""
    version: int = 0  # of what a row says; of another version it is read again

    @property
    def missing(self) -> bool:
        return self.error == NO_FILE


def bad_row(path: str, reason: str) -> Row:
    """Of a file that cannot be used."""
    return Row(path, *stamp(path), error=reason.removeprefix(f"{path}: ") or "unreadable", version=VERSION)


def read_row(path: str) -> Row:
    """The row of one file; never raises for a bad file: the reason is its `error`."""
    size, changed = stamp(path)
    try:
        with Video(path, SECONDS) as video:
            first = prove(video)
            assert first, "only a stored table is not proven anew"
            table, turns = video.frame_table, first.turns
            if not table.num_frames:
                raise ValueError(f"{path}: no picture of the video is ever shown")
            return Row(
                path,
                size,
                changed,
                num_frames=table.num_frames,
                fps=round(float(video.fps), 4),
                width=video.height if turns % 2 else video.width,
                height=video.width if turns % 2 else video.height,
                codec=video.codec,
                keyframes=tuple(table.keyframes.tolist()),
                turns=turns,
                pix_fmt=first.pix_fmt,
                profile=video.stream.codec_context.profile or "",
                interlaced=first.interlaced,
                coded_width=first.coded_size[0],
                coded_height=first.coded_size[1],
                crop_offset=first.crop_offset,
                irregularity=table.irregularity,
                colorspace=first.colorspace,
                proof=table.proof,
                table=video.table(),
                version=VERSION,
            )
    except ValueError as error:
        return bad_row(path, str(error))
