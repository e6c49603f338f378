"""Tuning with real loaders: what it measures, keeps and leaves alone."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import Data
from pipelines.data.dataset import load_dataset
from pipelines.data.metadata import build_index, cache_path
from pipelines.decode.decoder_choice import DaliSupport
from pipelines.decode.nvdec import CPU, HOPPER
from pipelines.loader import VideoLoader
from pipelines.tuning import machine, tune
from pipelines.tuning.answers import answers_path
from pipelines.tuning.machine import KEYS, build_space, decoder_choices, worker_counts
from pipelines.tuning.search import Candidate
from pipelines.tuning.trials import Trials, draw_sample, fill_page_cache, repeat_to
from pipelines.tuning.tune import read_training_list
from tests.helpers.runs import last_checkpoint, train
from utils.distributed import World

DEVICE = torch.device("cpu")
TINY = {"num_frames": 4, "frame_stride": 2, "image_size": 32, "batch_size": 3, "num_workers": 0, "dali_threads": 1}
FIXED = ("num_workers", "dali_threads")  # what is left to tune starts no process


@pytest.fixture
def data(clips_folder, tmp_path):
    return Data(train=str(clips_folder(tmp_path, 7, kind="h264")), **TINY)


@pytest.fixture
def measured(monkeypatch):
    """Replace the trials by made-up speeds, and list the candidates that were measured."""
    candidates = []

    def measure(trials, candidate, clips):
        candidates.append(candidate)
        return 100.0 + 10 * candidate.prefetch

    monkeypatch.setattr(Trials, "__call__", measure)
    return candidates


def test_training_list_of_several_labels_is_read(data):
    Path(data.train).write_text("a.mp4 0,2\nb.mp4 1\n")
    dataset = read_training_list(data.model_copy(update={"multi_label": True}))
    assert dataset.targets.count_videos().tolist() == [1, 1, 1]


def test_tuning_measures_real_loaders_and_keeps_the_answer_beside_the_index(data, capsys):
    tuned = tune.tune(data, fixed=FIXED, device=DEVICE, seconds=1.5)
    (answer,) = json.loads(answers_path(data.train).read_text())
    assert answers_path(data.train) == cache_path(data.train, "tune.json")
    assert {key: getattr(tuned, key) for key in KEYS} == answer["values"]
    assert answer["clips_per_s"] > 0 and answer["fixed"] == {"num_workers": 0, "dali_threads": 1}
    assert "clips/s" in capsys.readouterr().out
    VideoLoader(data.train, tuned, device="cpu").close()


def test_kept_answer_is_used_and_measured_again_if_something_changes(data, measured, capsys):
    tuned = tune.tune(data, fixed=FIXED, device=DEVICE)
    assert tuned.prefetch == 4 and measured
    measured.clear()
    assert tune.tune(data, fixed=FIXED, device=DEVICE) == tuned and not measured
    assert "kept in" in capsys.readouterr().out
    other = data.model_copy(update={"image_size": 48})
    tune.tune(other, fixed=FIXED, device=DEVICE)
    assert measured, "other clips"
    measured.clear()
    tune.tune(data.model_copy(update={"root": os.path.dirname(data.train)}), fixed=FIXED, device=DEVICE)
    assert measured, "other files"
    measured.clear()
    tune.tune(data.model_copy(update={"decode_timeout": 5.0, "prefetch": 1}), fixed=FIXED, device=DEVICE)
    assert not measured, "neither a timeout nor where the search begins changes the answer"
    os.utime(cache_path(data.train), ns=(1, 1))
    tune.tune(data, fixed=FIXED, device=DEVICE)
    assert measured, "another index"


def test_answer_with_more_freedom_holds_for_the_same_values_only(data, measured):
    assert tune.tune(data, fixed=FIXED, device=DEVICE).prefetch == 4
    measured.clear()
    resumed = tune.tune(data, fixed=(*FIXED, "decoder", "pyav_share"), device=DEVICE)
    assert not measured and resumed.prefetch == 4, "it chose the decoder that is fixed now"
    pyav = data.model_copy(update={"decoder": "pyav"})
    tune.tune(pyav, fixed=(*FIXED, "decoder"), device=DEVICE)
    assert measured and {candidate.decoder for candidate in measured} == {"pyav"}
    measured.clear()
    tune.tune(data, fixed=("num_workers",), device=DEVICE)
    assert measured, "less was free when the kept answers were measured"


def test_unreadable_answers_are_reported_and_measured_again(data, measured, capsys):
    answers_path(data.train).write_text("{")
    tune.tune(data, fixed=FIXED, device=DEVICE)
    assert measured and "not readable as results of tuning" in capsys.readouterr().err
    assert len(json.loads(answers_path(data.train).read_text())) == 1


def test_list_with_broken_videos_is_tuned(data, measured, capsys):
    with open(data.train, "a") as file:
        file.write("broken.mp4 1\nmissing.mp4 2\n")
    with open(os.path.join(os.path.dirname(data.train), "broken.mp4"), "wb") as file:
        file.write(b"no video")
    tune.tune(data, fixed=FIXED, device=DEVICE)
    assert measured
    sample = draw_sample(load_dataset(data.train), 0, whole_index=True)
    assert len(sample.infos) == 7 and not any(info.error for info in sample.infos)


def test_list_of_less_than_a_batch_has_nothing_to_tune(data, measured, capsys):
    large = data.model_copy(update={"batch_size": 8})
    assert tune.tune(large, fixed=FIXED, device=DEVICE) == large and not measured
    assert "nothing to tune: 7 readable videos are fewer than the 8 of a batch" in capsys.readouterr().out


def test_nothing_is_tuned_if_every_key_is_fixed(data, measured, capsys):
    assert tune.tune(data, fixed=KEYS, device=DEVICE) == data and not measured
    assert "every key has its value already" in capsys.readouterr().out


def test_candidate_that_does_not_run_counts_as_zero_and_is_explained(data):
    sample = draw_sample(load_dataset(data.train), 0, whole_index=False)
    trials = Trials(sample, data, DEVICE, torch.float32, 0, World())
    assert trials(Candidate(num_workers=0, dali_threads=1), 3) > 0 and not trials.failures
    assert trials(Candidate(decoder="dali", num_workers=0, dali_threads=1), 3) == 0
    assert "DALI decodes none" in next(iter(trials.failures.values()))
    dali = data.model_copy(update={"decoder": "dali"})
    with pytest.raises(ValueError, match="DALI decodes none of the 7 videos"):
        tune.find_best(dataclasses.replace(trials, data=dali), (*FIXED, "decoder"), 1.0)


def test_slowest_rank_decides_for_all(data, monkeypatch):
    class TwoRanks(World):
        def gather(self, value):
            return [value, (5.0, "")]

    trials = Trials(None, data, DEVICE, torch.float32, 0, TwoRanks())
    monkeypatch.setattr(Trials, "_time", lambda *_: 40.0)
    assert trials(Candidate(), 10) == 10.0


def test_sample_is_drawn_from_the_whole_list_with_few_files_indexed(data):
    sample = draw_sample(load_dataset(data.train), 1, whole_index=False, limit=3)
    indexed = cache_path(data.train).read_text().splitlines()
    assert len(sample.infos) == len(sample.dataset.videos) == len(indexed) == 3
    assert [info.path for info in sample.infos] == [video.path for video in sample.dataset.videos]
    assert len(repeat_to(sample, 8).infos) == 9
    assert len(fill_page_cache(sample, 0.0, World()).infos) == 1
    assert len(fill_page_cache(sample, 60.0, World()).infos) == 3


def test_batch_of_more_videos_than_a_sample_has_is_tuned_all_the_same(data, measured, monkeypatch):
    monkeypatch.setattr(tune, "SAMPLE", 2)
    tune.tune(data.model_copy(update={"batch_size": 6}), fixed=FIXED, device=DEVICE)
    assert measured


def test_sample_keeps_targets_beside_their_videos(data, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    videos = load_dataset(data.train).videos
    dataset = load_dataset([(video.path, float(row)) for row, video in enumerate(videos)])
    sample = repeat_to(draw_sample(dataset, 1, whole_index=True, limit=4), 8)
    rows = [float([v.path for v in videos].index(video.path)) for video in sample.dataset.videos]
    assert np.allclose([sample.dataset.targets[video.label] for video in sample.dataset.videos], rows)


# --- candidates ---------------------------------------------------------------------------------------------------


def test_worker_counts_follow_the_cores():
    assert set(worker_counts(2)) == {1, 2, 3, 4} and set(worker_counts(1)) == {1, 2}
    assert set(worker_counts(16)) == {4, 8, 16, 24, 32} and max(worker_counts(256)) == 64


def test_fixed_keys_have_no_axis(data, monkeypatch):
    infos = build_index(load_dataset(data.train).videos, cache_path(data.train))
    monkeypatch.setattr(machine, "probe_dali", lambda device: DaliSupport(True, HOPPER))
    free = build_space(infos, data, (), DEVICE)
    decoders = {(c.decoder, c.pyav_share) for c in free.all_candidates()}
    assert {("auto", "auto"), ("auto", 0.0), ("auto", 1.0)} < decoders
    assert {decoder for decoder, _ in decoders} == {"auto"}, "others would refuse a validation list without NVDEC"
    cores = worker_counts(len(os.sched_getaffinity(0)))[0]
    assert {choice["num_workers"] for choice in free.axes["decoder"]} == {cores}, "few workers would favor NVDEC"
    fixed = build_space(infos, data, ("decoder", "num_workers"), DEVICE)
    assert {c.decoder for c in fixed.all_candidates()} == {"auto"}
    assert len({c.pyav_share for c in fixed.all_candidates()}) > 2, "the share of decoder=auto is still free"
    assert {c.num_workers for c in fixed.all_candidates()} == {0}
    only_share = build_space(infos, data, ("pyav_share",), DEVICE)
    assert {(c.decoder, c.pyav_share) for c in only_share.all_candidates()} == {("auto", "auto")}


def test_decoders_on_a_cpu_are_those_that_can_decode_the_videos(data, video):
    h264 = build_index(load_dataset(data.train).videos, cache_path(data.train))
    assert decoder_choices(h264, Candidate(), (), DaliSupport(False, CPU), 2) == []
    vp9 = [info.__class__(**{**info.__dict__, "codec": "vp9"}) for info in h264]
    assert {"decoder": "dali", "pyav_share": "auto"} in decoder_choices(
        vp9, Candidate(), (), DaliSupport(False, CPU), 2
    )


# --- train.py -----------------------------------------------------------------------------------------------------


def test_training_tunes_once_and_a_resumed_run_keeps_its_decoder(arguments, measured, capsys):
    run_dir = train(arguments, "a", "data.tune=yes", "optim.epochs=1")
    assert measured and {candidate.num_workers for candidate in measured} == {0}, "what the command line gives stays"
    config = last_checkpoint(run_dir)["config"]
    assert "prefetch: 4" in config
    measured.clear()
    train(arguments, "a", "data.tune=yes", "optim.epochs=2")
    assert not measured and "resumed from" in capsys.readouterr().out
    train(arguments, "b", "data.tune=yes", "data.prefetch=1", "optim.epochs=1", "data.decoder=pyav")
    assert {(c.prefetch, c.decoder) for c in measured} <= {(1, "pyav")}


def test_loader_refuses_tune_as_an_argument(data):
    with pytest.raises(ValueError, match=r"tune=True: expected it in train.py"):
        VideoLoader(data.train, tune=True)
