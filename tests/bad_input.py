"""python tests/bad_input.py GROUP FILE [FIRST] [EVERY]: calls everything public with wrong values (public_calls.py).

Each call stands in FILE, a line of JSON before it and one behind it: a process that dies in a call leaves its name.
`walk` runs the groups in such processes, and starts another behind a call that killed one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import math
import os
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60  # of a call, before it counts as hanging
MEMORY = 8 * 2**30  # bytes that a process may have: what takes more fails there, and says so
EXPECTED = (TypeError, ValueError, RuntimeError, ImportError)
UNCLEAR = (NotImplementedError, RecursionError)  # kinds of RuntimeError that no check raises


class Outcome(NamedTuple):
    """What came of a call: "fine" or what is wrong with it."""

    call: str
    verdict: str  # fine, silent, unnamed, wrong, crash, hang, or not made: this PyTorch has no such value
    said: str


@dataclasses.dataclass
class Tally:
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)

    @property
    def calls(self) -> int:
        return sum(outcome.verdict != "not made" for outcome in self.outcomes)

    def of(self, *verdicts: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.verdict in verdicts]

    def report(self) -> str:
        bad = [outcome for outcome in self.outcomes if outcome.verdict not in ("fine", "not made")]
        return "\n".join(f"{outcome.verdict}: {outcome.call}: {outcome.said}" for outcome in bad)


# ---- The process that makes the calls --------------------------------------------------------------------------------


def calls_of(groups: Sequence[str], every: int) -> Iterator[tuple[Any, Any, Any]]:
    """(entry, argument, value); of each argument every so many values, not the same ones for all."""
    from public_calls import GROUPS, MORE, OWN

    number = 0
    for group in groups:
        for entry in (GROUPS | MORE | OWN)[group]():
            for argument in entry.arguments:
                number += 1
                for place, value in enumerate(argument.values):
                    if (place + number) % every == 0:
                        yield entry, argument, value


def make_calls(groups: Sequence[str], file: Path, first: int, every: int) -> None:
    import torch

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.RLIM_INFINITY))
    warnings.simplefilter("ignore")
    plain: dict[str, Any] = {}
    with open(file, "a", encoding="utf-8") as out:
        for number, (entry, argument, value) in enumerate(calls_of(groups, every)):
            if number < first:
                continue
            call = f"{entry.name}({argument.said or argument.parameter}: {value.kind})"
            print(json.dumps([number, call]), file=out, flush=True)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            if entry.name not in plain:
                plain = {entry.name: _plain(entry, torch)}
            verdict, said = _judge(entry, argument, value, plain[entry.name])
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps([number, call, verdict, said[:300]]), file=out, flush=True)


def _plain(entry: Any, torch: Any) -> Any:
    torch.manual_seed(0)
    try:
        return entry.call(**entry.right)
    except Exception as error:
        return error


def _judge(entry: Any, argument: Any, value: Any, plain: Any) -> tuple[str, str]:
    import torch
    from wrong_values import EITHER, IN_VMAP, REFUSED, SAME, SURVIVED

    if isinstance(plain, Exception):
        return "wrong", f"the right call raises {type(plain).__name__}: {plain}"
    try:
        made = value.make()
    except Exception as error:
        return "not made", str(error)
    inference = value.kind == "made in inference mode"  # which autograd does not save
    torch.manual_seed(0)
    try:
        with torch.no_grad() if inference else contextlib.nullcontext():
            if value.verdict == IN_VMAP:
                result = torch.func.vmap(lambda one: entry.call(**argument.given(entry.right, one)))(made)
                result = torch.utils._pytree.tree_map(lambda part: part[0], result)
            else:
                result = entry.call(**argument.given(entry.right, made))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if value.verdict == SURVIVED:
            return "fine", ""
        said = f"{type(error).__name__}: {error}"
        if value.verdict in (SAME, IN_VMAP):
            return "wrong", said
        return ("fine", said) if _is_clear(error, entry, argument, value) else ("unnamed", said)
    if value.verdict == REFUSED:
        return "silent", "no exception"
    if value.verdict in (SAME, IN_VMAP):
        return ("fine", "") if _equal(result, plain) else ("wrong", "another result")
    assert value.verdict in (EITHER, SURVIVED)
    return "fine", ""


def _is_clear(error: BaseException, entry: Any, argument: Any, value: Any) -> bool:
    """Whether it is of an expected kind, and one line that has the argument's name as a word."""
    text = str(error)
    if not isinstance(error, EXPECTED) or isinstance(error, UNCLEAR) or "\n" in text:
        return False
    if value.kind.startswith("size") and re.search("allocate memory|overflow", text):
        return True  # PyTorch says how much, or that there is no such tensor
    names = [argument.said or argument.parameter]
    if value.kind.startswith("size"):
        names += [*entry.right, *(other.said for other in entry.arguments if other.said)]
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names)


def _equal(result: Any, plain: Any) -> bool:
    import torch

    both = [torch.utils._pytree.tree_leaves(each) for each in (result, plain)]
    if len(both[0]) != len(both[1]):
        return False
    for one, other in zip(*both, strict=True):
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            half = one.dtype in (torch.float16, torch.bfloat16)
            one, other = (part.detach().as_subclass(torch.Tensor).double() for part in (one, other))
            if one.shape != other.shape or not torch.allclose(
                one, other, rtol=0.05 if half else 1e-4, atol=0.05 if half else 1e-5, equal_nan=True
            ):
                return False
        elif isinstance(one, float) and not math.isclose(one, other, rel_tol=1e-5) and one == one:
            return False
    return True


# ---- The one that counts ---------------------------------------------------------------------------------------------


def walk(groups: Sequence[str], folder: Path, every: int = 1) -> Tally:
    """All calls of the groups, each in a process that may die of it.

    Raises:
        RuntimeError: no call could be made.
    """
    file, first, hung = folder / "calls", 0, -1
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    tally = Tally()
    while True:
        file.write_text("")
        command = [sys.executable, __file__, ",".join(groups), str(file), str(first), str(every)]
        ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        tally.outcomes += [Outcome(*line[1:]) for line in lines if len(line) == 4]
        if ended.returncode == 0:
            return tally
        if not lines or len(lines[-1]) == 4:
            raise RuntimeError(f"the process ended between two calls: {ended.returncode}: {ended.stderr[-2000:]}")
        number, call = lines[-1]
        if ended.returncode > 0 and number != hung:  # it may have been stopped for a while: once more
            first = hung = number
            continue
        verdict = "crash" if ended.returncode < 0 else "hang"
        tally.outcomes.append(Outcome(call, verdict, f"{ended.returncode}: {ended.stderr[:2000]}"))
        first = number + 1


def main(argv: Sequence[str]) -> int:
    groups, file, *rest = argv
    first, every = (*map(int, rest), *(0, 1)[len(rest) :])
    make_calls(groups.split(","), Path(file), first, every)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
