"""A layer of torch.nn.GRU as one node of autograd: what the product and the op give, in less memory; and left to them
where more is asked for. (Of a single step: test_single_steps.py.)"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import vssn
from vssn_kernels import gru_packed, gru_sequence
from vssn_kernels.ops.gru_layer import gru_layer
from vssn_kernels.testing import assert_close, assert_equal, poisoned_empty

TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12}
NAMES = ("x", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
FORMS = ("whole", "lengths", "packed")
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
each_form = pytest.mark.parametrize("form", FORMS)
each_direction = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def layer(form: str, steps: int, batch: int, inputs: int, hidden: int, bias: bool = True) -> tuple[list, dict]:
    """What gru_layer takes: tensors as NAMES has them, in float64, and which steps are there."""
    lengths = torch.randint(0, steps + 1, (batch,)).sort(descending=True).values
    lengths[0] = steps
    sizes = torch.stack([(lengths > t).sum() for t in range(steps)])
    options = {"whole": {}, "lengths": {"lengths": lengths}, "packed": {"batch_sizes": sizes}}[form]
    leading = (int(lengths.sum()),) if form == "packed" else (steps, batch)
    weights = [draw(3 * hidden, size) / size**0.5 for size in (inputs, hidden)]
    biases = [draw(3 * hidden) / 2 if bias else None, draw(3 * hidden) / 2]
    return [draw(*leading, inputs), draw(batch, hidden), *weights, *biases], options


def composed(
    x: Tensor, h0: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    op = gru_packed if "batch_sizes" in options else gru_sequence
    return op(F.linear(x, weight_ih, bias_ih), h0, weight_hh, bias_hh, backend="reference", **options)


def leaves_of(given: list, dtype: torch.dtype, asked: tuple[str, ...] = NAMES) -> dict[str, Tensor | None]:
    return {
        name: None if part is None else part.detach().to(dtype).requires_grad_(name in asked)
        for name, part in zip(NAMES, given, strict=True)
    }


def results(
    function: Any, leaves: dict[str, Tensor | None], cotangents: list, retain: int = 0, **options: Any
) -> dict[str, Tensor]:
    """Outputs and gradients by name. retain: backward passes before the last one, which keep the graph."""
    with poisoned_empty():
        outputs = function(*leaves.values(), **options)
        assert outputs is not None
        wanted = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
        used = [(out, c.to(out.dtype)) for out, c in zip(outputs, cotangents, strict=True) if c is not None]
        for kept in [True] * retain + [False]:
            grads = torch.autograd.grad(
                [out for out, _ in used], list(wanted.values()), [c for _, c in used], retain_graph=kept
            )
    return {"output": outputs[0], "h_n": outputs[1], **dict(zip(wanted, grads, strict=True))}


@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden"), [(1, 3, 2, 5), (2, 1, 1, 1), (7, 5, 3, 33), (9, 40, 97, 16), (4, 2, 5, 515)]
)
@each_form
@each_direction
@each_dtype
def test_values_and_gradients(
    steps: int, batch: int, inputs: int, hidden: int, form: str, reverse: bool, dtype: torch.dtype
) -> None:
    for bias, retain, cotangent in ((True, 0, "both"), (False, 2, "both"), (True, 0, "output"), (True, 1, "h_n")):
        given, options = layer(form, steps, batch, inputs, hidden, bias)
        cotangents: list = [draw(*given[0].shape[:-1], hidden), draw(batch, hidden)]
        if cotangent != "both":
            cotangents[cotangent == "output"] = None
        want = results(composed, leaves_of(given, torch.float64), cotangents, reverse=reverse, **options)
        found = results(gru_layer, leaves_of(given, dtype), cotangents, retain, reverse=reverse, **options)
        for name in want:
            assert_close(name, found[name], want[name], 10 * TOLERANCES[dtype])


@pytest.mark.parametrize(
    "asked", [NAMES[2:], ("weight_ih",), ("weight_ih", "bias_ih"), ("x", "h0", "weight_ih")], ids="-".join
)
@each_form
def test_what_is_not_asked_for_changes_nothing(asked: tuple[str, ...], form: str) -> None:
    given, options = layer(form, 6, 5, 4, 21)
    cotangents = [draw(*given[0].shape[:-1], 21), draw(5, 21)]
    want = results(composed, leaves_of(given, torch.float64, asked), cotangents, **options)
    found = results(gru_layer, leaves_of(given, torch.float64, asked), cotangents, **options)
    assert want.keys() == found.keys()
    for name in want:
        assert_close(name, found[name], want[name], 1e-11)


@each_form
def test_inputs_of_any_strides(form: str) -> None:
    given, options = layer(form, 6, 5, 4, 21)
    cotangents = [draw(1).expand(*given[0].shape[:-1], 21), None]
    want = results(gru_layer, leaves_of(given, torch.float64), cotangents, **options)
    views = leaves_of(given, torch.float64)
    for name, part in views.items():
        assert part is not None
        wide = torch.empty(*part.shape[:-1], 2 * part.shape[-1], dtype=part.dtype)[..., ::2]
        views[name] = wide.copy_(part.detach()).requires_grad_()
    found = results(gru_layer, views, cotangents, **options)
    for name in want:
        assert_close(name, found[name], want[name], 1e-12)


@each_form
def test_the_last_backward_gives_the_bits_of_those_before(form: str) -> None:
    """Written over the gates or beside them."""
    given, options = layer(form, 8, 6, 5, 37)
    leaves = leaves_of(given, torch.float32)
    tensors = [leaf for leaf in leaves.values() if leaf is not None]
    output = gru_layer(*leaves.values(), **options)[0]  # type: ignore[arg-type, index]
    before = torch.autograd.grad(output.sum(), tensors, retain_graph=True)
    for name, one, other in zip(leaves, torch.autograd.grad(output.sum(), tensors), before, strict=True):
        assert_equal(name, one, other)


@each_form
@each_direction
def test_an_output_may_be_changed_before_backward(form: str, reverse: bool) -> None:
    given, options = layer(form, 5, 4, 3, 18)
    leaves = leaves_of(given, torch.float64)
    tensors = [leaf for leaf in leaves.values() if leaf is not None]
    output, _ = gru_layer(*leaves.values(), reverse=reverse, **options)  # type: ignore[arg-type, misc]
    loss = output.sum()
    want = torch.autograd.grad(loss, tensors, retain_graph=True)
    with torch.no_grad():
        output.mul_(2)
    for name, one, other in zip(leaves, torch.autograd.grad(loss, tensors), want, strict=True):
        assert_close(name, one, other, 1e-12)


def test_what_backward_does_not_read_may_be_changed_before_it() -> None:
    """As torch.nn.GRU allows it: of one step and of several."""
    for steps, module in ((steps, vssn.GRU(3, 4)) for steps in (1, 5)):
        x = torch.randn(steps, 2, 3)
        output, _ = module(x)
        want = torch.autograd.grad(output.sum(), list(module.parameters()), retain_graph=True)
        with torch.no_grad():
            module.bias_ih_l0.add_(1), module.bias_hh_l0.add_(1), module.weight_ih_l0.add_(1)
        for one, other in zip(torch.autograd.grad(output.sum(), list(module.parameters())), want, strict=True):
            assert_equal("gradient", one, other)
        module.weight_ih_l0.requires_grad_(False)
        output, _ = module(x)
        want = torch.autograd.grad(output.sum(), module.bias_ih_l0, retain_graph=True)
        x.zero_()
        assert_equal("gradient", *torch.autograd.grad(output.sum(), module.bias_ih_l0), *want)
        with torch.inference_mode():
            of_inference = torch.randn(steps, 2, 3)
        module(of_inference)[0].sum().backward()


def test_the_composed_form_refuses_what_was_changed() -> None:
    module = vssn.GRU(3, 4)
    output, _ = module(torch.randn(5, 2, 3))
    with torch.no_grad():
        module.bias_ih_l0.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        torch.autograd.grad(output.sum(), module.bias_hh_l0, create_graph=True)


def test_a_second_pass_through_a_graph_that_was_not_kept_is_an_error() -> None:
    output, _ = vssn.GRU(3, 4)(torch.randn(5, 2, 3))
    output.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


@each_form
def test_tensors_that_hooks_save_elsewhere(form: str) -> None:
    given, options = layer(form, 5, 4, 3, 18)
    cotangents = [draw(*given[0].shape[:-1], 18), draw(4, 18)]
    want = results(gru_layer, leaves_of(given, torch.float64), cotangents, **options)
    with torch.autograd.graph.save_on_cpu():
        found = results(gru_layer, leaves_of(given, torch.float64), cotangents, **options)
    for name in want:
        assert_equal(name, found[name], want[name])


def test_what_hooks_keep_stays_as_it_is() -> None:
    kept, module = [], vssn.GRU(3, 4)

    def pack(tensor: Tensor) -> Tensor:
        kept.append((tensor.detach(), tensor.detach().clone()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output, _ = module(torch.randn(5, 2, 3))
    output.sum().backward()
    for tensor, copy in kept:
        assert_equal("saved", tensor, copy)


@pytest.mark.parametrize("steps", [1, 5])
def test_hooks_may_bring_tensors_back_in_another_layout(steps: int) -> None:
    x, module = torch.randn(steps, 1, 3), vssn.GRU(3, 4)
    want = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))

    def unpack(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        output, _ = module(x)
    for one, other in zip(torch.autograd.grad(output.square().sum(), list(module.parameters())), want, strict=True):
        assert_close("gradient", one, other, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lengths_of_any_stride(dtype: torch.dtype) -> None:
    x, module = torch.randn(5, 3, 4, dtype=dtype), vssn.GRU(4, 6, dtype=dtype)
    lengths = torch.tensor([[5, 9], [2, 9], [3, 9]])[:, 0]
    found = []
    for given in (lengths, lengths.contiguous()):
        output, _ = module(x, lengths=given)
        found.append(torch.autograd.grad(output.float().square().sum(), list(module.parameters())))
    for one, other in zip(*found, strict=True):
        assert_equal("gradient", one, other)


def test_checkpointed_layers() -> None:
    module, x = vssn.GRU(3, 18, num_layers=2), torch.randn(5, 4, 3)
    want = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    output, _ = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(output.square().sum(), list(module.parameters())), want, strict=True):
        assert_close("gradient", one, other, 1e-6)


def test_what_else_is_asked_is_as_of_the_op() -> None:
    given, _ = layer("whole", 3, 2, 4, 3)
    leaves = [leaf for leaf in leaves_of(given, torch.float64).values() if leaf is not None]

    def run(*tensors: Tensor) -> Tensor:
        outputs = gru_layer(*tensors)  # type: ignore[arg-type]
        return (composed(*tensors) if outputs is None else outputs)[0]  # type: ignore[arg-type]

    (first,) = torch.autograd.grad(run(*leaves).square().sum(), leaves[3], create_graph=True)
    want = torch.autograd.grad(composed(*leaves)[0].square().sum(), leaves[3])[0]  # type: ignore[arg-type]
    assert_close("gradient", first, want, 1e-12)
    with pytest.raises(RuntimeError, match='use_backend\\("reference"\\)'):
        first.sum().backward()

    output = run(*leaves)
    batch = torch.randn(5, *output.shape, dtype=output.dtype)

    def back(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(output, leaves[0], cotangent, retain_graph=True)[0]

    want = torch.stack([back(cotangent) for cotangent in batch])
    (found,) = torch.autograd.grad(output, leaves[0], batch, is_grads_batched=True, retain_graph=True)
    assert_close("of a batch", found, want, 1e-12)
    assert_close("of a negative view", back(torch._neg_view(batch[0])), -want[0], 1e-12)
    assert_close("by vmap", torch.func.vmap(back)(batch), want, 1e-12)
    assert_close("traced", make_fx(back)(batch[0])(batch[1]), want[1], 1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close("under autocast", back(batch[0]), want[0], 1e-12)


@torch.no_grad()
def test_a_call_without_gradients_is_left_to_the_op() -> None:
    given, _ = layer("whole", 3, 2, 4, 3)
    assert gru_layer(*given) is None
    with torch.enable_grad():
        frozen = [part.requires_grad_(name != "weight_ih") for name, part in zip(NAMES, given, strict=True)]
        assert gru_layer(*frozen) is None  # x need not be kept


def test_tensors_that_do_not_fit_are_left_to_the_op() -> None:
    shapes = [(3, 2, 4), (2, 3), (9, 4), (9, 3), (9,), (9,)]
    for number, shape in enumerate(shapes):
        given = [draw(*shape).requires_grad_() for shape in shapes]
        given[number] = draw(*shape[:-1], shape[-1] + 1)
        assert gru_layer(*given) is None, number  # type: ignore[arg-type]
        given[number] = draw(*shape).float()
        assert gru_layer(*given) is None, number  # type: ignore[arg-type]
    given = [draw(*shape).requires_grad_() for shape in shapes]
    for wrong in (torch.tensor([1.0, 2.0]), torch.tensor([1]), torch.tensor([[1, 2]])):
        assert gru_layer(*given, lengths=wrong) is None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lengths"):
        gru_layer(*given, lengths=torch.tensor([1, 4]))  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [False, True])
def test_layers_are_nodes(packed: bool) -> None:
    x: Any = torch.randn(5, 2, 4)
    if packed:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]))
    output, _ = vssn.GRU(4, 3)(x)
    node = (output.data if packed else output).grad_fn
    names = []
    while node is not None:
        names.append(type(node).__name__)
        node = node.next_functions[0][0] if node.next_functions else None
    assert "_LayerBackward" in names, names
    assert not any("Addmm" in name or name.startswith("Gru") for name in names), names


PEAK = """
import sys, torch, vssn

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

module = getattr(vssn if sys.argv[1] == "ours" else torch.nn, "GRU")(8, 512)
x = torch.randn(200, 64, 8)
before = peak()  # not ru_maxrss, in which the process that started this one has a part
output, _ = module(x)
output.sum().backward()
print((peak() - before) * 1024 / (200 * 64 * 512 * 4))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak")
def test_the_memory_of_a_training_step() -> None:
    """In arrays [T, B, H]: 4 of gates, an output, its gradient expanded from one number, and what little comes beside
    them: 6.5. (Two nodes: 10.5. torch.nn.GRU: 13.4.)"""
    peaks = {}
    for module in ("ours", "torch"):
        command = [sys.executable, "-c", PEAK, module]
        peaks[module] = float(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert peaks["ours"] < 7.5, peaks
    assert peaks["ours"] < 0.6 * peaks["torch"], peaks
