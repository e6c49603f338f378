"""Results as tables and pictures: bench/results/*.json into the README, between its markers, and into PNG files.

    python -m bench.report [README.md] [--check]

What stands between `<!-- table: A.json B.json -->` and `<!-- end -->` is made of these files of bench/results/. Under
it stand the machine, the versions, the commit and the date; where files are of different machines, a column says which
row is of which. The pictures lie beside the results. With --check nothing is written, and the status is 1 if a table is
not what its files say.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report import charts
from bench.report.tables import RESULTS, markdown

MARKED = re.compile(r"(<!-- table: ([^>]+?) -->\n).*?(<!-- end -->)", re.S)


def rewritten(text: str, folder: Path = RESULTS) -> str:
    """The page with every marked table made anew. Raises ValueError as markdown(), and for a marker without an end."""
    if len(MARKED.findall(text)) != text.count("<!-- table:"):
        raise ValueError("a <!-- table: ... --> has no <!-- end -->")
    return MARKED.sub(lambda m: f"{m[1]}{markdown(m[2].split(), folder)}{m[3]}", text)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    paths = [word for word in arguments if word != "--check"]
    page = Path(paths[0]) if paths else RESULTS.parent.parent / "README.md"
    try:
        if len(paths) > 1 or page.suffix != ".md":
            raise ValueError(f"{' '.join(paths)}: expected one Markdown file")
        text = page.read_text(encoding="utf-8")
        new = rewritten(text)
        if "--check" in arguments:
            print(f"{page}: {'as the results say' if new == text else 'not what the results say; run bench.report'}")
            return int(new != text)
        page.write_text(new, encoding="utf-8")
        print(f"written: {page}, {len(MARKED.findall(new))} tables")
        for picture in charts.draw_all(RESULTS):
            print(f"written: {picture}")
    except (ValueError, OSError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
