"""Update the tables in README.md and docs/benchmarks.md, and the charts, from bench/results/*.json.

    python -m bench.report [PAGE.md ...] [--check]

A table stands between `<!-- table: A.json B.json -->` and `<!-- end -->` and is made of these files of bench/results;
`<!-- table: A.json | rows: ROW; ROW | columns: HEAD; HEAD -->` selects some of its rows and columns. Below it are the
machine, the versions, the commit and the date; if the files are from different machines, a column names the machine of
each row. The charts are written beside the results. With --check nothing is written, and the exit status is 1 if a
table differs from its files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report import charts
from bench.report.tables import RESULTS, make_table, parse_spec
from utils.cli import run_command

ROOT = RESULTS.parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
MARKED = re.compile(r"(<!-- table: ([^>]+?) -->\n).*?(<!-- end -->)", re.S)


def update_tables(text: str, folder: Path = RESULTS) -> str:
    """Return a page with every marked table rewritten. Raises ValueError as make_table(), and for a missing end."""
    if len(MARKED.findall(text)) != text.count("<!-- table:"):
        raise ValueError("a <!-- table: ... --> has no <!-- end -->")
    return MARKED.sub(lambda match: f"{match[1]}{make_table(parse_spec(match[2]), folder)}{match[3]}", text)


def check_pages(pages: Sequence[Path]) -> int:
    """Print for each page whether its tables equal the results; return 1 if one does not."""
    status = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        is_current = update_tables(text) == text
        print(f"{page}: {'up to date' if is_current else 'differs from the results; run python -m bench.report'}")
        status |= not is_current
    return int(status)


def write_pages(pages: Sequence[Path]) -> int:
    """Rewrite the tables of the pages and all charts."""
    texts = {page: update_tables(page.read_text(encoding="utf-8")) for page in pages}
    for page, text in texts.items():
        page.write_text(text, encoding="utf-8")
        print(f"written: {page}, {len(MARKED.findall(text))} tables")
    for chart in charts.draw_all(RESULTS):
        print(f"written: {chart}")
    return 0


def work(argv: Sequence[str]) -> int:
    """Check or write the pages that are named, by default PAGES."""
    pages = [Path(argument) for argument in argv if argument != "--check"] or list(PAGES)
    for page in pages:
        if page.suffix != ".md":
            raise ValueError(f"{page}: expected a Markdown file")
    return check_pages(pages) if "--check" in argv else write_pages(pages)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_command("bench.report", __doc__, work, argv, needs_arguments=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
