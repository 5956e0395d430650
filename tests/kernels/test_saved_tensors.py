"""What changes between a call and its backward without autograd's knowing, by hooks of saved tensors, by `.data`, by a
freed storage, by a buffer of lengths that is used again: the same gradients, or an error in the op's name; nothing is
read beyond a tensor's end."""

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


CHANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "in half precision": lambda tensor: tensor.bfloat16(),
    "in double precision": lambda tensor: tensor.double(),
    "cut": lambda tensor: tensor.reshape(-1)[:1].clone(),
    "empty": lambda tensor: tensor.new_empty(0),
}


@pytest.mark.parametrize("changed", CHANGED)
@each_op
def test_inputs_that_become_other_data_before_backward(op: str, changed: str) -> None:
    """As `module.double()` has it. Right where backward does not read it; an error where it does; never a crash."""
    sample = find_sample(op, ROWS[op].rich).to("cpu", torch.float32, requires_grad=True)
    refused = 0
    for name in sample.tensors:
        own = sample.to("cpu", torch.float32, requires_grad=True)
        outputs = own.run("cpu")
        loss = torch.stack([part.sum() for part in outputs.values()]).sum()
        own.tensors[name].data = CHANGED[changed](own.tensors[name].data)
        try:
            loss.backward()
        except RuntimeError as error:
            refused += str(error).startswith((f"{op}: backward must meet", "mlp: backward must meet"))
    assert refused > 0


@pytest.mark.parametrize("model", ["double", "bfloat16", "half"])
def test_a_model_that_is_converted_before_backward(model: str) -> None:
    module = vssn.VSSN(5, 8, 3, 2, likelihood="gaussian")
    loss = module(torch.randn(4, 2, 5)).loss
    getattr(module, model)()
    with pytest.raises(RuntimeError, match="backward must meet the tensors of the call as they were"):
        loss.backward()


@each_op
def test_memory_that_is_gone(op: str) -> None:
    for name in find_sample(op, ROWS[op].rich).tensors:
        sample = find_sample(op, ROWS[op].rich).to("cpu", torch.float32)
        tensor = sample.tensors[name]
        if not tensor.is_floating_point() or tensor.storage_offset() or not tensor.numel():
            continue
        tensor.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError):
            sample.run("cpu")


@pytest.mark.parametrize("value", [1, 10**6])
def test_batch_sizes_and_lengths_are_the_layers_own(value: int) -> None:
    """A loader may fill its buffers anew before backward."""
    x, lengths = torch.randn(6, 5, 8), torch.tensor([6, 4, 3, 2, 1])
    for packed in (True, False):
        torch.manual_seed(0)
        gru, found = vssn.GRU(8, 16), []
        for changed in (False, True):
            own = lengths.clone()
            given = torch.nn.utils.rnn.pack_padded_sequence(x, own) if packed else x
            output = gru(given)[0].data if packed else gru(x, lengths=own)[0]
            steps = given.batch_sizes if packed else own
            if changed:
                steps.numpy()[:] = value
            found.append(torch.autograd.grad(output.pow(2).sum(), list(gru.parameters())))
        for before, after in zip(*found, strict=True):
            assert torch.equal(before, after)


def test_lengths_of_inference_mode_train() -> None:
    with torch.inference_mode():
        lengths = torch.tensor([3, 1])
    vssn.GRU(4, 3)(torch.randn(3, 2, 4), lengths=lengths)[0].sum().backward()


@pytest.mark.parametrize("steps", [1, 6])
def test_a_backward_inside_a_compiled_function(steps: int) -> None:
    gru, x = vssn.GRU(3, 4), torch.randn(steps, 5, 3)
    wanted = torch.autograd.grad(gru(x)[0].sum(), list(gru.parameters()))
    loss = gru(x)[0].sum()

    @torch.compile(backend="eager")
    def backward(loss: Tensor) -> None:
        loss.backward()

    backward(loss)
    for grad, parameter in zip(wanted, gru.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, grad)
