"""networks/weights/adapt.py: heads, norms, attention over time, other networks, and checkpoints that do not fit."""

import pytest
import torch
from einops import rearrange

import networks
from networks import weights
from networks.weights.adapt import adapt
from networks.weights.infer_architecture import infer_architecture
from networks.weights.rename_keys import rename_keys
from tests.helpers.foreign_checkpoints import details, make_state, write_checkpoint
from tests.helpers.networks import SMALL, SMALL_MVIT, random_video, randomize

torch.set_num_threads(1)


# ---- heads, norms, attention over time -------------------------------------------------------------------------------


def test_head_of_another_number_of_classes_is_replaced_and_reported(tmp_path):
    path = write_checkpoint("timesformer_divided", tmp_path)
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4, "num_classes": 7})
    initial_head = network.head.weight.clone()
    report = weights.load_pretrained(network, path)
    assert torch.equal(network.head.weight, initial_head)
    text = report.text()
    assert "head of 5 classes, the network has 7: model.head.weight, model.head.bias" in text
    assert "head of 5 classes, the network has 7; as initialized: head.weight, head.bias" in text
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    weights.load_pretrained(network, path)
    assert torch.equal(network.head.weight, make_state("timesformer_divided")["model.head.weight"])
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    initial_head = network.head.weight.clone()
    report = weights.load_pretrained(network, path, head="new")
    assert torch.equal(network.head.weight, initial_head) and "a new head was asked for" in report.text()
    headless = networks.build("timesformer_tiny", **SMALL | {"depth": 4, "num_classes": 0})
    assert "the network has no head" in weights.load_pretrained(headless, path).text()


@pytest.mark.parametrize("name", ["mae_pt", "mae_pytorch", "videomae_pt"])
def test_fc_norm_is_not_taken_from_a_pretraining(name):
    source = rename_keys(make_state(name))
    depth = 4 if name == "mae_pt" else 3
    kwargs = SMALL | {"depth": depth, "cls_token": False, "gelu": "exact"}
    for pooling, is_kept in (("mean", True), ("fc_norm", False)):
        network = networks.build("vivit_tiny", **kwargs, pooling=pooling, pos_embed="sincos")
        loaded, report = adapt(source, network)
        assert torch.equal(loaded["norm.weight"], source.state["norm.weight"]) == is_kept
        assert ("norm.weight" in details(report, "created")) != is_kept


def test_temporal_zero_makes_frames_independent_at_first():
    """Model 3 of ViViT whose attention over time has an output of zero."""
    network = networks.build("vivit_fsa_tiny", **SMALL | {"depth": 4})
    loaded, report = adapt(rename_keys(make_state("mae_pt")), network, temporal="zero")
    network.load_state_dict(loaded)
    assert not loaded["blocks.2.temporal_attn.proj.weight"].any() and loaded["blocks.2.temporal_attn.qkv.weight"].any()
    video = random_video(1, 3, 4, 32, 32)
    changed_video = video.clone()
    changed_video[:, :, 2:] += 1.0

    def first_frame(clip):
        tokens = rearrange(network.patch_embed(clip), "B t n D -> B (t n) D") + network.pos_embed
        for block in network.blocks:
            tokens = block(tokens)
        return tokens[:, :16]

    with torch.no_grad():
        assert torch.equal(first_frame(video), first_frame(changed_video))
        copied, _ = adapt(rename_keys(make_state("mae_pt")), network, temporal="copy")
        network.load_state_dict(copied)
        assert not torch.allclose(first_frame(video), first_frame(changed_video), atol=1e-3)
    assert torch.equal(copied["blocks.1.temporal_attn.qkv.weight"], copied["blocks.1.attn.qkv.weight"])
    assert "zeros: attention over time adds nothing at first" in report.text()


def test_maskfeat_pretraining_starts_fine_tuning_with_the_last_stage_pooled():
    """As SlowFast stores a pre-training: the names of this project, a mask token, and a head for HOG with the norm."""
    kwargs = SMALL_MVIT | {"expand_attn": False}
    strides = [[1, 1, 1], [1, 2, 2]]
    pretrained = randomize(networks.build("mvit_v2_tiny", **kwargs, q_strides=[*strides, [1, 1, 1]]), seed=2)
    state = {key: tensor for key, tensor in pretrained.state_dict().items() if not key.startswith(("head", "norm"))}
    state |= {"mask_token": torch.zeros(1, 1, 8), "hogs.0.weight_x": torch.zeros(3, 1, 3, 3)}
    state |= {"pred_head.transforms.0.0.weight": torch.ones(32), "pred_head.projections.0.weight": torch.ones(108, 32)}
    source = rename_keys(state)
    name, inferred, _ = infer_architecture(source, {"kv_stride": [1, 4, 4]})
    backbone_args = inferred["backbone_args"]
    assert name == "maskfeat_mvit_v2_s" and backbone_args["q_strides"] == [*strides, [1, 1, 1]]
    assert backbone_args["expand_attn"] is False

    classifier = networks.build("mvit_v2_tiny", **kwargs, q_strides=[*strides, [1, 2, 2]], pooling="fc_norm")
    loaded, report = adapt(source, classifier)
    assert details(report, "reshaped") == {f"blocks.3.attn.rel_pos_{axis}": "7 -> 3 distances, linear" for axis in "hw"}
    assert details(report, "created").keys() == {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    assert torch.equal(loaded["blocks.3.attn.qkv.weight"], state["blocks.3.attn.qkv.weight"])
    assert sum("HOG" in detail for detail in details(report, "dropped").values()) == 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": 64, "num_frames": 8},
        {"expand_attn": False, "pooling": "fc_norm"},
        {"depths": [1, 2, 3], "q_strides": [[1, 1, 1], [1, 2, 2], [1, 1, 1]]},
        {"pos_embed": "separable", "residual_pooling": False, "pool_queries": "strided", "expand_attn": False},
        {
            "pos_embed": "separable",
            "residual_pooling": False,
            "pool_queries": "strided",
            "pool_kernel": None,
            "pool_keys": "strided",
            "pool_norm_eps": 1e-5,
        },
    ],
)
def test_infer_architecture_of_mvit_from_shapes(options):
    network = networks.build("mvit_v2_tiny", **SMALL_MVIT | options)
    state = {key.replace("head.", "head.projection."): tensor for key, tensor in network.state_dict().items()}
    _, kwargs, _ = infer_architecture(rename_keys(state), {"kv_stride": [1, 4, 4]})
    assert kwargs == {key: network.kwargs[key] for key in kwargs}
    not_inferred = {"drop_path", "dropout", "gelu", "checkpoint_blocks", "pool_norm_eps", "head_scale"}
    assert network.kwargs.keys() - kwargs.keys() <= not_inferred


@pytest.mark.parametrize("name", ["mvit_v1_tiny", "mvit_v2_tiny"])
def test_adapt_mvit_to_another_size_and_length(name, tmp_path):
    small = randomize(networks.build(name, **SMALL_MVIT | {"image_size": (32, 64)}), seed=3)
    weights.save_network(tmp_path, small, name)
    larger = networks.build(name, **SMALL_MVIT | {"image_size": (64, 96), "num_frames": 8})
    report = weights.load_pretrained(larger, tmp_path)
    assert not details(report, "created")
    reshaped = details(report, "reshaped")
    if name == "mvit_v1_tiny":
        assert reshaped["pos_embed_spatial"] == "1x8x16 -> 1x16x24, bicubic"
        assert reshaped["pos_embed_temporal"] == "2 -> 4 frames, linear"
    else:
        assert reshaped["blocks.0.attn.rel_pos_w"] == "31 -> 47 distances, linear"
        assert reshaped["blocks.0.attn.rel_pos_h"] == "15 -> 31 distances, linear"
    assert torch.isfinite(larger(random_video(1, 3, 8, 64, 96))).all()


# ---- checkpoints that do not fit -------------------------------------------------------------------------------------


def test_load_pretrained_lists_misfits_and_loads_nothing(tmp_path):
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 3, "embed_dim": 48})
    initial_state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        weights.load_pretrained(network, write_checkpoint("timesformer_divided", tmp_path))
    message = str(caught.value)
    assert "does not fit this TimeSformer" in message and str(tmp_path) in message
    assert "cls_token: (1, 1, 32), the network has (1, 1, 48)" in message and "more" in message
    assert all(torch.equal(initial_state[key], tensor) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("entry", "target", "options", "reason"),
    [
        ("timesformer_divided", "vivit_tiny", {}, "a TimeSformer checkpoint cannot fill a ViViT"),
        ("slowfast_mvit_v2", "vivit_tiny", {}, "a SlowFast MViT checkpoint cannot fill a ViViT"),
        ("mae_pt", "mvit_v2_tiny", {}, "a MAE checkpoint cannot fill a MViT"),
        (
            "timesformer_divided",
            "timesformer_tiny",
            {"depth": 3},
            "model.blocks.3.norm1.weight: the network has no blocks.3",
        ),
        ("timesformer_divided", "timesformer_tiny", {"depth": 5}, "blocks.4.norm1.weight: missing in the checkpoint"),
        (
            "timesformer_divided",
            "timesformer_tiny",
            {"attention": "joint"},
            "the network has no blocks.0.temporal_norm1",
        ),
        (
            "mae_pt",
            "timesformer_tiny",
            {"patch_size": 16},
            "patch_embed.proj.weight: (32, 3, 1, 8, 8), the network has",
        ),
    ],
)
def test_adapt_refuses_checkpoints_of_other_networks(entry, target, options, reason):
    kwargs = SMALL_MVIT if target.startswith("mvit") else SMALL | {"depth": 4}
    network = networks.build(target, **kwargs | options)
    with pytest.raises(ValueError) as caught:
        adapt(rename_keys(make_state(entry)), network)
    assert reason in str(caught.value)


def test_load_pretrained_refuses_another_number_of_heads(tmp_path):
    weights.save_network(tmp_path, networks.build("vivit_tiny", **SMALL), "vivit_tiny")
    with pytest.raises(ValueError, match="the checkpoint has num_heads=4, the network num_heads=8"):
        weights.load_pretrained(networks.build("vivit_tiny", **SMALL | {"num_heads": 8}), tmp_path)


def test_adapt_notes_another_activation():
    network = networks.build("vivit_tiny", **SMALL | {"depth": 4})
    _, report = adapt(rename_keys(make_state("mae_pt")), network)
    assert "gelu is exact in the checkpoint, tanh in the network: its outputs differ" in report.text()


@pytest.mark.parametrize("options", [{"inflation": "middle"}, {"temporal": "none"}, {"head": "old"}])
def test_adapt_names_invalid_options(options):
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        adapt(rename_keys(make_state("mae_pt")), network, **options)


def test_labels_that_are_numbers_do_not_replace_the_head(tmp_path):
    network = randomize(networks.build("vivit_tiny", **SMALL | {"num_classes": 3}), seed=3)
    weights.save_network(tmp_path, network, "vivit_tiny", {"id2label": {"0": "jump", "1": "run", "2": "climb"}})
    loaded = networks.build("vivit_tiny", **SMALL | {"num_classes": 3})
    weights.load_pretrained(loaded, tmp_path, ["0", "1", "2"])
    assert torch.equal(loaded.head.weight, network.head.weight)
    loaded = networks.build("vivit_tiny", **SMALL | {"num_classes": 3})
    weights.load_pretrained(loaded, tmp_path, ["a", "b", "c"])
    assert not torch.equal(loaded.head.weight, network.head.weight)
