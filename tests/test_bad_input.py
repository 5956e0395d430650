"""Every argument of what is public with values of every wrong kind: an exception that names it, or the right result;
no crash, no hang, no silent number."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path

import pytest
from bad_input import Tally, walk
from counted_run import largest
from public_calls import GROUPS, INSIDE, MORE, Entry, left_out, public

COUNTS: Counter[str] = Counter()


def require_fine(tally: Tally) -> None:
    COUNTS["calls"] += tally.calls
    COUNTS["crashes"] += len(tally.of("crash", "hang"))
    COUNTS["silent"] += len(tally.of("silent", "wrong"))
    COUNTS["unnamed"] += len(tally.of("unnamed"))
    for name in ("calls", "crashes", "silent", "unnamed"):
        largest(name, COUNTS[name])
    assert tally.calls
    assert not tally.report(), tally.report()


def test_a_part_of_the_values(tmp_path: Path) -> None:
    require_fine(walk(list(GROUPS), tmp_path, every=8))


@pytest.mark.slow
@pytest.mark.parametrize("group", [*GROUPS, *MORE])
def test_all_values(group: str, tmp_path: Path) -> None:
    require_fine(walk([group], tmp_path, every=4 if group == "more models" else 1))


def entries() -> list[Entry]:
    return [entry for group in GROUPS.values() for entry in group()]


def test_everything_public_is_called() -> None:
    """A new function without an entry, or a new argument without values, stands here."""
    walked: dict[str, set[str]] = {}
    for entry in entries():
        names = {argument.parameter for argument in entry.arguments}
        walked.setdefault(entry.name.partition("[")[0], set()).update(names)
    known = public()
    assert sorted(known.keys() - walked.keys() - left_out().keys()) == []
    assert sorted(left_out().keys() & walked.keys()) == []
    assert sorted(left_out().keys() - known.keys()) == []
    for name, function in known.items():
        if name in left_out() or name.rpartition(".")[2] in INSIDE:
            continue
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        parameters = inspect.signature(function).parameters.values()
        wanted = {one.name for one in parameters if one.kind not in kinds and one.name not in ("self", "cls")}
        assert not wanted - walked[name], name


def test_the_walk_tells_what_kills_it(tmp_path: Path) -> None:
    """A crash is one outcome, and the calls behind it are made."""
    tally = walk(["deadly"], tmp_path)
    assert [outcome.verdict for outcome in tally.outcomes] == ["fine", "crash", "silent", "unnamed", "fine"]
