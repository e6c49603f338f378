"""sliding: one video of any length; the same pixels as the loader's, and what the command makes of it."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eval as eval_command
import train as train_command
from configs import loading
from pipelines.decode.video_info import Row
from pipelines.loader import build_loader
from pipelines.sliding_window import choose_frames, windows
from tests.helpers.runs import ROOT, SMALL
from tests.pipelines.test_loader import turned
from utils.distributed import World


@given(st.integers(1, 3000), st.integers(1, 32), st.integers(0, 33))
def test_clips_cover_the_video_and_overlap_by_half_at_least(num_frames, frames, stride):
    cfg = loading.load(None, [f"data.frames={frames}", f"data.stride={stride}"])
    clips = choose_frames(Row("x", num_frames=num_frames, fps=25.0), cfg)
    span = (frames - 1) * stride + 1
    assert clips.min() == 0 or len(clips) == 1 and num_frames > span
    assert clips.max() < num_frames
    if num_frames >= span:
        steps = np.diff(clips[:, 0])
        assert len(clips) == 1 or clips[-1, -1] == num_frames - 1 and steps.max() <= max(span / 2, 1) + 1
        assert len(clips) <= 2 * num_frames / span + 1


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_views_are_the_loaders(video, tmp_path, turns):
    turned(video("vp9", 40, 96, 64), tmp_path / "x.mp4", turns)
    (tmp_path / "list.txt").write_text("x.mp4 0\n")
    words = [f"data.val={tmp_path}/list.txt", *SMALL, "data.stride=3", "eval.batch=1", "data.decoder=host"]
    cfg = loading.load(None, words)
    slid = list(windows(str(tmp_path / "x.mp4"), cfg))
    assert len(slid) > 5 and slid[0].start == 0 and slid[-1].end == pytest.approx(40 / 30)
    cfg = loading.load(None, [*words, f"eval.clips={len(slid)}"])
    batch = next(iter(build_loader(cfg, "test", ["a"], World(), torch.device("cpu"))))
    theirs = batch.video[0].unflatten(0, (len(slid), 3))
    ours = torch.stack([window.views for window in slid])
    assert torch.allclose(ours.mean(1), theirs.mean(1), atol=1e-5), "the same three views, in whatever order"
    assert slid[0].picture.shape == (32, 32, 3) and slid[0].picture.dtype == np.uint8


def test_a_video_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"x\.mp4: not a readable video"):
        next(windows(str(tmp_path / "x.mp4"), loading.load(None, SMALL)))


def test_the_example_in_the_readme(arguments, tmp_path, video, monkeypatch, capsys):
    assert train_command.main([*arguments, "run.name=demo", f"run.folder={tmp_path}/runs", "optim.epochs=1"]) == 0
    shutil.copy(video("vp9", 75), tmp_path / "clip.mp4")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(example, "README.md", "exec"), {})
    ours = [line.split("%  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert eval_command.main(["runs/demo", "video=clip.mp4"]) == 0
    theirs = [line.split("%  ")[1].split("  (")[0] for line in capsys.readouterr().out.splitlines()[1:4]]
    assert ours == theirs and len(ours) == 3


def test_the_command(arguments, tmp_path, video, capsys):
    assert train_command.main([*arguments, "run.name=a", "optim.epochs=1"]) == 0
    run, clip = tmp_path / "a", video("vp9", 75)
    capsys.readouterr()
    assert eval_command.main([str(run), f"video={clip}"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert f"{clip}: 2.5 s" in out[0] and len(out) == 1 + 5 + 1 and " s: " in out[1]
    shares = [float(line.split("%")[0]) for line in out[1:6]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.5
    assert (run / "video" / f"{clip.name}.png").stat().st_size > 3000

    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.mp4", "a b.mp4", "deep/c.webm"):
        shutil.copy(clip, folder / name)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "note.txt").write_text("no video either")
    assert eval_command.main([str(run), f"--video={folder}"]) == 0
    assert "4 videos, 1 could not be read" in capsys.readouterr().out
    rows = list(csv.DictReader(open(run / "video" / "clips.csv")))
    assert [Path(row["video"]).name for row in rows] == ["a b.mp4", "b.mp4", "broken.mp4", "c.webm"]
    assert rows[2]["state"].startswith("not a readable video") and rows[0]["class1"] == rows[1]["class1"]
    for wrong, message in (("nowhere.mp4", "no such file"), (tmp_path / "data" / "list.txt", "not a readable video")):
        assert eval_command.main([str(run), f"video={wrong}"]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert eval_command.main([str(run), f"video={tmp_path / 'empty'}"]) == 2
    assert "no videos in it" in capsys.readouterr().err
