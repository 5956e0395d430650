"""python -m benchmarks.filter_step: a step of a causal model's filter, one stream, beside a torch.nn.GRUCell.

A step updates two GRUs (d, and a of the inference network), three small networks and the prediction of the next frame;
the cell is one GRU of the same state. Both run in turn in one process, without gradients.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

import vssn
from benchmarks import markdown
from benchmarks.limits import thread_count
from benchmarks.results import busy, load
from benchmarks.timing import LEAST_PAIRS, interleave, median_ratio, ratio_interval
from vssn.utils.machine import processor_name

FRAMES = 50  # a call is a pass over so many
US = 1e6


class Found(NamedTuple):
    filter_us: float  # medians, of one step
    cell_us: float
    ratio: float  # median of the pairs, and its interval of 95%
    low: float
    high: float


def measure(frame: int, hidden: int, seconds: float) -> Found:
    """A filter of frames [1, `frame`] with a state of `hidden`, and the cell with the same inputs and state."""
    model = vssn.VSSN(frame, hidden, 16, noise_size=8, likelihood="gaussian", inference="causal").eval()
    cell = nn.GRUCell(frame, hidden)
    filter, frames = model.filter(1), torch.randn(FRAMES, 1, frame).unbind()
    state = torch.zeros(1, hidden)

    def steps() -> None:
        for x in frames:
            filter.step(x)

    def cells() -> None:
        h = state
        for x in frames:
            h = cell(x, h)

    with torch.no_grad():
        ours, theirs = interleave([steps, cells], seconds, LEAST_PAIRS)
    low, high = ratio_interval(ours, theirs)
    filter_us, cell_us = (US / FRAMES * statistics.median(samples) for samples in (ours, theirs))
    return Found(filter_us, cell_us, median_ratio(ours, theirs), low, high)


def table(frames: Sequence[int], hidden: Sequence[int], threads: Sequence[int], seconds: float) -> str:
    """A line for every combination."""
    lines: list[tuple[object, ...]] = []
    for count, D, X in itertools.product(threads, hidden, frames):
        with thread_count(count):
            found = measure(X, D, seconds)
        ratio = f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})"
        lines.append((D, X, count, f"{found.filter_us:.1f}", f"{found.cell_us:.1f}", ratio))
    return markdown.table(("D", "X", "threads", "filter step, us", "GRUCell(X, D), us", "ratio (95%)"), lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.filter_step", description=__doc__)
    add = make.add_argument
    add("--X", nargs="+", type=int, default=[8, 64], metavar="X", help="size of a frame (%(default)s)")
    add("--D", nargs="+", type=int, default=[64, 256], metavar="D", help="size of the state (%(default)s)")
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="of PyTorch (%(default)s)")
    add("--seconds", type=float, default=3.0, help="of timing for a line (%(default)s)")
    return make


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    arguments = parser().parse_args(argv)
    if not all(number > 0 for number in (*arguments.X, *arguments.D, *arguments.threads, arguments.seconds)):
        print("benchmarks.filter_step: --X, --D, --threads and --seconds must be above 0", file=sys.stderr)
        return 2
    print(f"{processor_name()}, torch {torch.__version__}\n")
    if warning := busy(load(), torch.get_num_threads()):
        print(warning, file=sys.stderr)
    print(table(arguments.X, arguments.D, arguments.threads, arguments.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
