"""The programs of docs/loader.md, run as they stand on the page but for toy sizes, and a small one for Lightning."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.batch_loader import Batch, BatchLoader
from tests.helpers import ROOT

PAGE = ROOT / "docs" / "loader.md"
TOY_SIZES = {
    "image_size=112": "image_size=32",
    '"image_size": 112': '"image_size": 32',
    "batch_size=1": "batch_size=1, num_workers=0",
    "batch_size=2": "batch_size=2, num_workers=0",
    "batch_size=4": "batch_size=4, num_workers=0",
    '"batch_size": 4': '"batch_size": 4, "num_workers": 0',
    "mvit_v2_s": "mvit_v2_tiny",
    "MAEConfig(": "MAEConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, ",
    "every_n_train_steps=1000": "every_n_train_steps=1",
    '"save_steps": 1000': '"save_steps": 1',
}
# What a program needs beside the project's own requirements, by heading.
FRAMEWORKS = {
    "Lightning": ["pytorch_lightning"],
    "Lightning Fabric": ["lightning_fabric"],
    "transformers": ["transformers", "accelerate"],
}


class Crash(Exception):
    """Raised in place of a batch, as if the machine had failed."""


def read_programs() -> dict[str, str]:
    """Return the Python code below each heading of the page that has some, in the order of the page."""
    sections = re.findall(r"^#+ (.*?)\n(.*?)(?=^#+ |\Z)", _hide_comments(PAGE.read_text()), re.M | re.S)
    blocks = {heading: re.findall(r"^```python\n(.*?)^```", body, re.M | re.S) for heading, body in sections}
    assert all(len(found) < 2 for found in blocks.values()), "a program per section"
    return {heading: found[0].replace("\x00", "#") for heading, found in blocks.items() if found}


def toy_program(heading: str, **replacements: str) -> str:
    """Return a program with toy sizes; `replacements` come first."""
    code = read_programs()[heading]
    for text, replacement in (replacements | TOY_SIZES).items():
        code = code.replace(text, replacement)
    return code


def run_program(heading: str, **replacements: str) -> dict[str, Any]:
    """Run a program in this process and return its variables; skip the test if its framework is not installed."""
    for framework in FRAMEWORKS.get(heading, []):
        pytest.importorskip(framework)
    variables: dict[str, Any] = {"__name__": "program"}
    exec(compile(toy_program(heading, **replacements), f"{PAGE.name}: {heading}", "exec"), variables)
    return variables


def record_training(monkeypatch: pytest.MonkeyPatch, crash_at: int = -1) -> list[tuple[tuple[int, ...], ...]]:
    """Return a list to which loaders append the seeds (seed, epoch, sample) of the batches that they yield to train.

    In place of the batch number `crash_at` they raise Crash.
    """
    seen: list[tuple[tuple[int, ...], ...]] = []
    iterate = BatchLoader.__iter__

    def recorded(self: BatchLoader) -> Iterator[Batch]:
        for batch in iterate(self):
            if self.source.views.train:
                if len(seen) == crash_at:
                    raise Crash
                seen.append(batch.seeds)
            yield batch

    monkeypatch.setattr(BatchLoader, "__iter__", recorded)
    return seen


def write_lists(clips_folder: Any, folder: Path, num_videos: int = 9) -> None:
    """Write videos and the lists train.txt and val.txt, which the programs read from the working directory."""
    text = clips_folder(folder, num_videos).read_text()
    for name in ("train", "val"):
        (folder / f"{name}.txt").write_text(text)


def lightning_network(before_step: Callable[[], object] = int) -> Any:
    """Return a LightningModule that notes the samples it is given; skip the test if Lightning is not installed."""
    lightning = pytest.importorskip("pytorch_lightning")

    class Network(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.trained, self.validated = torch.nn.Linear(3, 6), [], []

        def training_step(self, batch, batch_index):
            before_step()
            self.trained.append((self.current_epoch, batch.sample_index.tolist()))
            return self.layer(batch.video.mean((2, 3, 4))).sum()

        def validation_step(self, batch, batch_index):
            self.validated.append(batch.sample_index.tolist())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Network()


def lightning_trainer(**arguments: Any) -> Any:
    """Return a Trainer that writes nothing."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pytest.importorskip("pytorch_lightning").Trainer(accelerator="cpu", **quiet, **arguments)


def _hide_comments(text: str) -> str:
    """Replace the # of Python's comments in column 0, which would read as headings."""
    parts = re.split(r"(^```python\n.*?^```)", text, flags=re.M | re.S)
    return "".join(part.replace("#", "\x00") if part.startswith("```") else part for part in parts)
