"""Imports flow one way between the rooms and inside pipelines, and worker processes stay light."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.helpers import ROOT

# What the modules under each room or folder may import of the project, beside themselves.
ALLOWED = {
    "utils": set(),
    "configs": {"utils"},
    "networks": {"configs", "utils"},
    "pipelines": {"configs", "utils"},
    "training": {"configs", "utils", "networks", "pipelines"},
    "evaluation": {"configs", "utils", "networks", "pipelines", "training"},
    "bench": {"configs", "utils", "networks", "pipelines", "training", "evaluation"},
    "eval.py": {"configs", "utils", "networks", "pipelines", "training", "evaluation"},
    "train.py": {"configs", "utils", "networks", "pipelines", "training", "evaluation"},
}
# Inside pipelines: each step may import those before it.
STEPS = (
    ("pipelines.storage", "pipelines.sampling"),
    ("pipelines.av_input",),
    ("pipelines.decode.bitstream",),
    ("pipelines.decode",),
    ("pipelines.data", "pipelines.known_faults", "pipelines.sample_meta"),
    ("pipelines.sample_source",),
    ("pipelines.dali_workers",),
    ("pipelines.dali_graph", "pipelines.dali_probe"),
    ("pipelines.batch_decoder", "pipelines.dali_verify"),
    ("pipelines.batch_loader", "pipelines.build_source"),
    ("pipelines.mixup", "pipelines.sliding_window"),
    ("pipelines.device_augment",),
    ("pipelines.perturbations",),
    ("pipelines.loader", "pipelines.feature_loader"),
    ("pipelines.tuning",),
    ("pipelines.download", "pipelines.index", "pipelines.prepare", "pipelines.synthetic", "pipelines.preview"),
)
COMMANDS = {"train", "eval", *STEPS[-1]}
ROOMS = (*(room for room in ALLOWED if not room.endswith(".py")), "tests")
CODE = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py")))
)
PROJECT = {*ROOMS, "train", "eval"}


def imports(source: str, package: str) -> set[str]:
    """Return the dotted names that a module imports, inside functions too; a relative import is of its own package."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module if node.module and not node.level else package
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def step_of(module: str) -> int:
    """Return the step of a module of pipelines: that of its longest prefix in STEPS."""
    prefixes = [(len(p), i) for i, step in enumerate(STEPS) for p in step if f"{module}.".startswith(f"{p}.")]
    assert prefixes, f"{module} is in no step of STEPS"
    return max(prefixes)[1]


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_imports_are_found_wherever_they_stand():
    source = "import a.b, c as d\nfrom e.f import g\ndef h():\n    from i import j\n    from . import k\n    import l\n"
    assert tops(imports(source, "own")) == {"a", "c", "e", "i", "own", "l"}


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_flow_one_way_between_rooms(room):
    files = [path for path in CODE if path == room or path.startswith(f"{room}/")]
    assert files, f"{room} has no code"
    forbidden = PROJECT - ALLOWED[room] - {room}
    upward = {path: tops(imports((ROOT / path).read_text(), room)) & forbidden for path in files}
    assert {path: names for path, names in upward.items() if names} == {}


@pytest.mark.parametrize("path", [path for path in CODE if path.startswith("pipelines/")])
def test_imports_flow_one_way_inside_pipelines(path):
    if path.endswith("__init__.py"):
        assert not tops(imports((ROOT / path).read_text(), "pipelines")) & PROJECT
        return
    own = module_of(path)
    modules = {module_of(code) for code in CODE}
    imported = {
        name for name in imports((ROOT / path).read_text(), "") if name in modules and name[:10] == "pipelines."
    }
    imported -= {
        name for name in imported if (ROOT / name.replace(".", "/")).is_dir()
    }  # of packages their modules count
    assert [name for name in sorted(imported) if step_of(name) > step_of(own)] == []


@pytest.mark.parametrize("path", [path for path in CODE if not path.startswith("tests/")])
def test_nobody_imports_a_command(path):
    measured = set(STEPS[-1]) if path.startswith("bench/") else set()  # bench measures preparing, and makes its videos
    assert imports((ROOT / path).read_text(), "") & COMMANDS <= measured


def test_only_loading_knows_yaml():
    knowing = [path for path in CODE if tops(imports((ROOT / path).read_text(), "")) & {"yaml", "ruamel", "omegaconf"}]
    assert knowing == ["configs/loading.py"]


@pytest.mark.parametrize("module", ["pipelines.sample_source", "pipelines.data.metadata", "pipelines.index"])
def test_decode_workers_import_neither_torch_nor_dali(module):
    """Each worker is a fresh process: torch would cost it seconds and half a gigabyte."""
    script = (
        f"import sys, {module}; print(*sorted({{'torch', 'nvidia', 'nvidia.dali', 'networks'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
