"""python tests/counted_checks.py TOPIC NAME COMMAND...: runs a program that says "12 checks, 0 failed" at the end of
each of its runs, and where all went well records how many of both there were (results/reliability/TOPIC.json)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

from reliability_records import record

SAID = re.compile(r"\b(\d+) checks, 0 failed$")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. The variable MADE_BY says how the run is named in the record."""
    topic, name, *command = sys.argv[1:] if argv is None else argv
    checks = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        for line in program.stdout:
            print(line, end="", flush=True)
            if said := SAID.search(line.rstrip()):
                checks.append(int(said[1]))
    if program.returncode != 0:
        return program.returncode
    if not checks:
        print(f"counted_checks: {' '.join(command)} said of no checks how they went", file=sys.stderr)
        return 1
    figures = {"sanitized runs": len(checks), "checks": sum(checks), "findings": 0}
    file = record(name, topic=topic, command=os.environ.get("MADE_BY"), **figures)
    print(f"recorded in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
