"""The commands of docs/evaluation.md, from a V-JEPA 2 checkpoint and folders of videos to a report, at toy size."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

import eval as eval_command
import train as train_command
from networks import weights
from tests.configs.test_recipes import TINY_STEPS
from tests.helpers import ROOT
from tests.helpers.foreign_checkpoints import ENTRIES, write_checkpoint

COMMANDS = {"train.py": train_command.main, "eval.py": eval_command.main}


def page_commands(heading: str) -> list[list[str]]:
    """Return the words of the commands in the first code block after a heading, without the comments beside them."""
    text = (ROOT / "docs" / "evaluation.md").read_text().split(heading, 1)[1]
    block = text.split("```\n", 2)[1].strip()
    return [shlex.split(line.split("   ")[0]) for line in block.splitlines()]


@pytest.fixture
def workplace(clips_folder, tmp_path, monkeypatch) -> dict[str, list[str]]:
    """Go to a folder with class folders and a checkpoint; return what makes the commands small, by script."""
    source = clips_folder(tmp_path, 8).parent
    for split in ("train", "val"):
        for index in range(8):
            folder = tmp_path / split / f"class_{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            os.symlink((source / f"{index}.mp4").resolve(), folder / f"{index}.mp4")
    (tmp_path / "stand_in").mkdir()
    checkpoint = write_checkpoint("vjepa2", tmp_path / "stand_in")
    own = weights.convert(checkpoint, **(ENTRIES["vjepa2"]["given"] or {}))[0].kwargs
    image_size = own["image_size"] if isinstance(own["image_size"], int) else own["image_size"][0]
    unset = {"num_classes", "num_frames", "image_size", "pooling", "pooler_depth"}
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    tiny = [
        *TINY_STEPS,
        f"model.args={json.dumps({key: value for key, value in own.items() if key not in unset})}",
        f"data.num_frames={own['num_frames']}",
        f"data.image_size={image_size}",
        "data.batch_size=2",
        "data.rand_augment=",
        "optim.global_batch_size=4",
        "probe.lr=1e-2,1e-3",
    ]
    return {"checkpoint": [str(checkpoint)], "train.py": tiny, "eval.py": ["eval.batch_size=4"]}


def run(words: list[str], workplace: dict[str, list[str]]) -> None:
    python, script, *arguments = words
    assert python == "python"
    arguments = [argument.replace("CHECKPOINT", workplace["checkpoint"][0]) for argument in arguments]
    assert COMMANDS[script]([*arguments, *workplace[script]]) == 0


def test_three_commands_lead_from_a_checkpoint_and_a_folder_to_a_report(workplace, capsys):
    probe, test, report = page_commands("## Frozen evaluation: probes")
    run(probe, workplace)
    assert "8 probes: attentive_4; lr 0.01, 0.001; weight decay 0.01, 0.1, 0.4, 0.8" in capsys.readouterr().out
    network, card = weights.load_network("runs/probe/best")
    assert network.num_clips == 2 and card["probe"]["kind"] == "attentive_4"
    run(test, workplace)
    folder = Path("runs/probe/eval/ssv2")
    assert json.loads((folder / "summary.json").read_text())["scored"] == 8
    page = (folder / "report.html").read_text()
    assert "<h2>Probes</h2>" in page and "Changed clips" not in page
    run(report, workplace)
    page = (folder / "report.html").read_text()
    assert "<h2>Changed clips</h2>" in page and (folder / "perturbations.csv").exists()


def test_commands_with_stored_features_lead_to_the_same_kind_of_run(workplace, capsys):
    for split in ("train", "val"):
        lines = [f"{split}/class_{index % 2}/{index}.mp4 {index % 2}\n" for index in range(8)]
        Path(f"{split}.txt").write_text("".join(lines))
    *extract, probe, neighbors = page_commands("### From stored features")
    extra = [f"model.pretrained={workplace['checkpoint'][0]}", "data.class_names=", "data.root="]
    settings = [*workplace["train.py"], *extra]
    lists = ["data.train=train.txt", "data.val=val.txt"]
    for words in extract:
        run(words, workplace | {"eval.py": [*settings, *lists]})
    run([*probe, "run.name=stored"], workplace | {"train.py": settings})
    assert "2.0x" not in capsys.readouterr().out and Path("runs/stored/probes.png").exists()
    run(["python", "eval.py", "runs/stored"], workplace | {"eval.py": ["data.test=val.txt", "eval.batch_size=4"]})
    from evaluation.probes import main as probes

    assert probes([*neighbors[3:5], "shots=1,2", "k=1"]) == 0
    assert "2 per class, 5 seeds: 1 nearest neighbors" in capsys.readouterr().out
