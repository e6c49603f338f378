"""Test bench.gpu: its commands are valid, and its machine, summary and results are as documented."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch

from bench import gpu, gpu_capabilities, gpu_tests
from bench.gpu_parts import PARTS, build_parts
from bench.harness import ffmpeg, gpu_machine
from bench.harness.runner import run_bench
from bench.harness.schedule import SUMMARIES
from bench.report import gpu_summary
from tests.helpers import ROOT
from utils.cli import parse_args


@pytest.mark.parametrize("dry_run", [False, True])
def test_build_parts_has_valid_commands(dry_run: bool, tmp_path: Path) -> None:
    parts = build_parts(tmp_path, True, dry_run)
    assert tuple(part.name for part in parts) == PARTS
    names = [task.name for part in parts for task in part.tasks]
    assert len(set(names)) == len(names)
    for part in parts:
        assert all(task.min_s <= task.limit_s and task.min_s <= part.limit_s for task in part.tasks)
        for task in part.tasks:
            module, *arguments = task.arguments
            bench = importlib.import_module(module)
            _, settings = parse_args(bench.Settings, [word for word in arguments if word != "--dry-run"])
            assert settings.out == str(tmp_path / f"{task.name}.json")
            assert ("--dry-run" in arguments) is dry_run


def test_build_parts_without_a_gpu_marks_its_tasks_unavailable(tmp_path: Path) -> None:
    unavailable = {t.name: t.unavailable for part in build_parts(tmp_path, False, False) for t in part.tasks}
    assert unavailable["loaders_torchcodec_cuda"] == "it needs a GPU" and not unavailable["loaders"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parts=capabilities,steps"], "parts=steps: expected some of capabilities,tests"),
        (["minutes=0"], "expected more than 0"),
        (["minute=3"], "did you mean minutes=?"),
        ([], "torch finds no GPU here; --dry-run"),
    ],
)
def test_gpu_refuses_wrong_arguments(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "gpu_name", lambda: "")
    assert gpu.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_slug_is_part_of_a_path() -> None:
    assert gpu_machine.slug("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"


def test_missing_package_names_what_is_not_installed() -> None:
    assert gpu_machine.missing_package("torch") == "" and "no_such" in gpu_machine.missing_package("no_such.thing")


def test_ffmpeg_libraries_links_those_of_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, bundled = tmp_path / "site" / "av", tmp_path / "site" / "av.libs"
    package.mkdir(parents=True), bundled.mkdir()
    for name in ("libavcodec-5e6b81c2.so.62.28.102", "libswscale-88e9f973.so.9.5.102", "libx264-d6533a8d.so.165"):
        (bundled / name).touch()
    monkeypatch.setattr(ffmpeg, "find_spec", lambda name: SimpleNamespace(origin=str(package / "__init__.py")))
    monkeypatch.setattr(ffmpeg.ctypes.util, "find_library", lambda name: None)
    assert ffmpeg.ffmpeg_libraries(tmp_path / "links") == [str(tmp_path / "links"), str(bundled)]
    assert {path.name for path in (tmp_path / "links").iterdir()} == {"libavcodec.so.62", "libswscale.so.9"}
    monkeypatch.setattr(ffmpeg.ctypes.util, "find_library", lambda name: "libavcodec.so.59")
    assert ffmpeg.ffmpeg_libraries(tmp_path / "links") == []


def test_restart_with_ffmpeg_happens_once_and_keeps_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links, started = tmp_path / "links", []
    links.mkdir()
    monkeypatch.setattr(ffmpeg, "ffmpeg_libraries", lambda folder: [str(links), "bundled"])
    monkeypatch.setattr(os, "execve", lambda *command: started.append(command))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "bench.loading", "rounds=1"])
    monkeypatch.setenv("LD_LIBRARY_PATH", "own")
    ffmpeg.restart_with_ffmpeg()
    ((program, arguments, environment),) = started
    assert (program, arguments) == (sys.executable, [sys.executable, "-m", "bench.loading", "rounds=1"])
    assert environment["LD_LIBRARY_PATH"] == f"own:{links}:bundled"
    (links / "libavcodec.so.62").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", environment["LD_LIBRARY_PATH"])
    ffmpeg.restart_with_ffmpeg()
    assert len(started) == 1, "the restarted command finds the libraries"


def test_decoder_capabilities_lists_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    class Limits(SimpleNamespace):
        def _asdict(self) -> dict[str, int]:
            return vars(self)

    expected = {("h264", "4:2:0", 8): Limits(min_width=48), ("av1", "4:2:0", 8): Limits(min_width=128)}
    reported = {("h264", "4:2:0", 8): Limits(min_width=64), ("hevc", "4:2:0", 10): Limits(min_width=144)}
    module = ModuleType("pipelines.decode.nvdec")
    module.HOPPER, module.query_capabilities = expected, lambda: reported  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.decode.nvdec", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    capabilities = gpu_capabilities.decoder_capabilities()
    assert capabilities["reported"] == {"h264 4:2:0 8 bit": {"min_width": 64}, "hevc 4:2:0 10 bit": {"min_width": 144}}
    assert capabilities["differences"] == [
        "av1 4:2:0 8 bit: the GPU does not decode it, which was expected",
        "h264 4:2:0 8 bit: min_width is 64, expected 48",
        "hevc 4:2:0 10 bit: the GPU decodes it, which was not expected",
    ]
    module.query_capabilities = lambda: None  # type: ignore[attr-defined]
    capabilities = gpu_capabilities.decoder_capabilities()
    assert capabilities["reported"] is None and "cannot be queried" in capabilities["note"]


def test_read_report_has_counts_and_failures(tmp_path: Path) -> None:
    (tmp_path / "r.xml").write_text(
        '<testsuites><testsuite><testcase classname="t" name="a" time="1.5"/>'
        '<testcase classname="t" name="b"><failure message="assert 1 == 2&#10;more">text\nE assert</failure></testcase>'
        '<testcase classname="t" name="c"><skipped message="no GPU"/></testcase>'
        '<testcase classname="t" name="d"><error message="fixture"/></testcase></testsuite></testsuites>'
    )
    report = gpu_tests.read_report(tmp_path / "r.xml")
    assert report["counts"] == {"passed": 1, "failed": 1, "errors": 1, "skipped": 1}
    assert [f["message"] for f in report["failures"]] == ["assert 1 == 2", "fixture"]
    assert report["failures"][0]["last_lines"] == ["text", "E assert"] and report["seconds"]["t::a"] == 1.5
    assert gpu_summary.tests({"tests": report}) == "1 passed, 1 failed, 1 errors, 1 skipped"


def test_headlines_have_the_best_figures() -> None:
    def table(name: str, threads: int, clips: float) -> dict:
        return {
            "name": name,
            "dali_threads": threads,
            "cases": {"clipline": {"clips_per_s": {"median": clips}}},
            "speedups": {},
        }

    sets = [
        table("h264_bframes", 14, 150.0),
        table("h264_bframes", 28, 160.0),
        table("h264_bframes_prepared", 14, 550.0),
    ]
    headline = gpu_summary.decoders(
        {"decoders_nvdec": {"sets": sets}, "decoders_pyav": {"sets": [table("h264_bframes", 4, 440)]}}
    )
    assert headline == (
        "nvdec 160 clips/s as downloaded with 28 threads; nvdec 550 clips/s prepared with 14 threads; "
        "pyav 440 clips/s as downloaded"
    )
    assert gpu_summary.loaders({"loaders": {"sets": sets[:1]}}) == "as downloaded: 150 clips/s"


@dataclass(frozen=True)
class GrowingSettings:
    out: str = ""
    dry_run_args: ClassVar[str] = ""


def test_run_bench_writes_a_growing_result_each_time(tmp_path: Path) -> None:
    written = []

    def measure(settings: GrowingSettings) -> Iterator[dict[str, list[int]]]:
        for count in (1, 2):
            yield {"sets": list(range(count))}
            written.append(json.loads(Path(settings.out).read_text()))

    assert run_bench("growing", "", GrowingSettings, measure, [f"out={tmp_path}/deep/r.json"]) == 0
    assert [(result["sets"], result["unfinished"]) for result in written] == [([0], True), ([0, 1], True)]
    final = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert final["sets"] == [0, 1] and "unfinished" not in final and "cores_used_by_others" in final


@pytest.mark.slow
def test_gpu_dry_run_succeeds_in_every_part(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "minutes=60", f"out={tmp_path / 'results'}"]
    environment = {**os.environ, "OUT": str(tmp_path / "handed_back")}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    parts = json.loads((tmp_path / "results" / "summary.json").read_text())["parts"]
    assert process.returncode == 0, process.stdout + process.stderr
    assert tuple(part["part"] for part in parts) == PARTS and {part["status"] for part in parts} == {"done"}
    assert all(part["headline"] and "expected form" not in part["headline"] for part in parts), parts
    assert {path.name for path in (tmp_path / "handed_back").iterdir()} == set(SUMMARIES)
    assert "prepare" in process.stdout and "the figures mean nothing" in process.stdout
