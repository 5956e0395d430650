"""Pictures of the repository that the site shows: each stands once, where it was drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ("benchmarks/results/gru_grid.png",)


def on_files(files: Any, config: Any) -> Any:
    """Of MkDocs: they become images of the site."""
    for picture in PICTURES:
        files.append(File.generated(config, _image(picture), abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Of MkDocs, for every page: a path out of its folder leads to them."""
    up = "../" * page.file.src_uri.count("/")
    for picture in PICTURES:
        markdown = markdown.replace(f"({up}../{picture})", f"({up}{_image(picture)})")
    return markdown


def _image(picture: str) -> str:
    return f"images/{Path(picture).name}"
