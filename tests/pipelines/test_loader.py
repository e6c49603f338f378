"""The loader: shapes and pixels of batches, the same stream for any number of workers and after resuming, no copies."""

from __future__ import annotations

import math
import pickle
import shutil

import numpy as np
import pytest
import torch

from configs import loading
from pipelines.dali_graph import build_pipeline
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.sampling import order
from pipelines.sampling.spatial import letterbox_size, scaled_size
from tests.helpers.loaders import (
    collect,
    copy_of,
    first_video,
    gray_levels,
    is_same_stream,
    make_loader,
    write_rotated,
)
from utils.distributed import World

# --- batches ------------------------------------------------------------------------------------------------------


def test_batches_have_the_documented_shapes_and_dtypes(clips_folder, tmp_path, decoder):
    path = clips_folder(tmp_path, 7)
    train, val, test = (next(iter(make_loader(path, decoder, split=split))) for split in ("train", "val", "test"))
    assert train.video.shape == (3, 3, 4, 32, 32)
    assert val.video.shape == (3, 1, 3, 4, 32, 32)
    assert test.video.shape == (3, 2 * 3, 3, 4, 32, 32)
    for batch in (train, val, test):
        assert batch.video.dtype is torch.float32 and batch.video.is_contiguous()
        assert batch.label.dtype is batch.sample_index.dtype is torch.int64
    assert test.sample_index.tolist() == [0, 1, 2] and test.label.tolist() == [0, 1, 2]


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_rotated_videos_are_shown_upright(video, tmp_path, decoder, quarter_turns):
    """Boxes, the order of views and mirroring are those of the frame as a player shows it."""
    for name, (width, height) in {"wide": (96, 64), "high": (64, 96)}.items():
        source = video("vp9", 30, width, height)
        shutil.copy(source, tmp_path / f"{name}_stored.mp4")
        write_rotated(source, tmp_path / f"{name}_rotated.mp4", quarter_turns)
    lists = {kind: tmp_path / f"{kind}.txt" for kind in ("stored", "rotated")}
    for kind, path in lists.items():
        path.write_text(f"wide_{kind}.mp4 0\nhigh_{kind}.mp4 1\n")
    stored, actual = (first_video(make_loader(path, decoder, split="test"))[:2] for path in lists.values())
    rotations = [info.rotation for info in make_loader(lists["rotated"], decoder, split="val").infos]
    assert rotations == [quarter_turns] * 2
    views = stored.unflatten(1, (2, 3))
    views = (views.flip(2) if quarter_turns in (1, 2) else views).flatten(1, 2)
    # The wide video becomes a high one: its views run from the top, which was the right; in the high one it is inverse.
    expected = torch.rot90(views, quarter_turns, (-2, -1))
    if quarter_turns % 2:
        views = stored.unflatten(1, (2, 3)).flip(2).flatten(1, 2) if quarter_turns == 3 else stored
        expected[1] = torch.rot90(views, quarter_turns, (-2, -1))[1]
    assert (actual - expected).abs().mean() < 0.01 and (actual - expected).abs().max() < 0.2

    crop = ["data.crop_scale=1,1", "data.crop_ratio=1,1.5", "data.batch_size=2", "run.seed=3"]
    straight, mirrored = (
        first_video(make_loader(lists["rotated"], decoder, *crop, f"data.hflip={flip}")) for flip in (0, 1)
    )
    assert torch.equal(mirrored, straight.flip(-1))


def test_pixels_equal_those_that_torch_crops_resizes_flips_and_normalizes(clips_folder, tmp_path, decoder):
    loader = make_loader(clips_folder(tmp_path, 6), decoder, "data.hflip=1", "data.crop_scale=0.5,1")
    batch = next(iter(loader))
    source = loader.source
    for slot, index in enumerate(batch.sample_index.tolist()):
        frames, boxes, mirror = source.choose_views(index, order.sample_rng(0, 0, index))
        top, left, bottom, right = boxes[0].astype(int)
        with open_video(source.videos[index].path) as video:
            rgb = np.stack([frame.to_ndarray(format="rgb24") for frame, _ in decode_frames(video, frames.ravel())])
        crop = torch.from_numpy(rgb[:, top:bottom, left:right]).permute(0, 3, 1, 2).float()
        resized = torch.nn.functional.interpolate(crop, (32, 32), mode="bilinear", antialias=True).flip(-1)
        expected = ((resized / 255 - 0.45) / 0.225).transpose(0, 1)
        difference = gray_levels((batch.video[slot] - expected).abs())
        assert mirror == 1 and difference.mean() < 1.5 and difference[..., 2:-2, 2:-2].max() < 8


def test_dali_and_pyav_give_the_same_stream_within_two_gray_levels(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 6)
    dali, pyav = (collect(make_loader(path, f"data.decoder={name}")) for name in ("dali", "pyav"))
    for dali_batch, pyav_batch in zip(dali, pyav, strict=True):
        assert dali_batch[:2] == pyav_batch[:2]
        difference = gray_levels((dali_batch[2] - pyav_batch[2]).abs().mean())
        assert difference < 2.0, "their color conversions are about one gray level apart"


def test_test_views_are_squares_of_the_frame_with_its_short_side_resized(clips_folder, tmp_path, decoder):
    """Up to rounding: torchvision's Resize and crop, SlowFast's uniform crop."""
    loader = make_loader(clips_folder(tmp_path, 3), decoder, "eval.num_clips=1", "eval.short_side=40", split="test")
    views = first_video(loader)
    for slot, info in enumerate(loader.infos):
        frames = loader.source.choose_frames(slot, np.random.default_rng(0))
        with open_video(info.path) as video:
            rgb = np.stack([frame.to_ndarray(format="rgb24") for frame, _ in decode_frames(video, frames.ravel())])
        width, height = scaled_size(info.width, info.height, 40)
        pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2).float()
        resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
        for crop, along in enumerate((0, 0.5, 1)):
            offsets = [math.ceil((side - 32) * (along if side > 40 else 0.5)) for side in (height, width)]
            if height == width:
                offsets = [4, math.ceil(8 * along)]
            square = resized[:, :, offsets[0] : offsets[0] + 32, offsets[1] : offsets[1] + 32]
            expected = ((square / 255 - 0.45) / 0.225).transpose(0, 1)
            assert gray_levels((views[slot, crop] - expected).abs()).mean() < 2


def test_test_views_are_ordered_by_clip_then_crop(clips_folder, tmp_path):
    """The middle crop of a single clip is the validation view."""
    path = clips_folder(tmp_path, 6)
    one_clip = first_video(make_loader(path, "eval.num_clips=1", split="test"))
    validation = first_video(make_loader(path, split="val"))
    assert torch.equal(one_clip[:, 1], validation[:, 0])
    center_crops = first_video(make_loader(path, "eval.num_clips=3", "eval.num_crops=1", split="test"))
    all_views = first_video(make_loader(path, "eval.num_clips=3", split="test"))
    assert torch.equal(all_views[:, 1::3], center_crops)
    assert np.unique([float(view.sum()) for view in all_views[0]]).size == 9


def test_auto_decodes_h264_with_pyav_on_a_cpu(clips_folder, tmp_path):
    loader = make_loader(clips_folder(tmp_path, 6, kind="h264_bframes"), "data.decoder=auto")
    assert not loader.pipeline.uses_dali
    assert first_video(loader).shape == (3, 3, 4, 32, 32)


# --- the stream ---------------------------------------------------------------------------------------------------


def test_stream_does_not_depend_on_the_number_of_workers(clips_folder, tmp_path, decoder):
    path = clips_folder(tmp_path, 7)
    expected = collect(make_loader(path, decoder))
    for num_workers in (2, 4):
        assert is_same_stream(collect(make_loader(path, decoder, f"data.num_workers={num_workers}")), expected)


def test_state_restores_the_stream_at_any_batch(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 7)
    loader = make_loader(path)
    expected, states = [], [loader.state_dict()]
    for _ in range(2):
        for batch in loader:
            expected.append(copy_of(batch))
            states.append(loader.state_dict())
    for num_seen, state in enumerate(states[:-1]):
        resumed = make_loader(path, f"data.num_workers={2 if num_seen == 1 else 0}")
        resumed.load_state_dict(state)
        assert is_same_stream(collect(resumed, 2 - state["epoch"]), expected[num_seen:])


def test_epochs_and_seeds_have_other_orders(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 6)
    stream, other_seed = collect(make_loader(path)), collect(make_loader(path, "run.seed=1"))
    first_epoch, second_epoch = ([indices for _, indices, _ in part] for part in (stream[:2], stream[2:]))
    assert first_epoch != second_epoch
    assert not is_same_stream(other_seed, stream)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_share_the_samples_of_an_epoch(clips_folder, tmp_path, world_size, monkeypatch):
    path = clips_folder(tmp_path, 11)
    for split in ("train", "val"):
        indices = []
        for rank in range(world_size):
            monkeypatch.setattr(World, "is_main", True)  # each rank reads the files itself
            monkeypatch.setattr(World, "gather", lambda self, value: [value] * self.size)
            loader = make_loader(path, "data.batch_size=1", split=split, world=World(rank, rank, world_size))
            indices += [index for _, batch, _ in collect(loader, 1) for index in batch if index >= 0]
        if split == "val":
            assert sorted(indices) == list(range(11))
        else:
            assert len(set(indices)) == len(indices) == 11 // world_size * world_size


def test_pickled_source_does_not_grow_with_the_list(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 30)
    few, many = (make_loader(path, f"data.max_per_class={number}").source for number in (1, 5))
    assert (len(few.videos), len(many.videos)) == (6, 30)
    assert abs(len(pickle.dumps(many)) - len(pickle.dumps(few))) < 10, "only counts may have more digits"


def test_fewer_videos_than_a_batch_are_refused(clips_folder, tmp_path):
    with pytest.raises(ValueError, match="2 videos do not fill one step of data.batch_size=3"):
        make_loader(clips_folder(tmp_path, 2))


# --- buffers ------------------------------------------------------------------------------------------------------


def test_from_dlpack_shares_the_buffer_of_dali(clips_folder, tmp_path):
    loader = make_loader(clips_folder(tmp_path, 6))
    next(iter(loader))
    pipe = build_pipeline(loader.pipeline, loader.source, loader.source.batch_size)
    video, *_ = pipe.run()
    dense = video.as_tensor()
    assert torch.from_dlpack(dense).data_ptr() == dense.data_ptr() == video[0].data_ptr()


def test_batches_are_the_buffers_of_dali(clips_folder, tmp_path, monkeypatch):
    pointers = []
    from_dlpack = torch.from_dlpack

    def noted(tensor):
        pointers.append(tensor.data_ptr())
        return from_dlpack(tensor)

    monkeypatch.setattr(torch, "from_dlpack", noted)
    for batch in make_loader(clips_folder(tmp_path, 6)):
        assert batch.video.data_ptr() == pointers[-2] and batch.label.data_ptr() == pointers[-1]


def test_kept_batches_are_not_overwritten(clips_folder, tmp_path):
    loader = make_loader(clips_folder(tmp_path, 6), "data.num_workers=2")
    kept = [(batch.video, batch.video.clone()) for _ in range(4) for batch in loader]
    assert len(kept) == 8 and len({video.data_ptr() for video, _ in kept}) == 8
    assert all(torch.equal(video, copy) for video, copy in kept)


# --- which frames -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["wrap", "repeat_last"])
def test_clip_longer_than_its_video_is_filled_as_short_clip_says(video, tmp_path, policy, decoder):
    shutil.copy(video("vp9", 5), tmp_path / "a.mp4")
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    overrides = ["data.batch_size=1", "data.num_frames=8", f"data.short_clip={policy}"]
    clip = first_video(make_loader(tmp_path / "list.txt", decoder, *overrides, split="val"))[0, 0]
    expected = [number % 5 if policy == "wrap" else min(number, 4) for number in range(0, 24, 3)]
    for i in range(8):
        for j in range(8):
            assert torch.equal(clip[:, i], clip[:, j]) == (expected[i] == expected[j])
    assert clip.abs().sum((0, 2, 3)).min() > 0, "no frame may be black"


def test_frame_stride_0_repeats_one_frame(clips_folder, tmp_path):
    clip = first_video(make_loader(clips_folder(tmp_path, 6), "data.frame_stride=0"))
    assert torch.equal(clip, clip[:, :, :1].expand_as(clip))


def test_snap_to_keyframes_chooses_key_frames_and_prints_how_far_they_moved(clips_folder, tmp_path, capsys):
    overrides = ["data.snap_to_keyframes=yes", "data.frame_stride=24", "data.num_frames=2"]
    loader = make_loader(clips_folder(tmp_path, 4), *overrides, split="train")
    source = loader.source
    assert all(info.keyframes[:3] == (0, 12, 24) for info in source.infos)
    for index in range(4):
        frames = source.choose_frames(index, np.random.default_rng(index))
        assert set(frames.ravel()) <= set(source.infos[index].keyframes)
    out = capsys.readouterr().out
    assert "frames moved by" in out and "100.0 % are key frames" in out
    assert first_video(loader).shape == (3, 3, 2, 32, 32)


def test_tsn_sampling_and_fps_decide_the_frames(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 4)
    tsn = make_loader(path, "data.sampling=tsn", split="test").source
    num_frames = tsn.infos[0].num_frames
    frames = tsn.choose_frames(0, np.random.default_rng(0))
    assert frames.shape == (2, 4) and frames.min() < num_frames / 4 and frames.max() >= 3 * num_frames / 4
    at_10_fps = make_loader(path, "data.fps=10", "data.frame_stride=1", split="val").source
    frames = at_10_fps.choose_frames(0, np.random.default_rng(0))
    assert (np.diff(frames) == 3).all(), "the files have 30 frames per second"
    assert len(collect(make_loader(path, "data.sampling=tsn"), 1)) == 1


# --- which box ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_letterbox_surrounds_the_frame_with_the_mean_color(clips_folder, tmp_path, decoder, split):
    overrides = ["data.crop=letterbox", "eval.num_crops=1", "data.hflip=0", "data.mean=0.2,0.4,0.6"]
    loader = make_loader(clips_folder(tmp_path, 4), decoder, *overrides, split=split)
    batch = next(iter(loader))
    videos = batch.video if split == "train" else batch.video[:, 0]
    for video, index in zip(videos, batch.sample_index.tolist(), strict=True):
        info = loader.infos[index]
        height, width = letterbox_size(info.width, info.height, 32)
        top, left = (32 - height + 1) // 2, (32 - width + 1) // 2
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        if inside.all():
            assert height == width
        else:
            assert video[..., ~inside].abs().max() < 0.02
        assert video[..., inside].std() > 0.3 and video[..., top, left : left + width].std() > 0.1


def test_letterbox_of_dali_and_pyav_agree(clips_folder, tmp_path):
    path = clips_folder(tmp_path, 4)
    overrides = ["data.crop=letterbox", "eval.num_crops=1"]
    dali, pyav = (
        first_video(make_loader(path, f"data.decoder={name}", *overrides, split="test")) for name in ("dali", "pyav")
    )
    assert (dali - pyav).abs().mean() < 0.03


def test_scale_jitter_crops_squares_of_jittered_size(clips_folder, tmp_path):
    loader = make_loader(clips_folder(tmp_path, 4), "data.crop=scale_jitter", "data.short_side_range=40,48")
    boxes = np.stack(
        [loader.source.choose_box(index, np.random.default_rng(seed)) for index in range(4) for seed in range(20)]
    )
    sides = boxes[:, 2] - boxes[:, 0]
    short_sides = np.repeat([min(info.width, info.height) for info in loader.infos], 20)
    assert (sides == boxes[:, 3] - boxes[:, 1]).all()
    fractions = sides / short_sides
    assert ((32 / 48 - 0.05 < fractions) & (fractions < 32 / 40 + 0.05)).all() and len(set(sides)) > 3
    assert first_video(loader).shape == (3, 3, 4, 32, 32)


def test_short_side_8_7_is_rounded_down_to_pixels(clips_folder, tmp_path):
    views = make_loader(clips_folder(tmp_path, 4), "eval.preset=maskfeat", split="test").source.views
    assert (views.num_clips, views.num_crops, views.clip_placement, views.short_side) == (10, 1, "uniform", 36)
    assert loading.load_config(None, ["eval.short_side=8/7"]).data.image_size * 8 // 7 == 256
