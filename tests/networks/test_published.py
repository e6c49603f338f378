"""The tables of docs/networks.md equal what the code says and counts."""

import re

import pytest
import torch

import networks
from networks.flops import count_flops, count_parameters, main
from networks.published import PUBLISHED, markdown_table
from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "networks.md").read_text()
ROWS = re.findall(r"^\|[^|]*\| `(\w+)` [^|]*\|[^|]*\| ([\dx]+) \| ([\d.]+) \| ([\d.]+) \|", PAGE, re.MULTILINE)


def test_page_has_the_published_weights():
    assert markdown_table() in PAGE
    assert set(PUBLISHED) <= set(networks.VARIANTS)


def test_page_names_every_variant():
    for name in networks.VARIANTS:
        stem = name.split("_")
        assert f"`{name}`" in PAGE or name in PAGE or f"_{stem[-1]}" in PAGE or "_".join(stem[-2:]) in PAGE, name


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_figures_of_the_page_are_those_counted(row):
    name, clip, millions, gflops = row
    with torch.device("meta"):
        network = networks.build(name, num_classes=400)
    assert "x".join(map(str, network.patch_embed.input_shape[1:])) == clip
    assert abs(count_parameters(network) / 1e6 - float(millions)) < 0.051
    assert abs(count_flops(network) / 1e9 - float(gflops)) < 0.051


def test_there_is_a_row_per_architecture():
    assert len(ROWS) == 13


def test_command_prints_the_weights_below_a_network(capsys):
    assert main(["hiera_b", "depths=[1,1,1,2]"]) == 0
    _, row, *weights = capsys.readouterr().out.splitlines()
    assert row.split()[0] == "hiera_b" and len(weights) == 2
    assert weights[1].split()[0] == "hf:facebook/hiera_base_16x224.mae_k400_ft_k400"
    assert "CC-BY-NC 4.0" in weights[1] and "K400 84.0, 5x3" in weights[1]
