"""Run commands: `key=value` arguments as a dataclass, help, and errors as exit statuses."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

SettingsT = TypeVar("SettingsT")
USER_ERROR, INTERRUPTED = 2, 130  # exit statuses


def run_command(
    name: str,
    help_text: str | Callable[[], str],
    work: Callable[[Sequence[str]], int],
    argv: Sequence[str],
    *,
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
    interrupted: str = "interrupted",
    needs_arguments: bool = True,
) -> int:
    """Run `work` on the arguments of a command and return its exit status.

    -h, --help or missing arguments print the help. `errors` are mistakes of the user: their message is printed and the
    status is 2. Ctrl-C prints `interrupted`, and the status is 130.
    """
    if {"-h", "--help"} & set(argv) or (needs_arguments and not argv):
        _print_help(help_text if isinstance(help_text, str) else help_text())
        return 0 if argv else USER_ERROR
    try:
        return work(argv)
    except errors as error:
        print(f"{name}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"{name}: {interrupted}", file=sys.stderr)
        return INTERRUPTED


def _print_help(text: str) -> None:
    """Print the help; its reader may stop reading, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_args(
    cls: type[SettingsT], argv: Sequence[str], positional: Sequence[str] = ()
) -> tuple[list[str], SettingsT]:
    """Split arguments into positional ones, as many as `positional` has names for, and a dataclass of settings.

    `cls` is a dataclass whose fields all have defaults; key=value sets a field to a value of the type of its default
    (None: a whole number), commas separate the parts of a tuple, and a leading `--` is accepted. Raises ValueError that
    names the argument and what was expected.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    plain: list[str] = []
    values: dict[str, Any] = {}
    for argument in argv:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not equals and positional and not argument.startswith("-"):
            plain.append(argument)
            continue
        if not equals or key not in defaults:
            near = difflib.get_close_matches(key, defaults, 1)
            hint = f"did you mean {near[0]}=?" if near else f"expected one of {', '.join(defaults)}"
            raise ValueError(f"{argument}: unknown argument; {hint}")
        values[key] = _convert(argument, value, defaults[key])
    if len(plain) != len(positional):
        got = " ".join(plain) or "none of them"
        raise ValueError(f"expected {' '.join(positional)} [key=value ...], got {got}")
    return plain, cls(**values)


def _convert(argument: str, value: str, default: Any) -> Any:
    if isinstance(default, tuple):
        return tuple(value.split(","))
    kind = int if default is None else type(default)
    if kind is bool:
        if value not in ("yes", "no"):
            raise ValueError(f"{argument}: expected yes or no")
        return value == "yes"
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{argument}: expected a {'whole ' if kind is int else ''}number") from None
