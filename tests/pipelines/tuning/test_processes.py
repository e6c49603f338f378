"""Tuning in several processes at once, and interrupted."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import pytest

from pipelines.dali_workers import has_ended
from tests.helpers.runs import run, start, torchrun_command, wait_for_line

RANKS = """
import sys
import torch
from torch import distributed
from configs.schema import Data
from pipelines.tuning.tune import tune

distributed.init_process_group("gloo")
keys = dict(num_frames=4, frame_stride=2, image_size=32, batch_size=2)
tuned = tune(Data(train=sys.argv[1], **keys), device=torch.device("cpu"), seconds=8.0)
chosen = f"{tuned.num_workers} {tuned.dali_threads} {tuned.prefetch}"
sys.stdout.write(f"\\nchosen by {distributed.get_rank()} {chosen}\\n")  # in one piece, as both ranks write at once
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_measure_together_and_choose_the_same(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 7, kind="h264")
    (tmp_path / "ranks.py").write_text(RANKS)
    output = run(torchrun_command([str(path)], str(tmp_path / "ranks.py")))
    chosen = dict(re.findall(r"chosen by (\d) (.*)", output))
    assert chosen.keys() == {"0", "1"} and chosen["0"] == chosen["1"]
    assert output.count("tuned: ") == 1 and (tmp_path / "list.txt.tune.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_tuning_that_is_ended_early_leaves_no_process_and_no_folder(number, clips_folder, tmp_path, monkeypatch):
    path = clips_folder(tmp_path, 7, kind="h264")
    keys = ["data.num_frames=4", "data.image_size=32", "data.batch_size=2", "run.device=cpu"]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start([sys.executable, "-m", "bench.tune", str(path), *keys])
    wait_for_line(process, "videos (h264")
    children: list[int] = []
    deadline = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert number == signal.SIGKILL or process.returncode == 130 and "bench.tune: interrupted" in output

    def left_behind() -> list[object]:
        return [*(pid for pid in children if not has_ended(pid)), *tmp_path.glob("clipline-tune-*")]

    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(children) >= 2 and not left_behind()
