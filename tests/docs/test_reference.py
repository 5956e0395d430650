"""The pages of configuration keys and of the command line: nothing is missing, and everything has a meaning."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pytest
from pages import DOCS

from vssn import cli
from vssn.data.registry import data_sets
from vssn.models.registry import MODELS
from vssn.training.config import check_config
from vssn.training.sections import ConstraintSection, DataSection, TrainingSection, data_section, model_section

sys.path.insert(0, str(DOCS / "_hooks"))
import reference

ROOT = DOCS.parent


def built(page: str) -> str:
    source = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    text = reference.on_page_markdown(source)
    assert text != source
    return text


def rows_below(heading: str, text: str) -> dict[str, list[str]]:
    """The cells of a section's table, by the first."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    lines = [line for line in found[1].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


SECTIONS = {
    "data": set(DataSection.model_fields),
    "training": set(TrainingSection.model_fields),
    "training.constraint": set(ConstraintSection.model_fields),
}
SECTIONS |= {name: set(model_section({"name": name}).model_fields) - {"name"} for name in MODELS}
OWN = {
    name: set(data_section(name).model_fields) - SECTIONS["data"]
    for name, row in data_sets().items()
    if row.load.__module__.startswith("vssn.")  # not those of other tests
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_section_is_there_with_its_values_default_and_meaning(section: str) -> None:
    rows = rows_below(section, built("configuration"))
    assert rows.keys() == SECTIONS[section]
    for key, cells in rows.items():
        assert len(cells) == 3, key
        assert all(cells), key


@pytest.mark.parametrize("name", OWN)
def test_every_key_of_a_set_is_there_with_its_values_default_and_meaning(name: str) -> None:
    page = built("configuration")
    heading = next(line for line in re.findall(r"^### (.*)$", page, re.MULTILINE) if name in line.split(", "))
    rows = rows_below(heading, page)
    assert rows.keys() == OWN[name]
    for key, cells in rows.items():
        assert len(cells) == 3, key
        assert all(cells), key


def test_bounds_defaults_and_choices_are_those_that_are_checked() -> None:
    rows = rows_below("training", built("configuration"))
    assert rows["on_nan"][:2] == ["`stop` `skip`", "`stop`"]
    assert rows["learning_rate"][:2] == ["number > 0, ≤ 1000", "`0.001`"]
    assert rows["coordinated_dropout"][:2] == ["number ≥ 0, &lt; 1", "`0.0`"]
    assert rows["chunk_length"][:2] == ["whole number ≥ 1", "`null`"]


def test_every_command_and_option_is_there_with_its_meaning() -> None:
    page = built("command-line")
    parser = cli.make_parser()
    commands = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert re.findall(r"^## vssn (.*)$", page, re.MULTILINE) == list(commands)
    for name, command in commands.items():
        rows = rows_below(f"vssn {name}", page)
        actions = [action for action in command._actions if not isinstance(action, argparse._HelpAction)]
        assert len(rows) == len(actions)
        for action, (argument, cells) in zip(actions, rows.items(), strict=True):
            assert (action.option_strings or [action.metavar])[-1] in argument
            assert len(cells) == 1
            assert cells[0], (name, argument)


def test_the_example_is_a_configuration() -> None:
    example = re.search(r"```yaml\n(.*?)```", (DOCS / "configuration.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example
    import yaml

    config = check_config(yaml.safe_load(example[1]), "the page", [])
    assert config.data.set == "files"


def test_readme_leads_to_both() -> None:
    readme = Path(ROOT, "README.md").read_text(encoding="utf-8")
    assert "(docs/configuration.md)" in readme
    assert "(docs/command-line.md)" in readme
