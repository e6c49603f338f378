"""networks/weights/adapt.py: other frames, sizes, classes and pre-trainings, and what does not fit."""

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

import networks
from networks import weights
from networks.pos_embed import resize_grid, resize_line, sincos_table
from networks.weights.adapt import inflate, transfer
from networks.weights.infer_architecture import architecture
from networks.weights.rename_keys import translate
from tests.helpers.foreign_checkpoints import make_state, write_checkpoint
from tests.helpers.networks import SMALL, SMALL_MVIT, random_video, randomise

torch.set_num_threads(1)

SIDE = st.integers(1, 6)


def rows_of(report, what):
    return {row.target or row.sources[0]: row.how for row in report.rows if row.what == what}


# ---- positions -------------------------------------------------------------------------------------------------------


def ramps(t, h, w):
    """A table whose first three columns are the frame, the row and the column, from 0 to 1."""
    line = [torch.linspace(0, 1, size) if size > 1 else torch.zeros(1) for size in (t, h, w)]
    return torch.stack(torch.meshgrid(*line, indexing="ij"), -1).reshape(1, t * h * w, 3)


@given(SIDE, SIDE, SIDE, SIDE, SIDE, SIDE)
def test_resized_positions_keep_their_axes(t, h, w, new_t, new_h, new_w):
    """A ramp along one axis stays one along it and is constant along the others: nothing is transposed."""
    table = resize_grid(ramps(t, h, w), (t, h, w), (new_t, new_h, new_w))
    assert table.shape == (1, new_t * new_h * new_w, 3)
    grid = table.reshape(new_t, new_h, new_w, 3)
    for axis in range(3):
        along = grid[..., axis].movedim(axis, 0).flatten(1)
        torch.testing.assert_close(along, along[:, :1].expand_as(along), atol=1e-5, rtol=0)
        assert (along[1:, 0] >= along[:-1, 0] - 1e-5).all()


@given(SIDE, SIDE, SIDE)
def test_the_same_grid_is_left_bit_equal(t, h, w):
    table = torch.randn(1, t * h * w, 4)
    assert torch.equal(resize_grid(table, (t, h, w), (t, h, w)), table)
    assert torch.equal(resize_line(table, t * h * w), table)


@given(st.integers(1, 9), st.integers(1, 9))
def test_a_constant_stays_constant(old, new):
    torch.testing.assert_close(resize_line(torch.full((1, old, 2), 3.0), new), torch.full((1, new, 2), 3.0))


@pytest.mark.parametrize("size", [(16, 32), (32, 16), (64, 48)])
def test_timesformer_at_another_size_and_length(size):
    state = make_state("timesformer_divided")
    state["model.pos_embed"][0, 1:, 0] = torch.arange(4.0).repeat_interleave(4)  # the row of the 4x4 grid
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4, "num_frames": 8, "image_size": size})
    loaded, report = transfer(translate(state), network)
    h, w = size[0] // 8, size[1] // 8
    rows = loaded["pos_embed"][0, 1:, 0].reshape(h, w)
    torch.testing.assert_close(rows, rows[:, :1].expand(h, w), atol=1e-4, rtol=0)
    assert rows[-1, 0] > rows[0, 0] + 1
    assert torch.equal(loaded["pos_embed"][:, 0], state["model.pos_embed"][:, 0])
    assert f"1x4x4 -> 1x{h}x{w}" in rows_of(report, "reshaped")["pos_embed"]
    time, old = loaded["time_embed"][0], state["model.time_embed"][0]
    assert torch.equal(time[0], old[0]) and torch.equal(time[-1], old[-1])
    torch.testing.assert_close(time[1], 0.75 * old[0] + 0.25 * old[1])
    assert rows_of(report, "reshaped")["time_embed"] == "4 -> 8 frames, linear"


def test_positions_of_a_clip_need_their_grid_unless_it_is_the_same():
    source = translate(make_state("scenic_vivit_joint"))
    network = networks.build("vivit_tiny", **SMALL | {"depth": 3, "num_frames": 8, "image_size": (32, 48)})
    with pytest.raises(ValueError, match=r"pos_embed: 32 positions could be of several grids; say which: source_grid"):
        transfer(source, network)
    with pytest.raises(ValueError, match="32 positions are not those of 2 x 4 x 5"):
        transfer(source, network, source_grid=[2, 4, 5])
    loaded, report = transfer(source, network, source_grid=[2, 4, 4])
    expected = resize_grid(source.state["pos_embed"][:, 1:], (2, 4, 4), (4, 4, 6))
    assert torch.equal(loaded["pos_embed"][:, 1:], expected)
    assert "2x4x4 -> 4x4x6, bicubic, linear over frames" in rows_of(report, "reshaped")["pos_embed"]


def test_own_folders_know_their_grid(tmp_path):
    small = randomise(networks.build("vivit_tiny", **SMALL | {"image_size": (16, 32)}), seed=1)
    weights.save(tmp_path, small, "vivit_tiny")
    longer = networks.build("vivit_tiny", **SMALL | {"image_size": (32, 48), "num_frames": 8})
    report = weights.initialise(longer, tmp_path)
    assert "2x2x4 -> 4x4x6" in rows_of(report, "reshaped")["pos_embed"]
    assert rows_of(report, "reshaped").keys() == {"pos_embed"} and not rows_of(report, "created")
    assert torch.equal(longer.head.weight, small.head.weight)


def test_image_positions_are_tiled_over_frames():
    source = translate(make_state("mae_pt"))
    network = networks.build("vivit_tiny", **SMALL | {"depth": 4})
    loaded, _ = transfer(source, network)
    space = source.state["pos_embed"]
    assert torch.equal(loaded["pos_embed"], torch.cat([space[:, :1], space[:, 1:], space[:, 1:]], dim=1))
    without = networks.build("videomae_tiny", **SMALL | {"depth": 4, "positions": "learned"})
    loaded, report = transfer(source, without)
    assert torch.equal(loaded["pos_embed"], torch.cat([space[:, 1:], space[:, 1:]], dim=1))
    assert "class token left out" in rows_of(report, "reshaped")["pos_embed"]
    assert rows_of(report, "dropped")["cls_token"] == "the network has no class token"


def test_fixed_positions_of_the_source_become_learned_ones():
    for name, table in (("mae_pytorch", sincos_table(16, 32).repeat(1, 2, 1)), ("videomae_ft", sincos_table(32, 32))):
        network = networks.build("vivit_tiny", **SMALL | {"depth": 3})
        loaded, report = transfer(translate(make_state(name)), network)
        assert torch.equal(loaded["pos_embed"][:, 1:], table) and not loaded["pos_embed"][:, 0].any()
        assert "sine-cosine" in rows_of(report, "created")["pos_embed"]


def test_learned_positions_are_dropped_where_the_networks_are_fixed():
    network = networks.build("vivit_tiny", **SMALL | {"depth": 3, "positions": "sincos"})
    _, report = transfer(translate(make_state("scenic_vivit_joint")), network)
    assert rows_of(report, "dropped") == {
        "Transformer/posembed_input/pos_embedding": "the network's positions are fixed"
    }


# ---- kernels, heads, norms, attention over time ----------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_inflated_kernels_see_a_still_clip_as_the_image(frames):
    kernel = torch.randn(6, 3, 1, 8, 8)
    still = torch.randn(2, 3, 1, 8, 8)
    image = torch.nn.functional.conv3d(still, kernel)
    for inflation in ("central", "average"):
        inflated = inflate(kernel, frames, inflation)
        assert inflated.shape == (6, 3, frames, 8, 8)
        clip = torch.nn.functional.conv3d(still.expand(-1, -1, frames, -1, -1), inflated)
        torch.testing.assert_close(clip, image, atol=1e-4, rtol=0)
    central = inflate(kernel, frames, "central")
    assert torch.equal(central[:, :, frames // 2], kernel[:, :, 0])
    assert central.count_nonzero() == kernel.count_nonzero()


def test_another_label_set_gets_a_new_head_and_the_report_says_so(tmp_path):
    file = write_checkpoint("timesformer_divided", tmp_path)
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4, "num_classes": 7})
    before = network.head.weight.clone()
    report = weights.initialise(network, file)
    assert torch.equal(network.head.weight, before)
    text = report.text()
    assert "head of 5 classes, the network has 7: model.head.weight, model.head.bias" in text
    assert "head of 5 classes, the network has 7; new, as initialised: head.weight, head.bias" in text
    same = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    weights.initialise(same, file)
    assert torch.equal(same.head.weight, make_state("timesformer_divided")["model.head.weight"])
    fresh = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    before = fresh.head.weight.clone()
    report = weights.initialise(fresh, file, head="new")
    assert torch.equal(fresh.head.weight, before) and "a new head was asked for" in report.text()
    headless = networks.build("timesformer_tiny", **SMALL | {"depth": 4, "num_classes": 0})
    assert "the network has no head" in weights.initialise(headless, file).text()


@pytest.mark.parametrize("name", ["mae_pt", "mae_pytorch", "videomae_pt"])
def test_a_norm_after_pooling_starts_fresh_from_a_pretraining(name):
    source = translate(make_state(name))
    depth = 4 if name == "mae_pt" else 3
    settings = SMALL | {"depth": depth, "cls_token": False, "gelu": "exact"}
    for pooling, kept in (("mean", True), ("fc_norm", False)):
        network = networks.build("vivit_tiny", **settings, pooling=pooling, positions="sincos")
        loaded, report = transfer(source, network)
        assert torch.equal(loaded["norm.weight"], source.state["norm.weight"]) == kept
        assert ("norm.weight" in rows_of(report, "created")) != kept


def test_attention_over_time_that_adds_nothing_at_first():
    """Model 3 with an output of zero: each frame is then seen by itself."""
    network = networks.build("vivit_fsa_tiny", **SMALL | {"depth": 4})
    loaded, report = transfer(translate(make_state("mae_pt")), network, temporal="zero")
    network.load_state_dict(loaded)
    assert not loaded["blocks.2.temporal_attn.proj.weight"].any() and loaded["blocks.2.temporal_attn.qkv.weight"].any()
    video = random_video(1, 3, 4, 32, 32)
    changed = video.clone()
    changed[:, :, 2:] += 1.0

    def first_frame(clip):
        tokens = rearrange(network.patch_embed(clip), "B t n D -> B (t n) D") + network.pos_embed
        for block in network.blocks:
            tokens = block(tokens)
        return tokens[:, :16]

    with torch.no_grad():
        assert torch.equal(first_frame(video), first_frame(changed))
        copied, _ = transfer(translate(make_state("mae_pt")), network, temporal="copy")
        network.load_state_dict(copied)
        assert not torch.allclose(first_frame(video), first_frame(changed), atol=1e-3)
    assert torch.equal(copied["blocks.1.temporal_attn.qkv.weight"], copied["blocks.1.attn.qkv.weight"])
    assert "zeros: attention over time adds nothing at first" in report.text()


def test_maskfeat_pretraining_starts_fine_tuning_with_stage_4_pooled_again():
    """As SlowFast keeps the pre-training: our names, a mask token and a head for HOG that holds the norm."""
    sizes = SMALL_MVIT | {"width_change": "mlp"}
    strides = [[1, 1, 1], [1, 2, 2]]
    before = randomise(networks.build("mvit_v2_tiny", **sizes, query_strides=[*strides, [1, 1, 1]]), seed=2)
    state = {key: tensor for key, tensor in before.state_dict().items() if not key.startswith(("head", "norm"))}
    state |= {"mask_token": torch.zeros(1, 1, 8), "hogs.0.weight_x": torch.zeros(3, 1, 3, 3)}
    state |= {"pred_head.transforms.0.0.weight": torch.ones(32), "pred_head.projections.0.weight": torch.ones(108, 32)}
    source = translate(state)
    name, kwargs, _ = architecture(source, {"key_stride": [1, 4, 4]})
    args = kwargs["backbone_args"]
    assert name == "maskfeat_mvit_v2_s" and args["query_strides"] == [*strides, [1, 1, 1]]
    assert args["width_change"] == "mlp"

    after = networks.build("mvit_v2_tiny", **sizes, query_strides=[*strides, [1, 2, 2]], pooling="fc_norm")
    loaded, report = transfer(source, after)
    assert rows_of(report, "reshaped") == {f"blocks.3.attn.rel_pos_{axis}": "7 -> 3 distances, linear" for axis in "hw"}
    assert rows_of(report, "created").keys() == {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    assert torch.equal(loaded["blocks.3.attn.qkv.weight"], state["blocks.3.attn.qkv.weight"])
    assert sum("HOG" in how for how in rows_of(report, "dropped").values()) == 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": 64, "num_frames": 8},
        {"width_change": "mlp", "pooling": "fc_norm"},
        {"depths": [1, 2, 3], "query_strides": [[1, 1, 1], [1, 2, 2], [1, 1, 1]]},
        {"positions": "separable", "residual_pooling": False, "pool_queries": "strided", "width_change": "mlp"},
        {"positions": "separable", "residual_pooling": False, "pool_queries": "strided", "pool_kernel": None,
         "pool_keys": "strided", "pool_norm_eps": 1e-5},
    ],
)  # fmt: skip
def test_the_shapes_tell_which_mvit_it_is(options):
    network = networks.build("mvit_v2_tiny", **SMALL_MVIT | options)
    state = {key.replace("head.", "head.projection."): tensor for key, tensor in network.state_dict().items()}
    _, kwargs, _ = architecture(translate(state), {"key_stride": [1, 4, 4]})
    assert kwargs == {key: network.kwargs[key] for key in kwargs}
    unseen = {"drop_path", "dropout", "gelu", "checkpoint_blocks", "pool_norm_eps", "head_scale"}
    assert network.kwargs.keys() - kwargs.keys() <= unseen


@pytest.mark.parametrize("name", ["mvit_v1_tiny", "mvit_v2_tiny"])
def test_mvit_at_another_size_and_length(name, tmp_path):
    small = randomise(networks.build(name, **SMALL_MVIT | {"image_size": (32, 64)}), seed=3)
    weights.save(tmp_path, small, name)
    larger = networks.build(name, **SMALL_MVIT | {"image_size": (64, 96), "num_frames": 8})
    report = weights.initialise(larger, tmp_path)
    assert not rows_of(report, "created")
    reshaped = rows_of(report, "reshaped")
    if name == "mvit_v1_tiny":
        assert reshaped["pos_embed_spatial"] == "1x8x16 -> 1x16x24, bicubic"
        assert reshaped["pos_embed_temporal"] == "2 -> 4 frames, linear"
    else:
        assert reshaped["blocks.0.attn.rel_pos_w"] == "31 -> 47 distances, linear"
        assert reshaped["blocks.0.attn.rel_pos_h"] == "15 -> 31 distances, linear"
    assert torch.isfinite(larger(random_video(1, 3, 8, 64, 96))).all()


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_misfits_are_listed_and_nothing_is_loaded(tmp_path):
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 3, "width": 48})
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        weights.initialise(network, write_checkpoint("timesformer_divided", tmp_path))
    message = str(caught.value)
    assert "does not fit this TimeSformer" in message and str(tmp_path) in message
    assert "cls_token: (1, 1, 32), the network has (1, 1, 48)" in message and "more" in message
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


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
def test_checkpoints_of_something_else(entry, target, options, reason):
    settings = SMALL_MVIT if target.startswith("mvit") else SMALL | {"depth": 4}
    network = networks.build(target, **settings | options)
    with pytest.raises(ValueError) as caught:
        transfer(translate(make_state(entry)), network)
    assert reason in str(caught.value)


def test_another_number_of_heads_is_refused_where_the_file_tells(tmp_path):
    weights.save(tmp_path, networks.build("vivit_tiny", **SMALL), "vivit_tiny")
    with pytest.raises(ValueError, match="its attention has heads=4, the network heads=8"):
        weights.initialise(networks.build("vivit_tiny", **SMALL | {"heads": 8}), tmp_path)


def test_another_activation_is_noted():
    network = networks.build("vivit_tiny", **SMALL | {"depth": 4})
    _, report = transfer(translate(make_state("mae_pt")), network)
    assert "gelu is exact in the checkpoint and tanh here" in report.text()


@pytest.mark.parametrize("options", [{"inflation": "middle"}, {"temporal": "none"}, {"head": "old"}])
def test_unknown_options_are_named(options):
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        transfer(translate(make_state("mae_pt")), network, **options)


def test_labels_that_are_numbers_are_no_other_names(tmp_path):
    network = randomise(networks.build("vivit_tiny", **SMALL | {"num_classes": 3}), seed=3)
    weights.save(tmp_path, network, "vivit_tiny", {"id2label": {"0": "jump", "1": "run", "2": "climb"}})
    again = networks.build("vivit_tiny", **SMALL | {"num_classes": 3})
    weights.initialise(again, tmp_path, ["0", "1", "2"])
    assert torch.equal(again.head.weight, network.head.weight)
    again = networks.build("vivit_tiny", **SMALL | {"num_classes": 3})
    weights.initialise(again, tmp_path, ["a", "b", "c"])
    assert not torch.equal(again.head.weight, network.head.weight)
