"""Commands: key=value arguments, help, and errors as exit statuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from tests.helpers import ROOT
from utils.cli import parse_args, run_command


@dataclass(frozen=True)
class Settings:
    size: int = 3
    rate: float = 0.5
    names: tuple[str, ...] = ("a",)
    memory: bool = False


def test_arguments_take_the_type_of_the_default():
    plain, settings = parse_args(Settings, ["list.txt", "--size=4", "rate=1e-3", "names=b,c", "memory=yes"], ["LIST"])
    assert (plain, settings) == (["list.txt"], Settings(4, 1e-3, ("b", "c"), True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sise=4"], "sise=4: unknown argument; did you mean size=?"),
        (["size=four"], "size=four: expected a whole number"),
        (["rate=fast"], "rate=fast: expected a number"),
        (["memory=1"], "memory=1: expected yes or no"),
        ([], "expected LIST [key=value ...], got none of them"),
    ],
)
def test_wrong_arguments_are_named_with_what_was_expected(arguments, message):
    with pytest.raises(ValueError) as caught:
        parse_args(Settings, ["list.txt", *arguments] if arguments else [], ["LIST"])
    assert str(caught.value) == message


def test_errors_and_interrupts_become_exit_statuses(capsys):
    def fail(error: BaseException) -> int:
        raise error

    assert run_command("x", "help", lambda argv: 7, ["a"]) == 7
    assert run_command("x", "help", lambda argv: fail(ValueError("no such list")), ["a"]) == 2
    assert capsys.readouterr().err == "x: no such list\n"
    assert run_command("x", "help", lambda argv: fail(KeyboardInterrupt()), ["a"], interrupted="stopped") == 130
    assert capsys.readouterr().err == "x: stopped\n"
    with pytest.raises(RuntimeError):
        run_command("x", "help", lambda argv: fail(RuntimeError("a bug")), ["a"])


def test_help_is_printed_on_request_and_without_arguments(capsys):
    assert run_command("x", lambda: "the help", lambda argv: 7, ["a", "--help"]) == 0
    assert run_command("x", "the help", lambda argv: 7, []) == 2
    assert capsys.readouterr().out == "the help\n" * 2


def test_help_into_a_closed_pipe_ends_quietly():
    script = "from utils.cli import run_command; run_command('x', 'help\\n' * 100000, lambda argv: 0, ['-h'])"
    done = subprocess.run(
        f'{sys.executable} -c "{script}" | head -1', shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("help\n", "")
