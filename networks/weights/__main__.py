"""Inspect checkpoints of other projects, convert them to folders of this project, or export those for transformers.

    python -m networks.weights inspect FILE [into=vivit_b num_frames=32 ...]     what would become of every key
    python -m networks.weights convert FILE FOLDER [labels=names.txt ...]        write a folder of this project
    python -m networks.weights merge RUN FOLDER [base=PATH]                      write a folder without a base
    python -m networks.weights export RUN FOLDER --to hf                         write a folder that transformers reads

FILE is a checkpoint, a folder, a run, timm:NAME or hf:OWNER/NAME (these two download). key=value are arguments of the
network (num_heads=6) and of the adaptation (inflation, temporal, head, source_grid). With --every-key the report has
one line per key, not per kind of change.

merge takes a run that trained an adapter, and writes the network with all its weights (base= says where its base is
now, if it was moved); those of lora and bias are added to the weights of the base, those of other adapters are beside
them.

export takes a run, whose tests then are in the model card, or a folder that convert wrote. --license=NAME is what the
card says (apache-2.0, cc-by-nc-4.0 ...), and --push=OWNER/NAME uploads the folder to the Hugging Face hub.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from networks import PRETRAINING, build
from networks.adapters import is_mergeable, merge_adapter
from networks.arguments import parse_network_args
from networks.weights import ADAPT_OPTIONS, convert, load_pretrained
from networks.weights.export_hf import export
from networks.weights.push import check_push, push
from networks.weights.save_load import load_network, save_network
from networks.weights.source_config import CONFIG, read_json
from utils.cli import run_command


def inspect_checkpoint(source: str, arguments: dict[str, Any], every_key: bool) -> str:
    """Return the report of a checkpoint read into its own network, or into the one that the argument `into` names."""
    into = arguments.pop("into", None)
    if into is None:
        network, config, report = convert(source, **arguments)
        kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
        kwargs_text = ", ".join(f"{key}={value}" for key, value in kwargs.items())
        return f"{report.text(every_key)}\n  {config['name']}({kwargs_text})"
    options = {key: arguments.pop(key) for key in ADAPT_OPTIONS if key in arguments}
    defaults = {} if into in PRETRAINING else {"num_classes": 400}
    network = build(into, **defaults | arguments)
    return load_pretrained(network, source, **options).text(every_key)


def convert_checkpoint(source: str, folder: str, arguments: dict[str, Any], every_key: bool) -> str:
    """Write a folder of this project and return the report."""
    labels_file = arguments.pop("labels", None)
    network, config, report = convert(source, **arguments)
    extra, notes = config["extra"], []
    num_classes: int = network.kwargs.get("num_classes", 0)  # type: ignore[operator,union-attr,assignment]
    if labels_file is not None:
        labels = Path(labels_file).read_text(encoding="utf-8").splitlines()
        if len(labels) != num_classes:
            raise ValueError(f"{labels_file}: {len(labels)} names, the network has {num_classes} classes")
        extra["id2label"] = {str(number): label for number, label in enumerate(labels)}
    elif "id2label" not in extra and num_classes:
        extra["id2label"] = {str(number): str(number) for number in range(num_classes)}
        notes = [
            "  note: the checkpoint does not name its classes, so they are numbered; give labels=FILE with one name "
            "per line to name them"
        ]
    save_network(folder, network, config["name"], extra)
    return "\n".join([report.text(every_key), *notes, f"wrote {folder}: {config['name']}"])


def merge(source: Path, folder: Path, base: str = "") -> str:
    """Write a network with an adapter as a folder that needs no base; return the line to print.

    `base` is where the base is now, if it was moved.
    """
    if (folder / CONFIG).exists():
        raise ValueError(f"{folder}: there is a network in it; choose another folder")
    best = source / "best"
    network, config = load_network(best if best.is_dir() else source, base)
    adapter = config.get("adapter")
    if adapter is None:
        raise ValueError(f"{source}: has no adapter to merge")
    if is_mergeable(network):
        merge_adapter(network)
    extra = {key: value for key, value in config.items() if key not in ("name", "kwargs", "adapter", "base")}
    save_network(folder, network, config["name"], extra)
    how = "merged" if not hasattr(network, "adapter") else "as a part of the network"
    return f"wrote {folder}: {config['name']}, {adapter['name']} {how}"


def export_network(source: Path, folder: Path, license_name: str, repository: str) -> str:
    """Write a folder for transformers from a run or a folder, push it if asked to, and return the lines to print."""
    if repository:
        check_push(repository)
    best = source / "best"
    network, config = load_network(best if best.is_dir() else source)
    merge_adapter(network)
    summaries = sorted(source.glob("eval/*/summary.json"))
    figures = {path.parent.name: read_json(path) for path in summaries}
    lines = [export(network, config, folder, license_name=license_name, figures=figures, repository=repository)]
    if repository:
        lines.append(push(folder, repository))
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m networks.weights")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("inspect", "convert", "merge", "export"):
        command = commands.add_parser(name)
        command.add_argument("source")
        if name != "inspect":
            command.add_argument("folder")
        command.add_argument("arguments", nargs="*", metavar="key=value")
        command.add_argument("--every-key", action="store_true")
        if name == "export":
            command.add_argument("--to", choices=["hf"], required=True)
            command.add_argument("--license", default="unknown")
            command.add_argument("--push", default="", metavar="OWNER/NAME")
    return parser


def run(argv: Sequence[str]) -> int:
    args = build_parser().parse_args(argv)
    arguments = parse_network_args(args.arguments, (*ADAPT_OPTIONS, "into", "labels", "base"))
    if args.command == "inspect":
        print(inspect_checkpoint(args.source, arguments, args.every_key))
    elif args.command == "convert":
        print(convert_checkpoint(args.source, args.folder, arguments, args.every_key))
    elif args.command == "merge":
        print(merge(Path(args.source), Path(args.folder), arguments.pop("base", "")))
    else:
        print(export_network(Path(args.source), Path(args.folder), args.license, args.push))
    return 0


def main(argv: Sequence[str]) -> int:
    return run_command("networks.weights", __doc__ or "", run, argv, errors=(OSError, TypeError, ValueError))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
