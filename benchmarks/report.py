"""python -m benchmarks.report: the newest results of each CSV as Markdown tables and PNG plots.

Tables go between the markers `<!-- benchmarks: DEVICE -->` and `<!-- end of benchmarks -->` of a Markdown file.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.cases import BACKWARD, FORWARD, SIZES
from benchmarks.peers import OURS
from benchmarks.results import RESULTS, ROOT, Environment, Row, read_csv

README = Path(__file__).resolve().parent / "README.md"
END = "<!-- end of benchmarks -->"
HEADLINE = ("train_step", "train_step", BACKWARD)  # suite, family, pass of the table for the project's README

Measured = list[tuple[Environment, Row]]
Key = tuple[str, str, str, str]


def newest(measured: Measured) -> Measured:
    """Of each case what its last run measured, all contestants in the same run; in the order of the file."""
    last = {key(row): where.date for where, row in measured if row.median is not None}
    return [(where, row) for where, row in measured if row.median is not None and where.date == last[key(row)]]


def key(row: Row) -> Key:
    return row.suite, row.family, row.case, row.run


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


def with_all_threads(measured: Measured) -> Measured:
    """Those measured with the most threads: fewer have a table of their own, "scaling threads"."""
    most = max((row.threads for _, row in measured), default=0)
    return [(where, row) for where, row in measured if row.threads == most or row.suite == "scaling threads"]


# ---- Tables ---------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return ""
    exponent = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, 2 - exponent)}f}"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


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
    return markdown([table[0][i] for i in used], [[line[i] for i in used] for line in lines])


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
    return markdown(["case (ms)", *(f"{count} threads" for count in counts), "speed-up"], lines)


def steps_table(groups: dict[Key, list[Row]]) -> str:
    """A line for each case: microseconds a step."""
    names = list(dict.fromkeys(row.contestant for rows in groups.values() for row in rows))
    lines = []
    for (_, _, case, run), rows in groups.items():
        by_name = {row.contestant: number(us_per_step(row)) for row in rows}
        lines.append([f"{case}, {run}", *(by_name.get(name, "") for name in names)])
    return markdown(["case (us per step)", *names], lines)


def us_per_step(row: Row) -> float | None:
    return None if row.median is None or not row.steps else 1e3 * row.median / row.steps


TITLES: dict[str, tuple[str, Callable[[dict[Key, list[Row]]], str]]] = {
    "train_step": ("Training step of the whole model", times_table),
    "layer": ("VSSNLayer", times_table),
    "ops": ("Ops", times_table),
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
        f"{where.processor}{'' if where.device == 'cpu' else ', ' + where.device}, {where.cores} cores, "
        f"torch {where.torch}, jax {where.jax or 'absent'}, vssn {where.vssn} with backend {where.backend}, "
        f"commit {where.commit or 'unknown'}, {where.date[:10]}; "
        f"best product {number(where.gemm_gflops)} GFLOP/s, copy {number(where.copy_gbs)} GB/s, "
        f"load before it {number(where.load)}.\n"
        for where in seen.values()
    )


def tables(measured: Measured) -> str:
    """Every suite and family of the results, the newest run where a case was measured again."""
    shown = with_all_threads(newest(measured))
    rows = [row for _, row in shown]
    parts = [origin(shown)]
    for suite, (title, render) in TITLES.items():
        of_suite = [row for row in rows if row.suite == suite]
        for family in dict.fromkeys(row.family for row in of_suite):
            groups = grouped(row for row in of_suite if row.family == family)
            heading = title if family == suite else f"{title}: {family}"
            parts.append(f"### {heading}\n\n{render(groups)}\n")
    return "\n".join(parts)


def headline(measured: Measured) -> str:
    """The table of the project's README: the training step."""
    shown = with_all_threads(newest(measured))
    shown = [(where, row) for where, row in shown if (row.suite, row.family, row.run) == HEADLINE]
    if not shown:
        raise ValueError("the results hold no training step: python -m benchmarks.run --suite train_step --csv")
    return f"{times_table(grouped(row for _, row in shown))}\n\n{origin(shown)}"


def insert(path: Path, device: str, text: str) -> None:
    """Replaces what stands between the markers. Raises ValueError where the file has none for this device."""
    begin = f"<!-- benchmarks: {device} -->"
    before, found, rest = path.read_text().partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{path} has no lines {begin!r} and {END!r} for the tables to stand between")
    path.write_text(f"{before}{begin}\n{text.strip()}\n{END}{after}")


# ---- Plots ----------------------------------------------------------------------------------------------------------


def letter(case: str, name: str) -> int:
    """The value of a size in a case's name: letter("T=64 B=32", "B") is 32."""
    return int(dict(part.split("=") for part in case.split() if "=" in part)[name])


def plot(path: Path, panels: list[tuple[str, list[Row], str]], ylabel: str) -> None:
    """A panel for each (title, rows, letter of the horizontal axis): time per step of all, and the limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), squeeze=False)
    names = dict.fromkeys(row.contestant for _, rows, _ in panels for row in rows)
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    for axis, (title, rows, name) in zip(axes[0], panels, strict=True):
        for contestant in dict.fromkeys(row.contestant for row in rows):
            own = sorted((r for r in rows if r.contestant == contestant), key=lambda r: letter(r.case, name))
            sizes = [letter(row.case, name) for row in own]
            style = {"linewidth": 2.2, "zorder": 3} if contestant == OURS else {"linewidth": 1.2}
            axis.plot(
                sizes,
                [us_per_step(row) for row in own],
                marker="o",
                markersize=4,
                label=contestant,
                color=colours[contestant],
                **style,
            )
        ours = sorted((r for r in rows if r.contestant == OURS and r.limit), key=lambda r: letter(r.case, name))
        limits = [1e3 * row.limit / row.steps for row in ours if row.limit and row.steps]
        if limits:
            axis.plot([letter(row.case, name) for row in ours], limits, "k--", linewidth=1, label="limit")
        axis.set(title=title, xlabel=name, xscale="log", yscale="log", ylabel=ylabel)
        axis.set_xticks(sorted({letter(row.case, name) for row in rows}))
        axis.get_xaxis().set_major_formatter("{x:.0f}")
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_memory(path: Path, rows: list[Row]) -> None:
    """Bars: memory of each contestant in each case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    whats = list(dict.fromkeys(row.run for row in rows))
    figure, axes = pyplot.subplots(1, len(whats), figsize=(4.6 * len(whats), 3.8), squeeze=False)
    for axis, what in zip(axes[0], whats, strict=True):
        of_what = [row for row in rows if row.run == what]
        cases = list(dict.fromkeys(row.case for row in of_what))
        names = list(dict.fromkeys(row.contestant for row in of_what))
        width = 0.8 / len(names)
        for number_of, name in enumerate(names):
            values = {row.case: row.median for row in of_what if row.contestant == name}
            places = [place + number_of * width for place in range(len(cases))]
            axis.bar(places, [values.get(case) or 0 for case in cases], width, label=name)
        ticks = [place + 0.4 - width / 2 for place in range(len(cases))]
        axis.set_xticks(ticks, [case.partition(":")[0] for case in cases])
        axis.set(title=what, ylabel="MB")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plots(measured: Measured, folder: Path, device: str) -> list[Path]:
    """Writes the plots that the results have data for."""
    rows = [row for _, row in with_all_threads(newest(measured))]
    found = []
    panels = []
    for family in ("gru_sequence", "gru"):
        for run in (FORWARD, BACKWARD):
            own = [r for r in rows if r.suite == "ops" and (r.family, r.run) == (family, run)]
            largest = max((letter(row.case, "B") for row in own), default=0)
            own = [row for row in own if letter(row.case, "B") == largest]
            if len({row.case for row in own}) > 1:
                panels.append((f"{family}, B={largest}, {run}", own, "H"))
    if panels:
        found.append(folder / f"{device}_over_h.png")
        plot(found[-1], panels, "us per step")
    panels = []
    for family, run in (("gru", BACKWARD), ("train_step", BACKWARD)):
        own = [r for r in rows if r.suite == "scaling T" and (r.family, r.run) == (family, run)]
        if len({row.case for row in own}) > 1:
            panels.append((f"{family}, {run}", own, "T"))
    if panels:
        found.append(folder / f"{device}_over_t.png")
        plot(found[-1], panels, "us per step")
    if own := [row for row in rows if row.suite == "memory" and row.family == "train_step"]:
        found.append(folder / f"{device}_memory.png")
        plot_memory(found[-1], own)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Reads benchmarks/results/*.csv, writes the tables and the plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("csv", nargs="*", type=Path, help="files of results (benchmarks/results/*.csv)")
    parser.add_argument("--readme", type=Path, default=README, help="Markdown file for all tables")
    parser.add_argument("--headline", type=Path, help="Markdown file for the training step's table alone (README.md)")
    parser.add_argument("--plots", type=Path, help="folder of the plots (beside the results)")
    arguments = parser.parse_args(argv)
    paths = arguments.csv or sorted(RESULTS.glob("*.csv"))
    try:
        if not paths:
            raise ValueError(f"no results in {RESULTS.relative_to(ROOT)}: python -m benchmarks.run --csv")
        for path in paths:
            measured = read_csv(path)
            insert(arguments.readme, path.stem, tables(measured))
            if arguments.headline is not None:
                insert(arguments.headline, path.stem, headline(measured))
            for image in plots(measured, arguments.plots or path.parent, path.stem):
                print(image)
    except (OSError, ValueError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
