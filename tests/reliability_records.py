"""What the long checks counted, for RELIABILITY.md: `record("faults", kills=100)` adds an entry to
results/reliability/faults.json, a list of objects with

    name, command, processor, date, versions {package: version}, figures {name: number or text}

Among the versions is the commit, with a + where what the repository holds was changed beside it.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vssn.utils.machine import processor_name

FOLDER = Path(__file__).resolve().parent.parent / "results" / "reliability"
PACKAGES = ("torch", "numpy")


def _commit() -> str | None:
    """As the process began; None: this is no repository, or there is no git."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=FOLDER.parent, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", "../vssn", "../vssn_kernels", "../csrc", "../tests")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


COMMIT = _commit()


def record(
    name: str,
    *,
    topic: str | None = None,
    command: str | None = None,
    folder: Path = FOLDER,
    packages: tuple[str, ...] = (),
    **figures: Any,
) -> Path:
    """Adds what a run counted to the file of its topic, whole or not at all; the file.

    Args:
        name: of the check.
        topic: the file's name; None: that of the check.
        command: that makes it again; None: that of this process.
        packages: whose versions matter too.
        figures: numbers and texts.

    Raises:
        TypeError: a figure is neither a number nor a text.
        ValueError: a figure is not finite, or the file is no list of records.
    """
    for key, figure in figures.items():
        if not isinstance(figure, int | float | str):
            raise TypeError(f"{key} must be a number or a text, got {type(figure).__name__}")
        if isinstance(figure, float) and not math.isfinite(figure):
            raise ValueError(f"{key} must be finite, got {figure}")
    entry = {
        "name": name,
        "command": command or " ".join(["python", *map(shlex.quote, sys.argv)]),
        "processor": processor_name(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "versions": versions(packages),
        "figures": figures,
    }
    file = folder / f"{topic or name}.json"
    entries = [*records(file), entry]
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)
    return file


def records(file: Path) -> list[dict[str, Any]]:
    """The entries of a file, none where there is none. Raises ValueError: it is no list of records."""
    if not file.exists():
        return []
    entries = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "figures" in entry for entry in entries):
        raise ValueError(f"{file}: expected a list of records; mend it or move it away")
    return entries


def versions(packages: tuple[str, ...] = ()) -> dict[str, str]:
    """Of Python, of this code, and of those packages that are installed."""
    found = {"python": platform.python_version(), **({} if COMMIT is None else {"commit": COMMIT})}
    for package in (*PACKAGES, *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
