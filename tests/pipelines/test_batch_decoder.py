"""The batch decoder: DALI and PyAV in one batch, files that DALI or both refuse, batches that fail as a whole."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.dali_workers import DaliPipeline
from pipelines.decode import encoded_frames
from pipelines.decode.decoder_choice import DaliSupport
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.nvdec import Limits
from pipelines.known_faults import REFUSED, UNREADABLE
from pipelines.sample_source import SampleSource, TooManyUnreadableVideos
from tests.helpers.loaders import (
    Stream,
    collect,
    copy_of,
    first_video,
    gray_levels,
    is_same_stream,
    make_loader,
)
from tests.helpers.videos import write_video

AUGMENTED = ["data.rand_augment=m7-n2-mstd0.5", "data.aug_repeats=3"]
DALI, PYAV = "data.decoder=dali", "data.decoder=pyav"
NUM_DECODABLE = 4  # of mixed_list, its first videos


# --- DALI and PyAV side by side -----------------------------------------------------------------------------------


def test_dali_decodes_each_frame_once(mixed_list) -> None:
    """For a frame that it has passed DALI would decode the file anew, and ten clips of a short video share frames."""
    overrides = ["data.num_frames=16", "eval.num_clips=10", "eval.batch_size=1"]
    source = make_loader(mixed_list, DALI, *overrides, split="test").source
    _, positions, frame_order, *_ = source.sample(0, 0)
    assert len(frame_order) == 160 and (np.diff(positions) > 0).all()
    frames, *_ = source.choose_views(0, np.random.default_rng(0))
    assert (frames.ravel() < 24).all() and len(positions) <= 24
    dali, pyav = (first_video(make_loader(mixed_list, decoder, *overrides, split="test")) for decoder in (DALI, PYAV))
    assert gray_levels((dali - pyav).abs().mean()) < 2


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "overrides",
    [[], pytest.param(AUGMENTED, marks=pytest.mark.slow), ["data.crop=letterbox", "eval.num_crops=1"]],
)
def test_videos_that_a_card_cannot_decode_are_decoded_by_pyav_in_the_same_batch(
    mixed_list, emulated_card, split, overrides, capsys
) -> None:
    """Their clips equal PyAV's bit for bit; one line says how many they are and why."""
    mixed = collect(make_loader(mixed_list, DALI, *overrides, split=split), 1)
    out = capsys.readouterr().out
    assert "DALI NVDEC for 4 videos (vp9); PyAV for 5 that DALI does not decode on this GPU (" in out
    for reason in ("1 hevc", "2 h264", "1 mjpeg", "1 vp9 below 128x128"):
        assert reason in out
    pyav = collect(make_loader(mixed_list, PYAV, *overrides, split=split), 1)
    assert [batch[:2] for batch in mixed] == [batch[:2] for batch in pyav]
    for (_, indices, video), (_, _, pyav_video) in zip(mixed, pyav, strict=True):
        for index, clip, pyav_clip in zip(indices, video, pyav_video, strict=True):
            assert clip.shape == pyav_clip.shape and torch.isfinite(clip).all()
            assert torch.equal(clip, pyav_clip) is (index >= NUM_DECODABLE), index
            assert gray_levels((clip - pyav_clip).abs().mean()) < (30 if overrides is AUGMENTED else 4)


def by_sample(stream: Stream) -> dict[tuple[int, int], Tensor]:
    """Return the clips of three epochs of three batches by epoch and sample index."""
    return {
        (number // 3, index): clip
        for number, (_, indices, video) in enumerate(stream)
        for index, clip in zip(indices, video, strict=True)
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pyav_share_splits_the_videos_and_the_stream_is_reproducible(mixed_list, emulated_card, num_workers) -> None:
    overrides = ["data.decoder=both", "data.pyav_share=0.5"]
    both = collect(make_loader(mixed_list, *overrides), 3)
    assert is_same_stream(collect(make_loader(mixed_list, *overrides, f"data.num_workers={num_workers}"), 3), both)
    dali, pyav = (by_sample(collect(make_loader(mixed_list, decoder), 3)) for decoder in (DALI, PYAV))
    counts = {"dali": 0, "pyav": 0}
    for key, clip in by_sample(both).items():
        is_dali, is_pyav = torch.equal(clip, dali[key]), torch.equal(clip, pyav[key])
        assert is_dali or is_pyav
        if key[1] < NUM_DECODABLE:
            counts["dali" if is_dali else "pyav"] += 1
    assert min(counts.values()) >= 2, counts
    first, resumed = make_loader(mixed_list, *overrides), make_loader(mixed_list, *overrides)
    start = [copy_of(batch) for batch, _ in zip(first, range(2), strict=False)]
    resumed.load_state_dict({"epoch": 0, "seen": 6, "faults": []})
    assert is_same_stream(start + collect(resumed, 3), both)


def test_file_that_cannot_be_trimmed_for_dali_is_decoded_by_pyav(
    mixed_list, emulated_card, monkeypatch, capsys
) -> None:
    def refuse(source, *arguments, **keywords):
        raise ValueError(f"{source}: its parameter sets cannot be rewritten")

    expected = collect(make_loader(mixed_list, PYAV), 1)
    monkeypatch.setattr(encoded_frames, "trim", refuse)
    loader = make_loader(mixed_list, DALI)
    assert is_same_stream(collect(loader, 1), expected) and not loader.bad_videos
    assert capsys.readouterr().err.count("cannot be rewritten; PyAV decodes it instead") >= 4


# --- files that DALI refuses --------------------------------------------------------------------------------------


@pytest.fixture
def refusing_list(tmp_path: Path) -> Path:
    """Return a list of eight videos of which DALI's CPU decoder refuses 2 and 5, which are H.264."""
    for index in range(8):
        encoder = "libx264" if index in (2, 5) else "libvpx-vp9"
        write_video(tmp_path / f"{index}.mp4", encoder, 160, 128, seed=index)
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{index}.mp4 {index % 6}\n" for index in range(8)))
    return path


@pytest.fixture
def overstated_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim more than DALI's decoder decodes, as NVDEC may refuse what its driver claims."""
    capabilities = {(codec, "4:2:0", 8): Limits() for codec in ("vp9", "h264", "hevc", "mjpeg")}
    monkeypatch.setattr("pipelines.build_source.probe_dali", lambda device: DaliSupport(True, capabilities))


REFUSING = [DALI, "data.batch_size=2"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_refused_file_slows_down_one_batch_at_most(refusing_list, num_workers, request, capsys) -> None:
    expected = collect(make_loader(refusing_list, *REFUSING), 5)
    request.getfixturevalue("overstated_card")
    loader = make_loader(refusing_list, *REFUSING, f"data.num_workers={num_workers}")
    capsys.readouterr()
    assert is_same_stream(collect(loader, 5), expected), "PyAV decodes them as if the refusal had been known"
    assert 1 <= loader.decoder.slow_batches <= 2 and not loader.bad_videos
    assert capsys.readouterr().out.count("); PyAV decodes it from now on") == 2


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_refused_file_in_every_batch_slows_down_one(refusing_list, num_workers, overstated_card) -> None:
    """With one batch per epoch, workers have begun the next ones with the same file when its refusal shows."""
    refusing_list.write_text("1.mp4 1\n2.mp4 2\n")
    loader = make_loader(refusing_list, *REFUSING, f"data.num_workers={num_workers}")
    assert len(collect(loader, 12)) == 12 and loader.decoder.slow_batches == 1


def test_faults_are_restored_for_unchanged_files_only(refusing_list, overstated_card) -> None:
    overrides = [*REFUSING, "data.max_unreadable=1"]
    loader = make_loader(refusing_list, *overrides)
    collect(loader, 1)
    loader.bad_videos[3] = "gone for a moment"
    loader.source.faults.add(3, UNREADABLE, 1)
    state = loader.state_dict()
    same_files = make_loader(refusing_list, *overrides)
    same_files.load_state_dict(state)
    assert same_files.bad_videos == loader.bad_videos
    assert same_files.source.faults.state() == loader.source.faults.state()
    lines = refusing_list.read_text().splitlines()
    os.utime(refusing_list.parent / "3.mp4")  # it was repaired
    refusing_list.write_text("\n".join([*lines[:5], *lines[6:]]) + "\n")  # 5.mp4, which DALI refuses, was removed
    other_files = make_loader(refusing_list, *overrides)
    other_files.load_state_dict(state)
    assert other_files.bad_videos == {}
    assert [index for index, *_ in other_files.source.faults.state()] == [2]


def test_refusal_is_known_after_a_resume(refusing_list, overstated_card) -> None:
    loader = make_loader(refusing_list, *REFUSING)
    first_epoch = collect(loader, 1)
    state = loader.state_dict()
    assert {index for index, kind, *_ in state["faults"] if kind == REFUSED} == {2, 5}
    resumed = make_loader(refusing_list, *REFUSING)
    resumed.load_state_dict(state)
    assert is_same_stream(collect(resumed, 1), collect(loader, 1))
    assert resumed.decoder.slow_batches == 0 and len(first_epoch) == 4


# --- files and batches that fail ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_file_that_nobody_decodes_slows_down_one_batch(clips_folder, tmp_path, num_workers, monkeypatch) -> None:
    """Its damage does not show in its first frame, which the index decodes."""
    path = clips_folder(tmp_path, 8)
    content = bytearray((tmp_path / "6.mp4").read_bytes())
    (tmp_path / "6.mp4").unlink()
    with VideoDemuxer(bytes(content)) as video:
        for start, end in video.byte_ranges[1:]:
            content[start + 9 : end - 1] = b"\xff" * (end - start - 10)  # what the index reads of it stays right
            content[end - 1] = 0
    (tmp_path / "6.mp4").write_bytes(content)
    overrides = [*REFUSING, "data.max_unreadable=0.5"]
    loader = make_loader(path, *overrides, f"data.num_workers={num_workers}")
    stream = collect(loader, 5)
    assert loader.decoder.slow_batches == 1 and set(loader.bad_videos) == {6}
    loads = []
    load = SampleSource._load

    def noted(self, index, *arguments, **keywords):
        loads.append(index)
        return load(self, index, *arguments, **keywords)

    monkeypatch.setattr(SampleSource, "_load", noted)
    assert is_same_stream(collect(make_loader(path, *overrides), 5), stream), "a known fault changes no stream"
    assert loads.count(6) <= 6, "for DALI, twice alone, for PyAV, for the reason, and once by a batch read ahead"


def test_batch_that_fails_as_a_whole_is_reported_and_three_in_a_row_end_the_run(
    mixed_list, emulated_card, monkeypatch, capsys
) -> None:
    """None of its samples fails by itself: there is too little memory, for instance."""
    expected = collect(make_loader(mixed_list, DALI), 2)
    loader = make_loader(mixed_list, DALI)
    run_pipeline, failing = DaliPipeline.run, {1, 3, 4}
    calls = itertools.count()

    def run_or_fail(self, *stream):
        outputs = run_pipeline(self, *stream)
        if next(calls) in failing:
            raise RuntimeError("Error in operator,\nencountered:\n\nCUDA allocation failed\n")
        return outputs

    monkeypatch.setattr(DaliPipeline, "run", run_or_fail)
    assert is_same_stream(collect(loader, 2), expected) and loader.decoder.slow_batches == 3
    assert capsys.readouterr().err.count("but on none of its samples: CUDA allocation failed") == 3
    failing |= set(range(100))
    message = r"none of its samples: CUDA allocation failed \(three times in a row\)"
    with pytest.raises(TooManyUnreadableVideos, match=message):
        collect(loader, 2)
    assert loader.decoder.slow_batches == 6 and not loader.source.faults.state()
