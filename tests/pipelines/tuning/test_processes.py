"""Tuning in several processes at once, and interrupted."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
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
print("chosen by", distributed.get_rank(), tuned.num_workers, tuned.dali_threads, tuned.prefetch, flush=True)
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
def test_interrupted_tuning_leaves_no_process_and_no_folder(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 7, kind="h264")
    keys = ["data.num_frames=4", "data.image_size=32", "data.batch_size=2", "run.device=cpu"]
    process = start([sys.executable, "-m", "bench.tune", str(path), *keys])
    wait_for_line(process, "videos (h264")
    children: list[int] = []
    deadline = time.monotonic() + 30
    while not children and time.monotonic() < deadline:
        time.sleep(0.1)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "bench.tune: interrupted" in output
    assert children and all(has_ended(pid) for pid in children)
    assert not [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("clipline-tune-")]
