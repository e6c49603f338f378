"""Folders with an adapter: what is trained and a reference to its base, read, merged, exported and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import networks
from networks import weights
from networks.adapters import add_adapter
from networks.export import main as export_main
from networks.weights.__main__ import main
from networks.weights.adapter import describe_base, save_adapter
from tests.helpers.networks import SMALL, SMALL_FRAMES, random_video, randomize

NAMES = {str(number): f"class {number}" for number in range(5)}
LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["qkv"]}


def write_adapter(folder: Path, adapter: str = "lora", name: str = "videomae_tiny", **args) -> nn.Module:
    """Write folder/base and folder/adapter, and return the network that they make."""
    settings = SMALL_FRAMES if name == "frame_encoder_tiny" else SMALL
    weights.save_network(folder / "base", randomize(networks.build(name, **settings), 1), name)
    network = networks.build(name, **settings)
    weights.load_pretrained(network, folder / "base")
    trained = [*add_adapter(network, adapter, **args), "head.weight", "head.bias"]
    base = describe_base(str(folder / "base"), {}, network, trained)
    for index, key in enumerate(trained):
        network.get_parameter(key).data.normal_(std=0.1, generator=torch.Generator().manual_seed(index))
    state = {key: network.state_dict()[key] for key in trained}
    save_adapter(folder / "adapter", network, name, {"id2label": NAMES}, state, base)
    return network.eval()


def same_logits(network: nn.Module, other: nn.Module) -> bool:
    """Compare a network of ours with another one, which may be exported."""
    video = random_video(2, *network.patch_embed.input_shape)
    with torch.no_grad():
        return torch.allclose(network(video), other(video), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "adapter", "args"),
    [
        ("videomae_tiny", "lora", LORA),
        ("videomae_tiny", "bias", {}),
        ("videomae_tiny", "prompt", {"num_tokens": 2}),
        ("frame_encoder_tiny", "st_adapter", {"dim": 4}),
        ("frame_encoder_tiny", "aim", {"dim": 4}),
    ],
)
def test_adapter_folder_is_small_and_gives_the_same_logits_alone_and_merged(tmp_path, capsys, name, adapter, args):
    network = write_adapter(tmp_path, adapter, name, **args)
    loaded, config = weights.load_network(tmp_path / "adapter")
    assert same_logits(loaded, network) and config["id2label"][3] == "class 3"
    small, whole = (
        (tmp_path / path).stat().st_size for path in ("adapter/adapter.safetensors", "base/model.safetensors")
    )
    assert small < whole / 3
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "whole")]) == 0
    merges = adapter in ("lora", "bias")
    assert f"{adapter} {'merged' if merges else 'as a part of the network'}" in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "whole")]) == 2, "there is a network in it"
    moved = (tmp_path / "base").rename(tmp_path / "moved")
    assert same_logits(weights.load_network(tmp_path / "adapter", str(moved))[0], network)
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "again"), f"base={moved}"]) == 0
    modes = {path.stat().st_mode for path in (tmp_path / "adapter").iterdir()}
    assert len(modes) == 1, "the weights can be read by whoever can read config.json"
    whole_network, config = weights.load_network(tmp_path / "whole")
    assert same_logits(whole_network, network) and ("adapter" in config) is not merges and "base" not in config


def test_merged_adapter_is_a_checkpoint_for_other_networks(tmp_path):
    network = write_adapter(tmp_path, **LORA)
    target = networks.build("videomae_tiny", **SMALL).eval()
    report = weights.load_pretrained(target, tmp_path / "adapter", list(NAMES.values()))
    assert same_logits(target, network) and report.count("mapped") == len(target.state_dict())


def test_adapter_is_a_base_of_another_one(tmp_path):
    network = write_adapter(tmp_path, **LORA)
    second = networks.build("videomae_tiny", **SMALL).eval()
    weights.load_pretrained(second, tmp_path / "adapter")
    trained = add_adapter(second, "bias")
    base = describe_base(str(tmp_path / "adapter"), {}, second, trained)
    state = {key: second.state_dict()[key] for key in trained}
    save_adapter(tmp_path / "second", second, "videomae_tiny", {}, state, base)
    assert same_logits(weights.load_network(tmp_path / "second")[0], network)


@pytest.mark.slow
def test_adapters_are_exported_after_merging(tmp_path):
    network = write_adapter(tmp_path, **LORA)
    assert export_main([str(tmp_path / "adapter"), str(tmp_path / "net.pt2")]) == 0
    exported = torch.export.load(tmp_path / "net.pt2").module()
    assert same_logits(network, exported)
    assert "lora_a" not in str(torch.export.load(tmp_path / "net.pt2").graph_signature)
    assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    from transformers import VideoMAEForVideoClassification

    model = VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf").eval()
    video = random_video(2, *network.patch_embed.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(model(video.transpose(1, 2)).logits, network(video), rtol=1e-4, atol=1e-5)
    write_adapter(tmp_path / "frames", "st_adapter", "frame_encoder_tiny")
    assert export_main([str(tmp_path / "frames/adapter"), str(tmp_path / "frames.pt2")]) == 0


def change_slightly(path: Path) -> None:
    """Change a tensor by half a percent, in random directions."""
    state = load_file(path)
    weight = state["blocks.1.mlp.fc1.weight"]
    weight += 0.005 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    save_file(state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "base").rename(folder / "moved"), "the base of the adapter: .*base: No such file"),
        (
            lambda folder: weights.save_network(
                folder / "base", randomize(networks.build("videomae_tiny", **SMALL), 2), "videomae_tiny"
            ),
            "base has other weights than when the adapter was trained",
        ),
        (lambda folder: change_slightly(folder / "base/model.safetensors"), "1 tensors, blocks.1.mlp.fc1.weight"),
        (lambda folder: (folder / "adapter/adapter.safetensors").write_bytes(b"x"), "not a complete safetensors file"),
        (
            lambda folder: save_file(
                load_file(folder / "adapter/adapter.safetensors") | {"other": torch.ones(1)},
                folder / "adapter/adapter.safetensors",
                {"checksums": "{}"},
            ),
            "1 unexpected: other",
        ),
    ],
    ids=["moved", "other weights", "a little other", "damaged", "other keys"],
)
def test_adapter_without_its_base_is_refused(tmp_path, change, message):
    write_adapter(tmp_path, **LORA)
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        weights.load_network(tmp_path / "adapter")


def test_network_with_an_adapter_as_a_part_is_no_checkpoint_for_others(tmp_path):
    write_adapter(tmp_path, "st_adapter", "frame_encoder_tiny")
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "whole")]) == 0
    target = networks.build("frame_encoder_tiny", **SMALL_FRAMES)
    for source, message in (("whole", "the network has an adapter"), ("adapter", "that cannot be merged")):
        with pytest.raises(ValueError, match=message):
            weights.load_pretrained(target, tmp_path / source)


def test_merging_a_network_without_an_adapter_is_refused(tmp_path, capsys):
    write_adapter(tmp_path, **LORA)
    assert main(["merge", str(tmp_path / "base"), str(tmp_path / "x")]) == 2
    assert "has no adapter to merge" in capsys.readouterr().err
    assert json.loads((tmp_path / "adapter/config.json").read_text())["base"]["source"] == str(tmp_path / "base")
