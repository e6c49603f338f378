"""VideoMAE and Hiera's masked autoencoder: losses and gradients of transformers, what is hidden, what is predicted."""

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
from networks.hiera_mae import HieraMAE
from networks.masking import draw_masks, running_cell_masks, upsample_mask
from networks.pixel_targets import PixelTargets
from networks.videomae import VideoMAE
from tests.helpers.foreign_checkpoints import ENTRIES, draw_clip, write_checkpoint
from tests.helpers.networks import (
    SMALL_HIERA,
    random_video,
    randomize,
    seeded_clips,
    train_on_one_batch,
    transformers_videomae,
)
from training.pretraining_tasks import MAETask, positions_of

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SMALL_VIDEOMAE = dict(
    backbone="videomae_tiny",
    num_frames=4,
    image_size=32,
    backbone_args=dict(patch_size=8, embed_dim=32, depth=2, num_heads=4),
    decoder_embed_dim=16,
    decoder_depth=2,
    decoder_num_heads=2,
)
SMALL_MAE_HIERA = dict(
    backbone="hiera_tiny",
    num_frames=4,
    image_size=64,
    backbone_args={key: SMALL_HIERA[key] for key in ("embed_dim", "depths")},
    decoder_embed_dim=16,
    decoder_depth=2,
    decoder_num_heads=2,
)
BOTH = {"videomae": ("pretrain_videomae_tiny", SMALL_VIDEOMAE), "hiera": ("mae_hiera_tiny", SMALL_MAE_HIERA)}


def make_batch(network, batch_size=3):
    return seeded_clips(batch_size, *network.patch_embed.input_shape)


def every_position(targets, video):
    return torch.arange(math.prod(targets.grid)).expand(len(video), -1)


def small_network(kind, seed=1):
    name, options = BOTH[kind]
    return randomize(networks.build(name, **options), seed=seed)


def assert_equal_gradients(network, reference, pairs):
    """Compare the gradients of parameters, by their names here and functions of the reference's named gradients."""
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, find in pairs.items():
        ours = network.get_parameter(name).grad
        torch.testing.assert_close(ours, find(gradients).reshape(ours.shape), rtol=1e-4, atol=1e-5, msg=name)


# ---- transformers ----------------------------------------------------------------------------------------------------


def block_pairs(prefix, theirs):
    def join_qkv(kind):
        def joined(gradients):
            parts = [gradients[f"{theirs}.attention.attention.{part}.{kind}"] for part in ("query", "value")]
            if kind == "weight":
                parts.insert(1, gradients[f"{theirs}.attention.attention.key.weight"])
            else:
                parts.insert(1, torch.zeros_like(parts[0]))  # a bias of the keys has no effect
            return torch.cat(parts)

        return joined

    names = {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    pairs = {f"{prefix}.attn.qkv.{kind}": join_qkv(kind) for kind in ("weight", "bias")}
    for ours, other in names.items():
        for kind in ("weight", "bias"):
            pairs[f"{prefix}.{ours}.{kind}"] = lambda gradients, key=f"{theirs}.{other}.{kind}": gradients[key]
    return pairs


def test_videomae_loss_and_gradients_equal_transformers(tmp_path):
    reference = transformers_videomae()
    reference.save_pretrained(tmp_path / "hf")
    network = networks.build("pretrain_videomae_tiny", **SMALL_VIDEOMAE)
    weights.load_pretrained(network, tmp_path / "hf")
    task, batch = MAETask(network, **IMAGENET), make_batch(network)
    out = task(network, batch)
    out["loss"].backward()

    expected = reference(rearrange(batch.video, "B C T H W -> B T C H W"), out["mask"].flatten(1))
    expected.loss.backward()
    torch.testing.assert_close(out["prediction"], expected.logits.detach(), rtol=1e-5, atol=1e-5)
    assert out["loss"].item() == pytest.approx(expected.loss.item(), rel=1e-5)

    def same(key):
        return lambda gradients: gradients[key]

    pairs = {"mask_token": same("mask_token"), "decoder_embed.weight": same("encoder_to_decoder.weight")}
    for kind in ("weight", "bias"):
        pairs |= {
            f"backbone.patch_embed.proj.{kind}": same(f"videomae.embeddings.patch_embeddings.projection.{kind}"),
            f"backbone.norm.{kind}": same(f"videomae.layernorm.{kind}"),
            f"decoder_norm.{kind}": same(f"decoder.norm.{kind}"),
            f"decoder_pred.{kind}": same(f"decoder.head.{kind}"),
        }
    for index in range(2):
        pairs |= block_pairs(f"backbone.blocks.{index}", f"videomae.encoder.layer.{index}")
        pairs |= block_pairs(f"decoder_blocks.{index}", f"decoder.decoder_layers.{index}")
    assert pairs.keys() == {name for name, _ in network.named_parameters()}
    assert_equal_gradients(network, reference, pairs)


def test_hiera_loss_and_gradients_equal_transformers():
    """transformers has Hiera for images: here clips of one frame, of one channel, which alone has its place in both."""
    from transformers import HieraConfig, HieraForPreTraining

    sizes = dict(embed_dim=8, depths=[1, 1, 2], num_heads=[1, 2, 4])
    decoder = dict(decoder_hidden_size=16, decoder_depth=2, decoder_num_heads=2)
    config = HieraConfig(
        image_size=[64, 64],
        masked_unit_size=[4, 4],
        masked_unit_attention=[True, False, False],
        num_query_pool=1,
        layer_norm_eps=1e-6,
        mask_ratio=0.6,
        num_channels=1,
        **sizes,
        **decoder,
    )
    reference = randomize(HieraForPreTraining(config), seed=4)
    one_frame = dict(patch_kernel=(1, 7, 7), patch_stride=(1, 4, 4), embed_dim=8, depths=(1, 1, 2), in_chans=1)
    options = dict(decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2, backbone_args=one_frame)
    network = HieraMAE("hiera_tiny", num_frames=1, image_size=64, **options)

    def ours(key):
        """Return the name here of a parameter of transformers."""
        pairs = [
            ("hiera.embeddings.patch_embeddings.projection", "backbone.patch_embed.proj"),
            ("hiera.embeddings.position_embeddings", "backbone.pos_embed_spatial"),
            ("hiera.encoder.stages.0.layers.0", "backbone.blocks.0"),
            ("hiera.encoder.stages.1.layers.0", "backbone.blocks.1"),
            ("hiera.encoder.stages.2.layers.0", "backbone.blocks.2"),
            ("hiera.encoder.stages.2.layers.1", "backbone.blocks.3"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("encoder_norm", "backbone.norm"),
            ("multiscale_fusion.", ""),
            ("decoder.decoder_position_embeddings", "decoder_pos_embed"),
            ("decoder.decoder_block.layers", "decoder_blocks"),
            ("decoder.decoder_embeddings", "decoder_embed"),
            ("decoder.mask_token", "mask_token"),
            ("decoder.decoder_", "decoder_"),
        ]
        for old, new in pairs:
            key = key.replace(old, new)
        return key

    names = {ours(name): name for name, _ in reference.named_parameters()}
    assert names.keys() == {name for name, _ in network.named_parameters()} - {"backbone.pos_embed_temporal"}
    state = reference.state_dict()
    with torch.no_grad():
        network.backbone.pos_embed_temporal.zero_()
        for name, theirs in names.items():
            parameter = network.get_parameter(name)
            parameter.copy_(state[theirs].reshape(parameter.shape))

    task, batch = MAETask(network, "random", 0.6), make_batch(network)
    out = task(network, batch)
    out["loss"].backward()
    noise = out["mask"].flatten(1).float() + torch.rand(3, 16) / 2  # transformers keeps the units with the least
    expected = reference(batch.video[:, :, 0], noise=noise)
    expected.loss.backward()
    hidden = ~expected.bool_masked_pos
    torch.testing.assert_close(out["prediction"].flatten(0, 1), expected.logits[hidden].detach(), rtol=1e-5, atol=1e-5)
    assert out["loss"].item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert_equal_gradients(
        network, reference, {name: lambda grads, key=theirs: grads[key] for name, theirs in names.items()}
    )


@pytest.mark.parametrize("name", ["videomae_pt", "hiera_pt"])
def test_prediction_loss_and_gradients_equal_the_projects_code(name, tmp_path, monkeypatch):
    """On a checkpoint of each project, on clips of several frames; foreign_checkpoints.py tells where it comes from."""
    entry = ENTRIES[name]
    recorded = entry["pretraining"]
    network, _, report = weights.convert(write_checkpoint(name, tmp_path), **entry["given"])
    assert report.count("created") == 0
    mask = np.array([[bit == "1" for bit in row] for row in recorded["hidden"]]).reshape(2, *network.mask_grid)
    monkeypatch.setattr("training.pretraining_tasks.draw_masks", lambda *_: mask)
    video = draw_clip(entry["clip"])
    out = MAETask(network, **IMAGENET)(network, SimpleNamespace(video=video, seeds=[(0, 0, 0)] * 2))
    out["loss"].backward()
    rows, columns = recorded["every"]
    actual = out["prediction"].flatten(0, 1)[::rows, ::columns]
    torch.testing.assert_close(actual, torch.tensor(recorded["prediction"]), rtol=1e-5, atol=1e-5)
    assert out["loss"].item() == pytest.approx(recorded["loss"], rel=1e-5)
    for key, norm in recorded["gradient_norms"].items():
        assert network.get_parameter(key).grad.norm().item() == pytest.approx(norm, rel=1e-4), key


# ---- what is hidden and what is predicted ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_hidden_pixels_do_not_reach_the_prediction(kind):
    network = small_network(kind)
    task, batch = MAETask(network), make_batch(network)
    mask, visible, predicted, _ = (torch.from_numpy(part) for part in task.sample_positions(batch))
    cells = torch.from_numpy(upsample_mask(mask.numpy(), batch.video.shape[2:]))[:, None]
    noise = random_video(*batch.video.shape, seed=1)
    with torch.no_grad():
        prediction = network(batch.video, visible, predicted)
        other_hidden = network(torch.where(cells, noise, batch.video), visible, predicted)
        other_visible = network(torch.where(cells, batch.video, noise), visible, predicted)
    assert torch.equal(prediction, other_hidden) and not torch.equal(prediction, other_visible)


@pytest.mark.parametrize("kind", BOTH)
def test_prediction_of_a_patch_does_not_depend_on_the_order_of_positions(kind):
    network = small_network(kind)
    task, batch = MAETask(network), make_batch(network)
    _, visible, predicted, _ = (torch.from_numpy(part) for part in task.sample_positions(batch))
    with torch.no_grad():
        prediction = network(batch.video, visible, predicted)
        turned = network(batch.video, visible.flip(1), predicted.flip(1)).flip(1)
    torch.testing.assert_close(prediction, turned, rtol=1e-4, atol=1e-5)


def test_encoder_of_all_patches_equals_the_backbone():
    network = small_network("videomae")
    video = make_batch(network).video
    everything = torch.arange(network.backbone.patch_embed.num_patches * 2).expand(3, -1)
    with torch.no_grad():
        torch.testing.assert_close(
            network.backbone.forward_visible(video, everything), network.backbone.forward_tokens(video)
        )


def test_hiera_encoder_of_all_mask_units_equals_the_backbone():
    network = small_network("hiera")
    video = make_batch(network).video
    everything = torch.arange(np.prod(network.mask_grid)).expand(3, -1)
    with torch.no_grad():
        outputs = network.backbone.stage_outputs(video, everything)[-1]
        torch.testing.assert_close(outputs, network.backbone.stage_outputs(video)[-1])


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("decoder_ratio", [0.0, 0.5])
def test_loss_is_over_hidden_and_predicted_patches_alone(kind, decoder_ratio):
    network = small_network(kind)
    task, batch = MAETask(network, decoder_ratio=decoder_ratio), make_batch(network)
    out = task(network, batch)
    hidden = upsample_mask(out["mask"].numpy(), task.targets.grid).reshape(3, -1)
    decoded = np.ones_like(hidden)
    if decoder_ratio:
        decoded = ~running_cell_masks(task.targets.grid, decoder_ratio, batch.seeds).reshape(3, -1)
        assert (decoded.sum(1) == decoded.shape[1] // 2).all()
    patches = task.targets.patches(task.pixels(batch.video), every_position(task.targets, batch.video))
    targets = task.targets.normalize(patches).flatten(2)
    losses = []
    for clip in range(3):
        positions = out["predicted"][clip].tolist()
        kept = [i for i, position in enumerate(positions) if hidden[clip, position] and decoded[clip, position]]
        assert {positions[i] for i in kept} == set(np.flatnonzero(hidden[clip] & decoded[clip]))
        error = out["prediction"][clip, kept] - targets[clip, [positions[i] for i in kept]]
        losses.append(error.square().mean())
    torch.testing.assert_close(out["losses"], torch.stack(losses), rtol=1e-4, atol=1e-5)
    assert out["loss"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


@pytest.mark.parametrize("kind", BOTH)
def test_gradient_reaches_every_parameter(kind):
    network = small_network(kind).train()
    MAETask(network)(network, make_batch(network))["loss"].backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", BOTH)
def test_training_on_one_batch_reduces_the_loss(kind):
    torch.manual_seed(0)
    name, options = BOTH[kind]
    network = networks.build(name, **options)
    task, batch = MAETask(network, ratio=0.5), make_batch(network)
    out = train_on_one_batch(network, task, batch, steps=150, lr=5e-3)
    assert out["loss"] < 0.9 * out["baseline"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOTH)
def test_compiled_equals_eager(kind):
    network = small_network(kind)
    task, batch = MAETask(network), make_batch(network)
    eager = task(network, batch)
    eager["loss"].backward()
    expected = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.zero_grad()
    network.compile()
    compiled = task(network, batch)
    compiled["loss"].backward()
    torch.testing.assert_close(compiled["prediction"], eager["prediction"], rtol=1e-4, atol=1e-5)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("decoder_ratio", [0.0, 0.5])
def test_half_precision_under_autocast_is_close_to_full_precision(kind, decoder_ratio):
    """The loader yields float16 clips under AMP; loss and targets stay in float32."""
    network = small_network(kind)
    task, batch = MAETask(network, decoder_ratio=decoder_ratio), make_batch(network)
    expected = task(network, batch)
    half = SimpleNamespace(video=batch.video.half(), seeds=batch.seeds)
    with torch.autocast("cpu", torch.bfloat16):
        out = task(network, half)
    out["loss"].backward()
    assert out["loss"].dtype == out["target"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(expected["loss"].item(), rel=0.02)


def test_published_sizes():
    with torch.device("meta"):
        videomae, hiera = networks.build("pretrain_videomae_b"), networks.build("mae_hiera_b")
    assert videomae.mask_grid == (8, 14, 14) and videomae.decoder_pred.out_features == 1536
    assert positions_of(~draw_masks("tube", (8, 14, 14), 0.9, [(0, 0, 0)]).reshape(1, -1)).shape == (1, 160)
    assert hiera.mask_grid == (8, 7, 7) and hiera.token_grid == (8, 14, 14)
    assert hiera.decoder_pred.out_features == 768 and hiera.pixel_targets.frame_step == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pretrain_videomae_tiny", {"backbone": "vivit_tiny"}, "backbone='vivit_tiny': expected one of videomae_tiny"),
        ("pretrain_videomae_tiny", {"backbone_args": {"rlt_threshold": 0.1}}, "no rlt_threshold"),
        ("pretrain_videomae_tiny", {"decoder_depth": 0}, "decoder_depth=0: must be > 0"),
        ("mae_hiera_tiny", {"backbone": "hiera"}, "backbone='hiera': expected one of hiera_tiny"),
        ("mae_hiera_tiny", {"backbone_args": {"q_pool": 5}}, "q_pool=5: expected a whole number from 1 to 2"),
        ("mae_hiera_tiny", {"image_size": 72}, "expected multiples of a mask unit"),
    ],
)
def test_constructor_errors_name_the_value(name, options, message):
    with pytest.raises(ValueError, match=message):
        networks.build(name, **options)


# ---- pixels and running cells ----------------------------------------------------------------------------------------


def test_pixels_of_patches_are_in_the_order_of_frames_rows_and_columns():
    targets = PixelTargets((2, 2, 3), (2, 4, 4), unit_range=True)
    video = random_video(2, 3, 4, 8, 12)
    patches = targets.patches(video, every_position(targets, video))
    assert torch.equal(targets.video(patches), video)
    assert torch.equal(patches[0, 4], video[0, :, 0:2, 4:8, 4:8].permute(1, 2, 3, 0).reshape(32, 3))
    mean, scale = targets.statistics(patches)
    torch.testing.assert_close(targets.normalize(patches) * scale + mean, patches)


size = st.integers(1, 4)


@given(t=size, h=size, w=size, ratio=st.sampled_from([0.25, 0.5, 0.75]), seed=st.integers(0, 50))
def test_running_cells_hide_the_same_share_of_every_frame_and_move_on(t, h, w, ratio, seed):
    mask = running_cell_masks((t, 2 * h, 2 * w), ratio, [(0, 0, seed)])[0]
    assert (mask.reshape(t, -1).mean(1) == ratio).all()
    assert all((frame == np.tile(frame[:2, :2], (h, w))).all() for frame in mask)
    cells = mask[:, :2, :2].reshape(t, 4)
    assert all((np.roll(cells[i], -1) == cells[i + 1]).all() for i in range(t - 1))


@pytest.mark.parametrize(
    ("grid", "ratio", "message"), [((4, 3, 4), 0.5, "do not divide the 3x4 patches"), ((4, 4, 4), 0.6, "ratio=0.6")]
)
def test_running_cells_refuse_what_they_cannot_do(grid, ratio, message):
    with pytest.raises(ValueError, match=message):
        running_cell_masks(grid, ratio, [(0, 0, 0)])


def test_task_refuses_masks_that_hide_nothing_everything_or_unequal_numbers():
    network = VideoMAE(**SMALL_VIDEOMAE)
    for options, message in (
        (dict(ratio=0.01), "hides none of 2x4x4 cells; expected a larger one"),
        (dict(ratio=0.99), "hides all of 2x4x4 cells; expected a smaller one"),
        (dict(mask="frame_runs"), "mask=frame_runs"),
    ):
        with pytest.raises(ValueError, match=message):
            MAETask(network, **options)
