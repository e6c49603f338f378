"""What a run goes on with: the configuration of now on the state of then; and what a refusal leaves as it was."""

from __future__ import annotations

import pytest
import torch

import train as train_command
from configs import loading
from pipelines.known_faults import UNREADABLE
from pipelines.loader import VideoLoader, build_loader
from pipelines.sample_source import Unreadable
from tests.helpers.runs import ROOT, SMALL, last
from training.history import read_metrics
from training.metrics import Meter
from training.run_dir import find_checkpoint
from training.setup import build_learner, build_network, set_rates
from training.tasks import Classify
from utils.distributed import World


def learner(*words: str):
    cfg = loading.load(None, [*SMALL, *words])
    torch.manual_seed(0)
    return build_learner(cfg, build_network(cfg, 4), 1, torch.float32, 1)[0]


def step(it, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in it.network.parameters():
        p.grad = scale * torch.randn(p.shape, generator=generator)
    it.update(torch.tensor(scale))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion"])
def test_options_are_of_now_and_moments_of_then(name):
    then = learner(f"optim.name={name}", "optim.weight_decay=0.05", "optim.layer_decay=0.5")
    step(then, 1)
    now = learner(f"optim.name={name}", "optim.weight_decay=0.3", "optim.layer_decay=0.9", "optim.betas=0.8,0.9")
    asked = [{k: v for k, v in group.items() if k != "params"} for group in now.optimizer.param_groups]
    now.load(then.state())
    for group, options in zip(now.optimizer.param_groups, asked, strict=True):
        assert {key: group[key] for key in options} == options
    assert {group["weight_decay"] for group in now.optimizer.param_groups} == {0.3, 0.0}
    moments = zip(then.optimizer.state.values(), now.optimizer.state.values(), strict=True)
    assert all(torch.equal(a[key], b[key]) for a, b in moments for key in a if isinstance(a[key], torch.Tensor))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion"])
def test_a_first_step_that_is_skipped_leaves_nothing_behind(name):
    """fp16's first steps often overflow; torch's fused SGD then kept momentum as memory was found."""
    spoilt, plain = learner(f"optim.name={name}"), learner(f"optim.name={name}")
    torch.use_deterministic_algorithms(True)  # finds memory full of NaN
    try:
        step(spoilt, 1, float("nan"))
        for it in (spoilt, plain):
            step(it, 2)
            step(it, 3)
    finally:
        torch.use_deterministic_algorithms(False)
    pairs = zip(spoilt.network.parameters(), plain.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_another_optimiser_is_refused(arguments, tmp_path, capsys):
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1"]) == 0
    before = (tmp_path / "a" / "config.yaml").read_text()
    assert train_command.main([*arguments, "run.name=a", "optim.name=sgd"]) == 2
    assert "it is of optim.name=adamw, not sgd" in capsys.readouterr().err
    assert train_command.main([*arguments, "run.name=a", "model.args={width: 64, depth: 2, heads: 2}"]) == 2
    assert (tmp_path / "a" / "config.yaml").read_text() == before, "a refused run changes nothing"


def test_a_finished_run_keeps_its_configuration(arguments, tmp_path):
    """Else eval.py would test its weights with data it was not trained on."""
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1"]) == 0
    before = (tmp_path / "a" / "config.yaml").read_text()
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1", "data.stride=0"]) == 0
    assert (tmp_path / "a" / "config.yaml").read_text() == before
    assert train_command.main([*arguments, "run.name=a", "data.stride=0"]) == 0  # a second epoch
    assert "stride: 0" in (tmp_path / "a" / "config.yaml").read_text()


def test_a_run_without_its_configuration_does_not_begin(arguments, tmp_path, capsys):
    (tmp_path / "a" / "config.yaml").mkdir(parents=True)
    assert train_command.main([*arguments, "run.name=a"]) == 2
    assert f"run folder {tmp_path}/a: cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize("resume", ["no", "elsewhere"])
def test_started_anew_by_torchrun_a_run_goes_on(arguments, tmp_path, monkeypatch, resume):
    for name in ("a", "elsewhere"):
        assert train_command.main([*arguments, f"run.name={name}", "optim.epochs=1"]) == 0
    cfg = loading.load(None, [*arguments, "run.name=a", f"run.resume={'no' if resume == 'no' else tmp_path / resume}"])
    found = find_checkpoint(cfg)
    assert found is None if resume == "no" else found and found[0].parent.name == "elsewhere"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    found = find_checkpoint(cfg)
    assert found and found[0] == tmp_path / "a" / "last.pt"
    fresh = loading.load(None, [*arguments, "run.name=b", "run.resume=no"])
    assert find_checkpoint(fresh) is None, "it died before the first checkpoint"


def test_what_is_not_finite_in_a_row_counts_over_epochs(arguments, tmp_path, monkeypatch, capsys):
    """Four steps an epoch, five in a row are too many."""
    real = Classify.__call__

    def spoil(self, network, batch):
        out = real(self, network, batch)
        return out | {"loss": out["loss"] * float("nan")}

    monkeypatch.setattr(Classify, "__call__", spoil)
    words = ["run.name=a", "optim.epochs=9", "run.max_bad_steps=5", "data.val="]
    assert train_command.main([*arguments, *words]) == 2
    assert "not finite for 6 steps in a row" in capsys.readouterr().err
    assert last(tmp_path / "a")["step"] == 4


def test_processes_ask_each_other_every_five_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("training.metrics.time.perf_counter", lambda: now[0])
    meter = Meter(torch.device("cpu"))
    assert meter.every == 1
    for seconds, every in ((0.1, 50), (2.0, 2), (60.0, 1)):
        batch = type("Labelled", (), {"label": torch.zeros(2), "classes": torch.zeros(2)})()
        for _ in meter.waiting([batch] * 10):
            now[0] += seconds
            out = {"loss": torch.tensor(1.0), "logits": torch.zeros(2, 3)}
            meter.add(out, batch, torch.tensor(1.0))
        assert meter.read()["seconds"] == pytest.approx(10 * seconds)
        assert meter.every == every


def test_videos_that_other_processes_cannot_read_count(arguments, monkeypatch):
    cfg = loading.load(None, [*arguments, "data.max_bad=0.3"])
    loader = build_loader(cfg, "train", [str(n) for n in range(6)], World(), torch.device("cpu"))
    assert isinstance(loader, VideoLoader) and len(loader.source.clips) == 13
    own = {0: "gone", 1: "gone"}
    loader.add_bad(own)
    others = [({1: "gone", 2: "gone"}, [[2, UNREADABLE, 0, 3, 1]]), ({7: "gone"}, [])]
    monkeypatch.setattr(World, "gather", lambda self, value: [value, *others[:1]])
    loader.share_faults()
    assert loader.source.faults.is_known(2, UNREADABLE, len(loader)) and loader.bad[2] == "gone"
    monkeypatch.setattr(World, "gather", lambda self, value: [value, *others])
    assert sorted(loader.bad) == [0, 1, 2]
    with pytest.raises(Unreadable, match=r"4 of 13 videos cannot be read, more than data.max_bad=0.3"):
        loader.share_faults()


def test_the_least_rate_is_scaled_with_the_rate():
    cfg = loading.load(None, ["optim.lr=1e-4", "optim.min_lr=1e-6", "optim.epochs=2", "optim.warmup_epochs=0.5"])
    optimizer = learner().optimizer
    for at, rate in ((0, None), (5, 1.6e-3), (13, None), (20, 1.6e-5)):
        scaled, plain = (set_rates(optimizer, cfg.optim, at, 10, peak) for peak in (1.6e-3, 1e-4))
        assert scaled == pytest.approx(16 * plain) and (rate is None or scaled == pytest.approx(rate))


def test_pictures_of_a_pretraining_come_as_asked(arguments, tmp_path, monkeypatch):
    shown: list[int] = []
    monkeypatch.setattr(train_command, "pictures", lambda *given: shown.append(given[-1]))
    words = ["task.name=maskfeat", "model.name=maskfeat_tiny", "model.args={}", "task.show_epochs=2", "optim.epochs=4"]
    assert train_command.main([*arguments, *words, "run.name=a", "data.val="]) == 0
    steps = [r["step"] for r in read_metrics(tmp_path / "a")]
    each = len(steps) // 4
    assert shown == [each, 3 * each, 4 * each]


def test_rates_of_recipes_are_their_sources():
    """VideoMAE's code counts videos, SlowFast's 16 videos of two clips a machine."""
    for name, clips, rate in (("videomae_16x4_k400", 512, 5e-4), ("mvitv2s_16x4_k400", 512, 1.6e-3),
                              ("maskfeat_mvitv2s_16x4_k400_finetune", 512, 9.6e-3)):  # fmt: skip
        o = loading.load(next((ROOT / "configs").rglob(f"{name}.yaml"))).optim
        assert train_command.peak_rate(o, (clips, 1, 1)) == pytest.approx(rate), name
