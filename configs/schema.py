"""The configuration: frozen dataclasses, filled from YAML and dotted overrides. The only place that knows YAML.

    cfg = load("configs/demo.yaml", ["optim.lr=1e-3", "model.args.depth=2"])

Every value is converted by the type of its field, never by YAML's guess: `1e-3` is a float where a float is expected,
and `no` stays a string where a string is expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


def _key(default: Any, meaning: str, choices: tuple[str, ...] = ()) -> Any:
    """A field with its one-line meaning (shown by --help) and, for strings, the words it may take."""
    metadata = {"meaning": meaning, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Data:
    train: str = _key("", "training list, or a folder with one sub-folder a class")
    val: str = _key("", "validation list; scored after each epoch (empty: none)")
    test: str = _key("", "list of the multi-view test (empty: the validation list)")
    root: str = _key("", "folder that relative paths of a list are under (empty: the list's own folder)")
    classes: str = _key(
        "",
        "a file of names (one a line, UCF's or JSON), k400, k600 or k700; or a subset: 10 for the training list's "
        "first ten, or names with commas between (empty: all that the training list names or numbers)",
    )
    frames: int = _key(8, "frames a clip")
    stride: int = _key(8, "distance between the frames of a clip, in frames of the file (0: one frame repeated)")
    size: int = _key(224, "height and width of the network's input, in pixels")
    scale: tuple[float, float] = _key((0.08, 1.0), "random-resized crop: area of the box as a share of the frame")
    ratio: tuple[float, float] = _key((3 / 4, 4 / 3), "random-resized crop: width / height of the box")
    per_class: int = _key(0, "only the first so many training videos of each class (0: all)")
    eval_per_class: int = _key(0, "the same for val and test, each counted by itself")
    flip: float = _key(0.5, "probability of a left-right flip; 0 where direction is the class")
    short: str = _key(
        "loop", "a clip longer than its video starts over (loop) or repeats the last frame (edge)", ("loop", "edge")
    )
    mean: tuple[float, float, float] = _key((0.45, 0.45, 0.45), "subtracted from each channel, in units of 0..1")
    std: tuple[float, float, float] = _key((0.225, 0.225, 0.225), "each channel is divided by it, in units of 0..1")
    batch: int = _key(8, "clips a step on each device")
    decoder: str = _key(
        "auto",
        "who decodes: DALI, or PyAV on the host; auto asks the index and says what it took",
        ("auto", "dali", "host"),
    )
    workers: int = _key(2, "processes that read and trim (and, with the host decoder, decode); 0: in this process")
    threads: int = _key(4, "DALI threads a device")
    prefetch: int = _key(2, "batches prepared ahead")
    max_bad: float = _key(0.1, "share of unreadable videos above which training stops")


@dataclass(frozen=True)
class Model:
    name: str = _key("vivit_b", "a name that networks.build knows")
    args: dict[str, Any] = _key({}, "keyword arguments of the network, e.g. model.args.depth=4")
    init: str = _key("", "weights to start from: a checkpoint of any known format, a run, timm:NAME or hf:OWNER/NAME")
    freeze: str = _key("", "backbone: train the head alone, a linear probe", ("", "backbone"))
    init_args: dict[str, Any] = _key(
        {}, "how they are fitted: inflation=central|average, temporal=copy|zero, head=auto|new, source_grid=[t,h,w]"
    )


@dataclass(frozen=True)
class Task:
    name: str = _key("classify", "what is trained: classes, or MaskFeat's pre-training", ("classify", "maskfeat"))
    label_smoothing: float = _key(0.0, "share of the target spread over all classes")
    mask: str = _key(
        "cube", "what MaskFeat hides; runs: of frames, with the loss on their middle ones",
        ("cube", "tube", "random", "runs"),
    )  # fmt: skip
    mask_ratio: float = _key(0.4, "share of a clip that MaskFeat hides")
    hog_window: int = _key(0, "pixels of the Gaussian that weighs MaskFeat's gradients (0: none, 16: mmselfsup's)")
    hog_gradient: str = _key("sobel", "of MaskFeat's HOG; central: as scikit-image has it", ("sobel", "central"))
    show_epochs: int = _key(10, "epochs between two pictures of MaskFeat's predictions")


@dataclass(frozen=True)
class Optim:
    name: str = _key("adamw", "the optimiser", ("adamw", "sgd"))
    lr: float = _key(1e-3, "peak learning rate, used as it stands: no scaling with the batch")
    min_lr: float = _key(1e-6, "learning rate at the end of the cosine")
    weight_decay: float = _key(0.05, "on weights with two or more dimensions only")
    betas: tuple[float, float] = _key((0.9, 0.999), "AdamW's two averages (sgd: Nesterov momentum 0.9 instead)")
    layer_decay: float = _key(1.0, "learning rate of each block as a multiple of the next one's, embeddings before all")
    epochs: int = _key(30, "passes over the training list")
    warmup_epochs: float = _key(2.0, "epochs of linear warm-up, counted in steps")
    clip_grad: float = _key(1.0, "largest global gradient norm (0: no clipping)")


@dataclass(frozen=True)
class Eval:
    clips: int = _key(4, "clips a video in the multi-view test, spread over its length")
    crops: int = _key(3, "crops a clip in the multi-view test: 1 (centre) or 3 (along the longer side)")
    batch: int = _key(4, "videos a step in the multi-view test, each with clips x crops views")
    short_side: int = _key(0, "short side the frame is resized to before cropping (0: data.size)")


@dataclass(frozen=True)
class Run:
    name: str = _key("", "name of the run (empty: the name of the configuration file)")
    folder: str = _key("runs", "where run folders lie")
    seed: int = _key(0, "seed of the weights, the order and every random draw")
    device: str = _key("auto", "where it runs; auto takes a GPU if there is one", ("auto", "cpu", "cuda"))
    amp: str = _key(
        "auto", "precision of the step; auto is bf16 on a GPU and fp32 without", ("auto", "bf16", "fp16", "fp32")
    )
    compile: str = _key("auto", "torch.compile the network; auto does on a GPU", ("auto", "yes", "no"))
    resume: str = _key("auto", "auto continues from last.pt if there is one, no starts over, a path must exist")
    log_every: int = _key(20, "steps between two log lines")
    max_bad_steps: int = _key(10, "steps in a row whose loss is not finite that stop the run")
    threads: int = _key(0, "torch threads on a CPU (0: all cores but one, which decoding needs)")


@dataclass(frozen=True)
class Config:
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    task: Task = field(default_factory=Task)
    optim: Optim = field(default_factory=Optim)
    eval: Eval = field(default_factory=Eval)
    run: Run = field(default_factory=Run)


def load(path: str | Path | None, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `section.key=value` overrides, left to right; a leading `--` is accepted.

    Raises ValueError naming the key and what was expected: unknown key (with the nearest valid one), wrong type,
    value out of range, missing or malformed file.
    """
    cfg = load_text(_read(Path(path)) if path is not None else "", str(path), overrides)
    if path is not None and not cfg.run.name:
        cfg = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, name=Path(path).stem))
    return cfg


def load_text(text: str, source: str = "", overrides: typing.Sequence[str] = ()) -> Config:
    """load() for YAML that is at hand already; `source` names it in messages."""
    values: dict[str, dict[str, Any]] = {}
    for section, entries in _parse(text, source).items():
        if section not in SECTIONS:
            raise _unknown(f"{section}.{next(iter(entries), '')}" if isinstance(entries, dict) else section)
        if not isinstance(entries, dict):
            raise ValueError(f"{source}: section '{section}' holds {entries!r}, expected keys and values")
        for key, value in entries.items():
            _set(values, f"{section}.{key}", value)
    for override in overrides:
        key, equals, text = override.removeprefix("--").partition("=")
        if not equals:
            raise ValueError(f"'{override}': expected section.key=value, for instance optim.lr=1e-3")
        _set(values, key, text)
    cfg = Config(**{f.name: SECTIONS[f.name](**values.get(f.name, {})) for f in dataclasses.fields(Config)})
    _check_ranges(cfg)
    return cfg


def dump(cfg: Config) -> str:
    """The resolved configuration as YAML; load() reads it back to an equal one."""
    plain = {
        s: {k: list(v) if isinstance(v, tuple) else v for k, v in entries.items()}
        for s, entries in dataclasses.asdict(cfg).items()
    }
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


def changes(old: Config, new: Config) -> list[str]:
    """The keys in which two configurations differ, as `optim.lr: 0.001 -> 0.0003`."""
    a, b = dataclasses.asdict(old), dataclasses.asdict(new)
    return [f"{s}.{k}: {a[s][k]} -> {b[s][k]}" for s in a for k in a[s] if a[s][k] != b[s][k]]


def help_text() -> str:
    """Every key with its default and meaning, a line each."""
    lines = []
    for name, section in SECTIONS.items():
        for f in dataclasses.fields(section):
            default = f.default if f.default is not dataclasses.MISSING else {}
            shown = list(default) if isinstance(default, tuple) else default
            choices = f" [{'|'.join(f.metadata['choices'])}]" if f.metadata["choices"] else ""
            lines.append(f"  {name + '.' + f.name:<22} {_round(shown)!s:<22} {f.metadata['meaning']}{choices}")
    return "\n".join(lines)


# --- from here on: how a value finds its field and its type -------------------------------------------------------

SECTIONS: dict[str, type] = {"data": Data, "model": Model, "task": Task, "optim": Optim, "eval": Eval, "run": Run}
_HINTS = {name: typing.get_type_hints(section) for name, section in SECTIONS.items()}
_KEYS = [f"{section}.{key}" for section, hints in _HINTS.items() for key in hints]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        raise ValueError(
            f"{path}: no such configuration file" + (f"; did you mean {near[0]}?" if near else "")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable YAML file: {error}") from None


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, _Text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not a readable YAML file: {error}") from None
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected sections ({', '.join(SECTIONS)}), found {content!r}")
    return content


class _Text(yaml.BaseLoader):
    """Every scalar stays text: the field decides its type. What was quoted is marked, a key given twice refused."""

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        text = super().construct_scalar(node)
        return text if node.style is None else _Quoted(text)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Quoted(str):
    """Text that was quoted in the file, so no number even where no field declares a type."""


def _unknown(key: str) -> ValueError:
    near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else f"; the sections are {', '.join(SECTIONS)}"
    return ValueError(f"unknown key '{key}'{hint}")


def _set(values: dict[str, dict[str, Any]], key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    name, _, rest = name.partition(".")
    hint = _HINTS.get(section, {}).get(name)
    if hint is None or (rest and typing.get_origin(hint) is not dict):
        raise _unknown(key)
    entries = values.setdefault(section, {})
    if rest:  # model.args.depth=4: one entry of a free-form dictionary, typed as YAML types it
        entries[name] = {**entries.get(name, {}), rest: _free_value(value)}
        return
    entries[name] = _convert(value, hint, key)
    choices = next(f for f in dataclasses.fields(SECTIONS[section]) if f.name == name).metadata["choices"]
    if choices and entries[name] not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        raise ValueError(
            f"{key}={value}: expected one of {', '.join(choices)}" + (f"; did you mean '{near[0]}'?" if near else "")
        )


def _convert(value: Any, hint: Any, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        parts = [p.strip() for p in value.strip("[]() ").split(",")] if isinstance(value, str) else value
        inner = typing.get_args(hint)
        if not isinstance(parts, (list, tuple)) or len(parts) != len(inner):
            raise ValueError(f"{key}={value}: expected {len(inner)} numbers, for instance [0.5, 1.0]")
        return tuple(_convert(p, t, key) for p, t in zip(parts, inner, strict=True))
    if origin is dict:
        parsed = _free_value(value)
        if not isinstance(parsed, dict):
            raise ValueError(f"{key}={value}: expected keys and values, for instance {{depth: 4}}")
        return parsed
    if hint is str:
        if not isinstance(value, str):
            raise ValueError(f"{key}={value}: expected text")
        return str(value)
    try:
        number = hint(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    except (ValueError, TypeError):
        raise ValueError(f"{key}={value}: expected {_TYPE_NAMES[hint]}") from None


_TYPE_NAMES = {int: "a whole number", float: "a number"}


def _free_value(value: Any) -> Any:
    """A value with no declared type: YAML's reading, except that 1e-3 is a number."""
    if isinstance(value, list):
        return [_free_value(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _free_value(v) for k, v in value.items()}
    if isinstance(value, _Quoted):
        return str(value)
    try:
        return yaml.load(value, _Typed)
    except yaml.YAMLError:
        return value


class _Typed(yaml.SafeLoader):
    """YAML's own types, and 1e-3 a number, which YAML 1.1 takes for text."""


_Typed.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _check_ranges(cfg: Config) -> None:
    def need(holds: bool, key: str, value: Any, expected: str) -> None:
        if not holds:
            raise ValueError(f"{key}={value}: expected {expected}")

    for section, names in _AT_LEAST.items():
        for name, least in names.items():
            value = getattr(getattr(cfg, section), name)
            need(value >= least, f"{section}.{name}", value, f"{least} or more")
    need(0 <= cfg.data.flip <= 1, "data.flip", cfg.data.flip, "a probability, 0 to 1")
    need(0 <= cfg.data.max_bad <= 1, "data.max_bad", cfg.data.max_bad, "a share, 0 to 1")
    need(0 < cfg.data.scale[0] <= cfg.data.scale[1] <= 1, "data.scale", cfg.data.scale, "0 < low <= high <= 1")
    need(0 < cfg.data.ratio[0] <= cfg.data.ratio[1], "data.ratio", cfg.data.ratio, "0 < low <= high")
    need(0 <= cfg.task.label_smoothing < 1, "task.label_smoothing", cfg.task.label_smoothing, "a share, 0 to below 1")
    need(
        0 <= min(cfg.optim.betas) <= max(cfg.optim.betas) < 1, "optim.betas", cfg.optim.betas, "numbers of 0 to below 1"
    )
    need(0 < cfg.task.mask_ratio < 1, "task.mask_ratio", cfg.task.mask_ratio, "a share between 0 and 1")
    need(0 < cfg.optim.layer_decay <= 1, "optim.layer_decay", cfg.optim.layer_decay, "above 0, at most 1")
    need(min(cfg.data.std) > 0, "data.std", cfg.data.std, "numbers above 0")
    need(
        cfg.optim.warmup_epochs < cfg.optim.epochs,
        "optim.warmup_epochs",
        cfg.optim.warmup_epochs,
        f"less than optim.epochs={cfg.optim.epochs}",
    )
    need(cfg.optim.min_lr <= cfg.optim.lr, "optim.min_lr", cfg.optim.min_lr, f"at most optim.lr={cfg.optim.lr}")
    need(cfg.eval.crops in (1, 3), "eval.crops", cfg.eval.crops, "1 or 3")
    need(
        cfg.eval.short_side == 0 or cfg.eval.short_side >= cfg.data.size,
        "eval.short_side",
        cfg.eval.short_side,
        f"0, or at least data.size={cfg.data.size}",
    )


_AT_LEAST: dict[str, dict[str, float]] = {
    "data": {
        "per_class": 0,
        "eval_per_class": 0,
        "frames": 1,
        "stride": 0,
        "size": 1,
        "batch": 1,
        "workers": 0,
        "threads": 1,
        "prefetch": 1,
    },
    "optim": {"lr": 0, "min_lr": 0, "weight_decay": 0, "epochs": 1, "warmup_epochs": 0, "clip_grad": 0},
    "eval": {"clips": 1, "batch": 1},
    "run": {"seed": 0, "log_every": 1, "max_bad_steps": 1, "threads": 0},
    "task": {"label_smoothing": 0, "hog_window": 0, "show_epochs": 1},
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that would load as a number here, 1E3 for instance, which YAML 1.1 itself takes for text."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(_free_value(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _round(value: Any) -> Any:
    if isinstance(value, list):
        return [_round(v) for v in value]
    return round(value, 4) if isinstance(value, float) and value > 1e-3 else value
