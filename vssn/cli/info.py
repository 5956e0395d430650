"""`vssn info`: versions, devices and backends; or what a checkpoint is."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, devices and backends, for bug reports; or what a checkpoint is",
        description="Print versions, devices and backends, for bug reports; of a checkpoint its model, data, "
        "training and scores.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="a best.ckpt or last.ckpt")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.checkpoint is None:
        import vssn_kernels

        print(vssn_kernels.info())
    else:
        from vssn.cli.describe import describe

        print(describe(options.checkpoint))
    return 0
