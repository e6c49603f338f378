"""README and docs: every command, key, path and link in them exists, and the Python in them runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from configs import loading
from configs.schema import SECTIONS
from tests.helpers import ROOT
from tests.helpers.programs import PAGE, read_programs, run_program, write_lists

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEY = re.compile(rf"(?<![\w.])({'|'.join(SECTIONS)})\.([a-z_]+)(?:\.[a-z_]+)?(?:=([^\s`|,;)]*))?")
# The programs of docs/loader.md, in its order: what holds of their variables in the end, and what they print.
PROGRAMS = {
    "The loader in your own training loop": (
        lambda v: v["position"]["epoch"] == 2 and v["batch"].video.shape[:2] == (1, 12) and v["scored"].all(),
        r"^train.txt: 9 videos",
    ),
    "Lists in memory": (
        lambda v: [next(iter(loader)).label.dtype for loader in v["loaders"]] == [torch.int64] * 2 + [torch.float32],
        r"labels of shape \(\)",
    ),
    "Plain torch": (lambda v: v["loader"].epoch == 2, r"^top-1 \d+\.\d % of 9 videos$"),
    "Lightning": (lambda v: 0 <= v["trainer"].callback_metrics["accuracy"] <= 1, r"^val.txt: 9 videos"),
    "Lightning Fabric": (lambda v: v["loader"].epoch == 2, r"^train.txt: 9 videos"),
    "transformers": (lambda v: v["trainer"].state.global_step == 4, r"eval_accuracy"),
    "timm": (lambda v: v["batch"].label.shape == (4, 6), r"^epoch 2: loss \d\.\d{3}, top-1 \d+\.\d %$"),
}
PLACEHOLDERS = {"CHECKPOINT", "FILE", "N", "LIST", "FOLDER", "clip.mp4"}


def code_blocks(page: Path, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands() -> list[tuple[str, str]]:
    """Return the page and text of every command in a code block, without the comment after it."""
    lines = [(page.name, line) for page in PAGES for block in code_blocks(page) for line in block.splitlines()]
    starts = re.compile(r"(python |torchrun |make )")
    return [(page, re.split(r"  +", line.strip())[0].split("  #")[0]) for page, line in lines if starts.match(line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_in_a_page_exist_and_take_the_values(page):
    for match in KEY.finditer(page.read_text()):
        section, key, value = match[1], match[2], match[3]
        if match[0].endswith((".py", ".md", ".json", ".pt", ".csv", ".safetensors")) or f"{section}.{key}" in (
            "eval.py",
            "model.safetensors",
        ):
            continue
        assert key in SECTIONS[section].model_fields, f"{page.name}: {match[0]}"
        if value and value not in PLACEHOLDERS and "..." not in value:
            loading.load_config(
                None, [match[0].rstrip(".:")] if key not in ("milestones",) else ["optim.schedule=step", match[0]]
            )


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_in_a_page_exist(page, command):
    words = command.split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), f"{page}: {command}"
        return
    if "-m" in words:
        assert importlib.util.find_spec(words[words.index("-m") + 1]), f"{page}: {command}"
    else:
        script = next(word for word in words if word.endswith(".py"))
        assert (ROOT / script).exists(), f"{page}: {command}"
    for recipe in (word for word in words if word.endswith(".yaml")):
        loading.load_config(ROOT / recipe)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_links_in_a_page_exist(page):
    text = page.read_text()
    for path in re.findall(
        r"`((?!bench/results/NAME)(?:bench|configs|docs|evaluation|networks|pipelines|tests|training|utils)/[\w/.]*)`",
        text,
    ):
        assert (ROOT / path).exists(), f"{page.name}: {path}"
    for link in re.findall(r"\]\(([^)#:]+\.(?:md|png))(?:#[\w-]+)?\)", text):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
    for link, anchor in re.findall(r"\]\(([^)#:]*\.md)#([\w-]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", (page.parent / link).read_text(), re.M)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_readme_is_short_enough_to_read():
    assert (ROOT / "README.md").stat().st_size < 11_500


def test_python_in_readme_loads_clips(clips_folder, tmp_path, monkeypatch, capsys):
    clips_folder(tmp_path, 9).rename(tmp_path / "train.txt")
    monkeypatch.chdir(tmp_path)
    code, _ = code_blocks(ROOT / "README.md", "python")  # tests/pipelines/test_sliding_window.py runs the other
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size([8, 3, 16, 224, 224]) tensor([" in capsys.readouterr().out


@pytest.mark.parametrize("heading", PROGRAMS)
def test_program_in_loader_page_runs(clips_folder, tmp_path, monkeypatch, capsys, heading):
    write_lists(clips_folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    variables = run_program(heading)
    check, pattern = PROGRAMS[heading]
    assert check(variables), f"{PAGE.name}: {heading}"
    assert re.search(pattern, capsys.readouterr().out, re.M)


def test_programs_of_loader_page_are_all_run():
    """tests/pipelines/test_other_loops.py starts the last one with torchrun."""
    assert list(read_programs()) == [*PROGRAMS, "torchrun"]


def test_loader_page_names_no_malicious_package():
    """lightning 2.6.2 and 2.6.3 were (GHSA-w37p-236h-pfx3); pytorch-lightning and lightning-fabric are what is used."""
    for path in (PAGE, ROOT / "requirements-dev.txt", ROOT / "pyproject.toml"):
        assert not re.search(r"^\s*\"?lightning\b(?![-_])|(import|from) lightning\b", path.read_text(), re.M), path
