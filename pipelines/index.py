"""What each file of a list holds, found by demuxing it and reading the headers of its packets; kept beside the list.

    python -m pipelines.index LIST [root=FOLDER]
    python -m pipelines.index LIST --verify [short=64]     decodes every file whole, too

The cache is LIST.index.jsonl, a line a file; a file whose size or time of change differs is read again. Which packets
give which frames is proven for each file: by the headers of its packets, or where those leave a doubt by decoding it
once; what cannot be told so is decoded from its first frame whenever it is used.

--verify decodes every file whole and compares clips, drawn as in training, bit for bit: from the first frame and
trimmed, with every decoder that this machine has. It writes LIST.verify.csv: files that are broken or differ, short (of
fewer frames), portrait, rotated, of variable rate or of another pixel format than 4:2:0 with 8 bits. The exit status is
1 if a file cannot be used, or differs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.kept import Reading, refresh
from pipelines.listfiles import plain_name
from pipelines.lists import Clip, read_list
from pipelines.places import is_remote, stamp
from pipelines.prove import prove
from pipelines.verify import verify, write_findings
from pipelines.video import Video

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


def build_index(clips: Sequence[Clip], cache: str | Path, workers: int | None = None) -> list[Row]:
    """A row for each clip, in the list's order; reads what `cache` does not hold.

    `workers`: processes (None: one a core).
    """
    known = refresh([clip.path for clip in clips], Path(cache), reading(), workers)
    return [known[clip.path] for clip in clips]


def reading() -> Reading[Row]:
    return Reading(Row, VERSION, read_row, bad_row, "index", holds=_stands)


def _stands(row: Row) -> bool:
    """What could not be read from an address is tried again: the network may have been the reason."""
    return not (row.error and is_remote(row.path))


def bad_row(path: str, reason: str) -> Row:
    """Of a file that cannot be used."""
    return Row(path, *stamp(path), error=reason.removeprefix(f"{path}: ") or "unreadable", version=VERSION)


def cache_path(list_path: str | Path, kind: str = "index.jsonl") -> Path:
    """Where the index of a list or class folder lies, or what else is kept of it."""
    return Path(f"{plain_name(str(list_path))}.{kind}")


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


def main(arguments: Sequence[str]) -> int:
    """The command: build or refresh the index and say what the list holds; 1 if a file of it cannot be used."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    words, whole = [word for word in arguments[1:] if word != "--verify"], "--verify" in arguments[1:]
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    unknown = [word for word in words if word.partition("=")[0] not in ("root", "short") or "=" not in word]
    if unknown or not settings.get("short", "64").isdecimal():
        print(f"{(unknown or ['short'])[0]}: expected root=FOLDER, short=FRAMES or --verify", file=sys.stderr)
        return 2
    try:
        clips = read_list(arguments[0], settings.get("root", ""))
        rows = build_index(clips, cache_path(arguments[0]))
        bad = {row.path: row.error for row in rows if row.error}
        lines = []
        if whole:
            found = verify(clips, cache_path(arguments[0], "verify.jsonl"))
            place = cache_path(arguments[0], "verify.csv")
            lines = [write_findings(found, int(settings.get("short", 64)), place), f"written: {place}"]
            bad = {finding.path: finding.broken for finding in found if finding.broken}
            from pipelines.dali_verify import find_differing  # torch and DALI take seconds, and nothing else needs them

            compared, differing = find_differing([row for row in rows if row.path not in bad])
            lines.append(f"{compared} files compared in DALI's decoder, {len(differing)} differ")
            bad |= differing
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    for path, reason in bad.items():
        print(f"{path}: {reason}")
    print("\n".join([summary(rows), *lines]))
    return 1 if bad else 0


def coverage(rows: Sequence[Row]) -> str:
    """How much of a list is there: its rows, files that were found or not, those of no use, hours, and how the frame
    tables of the others were proven."""
    missing, bad = sum(row.missing for row in rows), sum(bool(row.error) for row in rows)
    hours = sum(row.num_frames / row.fps for row in rows if row.fps) / 3600
    found = f"{len(rows) - missing} found, {missing} missing, {bad - missing} unusable"
    proofs = Counter(row.proof for row in rows if not row.error)
    proven = ", ".join(f"{proofs[proof]} {proof}" for proof in ("bitstream", "decoded", "sequential") if proofs[proof])
    return f"{len(rows)} videos, {found}, {hours:.2f} hours" + (f", frame tables: {proven}" if proven else "")


def summary(rows: Sequence[Row]) -> str:
    """One line: coverage, frames, codecs, sizes."""
    good = [row for row in rows if not row.error]
    codecs = sorted({row.codec for row in good})
    sizes = len({(row.width, row.height) for row in good})
    return (
        f"{coverage(rows)}, {sum(r.num_frames for r in good)} frames, codecs: {', '.join(codecs) or 'none'}, "
        f"{sizes} frame sizes"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
