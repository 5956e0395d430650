"""`vssn reproduce`: the tables of the paper, trained, scored and written as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vssn.cli.common import add_threads, use_threads
from vssn.experiments.tasks import NAMES
from vssn.utils.command import check_target, of_user, positive


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "reproduce",
        help="train and score what a table of the paper holds",
        description="Train and score what a table of the paper holds. The same command again goes on where it stopped.",
    )
    parser.add_argument(
        "tables",
        metavar="TABLE",
        nargs="*",
        help=f"{', '.join(NAMES)}; several run in turn",
    )
    parser.add_argument("--budget", choices=("quick", "full"), default="full", help="quick: tiny models, one epoch")
    parser.add_argument("--data", metavar="FOLDER", help="folder of music sets and recordings (else VSSN_DATA)")
    parser.add_argument("--output", metavar="DIR", type=of_user, default=Path("runs/reproduce"), help="of all runs")
    parser.add_argument("--seeds", metavar="N", type=positive, default=1, help="runs of each model, seeds 0 to N-1 (1)")
    parser.add_argument(
        "--only",
        metavar="TEXT",
        action="append",
        default=[],
        help="runs whose SET-MODEL-SEED has this part: jsb, jsb-vssn, vssn_nade",
    )
    add_threads(parser)
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        nargs="?",
        const=Path("RESULTS.md"),
        help="write the page (RESULTS.md), its figures beside it",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
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
