"""The pages of the documentation as programs: their blocks of code, run from top to bottom in one folder.

A comment at the head of a page makes it small for a test: each line `this -> that` replaces text of the blocks.

    <!-- small:
    max_epochs=40 -> max_epochs=1
    -->

A block behind `<!-- not run -->` is shown alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent.parent / "docs"
_SMALL = re.compile(r"<!-- small:\n(.*?)-->", re.DOTALL)
_BLOCK = re.compile(r"(<!-- not run -->\n)?```(python|sh)\b[^\n]*\n(.*?)```", re.DOTALL)


class Block(NamedTuple):
    language: str  # python or sh
    code: str


class Page(NamedTuple):
    path: Path
    blocks: list[Block]
    small: list[tuple[str, str]]  # what stands in the blocks, and what a test puts there

    def run(self) -> str:
        """What the blocks print, in the present folder; Python's share their names. Raises what they raise."""
        said = io.StringIO()
        names: dict[str, object] = {"__name__": "__main__"}
        with contextlib.redirect_stdout(said):
            for language, code in self._shortened():
                if language == "sh":
                    said.write(_shell(code))
                else:
                    exec(compile(code, str(self.path), "exec"), names)
        return said.getvalue()

    def _shortened(self) -> list[Block]:
        blocks = self.blocks
        for long, short in self.small:
            if not any(long in block.code for block in blocks):
                raise ValueError(f"{self.path}: {long!r}, which a test is to shorten, stands in no block")
            blocks = [block._replace(code=block.code.replace(long, short)) for block in blocks]
        return blocks


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    small = [
        tuple(part.strip() for part in line.split(" -> "))
        for comment in _SMALL.findall(text)
        for line in comment.splitlines()
    ]
    blocks = [Block(language, code) for skipped, language, code in _BLOCK.findall(text) if not skipped]
    return Page(path, blocks, small)  # type: ignore[arg-type]


def _shell(code: str) -> str:
    """With the commands of this Python first on the path."""
    place = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env={**os.environ, "PATH": place, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{code}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
