"""Figures in the prose of README and of the pages are those of the tables and records beside them."""

from __future__ import annotations

import json
import math
import re

from pages import DOCS

from vssn.experiments.records import Record
from vssn_kernels.version import __version__

ROOT = DOCS.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def series_records() -> dict[str, Record]:
    paths = (ROOT / "results" / "runs" / "series").glob("*-vssn-0.json")
    return {path.name.split("-")[0]: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def test_the_first_words_of_readme_have_the_figures_of_its_tables() -> None:
    sentence = " ".join(README.split("\n## ")[0].split())
    torch = re.search(r"A training step is ([\d.]+) to ([\d.]+) times as fast", sentence)
    jax = re.search(r"and ([\d.]+) to ([\d.]+) times as fast as under JAX", sentence)
    rows = re.findall(r"^\| (?:S|M|L|XL): .*$", README, re.MULTILINE)
    assert rows
    for said, column in ((torch, 6), (jax, 7)):
        assert said
        ratios = [float(re.search(r"\(([\d.]+)x\)", row.split("|")[column])[1]) for row in rows]  # type: ignore[index]
        assert said[1] == f"{math.floor(10 * min(ratios)) / 10:.1f}"
        assert said[2] == f"{math.ceil(10 * max(ratios)) / 10:.1f}"
    sizes = [int(re.search(r" D=(\d+)", row)[1]) for row in rows]  # type: ignore[index]
    assert f"({min(sizes)} to {max(sizes)} units of state)" in sentence


def test_half_an_hour_is_what_jsb_takes() -> None:
    record = json.loads((ROOT / "results/runs/music/jsb-vssn_sizes_of_its_own-0.json").read_text(encoding="utf-8"))
    assert record["config_name"] == "jsb"
    assert "vssn fit --config jsb --data FOLDER              # half an hour;" in README
    assert 25 <= record["train_seconds"] / 60 <= 35


def test_the_page_of_forecasts_says_what_the_bands_held_and_who_was_better() -> None:
    page = " ".join((DOCS / "jobs" / "series.md").read_text(encoding="utf-8").split())
    metrics = {name: record["metrics"] for name, record in series_records().items()}
    held = {name: round(100 * one["forecast_coverage"]) for name, one in metrics.items()}
    filled = [round(100 * one["imputation_coverage"]) for one in metrics.values()]
    assert f"the 80% band held {min(held.values())} to {max(held.values())}% of the truth" in page
    assert f"({held['elnino']}% of this page's; {min(filled)} to {max(filled)}% where gaps were filled)" in page
    peers = ("gru_forecast_crps", "space_forecast_crps")
    better = [name for name, one in metrics.items() if min(one[peer] for peer in peers) < one["forecast_crps"]]
    assert (len(metrics), len(better)) == (5, 4)
    assert "forecast four of the five better" in page
    assert all(one["gru_imputation_crps"] < one["imputation_crps"] for one in metrics.values())
    lines = {name for name, one in metrics.items() if one["line_imputation_mae"] < one["imputation_mae"]}
    assert lines == {"co2", "weather"}
    assert "on two (CO2 and Seattle's weather) straight lines had the smaller absolute error" in page


def test_the_software_is_cited_in_its_version() -> None:
    page = (DOCS / "cite.md").read_text(encoding="utf-8")
    entry = page[page.index("@software{") :].split("```")[0]
    assert f"version = {{{__version__}}}" in entry
    assert re.search(r"author +=", entry)
    assert re.search(r"year +=", entry)
