"""torch.func's transforms, forward-mode AD and batched gradients through every op, the layer and the model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

import vssn
import vssn_kernels
from vssn_kernels.reference import gru as reference
from vssn_kernels.testing import (
    OPS,
    PADDED,
    RECURRENT,
    ROWS,
    RecordCalls,
    Sample,
    Target,
    assert_close,
    assert_equal,
    find_sample,
    targets,
)

each_op = pytest.mark.parametrize("op", OPS)
each_target = pytest.mark.parametrize("target", targets(torch.float64), ids=str)
Function = Callable[..., Tensor]


def functions(op: str, target: Target, name: str | None = None) -> tuple[Function, Function, tuple[Tensor, ...]]:
    """All outputs of the op in one vector, the same by the plain reference in PyTorch's own ops, and the tensors."""
    sample = find_sample(op, name or ROWS[op].rich).to(target.device, target.dtype)

    def run(plain: bool) -> Function:
        def function(*tensors: Tensor) -> Tensor:
            called: Sample = sample.replace(dict(zip(sample.tensors, tensors, strict=True)))
            outputs = called.run_plain() if plain else called.run(target.backend)
            return torch.cat([out.reshape(-1).sin() for out in outputs.values()])

        return function

    return run(False), run(True), tuple(sample.tensors.values())


def assert_same(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    """Two trees of tensors, leaf by leaf."""
    ours, theirs = tree_leaves(got), tree_leaves(want)
    assert len(ours) == len(theirs)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(f"leaf {number}", a, b, tolerance)


def stacked(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.stack((t, t / 2, t + 0.1)) for t in tensors)


def total(function: Function) -> Function:
    return lambda *tensors: function(*tensors).sum()


# ---- Each op -----------------------------------------------------------------------------------------


def by_grad(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return grad(total(function), tuple(range(len(tensors))))(*tensors)


def by_vjp(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    out, backward = vjp(function, *tensors)
    return out, backward(torch.linspace(-1, 1, len(out)).to(out))


def by_jacrev(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return jacrev(function, tuple(range(len(tensors))))(*tensors)


def by_jacfwd(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return jacfwd(function, 0)(*tensors), jacfwd(function, len(tensors) - 1)(*tensors)


def by_jvp(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return jvp(function, tensors, tuple(torch.cos(3 * t) for t in tensors))


def by_dual_numbers(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, torch.cos(3 * t)) for t in tensors]
        return tuple(forward_ad.unpack_dual(function(*duals)))


def by_vmap(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    some = (stacked(tensors)[0].movedim(0, -1), *tensors[1:])
    return vmap(function)(*stacked(tensors)), vmap(function, (-1, *(None,) * (len(tensors) - 1)))(*some)


def by_vmap_of_grad(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return vmap(grad(total(function), tuple(range(len(tensors)))))(*stacked(tensors))


def by_grad_of_vmap(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return grad(total(vmap(function)), tuple(range(len(tensors))))(*stacked(tensors))


def by_vmap_of_jvp(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return vmap(lambda *own: jvp(function, own, own)[1])(*stacked(tensors))


def by_grad_of_grad(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    inner = grad(total(function), len(tensors) - 1)
    return grad(lambda *own: inner(*own).sin().sum(), tuple(range(len(tensors))))(*tensors)


def by_hessian(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return hessian(total(function), len(tensors) - 1)(*tensors)


def by_vectorized_jacobian(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    return torch.autograd.functional.jacobian(function, tensors, vectorize=True)


def by_batched_gradients(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    several = torch.linspace(-1, 1, 3 * len(out)).to(out).view(3, -1)
    return torch.autograd.grad(out, leaves, several, is_grads_batched=True)


def by_create_graph(function: Function, tensors: tuple[Tensor, ...]) -> Any:
    leaves = [t.clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(function(*leaves).sum(), leaves, create_graph=True)


TRANSFORMS = (
    *(by_grad, by_vjp, by_jacrev, by_jacfwd, by_jvp, by_dual_numbers, by_vmap, by_vmap_of_grad, by_grad_of_vmap),
    *(by_vmap_of_jvp, by_grad_of_grad, by_hessian, by_vectorized_jacobian, by_batched_gradients, by_create_graph),
)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.__name__)
@each_op
@each_target
def test_every_transform_of_every_op(op: str, transform: Callable[..., Any], target: Target) -> None:
    ours, plain, tensors = functions(op, target)
    assert_same(transform(ours, tensors), transform(plain, tensors))


@pytest.mark.parametrize("op", PADDED)
@each_target
def test_lengths_of_each_sample(op: str, target: Target) -> None:
    """vmap over lengths too, alone and under a gradient and a tangent."""
    sample = find_sample(op, ROWS[op].rich).to(target.device, target.dtype)
    lengths = sample.options["lengths"]
    several = torch.stack((lengths, lengths.flip(0), lengths // 2))
    first = next(iter(sample.tensors))

    def run(plain: bool) -> Function:
        def function(tensor: Tensor, lengths: Tensor) -> Tensor:
            called = sample.replace({first: tensor}, lengths=lengths)
            return sum(
                out.sin().sum() for out in (called.run_plain() if plain else called.run(target.backend)).values()
            )

        return function

    x = stacked((sample.tensors[first],))[0]
    for way in (
        lambda f: vmap(f)(x, several),
        lambda f: vmap(grad(f))(x, several),
        lambda f: vmap(lambda x, n: jvp(lambda x: f(x, n), (x,), (x,)))(x, several),
    ):
        assert_same(way(run(False)), way(run(True)))


@each_op
@each_target
def test_wrong_arguments_are_named_inside_transforms(op: str, target: Target) -> None:
    ours, _, tensors = functions(op, target)
    wrong = (tensors[0][..., :-1], *tensors[1:])
    for transform in (by_grad, by_jvp, by_vmap):
        with pytest.raises(ValueError, match=f"^{op}: .* must have"):
            transform(ours, wrong)


@each_op
@each_target
def test_a_second_backward_is_right_or_says_what_to_do(op: str, target: Target) -> None:
    """With one gradient of torch.func inside autograd, and with create_graph=True: the first order is had."""
    ours, plain, tensors = functions(op, target)
    refused = op in RECURRENT and target.backend != "reference"

    def once(function: Function, last: Tensor) -> Tensor:
        return grad(total(function), len(tensors) - 1)(*tensors[:-1], last).sin().sum()

    results = []
    for function in (ours, plain):
        last = tensors[-1].clone().requires_grad_()
        value = once(function, last)
        if function is ours and refused:
            with pytest.raises(RuntimeError, match=rf'for a second derivative of {op}.*use_backend\("reference"\)'):
                value.backward()
            continue
        value.backward()
        results.append((value.detach(), last.grad))
    if not refused:
        assert_same(*results)


@pytest.mark.parametrize("op", RECURRENT)
@each_target
def test_a_dual_gradient_is_right_or_says_what_to_do(op: str, target: Target) -> None:
    """Forward outside of the dual level, backward inside."""
    names = {"gru_sequence": "lengths", "gru_packed": "ended", "posterior_sequence": "prior_tanh"}
    name = names.get(op, ROWS[op].rich)
    ours, plain, tensors = functions(op, target, name)

    def tangents(function: Function) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = function(*leaves)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(torch.ones_like(out), torch.linspace(0, 1, len(out)).to(out))
            grads = torch.autograd.grad(out, leaves, dual)
            return [forward_ad.unpack_dual(one).tangent for one in grads]

    if target.backend == "reference":
        assert_same(tangents(ours), tangents(plain))
    else:
        with pytest.raises(RuntimeError, match=rf'{op}_backward has no derivative in forward.*use_backend\("ref'):
            tangents(ours)


# ---- Tensors that ask the dispatcher for more ------------------------------------------------------------


def negative(tensor: Tensor) -> Tensor:
    """The same values, but the memory holds them with the other sign."""
    lazy = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert lazy.is_neg()
    return lazy


class Named(Tensor):
    """A subclass without anything of its own."""


@each_op
@each_target
def test_tensors_whose_memory_is_not_their_values(op: str, target: Target) -> None:
    """A sign that is yet to be applied, zeros without memory, subclasses: as inputs and as incoming gradients."""
    ours, _, tensors = functions(op, target)
    want_out = ours(*tensors)
    want = torch.autograd.grad(
        ours(*(leaves := [t.clone().requires_grad_() for t in tensors])), leaves, torch.ones_like(want_out)
    )
    for other in (negative, lambda t: t.as_subclass(Named)):
        leaves = [other(t.clone()).requires_grad_() for t in tensors]
        out = ours(*leaves)
        grads = torch.autograd.grad(out, leaves, other(torch.ones_like(want_out)))
        assert_equal("output", out.detach().as_subclass(Tensor), want_out)
        assert_same([one.as_subclass(Tensor) for one in grads], want, 1e-14)
    zero = torch._efficientzerotensor(tensors[0].shape, dtype=target.dtype, device=target.device)
    assert_equal("zeros", ours(zero, *tensors[1:]), ours(torch.zeros_like(tensors[0]), *tensors[1:]))


# ---- Compiled --------------------------------------------------------------------------------------------


@pytest.mark.one_in(4)
@pytest.mark.parametrize("transform", [by_jvp, by_grad, by_vmap], ids=lambda t: t.__name__)
@each_op
@each_target
def test_transforms_inside_compiled_code(op: str, transform: Callable[..., Any], target: Target) -> None:
    ours, plain, tensors = functions(op, target)
    compiled = torch.compile(lambda *own: transform(ours, own), fullgraph=True, backend="aot_eager")
    assert_same(compiled(*tensors), transform(plain, tensors))


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@each_target
def test_compiled_gru_inside_and_around_forward_mode(frozen: bool, target: Target) -> None:
    """Under a compiler the op meets a dual level that its graph enters: the tangent is right."""
    ours, theirs = gru_pair(target)
    ours.requires_grad_(not frozen)
    x, tangent = (torch.randn(5, 2, 3, dtype=target.dtype, device=target.device) for _ in range(2))

    def inside(x: Tensor, tangent: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(ours(forward_ad.make_dual(x, tangent))[0]).tangent

    with vssn_kernels.use_backend(target.backend):
        _, want = jvp(lambda x: theirs(x)[0], (x,), (tangent,))
        assert_same(torch.compile(inside, backend="aot_eager")(x, tangent), want)
        compiled = torch.compile(lambda x: jvp(lambda x: ours(x)[0], (x,), (tangent,))[1], backend="aot_eager")
        assert_same(compiled(x), want)
        if frozen:  # else PyTorch refuses: what it compiles for training has no forward mode
            outside = torch.compile(lambda x: ours(x)[0], backend="aot_eager")
            with forward_ad.dual_level():
                got = forward_ad.unpack_dual(outside(forward_ad.make_dual(x, tangent))).tangent
            assert_same(got, want)


@each_target
def test_compiled_gradient_of_a_module_that_is_trained(target: Target) -> None:
    """The compiler also traces the second derivative by the weights, which nobody asks for."""
    ours, theirs = gru_pair(target)
    x = torch.randn(5, 2, 3, dtype=target.dtype, device=target.device)
    with vssn_kernels.use_backend(target.backend):
        compiled = torch.compile(grad(lambda x: ours(x)[0].sin().sum()), fullgraph=True, backend="aot_eager")
        assert_same(compiled(x).detach(), grad(lambda x: theirs(x)[0].sin().sum())(x).detach())


# ---- Modules ---------------------------------------------------------------------------------------------


def gru_pair(target: Target) -> tuple[nn.Module, nn.Module]:
    """vssn.GRU and torch.nn.GRU with the same weights."""
    ours = vssn.GRU(3, 4, dtype=target.dtype, device=target.device)
    theirs = nn.GRU(3, 4, dtype=target.dtype, device=target.device)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


class Equations(nn.GRU):
    """torch.nn.GRU in ops that PyTorch has batching rules for: for aten::gru it has none."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates_x = nn.functional.linear(x, self.weight_ih_l0, self.bias_ih_l0)
        h0 = x.new_zeros(x.shape[1], self.hidden_size)
        output, h_n = reference.gru_sequence(gates_x, h0, self.weight_hh_l0, self.bias_hh_l0)
        return output, h_n[None]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.__name__)
@each_target
def test_gru_beside_torchs(transform: Callable[..., Any], target: Target) -> None:
    ours, theirs = gru_pair(target)
    if transform in (by_vmap, by_grad_of_vmap, by_vmap_of_jvp, by_jacfwd, by_hessian):
        theirs.__class__ = Equations
    x = torch.randn(4, 2, 3, dtype=target.dtype, device=target.device)
    names, weights = zip(*ours.named_parameters(), strict=True)
    weights = tuple(weight.detach() for weight in weights)

    def through(module: nn.Module) -> Function:
        def function(x: Tensor, *own: Tensor) -> Tensor:
            output, h_n = functional_call(module, dict(zip(names, own, strict=True)), (x,))
            return torch.cat((output.reshape(-1), h_n.reshape(-1)))

        return function

    with vssn_kernels.use_backend(target.backend):
        assert_same(transform(through(ours), (x, *weights)), transform(through(theirs), (x, *weights)))


MODELS = {
    "bernoulli": {"likelihood": "bernoulli"},
    "residual": {"likelihood": "gaussian", "residual_posterior": True},
    "learnt_start": {"likelihood": "gaussian", "learn_initial_state": True},
}


def model_bound(name: str, target: Target) -> tuple[Callable[..., Tensor], dict[str, Tensor], Tensor]:
    """The ELBO of given noise as a function of the parameters and x; a batch with padding."""
    model = vssn.VSSN(4, 5, 3, 2, **MODELS[name]).to(target.device, target.dtype)
    x = torch.rand(5, 3, 4, dtype=target.dtype, device=target.device)
    x = x.round() if name == "bernoulli" else x
    noise = tuple(torch.randn(5, 3, size, dtype=target.dtype, device=target.device) for size in (2, 3))
    lengths = torch.tensor([5, 2, 4], device=target.device)

    def bound(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x,), {"noise": noise, "lengths": lengths}).elbo.sum()

    return bound, {n: p.detach().clone() for n, p in model.named_parameters()}, x


@pytest.mark.parametrize("name", MODELS)
@each_target
def test_model(name: str, target: Target) -> None:
    """Tangents, gradients and gradients of each sample of the whole ELBO."""
    bound, parameters, x = model_bound(name, target)
    leaves = {n: p.clone().requires_grad_() for n, p in parameters.items()}
    tangent = {n: torch.randn_like(p) for n, p in parameters.items()}
    with vssn_kernels.use_backend(target.backend):
        want = dict(zip(leaves, torch.autograd.grad(bound(leaves, x), list(leaves.values())), strict=True))
        directional = sum((want[n] * tangent[n]).sum() for n in want)
        _, got = jvp(lambda p: bound(p, x), (parameters,), (tangent,))
        assert_close("tangent", got, directional, 1e-10)
        step = {n: 1e-6 * t for n, t in tangent.items()}
        up, down = ({n: p + sign * step[n] for n, p in parameters.items()} for sign in (1, -1))
        assert_close("finite difference", (bound(up, x) - bound(down, x)) / 2e-6, got, 1e-6)
        for transform in (grad, jacrev, jacfwd):
            assert_same(transform(bound)(parameters, x), want)
        others = torch.stack((x, 1 - x))
        each = vmap(grad(bound), (None, 0))(parameters, others)
        for number, one in enumerate(others):
            assert_same({n: g[number] for n, g in each.items()}, grad(bound)(parameters, one))
        if name != "residual":  # one is enough: compiling takes long
            return
        compiled = torch.compile(lambda p, t: jvp(lambda p: bound(p, x), (p,), (t,))[1], backend="aot_eager")
        assert_close("compiled tangent", compiled(parameters, tangent), directional, 1e-10)


@each_target
def test_frozen_model(target: Target) -> None:
    """No weight needs a gradient, and x has a tangent."""
    bound, parameters, x = model_bound("residual", target)
    leaf = x.clone().requires_grad_()
    with vssn_kernels.use_backend(target.backend):
        (want,) = torch.autograd.grad(bound(parameters, leaf), leaf)
        with torch.no_grad():
            _, tangent = jvp(lambda x: bound(parameters, x), (x,), (torch.ones_like(x),))
        assert_close("tangent", tangent, want.sum(), 1e-10)


@each_target
def test_layer(target: Target) -> None:
    layer = vssn.VSSNLayer(4, 5, 3, 2).to(target.device, target.dtype)
    x = torch.randn(5, 3, 4, dtype=target.dtype, device=target.device)
    noise = tuple(torch.randn(5, 3, size, dtype=target.dtype, device=target.device) for size in (2, 3))

    def function(x: Tensor) -> Tensor:
        result = layer(x, noise=noise)
        return result.output.sin().sum() + result.kl.sum()

    leaf = x.clone().requires_grad_()
    with vssn_kernels.use_backend(target.backend):
        (want,) = torch.autograd.grad(function(leaf), leaf)
        assert_same(grad(function)(x).detach(), want)
        assert_same(jacfwd(function)(x).detach(), want)
        assert_close("values", vmap(function)(torch.stack((x, -x)))[1].detach(), function(-x).detach(), 1e-10)


def test_noise_that_vmap_draws() -> None:
    """As PyTorch has it: refused unless `randomness` says whether the samples share it."""
    model = vssn.VSSN(4, 5, 3, 2)
    several = torch.rand(5, 3, 4).round().expand(2, -1, -1, -1)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: model(x).elbo)(several)
    same = vmap(lambda x: model(x).elbo, randomness="same")(several)
    assert torch.equal(same[0], same[1])
    different = vmap(lambda x: model(x).elbo, randomness="different")(several)
    assert not torch.equal(different[0], different[1])


# ---- The ordinary path, and what counts ------------------------------------------------------------------


@each_op
@each_target
def test_one_level_of_gradients_runs_the_kernel(op: str, target: Target) -> None:
    ours, _, tensors = functions(op, target)
    with RecordCalls() as record:
        by_grad(ours, tensors)
    assert record.calls[0][0] in (op, "mlp")


@each_op
@each_target
def test_flops_are_those_of_the_products(op: str, target: Target) -> None:
    """Forward and backward, as FlopCounterMode counts the plain reference; and no more for what is not needed."""
    from torch.utils.flop_counter import FlopCounterMode

    def count(function: Callable[[], Any]) -> tuple[int, Any]:
        with FlopCounterMode(display=False) as counter:
            result = function()
        return counter.get_total_flops(), result

    # The plain gru_packed pads: it has the same products where there is nothing to pad.
    names = {"gru_sequence": {"lengths_reverse", "plain"}, "gru_packed": {"full"}}
    for name in names.get(op, {ROWS[op].rich}):
        ours, plain, tensors = functions(op, target, name)
        for needs in ([True] * len(tensors), [number != 2 for number in range(len(tensors))]):
            leaves = [t.clone().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
            counts = []
            for function in (ours, plain):
                forward, out = count(lambda function=function, leaves=leaves: function(*leaves).sum())
                backward, _ = count(out.backward)
                counts.append((forward, backward))
            assert counts[0] == counts[1]


def test_counting_costs_nothing_until_it_is_asked_for() -> None:
    """The counter's module imports Triton: it is not ours to import, and it knows our ops before or after."""
    code = """
import sys
import torch
for order in ("before", "after"):
    if order == sys.argv[1]:
        import torch.utils.flop_counter
    elif "vssn_kernels" not in sys.modules:
        import vssn_kernels
        assert sys.argv[1] == "before" or "torch.utils.flop_counter" not in sys.modules
import vssn_kernels, torch.utils.flop_counter
print(torch.ops.vssn.gru_sequence in torch.utils.flop_counter.flop_registry, torch.utils.flop_counter.__loader__)
"""
    for order in ("before", "after"):
        result = subprocess.run(
            [sys.executable, "-c", code, order], cwd=Path(__file__).parent.parent, capture_output=True, text=True
        )
        assert result.stdout.startswith("True"), result.stdout + result.stderr
        assert "_AtImport" not in result.stdout
