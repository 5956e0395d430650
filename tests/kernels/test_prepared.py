"""Weights packed once: the step of the GRU and the layers around it give what the ops give, and leave to them what is
not theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vssn_kernels
from vssn_kernels import gaussian_mlp, gru_sequence, mlp, split_linear
from vssn_kernels.ops.prepared import prepare_gru, prepare_mlp
from vssn_kernels.testing import assert_close, assert_equal, poisoned_empty

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def refuse(*_: Tensor) -> Any:
    raise AssertionError("the weights were not packed")


def exact(function: Callable[..., Any], *given: Any, **options: Any) -> Any:
    return function(*given, backend="reference", **options)


@pytest.mark.parametrize(("batch", "hidden"), [(1, 1), (1, 15), (2, 64), (3, 97), (13, 33), (40, 130), (0, 5)])
@pytest.mark.parametrize("threads", [1, 2, 3])
@each_dtype
def test_a_step_is_that_of_the_op(batch: int, hidden: int, threads: int, dtype: torch.dtype) -> None:
    gates_x, h = draw(batch, 3 * hidden), draw(batch, hidden)
    weight, bias = draw(3 * hidden, hidden) / hidden**0.5, draw(3 * hidden) / 2
    _, want = exact(gru_sequence, gates_x[None], h, weight, bias)
    step = prepare_gru(weight.to(dtype), bias.to(dtype), refuse)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad(), poisoned_empty():
            found = step(gates_x.to(dtype), h.to(dtype))
            assert_close("h", found, want, TOLERANCES[dtype])
            torch.set_num_threads(1)
            assert_equal("h by one thread", step(gates_x.to(dtype), h.to(dtype)), found)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [0, 1, 3, 13, 100])
@pytest.mark.parametrize(("widths", "hidden", "out"), [((3,), 1, 2), ((5, 0, 17), 97, 2), ((64, 33), 130, 66)])
@each_dtype
def test_layers_are_those_of_the_ops(
    rows: int, widths: tuple[int, ...], hidden: int, out: int, dtype: torch.dtype
) -> None:
    inputs = [draw(2, rows, width) for width in widths]
    weights, bias = [draw(hidden, width) / sum(widths) ** 0.5 for width in widths], draw(hidden)
    weight_out, bias_out = draw(out, hidden) / hidden**0.5, draw(out)
    rest = (weight_out, bias_out)
    one = exact(split_linear, inputs, weights, bias)
    two = exact(mlp, inputs, weights, bias, *rest, activation="silu")
    mu, logvar = exact(gaussian_mlp, inputs, weights, bias, *rest, activation="relu", min_logvar=-2.0)
    cast = [x.to(dtype) for x in inputs]
    own = ([w.to(dtype) for w in weights], bias.to(dtype))
    last = tuple(part.to(dtype) for part in rest)
    with torch.no_grad(), poisoned_empty():
        assert_close("out", prepare_mlp(widths, *own, None, None, refuse)(*cast), one, TOLERANCES[dtype])
        run = prepare_mlp(widths, [torch.cat(own[0], 1)], own[1], *last, refuse, activation="silu")
        assert_close("out", run(*cast), two, TOLERANCES[dtype])
        run = prepare_mlp(widths, *own, *last, refuse, activation="relu", min_logvar=-2.0)
        for name, found, want in zip(("mu", "logvar"), run(*cast), (mu, logvar), strict=True):
            assert_close(name, found, want, TOLERANCES[dtype])


def test_strides_of_the_inputs_are_free() -> None:
    wide, h = draw(3, 2 * 15).float()[:, ::2], draw(5, 3).float().T
    weight, bias = draw(15, 5).float(), draw(15).float()
    _, want = gru_sequence(wide[None].contiguous(), h.contiguous(), weight, bias)
    with torch.no_grad():
        assert_close("h", prepare_gru(weight, bias, refuse)(wide, h), want, 1e-6)
        assert_close("h", prepare_gru(weight.T.contiguous().T, bias, refuse)(wide, h), want, 1e-6)
        x = draw(4, 6).float().T
        linear = prepare_mlp((4,), [weight[:, :4]], bias, None, None, refuse)
        assert_close("out", linear(x), split_linear((x.contiguous(),), weight[:, :4].contiguous(), bias), 1e-6)


def test_what_is_prepared_keeps_the_weights_as_they_were() -> None:
    gates_x, h, weight, bias = draw(2, 9), draw(2, 3), draw(9, 3), draw(9)
    _, want = gru_sequence(gates_x[None], h, weight, bias)
    step = prepare_gru(weight, bias, refuse)
    weight.zero_(), bias.zero_()
    with torch.no_grad():
        assert_close("h", step(gates_x, h), want, 1e-12)


@pytest.mark.parametrize("case", ["gradients", "backend", "autocast", "dtype", "shape", "vmap", "mode"])
def test_other_calls_are_left_to_the_op(case: str) -> None:
    weight, bias = draw(9, 3), draw(9)
    gates_x, h = draw(2, 9), draw(2, 3)
    step = prepare_gru(weight, bias, lambda gates_x, h: "plain")  # type: ignore[arg-type, return-value]
    linear = prepare_mlp((3,), [weight], bias, None, None, lambda h: "plain")
    with torch.set_grad_enabled(case == "gradients"):
        if case == "backend":
            with vssn_kernels.use_backend("reference"):
                found = step(gates_x, h), linear(h)
        elif case == "autocast":
            with torch.autocast("cpu"):
                found = step(gates_x, h), linear(h)
        elif case == "dtype":
            found = step(gates_x.float(), h.float()), linear(h.float())
        elif case == "shape":
            found = step(gates_x[:1], h), linear(gates_x)
        elif case == "vmap":
            seen = []
            torch.vmap(lambda h: (seen.append((step(h[..., :0], h), linear(h))), h)[1])(h[None])
            found = seen[0]
        elif case == "mode":
            with FlopCounterMode(display=False):
                found = step(gates_x, h), linear(h)
        else:
            found = step(gates_x, h), linear(h)
    assert found == ("plain", "plain")


def test_other_backends_and_halves_are_not_prepared() -> None:
    def plain(*_: Tensor) -> Any:
        return None

    weight, bias = draw(9, 3), draw(9)
    with vssn_kernels.use_backend("reference"):
        assert prepare_gru(weight, bias, plain) is plain
    assert prepare_gru(weight.to("meta"), bias.to("meta"), plain) is plain
    assert prepare_mlp((3,), [weight.half()], bias.half(), None, None, plain) is plain
