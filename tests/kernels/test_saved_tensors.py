"""Hooks that change what autograd keeps for backward: the same gradients where they give back what they got, else an
error in the op's name; nothing is read beyond a tensor's end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vssn
from vssn_kernels.testing import OPS, ROWS, assert_all_close, cotangents, find_sample, gradients

each_op = pytest.mark.parametrize("op", OPS)
each_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])
SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "in half precision": lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor.int(),
    "cut": lambda tensor: tensor.reshape(-1)[:1],
    "on meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
}


def passed_on(tensor: Tensor) -> Tensor:
    return tensor


@each_backend
@each_op
def test_hooks_that_move_tensors(op: str, backend: str) -> None:
    sample = find_sample(op, ROWS[op].rich).to("cpu", torch.float32, requires_grad=True)
    found = []
    for back in (passed_on, torch.clone):
        with torch.autograd.graph.saved_tensors_hooks(passed_on, back):
            outputs = sample.run(backend)
        found.append(gradients(sample, outputs, cotangents(outputs)))
    assert_all_close(*found, 1e-6)


@pytest.mark.parametrize("spoilt", SPOILT)
@each_backend
@each_op
def test_hooks_that_give_back_something_else(op: str, backend: str, spoilt: str) -> None:
    sample = find_sample(op, ROWS[op].rich).to("cpu", torch.float32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(passed_on, SPOILT[spoilt]):
        outputs = sample.run(backend)
    with pytest.raises(RuntimeError, match=rf"^(mlp|{op}): a hook of saved tensors must give back what it was given"):
        gradients(sample, outputs, cotangents(outputs))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_layer(spoilt: str, steps: int) -> None:
    gru = vssn.GRU(3, 4)
    with torch.autograd.graph.saved_tensors_hooks(passed_on, SPOILT[spoilt]):
        output, _ = gru(torch.randn(steps, 2, 3))
    with pytest.raises(RuntimeError, match=r"^gru_sequence: a hook of saved tensors must give back what it was given"):
        output.sum().backward()
