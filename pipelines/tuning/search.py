"""Search the settings of a loader that give the most clips per second, with few measurements of a noisy machine.

Pure arithmetic: what is measured, and with which clock, comes from outside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

NEAR = 0.02  # of the speed: candidates that are this close are equal, and the cheaper one wins
FINALISTS, ROUNDS = 3, 5  # how many are measured again at the end, and how often at most
_WIDTH = {"decoder": 2}  # candidates that go on to the next axis; 1 for the others
# Each axis may use the time up to this fraction of the budget. The rest is that of the finalists.
_UNTIL = {"decoder": 0.25, "num_workers": 0.5, "dali_threads": 0.62, "prefetch": 0.75}


class Candidate(NamedTuple):
    """Values of the keys of the section data that decide how fast a loader is, and change no clip of its stream."""

    decoder: str = "auto"
    pyav_share: float | str = "auto"
    num_workers: int = 2
    dali_threads: int | str = "auto"
    prefetch: int = 2

    def changes(self, start: Candidate) -> dict[str, Any]:
        """Return the values that differ from those of another candidate."""
        return {key: value for key, value in self._asdict().items() if value != getattr(start, key)}


class Space(NamedTuple):
    """The candidates of a machine: the configured one, and the values that each axis may have instead."""

    start: Candidate
    axes: dict[str, Sequence[dict[str, Any]]]  # name -> the values of its keys, in the order of measuring

    def all_candidates(self) -> list[Candidate]:
        """Return every combination, the configured one first."""
        candidates = [self.start]
        for choices in self.axes.values():
            candidates = [c._replace(**values) for c in candidates for values in ({}, *choices)]
        return list(dict.fromkeys(candidates))


@dataclass
class Search:
    """What was measured so far: the clips per second of each candidate, in order of time; 0 if it cannot run."""

    measure: Callable[[Candidate, int], float]  # clips per second, over at least so many clips
    seconds: float
    clock: Callable[[], float] = time.monotonic
    first_clips: int = 1  # of the first measurement, before any speed is known
    rates: dict[Candidate, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin = self.clock()
        self.num_measured = 0

    def try_once(self, candidate: Candidate, until: float = 1.0) -> bool:
        """Measure a candidate once, if that fits into a fraction of the time; return whether it did.

        The very first measurement is always made.
        """
        if self.num_measured and not self.has_time_for(1, until):
            return False
        rate = self.measure(candidate, self.clips_per_trial())
        self.rates.setdefault(candidate, []).append(rate)
        self.num_measured += 1
        return True

    def has_time_for(self, num_trials: int, until: float) -> bool:
        """Return whether some more trials, as long as those so far, end before a fraction of the time is over."""
        used = self.clock() - self.begin
        return used * (1 + num_trials / max(self.num_measured, 1)) <= until * self.seconds

    def clips_per_trial(self) -> int:
        """Return the clips that the fastest candidate delivers in a sixtieth of the time, half a second to three."""
        fastest = max((self.median(candidate) for candidate in self.rates), default=0.0)
        return max(self.first_clips, round(fastest * min(max(self.seconds / 60, 0.5), 3.0)))

    def median(self, candidate: Candidate) -> float:
        """Return the median speed of a candidate, the faster of two; 0 if it was not measured."""
        return statistics.median_high(self.rates.get(candidate) or [0.0])

    def fastest_first(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Sort by the median speed; leave out what was not measured or cannot run."""
        return sorted((c for c in candidates if self.median(c)), key=self.median, reverse=True)

    def best_of(self, candidates: Sequence[Candidate], start: Candidate) -> Candidate:
        """Return the fastest candidate, or the cheapest of those that are as fast but for NEAR; `start` costs nothing.

        Raises ValueError if none of them runs.
        """
        ranked = self.fastest_first(candidates)
        if not ranked:
            raise ValueError("none of the candidates runs")
        equal = [c for c in ranked if self.median(c) >= (1 - NEAR) * self.median(ranked[0])]
        return min(equal, key=lambda c: _cost(c, start))


def _cost(candidate: Candidate, start: Candidate) -> tuple[Any, ...]:
    """Order candidates by what they change and take: processes, then memory, then threads."""
    c = candidate
    threads = c.dali_threads if isinstance(c.dali_threads, int) else 0
    return c != start, c.num_workers, c.prefetch, threads, len(c.changes(start))


def search(space: Space, run: Search) -> Candidate:
    """Return the best candidate of a space, axis by axis, then among finalists that are measured in turns.

    On each axis all values are measured once and the faster half again, until few are left. What does not fit into the
    time is left out. Raises ValueError if no candidate runs.
    """
    leaders = [space.start]
    for axis, choices in space.axes.items():
        pool = list(dict.fromkeys([*leaders, *(c._replace(**values) for c in leaders for values in choices)]))
        leaders = _halve(run, pool, _WIDTH.get(axis, 1), _UNTIL[axis])
        leaders = leaders or [space.start]
    finalists = run.fastest_first(list(run.rates))[:FINALISTS]
    near_start = run.median(space.start) >= 0.85 * run.median(finalists[0]) if finalists else False
    if near_start and space.start not in finalists:  # only a close decision against what is configured needs repeating
        finalists.append(space.start)
    if len(finalists) > 1:
        # They take turns, so that each has its share of the quiet and the busy moments.
        while min(len(run.rates[c]) for c in finalists) < ROUNDS:
            if not all(run.try_once(c) for c in sorted(finalists, key=lambda c: len(run.rates[c]))):
                break
    return run.best_of(finalists or list(run.rates), space.start)


def _halve(run: Search, pool: list[Candidate], keep: int, until: float) -> list[Candidate]:
    """Measure a pool until `keep` candidates are left or the time is up: all of it twice if there is time for that,
    as others may have slowed a first trial down, then the faster half again and again."""
    if len(pool) == 1:
        return pool
    for candidate in pool:
        if candidate not in run.rates:
            run.try_once(candidate, until)
    pool = run.fastest_first(pool)
    if run.has_time_for(len(pool), until):
        for candidate in pool:
            if len(run.rates[candidate]) == 1:
                run.try_once(candidate, until)
        pool = run.fastest_first(pool)
    while len(pool) > max(keep, 2):
        pool = pool[: max(keep, (len(pool) + 1) // 2)]
        for candidate in pool:
            run.try_once(candidate, until)
        pool = run.fastest_first(pool)
    return pool[:keep]
