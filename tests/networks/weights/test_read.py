"""networks/weights: damaged, hostile and foreign files (nothing runs, nothing half-loads), and the command."""

import io
import os
import pickle
import socket
import sys

import numpy as np
import pytest
import torch

import networks
from networks import weights
from networks.weights.__main__ import main
from networks.weights.read import read
from networks.weights.rename_keys import translate
from tests.helpers.foreign_checkpoints import flax_bytes, make_state, nested, write_checkpoint
from tests.helpers.networks import SMALL, randomise

torch.set_num_threads(1)


class Hostile:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def assert_untouched(source, reason):
    """initialise fails for this reason, names the source, and leaves the network as it was."""
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        weights.initialise(network, source)
    assert str(source) in str(caught.value) and reason in str(caught.value), str(caught.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


# ---- hostile ---------------------------------------------------------------------------------------------------------


def test_a_pickle_that_runs_code_is_refused_with_the_way_out(tmp_path):
    marker = tmp_path / "was_here"
    file = tmp_path / "hostile.pth"
    torch.save({"state_dict": make_state("timesformer_divided"), "extra": Hostile(marker)}, file)
    assert_untouched(file, "reading that could run code")
    assert_untouched(file, "If you trust the file, reduce it to its tensors once")
    assert not marker.exists()


def test_a_plain_pickle_is_refused(tmp_path):
    marker = tmp_path / "was_here"
    file = tmp_path / "hostile.pth"
    file.write_bytes(pickle.dumps(Hostile(marker), protocol=2))
    assert_untouched(file, str(file))
    assert not marker.exists()


def test_an_npz_with_pickled_objects_is_refused(tmp_path):
    marker = tmp_path / "was_here"
    file = tmp_path / "vit.npz"
    np.savez(file, cls=np.array([Hostile(marker)], dtype=object))
    assert_untouched(file, "not a whole .npz file")
    assert not marker.exists()


def test_the_way_out_works(tmp_path):
    """The command that the refusal prints makes a file that is read."""
    import subprocess

    class_of_a_trainer = type("ModelCheckpoint", (), {})
    module = type(sys)("trainer_callbacks")
    module.ModelCheckpoint = class_of_a_trainer
    class_of_a_trainer.__module__, class_of_a_trainer.__qualname__ = "trainer_callbacks", "ModelCheckpoint"
    sys.modules["trainer_callbacks"] = module
    folder = tmp_path / "it's $(touch pwned) here"
    folder.mkdir()
    file = folder / "lightning.ckpt"
    torch.save({"state_dict": make_state("seed_timesformer"), "callbacks": {class_of_a_trainer: {}}}, file)
    del sys.modules["trainer_callbacks"]
    with pytest.raises(ValueError, match="trainer_callbacks.ModelCheckpoint") as caught:
        read(file)
    (tmp_path / "trainer_callbacks.py").write_text("class ModelCheckpoint: pass\n")
    command = str(caught.value).splitlines()[-1].strip().replace("python -c", f"{sys.executable} -c")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert not (tmp_path / "pwned").exists()
    assert read(tmp_path / "weights.pth").state.keys() == make_state("seed_timesformer").keys()


def test_nothing_is_downloaded_unless_a_name_says_so(tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    weights.initialise(network, write_checkpoint("mae_pt", tmp_path))
    assert_untouched("timm/vit_base", "No such file or directory")


def test_timm_names_go_through_timm(monkeypatch):
    import timm
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=4, num_classes=7)
    theirs.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: asked.append((name, pretrained)) or theirs)
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    report = weights.initialise(network, "timm:vit_tiny")
    assert asked == [("vit_tiny", True)] and report.title == "timm ViT -> TimeSformer"
    assert torch.equal(network.blocks[2].mlp.fc1.weight, theirs.blocks[2].mlp.fc1.weight)


def test_an_unknown_timm_name_is_named():
    assert_untouched("timm:vit_no_such_model", "timm cannot give 'vit_no_such_model'")


def test_hub_names_go_through_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    network = randomise(networks.build("vivit_tiny", **SMALL), seed=1)
    weights.save(tmp_path / "ours", network, "vivit_tiny", {"id2label": {str(i): str(i) for i in range(5)}})
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "hub"), "--to", "hf"]) == 0
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path / "hub")
    )
    again = networks.build("vivit_tiny", **SMALL)
    weights.initialise(again, "hf:someone/vivit")
    assert asked == ["someone/vivit"]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))


def test_a_hub_name_without_a_network_is_one_clear_error(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise RuntimeError("Name or service not known\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert_untouched("hf:someone/vivit", "cannot be downloaded: Name or service not known")


# ---- damaged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["timesformer_divided", "timm_vit_npz", "scenic_vivit_joint", "mae_pt"])
def test_truncated_files(name, share, tmp_path):
    file = write_checkpoint(name, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    assert_untouched(file, "not a ")


@pytest.mark.parametrize("name", ["timesformer_divided", "timm_vit_npz", "scenic_vivit_joint"])
def test_flipped_bytes_are_an_error_or_change_nothing_but_numbers(name, tmp_path):
    file = write_checkpoint(name, tmp_path)
    whole, generator = file.read_bytes(), np.random.RandomState(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.randint(0, len(whole), size=5):
            damaged[place] = generator.randint(256)
        file.write_bytes(damaged)
        try:
            state = read(file).state
        except ValueError as error:
            assert str(file) in str(error)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


@pytest.mark.parametrize("content", [b"not weights at all", b"<!DOCTYPE html>", b"\x80", b"PK\x03\x04", b"\x83\xa1"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ""])
def test_files_that_are_no_checkpoints(content, suffix, tmp_path):
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    assert_untouched(file, "not a ")


def test_missing_and_empty_places(tmp_path):
    assert_untouched(tmp_path / "none.pth", "No such file or directory")
    (tmp_path / "folder").mkdir()
    assert_untouched(tmp_path / "folder", "a folder without model.safetensors")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds no dictionary of tensors, but list"),
        ({}, "holds no dictionary of tensors"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3, "c": "x"}}, "found b; c"),
        ({"state_dict": {"a": torch.zeros(1)}}, "not a format that is known here. Keys: a"),
        ({"epoch": 3}, "found epoch"),
    ],
)
def test_dictionaries_of_something_else(content, reason, tmp_path):
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
        (lambda s: s.update({"model.pos_embed": torch.zeros(1, 12, 32)}), "pos_embed: 11 positions are no square"),
        (
            lambda s: s.update({"model.time_embed": torch.zeros(1, 4, 31)}),
            "time_embed: (1, 4, 31), the network has ",
        ),
    ],
)
def test_damaged_keys_and_shapes(damage, reason, tmp_path):
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
def test_a_third_of_query_key_value_that_is_missing(entry, key, reason):
    state = make_state(entry)
    del state[key]
    with pytest.raises(ValueError, match="damaged or changed") as caught:
        translate(state)
    assert reason in str(caught.value)


def test_scenic_checkpoints_of_every_age(tmp_path):
    state = make_state("scenic_vivit_fe")
    for content in (
        {"optimizer": {"target": nested(state)}},
        {"optimizer": {"target": {"params": nested(state)}}},
        {"params": nested(state), "model_state": {}, "metadata": None},
    ):
        (tmp_path / "checkpoint").write_bytes(flax_bytes(content))
        read_back = read(tmp_path / "checkpoint").state
        assert read_back.keys() == state.keys()
        assert all(torch.equal(read_back[key], state[key]) for key in state)


def test_without_msgpack_the_message_says_what_to_install(tmp_path, monkeypatch):
    file = write_checkpoint("scenic_vivit_joint", tmp_path)
    monkeypatch.setitem(sys.modules, "msgpack", None)
    assert_untouched(file, "pip install msgpack")


def test_older_pytorch_files_are_read(tmp_path):
    """The format before zip files, which some published checkpoints still have."""
    file = tmp_path / "old.pth"
    buffer = io.BytesIO()
    torch.save({"model": make_state("mae_pt")}, buffer, _use_new_zipfile_serialization=False)
    file.write_bytes(buffer.getvalue())
    assert read(file).state.keys() == make_state("mae_pt").keys()


# ---- the command -----------------------------------------------------------------------------------------------------


def test_inspect_prints_the_report_and_the_network(tmp_path, capsys):
    file = str(write_checkpoint("timesformer_divided", tmp_path))
    assert main(["inspect", file, "heads=4"]) == 0
    out = capsys.readouterr().out
    assert "88 mapped, 1 reshaped, 0 created, 0 dropped" in out
    assert "timesformer_b(num_classes=5, num_frames=4, image_size=32, patch_size=8" in out and "heads=4" in out
    assert main(["inspect", file]) == 0
    assert "note: assumed heads=1, as published networks of width 32 have" in capsys.readouterr().out
    assert main(["inspect", file, "heads=4", "--every-key"]) == 0
    assert "mapped    model.blocks.3.mlp.fc2.bias -> blocks.3.mlp.fc2.bias" in capsys.readouterr().out


def test_inspect_into_a_network(tmp_path, capsys):
    file = str(write_checkpoint("mae_pt", tmp_path))
    small = ["depth=4", "width=32", "heads=4", "patch_size=8", "image_size=[32,48]", "num_frames=4"]
    assert main(["inspect", file, "into=timesformer_b", *small]) == 0
    assert "1x4x4 -> 1x4x6, bicubic" in capsys.readouterr().out
    assert main(["inspect", file]) == 2
    assert "is of an image network" in capsys.readouterr().err


def test_convert_writes_a_folder_that_loads(tmp_path, capsys):
    file = str(write_checkpoint("slowfast_mvit_v2", tmp_path))
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb b\nc\nd\né\n")
    assert main(["convert", file, str(tmp_path / "out"), "key_stride=[1,4,4]", f"labels={labels}"]) == 0
    network, config = weights.load(tmp_path / "out")
    assert config["id2label"] == {0: "a", 1: "b b", 2: "c", 3: "d", 4: "é"}
    assert config["input"]["mean"] == [0.45, 0.45, 0.45] and config["input"]["frames"] == 8
    assert config["converted_from"] == {"source": file, "format": "SlowFast MViT"}
    assert torch.equal(network.head.weight, make_state("slowfast_mvit_v2")["head.projection.weight"])
    capsys.readouterr()
    assert main(["convert", file, str(tmp_path / "out"), "key_stride=[1,4,4]"]) == 0
    assert "numbers stand for them" in capsys.readouterr().out
    assert weights.load(tmp_path / "out")[1]["id2label"][4] == "4"
    labels.write_text("a\nb\n")
    assert main(["convert", file, str(tmp_path / "out"), "key_stride=[1,4,4]", f"labels={labels}"]) == 2
    assert "2 names, the network has 5 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["inspect", "FILE", "hedas=4"], "unknown key 'hedas': did you mean 'heads'?"),
        (["inspect", "FILE", "heads"], "expected key=value"),
        (["inspect", "FILE", "heads=5"], "heads=5 does not divide width=32"),
        (["inspect", "FILE", "into=vivit_q"], "unknown network 'vivit_q'"),
        (["inspect", "FILE", "image_size=48"], "16 positions a frame do not fit image_size=48"),
        (["inspect", "FILE", "heads=[1]"], "heads=[1]: expected a number"),
        (["inspect", "FILE", "patch_stride=[]"], "unexpected keyword argument 'patch_stride'"),
        (["inspect", "FILE", "source_grid=5"], "source_grid=5: expected three whole numbers"),
        (["inspect", "FILE", "source_grid=[0,4,4]"], "source_grid=[0, 4, 4]: expected three whole numbers"),
        (["inspect", "FILE", "num_frames=8.0"], "num_frames=8.0: expected a whole number"),
        (["inspect", "FILE", "into=vivit_b", "cls_token=100000"], "cls_token=100000: expected true or false"),
        (["inspect", "FILE", "into=mvit_v2_s", "pool_kernel=[2,4,4]"], "pool_kernel=[2, 4, 4]: expected odd numbers"),
        (["inspect", "FILE", "drop_path=a"], "drop_path='a': must lie in [0, 1)"),
        (["inspect", "none.pth"], "none.pth: No such file or directory"),
        (["convert", "FILE", "OUT", "labels=none.txt"], "none.txt"),
        (["export", "OUT", "OUT2", "--to", "hf"], "No such file or directory"),
    ],
)
def test_mistakes_on_the_command_line(words, reason, tmp_path, capsys):
    places = {"FILE": str(write_checkpoint("timesformer_divided", tmp_path)), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in words]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_converted_folder_may_be_a_source_again(tmp_path):
    network = randomise(networks.build("videomae_tiny", **SMALL), seed=1)
    weights.save(tmp_path, network, "videomae_tiny", {"id2label": {str(i): f"c{i}" for i in range(5)}})
    again, config, report = weights.convert(tmp_path)
    assert report.summary() == f"{len(network.state_dict())} mapped, 0 reshaped, 0 created, 0 dropped"
    assert config["name"] == "videomae_tiny" and again.kwargs == network.kwargs
    assert config["extra"]["id2label"]["3"] == "c3"
