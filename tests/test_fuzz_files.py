"""The fuzzer of files finds what is to be found, and its own files are whole."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import fuzz_files
import pytest
from damage import changed_tree
from file_forms import Form

from vssn.errors import DataError

pytest.importorskip("pandas")


def read(path: Path) -> Any:
    """Takes the whole file, refuses most others, and has four faults."""
    content = path.read_bytes()
    if content.startswith(b"abc"):
        return content
    if len(content) > 12:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"a" not in content:
        raise DataError("no a")
    if b"c" not in content:
        raise DataError("no\x0bc") if len(content) % 2 else KeyError("c")
    raise DataError("no abc at its start")


def test_crashes_and_other_exceptions_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = fuzz_files.Tally(Form("a.txt", [b"abcdefgh"], [read]), 300, tmp_path / "a.txt")
    fuzz_files.run({"text": tally}, 1.0, 0, 2, tmp_path / "kept")
    assert tally.begun == 300
    assert sorted(tally.faults) == ["KeyError in ?", "dies of SIGKILL"]
    assert tally.pool
    assert "text, input" in capsys.readouterr().out
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_the_fuzzer_runs_over_every_form(tmp_path: Path) -> None:
    assert fuzz_files.main(["--inputs", "150", "--jobs", "1", "--keep", str(tmp_path)]) == 0
    assert not list(tmp_path.iterdir())


def test_trees_are_changed_and_stay_as_they_were() -> None:
    import random

    tree = {"a": [1, {"b": "x"}], "c": (2, 3)}
    found = {repr(changed_tree(tree, random.Random(seed))) for seed in range(200)}
    assert len(found) > 50
    assert tree == {"a": [1, {"b": "x"}], "c": (2, 3)}
