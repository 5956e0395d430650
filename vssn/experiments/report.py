"""`vssn reproduce --report`: the markdown page of all results, from the score.json of the runs that are there.

    PAGE.md             the page
    PAGE-TABLE-*.png    its figures

A page whose records are to outlive their runs has a folder of its name in small letters with `runs` in it, which one
makes by hand; as this project's RESULTS.md has. Then, of the full budget:

    page/TABLE-*.png          the figures
    page/runs/TABLE/RUN.json  the records of all runs on the page

Nothing on the page is typed by hand: every number comes from a run's folder, from a record that an earlier page kept
(of a run made on another machine, or whose folder is gone) or from `vssn.experiments.published`; what is said of the
runs comes from their records too.
"""

from __future__ import annotations

import inspect
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from vssn.data.balls import RESOLUTION, balls_splits
from vssn.data.pendulum import IMAGE_SIZE, pendulum_splits
from vssn.data.speech import FRAME_SIZE
from vssn.demo import SEEN as DEMO_SEEN
from vssn.experiments.published import BALLS, MUSIC, PENDULUM, SPEECH, Published
from vssn.experiments.runner import TABLES, Settings, keep_records, read_records
from vssn.experiments.tasks import SEEN, STEPS
from vssn.training.run_directory import replacing
from vssn.utils.command import writing

MISSING = "—"
SIMULATED = ("balls", "pendulum")
SET_NAMES = {
    "jsb": "JSB chorales",
    "nottingham": "Nottingham",
    "musedata": "MuseData",
    "piano_midi": "Piano-midi.de",
    "timit": "TIMIT",
    "blizzard": "Blizzard",
    "balls": "bouncing balls",
    "pendulum": "pendulum",
}

Record = Mapping[str, Any]


class Column(NamedTuple):
    header: str
    set: str
    metric: str
    digits: int
    published: str = ""  # the key of `vssn.experiments.published`; none: not published


class Target(NamedTuple):
    """A published row that a model of ours stands against."""

    model: str
    published: str
    better: int  # 1 where more is better, else -1


class Section(NamedTuple):
    """Text and headers may have {names} of `_facts`."""

    table: str
    title: str
    text: str
    columns: tuple[Column, ...]
    details: tuple[tuple[str, str, int], ...] = ()  # further metrics for each set and model: header, metric, digits
    published: tuple[Published, ...] = ()
    targets: tuple[Target, ...] = ()

    @property
    def reads_data(self) -> bool:
        """Whether its runs read a folder, rather than simulate."""
        return any(column.set not in SIMULATED for column in self.columns)


def _music_columns(
    metric: str, sets: Sequence[str] = ("nottingham", "jsb", "musedata", "piano_midi")
) -> tuple[Column, ...]:
    return tuple(Column(SET_NAMES[name], name, metric, 3, name) for name in sets)


_MUSIC_DETAILS = (
    ("IWAE without x_1", "iwae_micro_without_first", 3),
    ("IWAE macro", "iwae_macro", 3),
    ("IWAE macro without x_1", "iwae_macro_without_first", 3),
    ("ELBO", "elbo_micro", 3),
    ("KL z", "kl_z", 3),
    ("KL w", "kl_w", 3),
)

SECTIONS = (
    Section(
        "music",
        "Polyphonic music",
        "Log-likelihood of the test set in nats per time step: IWAE with {particles} particles, sum over all frames of "
        "all sequences divided by their number (micro, the first frame included); standard splits. All models have the "
        "sizes of one configuration (as far as a model has the part, so those with fewer parts have fewer parameters: "
        "they are listed) and on each set the same schedule, but for the rows that say so. Further down the other "
        "averages, and the ELBO of one sample.",
        _music_columns("iwae_micro"),
        _MUSIC_DETAILS,
        MUSIC,
        (
            Target("VSSN", "DMM", 1),
            Target("VSSN, sizes of its own", "DMM", 1),
            Target("VSSN-NADE", "RNN-NADE", 1),
            Target("VSSN-NADE, sizes of its own", "RNN-NADE", 1),
        ),
    ),
    Section(
        "objectives",
        "The two objectives",
        "The same model trained on the strict bound (`elbo`) and on the paper's formula (`paper`, the KLs halved, no "
        "bound), both scored by the same strict bounds: nats per time step of the test set, as those of music.",
        (
            Column("JSB chorales, IWAE-{particles}", "jsb", "iwae_micro", 3),
            Column("JSB chorales, ELBO", "jsb", "elbo_micro", 3),
        ),
        _MUSIC_DETAILS,
    ),
    Section(
        "speech",
        "Speech",
        f"ELBO of one sample; IWAE with {{particles}} particles further down. Frames of {FRAME_SIZE} samples. Bits per "
        "sample include the normalisation's Jacobian: less is better. Published figures are nats per sequence on the "
        "full sets, in the units of their own normalisation. **Where the data is a small sample of TIMIT, or another "
        "reader in place of Blizzard's, they are not comparable with ours**; what was read is among the runs.",
        tuple(
            Column(f"{SET_NAMES[name]}, {unit}", name, f"elbo_{key}", digits, name if key == "nats" else "")
            for name in ("timit", "blizzard")
            for unit, key, digits in (("bits per sample", "bits", 3), ("nats per sequence", "nats", 0))
        ),
        (
            ("IWAE-{particles}, bits per sample", "iwae_bits", 3),
            ("IWAE-{particles}, nats per sequence", "iwae_nats", 0),
            ("KL z", "kl_z", 2),
            ("KL w", "kl_w", 2),
            ("test sequences", "sequences", 0),
            ("test frames", "frames", 0),
            ("Hz", "sample_rate", 0),
            ("std in 16-bit steps", "std", 0),
        ),
        SPEECH,
    ),
    Section(
        "balls",
        "Bouncing balls",
        f"Squared error, summed over {RESOLUTION**2} pixels, mean over frames 2 to {{frames}} of {{test}} test videos: "
        f"one step ahead from the prior given the frames before. Free-running: the mean of {STEPS} frames predicted "
        f"after {SEEN} seen. Every prediction along the mean path, without noise.",
        (
            Column("one step ahead", "balls", "error", 3, "error"),
            Column("the same, copying the last frame", "balls", "copy_error", 2),
            Column(f"free-running, {STEPS} frames", "balls", "rollout_mean", 2),
            Column("the same, copying the last frame seen", "balls", "copy_rollout_mean", 2),
        ),
        (),
        BALLS,
        (Target("VSSN", "VSSN", -1),),
    ),
    Section(
        "pendulum",
        "Pendulum",
        "R^2 of linear regressions from all latent states (d and z: {latents}) to sin phi, cos phi and phi', fitted on "
        "the {train} training films, scored on the {test} test films. Filtering: states from the frames so far; "
        "smoothing: from all frames. No filter knows the first frame's velocity: the limit that this sets to the R^2 "
        "of phi' stands among the runs. Training: {schedules}. "
        "Which of the two the published figures are is not stated; the row of differences takes smoothing.",
        tuple(
            Column(
                f"{symbol}, {inference}", "pendulum", f"{inference}_{key}", 3, key if inference == "smoothing" else ""
            )
            for inference in ("filtering", "smoothing")
            for symbol, key in (("sin φ", "sin"), ("cos φ", "cos"), ("φ'", "velocity"))
        ),
        (
            ("limit of φ', filtering", "filtering_velocity_limit", 3),
            *(
                (f"ll {symbol}, {inference}", f"{inference}_{key}_log_likelihood", 0)
                for inference in ("filtering", "smoothing")
                for symbol, key in (("sin φ", "sin"), ("cos φ", "cos"), ("φ'", "velocity"))
            ),
        ),
        PENDULUM,
        (Target("VSSN", "VSSN", 1),),
    ),
    Section(
        "demo",
        "Demo",
        f"What `make demo` trains, and its score: squared error per frame ({IMAGE_SIZE**2} pixels), {{ahead}} frames "
        f"ahead of {DEMO_SEEN} seen, {{test}} test films.",
        (Column("VSSN", "pendulum", "error", 2), Column("copy of the last frame seen", "pendulum", "copy", 2)),
    ),
)


def write_report(path: Path, settings: Settings) -> list[str]:
    """The page at `path` and its figures, where the text above says; the tables of which nothing was found.

    Args:
        settings: `output` and `budget` say where the runs are.

    Raises:
        ConfigError: a record that cannot be read.
        TargetError: a place that cannot be written.
    """
    with writing("--report", path):
        return _write_report(path, settings)


def _write_report(path: Path, settings: Settings) -> list[str]:
    archive = path.parent / path.stem.lower()
    keeps = settings.budget == "full" and (archive / "runs").is_dir()
    kept = archive / "runs" if keeps else None
    parts, absent = [_HEAD.format(budget=settings.budget)], []
    if settings.budget == "quick":
        parts.append("**Tiny models, one epoch, few particles and sequences: a check of the commands, no results.**\n")
    for section in SECTIONS:
        named = read_records(section.table, settings, kept)
        if kept is not None:
            keep_records(section.table, named, kept)
        records = list(named.values())
        if not any("metrics" in record for record in records):
            absent.append(section.table)
        parts.append(_section(section, records))
        prefix = archive / section.table if keeps else path.parent / f"{path.stem}-{section.table}"
        figures = _copy_figures(section.table, settings, prefix)
        if keeps:  # those of runs that are known by their records alone
            figures |= set(archive.glob(f"{section.table}-*.png"))
        for figure in sorted(figures):
            shown = figure.stem.removeprefix(f"{prefix.name}-").replace("-", ", ")
            address = quote(figure.relative_to(path.parent).as_posix())
            parts.append(f"![{section.title}: {shown}]({address})\n")
    if keeps:
        parts.append("## Speed\n[benchmarks/README.md](benchmarks/README.md).\n")
    with replacing(path) as part:
        part.write_text("\n".join(parts), encoding="utf-8")
    return absent


def _copy_figures(table: str, settings: Settings, prefix: Path) -> set[Path]:
    """Copies what the runs of a table drew to PREFIX-NAME.png: those."""
    copies = set()
    for figure in (settings.output / settings.budget / table / "figures").glob("*.png"):
        name = figure.name.removeprefix(f"{table}-")
        copies.add(copy := prefix.with_name(f"{prefix.name}-{name}"))
        shutil.copyfile(figure, copy)
    return copies


_HEAD = """# Results

Written by `vssn reproduce --report` from the runs of `vssn reproduce TABLE --budget {budget}`; nothing here is typed by
hand. A figure with ± is a mean over seeds and their standard deviation (n - 1). Published figures stand below ours, in
italics, with their sources; ≥ marks a bound, ~ an estimate. Minutes are by the clock, whatever else ran beside.
"""


def _section(section: Section, records: Sequence[Record]) -> str:
    done = [record for record in records if "metrics" in record]
    lines = [f"## {section.title}"]
    if done:
        facts = _facts(section.table, done)
        section = section._replace(
            columns=tuple(column._replace(header=column.header.format_map(facts)) for column in section.columns),
            details=tuple((header.format_map(facts), key, digits) for header, key, digits in section.details),
        )
        lines += [_notes(section.text.format_map(facts), done), "", *_table(section, done), "", *_runs(section, done)]
    missing = _not_run(section, records)
    if missing:
        lines += ["", "Not run:", *(f"- {line}" for line in missing)]
    return "\n".join((*lines, ""))


def _facts(table: str, done: Sequence[Record]) -> dict[str, str]:
    """What the records of a table say of its runs; several values where the runs differ."""
    simulator = {"balls": balls_splits, "pendulum": pendulum_splits, "demo": pendulum_splits}.get(table)
    published = {} if simulator is None else inspect.signature(simulator).parameters
    frames = "num_frames" if "num_frames" in published else "num_steps"

    def each(values: Iterable[Any]) -> str:
        return " or ".join(dict.fromkeys(map(str, values)))

    def size(name: str, key: str) -> list[int]:
        """Of a simulated set: as configured, else as published."""
        given = [record["config"]["data"].get(name) for record in done]
        return [published[key].default if value is None else value for value in given] if key in published else []

    models = {record["model"]: record for record in done}
    known = [entry.model for entry in TABLES[table] if entry.model in models]
    configs = {model: models[model]["config"] for model in dict.fromkeys((*known, *models))}
    latents = {
        model: config["model"]["hidden_size"] + config["model"]["latent_size"] for model, config in configs.items()
    }
    test = size("num_test", "num_test")
    scored = [record["metrics"].get("sequences") or count for record, count in zip(done, test, strict=False)]
    length = size("num_frames", frames)
    return {
        "particles": each(record["metrics"].get("particles", MISSING) for record in done),
        "train": each(size("num_train", "num_train")),
        "test": each(scored),
        "frames": each(length),
        "ahead": each(count - DEMO_SEEN for count in length),
        "latents": ", ".join(f"{count} for {model}" for model, count in latents.items()),
        "schedules": ", ".join(
            f"{model} {_count(config['training']['max_epochs'], 'epoch')} in batches of {config['data']['batch_size']}"
            for model, config in configs.items()
        ),
    }


def _notes(text: str, done: Sequence[Record]) -> str:
    """The text, and what records have to say of themselves."""
    notes: dict[tuple[str, str], list[str]] = {}
    for record in done:
        if "note" in record:
            notes.setdefault((record["model"], record["note"]), []).append(SET_NAMES[record["set"]])
    said = (f"{model}, on {_list(dict.fromkeys(sets))}: {note}." for (model, note), sets in notes.items())
    return " ".join((text, *said))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _table(section: Section, done: list[Record]) -> list[str]:
    headers = ["model", *(column.header for column in section.columns)]
    rows: list[list[str]] = []
    models = [
        model
        for model in dict.fromkeys(entry.model for entry in TABLES[section.table])
        if any(record["model"] == model for record in done)
    ]
    for model in models:
        rows.append(
            [f"**{model}**", *(_cell(_values(done, model, column), column.digits) for column in section.columns)]
        )
    for target in section.targets:
        if target.model in models:
            row = [_less(done, section, target, column) for column in section.columns]
            rows.append([f"{target.model} against {target.published} as published", *row])
    for published in section.published:
        values = (
            published.values.get(column.published, MISSING).replace(">=", "≥ ").replace("~", "~ ")
            for column in section.columns
        )
        source = published.source + (f"; {published.note}" if published.note else "")
        rows.append([f"*{published.model}* ({source})", *values])
    return _markdown(headers, rows)


def _less(done: list[Record], section: Section, target: Target, column: Column) -> str:
    values = _values(done, target.model, column)
    published = next(row for row in section.published if row.model == target.published).values.get(column.published)
    if not values or published is None:
        return MISSING
    gap = statistics.fmean(values) - float(published.lstrip(">=~ ").split()[0])
    return f"{gap:+.{column.digits}f} ({'better' if gap * target.better > 0 else 'worse'})"


def _values(done: list[Record], model: str, column: Column) -> list[float]:
    own = [record for record in done if record["model"] == model and record["set"] == column.set]
    return _metric(own, column.metric)


def _metric(records: Sequence[Record], name: str) -> list[float]:
    return [record["metrics"][name] for record in records if name in record["metrics"]]


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return MISSING
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _runs(section: Section, done: list[Record]) -> list[str]:
    """What each figure was made of, and the command that makes it again."""
    details = [detail for detail in section.details if any(detail[1] in record["metrics"] for record in done)]
    headers = ["set, model", *(header for header, *_ in details)]
    headers += ["seeds", "parameters", "best epochs", "training, minutes", "scoring, minutes"]
    rows = []
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(done, key=lambda record: record["seed"]):
        groups.setdefault((record["set"], record["model"]), []).append(record)
    order = [(entry.set, entry.model) for entry in TABLES[section.table]]
    for name, group in sorted(
        groups.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)
    ):
        rows.append(
            [
                f"{name[0]}, {name[1]}",
                *(_cell(_metric(group, key), digits) for _, key, digits in details),
                _list(record["seed"] for record in group),
                f"{group[0]['parameters']:,}",
                _list(f"{record['best_epoch']}/{record['epochs']}" for record in group),
                _list(f"{record['train_seconds'] / 60:.1f}" for record in group),
                _list(f"{record['score_seconds'] / 60:.1f}" for record in group),
            ]
        )
    seeds, threads = 1 + max(record["seed"] for record in done), max(record["threads"] for record in done)
    command = f"vssn reproduce {section.table} --budget {done[0]['budget']} --seeds {seeds} --threads {threads}"
    if section.reads_data:
        command += " --data FOLDER"
    made = dict.fromkeys(
        f"{record['machine']}, {record['threads']} threads; {record['versions']}; {record['date']}" for record in done
    )
    return [
        *("<details><summary>The runs, one by one</summary>", "", *_markdown(headers, rows), "", "</details>", ""),
        f"`{command}` makes all of it, `--only SET-MODEL` a part. Made on: {'. '.join(made)}.",
    ]


def _not_run(section: Section, records: Sequence[Record]) -> list[str]:
    """Entries without a score, a line for each model and reason (where there is one)."""
    scored = {(record["set"], record["model"]) for record in records if "metrics" in record}
    reasons = {(record["set"], record["model"]): f": {record['reason']}" for record in records if "reason" in record}
    sets: dict[tuple[str, str], list[str]] = {}
    for entry in TABLES[section.table]:
        name = (entry.set, entry.model)
        if name not in scored:
            sets.setdefault((entry.model, reasons.get(name, "")), []).append(SET_NAMES.get(entry.set, entry.set))
    return [f"{model} on {_list(names)}{reason}" for (model, reason), names in sets.items()]


def _list(items: Any) -> str:
    return ", ".join(map(str, items))


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in headers[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (headers, rule, *rows)]
