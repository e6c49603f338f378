"""Format figures of results as the cells of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping

Summary = Mapping[str, float]


def format_number(value: float) -> str:
    """Format with three significant digits, or all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def format_median(summary: Summary | None) -> str:
    """Format the median; empty without a summary."""
    return format_number(summary["median"]) if summary else ""


def format_quartiles(summary: Summary | None) -> str:
    """Format the median with the quartiles in brackets; empty without a summary."""
    return f"{summary['median']:.2f} ({summary['p25']:.2f}-{summary['p75']:.2f})" if summary else ""


def format_percent(summary: Summary | None) -> str:
    """Format the median of a fraction in percent; empty without a summary."""
    return f"{100 * summary['median']:.0f} %" if summary else ""


def set_title(name: str) -> str:
    """Describe a set of generated videos: h264_gop12_prepared 352x256 -> H.264, GOP 12, prepared, 352x256."""
    base, _, size = name.partition(" ")
    match = re.fullmatch(r"(h264|hevc|vp9)_(bframes|gop(\d+))(_prepared)?", base)
    if base.startswith("mixed"):
        return "H.264, mixed sizes and rates" + (", prepared" if base.endswith("_prepared") else "")
    if not match:
        return {"av1": "AV1", "mpeg4": "MPEG-4 part 2", "vp8": "VP8", "mjpeg": "MJPEG"}.get(name, name)
    codec, _, gop, prepared = match.groups()
    structure = f"GOP {gop}" if gop else "B-frames, GOP 250"
    parts = [{"h264": "H.264", "hevc": "HEVC", "vp9": "VP9"}[codec], structure, prepared and "prepared", size]
    return ", ".join(part for part in parts if part)
