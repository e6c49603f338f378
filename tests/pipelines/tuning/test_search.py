"""The search on made-up speeds: it ends near the best, in time, and prefers what is cheap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tuning.search import Candidate, Search, Space, search

AXES = {
    "decoder": [{"decoder": "dali"}, {"decoder": "both", "pyav_share": 0.2}, {"decoder": "both", "pyav_share": 0.4}],
    "num_workers": [{"num_workers": number} for number in (4, 8, 12, 16)],
    "dali_threads": [{"dali_threads": number} for number in (1, 4, 8)],
    "prefetch": [{"prefetch": number} for number in (1, 2, 4)],
}
SPACE = Space(Candidate(), AXES)


class Machine:
    """Measures made-up speeds with noise; every trial takes two seconds and its clips."""

    def __init__(self, speed, *, noise=0.0, slow=0.0, seed=0):
        self.speed, self.noise, self.slow = speed, noise, slow
        self.rng, self.seconds = np.random.default_rng(seed), 0.0

    def __call__(self, candidate, clips):
        rate = self.speed(candidate) * (1 + self.noise * self.rng.normal())
        rate *= 0.5 if self.rng.random() < self.slow else 1.0
        self.seconds += 2 + clips / rate if rate else 1
        return rate

    def search(self, space=SPACE, seconds=120.0):
        run = Search(self, seconds, clock=lambda: self.seconds, first_clips=32)
        return search(space, run), run


def surface(optimum, steepness, gains):
    """Return speeds that rise to a number of workers and fall beyond it, times a factor per other choice."""

    def speed(c):
        busy = 1 / (1 + steepness * abs(np.log(max(c.num_workers, 0.5) / optimum)))
        keys = ((c.decoder, c.pyav_share), ("threads", c.dali_threads), ("prefetch", c.prefetch))
        return 100 * busy * np.prod([gains.get(key, 1.0) for key in keys])

    return speed


SURFACES = st.builds(
    surface,
    st.sampled_from([1, 2, 4, 7, 8, 12, 30]),
    st.floats(0, 2),
    st.dictionaries(
        st.sampled_from(
            [("auto", "auto"), ("dali", "auto"), ("both", 0.2), ("both", 0.4)]
            + [("threads", n) for n in (1, 4, 8)]
            + [("prefetch", n) for n in (1, 2, 4)]
        ),
        st.floats(0.4, 1.5),
    ),
)


@settings(max_examples=150)
@given(speed=SURFACES, seed=st.integers(0, 1000))
def test_search_ends_within_five_percent_of_the_best(speed, seed):
    best, _ = Machine(speed, noise=0.01, seed=seed).search(seconds=600)
    assert speed(best) >= 0.95 * max(map(speed, SPACE.all_candidates()))


def test_search_is_rarely_misled_by_trials_that_others_slow_down():
    rng, misses = np.random.default_rng(0), 0
    for seed in range(100):
        gains = {("both", 0.2): rng.uniform(0.8, 1.4), ("prefetch", 4): rng.uniform(0.9, 1.2)}
        speed = surface(rng.choice([2, 4, 8]), 0.5, gains)
        best, _ = Machine(speed, noise=0.02, slow=0.05, seed=seed).search(seconds=600)
        misses += speed(best) < 0.95 * max(map(speed, SPACE.all_candidates()))
    assert misses <= 15


@pytest.mark.parametrize("seconds", [5.0, 40.0, 120.0])
def test_search_ends_in_time(seconds):
    machine = Machine(surface(8, 1.0, {}), noise=0.05)
    _, run = machine.search(seconds=seconds)
    assert machine.seconds <= 1.2 * seconds and run.num_measured >= 1


def test_search_without_time_keeps_what_is_configured():
    best, run = Machine(surface(8, 1.0, {})).search(seconds=0.0)
    assert best == SPACE.start and run.num_measured == 1


def test_configured_values_stay_if_nothing_is_faster_by_more_than_two_percent():
    best, _ = Machine(lambda c: 100.0 + (c != SPACE.start), noise=0.001).search(seconds=600)
    assert best == SPACE.start


def test_fewer_workers_win_among_equals():
    best, _ = Machine(lambda c: 50.0 if c.num_workers < 4 else 100.0).search(seconds=600)
    assert best.num_workers == 4 and best.prefetch == 2


def test_candidates_that_do_not_run_are_left_out():
    best, run = Machine(lambda c: 0.0 if c.decoder == "auto" else 10.0 + c.num_workers).search(seconds=600)
    assert best.decoder != "auto" and best.num_workers == 16 and run.rates[SPACE.start] == [0.0]


def test_search_without_a_candidate_that_runs_is_an_error():
    with pytest.raises(ValueError, match="none of the candidates runs"):
        Machine(lambda c: 0.0).search()


def test_all_candidates_are_the_product_of_the_axes_without_repetition():
    candidates = SPACE.all_candidates()
    assert candidates[0] == SPACE.start and len(set(candidates)) == len(candidates) == 4 * 5 * 4 * 3
    assert Space(Candidate(), {"decoder": []}).all_candidates() == [Candidate()]


def test_changes_are_the_values_that_differ():
    assert Candidate(num_workers=3, dali_threads=4).changes(Candidate()) == {"num_workers": 3, "dali_threads": 4}
