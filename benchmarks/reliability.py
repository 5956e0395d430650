"""python -m benchmarks.reliability: RELIABILITY.md of the records in results/reliability.

A topic is a file, and a section of the page; of a check's records the newest of each processor is a row; where the runs
of a topic add up, their sum, of a command that ran twice the newest. Nothing on the page is typed by hand: the checks
write the records (tests/reliability_records.py), and TOPICS says what each is about.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ROOT

RECORDS = ROOT / "results" / "reliability"
PAGE = ROOT / "RELIABILITY.md"
HEAD = """# Reliability

What the long checks have counted, newest figures of each processor; `make reliability` makes this page of the records
in [results/reliability](results/reliability), which the checks write themselves.
"""

Record = dict[str, Any]
Figure = int | float | str


class Topic(NamedTuple):
    """The head of a section."""

    title: str
    about: str
    adds: bool = False  # whether the runs of a check add up


# In the page's order; a file without an entry comes last, under its own name.
TOPICS = {
    "fuzz": Topic(
        "Calls drawn at random",
        "Sizes, strides, lengths and options drawn by hypothesis, values and every gradient against the plain reference"
        " in float64. Worst: the largest error over its tolerance; above 1 would be a mismatch.",
    ),
    "stress": Topic(
        "The ends of what numbers can be",
        "Gates at 0 and 1, variances at their floor, weights of norm 1000, logits of 1e30, denormals, 100,000 steps:"
        " finite, and within tolerance of float64.",
    ),
    "threads": Topic(
        "Threads and processes",
        "All ops and layers from many Python threads at once, in forked and spawned children, while the number of"
        " threads changes, and when Python ends in the middle of a call.",
    ),
    "versions": Topic(
        "Python and PyTorch",
        "The tests of the ops, layers, models and training, on a build for each Python, from the oldest PyTorch on.",
    ),
    "lower": Topic(
        "Lower instruction sets",
        "The ops' tests on each instruction set below the processor's, and with the products of PyTorch held to the"
        " least that it has.",
    ),
    "files": Topic(
        "Damaged files",
        "Files of every form that is read, with bytes, words or what they hold changed, for the loaders and for the"
        " commands above them: taken, or refused in one line of the package's own errors. A crash, a traceback, a"
        " second line, a warning at the command line, 20 seconds or 3 GB would be a fault.",
        adds=True,
    ),
    "faults": Topic(
        "Kills and faults",
        "Training and its checkpoints under SIGKILL, SIGTERM, a full disk, folders that vanish, two processes on one"
        " run.",
    ),
    "arguments": Topic(
        "Bad input",
        "Every argument of what is public with values of every wrong kind, each call in a process that may die of it:"
        " an exception in one line that names the argument, or the plain value's result. Silent: neither came.",
    ),
    "sanitizers": Topic(
        "Sanitizers",
        "The C++ kernels, and the CUDA kernels on the host, under AddressSanitizer, UndefinedBehaviorSanitizer and"
        " ThreadSanitizer.",
    ),
}
# What the head of the page adds up, by the name of the figure.
TOTALS = {
    "cases": "calls compared with float64",
    "inputs": "damaged files read",
    "kinds of fault": "kinds of fault of the readers",
    "kills": "kills survived",
    "tests": "tests passed",
    "sanitized runs": "runs under sanitizers",
    "checks": "checks under sanitizers",
    "findings": "findings of sanitizers",
    "crashes": "crashes",
    "calls": "calls with bad input",
    "silent": "bad inputs taken in silence",
    "unnamed": "bad inputs not named",
    "mismatches": "mismatches",
}


def read(folder: Path = RECORDS) -> dict[str, list[Record]]:
    """The rows of each topic in the page's order: of a check's records the newest of each processor, or their sum,
    which has all commands.

    Raises:
        ValueError: a file is not what tests/reliability_records.py writes.
    """
    topics = {}
    for file in sorted(folder.glob("*.json"), key=lambda file: (_order(file.stem), file.stem)):
        runs: dict[tuple[str, str], list[Record]] = {}
        for entry in json.loads(file.read_text(encoding="utf-8")):
            if not isinstance(entry, dict) or not {"name", "command", "processor", "date", "figures"} <= entry.keys():
                raise ValueError(f"{file}: expected name, command, processor, date and figures in each entry")
            runs.setdefault((entry["name"], entry["processor"]), []).append(entry)
        adds = file.stem in TOPICS and TOPICS[file.stem].adds
        topics[file.stem] = [_sum(entries) if adds else entries[-1] for entries in runs.values()]
    return topics


def _sum(entries: Sequence[Record]) -> Record:
    runs = list({entry["command"]: entry for entry in entries}.values())
    figures: dict[str, Any] = {}
    for run in runs:
        figures |= {key: figures.get(key, 0) + count for key, count in run["figures"].items()}
    return {**entries[-1], "figures": figures, "runs": runs}


def _order(name: str) -> int:
    return list(TOPICS).index(name) if name in TOPICS else len(TOPICS)


def write(topics: dict[str, list[Record]]) -> str:
    """The page."""
    parts = [HEAD, _summary([entry for entries in topics.values() for entry in entries])]
    for name, entries in topics.items():
        topic = TOPICS.get(name, Topic(name.capitalize(), ""))
        runs = [run for entry in entries for run in entry.get("runs", [entry])]
        commands = list(dict.fromkeys(run["command"] for run in runs))
        parts += [f"## {topic.title}\n", *([topic.about + "\n"] if topic.about else []), _table(entries)]
        made = ", ".join(f"`{command}`" for command in commands)
        parts.append(f"Made by {made}{', '.join(['', *_commits(runs), *_shared(entries)])}.\n")
    return "\n".join(parts)


def _summary(entries: Sequence[Record]) -> str:
    """What the figures of all topics add up to."""
    rows = []
    for key, words in TOTALS.items():
        found = [entry["figures"][key] for entry in entries if key in entry["figures"]]
        if found:
            rows.append((words, _shown(sum(found))))
    processors = sorted({entry["processor"] for entry in entries})
    rows.append((f"processor{'s' if len(processors) != 1 else ''} seen", ", ".join(processors) or "none"))
    return "\n".join(["| | |", "|---|---:|", *(f"| {words} | {value} |" for words, value in rows), ""])


def _commits(entries: Sequence[Record]) -> list[str]:
    """That the runs were made of, where their records say it."""
    found = dict.fromkeys(entry.get("versions", {}).get("commit") for entry in entries)
    return [] if None in found else [f"commit{'s' if len(found) > 1 else ''} {' and '.join(found)}"]


def _shared(entries: Sequence[Record]) -> list[str]:
    """Processor and date, where they are those of every row."""
    several = {key: list(dict.fromkeys(entry[key] for entry in entries)) for key in ("processor", "date")}
    return [values[0] for values in several.values() if len(values) == 1]


def _table(entries: Sequence[Record]) -> str:
    """A row for each entry; a column for each figure that one of them has, and for what differs between them."""
    keys = list(dict.fromkeys(key for entry in entries for key in entry["figures"]))
    own = [key for key in ("processor", "date") if len({entry[key] for entry in entries}) > 1]
    lines = [f"| {' | '.join(['check', *keys, *own])} |", f"|---|{'---:|' * len(keys)}{'---|' * len(own)}"]
    for entry in entries:
        cells = [entry["name"], *(_shown(entry["figures"].get(key, "")) for key in keys), *(entry[key] for key in own)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _shown(figure: Figure) -> str:
    if isinstance(figure, float):
        return f"{figure:.3g}"
    return f"{figure:,}" if isinstance(figure, int) else figure.replace("|", "\\|")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument("--output", type=Path, default=PAGE, help="the page (%(default)s)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="their folder (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        page = write(read(arguments.records))
    except (OSError, ValueError) as error:
        print(f"benchmarks.reliability: {error}", file=sys.stderr)
        return 2
    arguments.output.write_text(page, encoding="utf-8")
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
