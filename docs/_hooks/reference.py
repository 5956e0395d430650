"""The reference of configurations and of the command line, from the code: types and defaults from what checks them,
meanings from the comments and docstrings beside them.

    python docs/_hooks/reference.py configuration     or command-line: prints the tables
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from vssn import cli
from vssn.data.formats import READERS, options_of
from vssn.data.registry import DataSet, data_sets
from vssn.likelihoods import LIKELIHOODS
from vssn.models.registry import MODELS
from vssn.training.sections import (
    ConstraintSection,
    DataSection,
    ModelSection,
    TrainingSection,
    data_section,
    model_section,
)
from vssn.utils.numbers import LARGEST_SIZE, Within

REGISTRIES = {"name": MODELS, "likelihood": LIKELIHOODS}
MEASURED = "measured, and kept with the run: not to be set"
REST = "the others"  # of a docstring's names


class Key(NamedTuple):
    name: str
    type: str
    default: str
    meaning: str


def on_page_markdown(markdown: str, **_: object) -> str:
    """Of MkDocs, for every page: `<!-- the table: NAME -->` becomes that table."""
    for name, make in PAGES.items():
        mark = f"<!-- the table: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


# A configuration


def configuration() -> str:
    parts = ["## data", "Of every set:", table(section_keys(DataSection))]
    for title, row in _sets_by_loader():
        parts += [f"### {title}", table(keys) if (keys := set_keys(row)) else "No further keys."]
    parts += ["## model", "Of every model:", table(section_keys(ModelSection))]
    for name in MODELS:
        parts += [f"### {name}", table(model_keys(name))]
    parts += ["## training", table(section_keys(TrainingSection))]
    parts += ["### training.constraint", table(section_keys(ConstraintSection))]
    return "\n\n".join(parts)


def _sets_by_loader() -> Iterator[tuple[str, DataSet]]:
    """`jsb, nottingham, ...`: sets that one loader reads have the same keys."""
    rows = {name: row for name, row in data_sets().items() if row.load.__module__.startswith("vssn.")}
    loaders = dict.fromkeys(row.load for row in rows.values())
    names = {load: [name for name, row in rows.items() if row.load is load] for load in loaders}
    for load in sorted(names, key=lambda load: "files" not in names[load]):  # one's own first
        yield ", ".join(names[load]), rows[names[load][0]]


def section_keys(section: type[BaseModel]) -> list[Key]:
    """Those that the class itself has, with the comments beside them."""
    return [_key(section, name, meaning) for name, meaning in comments(section).items()]


def set_keys(row: DataSet) -> list[Key]:
    section = data_section(next(name for name, of in data_sets().items() if of.load is row.load))
    own, forms = meanings_of(row.load), {}
    for kind, (_, reader) in READERS.items():
        told = meanings_of(reader)
        forms |= {name: f"{kind}: {told[name]}" for name in options_of(kind) if name in told}
    found = []
    for name in row.own_keys():
        meaning = own.get(name) or forms.get(name) or own.get(REST, "")
        found.append(_key(section, name, MEASURED if meaning.startswith("measured") else meaning))
    return found


def model_keys(name: str) -> list[Key]:
    section, cls = model_section({"name": name}), MODELS[name]
    own = {key: text.replace("as in `vssn.VSSN`", "as in [vssn](#vssn)") for key, text in meanings_of(cls).items()}
    return [_key(section, key, own.get(key, "")) for key in section.model_fields if key != "name"]


def _key(section: type[BaseModel], name: str, meaning: str) -> Key:
    field = section.model_fields[name]
    kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    shown = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
    takes = " ".join(f"`{one}`" for one in REGISTRIES[name]) if name in REGISTRIES and _is_text(kind) else type_of(kind)
    return Key(name, takes, shown, re.sub(r"\bNone\b", "`null`", meaning))


def _is_text(kind: Any) -> bool:
    return kind is str or (get_origin(kind) is Annotated and get_args(kind)[0] is str)


def type_of(kind: Any) -> str:
    """In words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [bound for part in parts[1:] if isinstance(part, Within) for bound in _bounds(part)]
        return " ".join((type_of(parts[0]), ", ".join(bounds))).strip()
    if origin is Literal:
        return " ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(type_of(part) for part in parts if part is not NoneType)
    if origin is list:
        return f"list of {type_of(parts[0])}"
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        return "keys of its own, below"
    return {int: "whole number", float: "number", bool: "`true` `false`", str: "text"}[kind]


def _bounds(within: Within) -> list[str]:
    """Without the end that every size has."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return [
        f"{signs[name]} {'2^32' if bound == 2**32 else f'{bound:g}'}"
        for name, bound in vars(within).items()
        if bound not in (None, LARGEST_SIZE)
    ]


def _value(value: Any) -> str:
    """As YAML has it."""
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def comments(cls: type) -> dict[str, str]:
    """Of every field of a class, the comment behind it, or else the lines above it."""
    lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    found = {}
    for node in ast.parse("\n".join(lines)).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign):
            continue
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        behind = [
            line.partition("  # ")[2] or line.strip().removeprefix("# ") for line in lines[first:last] if "# " in line
        ]
        above: list[str] = []
        while first and lines[first - 1].strip().startswith("# "):
            first -= 1
            above.insert(0, lines[first].strip().removeprefix("# "))
        found[ast.unparse(node.target)] = " ".join(behind or above)
    return found


def meanings_of(documented: Any) -> dict[str, str]:
    """The Args of a docstring by name. Names that share a line share its text, or have a part each where it has as many
    as there are names."""
    _, _, rest = (inspect.getdoc(documented) or "").partition("\nArgs:\n")
    args = re.split(r"\n(?=\S)", rest)[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\S)", f"\n{args}"):
        names, _, text = " ".join(entry.split()).partition(": ")
        listed = [name.strip() for name in names.split(",") if name.strip(" .")]
        parts = text.rstrip(".").split("; ")
        each = parts if len(parts) == len(listed) else [text.rstrip(".")] * len(listed)
        found |= dict(zip(listed, each, strict=True))
    return found


def table(keys: list[Key]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{key.name}` | {cell(key.type)} | {cell(key.default)} | {cell(key.meaning)} |" for key in keys]
    return "\n".join(lines)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


# The command line


def commands() -> Mapping[str, argparse.ArgumentParser]:
    parser = cli.make_parser()
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def command_line() -> str:
    parts = []
    for name, parser in commands().items():
        lines = ["| argument | meaning |", "|---|---|"]
        for action in parser._actions:
            if not isinstance(action, argparse._HelpAction):
                lines.append(f"| {argument(action)} | {cell(meaning_of(action))} |")
        parts += [f"## vssn {name}", cell(parser.description or ""), "\n".join(lines)]
    return "\n\n".join(parts)


def argument(action: argparse.Action) -> str:
    takes = "" if action.nargs == 0 else action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}"
    if takes == "{}":
        takes = action.dest.upper()
    if action.nargs in ("*", "+"):
        takes = f"{takes} ..."
    if action.nargs in ("?", "*"):
        takes = f"[{takes}]"
    return f"`{' '.join((*action.option_strings[-1:], str(takes))).strip()}`"


def meaning_of(action: argparse.Action) -> str:
    text = action.help or ""
    return f"{text}{'; ' if text else ''}it must be given" if action.required and action.option_strings else text


PAGES = {"configuration": configuration, "command-line": command_line}

if __name__ == "__main__":
    if sys.argv[1:] not in [[name] for name in PAGES]:
        sys.exit(f"expected one of {', '.join(PAGES)}, got {sys.argv[1:]}")
    print(PAGES[sys.argv[1]]())
