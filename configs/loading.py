"""Read a configuration from YAML and dotted overrides. The only module that knows YAML.

    cfg = load("configs/demo/demo.yaml", ["optim.lr=1e-3", "model.args.depth=2"])

Every value reaches its field as text, and the field decides the type: `1e-3` is a float where a float is expected, and
`no` stays text where text is expected. Only arguments (model.args, task.loss_args ...) are typed as YAML types them.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from configs.schema import PRESETS, SECTIONS, Config

_KEYS = [f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields]


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `section.key=value` overrides, left to right; a leading `--` is accepted.

    Raises ValueError that names the key and what was expected: an unknown key (with the nearest known one), a wrong
    type, a value out of range, a missing or malformed file.
    """
    cfg = parse_config(_read(Path(path)) if path is not None else "", str(path), overrides)
    if path is not None and not cfg.run.name:
        cfg = replace_values(cfg, "run", name=Path(path).stem)
    return cfg


def parse_config(text: str, source: str = "", overrides: Sequence[str] = ()) -> Config:
    """Read YAML text as load_config() reads a file; `source` names it in messages."""
    values: dict[str, dict[str, Any]] = {}
    for section, entries in _parse(text, source).items():
        if section not in SECTIONS:
            raise _unknown(f"{section}.{next(iter(entries), '')}" if isinstance(entries, dict) else section)
        if not isinstance(entries, dict):
            raise ValueError(f"{source}: section '{section}' holds {entries!r}, expected keys and values")
        for key, value in sorted(entries.items(), key=lambda entry: entry[0] != "preset"):  # the others override it
            _set(values, f"{section}.{key}", value)
    for override in overrides:
        key, equals, value = override.removeprefix("--").partition("=")
        if not equals:
            raise ValueError(f"'{override}': expected section.key=value, for instance optim.lr=1e-3")
        _set(values, key, value)
    return _validate(values)


def override_keys(overrides: Sequence[str]) -> set[str]:
    """Return the keys that `section.key=value` overrides set."""
    return {override.removeprefix("--").partition("=")[0] for override in overrides}


def make_config(**sections: Mapping[str, Any]) -> Config:
    """Build a configuration from keys and values of some sections, make_config(data={"num_frames": 16}).

    Raises ValueError as load_config().
    """
    values: dict[str, dict[str, Any]] = {}
    for section, entries in sections.items():
        for key, value in sorted(entries.items(), key=lambda entry: entry[0] != "preset"):  # the others override it
            _set(values, f"{section}.{key}", value)
    return _validate(values)


def _validate(values: Mapping[str, Mapping[str, Any]]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(_message(error.errors()[0])) from None


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML text that is no configuration; `source` names it in messages. Raises ValueError for malformed text."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not a readable YAML file: {error}") from None


def replace_values(cfg: Config, section: str, **values: Any) -> Config:
    """Return a configuration in which some keys of a section have other values."""
    return cfg.model_copy(update={section: getattr(cfg, section).model_copy(update=values)})


def dump_config(cfg: Config) -> str:
    """Return the complete configuration as YAML, which load_config() reads back to an equal one."""
    values = {
        name: {key: list(v) if isinstance(v, tuple) else v for key, v in entries.items()}
        for name, entries in cfg.model_dump().items()
    }
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


def diff_configs(old: Config, new: Config) -> list[str]:
    """List the keys in which two configurations differ, as `optim.lr: 0.001 -> 0.0003`."""
    a, b = old.model_dump(), new.model_dump()
    return [f"{s}.{k}: {a[s][k]} -> {b[s][k]}" for s in a for k in a[s] if a[s][k] != b[s][k]]


def help_text() -> str:
    """Describe every key in one line: default, meaning, choices."""
    lines = []
    for name, section in SECTIONS.items():
        for key, field in section.model_fields.items():
            default = field.get_default(call_default_factory=True)
            shown = _round(list(default) if isinstance(default, tuple) else default)
            words = _choices(field.annotation)
            choices = f" [{'|'.join(words)}]" if words and words != [default] else ""
            lines.append(f"  {name + '.' + key:<26} {shown!s:<22} {field.description}{choices}")
    return "\n".join(lines)


def json_schema() -> str:
    """Return the JSON schema of a configuration file, for editors."""
    return json.dumps(Config.model_json_schema(), indent=2)


# --- YAML ----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Load YAML's own types; 1e-3 is a number, which YAML 1.1 takes for text."""


class _Dumper(yaml.SafeDumper):
    """Quote text that _Loader would take for a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        recipes = {p.name: p for pattern in ("*/*.yaml", "*.yaml") for p in path.parent.glob(pattern)}
        near = difflib.get_close_matches(path.name, recipes, n=1)
        hint = f"; did you mean {recipes[near[0]].relative_to(path.parent)}?" if near else ""
        raise ValueError(f"{path}: no such configuration file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable YAML file: {error}") from None


def _parse(text: str, source: str) -> dict[str, Any]:
    """Return the sections and keys of YAML text. Values are text, lists or dicts; those of model.args are typed."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        content = _as_text(loader, node, ()) if node else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not a readable YAML file: {error}") from None
    if content == "":
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected sections ({', '.join(SECTIONS)}), found {content!r}")
    return content


def _as_text(loader: _Loader, node: yaml.Node, path: tuple[str, ...]) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_as_text(loader, item, path) for item in node.value]
    assert isinstance(node, yaml.MappingNode)
    entries: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        if key in entries:
            raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
        free = _hint(*path, key) is dict
        entries[key] = (
            loader.construct_object(value_node, deep=True) if free else _as_text(loader, value_node, (*path, key))
        )
    return entries


# --- how a value finds its key, and what is said if it does not fit ------------------------------------------------


def _hint(section: str = "", key: str = "", *_: str) -> Any:
    """Return the type of a key without its arguments (dict for dict[str, Any]); None if there is no such key."""
    field = SECTIONS[section].model_fields.get(key) if section in SECTIONS else None
    return field and (typing.get_origin(field.annotation) or field.annotation)


def _set(values: dict[str, dict[str, Any]], key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    name, _, entry = name.partition(".")
    hint = _hint(section, name)
    if hint is None or (entry and hint is not dict):
        raise _unknown(key)
    entries = values.setdefault(section, {})
    if hint is dict:
        parsed = _typed(value) if isinstance(value, str) else value
        if entry:  # model.args.depth=4 changes one argument
            parsed = {**entries.get(name, {}), entry: parsed}
        if not isinstance(parsed, dict):
            raise ValueError(f"{key}={value}: expected keys and values, for instance {{depth: 4}}")
        value = {str(k): v for k, v in parsed.items()}
    entries[name] = value
    if key == "eval.preset":
        entries.update(PRESETS.get(value, {}))


def _typed(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def _unknown(key: str) -> ValueError:
    near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else f"; the sections are {', '.join(SECTIONS)}"
    return ValueError(f"unknown key '{key}'{hint}")


def _message(error: ErrorDetails) -> str:
    """Say which value does not fit its key, and what was expected."""
    if error["type"] == "combination":  # of several keys, which it names itself
        return error["msg"]
    section, name = (str(part) for part in error["loc"][:2])
    value, field = error["input"], SECTIONS[section].model_fields[name]
    start = f"{section}.{name}={value}: "
    if error["type"] == "refused":
        return start + error["msg"]
    words = _choices(field.annotation)
    near = difflib.get_close_matches(str(value), words, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    if error["type"] == "string_pattern_mismatch":
        return f"{start}expected {field.description}"
    if error["type"] in ("tuple_length", "int_parsing"):
        return f"{start}expected {error['msg'] if error['type'] == 'tuple_length' else _expected(field)}"
    return f"{start}expected {_expected(field)}{hint}"


def _choices(hint: Any) -> list[str]:
    """Return the words that a type takes."""
    if typing.get_origin(hint) is typing.Literal:
        return [str(word) for word in typing.get_args(hint)]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [word for part in typing.get_args(hint) for word in _choices(part)] if is_union else []


def _expected(field: Any) -> str:
    """Describe the values that a key takes: words, type and bounds."""
    parts = list(typing.get_args(field.annotation)) if not isinstance(field.annotation, type) else [field.annotation]
    words, bounds, kind = _choices(field.annotation), list(field.metadata), None
    for part in parts if words else [field.annotation]:
        if typing.get_origin(part) is typing.Annotated:
            kind, *more = typing.get_args(part)
            bounds += [bound for info in more for bound in info.metadata]
        elif part in (int, float, str, bool):
            kind = part
    if typing.get_origin(field.annotation) is tuple:
        kind = float
    names = {int: "a whole number", float: "a number", str: "text", bool: "yes or no"}
    number = f"{names[kind]}{_bounds(bounds)}" if kind else ""
    listed = ("one of " if not number else "") + ", ".join(word or "empty" for word in words)
    return f"{listed}, or {number}" if words and number else number or listed


def _bounds(metadata: Sequence[Any]) -> str:
    low = next((f"{m.ge:g}" for m in metadata if hasattr(m, "ge")), "")
    above = next((f"{m.gt:g}" for m in metadata if hasattr(m, "gt")), "")
    high = next((f"{m.le:g}" for m in metadata if hasattr(m, "le")), "")
    below = next((f"{m.lt:g}" for m in metadata if hasattr(m, "lt")), "")
    if (low or above) and (high or below):
        start = low or f"above {above}"
        return f", {start} to {high}" if high else f", {start} to below {below}"
    return f", {low} or more" if low else f", above {above}" if above else ""


def _round(value: Any) -> Any:
    if isinstance(value, list):
        return [_round(v) for v in value]
    return round(value, 4) if isinstance(value, float) and value > 1e-3 else value
