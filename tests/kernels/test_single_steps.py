"""Single steps: with weights packed once, of a whole layer, and by products of PyTorch: what the ops give, and left to
them where more is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import vssn
import vssn_kernels
from vssn_kernels import gaussian_mlp, gru_sequence, mlp, split_linear
from vssn_kernels.backend.cpu import gru_layer as cpu_layer
from vssn_kernels.backend.cpu.gru import TURNED_FROM, product_by_library, turns_product
from vssn_kernels.backend.cpu.prepared import PreparedGru, PreparedMlp
from vssn_kernels.ops import fast_path
from vssn_kernels.ops import gru_layer as layer_ops
from vssn_kernels.ops.gru_layer import gru_layer, gru_layer_step
from vssn_kernels.ops.prepared import prepare_gru, prepare_mlp
from vssn_kernels.ops.program import takes
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
    for dtype in (torch.float16, torch.bfloat16):
        assert prepare_gru(weight.to(dtype), bias.to(dtype), plain) is plain
        assert prepare_mlp((3,), [weight.to(dtype)], bias.to(dtype), None, None, plain) is plain


# ---- Single steps of the ops ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "rows", "by_library"),
    [(5, 31, False), (5, 32, True), (511, 31, False), (511, 32, True), (512, 15, False), (512, 16, True)],
)
def test_the_rule_whose_product_a_step_takes(hidden: int, rows: int, by_library: bool) -> None:
    assert product_by_library(rows, hidden) == by_library


@pytest.mark.parametrize(
    ("rows", "width", "turned"),
    [
        (15, TURNED_FROM, False),
        (16, TURNED_FROM - 1, False),
        (16, TURNED_FROM, True),
        (48, 2000, True),
        (49, 2000, False),
    ],
)
def test_the_rule_in_which_order_pytorchs_product_runs(rows: int, width: int, turned: bool) -> None:
    assert turns_product(rows, width) == turned


def test_the_width_from_which_a_product_is_turned() -> None:
    assert (1024 if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2") else 512) == TURNED_FROM


@pytest.mark.parametrize(("batch", "hidden"), [(31, 37), (33, 37), (64, 16), (40, 1), (17, 515), (50, 515)])
@pytest.mark.parametrize("reverse", [False, True])
@each_dtype
def test_a_sequence_of_one_step(batch: int, hidden: int, reverse: bool, dtype: torch.dtype) -> None:
    """Values and every gradient, on both sides of the rule."""
    tensors = draw(1, batch, 3 * hidden), draw(batch, hidden), draw(3 * hidden, hidden) / hidden**0.5, draw(3 * hidden)
    weights = draw(1, batch, hidden), draw(batch, hidden)
    results = []
    for backend, of in (("reference", torch.float64), ("cpu", dtype)):
        leaves = [tensor.to(of).requires_grad_() for tensor in tensors]
        with poisoned_empty():
            outputs = gru_sequence(*leaves, reverse=reverse, backend=backend)
            loss = sum((output * weight.to(of)).sum() for output, weight in zip(outputs, weights, strict=True))
            results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    names = ("output", "h_n", "gates_x", "h0", "weight_hh", "bias_hh")
    for name, found, want in zip(names, results[1], results[0], strict=True):
        assert_close(name, found, want, 10 * TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("rows", "hidden", "by_library"),
    [
        (0, 1, False),
        (16, 500, False),
        (17, 150, False),
        (17, 151, True),
        (32, 80, False),
        (32, 81, True),
        (161, 16, True),
    ],
)
@torch.no_grad()
def test_the_rule_whose_products_a_layers_step_takes(
    rows: int, hidden: int, by_library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is the one that the step goes by."""
    assert cpu_layer.step_by_library(rows, hidden) == by_library
    seen = []

    def product(*given: Tensor | None) -> Tensor:
        seen.append(given)
        return cpu_product(*given)  # type: ignore[arg-type]

    cpu_product = cpu_layer.product
    monkeypatch.setattr(cpu_layer, "product", product)
    given = [part.float() for part in layer(rows, 3, hidden, True) if part is not None]
    assert gru_layer_step(*given) is not None  # type: ignore[arg-type]
    assert len(seen) == by_library


@pytest.mark.parametrize("batch", [0, 1, 2, 13, 16, 17, 32, 33, 70])
@pytest.mark.parametrize(("inputs", "hidden"), [(1, 1), (5, 33), (97, 130), (513, 7), (3, 515)])
@pytest.mark.parametrize("bias", [False, True])
@each_dtype
@torch.no_grad()
def test_a_layers_step(batch: int, inputs: int, hidden: int, bias: bool, dtype: torch.dtype) -> None:
    x, h = draw(1, batch, inputs), draw(batch, hidden)
    weight_ih, weight_hh = draw(3 * hidden, inputs) / inputs**0.5, draw(3 * hidden, hidden) / hidden**0.5
    biases = (draw(3 * hidden), draw(3 * hidden)) if bias else (None, None)
    gates_x = torch.nn.functional.linear(x, weight_ih, biases[0])
    want = exact(gru_sequence, gates_x, h, weight_hh, biases[1] if bias else weight_hh.new_zeros(3 * hidden))
    given = [None if part is None else part.to(dtype) for part in (x, h, weight_ih, weight_hh, *biases)]
    with poisoned_empty():
        found = gru_layer_step(*given)  # type: ignore[arg-type]
    assert found is not None
    assert found[0].data_ptr() != found[1].data_ptr() or not batch
    for name, one, other in zip(("output", "h_n"), found, want, strict=True):
        assert_close(name, one, other, TOLERANCES[dtype])


def layer(batch: int, inputs: int, hidden: int, bias: bool) -> list[Tensor | None]:
    """What a layer's step takes."""
    biases = [draw(3 * hidden) / 2, draw(3 * hidden) / 2] if bias else [None, None]
    weights = [draw(3 * hidden, size) / size**0.5 for size in (inputs, hidden)]
    return [draw(1, batch, inputs), draw(batch, hidden), *weights, *biases]


def exact_layer(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor, Tensor]:
    bias = weight_hh.new_zeros(len(weight_hh)) if bias_hh is None else bias_hh
    return exact(gru_sequence, torch.nn.functional.linear(x, weight_ih, bias_ih), h, weight_hh, bias)


NAMES = ("x", "h", "weight_ih", "weight_hh", "bias_ih", "bias_hh")


def leaves_of(given: list[Tensor | None], dtype: torch.dtype, asked: set[str]) -> dict[str, Tensor | None]:
    return {
        name: None if part is None else part.to(dtype).requires_grad_(name in asked)
        for name, part in zip(NAMES, given, strict=True)
    }


@pytest.mark.parametrize("batch", [0, 1, 13, 17, 32, 33, 70])
@pytest.mark.parametrize(("inputs", "hidden"), [(1, 1), (5, 33), (97, 130), (513, 7), (3, 515)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "asked", [NAMES, NAMES[2:], NAMES[:2], ("bias_hh", "h")], ids=["all", "weights", "x, h", "two"]
)
@each_dtype
def test_the_gradients_of_a_layers_step(
    batch: int, inputs: int, hidden: int, bias: bool, asked: tuple[str, ...], dtype: torch.dtype
) -> None:
    given = layer(batch, inputs, hidden, bias)
    cotangents = draw(1, batch, hidden), draw(batch, hidden)
    for which in ((True, True), (True, False), (False, True)):
        found = []
        for function, of in ((exact_layer, torch.float64), (gru_layer_step, dtype)):
            leaves = leaves_of(given, of, set(asked))
            with poisoned_empty():
                outputs = function(*leaves.values())  # type: ignore[operator]
                assert outputs is not None
                used = [(out, c.to(of)) for out, c, use in zip(outputs, cotangents, which, strict=True) if use]
                wanted = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
                grads = torch.autograd.grad([out for out, _ in used], list(wanted.values()), [c for _, c in used])
            found.append({"output": outputs[0], "h_n": outputs[1], **dict(zip(wanted, grads, strict=True))})
        for name, want in found[0].items():
            assert_close(name, found[1][name], want, 10 * TOLERANCES[dtype])


def test_a_layers_step_is_one_node() -> None:
    output, _ = vssn.GRU(4, 3)(torch.randn(1, 2, 4))
    assert "LayerStep" in type(output.grad_fn).__name__


def test_outputs_of_a_layers_step_may_be_changed_before_backward() -> None:
    leaves = leaves_of(layer(2, 4, 3, True), torch.float64, set(NAMES))
    outputs = gru_layer_step(*leaves.values())  # type: ignore[arg-type]
    assert outputs is not None
    wanted = list(leaves.values())
    want = torch.autograd.grad(outputs[0].sum(), wanted, retain_graph=True)  # type: ignore[arg-type]
    loss = outputs[0].sum()
    with torch.no_grad():
        outputs[0].mul_(2), outputs[1].zero_()
    for found, of in zip(torch.autograd.grad(loss, wanted), want, strict=True):  # type: ignore[arg-type]
        assert_equal("gradient", found, of)


def test_what_else_is_asked_of_a_layers_step_is_as_of_the_op() -> None:
    """Second derivatives are refused in the op's words; batches of gradients, forward mode and torch.func are had."""
    leaves = [leaf for leaf in leaves_of(layer(2, 4, 3, True), torch.float64, set(NAMES)).values() if leaf is not None]

    def run(*given: Tensor) -> Tensor:
        outputs = gru_layer_step(*given)  # type: ignore[arg-type]
        return (exact_layer(*given) if outputs is None else outputs)[0]  # type: ignore[arg-type]

    (first,) = torch.autograd.grad(run(*leaves).square().sum(), leaves[3], create_graph=True)
    want = torch.autograd.grad(exact_layer(*leaves)[0].square().sum(), leaves[3])[0]  # type: ignore[arg-type]
    assert_close("gradient", first, want, 1e-12)
    with pytest.raises(RuntimeError, match='use_backend\\("reference"\\)'):
        first.sum().backward()

    output = run(*leaves)
    batch = torch.randn(5, *output.shape, dtype=output.dtype)
    (found,) = torch.autograd.grad(output, leaves[2], batch, is_grads_batched=True, retain_graph=True)
    for one, cotangent in zip(found, batch, strict=True):
        assert_close("of a batch", one, torch.autograd.grad(output, leaves[2], cotangent, retain_graph=True)[0], 1e-12)

    # What comes at backward alone: a sign bit, a transform, a tracer.
    want = [torch.autograd.grad(output, leaves[0], cotangent, retain_graph=True)[0] for cotangent in batch]

    def back(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(output, leaves[0], cotangent, retain_graph=True)[0]

    assert_close("of a negative view", back(torch._neg_view(batch[0])), -want[0], 1e-12)
    assert_close("by vmap", torch.func.vmap(back)(batch), torch.stack(want), 1e-12)
    assert_close("traced", make_fx(back)(batch[0])(batch[1]), want[1], 1e-12)

    direction = torch.randn_like(leaves[2])
    plain = [leaf.detach() for leaf in leaves]

    def of_weight(weight: Tensor) -> Tensor:
        return run(*plain[:2], weight, *plain[3:])

    _, want = torch.func.jvp(lambda weight: exact_layer(*plain[:2], weight, *plain[3:])[0], (plain[2],), (direction,))
    for no_gradients in (False, True):
        with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(not no_gradients):
            dual = torch.autograd.forward_ad.make_dual(plain[2], direction)
            tangent = torch.autograd.forward_ad.unpack_dual(of_weight(dual)).tangent
        assert_close("tangent", tangent, want, 1e-12)
    back = torch.func.grad(lambda weight: of_weight(weight).square().sum())(plain[2])
    want = torch.autograd.grad(exact_layer(*leaves)[0].square().sum(), leaves[2])[0]  # type: ignore[arg-type]
    assert_close("torch.func.grad", back, want, 1e-12)


@pytest.mark.parametrize("batch", [1, 32, 70])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_in_bfloat16_is_the_ops_own(batch: int, state: torch.dtype) -> None:
    """There are no kernels of single steps for it, on either side of the rule; a float32 state stays one."""
    shapes = (1, batch, 99), (batch, 33), (99, 33), (99,)
    tensors = [(draw(*shape) / 4).bfloat16() for shape in shapes]
    tensors[1] = tensors[1].to(state)
    results = []
    for backend, of in (("reference", torch.float64), ("cpu", None)):
        leaves = [(tensor if of is None else tensor.to(of)).requires_grad_() for tensor in tensors]
        outputs = gru_sequence(*leaves, backend=backend)
        loss = sum((output.double() ** 2).sum() for output in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for number, (found, want) in enumerate(zip(results[1], results[0], strict=True)):
        assert found.dtype == (state if number in (1, 3) else torch.bfloat16)
        assert_close(f"result {number}", found, want, 2e-2)
    with torch.no_grad():
        x, weight_ih = (draw(*shape).bfloat16() for shape in ((1, batch, 7), (99, 7)))
        assert gru_layer_step(x, tensors[1].bfloat16(), weight_ih, tensors[2], tensors[3], tensors[3]) is None


@pytest.mark.parametrize("threads", [2, 3])
@torch.no_grad()
def test_a_layers_step_has_the_same_bits_by_every_number_of_threads(threads: int) -> None:
    given = [draw(*shape).float() for shape in ((1, 5, 70), (5, 97), (291, 70), (291, 97), (291,), (291,))]
    before = torch.get_num_threads()
    found = []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            found.append(gru_layer_step(*given))  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
    assert_equal("h_n", found[1][1], found[0][1])


@torch.no_grad()
def test_tensors_that_do_not_fit_are_left_to_the_op() -> None:
    shapes = [(1, 2, 4), (2, 3), (9, 4), (9, 3), (9,), (9,)]
    for number, shape in enumerate(shapes):
        given = [draw(*shape) for shape in shapes]
        given[number] = draw(*shape[:-1], shape[-1] + 1)
        assert gru_layer_step(*given) is None, number  # type: ignore[arg-type]
        given[number] = draw(*shape).float()
        assert gru_layer_step(*given) is None, number  # type: ignore[arg-type]


@pytest.fixture
def plain_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device in a GPU's place, whose tensors are as plain as the CPU's; the kernels would read them, and are
    not there."""
    for tensor in (draw(1).to("meta"), draw(1).to("meta").requires_grad_()):
        monkeypatch.setitem(fast_path._known, torch._C._dispatch_keys(tensor).raw_repr(), True)
    for kernel in (PreparedGru, PreparedMlp):
        monkeypatch.setattr(kernel, "__call__", refuse)
    monkeypatch.setattr(layer_ops, "_call_step", refuse)
    monkeypatch.setattr(layer_ops, "_apply_layer", refuse)


@pytest.mark.usefixtures("plain_on_meta")
def test_tensors_on_another_device_are_not_read() -> None:
    """Their addresses were taken for the CPU's, where x alone stood there."""
    shapes = [(1, 2, 4), (2, 3), (9, 4), (9, 3), (9,), (9,)]
    for number in range(len(shapes)):
        given = [draw(*shape) for shape in shapes]
        given[2].requires_grad_()
        given[number] = given[number].detach().to("meta").requires_grad_(number == 2)
        assert gru_layer_step(*given) is None, number  # type: ignore[arg-type]
        assert gru_layer(*given) is None, number  # type: ignore[arg-type]
    with torch.no_grad():
        step = prepare_gru(draw(9, 3), draw(9), lambda gates_x, h: "plain")  # type: ignore[arg-type, return-value]
        network = prepare_mlp((3, 2), [draw(4, 3), draw(4, 2)], draw(4), None, None, lambda *inputs: "plain")
        assert step(draw(2, 9), draw(2, 3).to("meta")) == "plain"
        assert network(draw(2, 3), draw(2, 2).to("meta")) == "plain"
    assert not takes((draw(2, 3).to("meta"),))
