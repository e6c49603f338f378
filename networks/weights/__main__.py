"""Look into public checkpoints, and turn them into folders of ours or ours into theirs:

    python -m networks.weights inspect FILE [into=vivit_b num_frames=32 ...]     what would become of every key
    python -m networks.weights convert FILE FOLDER [labels=names.txt ...]        a folder of ours
    python -m networks.weights export FOLDER FOLDER --to hf                      a folder that transformers reads

FILE is a checkpoint, a folder, a run, timm:NAME or hf:OWNER/NAME (these two download). key=value are arguments of the
network (heads=6) and of the transfer (inflation, temporal, head, source_grid).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from networks import PRETRAINING, build
from networks.arguments import parse_settings
from networks.weights import TRANSFER_OPTIONS, convert, initialise
from networks.weights.export_hf import export
from networks.weights.save_load import load, save


def run_inspect(source: str, settings: dict[str, Any], every_key: bool) -> str:
    into = settings.pop("into", None)
    if into is None:
        network, config, report = convert(source, **settings)
        kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
        shown = ", ".join(f"{key}={value}" for key, value in kwargs.items())
        return f"{report.text(every_key)}\n  {config['name']}({shown})"
    options = {key: settings.pop(key) for key in TRANSFER_OPTIONS if key in settings}
    network = build(into, **({} if into in PRETRAINING else {"num_classes": 400}) | settings)
    return initialise(network, source, **options).text(every_key)


def run_convert(source: str, folder: str, settings: dict[str, Any], every_key: bool) -> str:
    labels = settings.pop("labels", None)
    network, config, report = convert(source, **settings)
    extra, notes = config["extra"], []
    classes: int = network.kwargs.get("num_classes", 0)  # type: ignore[operator,union-attr,assignment]
    if labels is not None:
        names = Path(labels).read_text(encoding="utf-8").splitlines()
        if len(names) != classes:
            raise ValueError(f"{labels}: {len(names)} names, the network has {classes} classes")
        extra["id2label"] = {str(number): name for number, name in enumerate(names)}
    elif "id2label" not in extra and classes:
        extra["id2label"] = {str(number): str(number) for number in range(classes)}
        notes = ["  note: the file names no classes; their numbers stand for them (labels=FILE, one name a line)"]
    save(folder, network, config["name"], extra)
    return "\n".join([report.text(every_key), *notes, f"wrote {folder}: {config['name']}"])


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m networks.weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("inspect", "convert", "export"):
        command = commands.add_parser(name)
        command.add_argument("source")
        if name != "inspect":
            command.add_argument("folder")
        command.add_argument("settings", nargs="*", metavar="key=value")
        command.add_argument("--every-key", action="store_true", help="a line for each key, not for each kind")
        if name == "export":
            command.add_argument("--to", choices=["hf"], required=True, help="hf: what transformers loads")
    given = parser.parse_args(words)
    try:
        settings = parse_settings(given.settings, (*TRANSFER_OPTIONS, "into", "labels"))
        if given.command == "inspect":
            print(run_inspect(given.source, settings, given.every_key))
        elif given.command == "convert":
            print(run_convert(given.source, given.folder, settings, given.every_key))
        else:
            network, config = load(given.source)
            print(export(network, config, given.folder))
    except (OSError, TypeError, ValueError) as error:
        print(f"networks.weights: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
