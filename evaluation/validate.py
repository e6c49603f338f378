"""Score the validation list of a training run, and keep the best network, or the network of the best probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.evaluate import evaluate
from evaluation.evaluate_probes import evaluate_probes
from evaluation.multi_label import describe_labels, rate_classes, summarize_labels
from evaluation.scores import Scores
from networks import weights
from networks.probed_encoder import ProbeGrid, select_state
from networks.student import PROJECTION
from networks.weights.adapter import save_adapter
from pipelines.loader import EvalVideoLoader
from training.history import is_best, read_metrics
from training.parallel import network_state
from training.pretraining_tasks import PretrainingTask, mean_loss
from training.probe_grid import ROW_KIND as PROBES
from training.probe_grid import ProbeResult, best_probe, metrics_row, probe_settings
from training.session import Training, stop_probes
from training.setup import model_card


def validate(t: Training) -> None:
    """Score the validation list, and save the network to best/ if it is the best so far."""
    metrics: dict[str, float] = {}
    results: dict[int, ProbeResult] = {}
    if isinstance(t.state.network, ProbeGrid):
        results, metrics = score_probes(t, t.state.network)
    elif t.val_loader:
        metrics = score_validation(t)
    is_kept = not metrics or (isinstance(t.task, PretrainingTask) and t.task.keeps_last)
    if t.world.broadcast(lambda: is_kept or is_best(metrics, read_metrics(t.run_dir.path), t.cfg.eval.metric)):
        save_best(t, best_probe(results) if results else None)
    epoch = t.train_loader.epoch
    keep_checkpoint(t, epoch)
    if results:
        t.run_dir.record(PROBES, t.step, epoch=epoch, **metrics_row(probe_settings(t.cfg), results))
        t.run_dir.write_probes(probe_settings(t.cfg))
    if metrics:
        t.run_dir.record("val", t.step, epoch=epoch, **metrics)
    stop_probes(t)


def keep_checkpoint(t: Training, epoch: int) -> None:
    """Save the network to checkpoints/epoch_N/ as run.keep_checkpoints asks. All processes call it together."""
    number = t.cfg.run.keep_checkpoints
    if number:
        t.run_dir.keep_checkpoint(epoch, number, prepare_save(t, None))


def save_best(t: Training, probe: int | None) -> None:
    """Save the network to best/, or of a grid the network of one probe. All processes call it together."""
    t.run_dir.save_best(prepare_save(t, probe))


def prepare_save(t: Training, probe: int | None) -> Callable[[Path], None]:
    """Gather the weights of the network, or of one probe, and return what writes them into a folder."""
    network, name, setting = t.state.eval_model, t.cfg.model.name, None
    state = network_state(network)  # collective: with FSDP every rank holds a shard
    if probe is not None:
        assert isinstance(network, ProbeGrid)
        network, name, setting = network.select(probe), "probed_encoder", probe_settings(t.cfg)[probe]
        state = select_state(state, probe)
    state = {key: tensor for key, tensor in state.items() if not key.startswith(PROJECTION)}
    card = model_card(t.cfg, t.classes, t.num_train_videos, setting)
    if t.adapter:
        base, trained = t.adapter.base, {key: state[key] for key in t.adapter.keys if key in state}
        return lambda path: save_adapter(path, network, name, card, trained, base)
    return lambda path: weights.save_network(path, network, name, card, state)


def score_probes(t: Training, grid: ProbeGrid) -> tuple[dict[int, ProbeResult], dict[str, float]]:
    """Return the results of all active probes over the validation list, and those of the best one with its number."""
    assert t.val_loader
    results, coverage = evaluate_probes(grid, t.val_loader, t.world, t.dtype)
    best = best_probe(results)
    top1, top5, loss = results[best]
    others = sorted(100 * result.top1 for result in results.values())
    text = f"top-1 {100 * top1:.2f} %  top-5 {100 * top5:.2f} %  loss {loss:.4f}"
    range_text = f"; {len(others)} probes: {others[0]:.2f} to {others[-1]:.2f} %" if len(others) > 1 else ""
    name = probe_settings(t.cfg)[best].name
    t.run_dir.log(f"epoch {t.train_loader.epoch}  val: {name} {text}{range_text}  coverage: {coverage}")
    return results, {"loss": loss, "top1": top1, "top5": top5, "probe": best}


def score_validation(t: Training) -> dict[str, float]:
    """Return loss and accuracy, or of a pre-training loss and baseline, over the validation list."""
    assert isinstance(t.val_loader, EvalVideoLoader)
    epoch = t.train_loader.epoch
    if isinstance(t.task, PretrainingTask):
        loss, baseline, _ = mean_loss(t.state.eval_model, t.task, t.val_loader, t.device, t.dtype)
        t.val_loader.release_memory()
        t.run_dir.log(f"epoch {epoch}  val: loss {loss:.4f}  mean target {baseline:.4f}")
        return {"loss": loss, "baseline": baseline}
    scores = evaluate(t.state.eval_model, t.val_loader, t.world, t.dtype, average=t.cfg.eval.average)
    metrics = validation_metrics(scores, t.classes)
    if scores.multi_label:
        text = describe_labels(metrics)
    else:
        text = f"top-1 {100 * metrics['top1']:.2f} %  top-5 {100 * metrics['top5']:.2f} %"
    if t.cfg.eval.metric == "macro_top1":
        text = f"mean over classes {100 * metrics['macro_top1']:.2f} %  {text}"
    t.run_dir.log(f"epoch {epoch}  val: {text}  loss {metrics['loss']:.4f}  {scores.coverage()}")
    return metrics


def validation_metrics(scores: Scores, classes: Sequence[str]) -> dict[str, float]:
    """Return what a row of a validation has: loss and accuracies, or of several labels their average precision."""
    if scores.multi_label:
        return summarize_labels(scores, rate_classes(scores, classes))
    accuracies = {"top1": scores.topk(1), "top5": scores.topk(5), "macro_top1": scores.macro_top1}
    return {"loss": scores.loss, **accuracies}


def is_validated(t: Training) -> bool:
    """Tell whether metrics.jsonl has a validation of the current step."""
    return any(row["kind"] == "val" and row["step"] == t.step for row in read_metrics(t.run_dir.path))
