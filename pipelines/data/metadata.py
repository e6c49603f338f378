"""What each file of a list holds, kept beside the list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipelines.data.annotations import plain_name
from pipelines.data.cache import Reading, refresh
from pipelines.data.dataset import Clip
from pipelines.decode.video_info import VERSION, Row, bad_row, read_row
from pipelines.storage import is_remote


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


def cache_path(list_path: str | Path, kind: str = "index.jsonl") -> Path:
    """Where the index of a list or class folder lies, or what else is kept of it."""
    return Path(f"{plain_name(str(list_path))}.{kind}")


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
