"""python tests/fuzz.py: calls of every op drawn at random on every backend of this machine, against the reference.

Ends at the first case that is out of its tolerance, made as small as it can be; else prints how many ran and how near
the worst came.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from drawn_calls import Case, cases, require_within
from hypothesis import HealthCheck, Phase, given, seed, settings
from reliability_records import record

from vssn_kernels.testing import Target, ops_of, targets

ROUND = 50  # cases of an op and target before the next have their turn


@dataclass
class Tally:
    """What ran of one op on one target."""

    ran: int = 0
    worst: float = 0.0
    where: str = ""
    failed: list[str] = field(default_factory=list)

    def take(self, case: Case, ratios: dict[str, float]) -> None:
        self.ran += 1
        for name, ratio in ratios.items():
            if not ratio <= self.worst:
                self.worst, self.where = ratio, name
        require_within(case, ratios)


def draw_round(op: str, target: Target, number: int, count: int, tally: Tally, until: float) -> bool:
    """`count` cases, fewer where time is over. Returns whether all were within."""

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @seed(number)
    @given(cases(op))
    def check(case: Case) -> None:
        if time.monotonic() < until:
            tally.take(case, case.run(target))

    try:
        check()
    except AssertionError as failure:
        tally.failed.append(str(failure))
        return False
    return True


def run(count: int, minutes: float, first_seed: int, only: Sequence[str]) -> dict[tuple[str, Target], Tally]:
    """Cases until there are `count` of them, or the time is over, or one fails."""
    until = time.monotonic() + 60 * minutes
    chosen = [target for target in targets() if not only or target.backend in only]
    tallies = {(op, target): Tally() for target in chosen for op in ops_of(target.backend)}
    if not tallies:
        raise ValueError(f"none of {list(only)} is available here")
    for number in itertools.count(first_seed):
        for (op, target), tally in tallies.items():
            left = count - sum(other.ran for other in tallies.values())
            if left <= 0 or time.monotonic() >= until:
                return tallies
            if not draw_round(op, target, number, min(ROUND, left), tally, until):
                return tallies
    raise AssertionError("unreachable")


def report(tallies: dict[tuple[str, Target], Tally]) -> str:
    """A line for each op and target."""
    lines = [f"{'op':<22}{'target':<24}{'cases':>7}{'worst / tolerance':>19}  of"]
    for (op, target), tally in tallies.items():
        lines.append(f"{op:<22}{target!s:<24}{tally.ran:>7}{tally.worst:>19.3g}  {tally.where}".rstrip())
    ran = sum(tally.ran for tally in tallies.values())
    worst = max(tally.worst for tally in tallies.values())
    return "\n".join([*lines, f"{ran} cases, the worst at {worst:.3g} of its tolerance"])


def keep(tallies: dict[tuple[str, Target], Tally], command: str) -> None:
    """Records how many cases of each op ran, and the worst of each target, for RELIABILITY.md."""
    for op in dict.fromkeys(op for op, _ in tallies):
        own = {target: tally for (one, target), tally in tallies.items() if one == op}
        worst = {f"{_short(target)}: worst": tally.worst for target, tally in own.items()}
        cases, failed = (
            sum(counts) for counts in zip(*((tally.ran, len(tally.failed)) for tally in own.values()), strict=True)
        )
        record(op, topic="fuzz", command=command, cases=cases, **worst, mismatches=failed)


def _short(target: Target) -> str:
    return f"{target.backend} {str(target.dtype).removeprefix('torch.')}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz.py", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, metavar="N", help="in all (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="no case is begun after that (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds draw other cases (%(default)s)")
    parser.add_argument("--backend", nargs="+", default=(), help="these alone (all that are available)")
    parser.add_argument("--record", action="store_true", help="add the figures to results/reliability/fuzz.json")
    arguments = parser.parse_args(argv)
    tallies = run(arguments.cases, arguments.minutes, arguments.seed, arguments.backend)
    print(report(tallies))
    if arguments.record:
        keep(tallies, f"make fuzz CASES={arguments.cases} MINUTES={arguments.minutes:g} SEED={arguments.seed} RECORD=1")
    failures = [failure for tally in tallies.values() for failure in tally.failed]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
