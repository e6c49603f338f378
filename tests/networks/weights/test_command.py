"""networks/weights/__main__.py: inspect, convert and export on the command line, and their errors."""

import pytest
import torch

from networks import weights
from networks.weights.__main__ import main
from tests.helpers.foreign_checkpoints import make_state, write_checkpoint

torch.set_num_threads(1)


def test_inspect_prints_the_report_and_the_network(tmp_path, capsys):
    file = str(write_checkpoint("timesformer_divided", tmp_path))
    assert main(["inspect", file, "num_heads=4"]) == 0
    out = capsys.readouterr().out
    assert "88 mapped, 1 reshaped, 0 created, 0 dropped" in out
    assert "timesformer_b(num_classes=5, num_frames=4, image_size=32, patch_size=8" in out and "num_heads=4" in out
    assert main(["inspect", file]) == 0
    assert "note: assumed num_heads=1, as published networks with embed_dim=32 have" in capsys.readouterr().out
    assert main(["inspect", file, "num_heads=4", "--every-key"]) == 0
    assert "mapped    model.blocks.3.mlp.fc2.bias -> blocks.3.mlp.fc2.bias" in capsys.readouterr().out


def test_inspect_into_a_network(tmp_path, capsys):
    file = str(write_checkpoint("mae_pt", tmp_path))
    small = ["depth=4", "embed_dim=32", "num_heads=4", "patch_size=8", "image_size=[32,48]", "num_frames=4"]
    assert main(["inspect", file, "into=timesformer_b", *small]) == 0
    assert "1x4x4 -> 1x4x6, bicubic" in capsys.readouterr().out
    assert main(["inspect", file]) == 2
    assert "is of an image network" in capsys.readouterr().err


def test_convert_command_writes_a_folder_that_loads(tmp_path, capsys):
    file = str(write_checkpoint("slowfast_mvit_v2", tmp_path))
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb b\nc\nd\né\n")
    assert main(["convert", file, str(tmp_path / "out"), "kv_stride=[1,4,4]", f"labels={labels}"]) == 0
    network, config = weights.load_network(tmp_path / "out")
    assert config["id2label"] == {0: "a", 1: "b b", 2: "c", 3: "d", 4: "é"}
    assert config["input"]["mean"] == [0.45, 0.45, 0.45] and config["input"]["num_frames"] == 8
    assert config["converted_from"] == {"source": file, "format": "SlowFast MViT"}
    assert torch.equal(network.head.weight, make_state("slowfast_mvit_v2")["head.projection.weight"])
    capsys.readouterr()
    assert main(["convert", file, str(tmp_path / "out"), "kv_stride=[1,4,4]"]) == 0
    assert "does not name its classes, so they are numbered" in capsys.readouterr().out
    assert weights.load_network(tmp_path / "out")[1]["id2label"][4] == "4"
    labels.write_text("a\nb\n")
    assert main(["convert", file, str(tmp_path / "out"), "kv_stride=[1,4,4]", f"labels={labels}"]) == 2
    assert "2 names, the network has 5 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["inspect", "FILE", "num_hedas=4"], "unknown key 'num_hedas': did you mean 'num_heads'?"),
        (["inspect", "FILE", "num_heads"], "expected key=value"),
        (["inspect", "FILE", "num_heads=5"], "num_heads=5 does not divide embed_dim=32"),
        (["inspect", "FILE", "into=vivit_q"], "unknown network 'vivit_q'"),
        (["inspect", "FILE", "image_size=48"], "16 positions per frame do not fit image_size=48"),
        (["inspect", "FILE", "num_heads=[1]"], "num_heads=[1]: expected a number"),
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
def test_command_names_user_errors(argv, reason, tmp_path, capsys):
    paths = {"FILE": str(write_checkpoint("timesformer_divided", tmp_path)), "OUT": str(tmp_path / "out")}
    assert main([paths.get(argument, argument) for argument in argv]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
