"""networks/weights/resize.py: position embeddings of other sizes and lengths, and inflated kernels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import networks
from networks import weights
from networks.pos_embed import resample_1d, resample_pos_embed, sincos_pos_embed
from networks.weights.adapt import adapt
from networks.weights.rename_keys import rename_keys
from networks.weights.resize import inflate
from tests.helpers.foreign_checkpoints import details, make_state
from tests.helpers.networks import SMALL, randomize

torch.set_num_threads(1)

SIDE = st.integers(1, 6)


def ramps(t, h, w):
    """Return embeddings (1, t h w, 3) whose columns are the frame, the row and the column, from 0 to 1."""
    axes = [torch.linspace(0, 1, size) if size > 1 else torch.zeros(1) for size in (t, h, w)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(1, t * h * w, 3)


@given(SIDE, SIDE, SIDE, SIDE, SIDE, SIDE)
def test_resample_pos_embed_does_not_mix_axes(t, h, w, new_t, new_h, new_w):
    """A ramp along one axis stays a ramp along it and constant along the others, so nothing is transposed."""
    resampled = resample_pos_embed(ramps(t, h, w), (t, h, w), (new_t, new_h, new_w))
    assert resampled.shape == (1, new_t * new_h * new_w, 3)
    grid = resampled.reshape(new_t, new_h, new_w, 3)
    for axis in range(3):
        along = grid[..., axis].movedim(axis, 0).flatten(1)
        torch.testing.assert_close(along, along[:, :1].expand_as(along), atol=1e-5, rtol=0)
        assert (along[1:, 0] >= along[:-1, 0] - 1e-5).all()


@given(SIDE, SIDE, SIDE)
def test_resampling_to_the_same_grid_changes_no_bit(t, h, w):
    pos_embed = torch.randn(1, t * h * w, 4)
    assert torch.equal(resample_pos_embed(pos_embed, (t, h, w), (t, h, w)), pos_embed)
    assert torch.equal(resample_1d(pos_embed, t * h * w), pos_embed)


@given(old_length=st.integers(1, 9), new_length=st.integers(1, 9))
def test_resample_1d_keeps_constants(old_length, new_length):
    actual = resample_1d(torch.full((1, old_length, 2), 3.0), new_length)
    torch.testing.assert_close(actual, torch.full((1, new_length, 2), 3.0))


@pytest.mark.parametrize("image_size", [(16, 32), (32, 16), (64, 48)])
def test_adapt_timesformer_to_another_size_and_length(image_size):
    state = make_state("timesformer_divided")
    state["model.pos_embed"][0, 1:, 0] = torch.arange(4.0).repeat_interleave(4)  # the row in the 4x4 grid
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4, "num_frames": 8, "image_size": image_size})
    loaded, report = adapt(rename_keys(state), network)
    h, w = image_size[0] // 8, image_size[1] // 8
    rows = loaded["pos_embed"][0, 1:, 0].reshape(h, w)
    torch.testing.assert_close(rows, rows[:, :1].expand(h, w), atol=1e-4, rtol=0)
    assert rows[-1, 0] > rows[0, 0] + 1
    assert torch.equal(loaded["pos_embed"][:, 0], state["model.pos_embed"][:, 0])
    assert f"1x4x4 -> 1x{h}x{w}" in details(report, "reshaped")["pos_embed"]
    new_time, old_time = loaded["time_embed"][0], state["model.time_embed"][0]
    assert torch.equal(new_time[0], old_time[0]) and torch.equal(new_time[-1], old_time[-1])
    torch.testing.assert_close(new_time[1], 0.75 * old_time[0] + 0.25 * old_time[1])
    assert details(report, "reshaped")["time_embed"] == "4 -> 8 frames, linear"


def test_pos_embed_of_clips_needs_source_grid_unless_the_grid_is_the_same():
    source = rename_keys(make_state("scenic_vivit_joint"))
    network = networks.build("vivit_tiny", **SMALL | {"depth": 3, "num_frames": 8, "image_size": (32, 48)})
    with pytest.raises(
        ValueError, match=r"pos_embed: 32 positions could have several grids: give source_grid=\[t, h, w\]"
    ):
        adapt(source, network)
    with pytest.raises(ValueError, match="32 positions do not fill a grid of 2 x 4 x 5"):
        adapt(source, network, source_grid=[2, 4, 5])
    loaded, report = adapt(source, network, source_grid=[2, 4, 4])
    expected = resample_pos_embed(source.state["pos_embed"][:, 1:], (2, 4, 4), (4, 4, 6))
    assert torch.equal(loaded["pos_embed"][:, 1:], expected)
    assert "2x4x4 -> 4x4x6, bicubic, linear over frames" in details(report, "reshaped")["pos_embed"]


def test_saved_networks_tell_their_grid(tmp_path):
    small = randomize(networks.build("vivit_tiny", **SMALL | {"image_size": (16, 32)}), seed=1)
    weights.save_network(tmp_path, small, "vivit_tiny")
    longer = networks.build("vivit_tiny", **SMALL | {"image_size": (32, 48), "num_frames": 8})
    report = weights.load_pretrained(longer, tmp_path)
    assert "2x2x4 -> 4x4x6" in details(report, "reshaped")["pos_embed"]
    assert details(report, "reshaped").keys() == {"pos_embed"} and not details(report, "created")
    assert torch.equal(longer.head.weight, small.head.weight)


def test_pos_embed_of_images_is_tiled_over_frames():
    source = rename_keys(make_state("mae_pt"))
    network = networks.build("vivit_tiny", **SMALL | {"depth": 4})
    loaded, _ = adapt(source, network)
    image = source.state["pos_embed"]
    assert torch.equal(loaded["pos_embed"], torch.cat([image[:, :1], image[:, 1:], image[:, 1:]], dim=1))
    without_cls = networks.build("videomae_tiny", **SMALL | {"depth": 4, "pos_embed": "learned"})
    loaded, report = adapt(source, without_cls)
    assert torch.equal(loaded["pos_embed"], torch.cat([image[:, 1:], image[:, 1:]], dim=1))
    assert "class token left out" in details(report, "reshaped")["pos_embed"]
    assert details(report, "dropped")["cls_token"] == "the network has no class token"


def test_fixed_pos_embed_becomes_learned_pos_embed():
    for name, expected in (
        ("mae_pytorch", sincos_pos_embed(16, 32).repeat(1, 2, 1)),
        ("videomae_ft", sincos_pos_embed(32, 32)),
    ):
        network = networks.build("vivit_tiny", **SMALL | {"depth": 3})
        loaded, report = adapt(rename_keys(make_state(name)), network)
        assert torch.equal(loaded["pos_embed"][:, 1:], expected) and not loaded["pos_embed"][:, 0].any()
        assert "sine-cosine" in details(report, "created")["pos_embed"]


def test_learned_pos_embed_is_dropped_for_a_fixed_one():
    network = networks.build("vivit_tiny", **SMALL | {"depth": 3, "pos_embed": "sincos"})
    _, report = adapt(rename_keys(make_state("scenic_vivit_joint")), network)
    assert details(report, "dropped") == {
        "Transformer/posembed_input/pos_embedding": "the position embeddings of the network are fixed"
    }


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4])
def test_inflated_kernel_gives_the_outputs_of_the_image_on_a_still_clip(num_frames):
    kernel = torch.randn(6, 3, 1, 8, 8)
    image = torch.randn(2, 3, 1, 8, 8)
    expected = torch.nn.functional.conv3d(image, kernel)
    for inflation in ("central", "average"):
        inflated = inflate(kernel, num_frames, inflation)
        assert inflated.shape == (6, 3, num_frames, 8, 8)
        actual = torch.nn.functional.conv3d(image.expand(-1, -1, num_frames, -1, -1), inflated)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    central = inflate(kernel, num_frames, "central")
    assert torch.equal(central[:, :, num_frames // 2], kernel[:, :, 0])
    assert central.count_nonzero() == kernel.count_nonzero()
