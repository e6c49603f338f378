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

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from configs import schema
from configs.device import autocast, choose_device, choose_dtype
from configs.drawing import draw_strips
from configs.page import Mistake, write_page
from configs.report import Kept, Scores, compare, test_key, test_name, write_report
from configs.runs import run_path
from configs.slides import Slide, classify_all, classify_video
from configs.steps import Clock
from networks import weights
from networks.configured import build_network, build_task, initialise
from networks.drawing import draw_attention, draw_hog
from networks.features import Features, extract
from networks.tasks import MaskFeat, mean_loss
from pipelines.index import Row
from pipelines.listfiles import is_there
from pipelines.lists import class_names
from pipelines.loader import VideoLoader, build_loader
from pipelines.places import videos_below
from pipelines.sliding import glimpse, is_short, windows
from pipelines.source import Unreadable
from pipelines.world import World


@torch.inference_mode()
def evaluate(
    network: nn.Module, loader: VideoLoader, world: World, dtype: torch.dtype = torch.float32,
    average: str = "probability", kept: Kept | None = None,
) -> Scores:  # fmt: skip
    """Score every video of a val or test loader once, on any number of ranks: mean probability over its views, or what
    their mean logits give. With `kept` the scores are kept every minute and when interrupted, and gone on with."""
    training = network.training
    network.eval()
    n, device, clips = len(loader.source.clips), loader.device, loader.source.views.clips
    count = torch.arange(1, clips + 1, device=device)[:, None]
    # Row n takes what must not be scored; adding to tables on the device keeps the host out of the loop.
    state = kept.load() if kept else {}
    tables: dict[str, Tensor] = {name: table.to(device) for name, table in state.get("tables", {}).items()}
    if state:
        loader.load_state_dict(state["loader"])
    clock, done = Clock(1), loader.state_dict()  # done: the loader is a batch ahead while one is scored

    def keep() -> None:
        if kept and tables:
            held = {name: table.cpu() for name, table in tables.items()}
            kept.save({"tables": held, "loader": done})

    try:
        for batch in progress(loader, "eval", world):
            video = batch.video if batch.video.ndim == 6 else batch.video[:, None]
            with autocast(device, dtype):
                logits = network(rearrange(video, "B V C T H W -> (B V) C T H W")).float()
            views = F.softmax(logits, dim=-1) if average == "probability" else logits
            of_clips = reduce(views, "(B L crops) K -> B L K", "mean", B=len(video), L=clips)
            after = of_clips.cumsum(1) / count
            best = after.topk(min(5, after.shape[-1])).indices == batch.label[:, None, None]
            found = {
                "probability": after[:, -1] if average == "probability" else F.softmax(after[:, -1], dim=-1),
                "hits": torch.stack([best[..., 0], best.any(-1)], dim=-1).float(),
                "scored": torch.ones(len(video), device=device),
            }
            row = torch.where(batch.sample < 0, n, batch.sample)
            for name, values in found.items():
                if name not in tables:
                    tables[name] = torch.zeros(n + 1, *values.shape[1:], device=device)
                tables[name].index_copy_(0, row, values)
            done = loader.state_dict()
            if clock.due():
                keep()
    except BaseException:
        keep()
        raise
    network.train(training)
    loader.release_memory()
    for table in tables.values():
        if world.size > 1:
            torch.distributed.all_reduce(table)
    failed = {row: why for part in world.gather(loader.bad) for row, why in part.items()}
    label = torch.tensor([clip.label for clip in loader.source.clips])
    padded = len(loader) * loader.source.batch * world.size - n
    host = {name: table[:-1].cpu() for name, table in tables.items()}
    return Scores(host["probability"], label, host["scored"] > 0, failed, padded, host["hits"] > 0)


def progress(loader: VideoLoader, text: str, world: World) -> tqdm:
    """A bar on the first process's terminal."""
    hidden = not (world.is_first and sys.stderr.isatty())
    return tqdm(loader, desc=text, unit="step", initial=loader.step, total=len(loader), leave=False, disable=hidden)


def evaluate_pretraining(
    cfg: schema.Config, network: nn.Module, loader: VideoLoader, world: World, folder: Path, dtype: torch.dtype
) -> str:
    """predictions.png and summary.json in `folder`; returns the lines to print."""
    task = build_task(cfg, network)
    assert isinstance(task, MaskFeat)
    loss, baseline, (batch, out) = mean_loss(network, task, loader, loader.device, dtype)
    if world.is_first:
        figure = draw_hog(batch, out, cfg.data.mean, cfg.data.std)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "predictions.png", dpi=90)
        with SummaryWriter(str(folder.parent.parent / "tb")) as board:
            board.add_figure("predictions", figure)
        text = json.dumps({"videos": len(loader.source.clips), "loss": loss, "mean_hog": baseline}, indent=1)
        (folder / "summary.json").write_text(text + "\n")
    written = f"written: {folder}{os.sep}{{predictions.png,summary.json}}"
    return f"loss {loss:.4f}, predicting the mean HOG {baseline:.4f}\n{written}"


@torch.inference_mode()
def score_video(network: nn.Module, cfg: schema.Config, path: str, device: torch.device, dtype: torch.dtype) -> Slide:
    """The clips that slide over a video, each the mean over its views."""
    spans, pictures, scores = [], [], []
    for window in windows(path, cfg):
        with autocast(device, dtype):
            logits = network(window.views.to(device))
        scores.append(F.softmax(logits.float(), dim=-1).mean(0).cpu())
        spans.append((window.start, window.end))
        pictures.append(window.picture)
    return Slide(spans, pictures, torch.stack(scores))


def extract_features(
    cfg: schema.Config, network: nn.Module, loader: VideoLoader, world: World, dtype: torch.dtype
) -> str:
    """eval.features: of every video that can be read, the mean over its views; returns the lines to print."""
    batches = progress(loader, "features", world)
    parts = world.gather(extract(network.eval(), batches, loader.device, dtype, cfg.eval.layer, cfg.eval.pool))
    row, values = (torch.cat(part) for part in zip(*parts, strict=True))
    order = row.argsort()[(row < 0).sum() :]
    clips = [loader.source.clips[n] for n in row[order].tolist()]
    found = Features(values[order], torch.tensor([clip.label for clip in clips]), [clip.path for clip in clips])
    if world.is_first:
        found.save(Path(cfg.eval.features))
    shape = "x".join(map(str, values.shape[1:]))
    return f"{len(clips)} of {len(loader.source.clips)} videos, {shape} features\nwritten: {cfg.eval.features}"


def show_attention(network: nn.Module, cfg: schema.Config, rows: Sequence[Row], place: Path) -> str:
    """attention.png: the first clip of four videos spread over the list, and what the network looks at in it."""
    good = [row for row in rows if not row.error]
    chosen = [good[n] for n in sorted({n * (len(good) - 1) // 3 for n in range(4)})]
    clips = [next(windows(row.path, cfg)).views for row in chosen]
    video = torch.stack([views[len(views) // 2] for views in clips]).to(next(network.parameters()).device)
    titles = [Path(row.path).name for row in chosen]
    figure = draw_attention(network, video, titles, cfg.data.mean, cfg.data.std, cfg.eval.show == "rollout")
    figure.savefig(place / "attention.png", dpi=90)
    return f"\nwritten: {place / 'attention.png'}"


def find_mistakes(scores: Scores, rows: Sequence[Row], classes: Sequence[str]) -> list[Mistake]:
    """The twelve that the network is surest of."""
    best = scores.probability.max(1)
    wrong = [n for n in best.values.argsort(descending=True).tolist()
             if scores.scored[n] and best.indices[n] != scores.label[n]]  # fmt: skip
    mistakes = []
    for n in wrong[:12]:
        frames = None
        with contextlib.suppress(ValueError):
            frames = draw_strips(glimpse(rows[n])[None], [""])
        names = classes[int(scores.label[n])], classes[int(best.indices[n])]
        mistakes.append(Mistake(rows[n].path, *names, best.values[n].item(), frames))
    return mistakes


def load_run(source: Path, overrides: Sequence[str]) -> tuple[schema.Config, Path, nn.Module, list[str]]:
    """The configuration of a run, its folder, its best network in eval mode and the class names; or those of a recipe,
    with the weights of its model.init."""
    if source.suffix == ".yaml" and source.is_file():
        cfg = schema.load(source, overrides)
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
    cfg = schema.load(source / "config.yaml", overrides)
    network, config = weights.load(source / "best")
    names = config["id2label"]
    return cfg, source, network, [names[number] for number in range(len(names))]


def test(
    cfg: schema.Config,
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
        print(f"{__doc__}\nKeys:\n{schema.help_text()}")
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
