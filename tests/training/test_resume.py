"""Resuming: today's configuration on the saved state; what a refused or finished run leaves as it was."""

from __future__ import annotations

import pytest
import torch

from configs import loading
from pipelines.known_faults import UNREADABLE
from pipelines.sample_source import TooManyUnreadableVideos
from tests.helpers.loaders import build_loader
from tests.helpers.runs import NO_DROPOUT, TINY_RUN, last_checkpoint, train
from training.metrics import StepMetrics
from training.run_dir import find_checkpoint
from training.setup import build_network, build_state
from training.state import TrainState
from training.tasks import Classify
from utils.distributed import World

OPTIMIZERS = ["adamw", "sgd", "lamb", "lion"]


def make_state(*overrides: str) -> TrainState:
    cfg = loading.load_config(None, [*TINY_RUN, *overrides])
    torch.manual_seed(0)
    return build_state(cfg, build_network(cfg, 4), 1, torch.float32, 1)


def random_step(state: TrainState, seed: int, scale: float = 1.0) -> None:
    """Step with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in state.network.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    state.optimizer_step(clip_grad_norm=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_keeps_new_hyperparameters_and_old_moments(name):
    saved = make_state(f"optim.name={name}", "optim.weight_decay=0.05", "optim.layer_decay=0.5")
    random_step(saved, 1)
    new = ["optim.weight_decay=0.3", "optim.layer_decay=0.9", "optim.betas=0.8,0.9"]
    resumed = make_state(f"optim.name={name}", *new)
    groups = resumed.optimizers[0].param_groups
    configured = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    resumed.load_state_dict(saved.state_dict())
    for group, hyperparameters in zip(resumed.optimizers[0].param_groups, configured, strict=True):
        assert {key: group[key] for key in hyperparameters} == hyperparameters
    assert {group["weight_decay"] for group in resumed.optimizers[0].param_groups} == {0.3, 0.0}
    for moments, saved_moments in zip(
        resumed.optimizers[0].state.values(), saved.optimizers[0].state.values(), strict=True
    ):
        for key, value in saved_moments.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(moments[key], value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_skipped_first_step_leaves_no_uninitialized_moments(name):
    """The first steps in fp16 often overflow; torch's fused SGD then kept uninitialized memory as its momentum."""
    with_skip, plain = make_state(f"optim.name={name}"), make_state(f"optim.name={name}")
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        random_step(with_skip, 1, float("nan"))
        for state in (with_skip, plain):
            random_step(state, 2)
            random_step(state, 3)
    finally:
        torch.use_deterministic_algorithms(False)
    for actual, expected in zip(with_skip.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(actual, expected)


def test_resume_with_another_optimizer_or_network_is_refused_and_changes_nothing(arguments, capsys):
    run_dir = train(arguments, "a", "optim.epochs=1")
    config = (run_dir / "config.yaml").read_text()
    train(arguments, "a", "optim.name=sgd", status=2)
    assert "checkpoint was trained with optim.name=adamw, the configuration has sgd" in capsys.readouterr().err
    train(arguments, "a", "model.args={embed_dim: 64, depth: 2, num_heads: 2}", status=2)
    assert (run_dir / "config.yaml").read_text() == config


def test_finished_run_keeps_its_configuration(arguments):
    """Otherwise eval.py would test its weights with data that they were not trained on."""
    run_dir = train(arguments, "a", "optim.epochs=1")
    config = (run_dir / "config.yaml").read_text()
    train(arguments, "a", "optim.epochs=1", "data.frame_stride=0")
    assert (run_dir / "config.yaml").read_text() == config
    train(arguments, "a", "data.frame_stride=0")  # a second epoch
    assert "frame_stride: 0" in (run_dir / "config.yaml").read_text()


def test_run_that_cannot_write_its_configuration_does_not_begin(arguments, tmp_path, capsys):
    (tmp_path / "a" / "config.yaml").mkdir(parents=True)
    train(arguments, "a", status=2)
    assert f"run folder {tmp_path}/a: cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize("resume", ["no", "elsewhere"])
def test_run_restarted_by_torchrun_resumes_from_its_own_checkpoint(arguments, tmp_path, monkeypatch, resume):
    """Whatever run.resume says, which was followed before the restart."""
    for name in ("a", "elsewhere"):
        train(arguments, name, "optim.epochs=1")
    source = "no" if resume == "no" else tmp_path / resume
    cfg = loading.load_config(None, [*arguments, "run.name=a", f"run.resume={source}"])
    checkpoint = find_checkpoint(cfg.run)
    if resume == "no":
        assert checkpoint is None
    else:
        assert checkpoint and checkpoint[0].parent.name == "elsewhere"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    checkpoint = find_checkpoint(cfg.run)
    assert checkpoint and checkpoint[0] == tmp_path / "a" / "last.pt"
    without_checkpoint = loading.load_config(None, [*arguments, "run.name=b", "run.resume=no"])
    assert find_checkpoint(without_checkpoint.run) is None, "it died before its first checkpoint"


def test_run_keeps_the_pyav_share_that_was_estimated_at_its_start(
    arguments, mixed_list, emulated_card, tmp_path, monkeypatch, capsys
):
    """config.yaml has the number, and a run resumed on a machine with other cores decodes by it."""
    video_list = tmp_path / "list.txt"
    video_list.write_text("".join(f"{mixed_list.parent}/{index}.mp4 {index % 6}\n" for index in (0, 1, 2, 3, 8)))
    own = [f"data.train={video_list}", "data.val=", *NO_DROPOUT, "data.batch_size=4"]
    run_dir = train(arguments, "a", *own, "optim.epochs=2")
    out = capsys.readouterr().out
    share = loading.load_config(run_dir / "config.yaml").data.pyav_share
    assert 0 < share < 1 and f"of which PyAV takes a share of {share:g}" in out
    monkeypatch.setattr("pipelines.decode.decoder_choice._PYAV_PIXELS_PER_S", 1)
    train(arguments, "a", *own, "optim.epochs=3")
    out = capsys.readouterr().out
    assert "resumed from" in out and f"of which PyAV takes a share of {share:g}" in out
    assert "changed since: data" not in out
    assert loading.load_config(run_dir / "config.yaml").data.pyav_share == share
    with_share = train(arguments, "b", *own, "optim.epochs=3", "data.pyav_share=0.75")
    assert loading.load_config(with_share / "config.yaml").data.pyav_share == 0.75


def test_nonfinite_steps_in_a_row_are_counted_across_epochs(arguments, monkeypatch, capsys):
    """Each epoch has four steps, and more than five in a row are too many."""
    call = Classify.__call__

    def spoil(self, network, batch):
        out = call(self, network, batch)
        return out | {"loss": out["loss"] * float("nan")}

    monkeypatch.setattr(Classify, "__call__", spoil)
    run_dir = train(arguments, "a", "optim.epochs=9", "run.max_nonfinite_steps=5", "data.val=", status=2)
    assert "not finite for 6 consecutive steps" in capsys.readouterr().err
    assert last_checkpoint(run_dir)["step"] == 4


def test_metrics_sync_processes_about_every_five_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("training.metrics.time.perf_counter", lambda: now[0])
    step_metrics = StepMetrics(torch.device("cpu"))
    assert step_metrics.sync_every == 1
    batch = type("Labeled", (), {"label": torch.zeros(2), "class_index": torch.zeros(2)})()
    for seconds, sync_every in ((0.1, 50), (2.0, 2), (60.0, 1)):
        for _ in step_metrics.timed([batch] * 10):
            now[0] += seconds
            step_metrics.update({"loss": torch.tensor(1.0), "logits": torch.zeros(2, 3)}, batch)
            step_metrics.update_step(torch.tensor(1.0))
        assert step_metrics.compute_and_reset()["seconds"] == pytest.approx(10 * seconds)
        assert step_metrics.sync_every == sync_every


def test_videos_that_other_ranks_cannot_read_count_as_bad(arguments, monkeypatch):
    loader = build_loader(loading.load_config(None, [*arguments, "data.max_unreadable=0.3"]), "train")
    assert len(loader.videos) == 13
    loader.add_bad_videos({0: "gone", 1: "gone"})
    other_ranks = [({1: "gone", 2: "gone"}, [[2, UNREADABLE, 0, 3, 1]]), ({7: "gone"}, [])]
    monkeypatch.setattr(World, "gather", lambda self, value: [value, *other_ranks[:1]])
    loader.share_faults()
    assert loader.source.faults.is_known(2, UNREADABLE, len(loader)) and loader.bad_videos[2] == "gone"
    monkeypatch.setattr(World, "gather", lambda self, value: [value, *other_ranks])
    assert sorted(loader.bad_videos) == [0, 1, 2]
    message = r"4 of 13 videos cannot be read, more than data.max_unreadable=0.3"
    with pytest.raises(TooManyUnreadableVideos, match=message):
        loader.share_faults()
