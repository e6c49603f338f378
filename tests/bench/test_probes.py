"""The benchmarks of probes, run-length tokenization and masks run, and their rows say what was measured."""

from __future__ import annotations

import json

import pytest

from bench import adapters, few_labels, fine_tuning, masking, probes, run_length
from bench.report.rows import ROWS


def test_probes_dry_run_measures_all_cases(tmp_path, capsys):
    out = tmp_path / "probes.json"
    for kind in ("attentive", "linear"):
        assert probes.main(["--dry-run", f"kind={kind}", "device=cpu", f"out={out}"]) == 0
        result = json.loads(out.read_text())
        cases = {"one", "many", "features"} | ({"transformers"} if kind == "attentive" else set())
        assert set(result["seconds"]) == cases and result["tokens"] == 2 * 4 * 4
        (row,) = ROWS["probes"](result)
        assert row["encoder"] == "vjepa2_tiny, 1 blocks" and row["probes"] == f"3 {kind}"
        assert all(row[key] for key in row if kind == "attentive" or "transformers" not in key)
    assert "over one probe" in capsys.readouterr().out


def test_run_length_dry_run_measures_each_threshold(tmp_path, capsys):
    out = tmp_path / "run_length.json"
    assert run_length.main(["--dry-run", "device=cpu", f"out={out}"]) == 0
    result = json.loads(out.read_text())
    rows = ROWS["run_length"](result)
    assert [row["threshold"] for row in rows] == ["0", "0.05", "0.1", "0.2", "0.4"] and rows[0][
        "patches kept"
    ] == "100 %"
    assert rows[0]["files"] == "square.mp4" and result["thresholds"][-1]["kept"] < 0.8
    assert run_length.main(["--dry-run", "network=vivit_fdp_tiny", f"out={out}"]) == 2
    assert "eval.rlt_thresholds: ViViT has none; expected ViViT (joint)" in capsys.readouterr().err


@pytest.mark.slow
def test_masking_dry_run_measures_each_ratio_the_peer_and_the_loader(tmp_path, capsys):
    out = tmp_path / "masking.json"
    assert masking.main(["--dry-run", "device=cpu", f"out={out}"]) == 0
    result = json.loads(out.read_text())
    cases = ["fine-tuning", *(f"{ratio} hidden" for ratio in ("0.5", "0.75", "0.9", "0.95"))]
    cases += ["0.9 hidden, 0.5 not decoded", "0.9 hidden, transformers"]
    assert list(result["cases"]) == cases
    parameters = {case: figures["parameters"] for case, figures in result["cases"].items()}
    assert abs(parameters["0.9 hidden, transformers"] - parameters["0.9 hidden"]) < 0.01 * parameters["0.9 hidden"]
    rows = ROWS["masking"](result)
    assert [row["patches"] for row in rows] == cases and all(row["loaders"] for row in rows)
    assert (
        masking.main(
            ["--dry-run", "network=mae_hiera_tiny", "depth=0", "image_size=64", "loader_seconds=0", f"out={out}"]
        )
        == 0
    )
    result = json.loads(out.read_text())
    assert list(result["cases"]) == cases[:-1] and result["loader_clips_per_s"] is None
    assert masking.main(["network=vivit_b"]) == 2
    assert "network=vivit_b: expected some of pretrain_videomae_tiny" in capsys.readouterr().err


def test_masking_dry_run_also_measures_compiled_networks(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.compile", lambda network: compiled.append(network) or network)
    arguments = ["--dry-run", "device=cpu", "ratios=0.75", "decoder_ratio=0", "loader_seconds=0", "compiled=yes"]
    assert masking.main([*arguments, f"out={tmp_path / 'masking.json'}"]) == 0
    cases = list(json.loads((tmp_path / "masking.json").read_text())["cases"])
    pair = ["0.75 hidden, compiled", "0.75 hidden, transformers", "0.75 hidden, transformers, compiled"]
    assert cases == ["fine-tuning", "0.75 hidden", *pair]
    assert [type(network).__name__ for network in compiled] == ["VideoMAE", "VideoMAEForPreTraining"]


def test_networks_meet_where_one_from_scratch_is_as_good():
    accuracies = {
        "videomae": {"5": [0.1, 0.2], "60": [0.5, 0.7], "240": [0.8, 0.8]},
        "vit_scratch": {"5": [0.2, 0.1], "60": [0.2, 0.3], "240": [0.78, 0.79]},
        "maskfeat": {"60": [0.9, 0.9]},
        "mvit_scratch": {"60": [0.2, 0.3]},
    }
    assert few_labels.meeting_points(accuracies) == {"videomae": "240", "maskfeat": ""}
    assert few_labels.meeting_points({"videomae": {"60": [0.5]}}) == {}


def test_few_labels_needs_the_pretraining(tmp_path, capsys):
    assert few_labels.main([f"folder={tmp_path}", f"out={tmp_path}/x.json"]) == 2
    assert "no demo_videomae in it; run `make demo-videomae` first" in capsys.readouterr().err


def test_adapters_dry_run_measures_every_case(tmp_path, capsys):
    out = tmp_path / "adapters.json"
    assert adapters.main(["--dry-run", "device=cpu", f"out={out}"]) == 0
    cases = json.loads(out.read_text())["cases"]
    assert list(cases) == ["lora", "bias", "prompt", "none"]
    assert all(cases[name]["trained_m"] < cases["none"]["trained_m"] for name in ("lora", "bias", "prompt"))
    rows = ROWS["adapters"](json.loads(out.read_text()))
    assert [row["trained"] for row in rows] == ["lora", "bias", "prompt", "everything"]
    frames = ["network=frame_encoder_tiny", "image_size=64", "adapters=st_adapter,aim"]
    assert adapters.main(["--dry-run", "device=cpu", *frames, f"out={out}"]) == 0


@pytest.mark.slow
def test_fine_tuning_dry_run(tmp_path, monkeypatch):
    out = tmp_path / "fine_tuning.json"
    assert fine_tuning.main(["--dry-run", f"out={out}"]) == 0
    assert list(json.loads(out.read_text())["top1"]) == ["head"]
