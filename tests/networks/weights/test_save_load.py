"""networks/weights.py: the round trip, and what each damaged file says."""

import json

import pytest
import torch

import networks
from networks import weights

torch.set_num_threads(1)

SMALL = dict(num_classes=3, num_frames=4, image_size=(16, 32), patch_size=8, width=32, depth=1, heads=2)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = networks.build("vivit_tiny", **SMALL).eval()
    weights.save(tmp_path, network, "vivit_tiny", {"id2label": {0: "a", 1: "b", 2: "é"}, "mean": [0.45, 0.45, 0.45]})
    return tmp_path, network


@pytest.mark.parametrize("name", ["vivit_tiny", "vivit_fe_tiny", "timesformer_tiny", "videomae_tiny"])
def test_round_trip(tmp_path, name):
    network = networks.build(name, **SMALL, drop_path=0.3)
    weights.save(tmp_path / "new" / "folder", network, name)
    loaded, config = weights.load(tmp_path / "new" / "folder")
    assert config == {"name": name, "kwargs": network.kwargs} and loaded.kwargs == network.kwargs
    assert type(loaded) is type(network) and not loaded.training
    state, loaded_state = network.state_dict(), loaded.state_dict()
    assert list(state) == list(loaded_state)
    assert all(torch.equal(state[key], loaded_state[key]) for key in state)
    video = torch.randn(1, 3, 4, 16, 32)
    assert torch.equal(loaded(video), network.eval()(video))


def test_extra_is_kept_and_no_temporary_file_is_left(saved):
    folder, _ = saved
    _, config = weights.load(folder)
    assert config["id2label"] == {0: "a", 1: "b", 2: "é"} and config["mean"] == [0.45, 0.45, 0.45]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_memory_layout_does_not_matter(tmp_path):
    network = networks.build("vivit_tiny", **SMALL).to(memory_format=torch.channels_last_3d)
    assert not network.patch_embed.proj.weight.is_contiguous()
    weights.save(tmp_path, network, "vivit_tiny")
    loaded, _ = weights.load(tmp_path)
    assert torch.equal(loaded.patch_embed.proj.weight, network.patch_embed.proj.weight)


def test_an_interrupted_save_keeps_the_old_files(saved, monkeypatch):
    folder, network = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def write_half(state, path, metadata):
        path.write_bytes(before["model.safetensors"][:50])
        raise OSError("disk full")

    monkeypatch.setattr(weights.folder, "save_file", write_half)
    with pytest.raises(OSError, match="disk full"):
        weights.save(folder, network, "vivit_tiny")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_extra_may_not_hide_how_to_build(tmp_path, saved):
    with pytest.raises(ValueError, match="kwargs"):
        weights.save(tmp_path, saved[1], "vivit_tiny", {"kwargs": {}})


def edit_config(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("config.json", lambda path: path.unlink(), "No such file"),
        ("config.json", lambda path: path.write_text(path.read_text()[:-5]), "not valid JSON"),
        ("config.json", lambda path: path.write_bytes(b"\xff\xfe{}"), "not valid JSON"),
        ("config.json", lambda path: path.write_text("[]"), "expected a JSON object, got list"),
        ("config.json", lambda path: path.write_text('{"name": "vivit_tiny"}'), "'kwargs' is missing"),
        ("config.json", lambda path: edit_config(path, name="vivit_tinny"), "'vivit_tinny'"),
        ("config.json", lambda path: edit_config(path, kwargs={"num_classes": 3, "colour": 1}), "'colour'"),
        ("config.json", lambda path: edit_config(path, id2label={"zero": "a"}), "id2label"),
        ("model.safetensors", lambda path: path.unlink(), "No such file"),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole safetensors file"),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:20]), "not a whole safetensors file"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "not a whole safetensors file"),
    ],
)
def test_damaged_files_are_named_with_the_reason(saved, file, damage, reason):
    folder, _ = saved
    damage(folder / file)
    with pytest.raises(ValueError) as caught:
        weights.load(folder)
    assert str(folder / file) in str(caught.value) and reason in str(caught.value)


def test_weights_of_another_network_are_refused_with_the_path(saved):
    folder, network = saved
    edit_config(folder / "config.json", kwargs=network.kwargs | {"num_classes": 4})
    with pytest.raises(ValueError, match=r"head.weight \(3, 32\), the network has \(4, 32\)") as caught:
        weights.load(folder)
    assert str(folder / "model.safetensors") in str(caught.value)


def test_load_state_lists_every_kind_of_misfit_and_loads_nothing():
    network = networks.build("vivit_tiny", **SMALL)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state = {key: torch.zeros_like(tensor) for key, tensor in before.items()}
    del state["norm.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["head.bias"] = torch.zeros(9)
    with pytest.raises(ValueError) as caught:
        weights.load_state(network, state)
    message = str(caught.value)
    assert "1 missing: norm.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 wrong shape: head.bias (9,), the network has (3,)" in message
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


def test_load_state_shortens_long_lists():
    network = networks.build("vivit_tiny", **SMALL)
    keys = list(network.state_dict())
    with pytest.raises(ValueError) as caught:
        weights.load_state(network, {})
    message = str(caught.value)
    assert f"{len(keys)} missing" in message and f"and {len(keys) - 10} more" in message
    assert keys[9] in message and keys[10] not in message.split(keys[9])[1]
