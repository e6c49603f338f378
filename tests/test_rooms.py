"""rooms: imports flow one way, bench -> train -> eval -> {pipelines, networks} -> configs, and workers stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("configs", "networks", "pipelines", "bench", "train", "eval", "tests")
CODE = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.py"), *(p for room in ROOMS for p in (ROOT / room).rglob("*.py")))
)


def imports(source: str, package: str) -> set[str]:
    """Top-level names that a module imports, inside functions too; a relative import is of its own package."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0] if node.module and not node.level else package)
    return found


def test_imports_are_found_wherever_they_stand():
    source = "import a.b, c as d\nfrom e.f import g\ndef h():\n    from i import j\n    from . import k\n    import l\n"
    assert imports(source, "own") == {"a", "c", "e", "i", "own", "l"}


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("configs", {"pipelines", "networks", "train", "eval", "bench", "tests"}),
        ("networks", {"pipelines", "train", "eval", "bench", "tests"}),
        ("pipelines", {"networks", "train", "eval", "bench", "tests"}),
        ("eval.py", {"train", "bench", "tests"}),
        ("train.py", {"bench", "tests"}),
        ("bench", {"tests"}),
    ],
)
def test_imports_flow_one_way(room, forbidden):
    files = [path for path in CODE if path == room or path.startswith(f"{room}/")]
    assert files or room == "bench", f"{room} has no code"
    found = {path: imports((ROOT / path).read_text(), room) & forbidden for path in files}
    assert {path: names for path, names in found.items() if names} == {}


def test_only_the_schema_knows_yaml():
    knowing = [path for path in CODE if imports((ROOT / path).read_text(), "") & {"yaml", "ruamel", "omegaconf"}]
    assert knowing == ["configs/schema.py"]


@pytest.mark.parametrize("module", ["pipelines.source", "pipelines.index"])
def test_decode_workers_import_neither_torch_nor_dali(module):
    """Each worker is a fresh process: torch would cost it seconds and half a gigabyte."""
    script = (
        f"import sys, {module}; print(*sorted({{'torch', 'nvidia', 'nvidia.dali', 'networks'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
