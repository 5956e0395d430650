"""Medians that compare: contestants take turns round by round, so that drift of the machine hits them alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence

WARM_S = 0.01  # of untimed calls at each turn: the contestant before has taken the caches
SAMPLE_S = 0.005  # a sample is the mean of as many calls as take this long
SETTLE_S = 0.003  # between turns: a pool's threads spin for a while before they sleep
MAX_ROUNDS = 51
LEAST_PAIRS = 6  # the median of fewer has no interval of 95%


def interleave(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    min_rounds: int,
    prepare: Callable[[int], None] = lambda turn: None,
    *,
    max_rounds: int = MAX_ROUNDS,
    enough: Callable[[list[list[float]]], bool] = lambda samples: False,
) -> list[list[float]]:
    """Seconds a call, one number for each round, for each of `calls`, in about `seconds` altogether.

    `prepare` is called before each turn, untimed, with the number of the call whose turn it is; `enough` after each
    round from the `min_rounds`-th on, with the numbers so far: True ends it.
    """
    durations = []
    for number, call in enumerate(calls):
        prepare(number)
        durations.append(_estimate(call))
    repeats = [max(1, math.ceil(SAMPLE_S / duration)) for duration in durations]
    warm = [math.ceil(WARM_S / duration) if duration < 5 * WARM_S else 0 for duration in durations]
    turns = [(n + w) * d + SETTLE_S for n, w, d in zip(repeats, warm, durations, strict=True)]
    rounds = max(min_rounds, min(max_rounds, int(seconds / sum(turns))))
    samples: list[list[float]] = [[] for _ in calls]
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for number, call in enumerate(calls):
                prepare(number)
                time.sleep(SETTLE_S)
                for _ in range(warm[number]):
                    call()
                spent = _run(call, repeats[number])
                while spent < SAMPLE_S / 2:  # the calls of the estimate were slow: others had the processor
                    repeats[number] = math.ceil(repeats[number] * min(SAMPLE_S / max(spent, 1e-7), 1e3))
                    spent = _run(call, repeats[number])
                samples[number].append(spent / repeats[number])
            gc.collect(0)
            if len(samples[0]) >= min_rounds and enough(samples):
                break
    finally:
        gc.enable()
    return samples


def _run(call: Callable[[], object], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - begin


def _estimate(call: Callable[[], object]) -> float:
    """Seconds of a call that has run before: of a short one the least of three."""
    found: list[float] = []
    while not found or (len(found) < 3 and max(found) < 10 * WARM_S):
        found.append(_run(call, 1))
    return max(min(found), 1e-7)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of `values` lies, between two of them in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of value / other: both of a round met the same machine."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def ratio_interval(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Of the median of the paired ratios value / other, 95%: that of `median_ratio`."""
    return median_interval([value / other for value, other in zip(values, others, strict=True)])


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Two of the values with the median of their distribution between them, in at least that share of all samples.

    The interval of the sign test: of n independent values, how many lie below the median is binomial (n, 1/2), whatever
    the distribution. Raises ValueError where there are too few values for it.
    """
    ordered, count = sorted(values), len(values)
    outside, below = 0.0, 0  # P(at most `below` - 1 of them lie below the median); the same above it
    while 2 * (outside + math.comb(count, below) / 2**count) <= 1 - confidence:
        outside += math.comb(count, below) / 2**count
        below += 1
    if below == 0:
        raise ValueError(f"{count} values are too few for an interval of {confidence:.0%}")
    return ordered[below - 1], ordered[count - below]
