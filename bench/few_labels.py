"""Fine-tune the demo's pre-trained networks with few labels, beside the same networks from scratch.

    python -m bench.few_labels [key=value ...] [--dry-run]

    folder=runs         where `make demo-maskfeat` and `make demo-videomae` left demo_maskfeat and demo_videomae
    cases=videomae,vit_scratch,maskfeat,mvit_scratch
    steps=60,240,480    optimizer steps of each fine-tuning
    seeds=3             of the weights, the order and the labels
    max_per_class=10    labeled videos of each class
    scratch_lr=1e-3     peak lr from scratch; the recipes' own are for pre-trained networks
    jobs=1              networks that are fine-tuned at a time
    out=PATH            the result (default bench/results/few_labels.json)

The videos are those of the demo, in demo/ (`python -m pipelines.synthetic demo`). Accuracies are top-1 of the 3 x 3
test after the last step. The pre-training is one run of each kind, so that the seeds show the spread of the fine-tuning
only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.harness.runner import check_choices, check_minimum, run_bench
from pipelines import synthetic

RECIPES = {"videomae": "configs/demo/demo_videomae_finetune.yaml", "maskfeat": "configs/demo/demo_finetune.yaml"}
PRETRAINED = {"videomae": "demo_videomae", "maskfeat": "demo_maskfeat"}
# The pre-trained network that each network from scratch stands beside.
SCRATCH = {"vit_scratch": "videomae", "mvit_scratch": "maskfeat"}
CASES = ("videomae", "vit_scratch", "maskfeat", "mvit_scratch")
MEET_WITHIN = 0.02  # of the accuracy, between which two networks count as equal


@dataclass(frozen=True)
class Settings:
    """The settings of this benchmark; the module's help explains them."""

    folder: str = "runs"
    cases: tuple[str, ...] = CASES
    steps: tuple[str, ...] = ("60", "240", "480")
    seeds: int = 3
    max_per_class: int = 10
    scratch_lr: float = 1e-3
    jobs: int = 1
    out: str = "bench/results/few_labels.json"
    dry_run_args: ClassVar[str] = "cases=vit_scratch steps=5 seeds=1 max_per_class=1"

    def __post_init__(self) -> None:
        check_choices(self, cases=CASES)
        check_minimum(self, steps=1, seeds=1, max_per_class=1, jobs=1)


def measure_all(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the accuracies whenever a case of a length is measured."""
    for case in settings.cases:
        path = Path(settings.folder, PRETRAINED.get(case, ""))
        if case in PRETRAINED and not (path / "best").exists():
            raise ValueError(f"folder={settings.folder}: no {path.name} in it; run `make demo-{case}` first")
    accuracies: dict[str, dict[str, list[float]]] = {case: {} for case in settings.cases}
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        if not Path("demo/train.txt").exists():
            synthetic.main(["demo"])
        for steps in map(int, settings.steps):
            for case, runs in fine_tune_all(settings, steps, folder):
                accuracies[case][str(steps)] = runs
                text = ", ".join(f"{100 * accuracy:.1f}" for accuracy in runs)
                print(f"{case}, {steps} steps: top-1 {text} %", flush=True)
                yield {"top1": accuracies, "meet_at": meeting_points(accuracies)}


def fine_tune_all(settings: Settings, steps: int, folder: str) -> Iterator[tuple[str, list[float]]]:
    """Yield each case with the accuracies of its seeds, as soon as they are there."""
    with ThreadPoolExecutor(settings.jobs) as pool:
        futures = {
            case: [pool.submit(fine_tune, settings, case, steps, seed, folder) for seed in range(settings.seeds)]
            for case in settings.cases
        }
        try:
            for case, runs in futures.items():
                yield case, [run.result() for run in runs]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def fine_tune(settings: Settings, case: str, steps: int, seed: int, folder: str) -> float:
    """Fine-tune one network and return its top-1 accuracy in the test."""
    base = SCRATCH.get(case, case)
    name = f"{case}_{steps}_{seed}"
    overrides = [f"run.output_dir={folder}", f"run.name={name}", f"run.seed={seed}", f"data.few_shot_seed={seed}"]
    overrides += [f"data.max_per_class={settings.max_per_class}", "data.val=", "run.log_interval=100"]
    batch_size = min(12, 6 * settings.max_per_class)  # six classes
    epochs = -(-steps // (6 * settings.max_per_class // batch_size))
    overrides += [f"data.batch_size={batch_size}", f"optim.epochs={epochs}"]
    if settings.jobs > 1:
        overrides.append(f"run.cpu_threads={max(1, len(os.sched_getaffinity(0)) // settings.jobs)}")
    if case in SCRATCH:
        overrides += ["model.pretrained=", "model.args.head_scale=1", "optim.layer_decay=1"]
        overrides += [f"optim.lr={settings.scratch_lr}"]
    else:
        overrides.append(f"model.pretrained={Path(settings.folder, PRETRAINED[case])}")
    for command in (["train.py", RECIPES[base], *overrides], ["eval.py", f"{folder}/{name}"]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    (summary,) = Path(folder, name, "eval").glob("*/summary.json")
    return json.loads(summary.read_text())["top1"]


def meeting_points(accuracies: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, str]:
    """Return for each pre-trained network the number of steps from which on one from scratch is as good, "" if none is.

    In too few steps neither may learn anything, which is no meeting if they differ later.
    """
    points = {}
    for scratch, case in SCRATCH.items():
        if scratch in accuracies and case in accuracies:
            points[case] = ""
            for steps in sorted(accuracies[scratch].keys() & accuracies[case].keys(), key=int, reverse=True):
                pretrained, alone = (statistics.mean(accuracies[name][steps]) for name in (case, scratch))
                if alone < pretrained - MEET_WITHIN:
                    break
                points[case] = steps
    return points


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("few_labels", __doc__, Settings, measure_all, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
