"""`vssn download`: the four music sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "download",
        help="fetch the four music sets",
        description="Fetch public copies of the four music sets (1.6 MB) and check them; name the folder as --data.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where the files go")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from vssn.data.download import download_music

    for path in download_music(options.folder):
        print(path)
    return 0
