"""MaskFeat: the network, its task, what is fine-tuned from it, and the numbers of other implementations."""

from types import SimpleNamespace

import pytest
import torch
from einops import rearrange

import networks
from networks import weights
from networks.hog import hog_targets
from networks.maskfeat import MaskFeat
from networks.masking import draw_masks
from networks.weights.infer_architecture import infer_architecture
from networks.weights.rename_keys import rename_keys
from tests.helpers.foreign_checkpoints import ENTRIES, draw_clip, make_state, write_checkpoint
from tests.helpers.networks import (
    SMALL,
    SMALL_MVIT,
    TINY_MASKFEAT,
    random_video,
    randomize,
    seeded_clips,
    train_on_one_batch,
)
from training.optimizers import parameter_groups
from training.pretraining_tasks import MaskFeatTask


def maskfeat_args(backbone):
    if backbone == "mvit_v2_tiny":
        return TINY_MASKFEAT
    return dict(backbone=backbone, num_frames=4, image_size=32)


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["mvit_v2_tiny", "vivit_tiny"])
def test_masked_patches_do_not_reach_the_prediction(backbone):
    network = randomize(MaskFeat(**maskfeat_args(backbone)), seed=1)
    mask = torch.from_numpy(draw_masks("cube", network.mask_grid, 0.4, [(0, 0, 1), (0, 0, 2)]))
    video = random_video(2, 3, 4, 32, 32)
    noise = random_video(2, 3, 4, 32, 32, seed=1)
    t, h, w = network.patch_embed.grid
    patches = network.upsample_mask(mask, network.patch_embed.grid)  # (B, t, n)
    pixels = patches.reshape(2, 1, t, h, w)
    for axis, size in ((2, 4 // t), (3, 32 // h), (4, 32 // w)):
        pixels = pixels.repeat_interleave(size, axis)
    with torch.no_grad():
        prediction = network(video, mask)
        if backbone == "vivit_tiny":  # tubelets do not overlap: hidden pixels reach nothing
            assert torch.equal(network(torch.where(pixels, noise, video), mask), prediction)
        assert not torch.equal(network(torch.where(pixels, video, noise), mask), prediction)
        assert not torch.equal(network(video), prediction)
        network.mask_token += 1.0
        assert not torch.equal(network(video, mask), prediction)
    t, h, w = network.token_grid
    assert prediction.shape == (2, t, 1, h, w, network.target_dim)


def test_maskfeat_mvit_v2_s_has_the_published_sizes():
    with torch.device("meta"):
        network = networks.build("maskfeat_mvit_v2_s")
    assert network.mask_grid == (8, 7, 7) and network.token_grid == (8, 14, 14) and network.target_dim == 108
    assert network.blocks[14].attn.query_grid == (8, 14, 14) and network.blocks[15].attn.key_grid == (8, 7, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "does not divide image_size=30x30"),
        ({"num_frames": 5}, "tubelet_size=2 does not divide num_frames=5"),
        ({"backbone": "mvit"}, "backbone='mvit'"),
        ({"backbone": "vivit_tiny", "image_size": 24, "backbone_args": {}}, "masks of 2x2 tokens do not divide"),
        ({"backbone": "vivit_tiny", "backbone_args": {"attention": "factorized_encoder"}}, "needs all tokens"),
        ({"backbone": "vivit_tiny", "backbone_args": {"patch_size": 4}}, "cover no whole HOG cells of 8 pixels"),
    ],
)
def test_constructor_errors_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        networks.build("maskfeat_tiny", **TINY_MASKFEAT | options)


# ---- the task --------------------------------------------------------------------------------------------------------


def make_batch(batch_size=4):
    return seeded_clips(batch_size, 3, 4, 32, 32)


def test_loss_is_over_hidden_tokens_alone():
    network = randomize(MaskFeat(**TINY_MASKFEAT), seed=2)
    task, batch = MaskFeatTask(network), make_batch()
    out = task(network, batch)
    hidden = out["mask"].repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, None]
    assert hidden.float().mean() == pytest.approx(0.4, abs=0.1)
    error = (out["prediction"] - out["target"]).square()
    assert out["loss"].item() == pytest.approx(error[hidden].mean().item(), rel=1e-5)
    targets = out["target"][hidden]
    assert out["baseline"].item() == pytest.approx((targets - targets.mean(0)).square().mean().item(), rel=1e-4)
    torch.testing.assert_close(out["losses"].mean(), out["loss"].detach())


def test_training_on_one_batch_halves_the_loss():
    torch.manual_seed(0)
    network = MaskFeat(**TINY_MASKFEAT)
    task, batch = MaskFeatTask(network), make_batch()
    out = train_on_one_batch(network, task, batch, steps=60, lr=3e-3)
    assert out["loss"] < 0.5 * out["baseline"]


@pytest.mark.parametrize("backbone", ["mvit_v2_tiny", "vivit_tiny"])
def test_gradient_reaches_every_parameter(backbone):
    """DistributedDataParallel waits for the gradients of all parameters."""
    network = randomize(MaskFeat(**maskfeat_args(backbone)), seed=5).train()
    MaskFeatTask(network)(network, make_batch())["loss"].backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.slow
def test_compiled_network_and_targets_equal_eager():
    network = randomize(MaskFeat(**TINY_MASKFEAT), seed=3)
    batch = make_batch(2)
    eager = MaskFeatTask(network)(network, batch)
    network.compile(fullgraph=True)
    compiled = MaskFeatTask(network, compiled=True)(network, batch)
    torch.testing.assert_close(compiled["target"], eager["target"], atol=1e-5, rtol=0)
    torch.testing.assert_close(compiled["loss"], eager["loss"], atol=1e-4, rtol=1e-4)


# ---- fine-tuning -----------------------------------------------------------------------------------------------------


def test_load_pretrained_starts_a_classifier_from_maskfeat(tmp_path):
    pretrained = randomize(MaskFeat(**TINY_MASKFEAT), seed=4)
    weights.save_network(tmp_path, pretrained, "maskfeat_tiny")
    loaded, _ = weights.load_network(tmp_path)
    assert loaded.kwargs == pretrained.kwargs
    settings = SMALL_MVIT | {"expand_attn": False, "pooling": "fc_norm", "head_scale": 0.001}
    network = networks.build("mvit_v2_tiny", **settings)
    assert network.head.weight.std() < 1e-4
    report = weights.load_pretrained(network, tmp_path)
    assert torch.equal(network.blocks[2].attn.qkv.weight, pretrained.backbone.blocks[2].attn.qkv.weight)
    assert "fine-tuning with fc_norm starts with a fresh norm" in report.text()
    assert "q_strides is " in report.text()  # stage 3 is pooled again, and the report says so
    dropped = {key for record in report.with_status("dropped") for key in record.sources}
    assert {"mask_token", "predict.weight", "predict.bias"} <= dropped
    with pytest.raises(ValueError, match="cannot fill a ViViT"):
        weights.load_pretrained(networks.build("vivit_tiny", **SMALL), tmp_path)


def test_layer_decay_of_mvit_equals_values_by_hand():
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


# ---- numbers of other implementations --------------------------------------------------------------------------------


def parse_bits(text, *shape):
    return torch.tensor([bit == "1" for bit in text]).view(shape)


def test_prediction_and_targets_equal_slowfast(tmp_path):
    """The numbers are from its MaskMViT and HOGLayerC, with weights and clip drawn as in foreign_checkpoints.py."""
    entry = ENTRIES["slowfast_maskfeat_pt"]
    recorded = entry["maskfeat"]
    path = write_checkpoint("slowfast_maskfeat_pt", tmp_path)
    network, config, report = weights.convert(path, **entry["given"])
    assert config["name"] == "maskfeat_mvit_v2_s" and report.count("created") == 0
    video = draw_clip(recorded["clip"])

    half = parse_bits(recorded["half"], 2, *network.mask_grid)
    with torch.no_grad():
        prediction = network(video, half)
    hidden = network.upsample_mask(half, network.token_grid).flatten(1)
    actual = prediction.flatten(1, 4)[hidden][::7, :6]
    torch.testing.assert_close(actual, torch.tensor(recorded["prediction"]), atol=2e-5, rtol=2e-5)

    full = parse_bits(recorded["full"], 2, -1)
    target = hog_targets(video, network.token_grid).flatten(1, 4)[full][::7, :12]
    torch.testing.assert_close(target, torch.tensor(recorded["hog"]), atol=2e-6, rtol=1e-5)


def test_prediction_and_loss_equal_videotransformer_pytorch(tmp_path, monkeypatch):
    """The numbers are from its MaskFeat: 216 per token, and the loss of its middle frames against targets of zero."""
    entry = ENTRIES["seed_maskfeat"]
    recorded = entry["maskfeat"]
    network, config, report = weights.convert(write_checkpoint("seed_maskfeat", tmp_path), **entry["given"])
    assert config["name"] == "maskfeat_mvit_v1_b" and report.count("created") == 0
    assert network.mask_grid == network.token_grid and network.kwargs["target_frames"] == 2
    video, mask = draw_clip(recorded["clip"]), parse_bits(recorded["mask"], 2, *network.mask_grid)
    with torch.no_grad():
        prediction = network(video, mask)
    actual = rearrange(prediction, "B t f h w (C o a b) -> B (t f) h w (a b C o)", C=3, o=9, a=2)
    expected = torch.tensor(recorded["prediction"]).view(2, 4, -1)
    torch.testing.assert_close(actual[:, :, 0, 1, ::17], expected, atol=2e-5, rtol=2e-5)

    monkeypatch.setattr("training.pretraining_tasks.draw_masks", lambda *_: mask.numpy())
    task = MaskFeatTask(network, "frame_runs", gradient="central")
    with torch.no_grad():
        out = task(network, SimpleNamespace(video=torch.zeros_like(video), seeds=[(0, 0, 0)] * 2))
    assert not out["target"].any()  # uniform frames have no gradients
    task.targets = lambda *_: torch.zeros_like(prediction)
    with torch.no_grad():
        out = task(network, SimpleNamespace(video=video, seeds=[(0, 0, 0)] * 2))
    torch.testing.assert_close(out["losses"], torch.tensor(recorded["loss_of_zeros"]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "backbone"), [("slowfast_maskfeat_pt", "mvit_v2_s"), ("seed_maskfeat", "mvit_v1_b")])
def test_foreign_checkpoints_continue_and_start_classifiers(name, backbone, tmp_path):
    path, folder = write_checkpoint(name, tmp_path), tmp_path / "converted"
    network, config, _ = weights.convert(path, **ENTRIES[name]["given"])
    weights.save_network(folder, network, config["name"], config["extra"])
    rebuilt = networks.build(config["name"], **network.kwargs)
    for source in (path, folder):
        report = weights.load_pretrained(rebuilt, source)
        assert report.count("created") == 0 and torch.equal(rebuilt.predict.weight, network.predict.weight)
        torch.testing.assert_close(rebuilt.state_dict(), network.state_dict(), rtol=0, atol=0)
    sizes = dict(num_classes=5, num_frames=network.kwargs["num_frames"], image_size=network.kwargs["image_size"])
    classifier = networks.build(backbone, **network.kwargs["backbone_args"] | sizes)
    texts = [weights.load_pretrained(classifier, source).text() for source in (path, folder)]
    assert all("mask token, decoder, predictor or HOG head of the pre-training" in text for text in texts)
    assert torch.equal(classifier.blocks[2].attn.qkv.bias, network.blocks[2].attn.qkv.bias)
    converted, _, _ = weights.convert(folder)
    assert converted.kwargs == network.kwargs
    other_target = networks.build(config["name"], **network.kwargs | {"target_frames": 3 - network.target_frames})
    with pytest.raises(ValueError, match=r"predict.weight: \(\d+, \d+\), the network has"):
        weights.load_pretrained(other_target, path)


def test_load_pretrained_starts_maskfeat_from_a_classifier(tmp_path):
    settings = SMALL_MVIT | {"q_strides": TINY_MASKFEAT["backbone_args"]["q_strides"], "expand_attn": False}
    classifier = randomize(networks.build("mvit_v2_tiny", **settings), seed=7)
    weights.save_network(tmp_path, classifier, "mvit_v2_tiny")
    network = MaskFeat(**TINY_MASKFEAT)
    report = weights.load_pretrained(network, tmp_path)
    assert torch.equal(network.blocks[1].norm1.bias, classifier.blocks[1].norm1.bias)
    created = sorted(record.target for record in report.with_status("created"))
    assert created == ["mask_token", "predict.bias", "predict.weight"]


def test_infer_architecture_finds_an_unpooled_last_stage():
    """In VideoTransformer-pytorch only strided queries are pooled: a stage without a kernel is not pooled."""
    state = {key: t for key, t in make_state("seed_mvit_ft").items() if "blocks.3.attn.pool_q" not in key}
    state = {key: t for key, t in state.items() if "blocks.3.attn.norm_q" not in key}
    _, kwargs, _ = infer_architecture(rename_keys(state), {})
    assert kwargs["q_strides"][-1] == [1, 1, 1] and kwargs["q_strides"][1] == [1, 2, 2]
