"""Records of the long checks: whole, in order, plain."""

from __future__ import annotations

import json
from pathlib import Path

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
