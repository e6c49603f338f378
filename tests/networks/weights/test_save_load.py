"""networks/weights/save_load.py: the round trip, and the errors of damaged files."""

import json

import pytest
import torch

import networks
from networks import weights

torch.set_num_threads(1)

SMALL = dict(num_classes=3, num_frames=4, image_size=(16, 32), patch_size=8, embed_dim=32, depth=1, num_heads=2)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = networks.build("vivit_tiny", **SMALL).eval()
    weights.save_network(
        tmp_path, network, "vivit_tiny", {"id2label": {0: "a", 1: "b", 2: "é"}, "mean": [0.45, 0.45, 0.45]}
    )
    return tmp_path, network


@pytest.mark.parametrize("name", ["vivit_tiny", "vivit_fe_tiny", "timesformer_tiny", "videomae_tiny"])
def test_load_returns_what_save_wrote(tmp_path, name):
    network = networks.build(name, **SMALL, drop_path=0.3)
    weights.save_network(tmp_path / "new" / "folder", network, name)
    loaded, config = weights.load_network(tmp_path / "new" / "folder")
    assert config == {"name": name, "kwargs": network.kwargs} and loaded.kwargs == network.kwargs
    assert type(loaded) is type(network) and not loaded.training
    state, loaded_state = network.state_dict(), loaded.state_dict()
    assert list(state) == list(loaded_state)
    assert all(torch.equal(state[key], loaded_state[key]) for key in state)
    video = torch.randn(1, 3, 4, 16, 32)
    assert torch.equal(loaded(video), network.eval()(video))


def test_save_keeps_extra_and_leaves_no_temporary_file(saved):
    folder, _ = saved
    _, config = weights.load_network(folder)
    assert config["id2label"] == {0: "a", 1: "b", 2: "é"} and config["mean"] == [0.45, 0.45, 0.45]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_save_accepts_every_memory_format(tmp_path):
    network = networks.build("vivit_tiny", **SMALL).to(memory_format=torch.channels_last_3d)
    assert not network.patch_embed.proj.weight.is_contiguous()
    weights.save_network(tmp_path, network, "vivit_tiny")
    loaded, _ = weights.load_network(tmp_path)
    assert torch.equal(loaded.patch_embed.proj.weight, network.patch_embed.proj.weight)


def test_interrupted_save_keeps_the_old_files(saved, monkeypatch):
    folder, network = saved
    old_files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def write_half(state, path, metadata):
        path.write_bytes(old_files["model.safetensors"][:50])
        raise OSError("disk full")

    monkeypatch.setattr(weights.save_load, "save_file", write_half)
    with pytest.raises(OSError, match="disk full"):
        weights.save_network(folder, network, "vivit_tiny")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old_files


def test_save_refuses_reserved_keys_in_extra(tmp_path, saved):
    with pytest.raises(ValueError, match="kwargs"):
        weights.save_network(tmp_path, saved[1], "vivit_tiny", {"kwargs": {}})


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
        (
            "model.safetensors",
            lambda path: path.write_bytes(path.read_bytes()[:-100]),
            "not a complete safetensors file",
        ),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:20]), "not a complete safetensors file"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "not a complete safetensors file"),
    ],
)
def test_load_names_a_damaged_file_with_the_reason(saved, file, damage, reason):
    folder, _ = saved
    damage(folder / file)
    with pytest.raises(ValueError) as caught:
        weights.load_network(folder)
    assert str(folder / file) in str(caught.value) and reason in str(caught.value)


def test_load_refuses_weights_of_another_network_with_the_path(saved):
    folder, network = saved
    edit_config(folder / "config.json", kwargs=network.kwargs | {"num_classes": 4})
    with pytest.raises(ValueError, match=r"head.weight \(3, 32\), the network has \(4, 32\)") as caught:
        weights.load_network(folder)
    assert str(folder / "model.safetensors") in str(caught.value)


def test_load_state_lists_every_kind_of_misfit_and_loads_nothing():
    network = networks.build("vivit_tiny", **SMALL)
    initial_state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state = {key: torch.zeros_like(tensor) for key, tensor in initial_state.items()}
    del state["norm.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["head.bias"] = torch.zeros(9)
    with pytest.raises(ValueError) as caught:
        weights.load_state(network, state)
    message = str(caught.value)
    assert "1 missing: norm.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 wrong shape: head.bias (9,), the network has (3,)" in message
    assert all(torch.equal(initial_state[key], tensor) for key, tensor in network.state_dict().items())


def test_load_state_shortens_long_lists():
    network = networks.build("vivit_tiny", **SMALL)
    keys = list(network.state_dict())
    with pytest.raises(ValueError) as caught:
        weights.load_state(network, {})
    message = str(caught.value)
    assert f"{len(keys)} missing" in message and f"and {len(keys) - 10} more" in message
    assert keys[9] in message and keys[10] not in message.split(keys[9])[1]


def test_mean_pooled_folder_starts_a_probe_with_an_attentive_pooler(tmp_path):
    encoder = networks.build("vjepa2_tiny", num_classes=0, pooling="mean")
    weights.save_network(tmp_path, encoder, "vjepa2_tiny")
    probe = networks.build("vjepa2_tiny", num_classes=3, pooling="attentive")
    report = weights.load_pretrained(probe, tmp_path)
    assert {key.split(".")[0] for key in report.keys_as_initialized()} == {"pooler", "head"}
