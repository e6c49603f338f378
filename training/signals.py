"""End a run in good order when Ctrl-C or SIGTERM arrives."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class GracefulStop:
    """Turn Ctrl-C and SIGTERM into `signal`, which the run reads after each step.

    A single process is interrupted at once by a second Ctrl-C, or by a signal inside interruptible(). Several processes
    wait for each other, since torchrun passes on a signal that they may have received already. Leaving the block
    swallows that interruption: everything that matters was saved before.
    """

    def __init__(self, single_process: bool = True) -> None:
        self.single_process = single_process
        self.signal: signal.Signals | None = None  # the one that all processes know of
        self._received: signal.Signals | None = None
        self._wait = True

    def __enter__(self) -> GracefulStop:
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is KeyboardInterrupt and self.signal is not None

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal interrupt the block at once, because nothing is lost there."""
        self._wait = not self.single_process
        if self._received and self.single_process:
            self._interrupt()
        yield
        self._wait = True

    def sync(self, gather: Callable[[signal.Signals | None], list[signal.Signals | None]]) -> bool:
        """Tell whether the run stops now: a signal to one process stops all. All processes call it together."""
        self.signal = next((s for s in gather(self._received) if s), None)
        return bool(self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        second, self._received = self._received is not None, signal.Signals(number)
        if self.single_process and (second and number == signal.SIGINT or not self._wait):
            self._interrupt()

    def _interrupt(self) -> None:
        self.signal = self._received
        raise KeyboardInterrupt
