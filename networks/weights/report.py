"""What became of every key when weights moved from a checkpoint into a network."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

MAPPED, RESHAPED, CREATED, DROPPED = "mapped", "reshaped", "created", "dropped"
AS_INITIALIZED = "as initialized"  # the end of a created key's detail if the network keeps its own values


@dataclass(frozen=True, kw_only=True)
class KeyRecord:
    """The outcome for some keys of a checkpoint (`sources`, none if created): a key of the network (`target`, empty if
    dropped). `detail` says how it was reshaped or created, or why it was dropped."""

    status: str
    sources: tuple[str, ...] = ()
    target: str = ""
    detail: str = ""


@dataclass
class KeyReport:
    """Records of all keys: each key of the network is in exactly one, and so is each key of the file, except that a
    LayerScale is in the records of the weight and the bias that it scales."""

    title: str
    records: list[KeyRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Return the number of keys with this status: keys of the file if dropped, of the network otherwise."""
        return sum(len(record.sources) if status == DROPPED else 1 for record in self.with_status(status))

    def with_status(self, status: str) -> list[KeyRecord]:
        return [record for record in self.records if record.status == status]

    def keys_as_initialized(self) -> list[str]:
        """Return the keys of the network that kept the values of its initialization."""
        return [record.target for record in self.with_status(CREATED) if record.detail.endswith(AS_INITIALIZED)]

    def summary(self) -> str:
        return ", ".join(f"{self.count(status)} {status}" for status in (MAPPED, RESHAPED, CREATED, DROPPED))

    def text(self, every_key: bool = False) -> str:
        """Return the summary, the notes, and one line per kind of change, or per key."""
        lines = [f"{self.title}: {self.summary()}", *(f"  note: {note}" for note in self.notes)]
        lines += self.lines_per_key() if every_key else self.lines_per_change()
        return "\n".join(lines)

    def lines_per_key(self) -> list[str]:
        lines = []
        for record in self.records:
            sources = " + ".join(record.sources) or "-"
            detail = f"  ({record.detail})" if record.detail else ""
            lines.append(f"  {record.status:<8}  {sources} -> {record.target or '-'}{detail}")
        return lines

    def lines_per_change(self) -> list[str]:
        changes: dict[tuple[str, str], list[str]] = {}
        for record in self.records:
            if record.status != MAPPED:
                keys = record.sources if record.status == DROPPED else (record.target,)
                changes.setdefault((record.status, record.detail), []).extend(keys)
        return [
            f"  {status:<8}  {len(keys):>3}  {detail}: {', '.join(group_keys(keys))}"
            for (status, detail), keys in changes.items()
        ]


def group_keys(keys: Iterable[str], max_listed: int = 4) -> list[str]:
    """Write keys that differ only in one number (the block's) as one, [a.0.b, a.1.b, a.2.b] -> [a.0-2.b], and list the
    first few."""
    groups: dict[str, list[int]] = {}
    for key in keys:
        number = re.search(r"(?<=[._])\d+(?=[./])", key)
        group = key[: number.start()] + "{}" + key[number.end() :] if number else key
        groups.setdefault(group, []).extend([int(number[0])] if number else [])
    names = [group.replace("{}", format_ranges(numbers)) for group, numbers in groups.items()]
    num_omitted = len(names) - max_listed
    return [*names[:max_listed], *([f"and {num_omitted} more like these"] if num_omitted > 0 else [])]


def format_ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
