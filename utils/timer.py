"""Say when an interval is over."""

from __future__ import annotations

import time


class Clock:
    """Says when so many minutes are over; 0 means never."""

    def __init__(self, minutes: float):
        self.seconds, self.start = 60 * minutes, time.monotonic()

    def due(self) -> bool:
        """Whether they are, since the last time that they were."""
        if not self.seconds or time.monotonic() - self.start < self.seconds:
            return False
        self.start = time.monotonic()
        return True
