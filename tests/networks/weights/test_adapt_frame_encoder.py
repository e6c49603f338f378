"""Image encoders of timm on frames: strict loading from timm and from folders of this project, and parity with timm."""

import json

import pytest
import timm
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file

import networks
from networks import weights
from tests.helpers.networks import DINOV3, SMALL_FRAMES, SMALL_VIT, random_video, randomize

ENCODERS = [
    "vit_tiny_patch16_224",
    DINOV3,  # rotary positions, registers, LayerScale
    "vit_base_patch16_siglip_224",  # no class token, attention pooling
    "vit_base_patch14_reg4_dinov2",  # registers without positions
    "vit_base_patch16_clip_224",  # norm before the blocks
]


def save_timm(folder, encoder, num_classes=7, **options):
    """Write a folder as those of timm on the hub, and return the network."""
    reference = timm.create_model(encoder, num_classes=num_classes, **{"img_size": 32} | SMALL_VIT | options)
    randomize(reference, seed=1)
    folder.mkdir(exist_ok=True)
    save_file(
        {key: tensor.contiguous() for key, tensor in reference.state_dict().items()}, folder / "model.safetensors"
    )
    config = {"architecture": encoder, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "config.json").write_text(json.dumps(config))
    return reference


@pytest.mark.parametrize("pooling", ["mean", "attentive"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_frames_are_encoded_as_by_timm(encoder, pooling, tmp_path):
    reference = save_timm(tmp_path, encoder)
    network = randomize(networks.build("frame_encoder_tiny", **SMALL_FRAMES, encoder=encoder, pooling=pooling), seed=2)
    report = weights.load_pretrained(network, tmp_path)
    assert "trained on inputs normalized with mean [0.5, 0.5, 0.5] and std [0.25, 0.25, 0.25]" in report.notes[-1]
    added = {"head"} | ({"temporal_pos_embed", "pooler"} if pooling == "attentive" else set())
    assert {key.split(".")[0] for key in report.keys_as_initialized()} == added
    sources = [key for record in report.records for key in record.sources]
    assert sorted(sources) == sorted(reference.state_dict())
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        tokens = reference.forward_features(rearrange(video, "B C T H W -> (B T) C H W"))
        if pooling == "mean":
            features = reference.forward_head(tokens, pre_logits=True)
            features = rearrange(features, "(B T) D -> B T D", B=2).mean(1)
            torch.testing.assert_close(network.forward_features(video), features, atol=1e-5, rtol=1e-5)
        tokens = rearrange(tokens[:, reference.num_prefix_tokens :], "(B T) n D -> B (T n) D", B=2)
        torch.testing.assert_close(network.forward_tokens(video), tokens, atol=1e-5, rtol=1e-5)


def test_positions_are_resampled_as_by_timm(tmp_path):
    save_timm(tmp_path / "timm", "vit_tiny_patch16_224")
    network = networks.build("frame_encoder_tiny", **SMALL_FRAMES | {"image_size": (32, 48)})
    report = weights.load_pretrained(network, tmp_path / "timm")
    assert [record.target for record in report.with_status("reshaped")] == ["backbone.pos_embed"]
    options = dict(num_classes=7, img_size=32, dynamic_img_size=True)
    reference = timm.create_model("vit_tiny_patch16_224", **options, **SMALL_VIT)
    reference.load_state_dict(load_file(tmp_path / "timm" / "model.safetensors"))
    with torch.no_grad():
        images = random_video(2, 3, 32, 48)
        expected = reference.eval().forward_features(images)
        torch.testing.assert_close(network.backbone.forward_features(images), expected, atol=1e-5, rtol=1e-5)


def test_missing_and_unknown_keys_are_listed(tmp_path):
    save_timm(tmp_path, "vit_tiny_patch16_224")
    network = networks.build("frame_encoder_tiny", **SMALL_FRAMES, encoder=DINOV3)
    before = network.state_dict()["backbone.norm.weight"].clone()
    with pytest.raises(ValueError, match=f"does not fit encoder={DINOV3}") as error:
        weights.load_pretrained(network, tmp_path)
    assert "backbone.reg_token: missing in the checkpoint" in str(error.value)
    assert "and" in str(error.value) and torch.equal(network.state_dict()["backbone.norm.weight"], before)
    with pytest.raises(ValueError, match="inflation: an image encoder on frames takes no such option"):
        weights.load_pretrained(network, tmp_path, inflation="central")


def test_own_folder_is_loaded_and_converted_to_other_frames_and_classes(tmp_path):
    options = SMALL_FRAMES | {"temporal_depth": 2}
    network = randomize(networks.build("frame_encoder_tiny", **options), seed=3)
    weights.save_network(tmp_path, network, "frame_encoder_tiny", {"id2label": {str(i): f"c{i}" for i in range(5)}})
    same, config, report = weights.convert(tmp_path)
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(same(video), network(video)) and report.count("mapped") == len(network.state_dict())
    longer, config, report = weights.convert(tmp_path, num_frames=6, num_classes=3)
    assert longer(random_video(1, 3, 6, 32, 32)).shape == (1, 3) and "id2label" not in config["extra"]
    assert [record.target for record in report.with_status("reshaped")] == ["temporal_pos_embed"]
    assert report.keys_as_initialized() == ["head.weight", "head.bias"]
    other = networks.build("frame_encoder_tiny", **options)
    initial = other.head.weight.clone()
    weights.load_pretrained(other, tmp_path, labels=list("abcde"))
    assert torch.equal(other.head.weight, initial), "classes of other names"


def test_image_models_with_another_activation_are_for_frames_only(tmp_path, monkeypatch):
    reference = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, act_layer="silu", **SMALL_VIT)
    reference.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    create_model = timm.create_model
    frames = networks.build("frame_encoder_tiny", **SMALL_FRAMES)
    monkeypatch.setattr(timm, "create_model", lambda *names, **kw: reference if names else create_model(**kw))
    weights.load_pretrained(frames, "timm:vit_silu")
    with pytest.raises(ValueError, match="hidden_act='SiLU': networks here use GELU only"):
        weights.load_pretrained(networks.build("timesformer_tiny", num_classes=3), "timm:vit_silu")


def test_unknown_encoder_is_one_clear_error():
    for encoder, message in {
        "vit_no_such": "encoder=vit_no_such: timm cannot build it",
        "resnet18": "resnet18",
        "tnt_s_patch16_224": "which TNT is not",
        "xcit_nano_12_p16_224": "which Xcit is not",
        "cait_xxs24_224": "which Cait is not",
        "vit_base_patch16_xp_224": "which VisionTransformer is not",
    }.items():
        with pytest.raises(ValueError, match=message):
            networks.build("dinov2_b", num_classes=2, encoder=encoder)
    with pytest.raises(ValueError, match="temporal_depth: expected 0 with pooling='attentive'"):
        networks.build("frame_encoder_tiny", num_classes=2, temporal_depth=2, pooling="attentive")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 36}, "image_size=36x36: expected multiples of 8x8, the patch size of encoder=vit_tiny"),
        ({"temporal_depth": -1}, "temporal_depth=-1: expected a whole number >= 0"),
        ({"checkpoint_blocks": "all"}, "checkpoint_blocks='all': expected a whole number >= 0"),
        ({"drop_path": 1.5}, "drop_path=1.5: must lie in"),
    ],
)
def test_argument_out_of_range_is_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        networks.build("frame_encoder_tiny", **SMALL_FRAMES | options)


def test_encoder_that_norms_after_pooling_is_pooled_by_attention(tmp_path):
    save_timm(tmp_path, "beit_base_patch16_224")
    options = SMALL_FRAMES | {"encoder": "beit_base_patch16_224", "pooling": "attentive"}
    report = weights.load_pretrained(networks.build("frame_encoder_tiny", **options), tmp_path)
    assert {key.split(".")[0] for key in report.keys_as_initialized()} == {"head", "temporal_pos_embed", "pooler"}


def test_weights_of_an_encoder_that_computes_something_else_are_refused_or_noted(tmp_path):
    options = SMALL_FRAMES | {"encoder_args": SMALL_FRAMES["encoder_args"] | {"num_heads": 2}}
    weights.save_network(tmp_path / "own", networks.build("frame_encoder_tiny", **SMALL_FRAMES), "frame_encoder_tiny")
    with pytest.raises(ValueError, match="has num_heads=4, the network num_heads=2"):
        weights.load_pretrained(networks.build("frame_encoder_tiny", **options), tmp_path / "own")
    save_timm(tmp_path / "timm", "vit_base_patch16_clip_quickgelu_224")
    network = networks.build("frame_encoder_tiny", **SMALL_FRAMES | {"encoder": "vit_base_patch16_clip_224"})
    report = weights.load_pretrained(network, tmp_path / "timm")
    assert report.notes[0] == (
        "encoder is vit_base_patch16_clip_quickgelu_224 in the checkpoint, vit_base_patch16_clip_224 in the network: "
        "its outputs may differ"
    )
    with pytest.raises(ValueError, match="head='nonsense': expected one of auto, new"):
        weights.load_pretrained(network, tmp_path / "timm", head="nonsense")


def test_positions_of_a_grid_of_another_shape_are_resampled(tmp_path):
    wide = randomize(networks.build("frame_encoder_tiny", **SMALL_FRAMES | {"image_size": (16, 64)}), seed=4)
    weights.save_network(tmp_path, wide, "frame_encoder_tiny")
    for image_size, detail in {
        (64, 16): "2x8 -> 8x2 positions, bicubic",
        (32, 32): "2x8 -> 4x4 positions, bicubic",
        (32, 64): "2x8 -> 4x8 positions, bicubic",
    }.items():
        network = networks.build("frame_encoder_tiny", **SMALL_FRAMES | {"image_size": image_size})
        report = weights.load_pretrained(network, tmp_path)
        assert [record.detail for record in report.with_status("reshaped")] == [detail]
