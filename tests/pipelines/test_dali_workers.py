"""Worker processes that die are replaced once with the same stream; the second time their files are named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.synchronize import SemLock
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

from pipelines.dali_workers import DaliPipeline, has_ended
from pipelines.sample_source import TooManyUnreadableVideos
from tests.helpers import ROOT
from tests.helpers.loaders import collect, copy_of, is_same_stream, make_loader


@pytest.mark.parametrize("seconds", [0.0, 0.02, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.005, 0.1))])
def test_killed_worker_is_replaced_and_the_stream_stays_the_same(clips_folder, tmp_path, decoder, seconds):
    path = clips_folder(tmp_path, 9)
    expected = collect(make_loader(path, decoder))
    loader = make_loader(path, decoder, "data.num_workers=2")
    stream = []
    for number, batch in enumerate(batch for _ in range(2) for batch in loader):
        stream.append(copy_of(batch))
        if number == 1:
            victim = loader.decoder.dali.processes[0].pid
            threading.Timer(seconds, os.kill, (victim, signal.SIGKILL)).start()
        time.sleep(seconds / 2)
    assert is_same_stream(stream, expected)
    time.sleep(0.1)


def test_semaphores_of_workers_have_no_names_once_a_batch_is_there(clips_folder, tmp_path):
    """They would stay in shared memory if the program and Python's resource tracker were killed together."""
    # A finalizer of no object, as a program has that uses a multiprocessing.Manager.
    finalizer = Finalize(None, print, exitpriority=1)
    loader = make_loader(clips_folder(tmp_path, 9), "data.num_workers=2")
    next(iter(loader))
    finalizer.cancel()
    pool = loader.decoder.dali.pipe._py_pool.pool
    for queue in (pool._result_queue, pool._general_task_queue):
        locks = [value for value in (queue.lock, *vars(queue.cv_not_empty).values()) if isinstance(value, SemLock)]
        assert len(locks) == 5, "of four semaphores: the condition has the lock too"
        assert not any(Path(f"/dev/shm/sem.{lock._semlock.name.lstrip('/')}").exists() for lock in locks)


def test_workers_that_die_twice_at_a_batch_end_the_run_with_its_files_named(clips_folder, tmp_path, monkeypatch):
    loader = make_loader(clips_folder(tmp_path, 9), "data.num_workers=1")
    run_pipeline = DaliPipeline.run

    def kill_worker_and_run(self, *stream):
        os.kill(self.processes[0].pid, signal.SIGKILL)
        return run_pipeline(self, *stream)

    monkeypatch.setattr(DaliPipeline, "run", kill_worker_and_run)
    message = r"ended \(exit status .*\), again, while reading: (.*\d.mp4(, )?){3}"
    with pytest.raises(TooManyUnreadableVideos, match=message):
        next(iter(loader))


@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 9)
    script = (
        "import time\nfrom pipelines.loader import VideoLoader\n"
        f"loader = VideoLoader({str(path)!r}, device='cpu', image_size=32, batch_size=3, num_workers=2)\n"
        "next(iter(loader))\n"
        "print('pids', *(p.pid for p in loader.decoder.dali.processes), flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    pids = next(line.split()[1:] for line in process.stdout if line.startswith("pids"))
    process.kill()
    process.wait()
    time.sleep(2)
    assert len(pids) == 2 and all(has_ended(int(pid)) for pid in pids)
