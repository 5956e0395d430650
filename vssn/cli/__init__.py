"""The command `vssn`: init, fit, evaluate, forecast, impute, generate, latents, score, reproduce, download, info.

A mistake of the user is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vssn.cli import forecast, generate, impute, latents, score, series
from vssn.cli.common import TEST, add_threads, check_json, check_missing, dataset_of, use_threads, with_data
from vssn.experiments.tasks import NAMES
from vssn.training.heartbeat import Heartbeat
from vssn.utils.command import (
    INTERRUPTED,
    TERMINATED,
    Terminated,
    check_target,
    of_user,
    positive,
    run_command,
    seed,
    to_json,
    writing,
)
from vssn_kernels.version import __version__

if TYPE_CHECKING:
    from vssn.training.config import Config

_NEGATIVE = re.compile(r"(?i)-(?:\.?\d|inf|nan)")  # begins a value, not an option; argparse's own knows no -5e0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
    return run_command("vssn", lambda: int(options.run(options)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vssn", description="Variational Structured Stochastic Network")
    parser.add_argument("--version", action="version", version=f"vssn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser(
        "init",
        help="propose a configuration for data of your own",
        description="Look at data of your own (a table, arrays, HDF5, MIDI, recordings, films: a file or a folder) and "
        "print a configuration for it, with reasons: vssn init DATA > config.yaml",
    )
    init.add_argument("data", metavar="DATA", help="a file or a folder")
    init.add_argument("--output", metavar="DIR", help="folder of the run (runs/NAME)")
    init.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="e.g. data.time_column=date")
    init.set_defaults(run=_init)

    fit = commands.add_parser("fit", help="train a model", description="Train a model; the run fills one folder.")
    fit.add_argument(
        "--config", help="a YAML file, or the name of a packaged one such as jsb; without it one is proposed for --data"
    )
    fit.add_argument(
        "--data",
        metavar="PATH",
        help="data of your own, a file or a folder; with --config the place of its set (else data.folder, else "
        "VSSN_DATA)",
    )
    fit.add_argument("--output", metavar="DIR", help="folder of the run (else training.output)")
    fit.add_argument("--resume", action="store_true", help="continue the run in that folder from its last.ckpt")
    fit.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="e.g. training.max_epochs=3")
    fit.add_argument("--devices", metavar="N", type=positive, help="processes of each machine, a device each (1)")
    fit.add_argument("--nodes", metavar="N", type=positive, help="machines, with srun or torchrun (1)")
    add_threads(fit)
    fit.set_defaults(run=_fit)

    evaluate = commands.add_parser("evaluate", help="score a checkpoint", description="Score a checkpoint.")
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="a best.ckpt or last.ckpt")
    evaluate.add_argument(
        "--data",
        metavar="PATH",
        help="the place of the run's set, or a file of its form (else the run's, else VSSN_DATA)",
    )
    evaluate.add_argument("--split", choices=("train", "valid", "test"), help=f"of the set ({TEST})")
    evaluate.add_argument("--bound", choices=("elbo", "iwae", "fivo"), default="elbo", help="default: elbo")
    evaluate.add_argument(
        "--particles", metavar="K", type=positive, help="of iwae and fivo (100); of elbo: draws that are averaged (1)"
    )
    evaluate.add_argument("--seed", metavar="N", type=seed, default=0, help="of the draws (0)")
    evaluate.add_argument("--batch-size", metavar="B", type=positive, help="sequences read at once (else the run's)")
    evaluate.add_argument(
        "--memory", metavar="MIB", type=positive, default=1024, help="that iwae and fivo may use (1024)"
    )
    series.add_scores(evaluate)
    evaluate.add_argument("--json", metavar="FILE", type=Path, help="write the scores there too")
    add_threads(evaluate)
    evaluate.set_defaults(run=_evaluate)

    for command in (forecast, impute, generate, latents, score):
        command.add(commands)

    reproduce = commands.add_parser(
        "reproduce",
        help="train and score what a table of the paper holds",
        description="Train and score what a table of the paper holds. The same command again goes on where it stopped.",
    )
    reproduce.add_argument(
        "tables",
        metavar="TABLE",
        nargs="*",
        help=f"{', '.join(NAMES)}; several run in turn",
    )
    reproduce.add_argument("--budget", choices=("quick", "full"), default="full", help="quick: tiny models, one epoch")
    reproduce.add_argument("--data", metavar="FOLDER", help="folder of music sets and recordings (else VSSN_DATA)")
    reproduce.add_argument("--output", metavar="DIR", type=of_user, default=Path("runs/reproduce"), help="of all runs")
    reproduce.add_argument(
        "--seeds", metavar="N", type=positive, default=1, help="runs of each model, seeds 0 to N-1 (1)"
    )
    reproduce.add_argument(
        "--only",
        metavar="TEXT",
        action="append",
        default=[],
        help="runs whose SET-MODEL-SEED has this part: jsb, jsb-vssn, vssn_nade",
    )
    add_threads(reproduce)
    reproduce.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        nargs="?",
        const=Path("RESULTS.md"),
        help="write the page (RESULTS.md), its figures beside it",
    )
    reproduce.set_defaults(run=_reproduce)

    download = commands.add_parser(
        "download",
        help="fetch the four music sets",
        description="Fetch public copies of the four music sets (1.6 MB) and check them; name the folder as --data.",
    )
    download.add_argument("folder", metavar="FOLDER", type=Path, help="where the files go")
    download.set_defaults(run=_download)

    info = commands.add_parser(
        "info",
        help="versions, devices and backends, for bug reports; or what a checkpoint is",
        description="Print versions, devices and backends, for bug reports; of a checkpoint its model, data, "
        "training and scores.",
    )
    info.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="a best.ckpt or last.ckpt")
    info.set_defaults(run=_info)
    for verb in commands.choices.values():
        verb._negative_number_matcher = _NEGATIVE
    return parser


def _init(options: argparse.Namespace) -> int:
    from vssn.training.own_files import propose_for

    print(propose_for(options.data, options.set, options.output).to_yaml(), end="")
    return 0


def _config_to_fit(options: argparse.Namespace) -> Config:
    """The one named; else that of the run which is resumed, or one proposed for the data."""
    from vssn.errors import ConfigError
    from vssn.training.config import check_config, load_config
    from vssn.training.own_files import propose_for

    overrides = list(options.set)
    if options.output is not None:
        overrides.append(f"training.output={json.dumps(options.output)}")
    for name in ("devices", "nodes"):
        if getattr(options, name) is not None:
            overrides.append(f"training.{name}={getattr(options, name)}")
    if options.config is not None:
        return with_data(load_config(options.config, overrides), options.data)
    if options.resume and options.output is not None:
        return with_data(load_config(of_user(options.output) / "config.yaml", overrides), options.data)
    if options.data is None:
        raise ConfigError("--config: expected a configuration, or --data with data of your own; give one of them")
    proposal = propose_for(options.data, overrides, options.output)
    print(proposal.to_yaml())
    return check_config(proposal.settings, options.data, overrides)


def _fit(options: argparse.Namespace) -> int:
    from vssn.utils.values import one_word_of_rounding

    with one_word_of_rounding():  # of data that is read to propose a configuration, and again to train
        return _fit_as(_config_to_fit(options), options)


def _fit_as(config: Config, options: argparse.Namespace) -> int:
    training = config.training

    from vssn.training.fit import fit
    from vssn.training.processes import launch, started
    from vssn.training.run_directory import what_is_kept

    world = started(training)
    if world is None and training.nodes == 1:
        return launch(training.devices, options.arguments)

    use_threads(options)
    try:
        result = fit(config, resume=options.resume)
    except (KeyboardInterrupt, Terminated) as end:
        if world is not None and not world.writes:  # the first process speaks
            raise
        word, code = ("terminated", TERMINATED) if isinstance(end, Terminated) else ("interrupted", INTERRUPTED)
        print(f"vssn: {word}; {what_is_kept(config)}", file=sys.stderr)
        return code
    if world is not None and not world.writes:
        return 0
    print(f"\nbest epoch {result.best_epoch}: {result.best_path}  ({result.seconds / 60:.1f} minutes)")
    parts = [("validation", result.valid), ("test", result.test)]
    for split, scores in parts if result.test is not result.valid else parts[:1]:
        print(f"\n{split}\n{scores.table()}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from vssn.data.batching import sequence_loader
    from vssn.data.splits import in_memory
    from vssn.inference.scoring import BoundScores, Scores, evaluate, evaluate_bound
    from vssn.training.checkpoints import load_model

    use_threads(options)
    model, config = load_model(options.checkpoint)
    check_json(options, config)
    split = options.split or TEST
    particles = options.particles or (1 if options.bound == "elbo" else 100)
    scores: Scores | BoundScores
    with Heartbeat("reading the data", lambda line: print(line, file=sys.stderr)) as pulse:
        config, dataset = dataset_of(config, options.data, options.split)
        check_missing(model, (x for x, _ in in_memory(dataset)))
        pulse.doing = f"scoring {len(dataset)} sequences"
        batch_size = options.batch_size or config.data.batch_size
        loader = sequence_loader(dataset, batch_size, num_workers=config.data.workers)
        if options.bound == "elbo":
            scores = evaluate(model, loader, samples=particles, seed=options.seed)
        else:
            scores = evaluate_bound(
                model,
                loader,
                bound=options.bound,
                particles=particles,
                seed=options.seed,
                memory=options.memory * 2**20,
            )
    print(f"{options.checkpoint}, {config.data.set}, {split}\n{scores.table()}")
    further = config.data.row.scores
    more = None if further is None else further(dataset, scores)
    if config.data.row.model_scores is not None:
        more = config.data.row.model_scores(dataset, model)
    if more is not None:
        print(more.table())
    beside = series.scores(options, model, config, dataset)
    for table in beside.values():
        print(f"\n{table.table()}")
    if options.json is not None:
        settings = {
            "checkpoint": str(options.checkpoint),
            "split": split,
            "bound": options.bound,
            "particles": particles,
            "seed": options.seed,
        }
        content = settings | scores._asdict() | (more._asdict() if more else {})
        content |= {name: table.as_dict() for name, table in beside.items()}
        with writing("--json", options.json):
            options.json.write_text(to_json(content), encoding="utf-8")
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from vssn.errors import ConfigError
    from vssn.experiments.report import write_report
    from vssn.experiments.runner import Settings, reproduce

    unknown = [table for table in options.tables if table not in NAMES]
    if unknown or not (options.tables or options.report):
        came = f"got {unknown[0]!r}" if unknown else "got none"
        raise ConfigError(f"TABLE: expected one of {', '.join(NAMES)}, {came}; name one, or give --report")
    if options.report is not None:
        check_target("--report", options.report)
    use_threads(options)
    settings = Settings(options.output, options.budget, options.seeds, options.data, tuple(options.only))
    failed = reproduce(options.tables, settings) if options.tables else 0
    if options.report is not None:
        absent = write_report(options.report, settings)
        print(f"{options.report}" + (f"; no runs of {', '.join(absent)}" if absent else ""))
    return 2 if failed else 0


def _download(options: argparse.Namespace) -> int:
    from vssn.data.download import download_music

    for path in download_music(options.folder):
        print(path)
    return 0


def _info(options: argparse.Namespace) -> int:
    if options.checkpoint is None:
        import vssn_kernels

        print(vssn_kernels.info())
    else:
        from vssn.cli.describe import describe

        print(describe(options.checkpoint))
    return 0
