"""`vssn reproduce --report`: the markdown page of all results, from the score.json of the runs that are there.

    PAGE                          RESULTS.md
    results/TABLE-*.png           the figures
    results/runs/TABLE/RUN.json   the records of all runs on the page

Nothing on the page is typed by hand: every number comes from a run's folder, from a record that an earlier page kept
(of a run made on another machine, or whose folder is gone) or from `vssn.published`.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vssn.published import BALLS, MUSIC, PENDULUM, SPEECH, Published
from vssn.reproduce import TABLES, Settings, keep_records, read_records
from vssn.run_folder import replacing

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
    published: str = ""  # the key of `vssn.published`; none: not published


class Target(NamedTuple):
    """A published row that a model of ours stands against."""

    model: str
    published: str
    better: int  # 1 where more is better, else -1


class Section(NamedTuple):
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
        "Log-likelihood of the test set in nats per time step: IWAE with 100 particles, sum over all frames of all "
        "sequences divided by their number (micro, the first frame included); standard splits. All models have the "
        "sizes of one configuration (D = 256, as far as a model has the part, so those with fewer parts have fewer "
        "parameters: they are listed) and on each set the same schedule, but for the rows that say so. Further down "
        "the other averages, and the ELBO of one sample. The records of VSSN, sizes of its own, on Nottingham, "
        "MuseData and Piano-midi.de were rebuilt from an earlier page of these results: they hold the digits printed "
        "there, no more.",
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
        "bound), both scored by the same strict bounds: nats per time step as above.",
        (
            Column("JSB chorales, IWAE-100", "jsb", "iwae_micro", 3),
            Column("JSB chorales, ELBO", "jsb", "elbo_micro", 3),
        ),
        _MUSIC_DETAILS,
    ),
    Section(
        "speech",
        "Speech",
        "ELBO of one sample; IWAE with 10 particles further down. Frames of 200 samples. Bits per sample include the "
        "normalisation's Jacobian: less is better. Published figures are nats per sequence on the full sets, in the "
        "units of their own normalisation. **Where the data is a small sample of TIMIT, or another reader in place of "
        "Blizzard's, they are not comparable with ours**; what was read is among the runs.",
        tuple(
            Column(f"{SET_NAMES[name]}, {unit}", name, f"elbo_{key}", digits, name if key == "nats" else "")
            for name in ("timit", "blizzard")
            for unit, key, digits in (("bits per sample", "bits", 3), ("nats per sequence", "nats", 0))
        ),
        (
            ("IWAE-10, bits per sample", "iwae_bits", 3),
            ("IWAE-10, nats per sequence", "iwae_nats", 0),
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
        "Squared error, summed over 900 pixels, mean over frames 2 to 100 of 200 test videos: one step ahead from the "
        "prior given the frames before. Free-running: the mean of 20 frames predicted after 17 seen. Every prediction "
        "along the mean path, without noise.",
        (
            Column("one step ahead", "balls", "error", 3, "error"),
            Column("the same, copying the last frame", "balls", "copy_error", 2),
            Column("free-running, 20 frames", "balls", "rollout_mean", 2),
            Column("the same, copying the last frame seen", "balls", "copy_rollout_mean", 2),
        ),
        (),
        BALLS,
        (Target("VSSN", "VSSN", -1),),
    ),
    Section(
        "pendulum",
        "Pendulum",
        "R^2 of linear regressions from all latent states (d and z: 67 for VSSN, 131 for SRNN, 3 for DKF) to sin phi, "
        "cos phi and phi', fitted on the 500 training films, scored on the 500 test films. Filtering: states from the "
        "frames so far; smoothing: from all frames. No filter knows the first frame's velocity: the limit that this "
        "sets to the R^2 of phi' stands among the runs. SRNN and DKF have batches of 16 films for 250 epochs, VSSN of "
        "32 for 200: with theirs one of three seeds of VSSN lost the angle. "
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
        "What `make demo` trains, and its score: squared error per frame, 9 frames ahead of 6 seen, 500 test films.",
        (Column("VSSN", "pendulum", "error", 2), Column("copy of the last frame seen", "pendulum", "copy", 2)),
    ),
)


def write_report(path: Path, settings: Settings) -> list[str]:
    """The page at `path`, its figures and records in the folder `results` beside it; the tables of which nothing was
    found.

    Args:
        settings: `output` and `budget` say where the runs are.
    """
    figures = path.parent / "results"
    kept = figures / "runs"
    parts, absent = [_HEAD.format(budget=settings.budget)], []
    if settings.budget == "quick":
        parts.append("**Tiny models, one epoch, few particles and sequences: a check of the commands, no results.**\n")
    for section in SECTIONS:
        named = read_records(section.table, settings, kept)
        if settings.budget == "full":
            keep_records(section.table, named, kept)
        records = list(named.values())
        if not any("metrics" in record for record in records):
            absent.append(section.table)
        parts.append(_section(section, records))
        names = _copy_figures(section.table, settings, figures)
        if settings.budget == "full":  # those of runs that are known by their records alone
            names |= {figure.name for figure in figures.glob(f"{section.table}-*.png")}
        for name in sorted(names):
            shown = Path(name).stem.removeprefix(f"{section.table}-").replace("-", ", ")
            parts.append(f"![{section.title}: {shown}](results/{name})\n")
    parts.append("## Speed\n[benchmarks/README.md](benchmarks/README.md).\n")
    with replacing(path) as part:
        part.write_text("\n".join(parts), encoding="utf-8")
    return absent


def _copy_figures(table: str, settings: Settings, folder: Path) -> set[str]:
    """Copies what the runs of a table drew into the folder: the names there."""
    names = set()
    for figure in (settings.output / settings.budget / table / "figures").glob("*.png"):
        folder.mkdir(parents=True, exist_ok=True)
        name = figure.name if figure.name.startswith(table) else f"{table}-{figure.name}"
        shutil.copyfile(figure, folder / name)
        names.add(name)
    return names


_HEAD = """# Results

Written by `vssn reproduce --report` from the runs of `vssn reproduce TABLE --budget {budget}`; nothing here is typed by
hand. A figure with ± is a mean over seeds and their standard deviation (n - 1). Published figures stand below ours, in
italics, with their sources; ≥ marks a bound, ~ an estimate. Minutes are by the clock, whatever else ran beside.
"""


def _section(section: Section, records: Sequence[Record]) -> str:
    done = [record for record in records if "metrics" in record]
    lines = [f"## {section.title}", section.text]
    if done:
        lines += ["", *_table(section, done), "", *_runs(section, done)]
    missing = _not_run(section, records)
    if missing:
        lines += ["", "Not run:", *(f"- {line}" for line in missing)]
    return "\n".join((*lines, ""))


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
