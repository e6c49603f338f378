"""The loaders outside of train.py: arguments, lists in memory, parts of videos, targets, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import Data
from pipelines.dali_workers import has_ended
from pipelines.data.dataset import load_dataset
from pipelines.loader import EvalVideoLoader, VideoLoader
from tests.helpers import ROOT
from tests.helpers.loaders import collect, is_same_stream
from tests.helpers.videos import write_ffv1

SMALL = {"num_frames": 4, "frame_stride": 3, "image_size": 32, "batch_size": 3, "num_workers": 0, "device": "cpu"}


@pytest.fixture
def paths(clips_folder, tmp_path):
    """Return the paths of seven videos of 40 frames, 30 per second."""
    return [str(video.path) for video in load_dataset(clips_folder(tmp_path, 7)).videos]


# --- arguments ----------------------------------------------------------------------------------------------------


def test_keyword_arguments_give_the_stream_of_the_same_section(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 7)
    keys = {key: value for key, value in SMALL.items() if key != "device"}
    by_name = collect(VideoLoader(path, **SMALL, hflip=1.0, seed=3))
    by_section = collect(VideoLoader(str(path), Data(**keys), device=torch.device("cpu"), hflip=1.0, seed=3))
    assert is_same_stream(by_name, by_section) and len(by_name) == 2 * 2


def test_evaluation_yields_clips_times_crops_of_each_video_once(clips_folder, tmp_path):
    loader = EvalVideoLoader(clips_folder(tmp_path, 7), **SMALL, num_clips=2, num_crops=3)
    batches = list(loader)
    assert len(loader) == len(batches) == 3 and batches[0].video.shape == (3, 6, 3, 4, 32, 32)
    assert torch.cat([batch.sample_index for batch in batches]).tolist() == [*range(7), -1, -1]


def test_preset_sets_the_views_and_other_keys_override_it(clips_folder, tmp_path):
    views = EvalVideoLoader(clips_folder(tmp_path, 4), **SMALL, num_crops=1, preset="vivit").source.views
    assert (views.num_clips, views.num_crops) == (4, 1)


def test_mixing_is_part_of_the_stream(clips_folder, tmp_path):
    loader = VideoLoader(clips_folder(tmp_path, 7), **SMALL, mixup=0.8)
    batch = next(iter(loader))
    assert batch.label.shape == (3, len(loader.classes)) and torch.allclose(batch.label.sum(1), torch.ones(3))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batchsize": 8}, r"unknown key 'data.batchsize'; did you mean 'data.batch_size'"),
        ({"batch_size": 0}, r"data.batch_size=0: expected a whole number, 1 or more"),
        ({"crop": "center"}, r"data.crop=center: expected one of random_resized_crop"),
        ({"val": "val.txt"}, r"val=val.txt: expected the list as the first argument"),
        ({"aug_repeats": 2}, r"data.aug_repeats=2: expected a divisor of data.batch_size=3"),
        ({"device": "gpu"}, r"device=gpu: expected auto, cuda or cpu"),
        ({"dtype": torch.bfloat16}, r"dtype=torch.bfloat16: expected torch.float32 or torch.float16"),
        ({"seed": -1}, r"seed=-1: expected a whole number"),
        ({"global_batch_size": 4}, r"optim.global_batch_size=4: expected a multiple of data.batch_size=3"),
        ({"num_crops": 2}, r"unknown key 'data.num_crops'"),
    ],
)
def test_wrong_argument_is_named_with_what_was_expected(clips_folder, tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        VideoLoader(clips_folder(tmp_path, 3), **SMALL | keys)


def test_wrong_view_is_named_with_what_was_expected(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 3)
    with pytest.raises(ValueError, match=r"eval.num_crops=2: expected 1 or 3"):
        EvalVideoLoader(path, **SMALL, num_crops=2)
    with pytest.raises(ValueError, match=r"unknown key 'data.average'"):
        EvalVideoLoader(path, **SMALL, average="logits")


def test_process_of_several_must_say_which_part_it_reads(clips_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torch.distributed is not initialized"):
        VideoLoader(clips_folder(tmp_path, 3), **SMALL)


# --- lists in memory ----------------------------------------------------------------------------------------------


def test_list_in_memory_gives_the_stream_of_the_list_file(clips_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = clips_folder(tmp_path, 7)
    videos = [(video.path, video.label) for video in load_dataset(path).videos]
    assert is_same_stream(collect(VideoLoader(videos, **SMALL)), collect(VideoLoader(path, **SMALL)))
    assert len(list((tmp_path / "cache").rglob("*.index.jsonl"))) == 1, "the index of a list in memory is kept"


def test_data_set_that_was_read_with_other_classes_is_refused(paths):
    dataset = load_dataset([(paths[0], "b"), (paths[1], "c"), (paths[2], "c")])
    views = SMALL | {"num_clips": 1, "num_crops": 1}
    with pytest.raises(ValueError, match=r"other classes than classes=a, b, c \(3\); pass these to load_dataset"):
        EvalVideoLoader(dataset, classes=["a", "b", "c"], **views)
    labels = [batch.label.tolist() for batch in EvalVideoLoader(dataset, classes=["b", "c"], **views)]
    assert sum(labels, [])[:3] == [0, 1, 1]


def test_labels_in_memory_may_be_class_names(paths):
    loader = VideoLoader([(path, "walk" if i % 2 else "run") for i, path in enumerate(paths)], **SMALL)
    assert loader.classes == ["run", "walk"]
    test = EvalVideoLoader([(paths[0], "walk")], classes=loader.classes, num_clips=1, num_crops=1, **SMALL)
    assert next(iter(test)).label.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(), (5,)])
def test_labels_that_are_numbers_are_passed_through(paths, shape):
    targets = np.random.default_rng(0).random((len(paths), *shape)).astype(np.float32)
    loader = VideoLoader(list(zip(paths, targets, strict=True)), **SMALL)
    for batch in loader:
        assert batch.label.dtype is torch.float32
        assert torch.equal(batch.label, torch.from_numpy(targets)[batch.sample_index])
    test = EvalVideoLoader(list(zip(paths, targets, strict=True)), num_clips=1, num_crops=1, **SMALL)
    labels = torch.cat([batch.label for batch in test])
    assert torch.equal(labels[: len(paths)], torch.from_numpy(targets)) and loader.classes == []


@pytest.mark.parametrize("shape", [(), (5,)])
def test_targets_are_mixed_like_the_clips(paths, shape):
    targets = [np.full(shape, float(i), np.float32) for i in range(len(paths))]
    plain = next(iter(VideoLoader(list(zip(paths, targets, strict=True)), **SMALL)))
    mixed = next(iter(VideoLoader(list(zip(paths, targets, strict=True)), **SMALL, mixup=1.0)))
    assert mixed.label.shape == plain.label.shape and not torch.equal(mixed.label, plain.label)
    between = torch.stack([plain.label, plain.label.flip(0)])
    assert (mixed.label >= between.amin(0) - 1e-6).all() and (mixed.label <= between.amax(0) + 1e-6).all()


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([], "a list without videos"),
        (["a.mp4"], r"entry 0: 'a.mp4': expected \(path, label\)"),
        ([("a.mp4", 0), ("b.mp4", 1, 2)], r"entry 1: .*expected \(path, label\) or \(path, start, end, label\)"),
        ([("a.mp4", None)], "entry 0: label None: expected a class"),
        ([(3, "a.mp4")], "where path is text"),
        ([("a.mp4", 5, 2, 0)], r"entry 0: start=5, end=2: expected 0 <= start < end"),
        ([("a.mp4", "x", 2, 0)], r"entry 0: start 'x' and end 2: expected seconds"),
        ([("a.mp4", [0.0, 1.0]), ("b.mp4", [0.0])], r"entry 1: a label of shape \(1,\), and \(2,\) in entry 0"),
        ([("a.mp4", 0.5), ("b.mp4", "run")], "entry 1: label 'run': expected numbers"),
        ([("a.mp4", 0), ("b.mp4", -1)], r"entry 1: label -1: expected a class \(a number from 0 on"),
        ([("a.mp4", "run"), ("b.mp4", 10)], "entry 1: label 10 is a number, and 'run' of entry 0 a name"),
    ],
)
def test_wrong_entry_in_memory_is_named(videos, message):
    with pytest.raises(ValueError, match=message):
        VideoLoader(videos, **SMALL)


def test_state_of_another_stream_is_reported_or_refused(paths, capsys):
    videos = [(path, 0) for path in paths]
    loader = VideoLoader(videos, **SMALL)
    next(iter(loader))
    state = loader.state_dict()
    capsys.readouterr()
    VideoLoader(videos, **SMALL).load_state_dict(state)
    assert "in another order" not in capsys.readouterr().out
    VideoLoader(videos, **SMALL, seed=1).load_state_dict(state)
    assert "seed=1, and 0 before: the epoch continues in another order" in capsys.readouterr().out
    with pytest.raises(ValueError, match="a state of training: expected one of an evaluation"):
        EvalVideoLoader(videos, **SMALL, num_clips=1, num_crops=1).load_state_dict(state)


# --- parts of videos ----------------------------------------------------------------------------------------------


def test_frames_are_drawn_inside_the_part_that_an_entry_means(paths):
    parts = [(path, 0.5, 0.9, 0) for path in paths]
    loader = VideoLoader(parts, **SMALL | {"frame_stride": 2})
    frames = np.stack([loader.source.choose_frames(0, np.random.default_rng(seed)) for seed in range(60)])
    assert frames.min() == 15 and frames.max() == 26, "0.5 to 0.9 seconds at 30 frames per second"
    assert len(np.unique(frames[:, 0, 0])) == 6, "every start at which the clip fits"
    views = EvalVideoLoader(parts, **SMALL, num_clips=2, num_crops=1).source.choose_frames(0, np.random.default_rng(0))
    assert views.min() == 15 and views.max() <= 26


def test_part_of_a_varying_frame_rate_follows_the_times_of_its_frames(tmp_path):
    times = [0, 3, 6, 30, 33, 36, 39, 150]  # in frames, 30 per second
    write_ffv1(tmp_path / "v.mkv", 48, 32, num_frames=len(times), times=times)
    loader = EvalVideoLoader([(str(tmp_path / "v.mkv"), 0.25, 1.4, 0)], **SMALL, num_clips=1, num_crops=1)
    seconds = loader.infos[0].frame_times
    assert seconds is not None and np.allclose(seconds, np.array(times) / 30, atol=1e-3)
    frames = loader.source.choose_frames(0, np.random.default_rng(0))
    assert set(frames.ravel()) <= {3, 4, 5, 6}, "shown from 1 to 1.3 seconds"


def test_parts_of_one_video_are_videos_of_their_own(paths):
    halves = [(paths[0], 0, 0.6, 0), (paths[0], 0.6, 1.3, 1)]
    loader = EvalVideoLoader(halves, **SMALL | {"batch_size": 2}, num_clips=1, num_crops=1)
    batch = next(iter(loader))
    assert batch.label.tolist() == [0, 1] and not torch.equal(batch.video[0], batch.video[1])
    assert [video.name.rpartition("#")[2] for video in loader.videos] == ["t=0,0.6", "t=0.6,1.3"]


def test_part_after_the_end_of_its_video_is_unreadable(paths):
    late = [(path, 0, 1, 0) for path in paths[:5]] + [(paths[5], 7, 9, 0)]
    loader = VideoLoader(late, **SMALL, max_unreadable=0.5)
    list(loader)
    assert list(loader.bad_videos) == [5] and "start=7: the video ends after 1.33333 seconds" in loader.bad_videos[5]
    late[5] = (paths[5], 0.1, 1, 0)
    corrected = VideoLoader(late, **SMALL, max_unreadable=0.5)
    corrected.load_state_dict(loader.state_dict())
    assert not corrected.bad_videos and 5 in {index for batch in corrected for index in batch.sample_index.tolist()}


@pytest.mark.parametrize("separator", ["\t", " ", ","])
def test_list_with_parts_equals_the_entries_in_memory(clips_folder, tmp_path, separator):
    videos = load_dataset(clips_folder(tmp_path, 4)).videos
    lines = [separator.join([Path(v.path).name, "0.25", "1", str(v.label)]) for v in videos]
    (tmp_path / "parts.csv").write_text("\n".join([separator.join(["path", "start", "end", "label"]), *lines]) + "\n")
    read = load_dataset(tmp_path / "parts.csv").videos
    assert read == load_dataset([(v.path, 0.25, 1, v.label) for v in videos]).videos
    (tmp_path / "wrong.csv").write_text("\n".join([lines[0], f"{Path(videos[1].path).name} 0"]) + "\n")
    with pytest.raises(ValueError, match=r"wrong.csv:2: .*expected 'path start end label'"):
        load_dataset(tmp_path / "wrong.csv")


# --- how loaders end ----------------------------------------------------------------------------------------------


def test_closed_loader_has_no_workers_and_continues_where_it_was(clips_folder, tmp_path):
    path, keys = clips_folder(tmp_path, 9), SMALL | {"num_workers": 1}
    expected = collect(VideoLoader(path, **SMALL), epochs=1)
    with VideoLoader(path, **keys) as loader:
        first = next(iter(loader))
        assert torch.equal(first.video, expected[0][2])
        workers = [process.pid for process in loader.decoder.dali.processes]
    assert len(workers) == 1 and all(has_ended(pid) for pid in workers)
    assert is_same_stream(collect(loader, epochs=1), expected[1:])


ENDINGS = {
    "exit": "",
    "exception": "raise RuntimeError('of the user')\n",
    "interrupt": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n",
    "kill": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "terminate": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n",
}


@pytest.mark.parametrize(
    "ending",
    ["interrupt", "kill", *(pytest.param(name, marks=pytest.mark.slow) for name in ("exit", "exception", "terminate"))],
)
def test_nothing_is_left_behind_by_a_program_that_ends(clips_folder, tmp_path, ending):
    """No process, no shared memory, no file, however a program ends that never closes its loader."""
    path = clips_folder(tmp_path, 9)
    list(VideoLoader(path, **SMALL))  # writes the index
    script = (
        "import time\nfrom pipelines.loader import VideoLoader\n"
        f"loader = VideoLoader({str(path)!r}, device='cpu', image_size=32, batch_size=3, num_workers=2)\n"
        "next(iter(loader))\n"
        "print('pids', *(p.pid for p in loader.decoder.dali.processes), flush=True)\n"
    )
    before, files = set(os.listdir("/dev/shm")), sorted(os.listdir(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script + ENDINGS[ending]],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    pids = next(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("pids"))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not all(has_ended(int(pid)) for pid in pids):
        time.sleep(0.05)
    assert len(pids) == 2 and all(has_ended(int(pid)) for pid in pids), done.stderr
    others = ("pym-", "sem.mp-", "sem.loky-")  # what other tests may have at the same time
    mine = {name for name in set(os.listdir("/dev/shm")) - before if not name.startswith(others)}
    assert not mine and sorted(os.listdir(tmp_path)) == files
    assert (done.returncode == 0) == (ending == "exit")
