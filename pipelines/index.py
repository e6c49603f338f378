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
from collections.abc import Sequence

from pipelines.data.dataset import read_list
from pipelines.data.metadata import build_index, cache_path, summary
from pipelines.data.verify import verify, write_findings


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
