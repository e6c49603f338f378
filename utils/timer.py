"""Tell when an interval of time is over."""

from __future__ import annotations

import time


class IntervalTimer:
    """A timer of so many minutes; 0 minutes are never over."""

    def __init__(self, minutes: float):
        self.seconds, self.start = 60 * minutes, time.monotonic()

    def due(self) -> bool:
        """Return True once per interval."""
        if not self.seconds or time.monotonic() - self.start < self.seconds:
            return False
        self.start = time.monotonic()
        return True
