"""Turn Ctrl-C and SIGTERM into an orderly end of a run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class Stop:
    """Turns Ctrl-C and SIGTERM into `signal`, read after each step; of a process that is `alone` a second Ctrl-C, or a
    signal inside at_once(), interrupts. Others are waited for, and torchrun passes on what the processes got already.

    Leaving the block swallows that interruption: all that matters was saved before.
    """

    def __init__(self, alone: bool = True) -> None:
        self.alone = alone
        self.signal: signal.Signals | None = None  # that all processes know of
        self._received: signal.Signals | None = None
        self._wait = True

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is KeyboardInterrupt and self.signal is not None

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, nothing is lost by stopping at once."""
        self._wait = not self.alone
        if self._received and self.alone:
            self._interrupt()
        yield
        self._wait = True

    def agreed(self, gather: Callable[[signal.Signals | None], list[signal.Signals | None]]) -> bool:
        """Whether the run stops after this step, for all processes to ask together: a signal to one stops all."""
        self.signal = next((s for s in gather(self._received) if s), None)
        return bool(self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        second, self._received = self._received is not None, signal.Signals(number)
        if self.alone and (second and number == signal.SIGINT or not self._wait):
            self._interrupt()

    def _interrupt(self) -> None:
        self.signal = self._received
        raise KeyboardInterrupt
