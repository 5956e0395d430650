"""Records of the long checks: whole, in order, plain."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import counted_checks
import pytest
from reliability_records import record, records


def test_a_record_is_added_to_those_before(tmp_path: Path) -> None:
    record("faults", folder=tmp_path, kills=3)
    file = record("faults", folder=tmp_path, packages=("no-such-package",), kills=4, worst="none")
    assert [entry["figures"] for entry in records(file)] == [{"kills": 3}, {"kills": 4, "worst": "none"}]
    assert set(records(file)[1]) == {"name", "command", "processor", "date", "versions", "figures"}
    assert {"python", "torch"} <= set(records(file)[1]["versions"])
    assert [path.name for path in tmp_path.iterdir()] == ["faults.json"]


def test_what_is_no_figure_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="kills must be a number or a text, got list"):
        record("faults", folder=tmp_path, kills=[1])
    with pytest.raises(ValueError, match="worst must be finite, got nan"):
        record("faults", folder=tmp_path, worst=float("nan"))
    (tmp_path / "faults.json").write_text(json.dumps({"kills": 3}))
    with pytest.raises(ValueError, match="expected a list of records"):
        record("faults", folder=tmp_path, kills=3)


SAYS = "print('avx2: 30 checks, 0 failed\\ngeneric: 12 checks, 0 failed\\namx: skipped: not here')"


def test_the_checks_of_a_program_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted_checks, "record", partial(record, folder=tmp_path))
    assert counted_checks.main(["sanitizers", "kernels", sys.executable, "-c", SAYS]) == 0
    (entry,) = records(tmp_path / "sanitizers.json")
    assert entry["figures"] == {"sanitized runs": 2, "checks": 42, "findings": 0}


@pytest.mark.parametrize(
    "code", [f"{SAYS}; raise SystemExit(3)", "print('no checks')", "print('avx2: 30 checks, 1 failed')"]
)
def test_of_checks_that_fail_there_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(counted_checks, "record", partial(record, folder=tmp_path))
    assert counted_checks.main(["sanitizers", "kernels", sys.executable, "-c", code]) != 0
    assert list(tmp_path.iterdir()) == []
