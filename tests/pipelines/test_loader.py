"""The stream of batches: the same for any number of workers and after resuming; zero copies; bad files by policy."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest
import torch

from configs import loading
from pipelines.dali_graph import build_pipeline
from pipelines.dali_workers import Readers, has_ended
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.loader import build_loader
from pipelines.sample_source import Unreadable
from pipelines.sampling import order
from pipelines.sampling.spatial import fitted
from tests.helpers.runs import ROOT
from utils.distributed import World

CPU = torch.device("cpu")


def make(path, *overrides, split="train", world=None):
    cfg = loading.load(None, [
        f"data.train={path}", f"data.val={path}", "data.frames=4", "data.stride=3", "data.size=32", "data.batch=3",
        "data.workers=0", "data.threads=1", "data.scale=0.4,1", "data.decoder=dali", "eval.clips=2", "eval.batch=3",
        *overrides,
    ])  # fmt: skip
    return build_loader(cfg, split, [str(i) for i in range(6)], world or World(), CPU)


def stream(loader, epochs=2) -> list[tuple[list[int], list[int], torch.Tensor]]:
    return [(b.label.tolist(), b.sample.tolist(), b.video.clone()) for _ in range(epochs) for b in loader]


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        x[:2] == y[:2] and torch.equal(x[2], y[2]) for x, y in zip(a, b, strict=True)
    )  # fmt: skip


@pytest.fixture(params=["dali", "host"])
def decoder(request) -> str:
    return f"data.decoder={request.param}"


def test_contract(clips_folder, tmp_path, decoder):
    path = clips_folder(tmp_path, 7)
    train, val, test = (next(iter(make(path, decoder, split=split))) for split in ("train", "val", "test"))
    assert train.video.shape == (3, 3, 4, 32, 32) and val.video.shape == (3, 1, 3, 4, 32, 32)
    assert test.video.shape == (3, 2 * 3, 3, 4, 32, 32)
    for batch in (train, val, test):
        assert batch.video.dtype is torch.float32 and batch.video.is_contiguous()
        assert batch.label.dtype is batch.sample.dtype is torch.int64
    assert test.sample.tolist() == [0, 1, 2] and test.label.tolist() == [0, 1, 2]


def turned(source, target, turns):
    """The same packets with a display matrix: a player turns the pictures anticlockwise."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.set_display_rotation(90 * turns)
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_videos_that_a_player_turns_are_turned(video, tmp_path, decoder, turns):
    """Boxes, the order of views and mirroring are those of the picture as it is shown."""
    for name, (width, height) in {"wide": (96, 64), "high": (64, 96)}.items():
        source = video("vp9", 30, width, height)
        shutil.copy(source, tmp_path / f"{name}_plain.mp4")
        turned(source, tmp_path / f"{name}_turned.mp4", turns)
    lists = {kind: tmp_path / f"{kind}.txt" for kind in ("plain", "turned")}
    for kind, path in lists.items():
        path.write_text(f"wide_{kind}.mp4 0\nhigh_{kind}.mp4 1\n")
    plain, shown = (next(iter(make(path, decoder, split="test"))).video[:2] for path in lists.values())
    assert [row.turns for row in make(lists["turned"], decoder, split="val").source.rows] == [turns] * 2
    views = plain.unflatten(1, (2, 3))
    views = (views.flip(2) if turns in (1, 2) else views).flatten(1, 2)
    # "wide" lies down to stand: its views go from the top on, which was the right; "high" the other way
    expected = torch.rot90(views, turns, (-2, -1))
    if turns % 2:
        other = plain.unflatten(1, (2, 3)).flip(2).flatten(1, 2) if turns == 3 else plain
        expected[1] = torch.rot90(other, turns, (-2, -1))[1]
    assert (shown - expected).abs().mean() < 0.01 and (shown - expected).abs().max() < 0.2

    crop = ["data.scale=1,1", "data.ratio=1,1.5", "data.batch=2", "run.seed=3"]
    straight, mirrored = (
        next(iter(make(lists["turned"], decoder, *crop, f"data.flip={flip}"))).video for flip in (0, 1)
    )
    assert torch.equal(mirrored, straight.flip(-1))


def test_pixels_are_where_the_contract_says(clips_folder, tmp_path, decoder):
    """Crop, resize, flip, normalise and layout against the same done with torch from PyAV's frames."""
    path = clips_folder(tmp_path, 6)
    loader = make(path, decoder, "data.flip=1", "data.scale=0.5,1")
    batch = next(iter(loader))
    source = loader.source
    for slot, row in enumerate(batch.sample.tolist()):
        frames, boxes, mirror = source.choose(row, order.generator(0, 0, row))
        top, left, bottom, right = boxes[0].astype(int)
        with open_video(source.clips[row].path) as v:
            rgb = np.stack([f.to_ndarray(format="rgb24") for f, _ in decode_frames(v, frames.ravel())])
        crop = torch.from_numpy(rgb[:, top:bottom, left:right]).permute(0, 3, 1, 2).float()
        small = torch.nn.functional.interpolate(crop, (32, 32), mode="bilinear", antialias=True).flip(-1)
        expected = ((small / 255 - 0.45) / 0.225).transpose(0, 1)
        levels = (batch.video[slot] - expected).abs() * 255 * 0.225
        assert mirror == 1 and levels.mean() < 1.5 and levels[..., 2:-2, 2:-2].max() < 8


def test_dali_and_host_agree(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 6)
    a, b = (stream(make(path, f"data.decoder={d}")) for d in ("dali", "host"))
    for x, y in zip(a, b, strict=True):
        assert x[:2] == y[:2]
        assert (x[2] - y[2]).abs().mean() * 255 * 0.225 < 2.0, "two colour conversions: about a grey level apart"


def test_any_number_of_workers(clips_folder, tmp_path, decoder):
    path = clips_folder(tmp_path, 7)
    none = stream(make(path, decoder))
    for workers in (2, 4):
        assert same(none, stream(make(path, decoder, f"data.workers={workers}")))


def test_resume_at_any_step(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 7)
    loader = make(path)
    whole, states = [], [loader.state_dict()]
    for _ in range(2):
        for batch in loader:
            whole.append((batch.label.tolist(), batch.sample.tolist(), batch.video.clone()))
            states.append(loader.state_dict())
    for done, state in enumerate(states[:-1]):
        resumed = make(path, "data.workers=2" if done == 1 else "data.workers=0")
        resumed.load_state_dict(state)
        assert same(whole[done:], stream(resumed, 2 - state["epoch"]))


def test_epochs_and_seeds_differ(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 6)
    a, other = stream(make(path)), stream(make(path, "run.seed=1"))
    assert [s[1] for s in a[:2]] != [s[1] for s in a[2:]] and not same(a, other)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_ranks_share_an_epoch(clips_folder, tmp_path, size, monkeypatch):
    path = clips_folder(tmp_path, 11)
    for split in ("train", "val"):
        rows = []
        for rank in range(size):
            monkeypatch.setattr(World, "is_first", True)  # each rank reads the files itself
            monkeypatch.setattr(World, "gather", lambda self, value: [value] * self.size)
            loader = make(path, "data.batch=1", split=split, world=World(rank, rank, size))
            rows += [s for _, sample, _ in stream(loader, 1) for s in sample if s >= 0]
        if split == "val":
            assert sorted(rows) == list(range(11))
        else:
            assert len(set(rows)) == len(rows) == 11 // size * size


def test_the_tensor_is_dalis_buffer(clips_folder, tmp_path):
    loader = make(clips_folder(tmp_path, 6))
    next(iter(loader))
    pipe = build_pipeline(loader.graph, loader.source, loader.source.batch)
    video, *_ = pipe.run()
    dense = video.as_tensor()
    assert torch.from_dlpack(dense).data_ptr() == dense.data_ptr() == video[0].data_ptr()


def test_the_loader_does_not_copy(clips_folder, tmp_path, monkeypatch):
    pointers = []
    real = torch.from_dlpack
    monkeypatch.setattr(torch, "from_dlpack", lambda t: (pointers.append(t.data_ptr()), real(t))[1])
    for batch in make(clips_folder(tmp_path, 6)):
        assert batch.video.data_ptr() == pointers[-2] and batch.label.data_ptr() == pointers[-1]


def test_held_batches_stay_as_they_were(clips_folder, tmp_path):
    held = []
    loader = make(clips_folder(tmp_path, 6), "data.workers=2")
    for _ in range(4):
        held += [(batch.video, batch.video.clone()) for batch in loader]
    assert len(held) == 8 and len({video.data_ptr() for video, _ in held}) == 8
    assert all(torch.equal(video, copy) for video, copy in held)


def damaged_list(clips_folder, tmp_path, n=9):
    """Rows 2, 4 and 6 cannot be used: missing, text, and pictures that only the decoder finds out about."""
    path = clips_folder(tmp_path, n)
    (tmp_path / "2.mp4").unlink()
    (tmp_path / "4.mp4").unlink()
    (tmp_path / "4.mp4").write_text("not a video")
    good = (tmp_path / "6.mp4").resolve().read_bytes()
    (tmp_path / "6.mp4").unlink()
    at = good.index(b"mdat") + 4
    size = int.from_bytes(good[at - 8 : at - 4], "big") - 8
    (tmp_path / "6.mp4").write_bytes(good[:at] + b"\xff" * size + good[at + size :])
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_videos_are_replaced_in_training(clips_folder, tmp_path, decoder, workers):
    path = damaged_list(clips_folder, tmp_path)
    loader = make(path, decoder, "data.max_bad=0.5", f"data.workers={workers}")
    batches = stream(loader, 3)
    assert set(loader.bad) == {2, 4, 6}
    assert loader.bad[2] == "no such file" and loader.bad[4].startswith("not a readable video")
    assert not {2, 4, 6} & {row for _, sample, _ in batches for row in sample}
    assert all(label == row % 6 for labels, rows, _ in batches for label, row in zip(labels, rows, strict=True))
    assert all(video.isfinite().all() for _, _, video in batches)
    assert same(batches, stream(make(path, decoder, "data.max_bad=0.5"), 3)), "the replacement is reproducible"


def test_broken_videos_fail_in_evaluation(clips_folder, tmp_path, decoder):
    loader = make(damaged_list(clips_folder, tmp_path), decoder, split="test")
    rows = [row for _, sample, _ in stream(loader, 1) for row in sample]
    assert rows == [0, 1, -1, 3, -1, 5, -1, 7, 8] and set(loader.bad) == {2, 4, 6}


def test_too_many_broken_videos_stop_the_run(clips_folder, tmp_path):
    loader = make(clips_folder(tmp_path, 9), "data.max_bad=0.2")
    for number in (2, 4, 6):  # after the index was built
        (tmp_path / f"{number}.mp4").unlink()  # a link to a file that other tests read
        (tmp_path / f"{number}.mp4").write_bytes(b"")
    with pytest.raises(Unreadable, match=r"2 of 9 videos cannot be read, more than data.max_bad=0.2[\s\S]*[246].mp4"):
        stream(loader, 3)


def test_a_file_deleted_after_indexing(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 6)
    loader = make(path, "data.max_bad=0.5")
    (tmp_path / "3.mp4").unlink()
    stream(loader, 2)
    assert loader.bad == {3: "no such file"}


@pytest.mark.parametrize("workers", [0, 2])
def test_all_files_deleted_after_indexing(clips_folder, tmp_path, workers):
    loader = make(clips_folder(tmp_path, 6), f"data.workers={workers}")
    for i in range(6):
        os.unlink(tmp_path / f"{i}.mp4")
    with pytest.raises(Unreadable, match="100 videos in a row cannot be read"):
        stream(loader, 1)


def test_no_readable_video_at_all(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    with pytest.raises(ValueError, match="none of its 1 videos can be read; the first: .*a.mp4: not a readable video"):
        make(tmp_path / "list.txt")


def test_fewer_videos_than_a_batch(clips_folder, tmp_path):
    with pytest.raises(ValueError, match="2 videos do not fill one step of data.batch=3"):
        make(clips_folder(tmp_path, 2))


@pytest.mark.parametrize("short", ["loop", "edge"])
def test_video_shorter_than_a_clip(video, tmp_path, short, decoder):
    shutil.copy(video("vp9", 5), tmp_path / "a.mp4")
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    loader = make(tmp_path / "list.txt", decoder, "data.batch=1", "data.frames=8", f"data.short={short}", split="val")
    clip = next(iter(loader)).video[0, 0]
    wanted = [0, 3, 6, 9, 12, 15, 18, 21]
    wanted = [w % 5 for w in wanted] if short == "loop" else [min(w, 4) for w in wanted]
    for a in range(8):
        for b in range(8):
            assert torch.equal(clip[:, a], clip[:, b]) == (wanted[a] == wanted[b])
    assert clip.abs().sum((0, 2, 3)).min() > 0, "no black frames"


def test_stride_zero_repeats_one_frame(clips_folder, tmp_path):
    clip = next(iter(make(clips_folder(tmp_path, 6), "data.stride=0"))).video
    assert torch.equal(clip, clip[:, :, :1].expand_as(clip))


def test_what_a_worker_is_sent_does_not_grow_with_the_data_set(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 30)
    few, many = (make(path, f"data.per_class={number}").source for number in (1, 5))
    assert (len(few.clips), len(many.clips)) == (6, 30)
    assert abs(len(pickle.dumps(many)) - len(pickle.dumps(few))) < 10, "counts, of one digit more"


def test_h264_goes_through_the_host_into_the_same_graph(clips_folder, tmp_path):
    loader = make(clips_folder(tmp_path, 6, kind="h264_bframes"), "data.decoder=auto")
    assert not loader.graph.uses_dali and next(iter(loader)).video.shape == (3, 3, 4, 32, 32)


def test_views_of_one_decode(clips_folder, tmp_path):
    """View c * crops + k is clip c, crop k, and the middle crop of a single clip is the validation view."""
    path = clips_folder(tmp_path, 6)
    three = next(iter(make(path, "eval.clips=1", split="test"))).video
    one = next(iter(make(path, split="val"))).video
    assert torch.equal(three[:, 1], one[:, 0])
    clips = next(iter(make(path, "eval.clips=3", "eval.crops=1", split="test"))).video
    both = next(iter(make(path, "eval.clips=3", split="test"))).video
    assert torch.equal(both[:, 1::3], clips)
    assert np.unique([float(v.sum()) for v in both[0]]).size == 9


# --- which frames -------------------------------------------------------------------------------------------------


def test_snapped_clips_are_of_key_frames_and_a_line_says_how_far_they_moved(clips_folder, tmp_path, capsys):
    path = clips_folder(tmp_path, 4)
    loader = make(path, "data.snap=keyframe", "data.stride=24", "data.frames=2", split="train")
    source = loader.source
    assert all(row.keyframes[:3] == (0, 12, 24) for row in source.rows)
    for row in range(4):
        frames = source.choose_frames(row, np.random.default_rng(row))
        assert set(frames.ravel()) <= set(source.rows[row].keyframes)
    said = capsys.readouterr().out
    assert "frames moved by" in said and "100.0 % are key frames" in said
    assert next(iter(loader)).video.shape == (3, 3, 2, 32, 32)


def test_segments_and_rates_reach_the_loader(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 4)
    segments = make(path, "data.sampling=segments", split="test").source
    length = segments.rows[0].num_frames
    frames = segments.choose_frames(0, np.random.default_rng(0))
    assert frames.shape == (2, 4) and frames.min() < length / 4 and frames.max() >= 3 * length / 4
    slow = make(path, "data.fps=10", "data.stride=1", split="val").source
    assert (np.diff(slow.choose_frames(0, np.random.default_rng(0))) == 3).all()  # of files at 30 frames a second
    assert len(stream(make(path, "data.sampling=segments"), 1)) == 1


# --- which box ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_letterboxed_frames_lie_in_the_middle_of_the_mean_colour(clips_folder, tmp_path, decoder, split):
    path = clips_folder(tmp_path, 4)
    settings = ["data.crop=letterbox", "eval.crops=1", "data.flip=0", "data.mean=0.2,0.4,0.6"]
    loader = make(path, decoder, *settings, split=split)
    batch = next(iter(loader))
    videos = batch.video if split == "train" else batch.video[:, 0]
    for video, row in zip(videos, batch.sample.tolist(), strict=True):
        known = loader.source.rows[row]
        height, width = fitted(known.width, known.height, 32)
        top, left = (32 - height + 1) // 2, (32 - width + 1) // 2
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert video[..., ~inside].abs().max() < 0.02 if (~inside).any() else height == width
        assert video[..., inside].std() > 0.3 and video[..., top, left : left + width].std() > 0.1


def test_dali_and_the_host_letterbox_alike(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 4)
    settings = ["data.crop=letterbox", "eval.crops=1"]
    one, other = (next(iter(make(path, f"data.decoder={d}", *settings, split="test"))).video for d in ("dali", "host"))
    assert (one - other).abs().mean() < 0.03


def test_jittered_crops_reach_the_loader(clips_folder, tmp_path):
    loader = make(clips_folder(tmp_path, 4), "data.crop=jitter", "data.short_sides=40,48")
    boxes = np.stack([loader.source.choose_box(row, np.random.default_rng(s)) for row in range(4) for s in range(20)])
    sides = boxes[:, 2] - boxes[:, 0]
    shorts = np.repeat([min(row.width, row.height) for row in loader.source.rows], 20)
    assert (sides == boxes[:, 3] - boxes[:, 1]).all()
    assert ((32 / 48 - 0.05 < sides / shorts) & (sides / shorts < 32 / 40 + 0.05)).all() and len(set(sides)) > 3
    assert next(iter(loader)).video.shape == (3, 3, 4, 32, 32)


def test_too_many_missing_videos_are_refused_before_the_first_step(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 9)
    path.write_text(path.read_text() + "gone.mp4 0\nlost.mp4 1\n")
    with pytest.raises(
        ValueError, match="2 of its 11 videos cannot be read, more than data.max_bad=0.1 allows; the first"
    ):
        make(path)
    assert len(make(path, "data.max_bad=0.2").source.clips) == 11
    assert make(path, split="test")


def test_the_wider_short_side_is_8_7_of_the_size(clips_folder, tmp_path):
    loader = make(clips_folder(tmp_path, 4), "eval.preset=maskfeat", split="test")
    views = loader.source.views
    assert (views.clips, views.crops, views.place, views.short_side) == (10, 1, "spread", 36)
    assert loading.load(None, ["eval.short_side=-1"]).data.size * 8 // 7 == 256


# --- readers that die ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0.0, 0.005, 0.02, 0.1])
def test_a_reader_that_is_killed_is_replaced_and_nothing_of_the_stream_is_lost(
    clips_folder, tmp_path, decoder, moment, capsys
):
    path = clips_folder(tmp_path, 9)
    whole = stream(make(path, decoder))
    loader = make(path, decoder, "data.workers=2")
    parts = []
    for number, batch in enumerate(batch for _ in range(2) for batch in loader):
        parts.append((batch.label.tolist(), batch.sample.tolist(), batch.video.clone()))
        if number == 1:
            victim = loader.decoder.readers.processes[0].pid
            threading.Timer(moment, os.kill, (victim, signal.SIGKILL)).start()
        time.sleep(moment / 2)
    assert same(parts, whole)
    time.sleep(0.1)


def test_readers_that_die_twice_at_a_step_end_the_run_with_the_files_named(clips_folder, tmp_path, monkeypatch):
    loader = make(clips_folder(tmp_path, 9), "data.workers=1")
    real = Readers.run

    def run(self, *stream):
        os.kill(self.processes[0].pid, signal.SIGKILL)
        return real(self, *stream)

    monkeypatch.setattr(Readers, "run", run)
    with pytest.raises(Unreadable, match=r"ended \(exit status .*\), again, while reading: (.*\d.mp4(, )?){3}"):
        next(iter(loader))


@pytest.mark.slow
def test_readers_end_with_a_run_that_is_killed(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 9)
    script = (
        "import sys, time, torch\nfrom configs import schema\nfrom pipelines.loader import build_loader\n"
        "from utils.distributed import World\n"
        f"cfg = schema.load(None, ['data.train={path}', 'data.size=32', 'data.batch=3', 'data.workers=2'])\n"
        "loader = build_loader(cfg, 'train', [], World(), torch.device('cpu'))\nnext(iter(loader))\n"
        "print('pids', *(p.pid for p in loader.decoder.readers.processes), flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    readers = next(line.split()[1:] for line in process.stdout if line.startswith("pids"))
    process.kill()
    process.wait()
    time.sleep(2)
    assert len(readers) == 2 and all(has_ended(int(pid)) for pid in readers)
