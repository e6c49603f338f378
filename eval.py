"""Evaluate a run: every video scored exactly once, from clips x crops views of one decode.

    python eval.py runs/NAME                                      the multi-view test of its configuration
    python eval.py runs/NAME eval.num_clips=10 eval.num_crops=3   other views
    python eval.py runs/NAME data.test=other/list.txt             another list
    python eval.py configs/k400/NAME.yaml model.pretrained=FILE   a recipe with the weights of a checkpoint
    python eval.py runs/NAME video=clip.mp4                       classify one video of any length, or a folder of them
    python eval.py runs/NAME eval.attention_map=last              also draw the attention in four videos
    python eval.py runs/NAME eval.perturbations=all               also test shuffled, reversed, corrupted ... clips
    python eval.py runs/NAME eval.rlt_thresholds=0.1,0.2,0.4      also test with fewer tokens, and time the network
    python eval.py runs/NAME eval.features_path=test.npz          write features instead of a test
    python eval.py --compare runs/A runs/B ...                    compare tests of the same videos
    python eval.py --soup runs/NAME                               average the epochs of run.keep_checkpoints
    python eval.py --average runs/A runs/B ...                    mean and deviation over splits or seeds
    torchrun --standalone --nproc-per-node 8 eval.py runs/NAME    on eight GPUs

Results are written to runs/NAME/eval/. A test that was interrupted continues where it stopped. A video that cannot be
read is reported and counts as wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from configs import loading
from evaluation.compare import average_runs, compare_runs
from evaluation.eval_run import EvalRun, build_test_loader, load_run
from evaluation.evaluate import evaluate, evaluate_pretraining
from evaluation.features import Features, extract_features
from evaluation.further_tests import Tests, build_further_tests, report_further_tests
from evaluation.html_report import Image, most_confident_errors, write_attention, write_html_report
from evaluation.partial import PartialScores, eval_dir_name, eval_fingerprint
from evaluation.report import write_report
from evaluation.scores import Scores
from evaluation.soups import find_soup
from evaluation.video import classify_video, classify_videos, score_video
from networks.weights.adapter import weights_file
from pipelines.decode.image_folder import holds_images
from pipelines.loader import EvalVideoLoader
from pipelines.sample_source import TooManyUnreadableVideos
from pipelines.storage import videos_below
from training.feature_input import describe_features
from utils.cli import run_command


def evaluate_command(argv: Sequence[str]) -> int:
    """Do what the arguments ask for."""
    if argv[0] in ("--compare", "--average"):
        if len(argv) < 3:
            raise ValueError(f"{argv[0]}: expected two or more run folders")
        combine = compare_runs if argv[0] == "--compare" else average_runs
        print(combine([Path(path) for path in argv[1:]]))
        return 0
    if argv[0] == "--soup":
        if len(argv) < 2:
            raise ValueError("--soup: expected a run folder")
        print(find_soup(Path(argv[1]), argv[2:]))
        return 0
    arguments = [argument.removeprefix("--") for argument in argv[1:]]
    videos = [argument.removeprefix("video=") for argument in arguments if argument.startswith("video=")]
    run = load_run(Path(argv[0]), [argument for argument in arguments if not argument.startswith("video=")])
    text = classify(run, Path(videos[-1])) if videos else evaluate_list(run)
    if run.world.is_main:
        print(text)
    if run.world.size > 1:
        torch.distributed.destroy_process_group()
    return 0


def evaluate_list(run: EvalRun) -> str:
    """Test, extract features or evaluate a pre-training over a list; return the lines to print."""
    cfg = run.cfg
    if cfg.eval.features_path:
        Features.check_path(Path(cfg.eval.features_path))
    loader = build_test_loader(run)
    if cfg.task.is_pretraining:
        output_dir = run.path / "eval" / "pretraining"
        return evaluate_pretraining(cfg, run.network, loader, run.world, output_dir, run.dtype)
    if cfg.eval.features_path:
        description = describe_features(cfg, run.path)
        return extract_features(cfg.eval, run.network, loader, run.world, run.dtype, description)
    return run_multi_view_test(run, loader)


def run_multi_view_test(run: EvalRun, loader: EvalVideoLoader) -> str:
    """Score the list and write all files of the test to RUN/eval/; return the lines to print."""
    output_dir = run.path / "eval" / eval_dir_name(run.cfg, run.saved_cfg)
    has_best = (run.path / "best").exists()
    trained_weights = weights_file(run.path / "best") if has_best else Path(run.cfg.model.pretrained)
    videos = [(*v, i.size, i.mtime_ns) for v, i in zip(loader.videos, loader.infos, strict=True)]
    fingerprint = eval_fingerprint(run.cfg, trained_weights, videos)
    ranks = f"rank{run.world.rank}of{run.world.size}"
    partial_scores = PartialScores(output_dir / f"partial_scores_{fingerprint[:8]}_{ranks}.pt", fingerprint)
    tests = build_further_tests(run.cfg, run.network)
    options: dict[str, Any] = {"average": run.cfg.eval.average, "partial": partial_scores, "further_tests": tests}
    scores = evaluate(run.network, loader, run.world, run.dtype, **options)
    text = write_test(run, loader, scores, output_dir, tests) if run.world.is_main else ""
    for leftover in output_dir.glob(f"partial_scores_*_{ranks}.pt"):
        leftover.unlink(missing_ok=True)
    return text


def write_test(run: EvalRun, loader: EvalVideoLoader, scores: Scores, output_dir: Path, tests: Tests) -> str:
    """Write the report, the HTML page and, if asked for, attention.png; return the lines to print."""
    cfg, infos = run.cfg, loader.infos
    settings: dict[str, Any] = {
        "num_clips": cfg.eval.num_clips,
        "num_crops": cfg.eval.num_crops,
        "clip_placement": cfg.eval.clip_placement,
        "average": cfg.eval.average,
        "list": cfg.data.test or cfg.data.val,
        "shorter_than_clip": sum(map(loader.source.is_short, range(len(infos)))),
    }
    further = report_further_tests(tests, scores, output_dir)
    report = write_report(
        output_dir,
        scores,
        loader.videos,
        run.classes,
        settings | further.summary,
        num_train_videos=run.num_train_videos,
        shots=cfg.eval.shots,
    )
    images: list[tuple[str, Image]] = [("Training", run.path / "curves.png"), ("Probes", run.path / "probes.png")]
    write_html_report(
        output_dir / "report.html",
        title=f"{run.path.name}: test {output_dir.name}",
        report=report,
        images=[*images, *further.images, report.figure],
        errors=most_confident_errors(scores, infos, run.classes),
    )
    lines = [report.text, *further.lines]
    if cfg.eval.attention_map:
        lines.append(f"written: {write_attention(run.network, cfg, infos, output_dir)}")
    if scores.multi_label and run.path.is_dir():
        with SummaryWriter(str(run.path / "tb")) as tensorboard:
            tensorboard.add_figure(f"precision_recall/{output_dir.name}", report.figure[1], close=False)
    lines.append(f"written: {output_dir}/{{report.html,summary.json,predictions.csv,per_class.csv,...}}")
    return "\n".join(lines)


def classify(run: EvalRun, path: Path) -> str:
    """Classify one video, or all videos of a folder; return the lines to print."""
    cfg = run.cfg
    if cfg.task.is_pretraining:
        raise ValueError("video=: the run is a pre-training, which has no classes")
    num_clips = getattr(run.network, "num_clips", 1)
    if num_clips > 1 and run.world.is_main:
        print(f"the probe was trained on {num_clips} clips of a video at once; here it scores each clip by itself")
    score = partial(score_video, run.network, data=cfg.data, test=cfg.eval, device=run.device, dtype=run.dtype)
    output_dir = run.path / "video"
    videos = videos_below(path) if path.is_dir() else []
    if not path.is_dir() or not videos and holds_images(path):
        return classify_video(score(path=str(path)), run.classes, path, output_dir)
    if not videos:
        raise ValueError(f"video={path}: no videos in it")
    csv_path = output_dir / f"{path.resolve().name}.csv"
    return classify_videos(lambda video: score(path=video), run.classes, videos, csv_path)


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    return run_command(
        "eval.py",
        lambda: f"{__doc__}\nKeys:\n{loading.help_text()}",
        evaluate_command,
        argv,
        errors=(ValueError, OSError, TooManyUnreadableVideos),
        interrupted="interrupted; the same command continues from here",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
