"""bench.gpu: what is left out, what a limit, a failure and a kill cost, and that all its commands are valid."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch

from bench import gpu, gpu_capabilities, gpu_tests
from bench.baselines import thread_loaders
from bench.baselines.loaders import Drawn
from bench.gpu_parts import PARTS, build_parts
from bench.harness import gpu_machine
from bench.harness.runner import command
from bench.harness.schedule import RESERVE_S, SUMMARIES, Part, Progress, Task, allowance, marked_processes, run_parts
from bench.report import gpu_summary
from tests.helpers.runs import ROOT
from utils.cli import parse

FAKES = {
    "fake_good": "import sys; open(sys.argv[1].removeprefix('out='), 'w').write('{\"clips\": 7}')",
    "fake_bad": "print('so far so good')\nraise ValueError('no such thing\\nas this')",
    "fake_refusal": "import sys; print('bench.loading: data.decoder=both: expected auto'); sys.exit(2)",
    "fake_crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    # The child has a session of its own, as torch's compiling processes may have, and outlives its parent.
    "fake_hang": "import subprocess, sys, time; "
    "child = subprocess.Popen(['sleep', '300'], start_new_session=True); "
    "open(sys.argv[1].removeprefix('out='), 'w').write('{\"clips\": 3}'); print('child', child.pid, flush=True); "
    "time.sleep(300)",
}


@pytest.fixture
def fakes(tmp_path: Path) -> dict[str, str]:
    """Modules to run instead of benches; returns the environment that finds them."""
    for name, source in FAKES.items():
        (tmp_path / f"{name}.py").write_text(source)
    return dict(os.environ, PYTHONPATH=str(tmp_path))


def fake_part(folder: Path, name: str, *modules: str, limit: float = 30.0, **more: object) -> Part:
    tasks = [
        Task(f"{name}_{m}", (f"fake_{m}", f"out={folder}/{name}_{m}.json"), limit, least=1, **more)  # type: ignore[arg-type]
        for m in modules
    ]
    return Part(name, 60, tuple(tasks), lambda results: f"clips {[r['clips'] for r in results.values()]}")


def results_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def summary_of(folder: Path) -> dict[str, dict]:
    return {part["part"]: part for part in json.loads((folder / "summary.json").read_text())["parts"]}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("spent", "left", "seconds", "reason"),
    [
        (0, 500, 60, ""),  # its own limit
        (65, 500, 35, ""),  # what the part has left
        (0, 40 + RESERVE_S, 40, ""),  # what the budget has left
        (80, 500, 0, "20 s are left of the 100 s of decode, and it needs at least 30 s"),
        (0, 25 + RESERVE_S, 0, "25 s are left of the budget, and it needs at least 30 s"),
        (0, -5, 0, "0 s are left of the budget, and it needs at least 30 s"),
    ],
)
def test_what_does_not_fit_is_left_out(spent: float, left: float, seconds: float, reason: str) -> None:
    task = Task("one", ("bench.loading",), limit=60, least=30)
    assert allowance(task, Part("decode", 100, (task,)), spent, left) == (seconds, reason)


def test_what_cannot_run_here_is_left_out_whatever_the_time() -> None:
    task = Task("one", ("bench.loading",), limit=60, unavailable="spdl.io is not installed")
    assert allowance(task, Part("loader", 100, (task,)), 0, 500) == (0, "spdl.io is not installed")


def test_failures_and_refusals_cost_only_themselves(
    tmp_path: Path, fakes: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = results_folder(tmp_path)
    parts = [
        fake_part(folder, "a", "bad", "good"),
        fake_part(folder, "b", "refusal", optional=True),
        fake_part(folder, "c", "crash"),
        fake_part(folder, "d", "refusal"),
        fake_part(folder, "e", "good"),
    ]
    progress = Progress("a card", parts, folder, 60)
    run_parts(progress, fakes)
    found = summary_of(folder)
    states = {name: part["status"] for name, part in found.items()}
    assert states == {"a": "failed", "b": "left out", "c": "failed", "d": "failed", "e": "done"}
    assert (
        found["a"]["reasons"] == ["a_bad failed: ValueError: no such thing"] and found["a"]["headline"] == "clips [7]"
    )
    assert found["b"]["reasons"] == ["bench.loading: data.decoder=both: expected auto"]
    assert found["c"]["reasons"][0].startswith("killed by SIGSEGV")
    assert not progress.succeeded
    assert "so far so good" in (folder / "a_bad.log").read_text()
    assert set(zipfile.ZipFile(folder / "results.zip").namelist()) >= {"a_good.json", "a_bad.log", "summary.txt"}
    assert "e                    done" in capsys.readouterr().out


def test_what_hangs_is_killed_with_its_children(tmp_path: Path, fakes: dict[str, str]) -> None:
    folder = results_folder(tmp_path)
    parts = [fake_part(folder, "a", "hang", limit=3), fake_part(folder, "b", "good")]
    progress = Progress("a card", parts, folder, 60)
    run_parts(progress, fakes)
    found = summary_of(folder)
    child = int((folder / "a_hang.log").read_text().split()[1])
    assert found["a"]["status"] == "timed out" and f"child {child}" in found["a"]["reasons"][0]
    assert found["a"]["headline"] == "clips [3]", "what it had written is there"
    assert found["b"]["status"] == "done" and not progress.succeeded and not is_alive(child)


def test_an_earlier_result_is_not_taken_for_a_new_one(tmp_path: Path, fakes: dict[str, str]) -> None:
    folder = results_folder(tmp_path)
    for name in ("a_refusal", "b_good"):
        (folder / f"{name}.json").write_text('{"clips": 1}')
    parts = [fake_part(folder, "a", "refusal", optional=True), fake_part(folder, "b", "good", unavailable="no GPU")]
    run_parts(Progress("a card", parts, folder, 60), fakes)
    assert [part["headline"] for part in summary_of(folder).values()] == ["", ""]
    assert (folder / "b_good.json").exists(), "what was not measured again stays"


def test_a_used_up_budget_leaves_out_the_rest(tmp_path: Path, fakes: dict[str, str]) -> None:
    folder = results_folder(tmp_path)
    parts = [fake_part(folder, "a", "hang"), fake_part(folder, "b", "good")]
    progress = Progress("a card", parts, folder, RESERVE_S + 3)
    run_parts(progress, fakes)
    found = summary_of(folder)
    assert found["a"]["seconds"] < 10 and found["b"]["status"] == "left out"
    assert (
        "left of the budget" in found["b"]["reasons"][0]
        and "left of the budget" in (folder / "summary.txt").read_text()
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_kill_leaves_what_is_finished(number: signal.Signals, tmp_path: Path, fakes: dict[str, str]) -> None:
    folder, copies = results_folder(tmp_path), tmp_path / "handed_back"
    copies.mkdir()
    script = (  # which imports neither torch nor DALI
        "import os, pathlib, sys\n"
        "from bench.harness.schedule import Part, Progress, Task, run_parts\n"
        "folder, copies = map(pathlib.Path, sys.argv[1:])\n"
        "def part(name, module):\n"
        "    task = Task(f'{name}_{module}', (f'fake_{module}', f'out={folder}/{name}_{module}.json'), 30, least=1)\n"
        "    return Part(name, 60, (task,), lambda results: f'clips {[r[\"clips\"] for r in results.values()]}')\n"
        "parts = [part('a', 'good'), part('b', 'hang'), part('c', 'good')]\n"
        "run_parts(Progress('a card', parts, folder, 60, copies=copies), dict(os.environ))\n"
    )
    root = ROOT
    path = f"{fakes['PYTHONPATH']}{os.pathsep}{root}"
    started = [sys.executable, "-c", script, str(folder), str(copies)]
    process = subprocess.Popen(started, env={**fakes, "PYTHONPATH": path}, cwd=root, stderr=subprocess.DEVNULL)
    try:
        log, end = folder / "b_hang.log", time.monotonic() + 60
        while not (log.exists() and log.read_text().endswith("\n")) and time.monotonic() < end:
            time.sleep(0.1)
        child = int(log.read_text().split()[1])
        parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        process.send_signal(number)
        process.wait(30)
    finally:
        process.kill()
    found = summary_of(folder)
    assert found["a"]["status"] == "done" and found["a"]["headline"] == "clips [7]"
    assert found["b"]["status"] == ("running" if number == signal.SIGKILL else "cut")
    assert found["c"]["status"] == "waiting"
    assert {path.name for path in copies.iterdir()} == set(SUMMARIES)
    assert "a_good.json" in zipfile.ZipFile(copies / "results.zip").namelist()
    end = time.monotonic() + 10
    while is_alive(parent) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_alive(parent)
    if number == signal.SIGKILL:  # nobody is left to kill what began a session of its own
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    else:
        assert not is_alive(child)


def test_marks_are_found_in_the_environment() -> None:
    process = subprocess.Popen(["sleep", "60"], env={"CLIPLINE_TASK": "a-mark"})
    try:
        assert marked_processes("a-mark") == [process.pid] and marked_processes("another") == []
    finally:
        process.kill()
        process.wait()


def test_every_command_is_one_that_its_bench_takes(tmp_path: Path) -> None:
    for dry in (False, True):
        parts = build_parts(tmp_path, True, dry)
        assert tuple(part.name for part in parts) == PARTS
        names = [task.name for part in parts for task in part.tasks]
        assert len(set(names)) == len(names)
        for part in parts:
            assert all(task.least <= task.limit and task.least <= part.limit for task in part.tasks)
            for task in part.tasks:
                module, *words = task.arguments
                bench = importlib.import_module(module)
                _, settings = parse(bench.Settings, [word for word in words if word != "--dry-run"])
                assert settings.out == str(tmp_path / f"{task.name}.json")
                assert ("--dry-run" in words) is dry
    unavailable = {t.name: t.unavailable for part in build_parts(tmp_path, False, False) for t in part.tasks}
    assert unavailable["loader_torchcodec_cuda"] == "it needs a GPU" and not unavailable["loader"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["parts=card,steps"], "parts=steps: expected some of card,tests"),
        (["minutes=0"], "expected more than 0"),
        (["minute=3"], "did you mean minutes=?"),
        ([], "torch finds no GPU here; --dry-run"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "card_name", lambda: "")
    assert gpu.main(words) == 2
    assert said in capsys.readouterr().err


def test_the_card_names_the_folder() -> None:
    assert gpu_machine.slug("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"
    assert gpu_machine.missing_package("torch") == "" and "no_such" in gpu_machine.missing_package("no_such.thing")


def test_ffmpeg_of_pyav_is_linked_under_its_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, bundled = tmp_path / "site" / "av", tmp_path / "site" / "av.libs"
    package.mkdir(parents=True), bundled.mkdir()
    for name in ("libavcodec-5e6b81c2.so.62.28.102", "libswscale-88e9f973.so.9.5.102", "libx264-d6533a8d.so.165"):
        (bundled / name).touch()
    monkeypatch.setattr(gpu_machine, "find_spec", lambda name: SimpleNamespace(origin=str(package / "__init__.py")))
    monkeypatch.setattr(gpu_machine.ctypes.util, "find_library", lambda name: None)
    assert gpu_machine.ffmpeg_libraries(tmp_path / "links") == [str(tmp_path / "links"), str(bundled)]
    assert {path.name for path in (tmp_path / "links").iterdir()} == {"libavcodec.so.62", "libswscale.so.9"}
    monkeypatch.setattr(gpu_machine.ctypes.util, "find_library", lambda name: "libavcodec.so.59")
    assert gpu_machine.ffmpeg_libraries(tmp_path / "links") == []


def test_what_the_decoder_can_is_set_beside_what_was_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Limits(SimpleNamespace):
        def _asdict(self) -> dict[str, int]:
            return vars(self)

    believed = {("h264", "4:2:0", 8): Limits(min_width=48), ("av1", "4:2:0", 8): Limits(min_width=128)}
    asked = {("h264", "4:2:0", 8): Limits(min_width=64), ("hevc", "4:2:0", 10): Limits(min_width=144)}
    module = ModuleType("pipelines.decode.nvdec")
    module.HOPPER, module.query_capabilities = believed, lambda: asked  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.decode.nvdec", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = gpu_capabilities.decoder()
    assert found["asked"] == {"h264 4:2:0 8 bit": {"min_width": 64}, "hevc 4:2:0 10 bit": {"min_width": 144}}
    assert found["differences"] == [
        "av1 4:2:0 8 bit: the card does not decode it, and it was believed that it does",
        "h264 4:2:0 8 bit: min_width is 64, 48 was believed",
        "hevc 4:2:0 10 bit: the card decodes it, and it was believed that it does not",
    ]
    module.query_capabilities = lambda: None  # type: ignore[attr-defined]
    assert gpu_capabilities.decoder()["asked"] is None and "cannot be asked" in gpu_capabilities.decoder()["note"]


def test_failures_of_gpu_tests_are_read_with_their_first_lines(tmp_path: Path) -> None:
    (tmp_path / "r.xml").write_text(
        '<testsuites><testsuite><testcase classname="t" name="a" time="1.5"/>'
        '<testcase classname="t" name="b"><failure message="assert 1 == 2&#10;more">text\nE assert</failure></testcase>'
        '<testcase classname="t" name="c"><skipped message="no GPU"/></testcase>'
        '<testcase classname="t" name="d"><error message="fixture"/></testcase></testsuite></testsuites>'
    )
    found = gpu_tests.read_report(tmp_path / "r.xml")
    assert found["counts"] == {"passed": 1, "failed": 1, "errors": 1, "skipped": 1}
    assert [f["message"] for f in found["failures"]] == ["assert 1 == 2", "fixture"]
    assert found["failures"][0]["last_lines"] == ["text", "E assert"] and found["seconds"]["t::a"] == 1.5
    assert gpu_summary.tests({"tests": found}) == "1 passed, 1 failed, 1 errors, 1 skipped"


def test_headlines_are_made_of_what_is_there() -> None:
    def table(name: str, threads: int, clips: float) -> dict:
        return {
            "name": name,
            "threads": threads,
            "cases": {"clipline": {"clips_per_s": {"median": clips}}},
            "ratios": {},
        }

    sets = [
        table("h264_bframes", 14, 150.0),
        table("h264_bframes", 28, 160.0),
        table("h264_bframes_prepared", 14, 550.0),
    ]
    said = gpu_summary.decode(
        {"decode_nvdec": {"sets": sets}, "decode_host": {"sets": [table("h264_bframes", 4, 440)]}}
    )
    assert said == (
        "nvdec 160 clips/s as downloaded with 28 threads; nvdec 550 clips/s prepared with 14 threads; "
        "host 440 clips/s as downloaded"
    )
    assert gpu_summary.loader({"loader": {"sets": sets[:1]}}) == "as downloaded: 150 clips/s"


def drawn_clips(count: int) -> list[Drawn]:
    return [Drawn(f"{i}.mp4", (3, 5, 3), (0, 0, 8, 8), i % 2 == 1, 0) for i in range(count)]


def test_threads_deliver_the_clips_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(*_: object) -> thread_loaders.Reader:
        def read(path: str, frames: tuple[int, ...]) -> torch.Tensor:
            number = int(path.partition(".")[0])
            time.sleep(0.02 * (3 - number % 4))  # later ones are ready first
            return torch.full((len(frames), 3, 8, 8), number, dtype=torch.uint8)

        return read

    monkeypatch.setitem(thread_loaders.READERS, "fake", (reader, False))
    clips = thread_loaders.Clips("fake", torch.device("cpu"), (8, 8), 4, 4, (0, 0, 0), (1, 1, 1))
    found = list(thread_loaders.batches(clips, drawn_clips(9), 2, 2))
    assert [batch.shape for batch in found] == [(2, 3, 3, 4, 4)] * 4, "the last, incomplete one is dropped"
    assert (255 * torch.cat(found)).round()[:, 0, 0, 0, 0].tolist() == list(range(8))
    with pytest.raises(RuntimeError, match="torchcodec_cuda needs a GPU"):
        thread_loaders.Clips("torchcodec_cuda", torch.device("cpu"), (8, 8), 4, 4, (0, 0, 0), (1, 1, 1))


def test_a_thread_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(*_: object) -> thread_loaders.Reader:
        raise ImportError("No module named 'fake'\nfor long reasons")

    monkeypatch.setitem(thread_loaders.READERS, "fake", (reader, False))
    clips = thread_loaders.Clips("fake", torch.device("cpu"), (8, 8), 2, 4, (0, 0, 0), (1, 1, 1))
    assert thread_loaders.missing(clips, drawn_clips(1)[0]) == "No module named 'fake'"
    with pytest.raises(ImportError):
        next(thread_loaders.batches(clips, drawn_clips(4), 2, 2))


def test_pynvvideocodec_is_reconfigured_and_asked_for_each_frame_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    class SimpleDecoder:
        def __init__(self, path: str, **wanted: object):
            calls.append((path, wanted["max_width"], wanted["max_height"]))

        def reconfigure_decoder(self, path: str) -> None:
            calls.append(path)

        def get_batch_frames_by_index(self, frames: list[int]) -> list[torch.Tensor]:
            return [torch.full((4, 6, 3), frame, dtype=torch.uint8) for frame in frames]

    module = ModuleType("PyNvVideoCodec")
    module.SimpleDecoder, module.OutputColorType = SimpleDecoder, SimpleNamespace(RGB="rgb")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    read = thread_loaders.PyNvVideoCodec(torch.device("cuda", 0), (352, 256), 2)
    video = read("a.mp4", (3, 5, 3))
    assert video.shape == (3, 3, 4, 6) and video[:, 0, 0, 0].tolist() == [3, 5, 3]
    read("b.mp4", (0,))
    assert calls == [("a.mp4", 352, 256), "b.mp4"]


def test_spdl_on_a_gpu_is_given_the_packets_of_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames 12 and 16 of a key frame every 10: packets from 10 on, shown in another order than they are stored in."""
    windows = []

    def demux_video(path: str, timestamp: tuple[float, float] | None = None) -> SimpleNamespace:
        if timestamp is None:
            return SimpleNamespace(get_timestamps=lambda: [n / 30 for n in range(20)])
        windows.append([30 * time for time in timestamp])
        raw = [10, 14, 12, 11, 13, 17, 16, 15]
        return SimpleNamespace(
            codec=SimpleNamespace(name="h264"), get_timestamps=lambda raw=False, r=raw: [n / 30 for n in r]
        )

    decoded = torch.arange(10, 18).reshape(8, 1, 1, 1).expand(8, 3, 4, 6)
    module = ModuleType("spdl.io")
    for name, value in {
        "demux_video": demux_video, "apply_bsf": lambda packets, name: packets, "cuda_config": lambda **wanted: wanted,
        "nvdec_decoder": lambda config, codec: SimpleNamespace(decode_packets=lambda packets: decoded),
        "nv12_to_rgb": lambda coded, device_config, coeff: coded, "to_torch": lambda buffer: buffer,
    }.items():  # fmt: skip
        setattr(module, name, value)
    parent = ModuleType("spdl")
    parent.io = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spdl", parent)
    monkeypatch.setitem(sys.modules, "spdl.io", module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    read = thread_loaders.SpdlCuda(torch.device("cuda", 0), (352, 256), 2)
    assert read("a.mp4", (16, 12, 16))[:, 0, 0, 0].tolist() == [16, 12, 16]
    assert windows == [[pytest.approx(12), pytest.approx(16.5)]]


@dataclass(frozen=True)
class GrowingSettings:
    out: str = ""
    toy: ClassVar[str] = ""


def test_a_result_that_grows_is_written_each_time(tmp_path: Path) -> None:
    seen = []

    def measure(settings: GrowingSettings) -> Iterator[dict[str, list[int]]]:
        for count in (1, 2):
            yield {"sets": list(range(count))}
            seen.append(json.loads(Path(settings.out).read_text()))

    assert command("growing", "", GrowingSettings, measure, [f"out={tmp_path}/deep/r.json"]) == 0
    assert [(result["sets"], result["unfinished"]) for result in seen] == [([0], True), ([0, 1], True)]
    final = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert final["sets"] == [0, 1] and "unfinished" not in final and "cores_used_by_others" in final


@pytest.mark.slow
def test_the_dry_run_runs_everything(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench.gpu", "--dry-run", "minutes=60", f"out={tmp_path / 'results'}"]
    environment = {**os.environ, "OUT": str(tmp_path / "handed_back")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = summary_of(tmp_path / "results")
    assert done.returncode == 0, done.stdout + done.stderr
    assert tuple(found) == PARTS and {part["status"] for part in found.values()} == {"done"}
    assert all(part["headline"] and "expected form" not in part["headline"] for part in found.values()), found
    assert {path.name for path in (tmp_path / "handed_back").iterdir()} == set(SUMMARIES)
    assert "prepare" in done.stdout and "the figures mean nothing" in done.stdout
