"""V-JEPA's pre-training: the predictor of transformers, what is hidden, the teacher, and the blocks of the masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import networks
from networks import weights
from networks.attentive_pooler import standardize
from networks.layers import gather_tokens
from networks.masking import MULTI_BLOCKS, multi_block_masks
from tests.helpers.foreign_checkpoints import ENTRIES, details, draw_clip, write_checkpoint
from tests.helpers.networks import SMALL, random_video, randomize, seeded_clips
from training.pretraining_tasks import JEPATask, positions_of
from training.setup import freeze

SMALL_JEPA = dict(
    num_frames=4,
    image_size=64,
    backbone_args=dict(patch_size=8, embed_dim=40, depth=2, num_heads=4),
    predictor_embed_dim=24,
    predictor_depth=2,
    predictor_num_heads=2,
)


def small_network(seed=1, **options):
    return randomize(networks.build("pretrain_vjepa2_tiny", **SMALL_JEPA | options), seed=seed)


def make_batch(batch_size=3):
    return seeded_clips(batch_size, 3, 4, 64, 64)


def draw_positions(network, batch):
    masks = (mask.reshape(len(mask), -1) for mask in multi_block_masks(network.mask_grid, batch.seeds))
    return [tuple(torch.from_numpy(positions_of(part)) for part in (~mask, mask)) for mask in masks]


def test_predictor_equals_transformers(tmp_path):
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config(
        patch_size=8,
        crop_size=64,
        frames_per_clip=4,
        hidden_size=40,
        num_attention_heads=4,
        num_hidden_layers=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=2,
    )
    reference = randomize(VJEPA2Model(config), seed=5)
    reference.save_pretrained(tmp_path)
    network = small_network()
    report = weights.load_pretrained(network, tmp_path)
    created = {record.target for record in report.with_status("created")}
    assert created == {name for name in network.state_dict() if name.startswith("teacher.")}
    with torch.no_grad():
        for visible, predicted in draw_positions(network, make_batch()):
            tokens = random_video(3, 128, 40)
            expected = reference.predictor(tokens, [visible], [predicted]).last_hidden_state
            # transformers always takes its second mask token.
            actual = network.predict(gather_tokens(tokens, visible), 1, visible, predicted)
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    other = networks.build("pretrain_vjepa2_tiny", **SMALL_JEPA | {"predictor_num_heads": 4})
    with pytest.raises(ValueError, match="predictor_num_heads=2"):
        weights.load_pretrained(other, tmp_path)
    other = networks.build("pretrain_vjepa2_tiny", **SMALL_JEPA | {"predictor_depth": 1})
    with pytest.raises(ValueError, match="head=new starts with a new decoder or predictor"):
        weights.load_pretrained(other, tmp_path)
    fresh = other.predictor_proj.weight.clone()
    weights.load_pretrained(other, tmp_path, head="new")
    assert torch.equal(other.predictor_proj.weight, fresh)
    key = "encoder.layer.1.mlp.fc1.weight"
    assert torch.equal(other.backbone.blocks[1].mlp.fc1.weight, reference.state_dict()[key])


def test_loss_and_gradients_equal_the_projects_code(tmp_path, monkeypatch):
    """On a checkpoint of V-JEPA 2, predictor included; foreign_checkpoints.py tells where it comes from."""
    recorded = ENTRIES["vjepa2"]["pretraining"]
    backbone_args = SMALL_JEPA["backbone_args"] | {"depth": 3, "num_heads": 2}
    network = networks.build("pretrain_vjepa2_tiny", **SMALL_JEPA | dict(image_size=48, backbone_args=backbone_args))
    report = weights.load_pretrained(network, write_checkpoint("vjepa2", tmp_path))
    created = {record.target for record in report.with_status("created")}
    assert created == {name for name in network.state_dict() if name.startswith("teacher.")}
    assert details(report, "reshaped")["mask_tokens"] == "the first 2 of 3"
    masks = [
        np.array([[bit == "1" for bit in row] for row in hidden]).reshape(2, *network.mask_grid)
        for hidden in recorded["hidden"]
    ]
    monkeypatch.setattr("training.pretraining_tasks.multi_block_masks", lambda *_: masks)
    video, (rows, columns) = draw_clip(recorded["clip"]), recorded["every"]
    positions = [tuple(torch.from_numpy(positions_of(part.reshape(2, -1))) for part in (~mask, mask)) for mask in masks]
    for (prediction, _), expected in zip(network(video, positions), recorded["prediction"], strict=True):
        actual = prediction.flatten(0, 1)[::rows, ::columns]
        torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    out = JEPATask(network)(network, SimpleNamespace(video=video, seeds=[(0, 0, 0)] * 2))
    out["loss"].backward()
    assert out["loss"].item() == pytest.approx(recorded["loss"], rel=1e-5)
    for key, norm in recorded["gradient_norms"].items():
        assert network.get_parameter(key).grad.norm().item() == pytest.approx(norm, rel=1e-4), key


def test_encoder_sees_the_visible_patches_alone_and_the_teacher_all():
    network, batch = small_network(), make_batch()
    positions = draw_positions(network, batch)
    hidden = multi_block_masks(network.mask_grid, batch.seeds)[0]
    pixels = torch.from_numpy(hidden.repeat(2, 1).repeat(8, 2).repeat(8, 3))[:, None]
    changed = torch.where(pixels, random_video(*batch.video.shape, seed=2), batch.video)
    with torch.no_grad():
        before, after = (network(video, positions)[0] for video in (batch.video, changed))
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_visible_patches_of_everything_equal_the_whole_clip():
    network = small_network()
    video = make_batch().video
    everything = torch.arange(128).expand(3, -1)
    with torch.no_grad():
        actual, expected = network.backbone.forward_visible(video, everything), network.backbone.forward_tokens(video)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_loss_is_the_mean_absolute_error_to_the_standardized_teacher():
    network, batch = small_network(), make_batch()
    out = JEPATask(network)(network, batch)
    with torch.no_grad():
        targets = standardize(network.teacher.forward_tokens(batch.video))
        pairs = network(batch.video, draw_positions(network, batch))
        losses = []
        for (prediction, _), (_, predicted) in zip(pairs, draw_positions(network, batch), strict=True):
            losses.append((prediction - gather_tokens(targets, predicted)).abs().mean())
    assert out["loss"].item() == pytest.approx((sum(losses) / 2).item(), rel=1e-5)
    assert out["mask"].shape == (3, 2, 2, 8, 8)


def test_teacher_gets_no_gradient_and_moves_by_its_decay():
    network = small_network(teacher_decay=0.75).train()
    assert not network.teacher.training
    JEPATask(network)(network, make_batch())["loss"].backward()
    missing = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert missing == {name for name, _ in network.named_parameters() if name.startswith("teacher.")}
    before, encoder = network.teacher.state_dict(), network.backbone.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    network.update_teacher()
    for name, tensor in network.teacher.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * encoder[name], rtol=1e-5, atol=1e-6)


def test_a_new_teacher_equals_its_encoder():
    network = networks.build("pretrain_vjepa2_tiny", **SMALL_JEPA)
    encoder = network.backbone.state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in network.teacher.state_dict().items())


def test_classifier_starts_from_the_teacher(tmp_path):
    network = small_network()
    weights.save_network(tmp_path, network, "pretrain_vjepa2_tiny")
    classifier = networks.build("vjepa2_tiny", **SMALL | {"image_size": 64, "embed_dim": 40})
    report = weights.load_pretrained(classifier, tmp_path)
    teacher = network.teacher.state_dict()
    loaded = classifier.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in teacher.items())
    assert "its teacher is taken" in report.text()
    again = networks.build("pretrain_vjepa2_tiny", **SMALL_JEPA)
    assert weights.load_pretrained(again, tmp_path).count("created") == 0
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_pretraining_starts_from_an_encoder_with_an_equal_teacher(tmp_path):
    encoder = randomize(networks.build("vjepa2_tiny", **SMALL | {"image_size": 64, "embed_dim": 40}), seed=3)
    weights.save_network(tmp_path, encoder, "vjepa2_tiny")
    network = networks.build("pretrain_vjepa2_tiny", **SMALL_JEPA)
    report = weights.load_pretrained(network, tmp_path)
    state = encoder.state_dict()
    for module in (network.backbone, network.teacher):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert "copy of the encoder" in report.text()


def test_each_mask_has_a_token_of_its_own():
    network, batch = small_network(), make_batch()
    positions = draw_positions(network, batch)
    with torch.no_grad():
        before = network(batch.video, positions)
        network.mask_tokens[0] += 1
        after = network(batch.video, positions)
    assert not torch.equal(before[0][0], after[0][0]) and torch.equal(before[1][0], after[1][0])


@pytest.mark.parametrize("key", ["predictor_num_heads", "backbone_args"])
def test_weights_for_other_numbers_of_heads_are_refused(key, tmp_path):
    weights.save_network(tmp_path, small_network(), "pretrain_vjepa2_tiny")
    other = {"predictor_num_heads": 4, "backbone_args": SMALL_JEPA["backbone_args"] | {"num_heads": 2}}[key]
    with pytest.raises(ValueError, match=r"num_heads=\d, the network (predictor_)?num_heads=\d"):
        weights.load_pretrained(networks.build("pretrain_vjepa2_tiny", **SMALL_JEPA | {key: other}), tmp_path)


def test_parts_of_a_jepa_are_frozen_and_its_teacher_stays_so():
    network = networks.build("pretrain_vjepa2_tiny", **SMALL_JEPA)
    freeze(network, "backbone.patch_embed,backbone.blocks.0")
    trained = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert "backbone" in trained and "predictor_proj" in trained and "teacher" not in trained
    assert not network.get_parameter("backbone.patch_embed.proj.weight").requires_grad


size = st.integers(6, 16)


@given(t=st.integers(1, 3), h=size, w=size, seed=st.integers(0, 100))
def test_blocks_hide_the_same_share_of_all_frames(t, h, w, seed):
    for (_, ratio), masks in zip(MULTI_BLOCKS, multi_block_masks((t, h, w), [(0, 0, seed), (0, 1, seed)]), strict=True):
        assert masks.shape == (2, t, h, w) and (masks.sum((2, 3)) == round(ratio * h * w)).all()
        assert (masks == masks[:, :1]).all()
    alone, among_others = (multi_block_masks((t, h, w), seeds) for seeds in ([(0, 0, seed)], [(0, 1, 1), (0, 0, seed)]))
    assert all(np.array_equal(a[0], b[1]) for a, b in zip(alone, among_others, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vjepa2"}, "backbone='vjepa2': expected one of vjepa2_tiny"),
        ({"teacher_decay": 1.0}, "teacher_decay=1.0: expected a number from 0 to below 1"),
        ({"predictor_num_heads": 5}, "predictor_num_heads=5 does not divide 24"),
        ({"backbone_args": {"pooling": "attentive"}}, "expected pooling=mean"),
    ],
)
def test_constructor_errors_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        networks.build("pretrain_vjepa2_tiny", **SMALL_JEPA | options)


def test_half_precision_under_autocast_is_close_to_full_precision():
    network, batch = small_network(), make_batch()
    expected = JEPATask(network)(network, batch)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        out = JEPATask(network)(network, SimpleNamespace(video=batch.video.half(), seeds=batch.seeds))
    out["loss"].backward()
    assert out["loss"].dtype == torch.float32 and out["loss"].item() == pytest.approx(expected, rel=0.02)
