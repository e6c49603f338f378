"""The loaders in loops that are not train.py's: of a user, Lightning, Fabric, transformers, accelerate and torchrun."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
import torch

from pipelines.batch_loader import Batch
from pipelines.dali_workers import has_ended
from pipelines.decode.decoder_choice import DaliSupport
from pipelines.loader import EvalVideoLoader, VideoLoader
from tests.conftest import EMULATED_CARD
from tests.helpers.loaders import collect, copy_of, is_same_stream
from tests.helpers.programs import (
    Crash,
    lightning_network,
    lightning_trainer,
    record_training,
    run_program,
    toy_program,
)
from tests.helpers.runs import run, torchrun_command

SMALL = {"num_frames": 4, "frame_stride": 3, "image_size": 32, "batch_size": 3, "num_workers": 0, "device": "cpu"}
CENTER = {"num_clips": 1, "num_crops": 1}


def indices(batches: Iterable[Batch]) -> list[int]:
    """Return the samples of batches that are not padding."""
    return [index for batch in batches for index in batch.sample_index.tolist() if index >= 0]


# --- what frameworks do with an iterator --------------------------------------------------------------------------


def test_loop_that_counts_batches_gets_every_epoch(lists):
    """Such a loop never asks for the batch after the last one, at which an iterator would turn to the next epoch."""
    expected = collect(VideoLoader("train.txt", **SMALL), epochs=3)
    loader = VideoLoader("train.txt", **SMALL)
    counted = [copy_of(batch) for _ in range(3) for _, batch in zip(range(len(loader)), loader, strict=False)]
    assert is_same_stream(counted, expected) and loader.state_dict()["epoch"] == 3


def test_iterator_of_an_earlier_epoch_ends_without_a_batch(lists):
    loader = VideoLoader("train.txt", **SMALL)
    early = iter(loader)
    first = indices(next(early) for _ in range(len(loader)))
    second = indices(loader)
    assert next(early, None) is None and loader.epoch == 2
    assert sorted(first) == sorted(second) == list(range(9)) and first != second


def test_iterators_that_are_never_used_change_nothing(lists):
    loader = VideoLoader("train.txt", **SMALL)
    for _ in range(3):
        iter(loader)
    assert is_same_stream(collect(loader, 1), collect(VideoLoader("train.txt", **SMALL), 1))


def test_training_that_was_broken_off_continues_with_unseen_samples(lists):
    loader = VideoLoader("train.txt", **SMALL)
    seen = indices([next(iter(loader))]) + indices(loader)
    assert sorted(seen) == list(range(9))


def test_evaluation_that_was_broken_off_starts_over(lists):
    expected = collect(EvalVideoLoader("val.txt", **CENTER, **SMALL), 1)
    loader = EvalVideoLoader("val.txt", **CENTER, **SMALL)
    for _ in range(2):
        next(iter(loader))
        assert is_same_stream(collect(loader, 1), expected)


def test_evaluation_continues_once_at_a_restored_position(lists):
    loader = EvalVideoLoader("val.txt", **CENTER, **SMALL)
    next(iter(loader))
    state = loader.state_dict()
    restored = EvalVideoLoader("val.txt", **CENTER, **SMALL)
    restored.load_state_dict(state)
    assert indices(restored) == list(range(3, 9)) and indices(restored) == list(range(9))


def test_batches_that_are_held_together_keep_their_clips(lists):
    """Gradient accumulation of transformers' Trainer takes several batches before it uses the first."""
    loader = VideoLoader("train.txt", **SMALL | {"batch_size": 1})
    held = [copy_of(batch) for batch in list(loader)]
    assert is_same_stream(held, collect(VideoLoader("train.txt", **SMALL | {"batch_size": 1}), 1))


def test_close_ends_workers_while_the_exception_of_a_batch_is_held(lists, monkeypatch):
    """A notebook and a handler of Ctrl-C hold the traceback, and with it the pipeline that waited for the batch."""
    loader = VideoLoader("train.txt", **SMALL | {"num_workers": 1})
    expected = collect(VideoLoader("train.txt", **SMALL), 1)
    next(iter(loader))
    (worker,) = loader.decoder.dali.processes

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loader.decoder.dali.pipe, "run", interrupt)
    with pytest.raises(KeyboardInterrupt) as held:
        next(iter(loader))
    loader.close()
    assert has_ended(worker.pid) and held.tb is not None
    assert is_same_stream(collect(loader, 1), expected[1:])


@pytest.mark.parametrize(("device", "index"), [("cuda:2", 2), ("cuda", 1)])
def test_dali_works_on_the_card_of_the_device_that_was_given(lists, monkeypatch, device, index):
    """Frameworks name the card themselves; without a number it is torch's current one."""
    monkeypatch.setattr("pipelines.build_source.probe_dali", lambda device: DaliSupport(True, EMULATED_CARD))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    loader = VideoLoader("train.txt", **SMALL | {"device": torch.device(device)})
    assert loader.pipeline.device_id == loader.device.index == index


# --- the programs of docs/loader.md -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "num_saved"), [("Plain torch", 2), ("Lightning", 3), ("Lightning Fabric", 2), ("transformers", 3)]
)
def test_program_that_crashed_continues_with_the_exact_stream(lists, monkeypatch, heading, num_saved):
    """Two epochs of two batches. The programs save after each epoch, or at toy size after each step, and then crash."""
    expected = record_training(monkeypatch)
    collect(VideoLoader("train.txt", batch_size=4, num_workers=0, num_frames=8, image_size=32))
    monkeypatch.undo()
    monkeypatch.chdir(lists)
    seen = record_training(monkeypatch, crash_at=3)
    with pytest.raises(Crash):
        run_program(heading)
    assert seen == expected[:3]
    monkeypatch.undo()
    monkeypatch.chdir(lists)
    seen = record_training(monkeypatch)
    run_program(heading)
    assert seen == expected[num_saved:]


def test_lightning_continues_a_checkpoint_of_an_epochs_end(lists, monkeypatch):
    """There Lightning restores no loader by itself: the data module of the page does."""
    run_program("Lightning", **{"max_epochs=2": "max_epochs=1"})
    seen = record_training(monkeypatch)
    variables = run_program("Lightning")
    assert [{seed[1] for seed in batch} for batch in seen] == [{1}, {1}]
    loaders = variables["trainer"].train_dataloader, variables["trainer"].val_dataloaders
    assert all(loader.decoder.dali is None for loader in loaders), "closed by the data module"


def test_lightning_validates_all_videos_after_its_sanity_check(lists):
    network, trainer = lightning_network(), lightning_trainer(max_epochs=3, num_sanity_val_steps=1)
    trainer.fit(network, VideoLoader("train.txt", **SMALL), EvalVideoLoader("val.txt", **CENTER, **SMALL))
    whole = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert network.validated == [*whole[:1], *whole * 3]
    assert [epoch for epoch, _ in network.trained] == [0] * 3 + [1] * 3 + [2] * 3


def test_timesformer_of_transformers_takes_the_same_batches(lists):
    config = "TimesformerConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=64, "
    variables = run_program("transformers", **{"VideoMAEConfig(": config, "VideoMAE": "Timesformer"})
    metrics = variables["trainer"].evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1 and variables["trainer"].state.global_step == 4


def test_accelerate_leaves_a_loader_as_it_is(lists):
    accelerate = pytest.importorskip("accelerate")
    loader = VideoLoader("train.txt", **SMALL)
    assert accelerate.Accelerator(cpu=True).prepare(loader) is loader


@pytest.mark.slow
def test_ranks_of_the_torchrun_program_see_each_sample_once(lists):
    """Nine videos, two ranks, four clips each per batch: an epoch has eight of them, a test all."""
    recorder = (
        "import atexit, os\nfrom pipelines.batch_loader import BatchLoader\niterate = BatchLoader.__iter__\n"
        "def recorded(self):\n"
        "    for batch in iterate(self):\n"
        "        line = (self.source.views.train, self.epoch, batch.sample_index.tolist())\n"
        "        print('batch', *line, file=open(f'rank{os.environ[\"RANK\"]}.txt', 'a'))\n"
        "        yield batch\n"
        "BatchLoader.__iter__ = recorded\n"
    )
    (lists / "program.py").write_text(recorder + toy_program("torchrun"))
    out = run(torchrun_command([], str(lists / "program.py")), cwd=lists)
    assert re.search(r"^top-1 \d+\.\d %$", out, re.M)
    lines = "".join((lists / f"rank{rank}.txt").read_text() for rank in range(2))
    seen: dict[str, list[int]] = {}
    for part, numbers in re.findall(r"batch (\w+ \d) \[(.*)\]", lines):
        seen.setdefault(part, []).extend(index for index in map(int, numbers.split(",")) if index >= 0)
    assert set(seen) == {"True 0", "True 1", "False 0"}
    assert sorted(seen["False 0"]) == list(range(9))
    assert all(len(seen[part]) == len(set(seen[part])) == 8 for part in ("True 0", "True 1"))
