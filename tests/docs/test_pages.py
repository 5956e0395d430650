"""The jobs of the documentation: every page does what it says, at a small size, and in as few lines as it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pages import DOCS, read_page

PAGES = sorted(path for path in DOCS.rglob("*.md") if read_page(path).blocks)


@pytest.mark.slow  # make test-pages
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(DOCS).with_suffix("").as_posix())
def test_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read_page(path).run()


def test_the_world_model_of_the_page_learns_its_frames() -> None:
    """A fifth of its updates; with a sigmoid in its decoder it ended at black frames."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in read_page(DOCS / "jobs" / "world-model.md").blocks:
        exec(block.code.replace("range(300)", "range(60)"), names)
        if "rssm.observe(encoder(frames)" in block.code:
            break
    frames = names["frames"]
    assert names["step"] == 59
    assert names["pixels"] < 0.5 * (frames - frames.mean((0, 1))).square().sum(-1).mean()


@pytest.mark.parametrize("path", sorted(DOCS.glob("jobs/*.md")), ids=lambda path: path.stem)
def test_a_job_is_short(path: Path) -> None:
    """Ten lines of Python, or two commands, a block; what makes the data of a page is told apart by its first line."""
    for language, code in read_page(path).blocks:
        lines = [line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if not code.startswith("# the data of this page"):
            assert len(lines) <= (10 if language == "python" else 2), code
