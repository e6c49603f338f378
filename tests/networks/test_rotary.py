"""Rotary positions against complex numbers, and what they must not change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from networks.rotary import RotaryEmbedding, rotary_tables, token_positions
from tests.helpers.networks import random_video

sizes = st.integers(1, 5)


def rotate_as_complex(heads, positions, head_dim):
    """(N, d), (3, N) -> (N, d): each axis turns its pairs of neighboring dimensions (RoFormer, section 3.2.2)."""
    axis_dim = 2 * (head_dim // 3 // 2)
    parts = []
    for axis in range(3):
        part = torch.view_as_complex(heads[:, axis * axis_dim : (axis + 1) * axis_dim].reshape(len(heads), -1, 2))
        frequency = 10000.0 ** (-2 * torch.arange(axis_dim // 2, dtype=torch.float64) / axis_dim)
        angle = positions[axis][:, None] * frequency
        parts.append(torch.view_as_real(part * torch.polar(torch.ones_like(angle), angle)).flatten(1))
    return torch.cat([*parts, heads[:, 3 * axis_dim :]], dim=1)


@given(t=sizes, h=sizes, w=sizes, head_dim=st.sampled_from([6, 8, 20, 64, 80]), ref_grid_size=st.sampled_from([0, 16]))
def test_interleaved_rotation_equals_complex_multiplication(t, h, w, head_dim, ref_grid_size):
    positions = token_positions((t, h, w), ref_grid_size)
    heads = random_video(t * h * w, head_dim).double()
    rope = RotaryEmbedding((t, h, w), head_dim, "interleaved", ref_grid_size)
    expected = rotate_as_complex(heads, positions, head_dim)
    torch.testing.assert_close(rope(heads.float()), expected.float(), atol=1e-5, rtol=1e-5)


def test_scores_depend_on_the_distance_of_tokens_only():
    """Of the same query and key everywhere; V-JEPA 2's tiled layout, which is no rotation, has not this property."""
    query, key = random_video(20, seed=1), random_video(20, seed=2)
    grid = (2, 3, 4)
    for layout, holds in (("interleaved", True), ("tiled", False)):
        rope = RotaryEmbedding(grid, 20, layout)
        scores = rope(query.expand(24, -1)) @ rope(key.expand(24, -1)).T
        scores = scores.reshape(*grid, *grid)
        same = torch.allclose(scores[0, 0, 0, 1, 1, 1], scores[0, 1, 2, 1, 2, 3], atol=1e-5)
        assert same == holds, layout


def test_positions_are_frames_rows_and_columns():
    positions = token_positions((2, 2, 3))
    assert positions.T.tolist()[:4] == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]] and positions.T.tolist()[6][0] == 1
    stretched = token_positions((2, 2, 3), ref_grid_size=16)
    assert stretched[0].tolist() == positions[0].tolist()
    assert sorted(set(stretched[1].tolist())) == [0, 15] and sorted(set(stretched[2].tolist())) == [0, 7.5, 15]
    assert torch.isfinite(token_positions((1, 1, 1), ref_grid_size=16)).all()


def test_tables_are_not_part_of_the_state_and_refuse_odd_heads():
    assert not RotaryEmbedding((1, 2, 2), 8).state_dict()
    with pytest.raises(ValueError, match="rope_layout='pairs'"):
        rotary_tables(token_positions((1, 2, 2)), 8, "pairs")
    with pytest.raises(ValueError, match="need an even number"):
        RotaryEmbedding((1, 2, 2), 9)
