"""Parameters and FLOPs against the figures of the papers."""

import pytest
import torch

import networks
from networks.flops import count_flops, count_parameters, main


@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [
        ("timesformer_b", 121.4, 196),
        ("timesformer_hr", 121.4, 1703),
        ("timesformer_l", 121.4, 2380),
        ("mvit_v1_b", 36.6, 70.6),
        ("mvit_v2_s", 34.5, 64.2),
        ("mvit_v2_b", 51.2, 225),
        ("mvit_v2_l", 213.4, 2828),  # 217.6 M are published, but not for its published configuration
        ("videomae_s", 22, 57),
        ("videomae_b", 87, 180),
        ("videomae_l", 305, 597),
        ("videomae_h", 633, 1192),
        ("hiera_b", 51, 102),
        ("hiera_b_plus", 69, 133),
        ("hiera_l", 213, 413),
        ("hiera_h", 672, 1159),
    ],
)
def test_published_parameters_and_flops(name, millions, gflops):
    """The papers count a multiply-add as one FLOP."""
    with torch.device("meta"):
        network = networks.build(name, num_classes=400)
    assert count_parameters(network) / 1e6 == pytest.approx(millions, rel=0.006)
    assert count_flops(network) / 1e9 == pytest.approx(gflops, rel=0.006)


def test_command_prints_a_row_per_network(capsys):
    assert main(["vivit_tiny", "timesformer_tiny", "num_frames=4"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["network", "clip", "M", "params", "GFLOPs"]
    assert [row.split()[:2] for row in rows] == [["vivit_tiny", "4x64x64"], ["timesformer_tiny", "4x64x64"]]


def test_pretraining_is_counted_with_the_published_share_hidden(capsys):
    names = ["pretrain_videomae_b", "mae_hiera_tiny", "pretrain_vjepa2_tiny", "maskfeat_tiny"]
    assert main(names) == 0
    rows = dict(line.split()[::3] for line in capsys.readouterr().out.splitlines()[1:] if line.startswith(tuple(names)))
    assert rows.keys() == set(names)
    # Encoder: 160 tokens, of them 8 x 20 visible; decoder: all 1568.
    dim, depth, n, tokens = 768, 12, 8 * 20, 1568
    encoder = n * (2 * 16 * 16 * 3 * dim + depth * (12 * dim**2 + 2 * n * dim)) + n * dim * 384
    decoder = tokens * 4 * (12 * 384**2 + 2 * tokens * 384) + (tokens - n) * 384 * 1536
    assert float(rows["pretrain_videomae_b"]) == pytest.approx((encoder + decoder) / 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["vivit_tinny"], "unknown network 'vivit_tinny': did you mean 'vivit_tiny'?"),
        (["vivit_tiny", "depht=2"], "unknown key 'depht': did you mean 'depth'?"),
        (["vivit_tiny", "q_strides=2"], "unexpected keyword argument 'q_strides'"),
    ],
)
def test_command_refuses_unknown_names(argv, message, capsys):
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out
