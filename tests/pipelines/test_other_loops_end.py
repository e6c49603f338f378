"""Worker processes end with the loops of frameworks, however those end; plain programs are in test_loader_arguments."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from pipelines.dali_workers import has_ended
from pipelines.loader import VideoLoader
from tests.helpers import ROOT
from tests.helpers.programs import lightning_network, lightning_trainer

SMALL = {"num_frames": 4, "frame_stride": 3, "image_size": 32, "batch_size": 3, "num_workers": 0, "device": "cpu"}


@pytest.mark.parametrize(("signal_number", "error"), [(signal.SIGINT, SystemExit), (0, RuntimeError)])
def test_loader_can_be_closed_after_lightning_was_interrupted_or_failed(lists, signal_number, error):
    """Lightning turns Ctrl-C into a graceful stop and an exit, and ignores Ctrl-C from then on."""

    def end():
        if not signal_number:
            raise RuntimeError("of the user")
        os.kill(os.getpid(), signal_number)

    network, trainer = lightning_network(end), lightning_trainer(max_epochs=1)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(error) as held, VideoLoader("train.txt", **SMALL | {"num_workers": 1}) as loader:
            try:
                trainer.fit(network, loader)
            finally:
                (worker,) = loader.decoder.dali.processes
    finally:
        signal.signal(signal.SIGINT, handler)
    assert has_ended(worker.pid) and held.tb is not None


# Three trainings in one process, because importing takes seconds: one ends, one fails, one is interrupted.
IMPORTS = """
import os, signal, torch
from pipelines.loader import VideoLoader
"""
FITS = """
keys = {"num_frames": 4, "image_size": 32, "batch_size": 3, "num_workers": 1, "device": "cpu"}
def fail():
    raise RuntimeError("of the user")
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
def fit(ending):
    loader = VideoLoader("train.txt", **keys)
    try:
        train(loader, ending)
    finally:
        print("pids", *(process.pid for process in loader.decoder.dali.processes), flush=True)
fit(int)
try:
    fit(fail)
except RuntimeError:
    pass
fit(interrupt)
"""
TRAININGS = {
    "pytorch_lightning": """
import pytorch_lightning as pl
class Network(pl.LightningModule):
    def __init__(self, ending):
        super().__init__()
        self.layer, self.ending = torch.nn.Linear(3, 6), ending
    def training_step(self, batch, batch_index):
        if batch_index == 1:
            self.ending()
        return self.layer(batch.video.mean((2, 3, 4))).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
def train(loader, ending):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(Network(ending), loader)
""",
    "lightning_fabric": """
from lightning_fabric import Fabric
def train(loader, ending):
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    network = torch.nn.Linear(3, 6)
    network, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), 0.1))
    for number, batch in enumerate(loader):
        if number == 1:
            ending()
        fabric.backward(network(batch.video.mean((2, 3, 4))).sum())
""",
    "transformers": """
from transformers import Trainer, TrainingArguments
class Network(torch.nn.Linear):
    calls = 0
    def forward(self, pixels):
        self.calls += 1
        if self.calls == 2:
            self.ending()
        return {"loss": super().forward(pixels.mean((2, 3, 4))).sum()}
class Clips(list):
    def __iter__(self):
        return ({"pixels": batch.video} for batch in self[0])
    def __len__(self):
        return len(self[0])
class VideoTrainer(Trainer):
    def get_train_dataloader(self):
        return self.train_dataset
def train(loader, ending):
    network = Network(3, 6)
    network.ending = ending
    args = TrainingArguments("out", num_train_epochs=1, report_to="none", use_cpu=True, disable_tqdm=True)
    VideoTrainer(network, args, train_dataset=Clips([loader])).train()
""",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("framework", "num_tracebacks"),
    [
        ("pytorch_lightning", 0),  # it turns Ctrl-C into an exit
        ("lightning_fabric", 1),
        ("transformers", 1),
    ],
)
def test_workers_end_with_a_program_whose_framework_finishes_fails_or_is_interrupted(lists, framework, num_tracebacks):
    """Nothing closes the loaders here, and DALI's destructors have nothing to complain about."""
    pytest.importorskip(framework)
    list(VideoLoader("train.txt", **SMALL))  # writes the index
    (lists / "program.py").write_text(IMPORTS + TRAININGS[framework] + FITS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "program.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    pids = [int(pid) for line in re.findall(r"^pids (.*)$", done.stdout, re.M) for pid in line.split()]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not all(map(has_ended, pids)):
        time.sleep(0.05)
    assert len(pids) == 3 and all(map(has_ended, pids)), done.stderr
    assert done.returncode and done.stderr.count("Traceback") == num_tracebacks, done.stderr
    assert "ignored" not in done.stderr and "Error" not in done.stderr, done.stderr
