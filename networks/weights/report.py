"""What became of every key when weights moved from a checkpoint into a network."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

MAPPED, RESHAPED, CREATED, DROPPED = "mapped", "reshaped", "created", "dropped"


@dataclass(frozen=True)
class Row:
    """`sources` (none if created) became `target` (empty if dropped); `how`, or why."""

    what: str
    sources: tuple[str, ...]
    target: str
    how: str = ""


@dataclass
class Report:
    """Every key of the network is in exactly one row, and every key of the file (a LayerScale in the two it scales)."""

    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, what: str) -> int:
        """Keys of the network with this fate; of the file, for dropped ones."""
        return sum(len(row.sources) if what == DROPPED else 1 for row in self.rows if row.what == what)

    def summary(self) -> str:
        return ", ".join(f"{self.count(what)} {what}" for what in (MAPPED, RESHAPED, CREATED, DROPPED))

    def text(self, every_key: bool = False) -> str:
        """The summary, the notes, and a line for each kind of change, or for each key."""
        lines = [f"{self.title}: {self.summary()}", *(f"  note: {note}" for note in self.notes)]
        if every_key:
            for row in self.rows:
                sources = " + ".join(row.sources) or "-"
                how = f"  ({row.how})" if row.how else ""
                lines.append(f"  {row.what:<8}  {sources} -> {row.target or '-'}{how}")
            return "\n".join(lines)
        kinds: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.what != MAPPED:
                kinds.setdefault((row.what, row.how), []).extend(row.sources if row.what == DROPPED else [row.target])
        for (what, how), keys in kinds.items():
            lines.append(f"  {what:<8}  {len(keys):>3}  {how}: {', '.join(shared(keys))}")
        return "\n".join(lines)


def shared(keys: Iterable[str], listed: int = 4) -> list[str]:
    """Keys that differ in one number (a block's) as one: [a.0.b, a.1.b, a.2.b] -> [a.0-2.b]; the first few."""
    families: dict[str, list[int]] = {}
    for key in keys:
        number = re.search(r"(?<=[._])\d+(?=[./])", key)
        family = key[: number.start()] + "{}" + key[number.end() :] if number else key
        families.setdefault(family, []).extend([int(number[0])] if number else [])
    names = [family.replace("{}", spans(numbers)) for family, numbers in families.items()]
    left_out = len(names) - listed
    return [*names[:listed], *([f"and {left_out} more like these"] if left_out > 0 else [])]


def spans(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
