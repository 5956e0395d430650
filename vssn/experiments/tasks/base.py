"""What a task of `vssn reproduce` is, and what several tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vssn.data.batching import SequenceBatch, SequenceDataset, collate_sequences
from vssn.experiments.figures import draw_training
from vssn.nn.interface import SequenceModel
from vssn.training.checkpoints import load_model
from vssn.training.config import Config

TRAINING = "training"  # what the name of a figure of training's curves ends with

Metrics = dict[str, float | list[float]]
Scores = Mapping[tuple[str, str], Mapping[str, Any]]  # (set, model) -> the metrics of the first seed's record
Runs = Mapping[tuple[str, str], Path]  # (set, model) -> the folder of the first seed's run


class Entry(NamedTuple):
    """A row and column of a table: a model on a set."""

    set: str
    model: str  # as the report names it
    config: str  # a packaged one, or a path
    overrides: tuple[str, ...] = ()


class Effort(NamedTuple):
    """What a score may cost."""

    particles: int = 1
    sequences: int | None = None  # of the test set; None: all


class Column(NamedTuple):
    """Of a table of the page."""

    header: str
    set: str
    metric: str
    digits: int
    published: str = ""  # the key of the published values; none: not published


class Detail(NamedTuple):
    """A further metric, shown for each set and model."""

    header: str
    metric: str
    digits: int


class Table(NamedTuple):
    """A further table of the same models."""

    title: str
    columns: tuple[Column, ...]


class Baseline(NamedTuple):
    """A row of what stands beside the models, which their records hold: as metrics PREFIX_METRIC."""

    model: str
    prefix: str


class Published(NamedTuple):
    """A published row, to stand beside one's own. It is as the paper of VSSN cites it, but where the note differs."""

    model: str
    values: Mapping[str, str]  # by column, as printed: ">=" for a bound, "~" for an estimate
    source: str
    note: str = ""
    comparable: bool = True  # with ours: of the same data, average and kind of figure, as far as its source says


class Match(NamedTuple):
    """Rows that differ in the model alone."""

    ours: str
    peers: tuple[str, ...]  # made here; or published, if they are comparable, as "*NAME*"
    terms: str = ""  # what they share, as the page says it; none: the same data


class Shift(NamedTuple):
    """Two sets that differ in one thing: what that alone does to the figures of the same models."""

    what: str  # that differs, as the page says it
    before: str  # the sets, each that of one column
    after: str
    frames: int  # of `after` in the time of one of `before`
    unit: str
    cited: str  # the key of the published values that are set beside


class Task(NamedTuple):
    """One table: what it trains, how that is scored and drawn, and what the page shows of it.

    What the page shows of it may have {names}: those of `settings`, and those that report_words.py finds in the
    records: particles, train, test, frames, ahead (of `seen`), latents, schedules. What came out is not written here:
    the page works it out from the columns to compare.
    """

    name: str  # as the command line takes it: the name of its file
    title: str
    text: str
    sets: Mapping[str, str]  # the data sets, as the page names them
    entries: tuple[Entry, ...]
    score: Callable[[SequenceModel, Config, Effort], Metrics]
    draw: Callable[[Runs, Path, str | None], list[Path]]  # runs, folder of the figures, data folder
    headline: tuple[str, ...]  # the metrics to print when a run ends
    columns: tuple[Column, ...]
    unit: str  # of the columns to compare, and which way is better
    better: int  # of them, 1 where more is better, else -1
    compared: tuple[Column, ...] = ()  # those in the overview; none: the first of `columns`
    matches: tuple[Match, ...] = ()
    tables: tuple[Table, ...] = ()  # behind that of `columns`
    baselines: tuple[Baseline, ...] = ()
    details: tuple[Detail, ...] = ()
    published: tuple[Published, ...] = ()
    cites_all: bool = False  # in the open: published rows that do not compare, too
    beside: Mapping[str, str] = {}  # sets of columns whose runs another task has, and its name
    shift: Shift | None = None
    labels: Mapping[str, str] = {}  # what the names of its rows and columns mean
    protocol: Mapping[str, str] = {}  # by trap: what makes two figures differ that look alike
    shown: tuple[str, ...] = ()  # the figures that stand in the open; none: the first
    draw_scores: Callable[[Scores, Path], list[Path]] | None = None  # figures that need no model, and their folder
    effort: Effort = Effort()
    quick_effort: Effort = Effort(particles=2, sequences=4)
    quick_data: Mapping[str, int] = {}  # of the data section, in the quick budget
    settings: Mapping[str, int] = {}  # of the score; each record keeps those that it was made with
    reads_data: bool = False  # from a folder, rather than simulate
    simulator: Callable[..., object] | None = None  # whose defaults are the published sizes of a simulated set


def peers(kind: str, sets: Mapping[str, tuple[str, ...]], models: Mapping[str, str]) -> tuple[Entry, ...]:
    """Every model on every set, from one configuration for each model: music-vssn, music-srnn, ...; with each set the
    settings that all models share on it."""
    return tuple(
        Entry(name, label, f"{kind}-{suffix}", (f"data.set={name}", *shared))
        for name, shared in sets.items()
        for label, suffix in models.items()
    )


def with_all(sets: Mapping[str, tuple[str, ...]], *overrides: str) -> dict[str, tuple[str, ...]]:
    """The settings of `peers` with these beside those of every set."""
    return {name: (*shared, *overrides) for name, shared in sets.items()}


def published_row(
    model: str, columns: Sequence[str], values: str, source: str, note: str = "", comparable: bool = True
) -> Published:
    """From values that stand in the order of the columns, with spaces between them."""
    return Published(model, dict(zip(columns, values.split(), strict=True)), source, note, comparable)


def draw_curves(runs: Runs, folder: Path, data: str | None) -> list[Path]:
    """Training curves, a figure for each set."""
    figures = []
    for name in dict.fromkeys(name for name, _ in runs):
        figures.append(folder / f"{name}-{TRAINING}.png")
        draw_training({label: path for (here, label), path in runs.items() if here == name}, figures[-1], title=name)
    return figures


def load_run(run: Path, data: str | None) -> tuple[SequenceModel, Config]:
    """The best model of a run, and its configuration with the data folder of now."""
    model, config = load_model(run / "best.ckpt")
    return model, config.with_folder(data)


def first_sequences(dataset: SequenceDataset, count: int | None) -> SequenceDataset:
    """Its first sequences; all where `count` is None."""
    if count is None or count >= len(dataset):
        return dataset
    controls = None if dataset.controls is None else dataset.controls[:count]
    return SequenceDataset(dataset.sequences[:count], controls, lengths=dataset.lengths[:count], seed=dataset.seed)


def first_batch(dataset: SequenceDataset, count: int) -> SequenceBatch:
    """Its first sequences as one batch."""
    return collate_sequences([dataset[index] for index in range(min(count, len(dataset)))])
