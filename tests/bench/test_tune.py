"""bench.tune: a small run of everything, what it reads, and what it says limits a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import tune
from bench.harness import limits, tune_report
from bench.harness.limits import measure_reading, prepare_sample, prepared_short_side
from configs import loading
from pipelines.data.dataset import load_dataset
from pipelines.loader import VideoLoader
from pipelines.tuning.trials import draw_sample
from tests.helpers.runs import TINY_RUN

LIMITS = {"loader": 48.0, "workers": 52.0, "reading": 1900.0, "reading_is_cold": True, "uses_dali": False}
FASTER = {"prepared_speedup": {"median": 2.6, "p25": 2.5, "p75": 2.7}}


@pytest.mark.slow
def test_dry_run_measures_everything_and_writes_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "t.json"
    assert tune.main(["--dry-run", f"out={out}"]) == 0
    assert torch.get_num_threads() == threads
    result = json.loads(out.read_text())
    assert {"bench", "date", "environment", "settings", "cores_used_by_others", "sets"} <= set(result)
    (table,) = result["sets"]
    assert table["answer"].keys() == table["configured"].keys() and table["files"]["files"] == 3
    assert {"loader", "workers", "reading", "step", "prepared_speedup"} <= table["limits"].keys()
    assert table["sweep"]["num_candidates"] == table["num_candidates"] == len(table["sweep"]["trials"])
    output = capsys.readouterr().out
    assert "limits: " in output and "prepared files: " in output and "sweep of" in output and "dry run" in output


@pytest.mark.parametrize(
    ("changes", "limit", "help_text"),
    [
        ({}, "decoding", "more CPU cores"),
        (FASTER, "decoding", "prepared files, or more CPU cores"),
        ({"step": 20.0, "step_clips": 8}, "the step", "nothing in the loader"),
        ({"reading": 30.0}, "reading", "a faster disk"),
        ({"workers": 90.0}, "DALI's part (augmenting, normalizing)", "more CPU cores"),
        ({"workers": 90.0, "uses_dali": True}, "DALI's decoder", "more CPU cores"),
        ({"uses_dali": True}, "reading and decoding in the workers", "more CPU cores"),
    ],
)
def test_slowest_part_limits_and_what_helps_belongs_to_it(changes: dict[str, Any], limit: str, help_text: str) -> None:
    measured = LIMITS | changes
    assert tune_report.find_limit(measured) == limit
    lines = tune_report.what_helps(measured, limit, "train.csv", 224)
    assert help_text in lines[-1]
    assert any("2.6 times faster" in line and "pipelines.prepare train.csv" in line for line in lines) == bool(
        "prepared_speedup" in changes
    )


def test_answer_prints_what_differs_from_the_configuration() -> None:
    configured = {"decoder": "auto", "pyav_share": "auto", "num_workers": 2, "dali_threads": "auto", "prefetch": 2}
    result = {
        "limits": LIMITS | {"limit": "decoding", "step": 223.0, "step_clips": 8},
        "speedup": 1.2,
        "configured": configured,
    }
    result |= {"answer": configured | {"num_workers": 3}, "batch_size": 8}
    text = tune_report.format_answer(result, "train.csv", 224)
    assert text.splitlines()[0] == (
        "decoding limits: 48 clips/s; the loader does 48, its workers alone 52, the step alone 223, reading from the "
        "disk 1,900"
    )
    assert text.endswith("add (1.20 times the clips/s of the loader):\ndata.num_workers=3")
    same = tune_report.format_answer(result | {"answer": configured}, "train.csv", 224)
    assert "add nothing" in same


def test_subject_is_a_recipe_a_list_a_folder_or_a_video(clips_folder, tmp_path: Path) -> None:
    path = clips_folder(tmp_path, 5)
    subject = tune.read_subject(str(path), ["data.num_workers=3", "data.num_frames=4"])
    assert len(subject.dataset.videos) == 5 and subject.fixed == {"num_workers"} and not subject.has_network
    assert len(tune.read_subject(str(tmp_path), []).dataset.videos) == 5
    assert len(tune.read_subject(str(tmp_path / "2.mp4"), []).dataset.videos) == 1
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"data: {{train: {path}, num_workers: 8, decoder: pyav}}")
    subject = tune.read_subject(str(recipe), [])
    assert subject.has_network and subject.fixed == {"decoder"}, "workers of a recipe are of another machine"
    recipe.write_text("data: {num_workers: 8}")
    assert tune.main([str(recipe)]) == 2


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("secnds=3", "did you mean seconds=?"), ("seconds=0", "at least 1"), ("data.num_framse=3", "data.num_frames")],
)
def test_wrong_argument_prints_one_line(argument: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["list.txt", argument]) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1


def test_interruption_ends_with_a_line(monkeypatch, clips_folder, tmp_path, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "find_best", interrupt)
    assert tune.main([str(clips_folder(tmp_path, 3)), "data.batch_size=2", "run.device=cpu"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_reading_counts_the_bytes_of_clips_and_not_of_files(video) -> None:
    videos = [(str(video("h264", frames=240, index=index)), 0) for index in range(2)]
    loader = VideoLoader(load_dataset(videos), device="cpu", num_frames=2, frame_stride=1, image_size=32, batch_size=2)
    reading = measure_reading(loader.source, 2, 0.05)
    sizes = [info.size for info in loader.infos]
    assert reading.clips_per_s > 0 and 0 < reading.bytes_per_clip < 0.5 * sum(sizes) / len(sizes)


def test_prepared_sample_has_the_same_videos(video, tmp_path: Path) -> None:
    videos = [(str(video("h264", index=index)), 0) for index in range(2)]
    sample = draw_sample(load_dataset(videos), 0, whole_index=False)
    before, after = prepare_sample(sample, tmp_path, 32, 60.0)
    assert [info.path for info in before.infos] == [info.path for info in sample.infos]
    assert {info.height for info in after.infos} == {256} and not any(info.error for info in after.infos)
    assert prepare_sample(sample, tmp_path, 32, -1.0)[1].infos == []
    assert prepared_short_side(224) == 256 and prepared_short_side(312) == 320


def test_step_of_one_clip_is_timed_where_a_batch_takes_too_long() -> None:
    cfg = loading.load_config(
        None, [argument for argument in TINY_RUN if argument.startswith(("data", "model", "run"))]
    )
    batches = limits.measure_step(cfg, 6, torch.device("cpu"), 1.0)
    assert batches.clips == 3 and batches.clips_per_s > 0
    assert limits.measure_step(cfg, 6, torch.device("cpu"), 0.0).clips == 1
