"""python tests/licences.py: LICENSES.md, the licence of every package in constraints.txt, as the installed ones say.

What is not installed here keeps the line that the page has of it.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "LICENSES.md"
HEAD = """# Licences of the dependencies

vssn itself is under the Apache License 2.0 ([LICENSE](LICENSE)), written for it, and contains no code of others. It is
installed beside the packages below, none of which is part of it: the wheel holds its own code and, linked statically
where the CUDA extension is built, NVIDIA's CUDA runtime (its end-user licence allows that).

Of each package that [constraints.txt](constraints.txt) pins; `make licences` writes this page of what the installed
packages say of themselves.

| package | version | licence |
|---|---|---|
"""
NOT_ASKED_FOR = {"jax": "Apache-2.0"}  # a peer of the benchmarks, which no extra installs: what its package says
COMMON = {"Apache Software License": "Apache-2.0", "MIT License": "MIT", "BSD License": "BSD"}


def pins() -> dict[str, str]:
    """Of constraints.txt, the version of each package by its name; of Pythons old and new where they differ."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w.-]+)==([\w.+!]+)", line):
            found.setdefault(canonicalize_name(match[1]), []).append(match[2])
    return {name: " or ".join(versions) for name, versions in found.items()}


def licence_of(data: PackageMetadata) -> str:
    """The expression, the classifiers, or the first line of the text: what there is, in this order."""
    if expression := data.get("License-Expression"):
        return str(expression)
    listed = [
        value.rpartition(" :: ")[2] for value in data.get_all("Classifier") or [] if value.startswith("License ::")
    ]
    named = [COMMON.get(value, value) for value in listed if value != "OSI Approved"]
    text = str(data.get("License") or "").strip()
    if text and len(text) <= 40:
        return text
    return ", ".join(named) or (text.splitlines()[0][:60] if text else "not stated")


def rows(before: str = "") -> list[str]:
    """A line of the table for each pin; of the page before where a package is not installed here.

    Raises:
        ValueError: neither is there.
    """
    kept = dict(re.findall(r"^\| ([\w.-]+) \| (.*) \|$", before, re.MULTILINE))
    lines = []
    for name, version in sorted(pins().items()):
        try:
            licence = licence_of(metadata(name)).replace("|", "/")
        except PackageNotFoundError:
            kept.setdefault(name, f"{version} | {NOT_ASKED_FOR.get(name, '')}")
            if kept[name].endswith("| "):
                raise ValueError(f"{name} is not installed here, and {PAGE.name} does not list it") from None
            licence = kept[name].rpartition(" | ")[2]
        lines.append(f"| {name} | {version} | {licence} |")
    return lines


def main() -> int:
    """Writes the page."""
    try:
        lines = rows(PAGE.read_text(encoding="utf-8") if PAGE.exists() else "")
    except ValueError as error:
        print(f"licences: {error}", file=sys.stderr)
        return 2
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
