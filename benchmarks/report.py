"""python -m benchmarks.report: the newest results of each CSV as Markdown tables and PNG plots.

Tables go between the markers `<!-- benchmarks: DEVICE -->` and `<!-- end of benchmarks -->` of a Markdown file.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import ROOT, gru_grid_rows, markdown
from benchmarks.peers import OURS
from benchmarks.plots import plots
from benchmarks.problem import BACKWARD, SIZES
from benchmarks.results import (
    RESULTS,
    Environment,
    Key,
    Measured,
    Row,
    by_processor,
    key,
    machine,
    newest,
    read_csv,
    with_all_threads,
)

README = ROOT / "benchmarks" / "README.md"
END = "<!-- end of benchmarks -->"
HEADLINE = ("train_step", "train_step", BACKWARD)  # suite, family, pass of the table for the project's README


def grouped(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """The rows of each case, in their order; the named sizes from the smallest up."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    sizes = list(SIZES)

    def size(case: Key) -> int:
        name = case[2].partition(":")[0]
        return sizes.index(name) if name in sizes else 0

    return {case: found[case] for case in sorted(found, key=size)}


# ---- Tables ---------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return ""
    exponent = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, 2 - exponent)}f}"


def times_table(groups: dict[Key, list[Row]]) -> str:
    """A line for each case: this library with its quantiles, how near the limit it is, and its peers as ratios."""
    names = list(dict.fromkeys(row.contestant for rows in groups.values() for row in rows if row.contestant != OURS))
    unit = next(iter(groups.values()))[0].unit
    header = [f"case ({unit})", OURS, "20% to 80%", "limit", "times the limit"]
    lines = []
    for (_, _, case, run), rows in groups.items():
        by_name = {row.contestant: row for row in rows}
        ours = by_name.get(OURS)
        if ours is None:
            continue
        cells = [f"{case}, {run}", number(ours.median)]
        cells += ["" if ours.q20 is None else f"{number(ours.q20)} to {number(ours.q80)}"]
        cells += [number(ours.limit), number(ours.times_limit)]
        for name in names:
            peer = by_name.get(name)
            cells.append("" if peer is None else f"{number(peer.median)} ({number(peer.ratio)}x)")
        lines.append(cells)
    table = [[*header, *names], *lines]
    used = [i for i in range(len(table[0])) if any(line[i] for line in lines)]
    return markdown.table([table[0][i] for i in used], [[line[i] for i in used] for line in lines])


def threads_table(groups: dict[Key, list[Row]]) -> str:
    """A line for each case and contestant: its time at each thread count."""
    counts = sorted({row.threads for rows in groups.values() for row in rows})
    lines = []
    for (_, _, case, run), rows in groups.items():
        for name in dict.fromkeys(row.contestant for row in rows):
            by_count = {row.threads: row.median for row in rows if row.contestant == name}
            first, last = by_count.get(counts[0]), by_count.get(counts[-1])
            speedup = number(first / last) + "x" if first and last else ""
            lines.append([f"{name}: {case}, {run}", *(number(by_count.get(count)) for count in counts), speedup])
    return markdown.table(["case (ms)", *(f"{count} threads" for count in counts), "speed-up"], lines)


def steps_table(groups: dict[Key, list[Row]]) -> str:
    """A line for each case: microseconds a step."""
    names = list(dict.fromkeys(row.contestant for rows in groups.values() for row in rows))
    lines = []
    for (_, _, case, run), rows in groups.items():
        by_name = {row.contestant: number(row.us_per_step) for row in rows}
        lines.append([f"{case}, {run}", *(by_name.get(name, "") for name in names)])
    return markdown.table(["case (us per step)", *names], lines)


TITLES: dict[str, tuple[str, Callable[[dict[Key, list[Row]]], str]]] = {
    "train_step": ("Training step of the whole model", times_table),
    "layer": ("VSSNLayer", times_table),
    "ops": ("Ops", times_table),
    "bfloat16": ("In bfloat16", times_table),
    "scaling T": ("Over the length of the sequence", steps_table),
    "scaling B": ("Over the batch", times_table),
    "scaling threads": ("Over threads", threads_table),
    "memory": ("Memory of one forward and backward pass", times_table),
    "dispatch": ("Cost of a call with next to no work in it", times_table),
    "compile_time": ("First call in a fresh process", times_table),
}


def origin(measured: Measured) -> str:
    """Where the tables come from: one line for each machine and state of the project."""
    seen: dict[tuple[str, ...], Environment] = {}
    for where, _ in measured:
        seen[(where.device, where.processor, where.commit, where.torch)] = where
    return "\n".join(
        f"{machine(where)}, {where.cores} cores, "
        f"torch {where.torch}, jax {where.jax or 'absent'}, vssn {where.vssn} with backend {where.backend}, "
        f"commit {where.commit or 'unknown'}, {where.date[:10]}; "
        f"best product {number(where.gemm_gflops)} GFLOP/s, copy {number(where.copy_gbs)} GB/s, "
        f"load before it {number(where.load)}.\n"
        for where in seen.values()
    )


def tables(measured: Measured) -> str:
    """Of each processor every suite and family, the newest run where a case was measured again."""
    parts = []
    for name, own in by_processor(measured).items():
        shown = with_all_threads(newest(own))
        parts.append(f"### On {name}\n\n{origin(shown)}")
        for suite, (title, render) in TITLES.items():
            of_suite = [row for _, row in shown if row.suite == suite]
            for family in dict.fromkeys(row.family for row in of_suite):
                groups = grouped(row for row in of_suite if row.family == family)
                heading = title if family == suite else f"{title}: {family}"
                parts.append(f"#### {heading}\n\n{render(groups)}\n")
    return "\n".join(parts)


def headline(measured: Measured) -> str:
    """The tables of the project's README: the training step, on each processor."""
    parts = []
    for own in by_processor(measured).values():
        shown = [one for one in with_all_threads(newest(own)) if (one[1].suite, one[1].family, one[1].run) == HEADLINE]
        if shown:
            parts.append(f"{times_table(grouped(row for _, row in shown))}\n\n{origin(shown)}")
    if not parts:
        raise ValueError("the results hold no training step: python -m benchmarks.run --suite train_step --csv")
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads benchmarks/results/*.csv, writes the tables and the plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("csv", nargs="*", type=Path, help="files of results (those of benchmarks.run in its folder)")
    parser.add_argument("--readme", type=Path, default=README, help="Markdown file for all tables")
    parser.add_argument("--headline", type=Path, help="Markdown file for the training step's table alone (README.md)")
    parser.add_argument("--plots", type=Path, help="folder of the plots (beside the results)")
    arguments = parser.parse_args(argv)
    paths = arguments.csv or sorted(path for path in RESULTS.glob("*.csv") if path != gru_grid_rows.CSV)
    try:
        if not paths:
            raise ValueError(f"no results in {RESULTS.relative_to(ROOT)}: python -m benchmarks.run --csv")
        for path in paths:
            measured = read_csv(path)
            begin = f"<!-- benchmarks: {path.stem} -->"
            markdown.insert(arguments.readme, begin, END, tables(measured))
            if arguments.headline is not None:
                markdown.insert(arguments.headline, begin, END, headline(measured))
            for image in plots(measured, arguments.plots or path.parent, path.stem):
                print(image)
    except (OSError, ValueError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
