"""networks/weights/read.py: damaged, hostile and foreign files run no code and load nothing by half."""

import io
import os
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

import networks
from networks import weights
from networks.weights.__main__ import main
from networks.weights.read import read_checkpoint
from networks.weights.rename_keys import rename_keys
from networks.weights.source_config import parse_source_config
from tests.helpers.foreign_checkpoints import flax_bytes, make_state, nested, write_checkpoint
from tests.helpers.networks import SMALL, randomize

torch.set_num_threads(1)


class Hostile:
    """Creates a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def assert_untouched(source, reason):
    """Assert that load_pretrained fails with this reason, names the source, and leaves the network as it was."""
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    initial_state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        weights.load_pretrained(network, source)
    assert str(source) in str(caught.value) and reason in str(caught.value), str(caught.value)
    assert all(torch.equal(initial_state[key], tensor) for key, tensor in network.state_dict().items())


# ---- hostile ---------------------------------------------------------------------------------------------------------


def test_checkpoint_that_runs_code_is_refused_with_a_command_to_convert_it(tmp_path):
    marker = tmp_path / "was_here"
    file = tmp_path / "hostile.pth"
    torch.save({"state_dict": make_state("timesformer_divided"), "extra": Hostile(marker)}, file)
    assert_untouched(file, "reading it could run code")
    assert_untouched(file, "If you trust the file, extract its tensors once")
    assert not marker.exists()


def test_plain_pickle_is_refused(tmp_path):
    marker = tmp_path / "was_here"
    file = tmp_path / "hostile.pth"
    file.write_bytes(pickle.dumps(Hostile(marker), protocol=2))
    assert_untouched(file, str(file))
    assert not marker.exists()


def test_npz_with_pickled_objects_is_refused(tmp_path):
    marker = tmp_path / "was_here"
    file = tmp_path / "vit.npz"
    np.savez(file, cls=np.array([Hostile(marker)], dtype=object))
    assert_untouched(file, "not a complete .npz file")
    assert not marker.exists()


@pytest.mark.slow
def test_printed_command_converts_a_refused_checkpoint(tmp_path):
    callback_class = type("ModelCheckpoint", (), {})
    module = type(sys)("trainer_callbacks")
    module.ModelCheckpoint = callback_class
    callback_class.__module__, callback_class.__qualname__ = "trainer_callbacks", "ModelCheckpoint"
    sys.modules["trainer_callbacks"] = module
    folder = tmp_path / "it's $(touch pwned) here"
    folder.mkdir()
    file = folder / "lightning.ckpt"
    torch.save({"state_dict": make_state("seed_timesformer"), "callbacks": {callback_class: {}}}, file)
    del sys.modules["trainer_callbacks"]
    with pytest.raises(ValueError, match="trainer_callbacks.ModelCheckpoint") as caught:
        read_checkpoint(file)
    (tmp_path / "trainer_callbacks.py").write_text("class ModelCheckpoint: pass\n")
    command = str(caught.value).splitlines()[-1].strip().replace("python -c", f"{sys.executable} -c")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert not (tmp_path / "pwned").exists()
    assert read_checkpoint(tmp_path / "weights.pth").state.keys() == make_state("seed_timesformer").keys()


def test_files_are_read_without_a_network_connection(tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    weights.load_pretrained(network, write_checkpoint("mae_pt", tmp_path))
    assert_untouched("timm/vit_base", "No such file or directory")


def test_timm_source_is_created_by_timm(monkeypatch):
    import timm
    from timm.models.vision_transformer import VisionTransformer

    timm_network = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=4, num_classes=7)
    timm_network.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    calls = []

    def create_model(name, pretrained):
        calls.append((name, pretrained))
        return timm_network

    monkeypatch.setattr(timm, "create_model", create_model)
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    report = weights.load_pretrained(network, "timm:vit_tiny")
    assert calls == [("vit_tiny", True)] and report.title == "timm ViT -> TimeSformer"
    assert torch.equal(network.blocks[2].mlp.fc1.weight, timm_network.blocks[2].mlp.fc1.weight)


def test_unknown_timm_name_is_named():
    assert_untouched("timm:vit_no_such_model", "timm cannot create 'vit_no_such_model'")


def test_hf_source_is_downloaded_from_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    network = randomize(networks.build("vivit_tiny", **SMALL), seed=1)
    weights.save_network(tmp_path / "ours", network, "vivit_tiny", {"id2label": {str(i): str(i) for i in range(5)}})
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "hub"), "--to", "hf"]) == 0
    downloads = []

    def snapshot_download(name, **_):
        downloads.append(name)
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = networks.build("vivit_tiny", **SMALL)
    weights.load_pretrained(loaded, "hf:someone/vivit")
    assert downloads == ["someone/vivit"]
    parameters = zip(loaded.parameters(), network.parameters(), strict=True)
    assert all(torch.equal(actual, expected) for actual, expected in parameters)


def test_hf_source_without_a_connection_is_one_clear_error(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise RuntimeError("Name or service not known\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert_untouched("hf:someone/vivit", "cannot be downloaded: Name or service not known")


# ---- damaged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["timesformer_divided", "timm_vit_npz", "scenic_vivit_joint", "mae_pt"])
def test_truncated_files_are_refused(name, fraction, tmp_path):
    path = write_checkpoint(name, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    assert_untouched(path, "not a ")


@pytest.mark.parametrize("name", ["timesformer_divided", "timm_vit_npz", "scenic_vivit_joint"])
def test_changed_bytes_are_an_error_or_change_only_numbers(name, tmp_path):
    path = write_checkpoint(name, tmp_path)
    content, generator = path.read_bytes(), np.random.RandomState(0)
    for _ in range(60):
        damaged = bytearray(content)
        for offset in generator.randint(0, len(content), size=5):
            damaged[offset] = generator.randint(256)
        path.write_bytes(damaged)
        try:
            state = read_checkpoint(path).state
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


@pytest.mark.parametrize("content", [b"not weights at all", b"<!DOCTYPE html>", b"\x80", b"PK\x03\x04", b"\x83\xa1"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ""])
def test_files_that_are_not_checkpoints_are_refused(content, suffix, tmp_path):
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    assert_untouched(file, "not a ")


def test_missing_files_and_empty_folders_are_refused(tmp_path):
    assert_untouched(tmp_path / "none.pth", "No such file or directory")
    (tmp_path / "folder").mkdir()
    assert_untouched(tmp_path / "folder", "a folder without model.safetensors")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "expected a dictionary of tensors, found list"),
        ({}, "expected a dictionary of tensors, found dict"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3, "c": "x"}}, "found b; c"),
        ({"state_dict": {"a": torch.zeros(1)}}, "not a known checkpoint format. Keys: a"),
        ({"epoch": 3}, "found epoch"),
    ],
)
def test_dictionaries_without_weights_are_refused(content, reason, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    assert_untouched(tmp_path / "file.pth", reason)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda s: s.update({"model.blocks.0.attn.gate": s.pop("model.norm.bias")}),
            "1 unknown keys: model.blocks.0.attn.gate",
        ),
        (lambda s: s.update({"model.blocks.0.extra": torch.zeros(1)}), "1 unknown keys: model.blocks.0.extra"),
        (lambda s: s.pop("model.norm.bias"), "norm.bias: missing in the checkpoint"),
        (lambda s: s.update({"model.norm.bias": torch.zeros(31)}), "norm.bias: (31,), the network has (32,)"),
        (lambda s: s.update({"norm.bias": torch.zeros(32)}), "1 unknown keys: norm.bias"),
        (
            lambda s: s.update({"model.pos_embed": torch.zeros(1, 12, 32)}),
            "pos_embed: 11 positions do not fill a square grid",
        ),
        (
            lambda s: s.update({"model.time_embed": torch.zeros(1, 4, 31)}),
            "time_embed: (1, 4, 31), the network has ",
        ),
    ],
)
def test_damaged_keys_and_shapes_are_refused(damage, reason, tmp_path):
    state = make_state("timesformer_divided")
    damage(state)
    torch.save({"model_state": state}, tmp_path / "file.pyth")
    assert_untouched(tmp_path / "file.pyth", reason)


@pytest.mark.parametrize(
    ("entry", "key", "reason"),
    [
        ("videomae_ft", "blocks.1.attn.q_bias", "without query, key"),
        ("pytorchvideo_mvit", "blocks.1.attn.k.weight", "without key"),
        ("scenic_vivit_joint", "Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/bias", "without key"),
    ],
)
def test_rename_keys_names_the_missing_part_of_qkv(entry, key, reason):
    state = make_state(entry)
    del state[key]
    with pytest.raises(ValueError, match="damaged or changed") as caught:
        rename_keys(state)
    assert reason in str(caught.value)


def test_scenic_checkpoints_of_every_layout_are_read(tmp_path):
    state = make_state("scenic_vivit_fe")
    for content in (
        {"optimizer": {"target": nested(state)}},
        {"optimizer": {"target": {"params": nested(state)}}},
        {"params": nested(state), "model_state": {}, "metadata": None},
    ):
        (tmp_path / "checkpoint").write_bytes(flax_bytes(content))
        read_back = read_checkpoint(tmp_path / "checkpoint").state
        assert read_back.keys() == state.keys()
        assert all(torch.equal(read_back[key], state[key]) for key in state)


def test_missing_msgpack_is_named_with_its_install_command(tmp_path, monkeypatch):
    file = write_checkpoint("scenic_vivit_joint", tmp_path)
    monkeypatch.setitem(sys.modules, "msgpack", None)
    assert_untouched(file, "pip install msgpack")


def test_pytorch_files_from_before_the_zip_format_are_read(tmp_path):
    """Some published checkpoints still have this format."""
    file = tmp_path / "old.pth"
    buffer = io.BytesIO()
    torch.save({"model": make_state("mae_pt")}, buffer, _use_new_zipfile_serialization=False)
    file.write_bytes(buffer.getvalue())
    assert read_checkpoint(file).state.keys() == make_state("mae_pt").keys()


def test_convert_reads_a_folder_of_this_project(tmp_path):
    network = randomize(networks.build("videomae_tiny", **SMALL), seed=1)
    weights.save_network(tmp_path, network, "videomae_tiny", {"id2label": {str(i): f"c{i}" for i in range(5)}})
    converted, config, report = weights.convert(tmp_path)
    assert report.summary() == f"{len(network.state_dict())} mapped, 0 reshaped, 0 created, 0 dropped"
    assert config["name"] == "videomae_tiny" and converted.kwargs == network.kwargs
    assert config["extra"]["id2label"]["3"] == "c3"


@pytest.mark.parametrize(("card", "expected"), [({"multi_label": True}, True), ({}, False)])
def test_converted_network_keeps_whether_it_knows_several_labels(tmp_path, card, expected):
    weights.save_network(tmp_path / "a", networks.build("videomae_tiny", **SMALL), "videomae_tiny", card)
    assert weights.convert(tmp_path / "a")[1]["extra"]["multi_label"] is expected
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert weights.load_network(tmp_path / "b")[1]["multi_label"] is expected


def test_config_of_transformers_tells_of_several_labels():
    problem_types = {"multi_label_classification": True, "single_label_classification": False, None: None}
    for problem_type, expected in problem_types.items():
        assert parse_source_config({"problem_type": problem_type}, {}).multi_label is expected


def test_file_that_is_no_checkpoint_is_refused_without_advice_of_pytorch(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("garbage")
    with pytest.raises(ValueError, match="not a complete PyTorch checkpoint: damaged, or of another kind") as caught:
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value)
