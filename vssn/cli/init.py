"""`vssn init`: a configuration for data of one's own."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "init",
        help="propose a configuration for data of your own",
        description="Look at data of your own (a table, arrays, HDF5, MIDI, recordings, films: a file or a folder) and "
        "print a configuration for it, with reasons: vssn init DATA > config.yaml",
    )
    parser.add_argument("data", metavar="DATA", help="a file or a folder")
    parser.add_argument("--output", metavar="DIR", help="folder of the run (runs/NAME)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="e.g. data.time_column=date")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from vssn.training.own_files import propose_for

    print(propose_for(options.data, options.set, options.output).to_yaml(), end="")
    return 0
