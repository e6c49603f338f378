"""Fine-tune the demo's network in different ways, and train a smaller one with and without a teacher, at equal steps.

    python -m bench.fine_tuning [key=value ...] [--dry-run]

    cases=full,lora,bias,head,alone,logits,features
    seeds=3             of the weights, the order and the labels
    max_per_class=10    labeled videos of each class, for the first four cases
    steps=120           of them
    student_epochs=3    of the last three cases, over all videos
    out=PATH            the result (default bench/results/fine_tuning.json)

The first four start from one network that was trained to tell two of the demo's six motions apart, and learn all six:
all of it, with LoRA (rank 16, attention and MLP), its biases, or its head alone. The last three train a network of
half the width from scratch: alone, or from the probabilities or the features of the demo's own network, too. The videos
are those of the demo, in demo/ (`python -m pipelines.synthetic demo`). Accuracies are top-1 of the 3 x 3 test after the
last step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.harness.runner import check_choices, check_minimum, run_bench
from pipelines import synthetic

RECIPE = "configs/demo/demo.yaml"
BASE_CLASSES = "left,right"
BATCH_SIZE = 12
# Rank, alpha and lr were chosen on seeds 10 to 12.
LORA = ["adapter.rank=16", "adapter.alpha=32", "adapter.target_modules=qkv,proj,fc1,fc2"]
FINE_TUNING = {
    "full": ["optim.lr=1e-3"],
    "lora": ["adapter.name=lora", *LORA, "optim.lr=2e-3"],
    "bias": ["adapter.name=bias", "optim.lr=1e-2"],
    "head": ["model.freeze=backbone", "optim.lr=2e-2"],
}
STUDENT_ARGS = "model.args={kv_stride: [1, 8, 8], pooling: fc_norm, embed_dims: [12, 24, 48]}"
STUDENTS = {
    "alone": [],
    "logits": ["task.distillation=logits", "task.distillation_tau=4", "task.distillation_alpha=0.9"],
    "features": ["task.distillation=features"],
}
CASES = (*FINE_TUNING, *STUDENTS)


@dataclass(frozen=True)
class Settings:
    """The settings of this benchmark; the module's help explains them."""

    cases: tuple[str, ...] = CASES
    seeds: int = 3
    max_per_class: int = 10
    steps: int = 120
    student_epochs: int = 3
    out: str = "bench/results/fine_tuning.json"
    dry_run_args: ClassVar[str] = "cases=head seeds=1 max_per_class=2 steps=1"

    def __post_init__(self) -> None:
        check_choices(self, cases=CASES)
        check_minimum(self, seeds=1, max_per_class=1, steps=1, student_epochs=1)


def measure_all(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the accuracies whenever a case is measured."""
    if not Path("demo/train.txt").exists():
        synthetic.main(["demo"])
    accuracies: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="clipline-bench-") as folder:
        for case in settings.cases:
            start = prepare_start(case, folder, short=settings.steps == 1)
            for seed in range(settings.seeds):
                accuracies.setdefault(case, []).append(run_case(settings, case, seed, folder, start))
            print(f"{case}: top-1 {', '.join(f'{100 * value:.1f}' for value in accuracies[case])} %", flush=True)
            yield {"top1": accuracies}


def prepare_start(case: str, folder: str, short: bool) -> str:
    """Train what a case starts from, or learns from, unless it is there; return its folder ("" for none)."""
    if case == "alone":
        return ""
    name = "base" if case in FINE_TUNING else "teacher"
    path = Path(folder, name)
    if not path.exists():
        classes = [f"data.class_subset={BASE_CLASSES}"] if name == "base" else []
        train(folder, name, *classes, "data.test=", *(["optim.epochs=1", "optim.warmup_epochs=0"] if short else []))
    return str(path)


def run_case(settings: Settings, case: str, seed: int, folder: str, start: str) -> float:
    """Train one network and return its top-1 accuracy in the test."""
    overrides = [f"run.seed={seed}", "data.val=", "run.log_interval=100"]
    if case in FINE_TUNING:
        batch_size = min(BATCH_SIZE, 6 * settings.max_per_class)  # six classes
        epochs = -(-settings.steps // (6 * settings.max_per_class // batch_size))
        overrides += [f"data.max_per_class={settings.max_per_class}", f"data.few_shot_seed={seed}"]
        overrides += [f"data.batch_size={batch_size}", f"optim.epochs={epochs}", f"model.pretrained={start}"]
        overrides += FINE_TUNING[case]
    else:
        overrides += [STUDENT_ARGS, f"optim.epochs={settings.student_epochs}", *STUDENTS[case]]
        overrides += [f"task.teacher={start}"] if start else []
    overrides += ["optim.warmup_epochs=0"] if "optim.epochs=1" in overrides else []
    name = f"{case}_{seed}"
    train(folder, name, *overrides)
    call(["eval.py", f"{folder}/{name}"])
    (summary,) = Path(folder, name, "eval").glob("*/summary.json")
    return json.loads(summary.read_text())["top1"]


def train(folder: str, name: str, *overrides: str) -> None:
    """Run train.py with the demo's recipe."""
    call(["train.py", RECIPE, f"run.output_dir={folder}", f"run.name={name}", *overrides])


def call(command: Sequence[str]) -> None:
    """Run a command of this project. Raises ValueError with the last line of what it prints if it fails."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command[:2])}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return run_bench("fine_tuning", __doc__, Settings, measure_all, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
