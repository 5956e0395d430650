"""The command `vssn`: a file for each verb, whose `add` says its options, and whose `run` returns the exit code.

A mistake of the user is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from vssn.cli import (
    download,
    evaluate,
    fit,
    forecast,
    generate,
    impute,
    info,
    init,
    latents,
    reproduce,
    score,
)
from vssn.utils.command import run_command
from vssn_kernels.version import __version__

_VERBS = (
    init,
    fit,
    evaluate,
    forecast,
    impute,
    generate,
    latents,
    score,
    reproduce,
    download,
    info,
)  # as help has them
_NEGATIVE = re.compile(r"(?i)-(?:\.?\d|inf|nan)")  # begins a value, not an option; argparse's own knows no -5e0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = make_parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
    return run_command("vssn", lambda: int(options.run(options)))


def make_parser() -> argparse.ArgumentParser:
    """That of the command, with all its verbs."""
    parser = argparse.ArgumentParser(prog="vssn", description="Variational Structured Stochastic Network")
    parser.add_argument("--version", action="version", version=f"vssn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for verb in _VERBS:
        verb.add(commands)
    for of_verb in commands.choices.values():
        of_verb._negative_number_matcher = _NEGATIVE
    return parser
