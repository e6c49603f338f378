"""MaskFeat: masks, HOG targets, the network, its task, and what is started from it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

import networks
from networks import weights
from networks.hog import hog, hog_targets
from networks.maskfeat import MaskFeat as Network
from networks.masking import KINDS, cube_mask, draw_masks, middle_frames
from networks.weights.infer_architecture import architecture
from networks.weights.rename_keys import translate
from tests.helpers.foreign_checkpoints import ENTRIES, draw_clip, make_state, write_checkpoint
from tests.helpers.networks import SMALL, SMALL_MVIT, random_video, randomise
from training.optimizers import parameter_groups
from training.tasks import MaskFeat

torch.set_num_threads(1)

ARGS = {key: value for key, value in SMALL_MVIT.items() if key in ("widths", "depths")}
TINY = dict(
    backbone="mvit_v2_tiny", num_frames=4, image_size=32,
    backbone_args=ARGS | {"query_strides": [[1, 1, 1], [1, 2, 2], [1, 1, 1]], "width_change": "mlp"},
)  # fmt: skip


# ---- masks -----------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(KINDS), st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9)), st.floats(0.05, 0.95),
    st.integers(0, 10**6),
)  # fmt: skip
def test_masks_hide_exactly_the_share(kind, grid, ratio, seed):
    mask = draw_masks(kind, grid, ratio, [(seed, 0, 3)])[0]
    assert mask.shape == grid and mask.dtype == bool
    t, h, w = grid
    frames = {"tube": t, "runs": max(1, int(ratio * t))}.get(kind)
    assert mask.sum() == (frames * round(ratio * h * w) if frames else round(ratio * t * h * w))
    if kind == "tube":
        assert (mask == mask[:1]).all()


def test_cube_masks_have_the_papers_statistics():
    masks = np.stack([cube_mask((8, 7, 7), 0.4, np.random.default_rng(seed)) for seed in range(1500)])
    assert set(masks.sum((1, 2, 3))) == {157}
    where = masks.mean(0)
    assert abs(where.mean() - 157 / 392) < 1e-9
    assert where[:, 3, 3].min() > where[:, 0, 0].max()  # cubes cover the middle more often than the corners
    np.testing.assert_allclose(where, where[:, ::-1], atol=0.06)  # and no side more than the other
    np.testing.assert_allclose(where, where[:, :, ::-1], atol=0.06)
    np.testing.assert_allclose(where, where[::-1], atol=0.06)
    random = draw_masks("random", (8, 7, 7), 0.4, [(0, 0, row) for row in range(300)])

    def alike(masks):  # share of neighbours that are both hidden or both visible
        return np.mean([(masks == np.roll(masks, 1, axis)).mean() for axis in (1, 2, 3)])

    assert alike(masks) > 0.65 and alike(random) < 0.55


def test_middle_frames_of_runs():
    mask = np.zeros((2, 8, 2, 2), bool)
    mask[0, 2:5, 0] = True  # frames 4-9 of 16
    mask[1, 0, 1] = True  # frames 0-1
    mask[1, 1:3, :, 0] = True  # frames 2-5, another run
    mask[1, 7] = True
    assert [list(np.flatnonzero(clip)) for clip in middle_frames(mask, 2)] == [[7], [1, 4, 15]]
    assert [list(np.flatnonzero(clip)) for clip in middle_frames(mask, 1)] == [[3], [0, 2, 7]]


def test_a_mask_depends_on_its_clip_alone():
    seeds = [(0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1)]
    together = draw_masks("cube", (4, 6, 6), 0.4, seeds)
    assert all((together[i] == draw_masks("cube", (4, 6, 6), 0.4, [seed])[0]).all() for i, seed in enumerate(seeds))
    assert len({mask.tobytes() for mask in together}) == 4


@pytest.mark.parametrize(("kind", "ratio", "reason"), [("cubes", 0.4, "mask='cubes'"), ("cube", 1.0, "mask_ratio=1.0")])
def test_mask_mistakes(kind, ratio, reason):
    with pytest.raises(ValueError, match=reason):
        draw_masks(kind, (4, 4, 4), ratio, [(0, 0, 0)])


# ---- HOG -------------------------------------------------------------------------------------------------------------


def slow_hog(frame, window=0):
    """The definition, pixel by pixel: (3, H, W) -> (3, 9, H / 8, W / 8)."""
    colours, height, width = frame.shape
    padded = np.pad(frame.astype(np.float64), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    cells = np.zeros((colours, 9, height // 8, width // 8))
    for colour in range(colours):
        for row in range(height):
            for column in range(width):
                around = padded[colour, row : row + 3, column : column + 3]
                gx, gy = (around * sobel).sum(), (around * sobel.T).sum()
                weight = math.hypot(gx, gy)
                if window:
                    y, x = row % window - (window - 1) / 2, column % window - (window - 1) / 2
                    weight *= math.exp(-(x * x + y * y) / (2 * (window / 4) ** 2))
                number = math.floor(math.atan2(gx, gy) / math.pi * 9) % 9
                cells[colour, number, row // 8, column // 8] += weight
    return cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize("window", [0, 16])
def test_hog_equals_its_definition(window):
    frames = random_video(2, 3, 16, 32)
    expected = np.stack([slow_hog(frame.numpy(), window) for frame in frames])
    np.testing.assert_allclose(hog(frames, window).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["photo", "noise"])
def test_hog_equals_scikit_images(kind):
    """With central differences; on frames of whole numbers, where gradients lie exactly on the borders of the bins."""
    skimage = pytest.importorskip("skimage")
    rng = np.random.default_rng(0)
    image = skimage.data.astronaut()[100:196, 100:212] if kind == "photo" else rng.integers(0, 256, (96, 112, 3))
    image = image.astype(np.uint8)
    settings = dict(orientations=9, pixels_per_cell=(8, 8), cells_per_block=(1, 1), block_norm="L2")
    expected = np.stack([
        skimage.feature.hog(image[..., colour].astype(np.float64), feature_vector=False, **settings)[:, :, 0, 0]
        for colour in range(3)
    ])  # fmt: skip
    mine = hog(torch.from_numpy(image).permute(2, 0, 1)[None], gradient="central")[0]
    np.testing.assert_allclose(rearrange(mine.numpy(), "C o h w -> C h w o"), expected, atol=2e-5)
    normalised = (torch.from_numpy(image) / 255 - 0.45) / 0.225  # as clips come: the same but for roundings
    again = hog(normalised.permute(2, 0, 1)[None], gradient="central")[0]
    assert (again - mine).abs().mean() < 2e-3


def test_hog_of_edges():
    """A vertical edge is bin 4 (its gradient lies along x: atan2(gx, 0) = 90 degrees), a horizontal one bin 0."""
    frame = torch.zeros(1, 3, 16, 16)
    frame[..., 4:] = 1.0
    assert hog(frame)[0, 0, :, 0, 0].argmax() == 4
    assert hog(frame.transpose(-1, -2))[0, 0, :, 0, 0].argmax() == 0
    assert hog(-frame.transpose(-1, -2))[0, 0, :, 0, 0].argmax() == 0  # unsigned
    assert not hog(torch.ones(1, 3, 16, 16)).any()


def test_hog_targets_belong_to_their_tokens():
    video = random_video(2, 3, 8, 32, 64)
    target = hog_targets(video, (4, 2, 4))
    assert target.shape == (2, 4, 1, 2, 4, 108)
    cells = hog(video[1:2, :, 4])[0]  # the first frame of token frame 2
    expected = cells[:, :, 2:4, 4:6].reshape(-1)
    torch.testing.assert_close(target[1, 2, 0, 1, 2], expected)
    changed = video.clone()
    changed[:, :, 1::2] += random_video(2, 3, 4, 32, 64, seed=1)  # the second frame of each tubelet does not matter
    assert torch.equal(hog_targets(changed, (4, 2, 4)), target)
    both = hog_targets(video, (4, 2, 4), frames=2)
    assert torch.equal(both[:, :, :1], target) and not torch.equal(both[:, :, 1:], target)
    torch.testing.assert_close(both[:, :, 1:], hog_targets(video.roll(-1, dims=2), (4, 2, 4)))
    with pytest.raises(ValueError, match="cover no whole HOG cells"):
        hog_targets(video, (4, 8, 16))
    with pytest.raises(ValueError, match="gradient='scharr'"):
        hog(video[:, :, 0], gradient="scharr")
    with pytest.raises(ValueError, match="HOG cells of 8 pixels do not divide"):
        hog(video[:, :, 0, :30])


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["mvit_v2_tiny", "vivit_tiny"])
def test_what_is_hidden_is_not_seen(backbone):
    args = TINY if backbone == "mvit_v2_tiny" else dict(backbone=backbone, num_frames=4, image_size=32)
    network = randomise(Network(**args), seed=1)
    mask = torch.from_numpy(draw_masks("cube", network.mask_grid, 0.4, [(0, 0, 1), (0, 0, 2)]))
    video = random_video(2, 3, 4, 32, 32)
    noise = random_video(2, 3, 4, 32, 32, seed=1)
    stem = network.patch_embed
    cells = network.spread(mask, stem.grid)  # (B, t, n) of the patch embedding
    t, h, w = stem.grid
    pixels = cells.reshape(2, 1, t, h, w)
    for axis, size in ((2, 4 // t), (3, 32 // h), (4, 32 // w)):
        pixels = pixels.repeat_interleave(size, axis)
    with torch.no_grad():
        before = network(video, mask)
        if backbone == "vivit_tiny":  # tubelets do not overlap: hidden pixels reach nothing
            assert torch.equal(network(torch.where(pixels, noise, video), mask), before)
        assert not torch.equal(network(torch.where(pixels, video, noise), mask), before)
        assert not torch.equal(network(video), before)
        network.mask_token += 1.0
        assert not torch.equal(network(video, mask), before)
    t, h, w = network.token_grid
    assert before.shape == (2, t, 1, h, w, network.target_width)


def test_published_sizes():
    with torch.device("meta"):
        network = networks.build("maskfeat_mvit_v2_s")
    assert network.mask_grid == (8, 7, 7) and network.token_grid == (8, 14, 14) and network.target_width == 108
    assert network.blocks[14].attn.query_grid == (8, 14, 14) and network.blocks[15].attn.key_grid == (8, 7, 7)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"image_size": 30}, "does not divide image_size=30x30"),
        ({"num_frames": 5}, "tubelet=2 does not divide num_frames=5"),
        ({"backbone": "mvit"}, "backbone='mvit'"),
        ({"backbone": "vivit_tiny", "image_size": 24, "backbone_args": {}}, "masks of 2x2 tokens do not divide"),
        (
            {"backbone": "vivit_tiny", "backbone_args": {"attention": "factorised_encoder"}},
            "needs all tokens",
        ),
        ({"backbone": "vivit_tiny", "backbone_args": {"patch_size": 4}}, "cover no whole HOG cells of 8 pixels"),
    ],
)
def test_mistakes_are_named(options, reason):
    with pytest.raises(ValueError, match=reason):
        networks.build("maskfeat_tiny", **TINY | options)


# ---- the task --------------------------------------------------------------------------------------------------------


def make_batch(clips=4):
    seeds = tuple((0, 0, row) for row in range(clips))
    return SimpleNamespace(video=random_video(clips, 3, 4, 32, 32), seeds=seeds)


def test_the_loss_is_over_hidden_tokens_alone():
    network = randomise(Network(**TINY), seed=2)
    task, batch = MaskFeat(network), make_batch()
    out = task(network, batch)
    hidden = out["mask"].repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, None]
    assert hidden.float().mean() == pytest.approx(0.4, abs=0.1)
    error = (out["prediction"] - out["target"]).square()
    assert out["loss"].item() == pytest.approx(error[hidden].mean().item(), rel=1e-5)
    told = out["target"][hidden]
    assert out["baseline"].item() == pytest.approx((told - told.mean(0)).square().mean().item(), rel=1e-4)
    torch.testing.assert_close(out["losses"].mean(), out["loss"].detach())


def test_it_learns_what_can_be_learned():
    torch.manual_seed(0)
    network = Network(**TINY)
    task, batch = MaskFeat(network), make_batch()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        out = task(network, batch)
        out["loss"].backward()
        optimizer.step()
    assert out["loss"] < 0.5 * out["baseline"]


@pytest.mark.parametrize("backbone", ["mvit_v2_tiny", "vivit_tiny"])
def test_gradient_reaches_every_parameter(backbone):
    """DistributedDataParallel waits for all of them."""
    args = TINY if backbone == "mvit_v2_tiny" else dict(backbone=backbone, num_frames=4, image_size=32)
    network = randomise(Network(**args), seed=5).train()
    MaskFeat(network)(network, make_batch())["loss"].backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.slow
def test_everything_compiles():
    network = randomise(Network(**TINY), seed=3)
    batch = make_batch(2)
    plain = MaskFeat(network)(network, batch)
    network.compile(fullgraph=True)
    compiled = MaskFeat(network, compiled=True)(network, batch)
    torch.testing.assert_close(compiled["target"], plain["target"], atol=1e-5, rtol=0)
    torch.testing.assert_close(compiled["loss"], plain["loss"], atol=1e-4, rtol=1e-4)


# ---- what starts from it ---------------------------------------------------------------------------------------------


def test_a_pretraining_starts_a_classifier(tmp_path):
    pretrained = randomise(Network(**TINY), seed=4)
    weights.save(tmp_path, pretrained, "maskfeat_tiny")
    again, _ = weights.load(tmp_path)
    assert again.kwargs == pretrained.kwargs
    settings = SMALL_MVIT | {"width_change": "mlp", "pooling": "fc_norm", "head_scale": 0.001}
    network = networks.build("mvit_v2_tiny", **settings)
    assert network.head.weight.std() < 1e-4
    report = weights.initialise(network, tmp_path)
    assert torch.equal(network.blocks[2].attn.qkv.weight, pretrained.backbone.blocks[2].attn.qkv.weight)
    assert "fine-tuning with fc_norm starts with a fresh norm" in report.text()
    assert "query_strides is " in report.text()  # stage 3 is pooled again, and the report says so
    dropped = {key for row in report.rows if row.what == "dropped" for key in row.sources}
    assert {"mask_token", "predict.weight", "predict.bias"} <= dropped
    with pytest.raises(ValueError, match="cannot fill a ViViT"):
        weights.initialise(networks.build("vivit_tiny", **SMALL), tmp_path)


def test_layer_decay_by_hand():
    network = networks.build("mvit_v2_tiny", **SMALL_MVIT)
    groups = parameter_groups(network, 0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = {key: scale[id(parameter)] for key, parameter in network.named_parameters()}
    assert len(scale) == len(named)  # each once
    assert named["head.weight"] == named["norm.bias"] == 1.0
    assert named["blocks.3.mlp.fc1.weight"] == 0.5 and named["blocks.0.attn.rel_pos_h"] in (0.5**4, 0.5**5)
    assert named["blocks.0.attn.qkv.bias"] == 0.5**4
    assert named["cls_token"] == named["patch_embed.proj.weight"] == 0.5**5
    assert {group["lr_scale"] for group in parameter_groups(network, 0.05)} == {1.0}


# ---- the numbers of other projects' own code -------------------------------------------------------------------------


def bits(text, *shape):
    return torch.tensor([bit == "1" for bit in text]).view(shape)


def test_network_and_targets_equal_slowfasts(tmp_path):
    """Numbers that its MaskMViT and HOGLayerC gave, with weights and clip drawn as in foreign.py."""
    entry = ENTRIES["slowfast_maskfeat_pt"]
    told = entry["maskfeat"]
    path = write_checkpoint("slowfast_maskfeat_pt", tmp_path)
    network, config, report = weights.convert(path, **entry["given"])
    assert config["name"] == "maskfeat_mvit_v2_s" and report.count("created") == 0
    video = draw_clip(told["clip"])

    half = bits(told["half"], 2, *network.mask_grid)
    with torch.no_grad():
        prediction = network(video, half)
    hidden = network.spread(half, network.token_grid).flatten(1)
    mine = prediction.flatten(1, 4)[hidden][::7, :6]
    torch.testing.assert_close(mine, torch.tensor(told["prediction"]), atol=2e-5, rtol=2e-5)

    full = bits(told["full"], 2, -1)
    target = hog_targets(video, network.token_grid).flatten(1, 4)[full][::7, :12]
    torch.testing.assert_close(target, torch.tensor(told["hog"]), atol=2e-6, rtol=1e-5)


def test_network_and_loss_equal_videotransformer_pytorchs(tmp_path, monkeypatch):
    """Numbers that its MaskFeat gave: 216 a token, and the loss of its middle frames against targets of zero."""
    entry = ENTRIES["seed_maskfeat"]
    told = entry["maskfeat"]
    network, config, report = weights.convert(write_checkpoint("seed_maskfeat", tmp_path), **entry["given"])
    assert config["name"] == "maskfeat_mvit_v1_b" and report.count("created") == 0
    assert network.mask_grid == network.token_grid and network.kwargs["target_frames"] == 2
    video, mask = draw_clip(told["clip"]), bits(told["mask"], 2, *network.mask_grid)
    with torch.no_grad():
        prediction = network(video, mask)
    theirs = rearrange(prediction, "B t f h w (C o a b) -> B (t f) h w (a b C o)", C=3, o=9, a=2)
    expected = torch.tensor(told["prediction"]).view(2, 4, -1)
    torch.testing.assert_close(theirs[:, :, 0, 1, ::17], expected, atol=2e-5, rtol=2e-5)

    monkeypatch.setattr("training.tasks.draw_masks", lambda *_: mask.numpy())
    task = MaskFeat(network, "runs", gradient="central")
    with torch.no_grad():
        out = task(network, SimpleNamespace(video=torch.zeros_like(video), seeds=[(0, 0, 0)] * 2))
    assert not out["target"].any()  # nothing but flat frames: the targets are zero
    task.targets = lambda *_: torch.zeros_like(prediction)
    with torch.no_grad():
        out = task(network, SimpleNamespace(video=video, seeds=[(0, 0, 0)] * 2))
    torch.testing.assert_close(out["losses"], torch.tensor(told["loss_of_zeros"]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "backbone"), [("slowfast_maskfeat_pt", "mvit_v2_s"), ("seed_maskfeat", "mvit_v1_b")])
def test_pretrainings_of_others_go_on_here_and_start_classifiers(name, backbone, tmp_path):
    path, folder = write_checkpoint(name, tmp_path), tmp_path / "ours"
    network, config, _ = weights.convert(path, **ENTRIES[name]["given"])
    weights.save(folder, network, config["name"], config["extra"])
    again = networks.build(config["name"], **network.kwargs)
    for source in (path, folder):
        report = weights.initialise(again, source)
        assert report.count("created") == 0 and torch.equal(again.predict.weight, network.predict.weight)
        torch.testing.assert_close(again.state_dict(), network.state_dict(), rtol=0, atol=0)
    sizes = dict(num_classes=5, num_frames=network.kwargs["num_frames"], image_size=network.kwargs["image_size"])
    classifier = networks.build(backbone, **network.kwargs["backbone_args"] | sizes)
    texts = [weights.initialise(classifier, source).text() for source in (path, folder)]
    assert all("mask token or HOG head of the pre-training" in text for text in texts)
    assert torch.equal(classifier.blocks[2].attn.qkv.bias, network.blocks[2].attn.qkv.bias)
    converted, _, _ = weights.convert(folder)
    assert converted.kwargs == network.kwargs
    narrow = networks.build(config["name"], **network.kwargs | {"target_frames": 3 - network.target_frames})
    with pytest.raises(ValueError, match=r"predict.weight: \(\d+, \d+\), the network has"):
        weights.initialise(narrow, path)


def test_a_classifier_starts_a_pretraining(tmp_path):
    settings = SMALL_MVIT | {"query_strides": TINY["backbone_args"]["query_strides"], "width_change": "mlp"}
    classifier = randomise(networks.build("mvit_v2_tiny", **settings), seed=7)
    weights.save(tmp_path, classifier, "mvit_v2_tiny")
    network = Network(**TINY)
    report = weights.initialise(network, tmp_path)
    assert torch.equal(network.blocks[1].norm1.bias, classifier.blocks[1].norm1.bias)
    created = sorted(row.target for row in report.rows if row.what == "created")
    assert created == ["mask_token", "predict.bias", "predict.weight"]


def test_an_unpooled_last_stage_is_told_from_its_missing_kernel():
    """VideoTransformer-pytorch's own setting; pooling only where queries are strided shows which stages are."""
    state = {key: t for key, t in make_state("seed_mvit_ft").items() if "blocks.3.attn.pool_q" not in key}
    state = {key: t for key, t in state.items() if "blocks.3.attn.norm_q" not in key}
    _, kwargs, _ = architecture(translate(state), {})
    assert kwargs["query_strides"][-1] == [1, 1, 1] and kwargs["query_strides"][1] == [1, 2, 2]
