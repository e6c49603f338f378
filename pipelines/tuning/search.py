"""Search the settings of a loader that give the most clips per second, with few measurements of a noisy machine.

Pure arithmetic: what is measured, and with which clock, comes from outside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

NEAR = 0.02  # of the speed: candidates that are this close are equal, and the cheaper one wins
FINALISTS = 3  # candidates that are measured again at the end
MIN_TURNS, TURNS = 2, 7  # of the finalists
# Each axis may use the time up to this fraction of the budget. The rest is that of the finalists.
_UNTIL = {"decoder": 0.3, "num_workers": 0.55, "dali_threads": 0.65, "prefetch": 0.75}


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
    """Keep what was measured so far: the clips per second of each candidate, in order of time; 0 if it cannot run."""

    measure: Callable[[Candidate, int], float]  # clips per second, over at least so many clips
    seconds: float
    clock: Callable[[], float] = time.monotonic
    first_clips: int = 1  # of the first measurement, before any speed is known
    rates: dict[Candidate, list[float]] = field(default_factory=dict)
    durations: dict[Candidate, float] = field(default_factory=dict)  # seconds of the last trial
    scores: dict[Candidate, float] = field(default_factory=dict)  # relative speeds that the search ended with

    def __post_init__(self) -> None:
        self.begin = self.clock()
        self.num_measured = 0

    def try_once(self, candidate: Candidate, until: float = 1.0) -> bool:
        """Measure a candidate once, if a fraction of the time is not over yet; return whether it did.

        It should also end within the time, but the very first measurement is always made.
        """
        begin = self.clock()
        if self.num_measured and (begin - self.begin >= until * self.seconds or not self.has_time_for([candidate])):
            return False
        rate = self.measure(candidate, self.clips_per_trial())
        self.rates.setdefault(candidate, []).append(rate)
        self.durations[candidate] = self.clock() - begin
        self.num_measured += 1
        return True

    def has_time_for(self, candidates: Sequence[Candidate], until: float = 1.0) -> bool:
        """Return whether one more trial of each ends before a fraction of the time is over.

        One that was not measured yet may be as fast as the fastest: the first may have been an unlucky choice.
        """
        shortest = min(self.durations.values(), default=0.0)
        needed = sum(self.durations.get(candidate, shortest) for candidate in candidates)
        return self.clock() - self.begin + needed <= until * self.seconds

    def clips_per_trial(self) -> int:
        """Return the clips that the fastest candidate delivers in a sixtieth of the time, half a second to three."""
        fastest = max((self.median(candidate) for candidate in self.rates), default=0.0)
        return max(self.first_clips, round(fastest * min(max(self.seconds / 60, 0.5), 3.0)))

    def median(self, candidate: Candidate) -> float:
        """Return the median speed of a candidate, the faster of two; 0 if it was not measured."""
        return statistics.median_high(self.rates.get(candidate) or [0.0])


def search(space: Space, run: Search) -> Candidate:
    """Return the best candidate of a space, axis by axis, then among finalists that are measured in turns.

    Speeds are only compared within an axis, whose trials follow each other closely: other work on a shared machine
    comes and goes. What does not fit into the time is left out. Raises ValueError if no candidate runs.
    """
    leader, scores = space.start, {space.start: 1.0}  # speeds relative to that of the configured candidate
    for axis, choices in space.axes.items():
        pool = list(dict.fromkeys([leader, *(leader._replace(**values) for values in choices)]))
        speeds = _halve(run, pool, _UNTIL[axis]) if len(pool) > 1 else {}
        fastest = max(speeds, key=lambda c: speeds[c], default=leader)
        if not speeds.get(fastest):
            continue  # there was no time, or none of them runs
        unit = scores[leader] / speeds[leader] if speeds.get(leader) else 1 / speeds[fastest]
        scores |= {c: speed * unit for c, speed in speeds.items()}
        leader = fastest
    if not run.num_measured:
        run.try_once(space.start)
    ranked = sorted((c for c in run.rates if any(run.rates[c])), key=lambda c: scores[c], reverse=True)
    finalists = ranked[:FINALISTS]
    if space.start in ranked[FINALISTS:] and scores[space.start] > 0.85 * scores[ranked[0]]:
        finalists.append(space.start)  # a close decision against what is configured needs repeating
    run.scores = scores | _take_turns(run, finalists, scores)
    return best_of({c: run.scores[c] for c in ranked}, space.start)


def best_of(scores: Mapping[Candidate, float], start: Candidate) -> Candidate:
    """Return the fastest candidate, or the cheapest of those that are as fast but for NEAR; `start` costs nothing.

    Raises ValueError if none of them runs.
    """
    fastest = max(scores.values(), default=0.0)
    if not fastest:
        raise ValueError("none of the candidates runs")
    return min((c for c, score in scores.items() if score >= (1 - NEAR) * fastest), key=lambda c: _cost(c, start))


def _cost(candidate: Candidate, start: Candidate) -> tuple[Any, ...]:
    """Order candidates by the processes that they take, then by how many values they change, memory and threads."""
    c = candidate
    threads = c.dali_threads if isinstance(c.dali_threads, int) else 0
    return c != start, c.num_workers, len(c.changes(start)), c.prefetch, threads


def _take_turns(
    run: Search, finalists: Sequence[Candidate], scores: Mapping[Candidate, float]
) -> dict[Candidate, float]:
    """Measure finalists in turns until the time is up; return their new scores, the median over the turns of each.

    Speeds are relative to the mean of their turn, since a machine may be shared: other work slows a turn down as a
    whole more than one candidate in it. Empty for a single one, and without time for MIN_TURNS.
    """
    turns: list[list[float]] = []
    while len(finalists) > 1 and len(turns) < TURNS and run.has_time_for(finalists):
        if not all([run.try_once(candidate) for candidate in finalists]):
            break
        turns.append([run.rates[candidate][-1] for candidate in finalists])
    if len(turns) < MIN_TURNS:
        return {}
    relative = [[rate / max(statistics.mean(turn), 1e-9) for rate in turn] for turn in turns]
    unit = max(scores[c] for c in finalists)  # so that the others' scores, which are lower, remain comparable
    medians = [statistics.median(column) for column in zip(*relative, strict=True)]
    return {c: unit * median / max(medians) for c, median in zip(finalists, medians, strict=True)}


def _halve(run: Search, pool: Sequence[Candidate], until: float) -> dict[Candidate, float]:
    """Return the speed of each candidate of a pool that was measured before the time was up; 0 if it does not run.

    All are measured twice if there is time for that, as others may have slowed a first trial down; then the faster half
    again and again.
    """
    rates: dict[Candidate, list[float]] = {}

    def speed(candidate: Candidate) -> float:
        return statistics.median_high(rates[candidate])  # of two the faster: others only slow down

    def measure(candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            if run.try_once(candidate, until):
                rates.setdefault(candidate, []).append(run.rates[candidate][-1])

    measure(pool)
    rest = [candidate for candidate in rates if speed(candidate)]
    if run.has_time_for(rest, until):
        measure(rest)
    while len(rest) > 2:
        rest = sorted(rest, key=speed, reverse=True)[: (len(rest) + 1) // 2]
        measure(rest)
    return {candidate: speed(candidate) for candidate in rates}
