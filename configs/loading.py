"""The configuration: `configs.schema`, filled from YAML and dotted overrides. The only place that knows YAML.

    cfg = load("configs/demo/demo.yaml", ["optim.lr=1e-3", "model.args.depth=2"])

Every value is converted by the type of its field, never by YAML's guess: `1e-3` is a float where a float is expected,
and `no` stays a string where a string is expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from configs.schema import PRESETS, REFUSED, SECTIONS, Config, check_ranges


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
        for key, value in sorted(entries.items(), key=lambda entry: entry[0] != "preset"):  # the others win over it
            _set(values, f"{section}.{key}", value)
    for override in overrides:
        key, equals, text = override.removeprefix("--").partition("=")
        if not equals:
            raise ValueError(f"'{override}': expected section.key=value, for instance optim.lr=1e-3")
        _set(values, key, text)
    cfg = Config(**{f.name: SECTIONS[f.name](**values.get(f.name, {})) for f in dataclasses.fields(Config)})
    check_ranges(cfg)
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
    if key == "eval.preset":
        entries.update(PRESETS.get(entries[name], {}))
    choices = next(f for f in dataclasses.fields(SECTIONS[section]) if f.name == name).metadata["choices"]
    if reason := REFUSED.get(key, {}).get(str(value)):
        raise ValueError(f"{key}={value}: {reason}")
    if choices and entries[name] not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        raise ValueError(
            f"{key}={value}: expected one of {', '.join(choices)}" + (f"; did you mean '{near[0]}'?" if near else "")
        )


def _convert(value: Any, hint: Any, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        parts = [p.strip() for p in value.strip("[]() ").split(",") if p.strip()] if isinstance(value, str) else value
        inner = typing.get_args(hint)
        if inner[1:] == (...,) and isinstance(parts, (list, tuple)):
            inner = inner[:1] * len(parts)
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
