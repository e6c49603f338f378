"""Nothing is lost: real processes that are killed, stopped, or run out of disk, and what they go on from."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train as train_command
from configs import loading
from tests.helpers.runs import ROOT, STEADY, last, losses, same_weights
from training import run_dir
from training.history import read_metrics
from training.run_dir import RunFolder, find_checkpoint

LONG = ["optim.epochs=12", "optim.ema=0.9", "optim.batch=6", "data.mixup=0.8", "data.workers=1"]


def start(arguments: list[str], **more) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, **more,
    )  # fmt: skip


def torchrun(arguments: list[str], processes: int = 2, *more: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *more,
            "train.py", *arguments]  # fmt: skip


def complete(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_killed_at_any_moment_the_run_ends_as_if_it_had_not_been(arguments, tmp_path):
    """Steps, saving, validation: wherever kill -9 meets it. Losses and weights are the same to the bit."""
    arguments = [*arguments, *LONG, "run.save_minutes=0.005"]
    complete([sys.executable, "train.py", *arguments, "run.name=whole"])
    draw, kills = random.Random(0), 0
    while kills < 6:
        process = start([*arguments, "run.name=parts"])
        assert process.stdout
        for line in process.stdout:
            if "steps an epoch" in line:
                break
        time.sleep(draw.uniform(0, 1.2))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            break
    complete([sys.executable, "train.py", *arguments, "run.name=parts"])
    assert kills >= 2, "the run is too short for this test"
    assert same_weights(tmp_path / "parts", tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole", "ema")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    a, b = ([r for r in read_metrics(tmp_path / n) if r["kind"] == "val"] for n in ("parts", "whole"))
    assert a == b
    assert not list((tmp_path / "parts").glob(".*.tmp")), "what a kill left is cleared away"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_preemption_saves_first(arguments, tmp_path, number):
    arguments = [*arguments, *STEADY, *LONG, "optim.epochs=300"]
    for command in ([sys.executable, "train.py", *arguments, "run.name=a"], torchrun([*arguments, "run.name=b"])):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                   start_new_session=True)  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            if "step 2/" in line or "epoch 2 " in line:
                break
        os.killpg(process.pid, number)
        out, _ = process.communicate(timeout=60)
        assert process.returncode != 0 and "stopped by" in out
        steps = last(tmp_path / command[-1].partition("=")[2])["step"]
        assert f"at step {steps}" in out and 2 <= steps < 600


def test_a_full_disk_costs_the_checkpoint_not_the_run(arguments, tmp_path, monkeypatch, capsys):
    real, calls = torch.save, []

    def save(state, path):
        calls.append(path)
        if len(calls) in (2, 3):
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0") from OSError(
                28, "x"
            )
        real(state, path)

    monkeypatch.setattr(run_dir.torch, "save", save)
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=4", "data.val="]) == 0
    out = capsys.readouterr().out
    assert out.count("last.pt: cannot be written") == 1 and "training goes on" in out
    assert last(tmp_path / "a")["step"] == 16 and not list((tmp_path / "a").glob(".*.tmp"))
    monkeypatch.setattr(run_dir.torch, "save", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=5", "data.val="]) == 1
    out = capsys.readouterr().out
    assert (
        "last.pt: cannot be written: No space left on device" in out
        and "not all of it could be written: last.pt" in out
    )
    assert last(tmp_path / "a")["step"] == 16, "the one before is still there"


@pytest.mark.slow
def test_a_disk_that_takes_no_more(arguments, tmp_path):
    """Every file is limited to a size that neither a checkpoint nor the network fits into."""
    limit = 60_000
    process = start([*arguments, "run.name=a", "optim.epochs=3"],
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))  # fmt: skip
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in out, out
    assert "step 12/12" in out and "last.pt: cannot be written" in out and "best: cannot be written" in out
    assert not list((tmp_path / "a").glob("**/.*.tmp")) and not (tmp_path / "a" / "last.pt").exists()
    assert len(losses(tmp_path / "a")) == 12


def test_an_unreadable_checkpoint_falls_back_to_the_one_before(arguments, tmp_path, capsys):
    assert train_command.main([*arguments, "run.name=whole"]) == 0
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=2"]) == 0
    folder = tmp_path / "a"
    content = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert train_command.main([*arguments, "run.name=a"]) == 0
    out = capsys.readouterr().out
    assert "last.pt: not a readable checkpoint" in out and "going on from previous.pt" in out
    assert f"resumed from {folder}/previous.pt: epoch 1, step 4" in out
    assert same_weights(folder, tmp_path / "whole") and losses(folder) == losses(tmp_path / "whole")
    (folder / "last.pt").unlink()  # killed between two renames
    found = find_checkpoint(loading.load(None, [*arguments, "run.name=a"]))
    assert found and found[0].name == "previous.pt"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's thread
def test_a_folder_that_can_no_longer_be_written(arguments, tmp_path, capsys):
    cfg = loading.load(None, [*arguments, "run.name=a"])
    folder = RunFolder(cfg)
    folder.record("train", 1, loss=1.0)
    shutil.rmtree(folder.path)
    for step in (2, 3):
        folder.record("train", step, loss=1.0)
        folder.save_last({})
        folder.draw_curves()
    out = capsys.readouterr().out
    assert [out.count(f"{name}: cannot be written") for name in ("metrics.jsonl", "last.pt", "curves.png")] == [1, 1, 1]
    folder.close()


# --- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["no", "full"])
def test_two_processes_are_one_with_the_same_clips(arguments, tmp_path, shard):
    """20 steps, in two batches each: losses to 1e-5; sharded (FSDP2) too, and gone on with after a stop."""
    plain = [*arguments, *STEADY, "optim.batch=4", "optim.epochs=7", "optim.name=adamw", "run.log_every=1"]
    assert train_command.main([*plain, "run.name=one", "data.batch=4"]) == 0
    complete(torchrun([*plain, "run.name=two", "data.batch=1", f"run.shard={shard}", "optim.epochs=4",
                       "optim.warmup_epochs=0.5"]))  # fmt: skip
    out = complete(torchrun([*plain, "run.name=two", "data.batch=1", f"run.shard={shard}"]))
    assert "resumed from" in out
    again = complete(torchrun([*plain, "run.name=three", "data.batch=1", f"run.shard={shard}"]))
    assert "3 steps an epoch, each of 4 clips (2 processes x 2 batches)" in again
    one, three = (
        [(r["step"], r["loss"]) for r in read_metrics(tmp_path / n) if r["kind"] == "val"] for n in ("one", "three")
    )
    assert one == [pytest.approx(row, abs=1e-5) for row in three] and len(losses(tmp_path / "three")) == 21
    a, b = ([loss for _, loss, _ in losses(tmp_path / n)] for n in ("one", "three"))
    assert a == pytest.approx(b, abs=1e-5), "training losses are means over the processes"
    norms = ([norm for _, _, norm in losses(tmp_path / n)] for n in ("one", "three"))
    assert next(norms) == pytest.approx(next(norms), abs=1e-4)
    a, b = (last(tmp_path / n)["network"] for n in ("one", "three"))
    assert a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=2e-4) for key in a)


@pytest.mark.slow
def test_several_processes_are_stopped_before_torchrun_loses_patience(arguments, tmp_path):
    """It kills after 30 s; lines of the log are much further apart here."""
    spy, lines = tmp_path / "spy.py", Path(arguments[0].partition("=")[2])
    lines.write_text(10 * lines.read_text())
    spy.write_text(
        "import sys, os, time\nsys.path.insert(0, os.getcwd())\nimport train\nfrom training.tasks import Classify\n"
        "real = Classify.__call__\n"
        "Classify.__call__ = lambda *given: time.sleep(0.7) or real(*given)\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    command = torchrun([*arguments, *STEADY, "data.val=", "data.batch=1", "run.name=a", "run.log_every=1000"])
    command[command.index("train.py")] = str(spy)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               start_new_session=True)  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        if "steps an epoch" in line:
            break
    time.sleep(4)
    os.killpg(process.pid, signal.SIGTERM)
    before = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - before < 20 and "stopped by SIGTERM" in out
    assert 1 <= last(tmp_path / "a")["step"] < 60


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_unseen_clips(arguments, tmp_path):
    seen = tmp_path / "seen.txt"
    spy = tmp_path / "spy.py"
    spy.write_text(
        "import sys, os, signal\nsys.path.insert(0, os.getcwd())\nimport train\nfrom training.tasks import Classify\n"
        "real = Classify.__call__\n"
        "def call(self, network, batch):\n"
        f"    open({str(seen)!r}, 'a').write(' '.join(map(str, batch.sample.tolist())) + '\\n')\n"
        "    if os.environ.get('STOP'): os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(self, network, batch)\n"
        "Classify.__call__ = call\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    plain = [*arguments, *STEADY, "data.val=", "optim.epochs=1", "optim.warmup_epochs=0", "run.name=a"]
    command = [sys.executable, str(spy), *plain, "data.batch=2", "optim.batch=4"]
    stopped = subprocess.run(command, cwd=ROOT, env=os.environ | {"STOP": "1"}, capture_output=True, timeout=100)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    first = [int(n) for n in seen.read_text().split()]
    assert len(first) == 4
    two = torchrun([*plain, "data.batch=2", "optim.batch=4"])
    two[two.index("train.py")] = str(spy)
    complete(two)
    everything = [int(n) for n in seen.read_text().split()]
    assert len(everything) == len(set(everything)) == 12, "12 of 13, none twice"
    assert last(tmp_path / "a")["step"] == 3


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_and_goes_on(arguments, tmp_path):
    """torchrun --max-restarts: no flag of ours, and the end is that of a run that nothing befell."""
    plain = [*arguments, *STEADY, "optim.epochs=6", "data.batch=2"]
    complete(torchrun([*plain, "run.name=whole"]))
    command = torchrun([*plain, "run.name=a", "run.resume=no"], 2, "--max-restarts=2")
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "epoch 3 " in line and not any("resumed" in past for past in lines):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            ranks = [c for c in children if b"train.py" in Path(f"/proc/{c}/cmdline").read_bytes()]
            os.kill(int(ranks[-1]), signal.SIGKILL)
    assert process.wait(timeout=120) == 0, lines[-5:]
    assert any("resumed from" in line for line in lines)
    assert same_weights(tmp_path / "a", tmp_path / "whole")
