"""Windows over one video of any length: they cover it with the loader's pixels; eval.py classifies with them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eval as eval_command
from configs import loading
from configs.schema import Data, Eval
from pipelines.decode.video_info import VideoInfo
from pipelines.sliding_window import choose_frames, windows
from tests.helpers import ROOT
from tests.helpers.image_folders import moving_texture, write_images
from tests.helpers.loaders import build_loader, write_rotated
from tests.helpers.runs import TINY_RUN, evaluate, read_csv, train


@given(st.integers(1, 3000), st.integers(1, 32), st.integers(0, 33))
def test_windows_cover_the_video_and_overlap_by_half_at_least(video_frames, num_frames, frame_stride):
    info = VideoInfo("x", num_frames=video_frames, fps=25.0)
    clips = choose_frames(info, Data(num_frames=num_frames, frame_stride=frame_stride))
    span = (num_frames - 1) * frame_stride + 1
    assert clips.min() == 0 or len(clips) == 1 and video_frames > span
    assert clips.max() < video_frames
    if video_frames >= span:
        distances = np.diff(clips[:, 0])
        assert len(clips) == 1 or clips[-1, -1] == video_frames - 1 and distances.max() <= max(span / 2, 1) + 1
        assert len(clips) <= 2 * video_frames / span + 1


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_windows_have_the_pixels_of_the_loader(video, tmp_path, quarter_turns):
    write_rotated(video("vp9", 40, 96, 64), tmp_path / "x.mp4", quarter_turns)
    (tmp_path / "list.txt").write_text("x.mp4 0\n")
    overrides = ["data.frame_stride=3", "eval.batch_size=1", "data.decoder=pyav"]
    arguments = [f"data.val={tmp_path}/list.txt", *TINY_RUN, *overrides]
    cfg = loading.load_config(None, arguments)
    clips = list(windows(str(tmp_path / "x.mp4"), cfg.data, cfg.eval))
    assert len(clips) > 5 and clips[0].start == 0 and clips[-1].end == pytest.approx(40 / 30)
    cfg = loading.load_config(None, [*arguments, f"eval.num_clips={len(clips)}"])
    batch = next(iter(build_loader(cfg, "test", ["a"])))
    expected = batch.video[0].unflatten(0, (len(clips), 3))
    actual = torch.stack([window.views for window in clips])
    assert torch.allclose(actual.mean(1), expected.mean(1), atol=1e-5), "the same three views, in whatever order"
    assert clips[0].frame.shape == (32, 32, 3) and clips[0].frame.dtype == np.uint8


def test_windows_name_a_video_that_cannot_be_read(tmp_path):
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"x\.mp4: not a readable video"):
        next(windows(str(tmp_path / "x.mp4"), Data(), Eval()))


def test_readme_example_prints_the_classes_of_eval_py(arguments, tmp_path, video, monkeypatch, capsys):
    output_dir = f"run.output_dir={tmp_path}/runs"
    train([output_dir if "output_dir" in argument else argument for argument in arguments], "demo", "optim.epochs=1")
    shutil.copy(video("vp9", 75), tmp_path / "clip.mp4")
    _, example = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(example, "README.md", "exec"), {})
    actual = [line.split("%  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert eval_command.main(["runs/demo", "video=clip.mp4"]) == 0
    expected = [line.split("%  ")[1].split("  (")[0] for line in capsys.readouterr().out.splitlines()[1:4]]
    assert actual == expected and len(actual) == 3


@pytest.mark.figures
def test_eval_py_classifies_a_video(run_dir, video, capsys):
    clip = video("vp9", 75)
    capsys.readouterr()
    evaluate(run_dir, f"video={clip}")
    lines = capsys.readouterr().out.splitlines()
    assert f"{clip}: 2.5 s" in lines[0] and len(lines) == 1 + 5 + 1 and " s: " in lines[1]
    percentages = [float(line.split("%")[0]) for line in lines[1:6]]
    assert percentages == sorted(percentages, reverse=True) and 0 < sum(percentages) <= 100.5
    assert (run_dir / "video" / f"{clip.name}.png").stat().st_size > 3000


def test_eval_py_classifies_a_folder_of_images_as_one_video(run_dir, tmp_path, capsys):
    folder = write_images(tmp_path / "clip_1", moving_texture(60, width=96, height=64))
    evaluate(run_dir, f"video={folder}")
    assert f"{folder}: 2.0 s" in capsys.readouterr().out
    assert (run_dir / "video" / "clip_1.png").exists()


def test_eval_py_classifies_a_folder_of_videos(run_dir, tmp_path, video, capsys):
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.mp4", "a b.mp4", "deep/c.webm"):
        shutil.copy(video("vp9", 75), folder / name)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "note.txt").write_text("no video either")
    evaluate(run_dir, f"--video={folder}")
    assert "4 videos, 1 could not be read" in capsys.readouterr().out
    rows = read_csv(run_dir / "video" / "clips.csv")
    assert [Path(row["video"]).name for row in rows] == ["a b.mp4", "b.mp4", "broken.mp4", "c.webm"]
    assert rows[2]["status"].startswith("not a readable video") and rows[0]["class1"] == rows[1]["class1"]


def test_eval_py_refuses_what_is_no_video(run_dir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("nowhere.mp4", "no such file"),
        (tmp_path / "data" / "list.txt", "not a readable video"),
        (tmp_path / "empty", "no videos in it"),
    ):
        evaluate(run_dir, f"video={path}", status=2)
        assert message in capsys.readouterr().err
