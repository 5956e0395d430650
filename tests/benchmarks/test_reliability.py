"""RELIABILITY.md is what the generator makes of the records, and the generator says what records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reliability_records import record

from benchmarks import ROOT, reliability


def test_the_page_is_made_of_the_records() -> None:
    page = (ROOT / "RELIABILITY.md").read_text(encoding="utf-8")
    assert page == reliability.write(reliability.read()), "make reliability"


def test_the_records_count_no_mismatch() -> None:
    for entries in reliability.read().values():
        for entry in entries:
            none = ("mismatches", "crashes", "findings", "silent", "unnamed")
            bad = {key: entry["figures"].get(key, 0) for key in none}
            assert not any(bad.values()), (entry["name"], bad)


def entries_of(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())


def test_the_newest_of_each_processor_is_shown(tmp_path: Path) -> None:
    for kills in (3, 1200):
        file = record("kill", topic="faults", folder=tmp_path, command="make kill", kills=kills)
    other = entries_of(file)[-1] | {
        "processor": "another one",
        "figures": {"kills": 5, "longest": 0.12345, "text": "a|b"},
    }
    file.write_text(json.dumps([*entries_of(file), other]))
    record("new", topic="a topic", folder=tmp_path, command="x", cases=2, runs=7)
    page = reliability.write(reliability.read(tmp_path))
    assert f"| kill | 1,200 |  |  | {entries_of(file)[0]['processor']} |" in page
    assert "| kill | 5 | 0.123 | a\\|b | another one |" in page
    assert "| kill | 3 |" not in page
    assert "| kills survived | 1,205 |" in page
    assert "| calls compared with float64 | 2 |" in page
    assert "sanitizers" not in page  # runs of another kind are none of theirs
    assert page.index("## Kills and faults") < page.index("## A topic")
    commit = other["versions"].get("commit")
    assert f"Made by `make kill`, {f'commit {commit}, ' if commit else ''}{other['date']}." in page
    assert "another one" in page.split("processors seen")[1].splitlines()[0]


def test_the_runs_of_the_files_add_up(tmp_path: Path) -> None:
    for seed, inputs in ((1, 70), (1, 100), (2, 1000)):  # the first seed twice: of the same inputs the newest count
        command = f"make fuzz-files SEED={seed}"
        record("csv", topic="files", folder=tmp_path, command=command, inputs=inputs, **{"kinds of fault": 0})
    page = reliability.write(reliability.read(tmp_path))
    assert "| csv | 1,100 | 0 |" in page
    assert "| damaged files read | 1,100 |" in page
    assert "Made by `make fuzz-files SEED=1`, `make fuzz-files SEED=2`, " in page


def test_what_is_no_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.json").write_text('[{"name": "x"}]')
    assert reliability.main(["--records", str(tmp_path), "--output", str(tmp_path / "page.md")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("benchmarks.reliability: ")
    assert "expected name, command, processor, date and figures" in said
    assert not (tmp_path / "page.md").exists()
