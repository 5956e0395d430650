"""What a kernel's machine code (sm_70 to sm_90, as cuobjdump -sass prints it) waits for in each step of its recurrence.

An instruction's upper 64 bits say which of six scoreboards a load counts on (bits 46-48 of them) and on which the
instruction waits before it issues (bits 52-57). So where a load is waited for is read off, not guessed.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import NamedTuple

_LINE = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P[0-9T]+\s+)?([A-Z][\w.]*)([^;]*);"
    r"\s*/\* 0x[0-9a-f]{16} \*/\s+/\* 0x([0-9a-f]{16}) \*/"
)
_NO_SCOREBOARD = 7
# Behind these a thread has sent what others wait for, or has itself waited for others.
# LDG.E.STRONG: of a word, a poll of the grid's counter.
EXCHANGES = re.compile(r"(BAR\.|SYNCS\.PHASECHK|SYNCS\.ARRIVE|UCGABAR|STAS|REDG|LDG\.E\.STRONG)")
WAITS = re.compile(r"(BAR\.|SYNCS\.PHASECHK)")
PRODUCTS = re.compile(r"[HQ]MMA\.|FFMA$")
# Of a grid whose states are their own flags: the loads that wait for them.
EXCHANGES_OF_GRID = re.compile(rf"{EXCHANGES.pattern}|LDG\.E\.128\.STRONG")
# Where nobody waits for other blocks, a step's products are what a load has time for.
EXCHANGES_OR_PRODUCTS = re.compile(f"{EXCHANGES.pattern}|{PRODUCTS.pattern}")


class Instruction(NamedTuple):
    address: int
    predicate: str
    name: str  # with its suffixes
    operands: str
    scoreboard: int  # on which its result counts; 7: none
    waits: int  # mask of the scoreboards that must be empty before it issues

    @property
    def loads_global(self) -> bool:
        return self.name.startswith("LDG.")

    @property
    def bits(self) -> int:
        width = re.search(r"\.(?:[US](8|16)|(64|128))\b", self.name)
        return int(width[1] or width[2]) if width else 32


def instructions(text: str) -> list[Instruction]:
    found = []
    for address, predicate, name, operands, high in _LINE.findall(text):
        control = int(high, 16)
        found.append(
            Instruction(
                int(address, 16), predicate.strip(), name, operands.strip(), control >> 46 & 7, control >> 52 & 63
            )
        )
    return found


class Code:
    """One kernel."""

    def __init__(self, text: str) -> None:
        self.all = instructions(text)
        self.number = {instruction.address: i for i, instruction in enumerate(self.all)}

    @cached_property
    def successors(self) -> list[tuple[int, ...]]:
        """Of every instruction, by number."""
        joins: dict[str, int] = {}  # of BSSY, by barrier register: the last in the order of addresses
        result: list[tuple[int, ...]] = []
        for i, instruction in enumerate(self.all):
            base = instruction.name.split(".")[0]
            target = self._target(instruction)
            following = (i + 1,) if i + 1 < len(self.all) else ()
            certain = instruction.predicate in ("", "@PT", "@UPT")
            if base == "BSSY" and target is not None:
                joins[instruction.operands.split(",")[0].strip()] = target
            if base in ("EXIT", "RET", "BRX", "JMX"):
                result.append(() if certain and base != "BRX" else following)
            elif base == "BSYNC":
                join = joins.get(instruction.operands.strip())
                result.append((join,) if join is not None else following)
            elif base in ("BRA", "JMP") and target is not None:
                conditional = not certain or instruction.name != base or "P" in instruction.operands.split("0x")[0]
                result.append((target, *following) if conditional else (target,))
            else:
                result.append(following)
        return result

    def _target(self, instruction: Instruction) -> int | None:
        address = re.search(r"(?:^|[ ,])0x([0-9a-f]+)$", instruction.operands)
        return self.number.get(int(address[1], 16)) if address else None

    @cached_property
    def loops(self) -> list[frozenset[int]]:
        """The strongly connected parts of the code, and in turn of what is left of each without its first
        instruction: outer loops before inner ones."""
        found, left = [], [frozenset(range(len(self.all)))]
        while left:
            inside = left.pop()
            for part in _connected(self.successors, inside):
                found.append(part)
                left.append(part - {self._head(part)})
        return found

    def _head(self, loop: frozenset[int]) -> int:
        """Where it is entered."""
        entered = [j for i, after in enumerate(self.successors) if i not in loop for j in after if j in loop]
        return min(entered, default=min(loop))

    def _names(self, loop: frozenset[int]) -> set[str]:
        return {self.all[i].name for i in loop}

    @cached_property
    def steps(self) -> list[frozenset[int]]:
        """The loops over the steps: the innermost that hold both products and an exchange."""

        def is_step(loop: frozenset[int]) -> bool:
            names = self._names(loop)
            return any(map(WAITS.match, names)) and any(map(PRODUCTS.match, names))

        candidates = [loop for loop in self.loops if is_step(loop)]
        return [loop for loop in candidates if not any(other < loop for other in candidates)]

    def outermost(self, inner: list[frozenset[int]]) -> list[frozenset[int]]:
        """The largest loops that hold these."""
        outer = {max((loop for loop in self.loops if loop >= part), key=len) for part in inner}
        return list(outer)

    def reaches(self, start: int, goal: re.Pattern[str], loop: frozenset[int], past: re.Pattern[str]) -> bool:
        """Whether a path within the loop leads from behind an instruction to one of `goal` past none of `past`."""
        seen, left = set(), [j for j in self.successors[start] if j in loop]
        while left:
            i = left.pop()
            if i in seen or past.match(self.all[i].name):
                continue
            if goal.match(self.all[i].name):
                return True
            seen.add(i)
            left += [j for j in self.successors[i] if j in loop]
        return False

    def waited_for_at_once(self, loop: frozenset[int], behind: re.Pattern[str] = EXCHANGES) -> list[Instruction]:
        """Global loads in a loop over steps that some path waits for before it has come to an exchange (`behind`).

        Not those past L1 (.STRONG: weights that are streamed, and the exchange itself); nor paths round an inner loop,
        whose next turn a load may be meant for."""
        inner = [(self._head(other), other) for other in self.loops if other < loop]
        turns = {(i, head) for head, other in inner for i in other if head in self.successors[i]}
        found = []
        for i in sorted(loop):
            load = self.all[i]
            if not load.loads_global or "STRONG" in load.name or load.scoreboard == _NO_SCOREBOARD:
                continue
            if self._waits_before(behind, i, loop, turns):
                found.append(load)
        return found

    def _waits_before(
        self, behind: re.Pattern[str], start: int, loop: frozenset[int], turns: set[tuple[int, int]]
    ) -> bool:
        bit = 1 << self.all[start].scoreboard
        seen, left = set(), [j for j in self.successors[start] if j in loop]
        while left:
            i = left.pop()
            if i in seen:
                continue
            seen.add(i)
            instruction = self.all[i]
            # The latter: a shuffle of lanes that have gone apart, out of the way that a warp takes.
            if behind.match(instruction.name) or instruction.name.startswith("WARPSYNC.COLLECTIVE"):
                continue
            if instruction.waits & bit:
                return True
            left += [j for j in self.successors[i] if j in loop and (i, j) not in turns]
        return False


def _connected(successors: list[tuple[int, ...]], inside: frozenset[int]) -> list[frozenset[int]]:
    """Strongly connected parts of more than one instruction, or with an edge to itself (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    parts = []
    for root in inside:
        if root in index:
            continue
        work = [(root, iter(successors[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, after = work[-1]
            for other in after:
                if other not in inside:
                    continue
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(successors[other])))
                    break
                if other in on_stack:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    part = set()
                    while True:
                        other = stack.pop()
                        on_stack.discard(other)
                        part.add(other)
                        if other == node:
                            break
                    if len(part) > 1 or node in successors[node]:
                        parts.append(frozenset(part))
    return parts
