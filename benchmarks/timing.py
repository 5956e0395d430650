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


def interleave(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    min_rounds: int,
    prepare: Callable[[int], None] = lambda turn: None,
) -> list[list[float]]:
    """Seconds a call, one number for each round, for each of `calls`, in about `seconds` altogether.

    `prepare` is called before each turn, untimed, with the number of the call whose turn it is.
    """
    durations = []
    for number, call in enumerate(calls):
        prepare(number)
        durations.append(_estimate(call))
    repeats = [max(1, math.ceil(SAMPLE_S / duration)) for duration in durations]
    warm = [math.ceil(WARM_S / duration) if duration < 5 * WARM_S else 0 for duration in durations]
    turns = [(n + w) * d + SETTLE_S for n, w, d in zip(repeats, warm, durations, strict=True)]
    rounds = min(MAX_ROUNDS, max(min_rounds, int(seconds / sum(turns))))
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
                begin = time.perf_counter()
                for _ in range(repeats[number]):
                    call()
                samples[number].append((time.perf_counter() - begin) / repeats[number])
            gc.collect(0)
    finally:
        gc.enable()
    return samples


def _estimate(call: Callable[[], object]) -> float:
    """Seconds of a call that has run before: of a short one the least of three."""
    found: list[float] = []
    while not found or (len(found) < 3 and max(found) < 10 * WARM_S):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
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
