"""Evaluate a run: every video scored exactly once, from clips x crops views of one decode.

    python eval.py runs/NAME                                  the multi-view test of its configuration
    python eval.py runs/NAME eval.clips=10 eval.crops=3       other views
    python eval.py runs/NAME data.test=other/list.txt
    python eval.py configs/NAME.yaml model.init=FILE          a recipe with the weights of any checkpoint that we read,
                                                              in runs/NAME_of_FILE

    python eval.py runs/NAME video=clip.mp4                   the five best classes of a video of any length, and when
    python eval.py runs/NAME video=FOLDER                     of all videos in a folder: a table
    python eval.py runs/NAME eval.features=F.npz              a feature vector of each video of the list
    python eval.py runs/NAME eval.show=attention              also a picture of what the network looks at
    python eval.py --compare runs/A runs/B                    the newest tests of runs, and McNemar's p

Writes report.html, summary.json, predictions.csv, per_class.csv, confusions.csv and confusion.png to
RUN/eval/<clips>x<crops>/, or <preset>/; of a MaskFeat pre-training the loss and a picture of what it predicts, to
RUN/eval/pretraining/. A video that cannot be read counts as wrong and is named; it is never replaced. A test that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from configs import loading
from evaluation.compare import compare
from evaluation.evaluate import evaluate, evaluate_pretraining
from evaluation.features import Features, extract_features
from evaluation.html_report import find_mistakes, show_attention, write_page
from evaluation.partial import Kept, test_key, test_name
from evaluation.report import write_report
from evaluation.video import classify_all, classify_video, score_video
from networks import weights
from pipelines.data.annotations import is_there
from pipelines.data.dataset import class_names
from pipelines.loader import VideoLoader, build_loader
from pipelines.sample_source import Unreadable
from pipelines.sliding_window import is_short
from pipelines.storage import videos_below
from training.run_dir import run_path
from training.setup import build_network, initialise
from utils.device import choose_device, choose_dtype
from utils.distributed import World


def load_run(source: Path, overrides: Sequence[str]) -> tuple[loading.Config, Path, nn.Module, list[str]]:
    """The configuration of a run, its folder, its best network in eval mode and the class names; or those of a recipe,
    with the weights of its model.init."""
    if source.suffix == ".yaml" and source.is_file():
        cfg = loading.load(source, overrides)
        if not cfg.model.init:
            raise ValueError(f"{source}: a recipe has no weights; give model.init=CHECKPOINT, or a run folder")
        lists = [path for path in (cfg.data.train, cfg.data.test, cfg.data.val) if path]
        classes = class_names(next(filter(is_there, lists), cfg.data.train), cfg.data.classes)
        torch.manual_seed(cfg.run.seed)  # for what the checkpoint leaves as initialised
        network = build_network(cfg, len(classes)).eval()
        print(initialise(network, cfg, classes, whole=True))
        place = run_path(cfg)  # not the run's own folder, whose results are of its own weights
        return cfg, place.with_name(f"{place.name}_of_{Path(cfg.model.init).name}"), network, classes
    if not (source / "config.yaml").exists():
        raise ValueError(f"{source}: not a run folder (it has no config.yaml)")
    if not (source / "best").exists():
        raise ValueError(f"{source}: no checkpoint in it yet: best/ is written after the first validation")
    if any(word.removeprefix("--").startswith("data.classes=") for word in overrides):
        raise ValueError("data.classes: a run keeps the classes that it was trained for")
    cfg = loading.load(source / "config.yaml", overrides)
    network, config = weights.load(source / "best")
    names = config["id2label"]
    return cfg, source, network, [names[number] for number in range(len(names))]


def test(
    cfg: loading.Config,
    folder: Path,
    network: nn.Module,
    classes: Sequence[str],
    loader: VideoLoader,
    world: World,
    dtype: torch.dtype,
) -> str:
    """The multi-view test and all its files in RUN/eval/; returns the lines to print."""
    place, source = folder / "eval" / test_name(cfg, folder), loader.source
    key = test_key(cfg, folder, [(*c, row.size, row.changed) for c, row in zip(source.clips, source.rows, strict=True)])
    kept = Kept(place / f"so_far_{key[:8]}_{world.rank}_of_{world.size}.pt", key)
    scores, lines = evaluate(network, loader, world, dtype, cfg.eval.average, kept), ""
    if world.is_first:
        about = {
            "views": f"{cfg.eval.clips}x{cfg.eval.crops}",
            "place": cfg.eval.place,
            "average": cfg.eval.average,
            "list": cfg.data.test or cfg.data.val,
            "short": sum(is_short(row, cfg) for row in source.rows),
        }
        report = write_report(place, scores, source.clips, classes, about)
        mistakes = find_mistakes(scores, source.rows, classes)
        pictures = [("Training", folder / "curves.png"), ("Confusion", place / "confusion.png")]
        write_page(place / "report.html", f"{folder.name}: test {place.name}", report, pictures, mistakes)
        shown = show_attention(network, cfg, source.rows, place) if cfg.eval.show else ""
        written = f"{place}{os.sep}{{report.html,summary.json,predictions.csv,per_class.csv,...}}"
        lines = f"{report.text}{shown}\nwritten: {written}"
    for left in place.glob(f"so_far_*_{world.rank}_of_{world.size}.pt"):
        left.unlink(missing_ok=True)
    return lines


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nKeys:\n{loading.help_text()}")
        return 0 if arguments else 2
    try:
        if arguments[0] == "--compare":
            if len(arguments) < 3:
                raise ValueError("--compare: expected two or more run folders")
            print(compare([Path(word) for word in arguments[1:]]))
            return 0
        world = World.from_env()
        words = [word.removeprefix("--") for word in arguments[1:]]
        videos = [word.removeprefix("video=") for word in words if word.startswith("video=")]
        words = [word for word in words if not word.startswith("video=")]
        cfg, folder, network, classes = load_run(Path(arguments[0]), words)
        device = choose_device(cfg.run.device, world.local_rank)
        dtype = choose_dtype(cfg.run.amp, device)
        world.connect(device.type)
        network.to(device)
        pretraining = cfg.task.name == "maskfeat"
        if videos:
            if pretraining:
                raise ValueError("video=: the run is a pre-training, which knows no classes")
            path, place = Path(videos[-1]), folder / "video"
            score = partial(score_video, network, cfg, device=device, dtype=dtype)
            if path.is_dir():
                files = videos_below(path)
                if not files:
                    raise ValueError(f"video={path}: no videos in it")
                print(classify_all(score, classes, files, place / f"{path.resolve().name}.csv"))
            else:
                print(classify_video(score(str(path)), classes, path, place))
            return 0
        if cfg.eval.features:
            Features.check(Path(cfg.eval.features))
        half = dtype is not torch.float32
        loader = build_loader(cfg, "val" if pretraining else "test", classes, world, device, half=half)
        if pretraining:
            lines = evaluate_pretraining(cfg, network, loader, world, folder / "eval" / "pretraining", dtype)
        elif cfg.eval.features:
            lines = extract_features(cfg, network, loader, world, dtype)
        else:
            lines = test(cfg, folder, network, classes, loader, world, dtype)
    except (ValueError, OSError, Unreadable) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    if world.is_first:
        print(lines)
    if world.size > 1:
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
