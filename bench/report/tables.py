"""Make Markdown tables of result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness.result_file import cpu_description, read_result
from bench.report.rows import ROWS, Result, Rows

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class TableSpec:
    """The content of a marker: result files, and optionally some rows and columns by their names, in that order."""

    files: tuple[str, ...]
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def parse_spec(text: str) -> TableSpec:
    """Parse `A.json B.json | rows: x; y | columns: p; q`. Raises ValueError for anything else."""
    files, *options = text.split("|")
    chosen: dict[str, tuple[str, ...]] = {}
    for option in options:
        key, colon, names = option.partition(":")
        if not colon or key.strip() not in ("rows", "columns"):
            raise ValueError(f"{option.strip()}: expected rows: A; B or columns: A; B")
        chosen[key.strip()] = tuple(name.strip() for name in names.split(";"))
    return TableSpec(tuple(files.split()), **chosen)


OMITTED_IF_EQUAL = ("workers", "DALI threads", "Clipline's decoder")


def machine_name(result: Result) -> str:
    """Name the GPU and the cores of a result."""
    return ", ".join(filter(None, (result["environment"]["gpu"], cpu_description(result))))


def circumstances(result: Result) -> str:
    """Describe in one line how a result was measured: rounds, network, machine, versions, date and commit."""
    env = result["environment"]
    extra = {key: value for key, value in result.get("packages", {}).items() if key != "av"}
    versions = {
        "torch": env["packages"]["torch"],
        "DALI": env["packages"]["nvidia-dali-cuda120"],
        "PyAV": env["packages"]["av"],
        "driver": env.get("driver"),
        **extra,
    }
    num_rounds = result["settings"].get("rounds")
    statistic = f"medians of {num_rounds} round{'s' * (num_rounds > 1)} (quartiles); " if num_rounds else ""
    overrides = [word.removeprefix("model.") for word in result.get("network", ()) if word.startswith("model.")]
    network = f"network {' '.join(overrides)}; " if overrides else ""
    packages = ", ".join(f"{key} {value}" for key, value in versions.items() if value)
    date = f"{result['date'][:10]}, commit {env['commit']}"
    return f"{statistic}{network}{machine_name(result)}; {packages}; {date}"


def make_table(spec: TableSpec, folder: Path = RESULTS) -> str:
    """Return the Markdown table of result files of one benchmark, with their circumstances below.

    Raises ValueError for a file that is missing or of another benchmark, and for a row or column that does not exist.
    """
    results = {name: read_result(folder / name) for name in spec.files}
    benches = {result.get("bench") for result in results.values()}
    if len(benches) != 1 or not benches <= ROWS.keys():
        raise ValueError(f"{' '.join(spec.files)}: expected results of one of {', '.join(ROWS)}, got {benches}")
    bench = str(benches.pop())
    machines = {name: machine_name(result) for name, result in results.items()}
    rows: Rows = []
    for name, result in results.items():
        machine = {"machine": machines[name]} if len(set(machines.values())) > 1 else {}
        rows += [machine | row for row in ROWS[bench](result)]
    if spec.rows:
        rows = select_rows(rows, spec.rows)
    columns = choose_columns(rows, spec.columns)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(key, "") for key in columns) + " |" for row in rows]
    return "\n".join([*lines, "", *captions(results), ""])


def select_rows(rows: Rows, names: Sequence[str]) -> Rows:
    """Select rows by their first cell, or by the first two with a comma between. Raises ValueError for other names."""
    selected = []
    for name in names:
        matches = [row for row in rows if name in _row_names(row)]
        if not matches:
            raise ValueError(f"rows: {name}: expected one of {'; '.join(_row_names(row)[0] for row in rows)}")
        selected += matches
    return selected


def _row_names(row: Mapping[str, str]) -> tuple[str, str]:
    cells = [cell.strip("`") for cell in row.values() if cell][:2]
    return cells[0], ", ".join(cells)


def choose_columns(rows: Rows, names: Sequence[str]) -> list[str]:
    """Return the named columns, or all that have content and do not just repeat one setting."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if names:
        for name in names:
            if name not in columns:
                raise ValueError(f"columns: {name}: expected one of {'; '.join(columns)}")
        return list(names)
    columns = [key for key in columns if any(row.get(key) for row in rows)]
    return [key for key in columns if key not in OMITTED_IF_EQUAL or len({row.get(key) for row in rows}) > 1]


def captions(results: Mapping[str, Result]) -> list[str]:
    """Return a line for each set of circumstances, with the files that it applies to."""
    files: dict[str, list[str]] = {}
    for name, result in results.items():
        used = result.get("cores_used_by_others")
        others = "" if used is None else f" ({used:.2f} cores used by other processes)"
        files.setdefault(circumstances(result), []).append(f"`bench/results/{name}`{others}")
    return [f"<sub>{text}; {', '.join(names)}</sub>  " for text, names in files.items()]
