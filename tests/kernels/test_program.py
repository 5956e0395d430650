"""Programs over a memory: every instruction against PyTorch, odd sizes, rows apart, nothing written elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vssn_kernels.activations import ACTIVATIONS, activate
from vssn_kernels.testing import assert_close

program = pytest.importorskip("vssn_kernels.backend.cpu.program")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
ALL = (-math.inf, math.inf, False)


def ran(
    built: program.Program, memory: Tensor, x: Tensor | None = None, u: Tensor | None = None, **places: int
) -> Tensor:
    """The memory behind a run of all instructions on a copy of it, whose rows stand apart."""
    apart = torch.full((memory.shape[0], memory.shape[1] + 3), math.nan, dtype=memory.dtype)
    own = apart[:, : memory.shape[1]]
    own.copy_(memory)
    built.finish()
    x_at, u_at = places.get("x_at", 0), places.get("u_at", 0)
    assert built.run(own, x, u, x_at, u_at, 0, len(built), ALL)
    assert apart[:, memory.shape[1] :].isnan().all()
    return own


def other_places(memory: Tensor, after: Tensor, start: int, width: int) -> None:
    """Nothing but these columns has changed."""
    same = torch.ones(memory.shape[1], dtype=torch.bool)
    same[start : start + width] = False
    assert torch.equal(memory[:, same], after[:, same])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("sizes", "width"),
    [
        *(((1,), 1), ((5, 0, 7), 3), ((17,), 64), ((33, 2), 65), ((9,), 200), ((0,), 4)),
        *(((5,), width) for width in (8, 9, 16, 17, 32, 33)),  # to the widths of panels and above
    ],
)
def test_linear(dtype: torch.dtype, rows: int, sizes: tuple[int, ...], width: int) -> None:
    for biased in (True, False):
        built = program.Program(dtype)
        places = [built.place(size) for size in sizes]
        onto = built.place(width)
        weights = [torch.randn(width, size, dtype=dtype) for size in sizes]
        bias = torch.randn(width, dtype=dtype) if biased else None
        out = built.linear(list(zip(places, weights, strict=True)), bias, None if biased else onto)
        memory = torch.randn(rows, built.size, dtype=dtype)
        after = ran(built, memory)
        start = bias if biased else memory[:, onto : onto + width]
        want = start + sum(memory[:, at : at + w.shape[1]] @ w.T for at, w in zip(places, weights, strict=True))
        assert_close("linear", after[:, out : out + width], want.expand(rows, -1), TOLERANCE[dtype])
        other_places(memory, after, out, width)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [1, 7, 16, 70])
def test_gru_and_activations(dtype: torch.dtype, size: int) -> None:
    cell = torch.nn.GRUCell(3, size, dtype=dtype)
    built = program.Program(dtype)
    x, h = built.place(3), built.place(size)
    gates_x = built.linear([(x, cell.weight_ih)], cell.bias_ih)
    gates_h = built.linear([(h, cell.weight_hh)], cell.bias_hh)
    built.gru(h, gates_x, gates_h, h, size)
    memory = torch.randn(4, built.size, dtype=dtype)
    after = ran(built, memory)
    want = cell(memory[:, x : x + 3], memory[:, h : h + size])
    assert_close("gru", after[:, h : h + size], want.detach(), TOLERANCE[dtype])
    for activation in ACTIVATIONS:
        built = program.Program(dtype)
        built.place(2)
        at = built.place(size)
        built.place(1)
        built.activate(at, size, activation)
        memory = 3 * torch.randn(4, built.size, dtype=dtype)
        after = ran(built, memory)
        assert_close(activation, after[:, at : at + size], activate(memory[:, at : at + size], activation), 1e-5)
        other_places(memory, after, at, size)


@pytest.mark.parametrize("size", [1, 7, 70])
def test_copy_and_add(size: int) -> None:
    actions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"copy": lambda a, b: b, "add": lambda a, b: a + b}
    for name, action in actions.items():
        built = program.Program(torch.float64)
        a, b = built.place(size), built.place(size)
        getattr(built, name)(a, b, size)
        memory = torch.randn(2, built.size, dtype=torch.float64)
        after = ran(built, memory)
        assert_close(name, after[:, a : a + size], action(memory[:, a : a + size], memory[:, b : b + size]), 0.0)
        other_places(memory, after, a, size)


def test_x_and_u_come_to_their_places() -> None:
    built = program.Program(torch.float64)
    x_at, u_at = built.place(3), built.place(2)
    x, u = torch.randn(5, 6, dtype=torch.float64)[:, 1:4], torch.randn(5, 2, dtype=torch.float64)
    after = ran(built, torch.zeros(5, built.size, dtype=torch.float64), x, u, x_at=x_at, u_at=u_at)
    assert torch.equal(after, torch.cat((x, u), -1))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("value", "support", "taken"),
    [
        (0.5, ALL, True),
        (math.nan, ALL, False),
        (math.inf, ALL, False),
        (-math.inf, ALL, False),
        (0.5, (0.0, 1.0, False), True),
        (-0.1, (0.0, 1.0, False), False),
        (1.1, (0.0, 1.0, False), False),
        (0.5, (0.0, 1.0, True), False),
        (1.0, (0.0, 1.0, True), True),
        (7.0, (0.0, math.inf, True), True),
        (math.inf, (0.0, math.inf, True), False),
    ],
)
def test_values_that_are_not_taken_change_nothing(
    dtype: torch.dtype, value: float, support: tuple[float, float, bool], taken: bool
) -> None:
    built = program.Program(dtype)
    at = built.place(2)
    built.copy(built.place(2), at, 2)
    built.finish()
    memory = torch.full((2, built.size), 9.0, dtype=dtype)
    x = torch.ones(2, 2, dtype=dtype)
    x[1, 0] = value
    assert built.run(memory, x, None, at, 0, 0, 1, support) == taken
    assert torch.equal(memory[:, 2:], x if taken else torch.full_like(x, 9.0))
    if not taken and not math.isfinite(value):
        assert not built.run(memory, None, x, 0, at, 0, 1, ALL)


def test_a_part_of_the_instructions_runs() -> None:
    built = program.Program(torch.float32)
    a, b, c = (built.place(1) for _ in range(3))
    built.copy(b, a, 1)
    built.copy(c, b, 1)
    built.finish()
    memory = torch.tensor([[1.0, 2.0, 3.0]])
    assert built.run(memory, None, None, 0, 0, 0, 1, ALL)
    assert memory.tolist() == [[1.0, 1.0, 3.0]]


def built_of_many(dtype: torch.dtype, hidden: int) -> program.Program:
    """Two networks and a GRU that read one another's results, of work enough for three threads."""
    built = program.Program(dtype)
    x, h = built.place(70), built.place(hidden)
    weights = [torch.randn(n, k, dtype=dtype) / k**0.5 for n, k in ((hidden, 70), (hidden, hidden), (33, hidden))]
    gates = [torch.randn(3 * hidden, hidden, dtype=dtype) / hidden**0.5 for _ in range(2)]
    bias = torch.randn(3 * hidden, dtype=dtype)
    first = built.linear([(x, weights[0]), (h, weights[1])], bias[:hidden])
    built.activate(first, hidden, "tanh")
    gates_x = built.linear([(first, gates[0])], bias)
    gates_x = built.linear([(h, gates[1])], None, gates_x)
    gates_h = built.linear([(h, gates[1])], bias)
    built.gru(h, gates_x, gates_h, h, hidden)
    out = built.linear([(h, weights[2])], bias[:33])
    other = built.place(33)
    built.copy(other, out, 33)
    built.add(out, other, 33)
    return built


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_bits_are_equal_over_threads(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    built = built_of_many(dtype, 257)
    built.finish()
    memory = torch.randn(3, built.size, dtype=dtype)

    def after(count: int) -> Tensor:
        torch.set_num_threads(count)
        copy = memory.clone()
        assert built.run(copy, None, None, 0, 0, 0, len(built), ALL)
        return copy

    try:
        want = after(1)
        assert not torch.equal(want, memory)
        assert all(torch.equal(after(count), want) for count in 50 * (2, 3))
    finally:
        torch.set_num_threads(threads)


def waits(built: program.Program) -> int:
    built.finish()
    return int((built.code[:, 0] == program.WAIT).sum())


def test_threads_wait_where_one_would_meet_another_and_nowhere_else() -> None:
    """A second linear onto the same columns, and what is done to them, is the same thread's."""
    eye = torch.eye(5)

    def made(*instructions: str) -> int:
        built = program.Program(torch.float32)
        a, b, gates = built.place(5), built.place(5), built.place(15)
        last = a
        for instruction in instructions:
            if instruction == "linear":
                last = built.linear([(last, eye)], None)
            elif instruction == "two":
                last = built.linear([(a, eye), (b, eye)], torch.zeros(5))
            elif instruction == "activate":
                built.activate(last, 5, "tanh")
            elif instruction == "copy":
                built.copy(b, last, 5)
            elif instruction == "overlap":
                built.copy(last + 1, a, 4)
            elif instruction == "gru":
                built.gru(a, gates, gates, a, 5)
            else:
                built.activate(gates, 15, "tanh")
        return waits(built)

    assert made("linear", "activate", "copy") == 0
    assert made("two", "activate", "copy") == 1  # the copy is what others read
    assert made("linear", "linear") == 1  # reads what others wrote
    assert made("two", "gru") == 1  # writes what others read
    assert made("gates", "gru") == 1  # in other columns than they were written
    assert made("two", "overlap") == 1
    assert made("linear", "linear", "two", "gru", "activate") == 2
