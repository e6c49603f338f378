"""run.fit: which trials are made, what is chosen, and a run that keeps it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import loading
from tests.helpers.runs import TINY_RUN, last_checkpoint, losses, train
from training import fit
from training.fit import Trial, choose, keep_fit, plan_trials, possible_batches, with_batch


def machine(fixed: float, per_clip: float, limit: float, depth: int = 12, overhead: float = 0.3):
    """Return a machine on which recomputing all blocks saves four fifths of a clip's memory and costs some time."""
    made = []

    def try_batch(batch: int, blocks: int) -> Trial:
        gib = fixed + batch * per_clip * (1 - 0.8 * blocks / depth)
        speed = batch / (batch + 1) / (1 + overhead * blocks / depth)
        made.append((batch, blocks))
        return Trial(batch, blocks, True, gib, speed) if gib <= limit else Trial(batch, blocks, False)

    return try_batch, made


@pytest.mark.parametrize(
    ("clips", "expected"), [(1, [1]), (64, [1, 2, 4, 8, 16, 32, 64]), (24, [1, 2, 4, 8]), (7, [1])]
)
def test_batches_are_the_powers_of_two_that_divide_the_clips(clips, expected):
    assert possible_batches(clips) == expected


def test_batches_hold_whole_repeats_and_two_clips_to_mix():
    assert possible_batches(24, aug_repeats=2) == [2, 4, 8] and possible_batches(24, aug_repeats=3) == [3, 6, 12, 24]
    assert possible_batches(8, at_least=2) == [2, 4, 8]
    with pytest.raises(ValueError, match="expected 3 clips per step and process to be a multiple of 2"):
        possible_batches(3, at_least=2)


@given(st.floats(0, 8), st.floats(0.01, 8), st.floats(1, 80), st.sampled_from([1, 8, 64, 24]))
def test_largest_batch_of_a_level_is_found_in_few_trials(fixed, per_clip, limit, clips):
    try_batch, made = machine(fixed, per_clip, limit)
    batches = possible_batches(clips)
    trials = plan_trials(try_batch, batches, [0, 6, 12], limit)
    assert len(made) == len(set(made)) <= 3 * 4
    for blocks in {trial.checkpoint_blocks for trial in trials}:
        fitting = [batch for batch in batches if machine(fixed, per_clip, limit)[0](batch, blocks).fits]
        found = [trial.batch_size for trial in trials if trial.fits and trial.checkpoint_blocks == blocks]
        assert max(found, default=0) == max(fitting, default=0)
    assert (choose(trials) is None) is not any(trial.fits for trial in trials)


def test_nothing_is_recomputed_if_all_clips_fit():
    try_batch, made = machine(fixed=1, per_clip=0.1, limit=40)
    best = choose(plan_trials(try_batch, possible_batches(64), [0, 6, 12], 40))
    assert (best.batch_size, best.checkpoint_blocks) == (64, 0) and {blocks for _, blocks in made} == {0}


def test_recomputation_is_chosen_where_it_is_faster_and_where_nothing_else_fits():
    def chosen(overhead: float, fixed: float = 2.0):
        try_batch, _ = machine(fixed=fixed, per_clip=10, limit=13, overhead=overhead)
        best = choose(plan_trials(try_batch, possible_batches(8), [0, 12], 13))
        return best.batch_size, best.checkpoint_blocks

    assert chosen(overhead=0.3) == (4, 12), "batches of four, though a third slower, beat single clips"
    assert chosen(overhead=2.0) == (1, 0)
    assert chosen(overhead=2.0, fixed=10.0) == (1, 12), "without recomputation not one clip fits"


def test_batch_that_was_estimated_too_large_is_halved():
    def try_batch(batch: int, blocks: int) -> Trial:  # memory that grows faster than the clips
        gib = batch**1.3
        return Trial(batch, blocks, gib <= 30, gib, batch)

    trials = plan_trials(try_batch, possible_batches(64), [0], 30)
    assert choose(trials).batch_size == 8


def test_found_batch_keeps_the_clips_per_step_and_is_kept():
    cfg = loading.load_config(None, [*TINY_RUN, "optim.global_batch_size=32", "run.fit=yes"])
    found = with_batch(cfg, 8, 1, 32)
    assert found.data.batch_size == 8 and found.optim.global_batch_size == 32
    assert found.model.args["checkpoint_blocks"] == 1
    kept, line = keep_fit(cfg, found)
    assert kept == found
    assert line == (
        "run.fit: as when the run began, data.batch_size=8 model.args.checkpoint_blocks=1, of 32 clips per step"
    )


@pytest.mark.slow
def test_run_that_fits_takes_all_its_clips_at_once_and_resumes_with_the_same(arguments, capsys):
    keys = ["optim.global_batch_size=4", "data.batch_size=1", "model.args={embed_dim: 32, depth: 2, num_heads: 2}"]
    run_dir = train(arguments, "a", *keys, "run.fit=yes")
    assert "run.fit: data.batch_size=4 model.args.checkpoint_blocks=0, of 4 clips per step" in capsys.readouterr().out
    saved = loading.parse_config(last_checkpoint(run_dir)["config"])
    assert saved.data.batch_size == 4 and saved.optim.global_batch_size == 4
    plain = train(arguments, "b", *keys)
    for (_, loss, _), (_, expected, _) in zip(losses(run_dir), losses(plain), strict=True):
        assert loss == pytest.approx(expected, abs=1e-5)
    train(arguments, "a", *keys, "run.fit=yes", "optim.epochs=3")
    out = capsys.readouterr().out
    assert "run.fit: as when the run began, data.batch_size=4" in out and "blocks recomputed" not in out
    assert len(losses(run_dir)) == 9


@pytest.mark.slow
def test_run_that_cannot_fit_says_so(arguments, monkeypatch, capsys):
    monkeypatch.setattr(fit, "free_gib", lambda device: 0.01)
    train(arguments, "a", "run.fit=yes", status=2)
    assert "run.fit: not even one clip fits" in capsys.readouterr().err


def test_wrong_teacher_is_told_before_a_trial(arguments, monkeypatch, capsys):
    monkeypatch.setattr(fit, "run_trials", None)
    train(arguments, "a", "run.fit=yes", "task.teacher=nowhere", status=2)
    assert capsys.readouterr().err == "train.py: nowhere: No such file or directory\n"


def test_fit_is_for_classifiers(arguments, capsys):
    train(arguments, "a", "run.fit=yes", "task.name=maskfeat", "model.name=maskfeat_tiny", "model.args={}", status=2)
    assert "run.fit=yes: expected no with task.name=maskfeat" in capsys.readouterr().err
