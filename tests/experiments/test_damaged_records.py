"""Records and logs of runs that hold something else: one line that names the file, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vssn.errors import ConfigError, DataError
from vssn.experiments.figures import read_metrics
from vssn.experiments.jobs import Settings
from vssn.experiments.records import FAILED, SCORE, read_record
from vssn.experiments.report import write_report
from vssn.experiments.report_tables import cell

KEPT = Path(__file__).resolve().parents[2] / "results/runs/objectives/jsb-vssn_elbo-0.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "full" / "objectives" / "a"
    made.mkdir(parents=True)
    return made


def report(folder: Path) -> list[str]:
    return write_report(folder.parents[2] / "page.md", Settings(folder.parents[2]))


@pytest.fixture
def record() -> dict[str, Any]:
    kept = sorted(KEPT.parent.glob("*.json"))
    return dict(json.loads(kept[0].read_text()))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"set": []}, "set"),
        ({"model": {}}, "model"),
        ({"seed": "0"}, "seed"),
        ({"config": 3}, "config"),
        ({"config": {"data": 3}}, "config.data"),
        ({"metrics": [1]}, "metrics"),
        ({"metrics": {"elbo_micro": "-6.9"}}, "metrics.elbo_micro"),
        ({"metrics": {"elbo_micro": 10**400}}, "metrics.elbo_micro"),
        ({"train_seconds": None}, "train_seconds"),
        ({"train_seconds": 10**400}, "train_seconds"),
        ({"parameters": "many"}, "parameters"),
        ({"threads": [1]}, "threads"),
        ({"settings": 1}, "settings"),
        ({"note": {}}, "note"),
    ],
)
def test_an_entry_of_another_kind_is_named(
    change: dict[str, Any], name: str, folder: Path, record: dict[str, Any]
) -> None:
    assert "objectives" not in _of(folder, record)
    (folder / SCORE).write_text(json.dumps(record | change))
    with pytest.raises(ConfigError) as caught:
        report(folder)
    assert f"{folder / SCORE}: expected the record of a run, but {name} is of another kind" in str(caught.value)


def _of(folder: Path, record: dict[str, Any]) -> list[str]:
    """The tables of which nothing is found."""
    (folder / SCORE).write_text(json.dumps(record))
    return report(folder)


def test_a_record_that_is_nested_without_end(folder: Path) -> None:
    (folder / SCORE).write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="not the record of a run"):
        report(folder)


def test_of_a_failed_run_only_the_reason_counts(folder: Path, record: dict[str, Any]) -> None:
    (folder / FAILED).write_text(json.dumps(record | {"reason": "none", "metrics": {"elbo_micro": 1}}))
    assert set(read_record(folder / FAILED)) == {"table", "set", "model", "seed", "reason"}
    assert "objectives" in report(folder)


def test_a_list_in_the_place_of_a_figure_is_left_out(folder: Path, record: dict[str, Any]) -> None:
    assert "objectives" not in _of(folder, record | {"metrics": {key: [1.0] for key in record["metrics"]}})
    del record["config"]["data"]["batch_size"]  # is what it is by default, and need not stand there
    assert "objectives" not in _of(folder, record)


def test_the_spread_of_what_is_not_finite() -> None:
    assert cell([1.0, float("inf")], 1) == "inf ± nan"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epoch\n1\n",
        "epoch,train/elbo_per_frame,valid/elbo_per_frame,valid/kl_z_per_frame,valid/kl_w_per_frame\n1,x,1,1,1\n",
        "epoch,train/elbo_per_frame,valid/elbo_per_frame,valid/kl_z_per_frame,valid/kl_w_per_frame\n1,1\n",
        "epoch,train/elbo_per_frame,valid/elbo_per_frame,valid/kl_z_per_frame,valid/kl_w_per_frame\n1,1,1,1,1,1\n",
        "epoch,train/elbo_per_frame,valid/elbo_per_frame,valid/kl_z_per_frame,valid/kl_w_per_frame\ninf,1,1,1,1\n",
        "epoch\n" + '"' + "x" * 140_000,
    ],
)
def test_a_log_that_holds_something_else(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(DataError, match=r"metrics\.csv: expected the epochs of a run, got another text"):
        read_metrics(tmp_path)


def test_a_log_without_its_seconds(tmp_path: Path) -> None:
    columns = "epoch,train/elbo_per_frame,valid/elbo_per_frame,valid/kl_z_per_frame,valid/kl_w_per_frame"
    (tmp_path / "metrics.csv").write_text(f"{columns}\n1,1,1,1,1\n")
    assert len(read_metrics(tmp_path)) == 5
    with pytest.raises(DataError, match="expected the epochs of a run"):
        read_metrics(tmp_path, ("seconds",))
