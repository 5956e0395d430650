"""RESULTS.md as its reader has it: what it says is that of the records, every row is accounted for, links resolve."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from vssn.experiments.report import write_report
from vssn.experiments.runner import Settings
from vssn.experiments.tasks.base import Column, Match, Published, Task
from vssn.experiments.tasks.registry import TASKS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
RECORDS = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "results" / "runs").rglob("*.json")]
THREE_LINES = 3 * 120


def section(title: str, page: str = PAGE) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def folded(text: str) -> str:
    return "".join(re.findall(r"<details>.*?</details>", text, re.DOTALL))


def scores(table: str, column: Column) -> dict[str, list[float]]:
    """Of every model, straight from the files."""
    found: dict[str, list[float]] = {}
    for record in RECORDS:
        if (record["table"], record["set"]) == (table, column.set) and column.metric in record["metrics"]:
            found.setdefault(record["model"], []).append(record["metrics"][column.metric])
    return found


def number(shown: str) -> float:
    found = re.search(r"-?\d*\.?\d+", shown)
    assert found, shown
    return float(found[0])


OVERVIEW = [cells(line) for line in section("Overview").splitlines() if line.startswith("|")][2:]


def lines_of(task: Task) -> list[list[str]]:
    """The lines of the overview that belong to a task: its own, and those below it without a name."""
    start = next(index for index, line in enumerate(OVERVIEW) if line[0].startswith(f"[{task.title}]("))
    count = next((n for n, line in enumerate(OVERVIEW[start + 1 :], 1) if line[0]), len(OVERVIEW) - start)
    return OVERVIEW[start : start + count]


@pytest.mark.parametrize("name", TASKS)
def test_the_overview_is_that_of_the_records(name: str) -> None:
    task = TASKS[name]
    columns, lines = task.compared or task.columns[:1], lines_of(task)
    columns = [column for column in columns if any(model.startswith("VSSN") for model in scores(name, column))]
    assert len(lines) == len(columns)
    for column, (_, _, ours, other, verdict, seeds) in zip(columns, lines, strict=True):
        own = {model: values for model, values in scores(name, column).items() if model.startswith("VSSN")}
        best = max(own, key=lambda model: task.better * statistics.fmean(own[model]))
        mean = statistics.fmean(own[best])
        if not (other == "—" or "published" in other):  # beside a peer: the row of ours that has one
            best = re.sub(r"[*]", "", ours.split(" **")[1])
            mean = statistics.fmean(own[best])
        assert ours.startswith(f"{mean:.{column.digits}f} ")
        assert ours.endswith(f" **{best}**")
        assert int(seeds) == len(own[best])
        if other == "—":
            assert verdict == "—"
            continue
        comparable = [row for row in task.published if row.comparable and row.values.get(column.published)]
        if comparable:
            values = {row.model: number(row.values[column.published].lstrip(">=~")) for row in comparable}
            row = max(values, key=lambda model: task.better * values[model])
            assert f"*{row}* (published)" in other
            value = values[row]
        else:
            assert other.endswith(" (here)")
            value = number(other.lstrip("~≥ "))
        gap = task.better * (mean - value)
        assert verdict.split(" ")[0] in ("level", "ahead" if gap > 0 else "behind")
        by = 0 if verdict == "level" else number(verdict)
        assert by == pytest.approx(abs(gap), abs=1.01 * 10**-column.digits)


def test_the_overview_says_of_series_how_gaps_are_filled_too() -> None:
    task = TASKS["series"]
    kinds = Counter(line[1].rsplit(", ", 1)[1] for line in lines_of(task))
    assert kinds == {"forecast": len(task.sets), "gaps filled": len(task.sets)}


def test_the_overview_has_a_line_for_every_task_and_links_to_its_section() -> None:
    assert [line[0].split("]")[0][1:] for line in OVERVIEW if line[0]] == [task.title for task in TASKS.values()]


@pytest.mark.parametrize("name", TASKS)
def test_every_row_stands_in_its_table_or_among_what_was_not_run(name: str) -> None:
    task = TASKS[name]
    text = section(task.title)
    table = [cells(line) for line in text.split("<details>")[0].splitlines() if line.startswith("| **")]
    rows = {row[0].strip("*"): row[1:] for row in table}
    lacking: set[tuple[str, str]] = set()
    for line in re.findall(r"^Not run: (.*)\.$", text, re.MULTILINE):
        for part in line.split("; "):
            models, sets = part.rsplit("** on ", 1)
            lacking |= {(one, model) for model in models.strip("*").split("**, **") for one in names_in(task, sets)}
    for entry in task.entries:
        shown = [
            rows[entry.model][index]
            for index, column in enumerate(task.columns)
            if entry.model in rows and column.set == entry.set
        ]
        has = any(cell != "—" for cell in shown)
        assert has != ((entry.set, entry.model) in lacking), entry
        assert has == any(
            (name, entry.set, entry.model) == (record["table"], record["set"], record["model"]) for record in RECORDS
        ), entry


def names_in(task: Task, text: str) -> list[str]:
    return [key for key, title in task.sets.items() if title in text]


def test_links_and_pictures_resolve() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings)
    targets = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(targets) > 30
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (ROOT / unquote(target)).is_file(), target
    pictures = Counter(re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE))
    assert pictures == Counter(path.relative_to(ROOT).as_posix() for path in (ROOT / "results").glob("*.png"))


def test_a_domain_shows_two_pictures_at_most_and_folds_its_runs_away() -> None:
    assert section("Overview").count("![") == 1
    for task in TASKS.values():
        text = section(task.title)
        behind = folded(text)
        assert 1 <= text.count("![") - behind.count("![") <= 2
        assert "| set, model |" in behind
        assert text.count("| set, model |") == 1
        assert text.count("<details>") == text.count("</details>") == 1


def test_figures_that_are_named_to_be_shown_exist() -> None:
    for task in TASKS.values():
        for figure in task.shown:
            assert (ROOT / "results" / f"{task.name}-{figure}.png").is_file(), (task.name, figure)


def test_labels_and_traps_stand_in_one_place() -> None:
    assert "{" not in PAGE
    labels, protocol = (
        dict(re.findall(r"^- \*\*(.+?)\*\*: (.+)$", section(of), re.M)) for of in ("Labels", "Protocol")
    )
    for word in ("sizes of its own", "-like", "≥", "~", "IWAE", "micro", "macro", "start inferred", "±", "—"):
        assert any(word in label for label in labels), word
    for trap in ("Micro or macro", "The first frame", "The time grid", "Bounds", "seen before", "Units of speech"):
        assert any(trap in name for name in protocol), trap
    for name, text in protocol.items():
        assert len(f"- {name}: {text}") <= THREE_LINES, name
        assert text.endswith(".")
        assert not text.endswith("..")
    merged: dict[str, str] = {}
    for task in TASKS.values():  # a word means the same wherever it stands
        assert all(merged.setdefault(name, text) == text for name, text in {**task.labels, **task.protocol}.items())


def test_what_a_task_compares_is_there() -> None:
    for task in TASKS.values():
        models = {entry.model for entry in task.entries} | {row.model for row in task.baselines}
        models |= {f"*{row.model}*" for row in task.published if row.comparable}
        for match in task.matches:
            assert {match.ours, *match.peers} <= models, (task.name, match)
        printed = [*task.columns, *(column for table in task.tables for column in table.columns)]
        metrics = {(column.set, column.metric) for column in printed}
        assert {(column.set, column.metric) for column in task.compared} <= metrics, task.name


# What came out, of records with other numbers in them


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], str]:
    """The page of the project's records after a change of each."""

    def make(change: Callable[[dict[str, Any]], None]) -> str:
        shutil.copytree(ROOT / "results" / "runs", tmp_path / "results" / "runs")
        for path in (tmp_path / "results" / "runs").rglob("*.json"):
            record = json.loads(path.read_text())
            change(record)
            path.write_text(json.dumps(record))
        write_report(tmp_path / "RESULTS.md", Settings(tmp_path / "no-runs"))
        return (tmp_path / "RESULTS.md").read_text(encoding="utf-8")

    return make


@pytest.mark.parametrize(
    ("error", "overview", "sentence"),
    [
        (0.5, "ahead by 0.150", "ahead on one step ahead by 0.150."),
        (0.6503, "level", "level on one step ahead."),
        (0.7, "behind by 0.050", "behind on one step ahead by 0.050."),
    ],
)
def test_a_sentence_says_who_is_ahead(page_of: Any, error: float, overview: str, sentence: str) -> None:
    def change(record: dict[str, Any]) -> None:
        if record["table"] == "balls" and record["model"].startswith("VSSN"):  # a further row of it is far behind
            record["metrics"]["error"] = error if record["model"] == "VSSN" else 9.0

    page = page_of(change)
    assert re.search(
        rf"one step ahead \| {error:.3f} .*\| 0.65 ± 0.11 \*PGN \(MSE\)\* \(published\) \| {overview} \|", page
    )
    assert f"- **VSSN** against the best comparable published figure, *PGN (MSE)*: {sentence}\n" in page


def test_a_figure_on_other_terms_is_named_but_not_compared_with(page_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        Published("Fair", {"error": ">=0.70"}, "a test"),
        Published("Odd", {"error": "~0.10"}, "a test", comparable=False),
        Published("Worse", {"error": "9.0"}, "a test", comparable=False),
    )
    matches = (Match("VSSN", ("*Fair*",), "as published"), Match("VSSN", ("*Odd*",)))
    monkeypatch.setitem(TASKS, "balls", TASKS["balls"]._replace(published=rows, matches=matches))

    def change(record: dict[str, Any]) -> None:
        if record["table"] == "balls" and record["model"].startswith("VSSN"):
            record["metrics"]["error"] = 0.6 if record["model"] == "VSSN" else 9.0

    text = section("Bouncing balls", page_of(change))
    assert (
        "- **VSSN** against the best comparable published figure, *Fair*: ahead on one step ahead by 0.100.\n" in text
    )
    assert "- Better figures are published on terms that do not compare: one step ahead (*Odd* ~ 0.10).\n" in text
    assert "- **VSSN** against *Fair*, as published: ahead on one step ahead by 0.100.\n" in text
    assert "against *Odd*" not in text
    assert "*Odd*" not in text.split("<details>")[0].split("\n- ")[0]
    assert "| *Odd* (a test) | ~ 0.10 |" in folded(text)
    assert "| *Fair* (a test) | ≥ 0.70 |" in text.split("<details>")[0]


def test_rows_that_may_not_be_done_are_named(page_of: Any) -> None:
    def change(record: dict[str, Any]) -> None:
        record["epochs"] = record["best_epoch"] + (record["model"] != "RSSM")

    page = page_of(change)
    assert "- Best at their last epoch, so perhaps not done: **RSSM** on pendulum.\n" in page
    assert page.count("Best at their last epoch") == 1


@pytest.mark.parametrize("name", TASKS)
def test_seeds_are_counted(name: str) -> None:
    counts = Counter((record["set"], record["model"]) for record in RECORDS if record["table"] == name).values()
    least, most = min(counts), max(counts)
    said = f"{least} to {most} seeds" if least < most else "one seed" if most == 1 else f"{most} seeds"
    assert f"\n- Each figure is of {said}.\n" in section(TASKS[name].title)


# What the grid alone does


def mean_of(table: str, name: str, model: str) -> float:
    return statistics.fmean(scores(table, Column("", name, "iwae_micro", 3))[model])


def test_what_the_grid_moves_is_that_of_the_records() -> None:
    text = section("JSB's grid")
    moved = re.search(r"^- From quarter notes to eighth notes, the grid alone moves (.*)\.$", text, re.M)
    assert moved
    models = scores("jsb_grid", Column("", "jsb_eighths", "iwae_micro", 3))
    assert len(moved[1].split("; **")) == len(models)
    for model in models:
        was, now = (mean_of("jsb_grid", name, model) for name in ("jsb_quarters", "jsb_eighths"))
        assert f"**{model}** by {now - was:+.3f} nats a step ({was:.3f} to {now:.3f}; 2 steps, the time of one" in text
        assert f"of one before, {2 * now:.3f})" in text
    columns = TASKS["jsb_grid"].columns[:2]
    tops = [max(map(statistics.fmean, scores("jsb_grid", column).values())) for column in columns]
    assert f"*VSSN* {-4.021 - tops[0]:+.3f} and {-4.021 - tops[1]:+.3f}" in text


def test_a_table_shows_what_another_one_scores_beside_its_own() -> None:
    table = [cells(line) for line in section("JSB's grid").split("\n- ")[0].splitlines() if line.startswith("| ")]
    rows = {row[0].strip("*"): row[1:] for row in table}
    for model in ("VSSN", "VSSN-NADE", "RNN-NADE"):
        assert rows[model][2].startswith(f"{mean_of('music', 'jsb', model):.3f}")
    cited = {name.split("*")[0]: row[2] for name, row in rows.items() if "(" in name}
    assert {name: cited[name] for name in ("VSSN", "NASMC", "SRNN", "RNN-NADE")} == {
        "VSSN": "≥ -4.021",
        "NASMC": "~ -3.98",
        "SRNN": "≥ -4.74",
        "RNN-NADE": "~ -5.19",
    }
    assert "Published on other terms" not in section("JSB's grid")
    assert "JSB's own files" not in section("Polyphonic music")


def test_a_sentence_of_the_grid_follows_its_records(page_of: Any) -> None:
    def change(record: dict[str, Any]) -> None:
        if record["table"] == "jsb_grid":
            record["metrics"]["iwae_micro"] = {"jsb_quarters": -6.0, "jsb_eighths": -4.5}[record["set"]]
            record["metrics"]["iwae_micro"] -= record["model"] != "RNN-NADE"

    text = section("JSB's grid", page_of(change))
    assert "**RNN-NADE** by +1.500 nats a step (-6.000 to -4.500; 2 steps, the time of one before, -9.000)" in text
    assert (
        "- Published figures beside the best row here on quarter notes (-6.000 **RNN-NADE**) and eighth notes "
        "(-4.500 **RNN-NADE**), in nats a step: *VSSN* +1.979 and +0.479, *RNN-NADE* +0.810 and "
        "-0.690, *NASMC* +2.020 and +0.520, *SRNN* +1.260 and -0.240.\n"
    ) in text.replace(" ± 0.000", "")
