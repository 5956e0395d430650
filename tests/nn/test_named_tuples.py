"""A named tuple with other parts, in code that is compiled too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vssn.nn.states import CausalState, State
from vssn.utils.named_tuples import with_parts


def test_parts_are_those_given_else_those_before() -> None:
    before = CausalState(*torch.arange(4.0))
    after = with_parts(before, z=torch.tensor(9.0), a=torch.tensor(8.0))
    assert type(after) is CausalState
    assert [float(part) for part in after] == [0.0, 9.0, 2.0, 8.0]
    assert with_parts(before) == before
    with pytest.raises(ValueError, match=r"^CausalState has no b, h$"):
        with_parts(before, b=before.a, d=before.d, h=before.a)


def test_it_compiles_without_a_break() -> None:
    def step(state: State, z: Tensor) -> State:
        return with_parts(state, z=state.z + z, x_last=2 * state.d)

    state, z = State(*torch.randn(3, 2, 4)), torch.randn(2, 4)
    found = torch.compile(step, fullgraph=True, backend="eager")(state, z)
    assert type(found) is State
    for part, want in zip(found, step(state, z), strict=True):
        torch.testing.assert_close(part, want, rtol=0, atol=0)
