"""Find the largest batch that fits into memory, and the recomputation with which it is fastest (run.fit).

Each trial is a few training steps on random clips in a process of its own, so that one that runs out of memory costs
its time and nothing else. Which trials are made and what is chosen are pure functions of their results.

    python -m training.fit CONFIG.yaml      a trial with the batch of a configuration: prints memory and speed as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from configs import loading
from configs.schema import Config
from networks.student import make_student
from training.adapter import train_adapter_only
from training.distillation import load_teacher
from training.objective import build_task
from training.setup import build_network, build_state, freeze, is_compiled
from utils.device import autocast, choose_device, choose_dtype
from utils.distributed import World, local_world_size

MARGIN = 0.85  # of the free memory; the rest is for decoders, other processes and fragments
STEPS, BATCHES = 3, 2  # of a trial, whose first step is not timed, and of a step, so that gradients are kept meanwhile
NUM_CLASSES = 400  # of the head in a trial
MUCH_FASTER = 1.02  # what more recomputation has to bring to be chosen


class Trial(NamedTuple):
    """A training step with a batch whose first blocks are computed again: whether it fits, and how it does."""

    batch_size: int
    checkpoint_blocks: int
    fits: bool
    gib: float = 0.0
    clips_per_s: float = 0.0


TryBatch = Callable[[int, int], Trial]  # batch_size, checkpoint_blocks


def fit(cfg: Config, world: World) -> tuple[Config, str]:
    """Return the configuration with the largest batch that fits and the recomputation with which it is fastest, and a
    line that says so.

    Gradients are accumulated to the same clips per step. Raises ValueError if not even a clip fits.
    """
    if cfg.task.teacher:  # here, what is wrong with it is one line
        load_teacher(cfg, torch.device("cpu"), torch.float32)
    clips = cfg.optim.global_batch_size or cfg.data.batch_size * world.size
    if clips % world.size:
        raise ValueError(f"run.fit: {clips} clips per step cannot be shared by {world.size} processes")
    mixes = bool(cfg.data.mixup or cfg.data.cutmix)
    batches = possible_batches(clips // world.size, cfg.data.aug_repeats, at_least=2 if mixes else 1)
    trials = world.broadcast(lambda: run_trials(cfg, batches))
    best = choose(trials)
    if best is None:
        raise ValueError("run.fit: not even one clip fits: use a smaller network, or fewer or smaller frames")
    found = best.batch_size, best.checkpoint_blocks, clips
    return with_batch(cfg, *found), f"run.fit: {_describe(*found)}"


def keep_fit(cfg: Config, saved: Config) -> tuple[Config, str]:
    """Return the configuration with what run.fit found when the run that is resumed began, and a line that says so."""
    found = saved.data.batch_size, saved.model.args.get("checkpoint_blocks", 0), saved.optim.global_batch_size
    return with_batch(cfg, *found), f"run.fit: as when the run began, {_describe(*found)}"


def _describe(batch_size: int, checkpoint_blocks: int, clips: int) -> str:
    batch = f"data.batch_size={batch_size} model.args.checkpoint_blocks={checkpoint_blocks}"
    return f"{batch}, of {clips} clips per step"


def with_batch(cfg: Config, batch_size: int, checkpoint_blocks: int, global_batch_size: int) -> Config:
    """Return the configuration with another batch, and with the same clips per step."""
    args = cfg.model.args | {"checkpoint_blocks": checkpoint_blocks}
    cfg = loading.replace_values(cfg, "data", batch_size=batch_size)
    cfg = loading.replace_values(cfg, "model", args=args)
    return loading.replace_values(cfg, "optim", global_batch_size=global_batch_size)


def possible_batches(clips: int, aug_repeats: int = 1, at_least: int = 1) -> list[int]:
    """Return the powers of two, times the repeats of a clip, of which whole batches make the clips of a step.

    Raises ValueError if there is none of `at_least` clips: mixing needs two.
    """
    batches = [aug_repeats * 2**n for n in range(clips.bit_length()) if clips % (aug_repeats * 2**n) == 0]
    batches = [batch for batch in batches if batch >= at_least]
    if not batches:
        raise ValueError(f"run.fit: expected {clips} clips per step and process to be a multiple of {aug_repeats * 2}")
    return batches


def run_trials(cfg: Config, batches: Sequence[int]) -> list[Trial]:
    """Make the trials that plan_trials() asks for on this machine, and print them."""
    device = choose_device(cfg.run.device, 0)
    limit = MARGIN * free_gib(device)
    depth = count_blocks(cfg)

    def try_batch(batch_size: int, blocks: int) -> Trial:
        trial = run_trial(cfg, batch_size, blocks, limit)
        result = f"{trial.gib:.1f} GiB, {trial.clips_per_s:.1f} clips/s" if trial.fits else "does not fit"
        what = f"{batch_size} clips, {blocks} of {depth} blocks recomputed"
        print(f"run.fit: {what}: {result} (of {limit:.1f} GiB)", flush=True)
        return trial

    return plan_trials(try_batch, batches, sorted({0, depth // 2, depth}), limit)


def plan_trials(try_batch: TryBatch, batches: Sequence[int], levels: Sequence[int], limit: float) -> list[Trial]:
    """Try for each level of recomputation the largest batch that fits; return all trials.

    It is estimated from two small batches, since memory grows in proportion to the clips, and then tried, and smaller
    ones if it does not fit. More is recomputed only while the largest batch of all does not fit.
    """
    trials: list[Trial] = []
    for blocks in levels:
        small = []
        for batch in batches[:2]:
            small.append(try_batch(batch, blocks))
            if not small[-1].fits:
                break
        trials += small
        largest = estimate_largest(small, batches, limit)
        for batch in (batch for batch in reversed(batches[2:]) if batch <= largest):
            trials.append(try_batch(batch, blocks))
            if trials[-1].fits:
                break
        if any(trial.fits and trial.batch_size == batches[-1] for trial in trials):
            break
    return trials


def estimate_largest(small: Sequence[Trial], batches: Sequence[int], limit: float) -> int:
    """Return the largest batch whose memory, a line through those of two trials, stays below the limit."""
    if len(small) < 2 or not all(trial.fits for trial in small):
        return 0
    first, second = small
    per_clip = (second.gib - first.gib) / (second.batch_size - first.batch_size)
    return max(b for b in batches if b <= second.batch_size or second.gib + per_clip * (b - second.batch_size) <= limit)


def choose(trials: Sequence[Trial]) -> Trial | None:
    """Return the largest batch that fits of the fastest level of recomputation; of equally fast ones the lowest."""
    best: Trial | None = None
    for blocks in sorted({trial.checkpoint_blocks for trial in trials}):
        fitting = [trial for trial in trials if trial.fits and trial.checkpoint_blocks == blocks]
        if fitting:
            largest = max(fitting)
            if best is None or largest.clips_per_s > MUCH_FASTER * best.clips_per_s:
                best = largest
    return best


def count_blocks(cfg: Config) -> int:
    """Return the number of blocks that can be recomputed."""
    with torch.device("meta"):
        network = build_network(cfg, NUM_CLASSES)
    return len(network.blocks)  # type: ignore[arg-type]


def free_gib(device: torch.device) -> float:
    """Return the memory of a device that is free: of a CPU the share of this process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return available / 2**20 / local_world_size()


def run_trial(cfg: Config, batch_size: int, checkpoint_blocks: int, limit: float) -> Trial:
    """Make a trial in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.yaml"
        path.write_text(loading.dump_config(with_batch(cfg, batch_size, checkpoint_blocks, 0)))
        command = [sys.executable, "-m", "training.fit", str(path)]
        env = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        search_path = [str(Path(__file__).parent.parent), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, search_path))
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode == 0:
        gib, clips_per_s = json.loads(done.stdout.splitlines()[-1])
        return Trial(batch_size, checkpoint_blocks, gib <= limit, gib, clips_per_s)
    is_memory = "OutOfMemoryError" in done.stderr or "can't allocate memory" in done.stderr or done.returncode == -9
    if is_memory:
        return Trial(batch_size, checkpoint_blocks, fits=False)
    raise ValueError(f"run.fit: a trial failed:\n{done.stderr[-1500:]}")


def main(path: str) -> None:
    """Make the trial of a configuration, and print its memory in GiB and its clips per second."""
    cfg = loading.load_config(path)
    device = choose_device(cfg.run.device, 0)
    dtype = choose_dtype(cfg.run.precision, device)
    torch.set_num_threads(cfg.run.cpu_threads or max(1, len(os.sched_getaffinity(0)) - 1))
    compiled, num_classes = is_compiled(cfg, device), NUM_CLASSES
    teacher = load_teacher(cfg, device, dtype, compiled) if cfg.task.teacher else None
    if teacher and cfg.task.distillation == "logits":
        num_classes = len(teacher.class_names)
    network = build_network(cfg, num_classes)
    if cfg.model.freeze:
        freeze(network, cfg.model.freeze)
    if cfg.adapter.name:
        train_adapter_only(network, cfg)
    if teacher and cfg.task.distillation == "features":
        make_student(network, teacher.feature_dim)
    state = build_state(cfg, network.to(device), 1, dtype, 1)
    task = build_task(cfg, network, compiled, [1] * num_classes, teacher)
    video = torch.randn(cfg.data.batch_size, *network.patch_embed.input_shape, device=device)  # type: ignore[misc,union-attr]
    label = torch.arange(cfg.data.batch_size, device=device) % num_classes
    batch = SimpleNamespace(video=video, label=torch.nn.functional.one_hot(label, num_classes).float())
    for step in range(STEPS):
        if step == 1:
            start = time.perf_counter()
        for _ in range(BATCHES):
            with autocast(device, dtype):
                loss = task(state.model, batch)["loss"]  # type: ignore[arg-type]
            state.scaler.scale(loss).backward()
        state.optimizer_step(cfg.optim.clip_grad_norm).item()  # waits for the device
    clips_per_s = (STEPS - 1) * BATCHES * cfg.data.batch_size / (time.perf_counter() - start)
    if device.type == "cuda":
        gib = torch.cuda.max_memory_reserved(device) / 2**30
    else:
        status = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would be that of the parent process
        gib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20
    print(json.dumps([gib, clips_per_s]))


if __name__ == "__main__":
    main(sys.argv[1])
