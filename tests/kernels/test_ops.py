"""What holds for every op and backend: values, gradients, layouts, padding, autocast, registration, compilation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from vssn_kernels.activations import ACTIVATIONS
from vssn_kernels.backend import table
from vssn_kernels.testing import (
    FULL,
    HALF,
    OPS,
    PADDED,
    RECURRENT,
    ROWS,
    TOLERANCES,
    RecordCalls,
    Sample,
    Target,
    all_samples,
    arguments_of,
    assert_all_close,
    assert_close,
    assert_equal,
    cotangents,
    expected,
    find_sample,
    gradients,
    poisoned_empty,
    registered,
    strided,
    targets,
)

each_sample = pytest.mark.parametrize("sample", all_samples(), ids=str)
each_op = pytest.mark.parametrize("op", OPS)
each_target = pytest.mark.parametrize("target", targets(*FULL), ids=str)
each_float32 = pytest.mark.parametrize("target", targets(torch.float32), ids=str)
each_float64 = pytest.mark.parametrize("target", targets(torch.float64), ids=str)
each_half = pytest.mark.parametrize("target", targets(*HALF), ids=str)


def rich(op: str, target: Target, requires_grad: bool = False) -> Sample:
    return find_sample(op, ROWS[op].rich).to(target.device, target.dtype, requires_grad)


def run_with_gradients(sample: Sample, backend: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    outputs = sample.run(backend)
    return outputs, gradients(sample, outputs, cotangents(outputs))


def assert_as_expected(sample: Sample, target: Target) -> None:
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    want_outputs, want_grads = expected(sample)
    outputs, grads = run_with_gradients(sample, target.backend)
    assert_all_close(outputs, want_outputs, for_outputs, str(sample))
    assert_all_close(grads, want_grads, for_gradients, str(sample))
    assert {out.dtype for out in outputs.values()} == {target.dtype}
    assert {out.device.type for out in outputs.values()} == {target.device}


# ---- Values and gradients ------------------------------------------------------------------------


@each_sample
@each_target
def test_values_and_gradients(sample: Sample, target: Target) -> None:
    """Against the plain reference in float64, with unwritten memory full of NaN."""
    with poisoned_empty():
        assert_as_expected(sample.to(target.device, target.dtype, requires_grad=True), target)


@each_op
@each_half
def test_half_precision(op: str, target: Target) -> None:
    """Storage in half precision, state and sums in float32: the error is that of rounding inputs and outputs."""
    for name in (ROWS[op].rich, ROWS[op].bare):
        assert_as_expected(find_sample(op, name).to(target.device, target.dtype, requires_grad=True), target)


@pytest.mark.parametrize(("op", "state"), [(op, state) for op in RECURRENT for state in ROWS[op].states])
@each_half
def test_float32_state_beside_half_precision(op: str, state: str, target: Target) -> None:
    half = rich(op, target)
    tensors = half.tensors | {state: half.tensors[state].float()}
    sample = half.replace({name: tensor.requires_grad_() for name, tensor in tensors.items()})
    want_outputs, want_grads = expected(sample)
    outputs, grads = run_with_gradients(sample, target.backend)
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    assert_all_close(outputs, want_outputs, for_outputs)
    assert_all_close(grads, want_grads, for_gradients)
    assert grads[f"grad of {state}"].dtype == torch.float32
    for name, out in outputs.items():
        assert out.dtype == (torch.float32 if name == "h_n" else target.dtype), name


def small_samples() -> list[Sample]:
    """Small enough for finite differences: every activation with and without a prior, lengths with 0, reverse; of an op
    that has none here the bare one of its row."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = _small_samples()
    return [*made, *(find_sample(op, ROWS[op].bare) for op in OPS if op not in {sample.op for sample in made})]


def _small_samples() -> list[Sample]:
    lengths = torch.tensor([2, 0, 3])
    samples = []
    for options in ({}, {"reverse": True}, {"lengths": lengths}, {"lengths": lengths, "reverse": True}):
        tensors = {"gates_x": (3, 3, 6), "h0": (3, 2), "weight_hh": (6, 2), "bias_hh": (6,)}
        name = "_".join(options) or "plain"
        samples.append(
            Sample("gru_sequence", name, {part: torch.randn(shape) for part, shape in tensors.items()}, options)
        )
    for activation in ACTIVATIONS:
        for prior in (False, True):
            shapes = {"context": (3, 3, 3), "z0": (3, 2), "eps": (3, 3, 2), "weight_z": (3, 2), "weight_out": (4, 3)}
            shapes["bias_out"] = (4,)
            if prior:
                shapes |= {"prior.context": (3, 3, 3), "prior.weight_z": (3, 2), "prior.weight_mu": (2, 3)}
                shapes["prior.bias_mu"] = (2,)
            tensors = {part: torch.randn(shape) for part, shape in shapes.items()}
            options = {"activation": activation, "min_logvar": -3.0} | ({"lengths": lengths} if prior else {})
            samples.append(Sample("posterior_sequence", f"{activation}{'_prior' * prior}", tensors, options))
    for op, names in (("gaussian_rsample_kl", ("mu", "logvar", "eps")), ("gaussian_kl", ("mu", "logvar"))):
        for more in ((), ("prior_mu", "prior_logvar")):
            tensors = {part: torch.randn(2, 2, 3) for part in (*names, *more)}
            samples.append(Sample(op, "prior" if more else "standard", tensors))
    layers = {"inputs[0]": (2, 2, 3), "inputs[1]": (2, 2, 2), "weights[0]": (3, 3), "weights[1]": (3, 2), "bias": (3,)}
    second = {"weight_out": (4, 3), "bias_out": (4,)}
    for activation in ACTIVATIONS:
        tensors = {part: torch.randn(shape) for part, shape in (layers | second).items()}
        samples.append(Sample("mlp", activation, tensors, {"activation": activation}))
    one = {name: shape for name, shape in layers.items() if name != "weights[1]"} | {"weights[0]": (3, 5)}
    for op, shapes, options in (("gaussian_mlp", one | second, {"min_logvar": -3.0}), ("split_linear", one, {})):
        samples.append(Sample(op, op, {part: torch.randn(shape) for part, shape in shapes.items()}, options))
    samples.append(Sample("bernoulli_log_prob", "plain", {part: torch.randn(2, 2, 3) for part in ("logits", "x")}))
    return samples


each_small_sample = pytest.mark.parametrize("sample", small_samples(), ids=str)


def test_every_op_has_a_small_sample() -> None:
    assert {sample.op for sample in small_samples()} == set(OPS)


@each_small_sample
@each_float64
def test_gradcheck(sample: Sample, target: Target) -> None:
    """Finite differences, of every output by every input."""
    sample = sample.to(target.device, torch.float64, requires_grad=True)
    names = list(sample.tensors)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(sample.replace(dict(zip(names, tensors, strict=True))).run(target.backend).values())

    assert torch.autograd.gradcheck(function, tuple(sample.tensors.values()), rtol=1e-5, atol=1e-7)


@each_small_sample
@each_float64
def test_double_backward_is_right_or_a_clear_error(sample: Sample, target: Target) -> None:
    sample = sample.to(target.device, torch.float64, requires_grad=True)
    names = list(sample.tensors)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(sample.replace(dict(zip(names, tensors, strict=True))).run(target.backend).values())

    recurrent = sample.op in RECURRENT
    if recurrent and target.backend != "reference":
        total = sum((out**2).sum() for out in sample.run(target.backend).values())
        grads = torch.autograd.grad(total, list(sample.tensors.values()), create_graph=True)
        plain = sum((out**2).sum() for out in sample.run_plain().values())
        want = torch.autograd.grad(plain, list(sample.tensors.values()))
        assert_all_close(dict(zip(names, grads, strict=True)), dict(zip(names, want, strict=True)), 1e-10)
        with pytest.raises(RuntimeError, match=rf'{sample.op}_backward is not diff.*use_backend\("reference"\)'):
            sum((grad**2).sum() for grad in grads).backward()
    else:
        # relu and leaky_relu have kinks; none lies within the step at these points
        assert torch.autograd.gradgradcheck(function, tuple(sample.tensors.values()), fast_mode=True)


@pytest.mark.parametrize("op", RECURRENT)
@each_float64
def test_a_second_derivative_is_never_left_out(op: str, target: Target) -> None:
    """Of a loss linear in the outputs, whose gradient hangs on the inputs by what forward kept alone: by each pair of
    inputs an error, where the reference has a second derivative."""
    if target.backend == "reference":
        pytest.skip("it has second derivatives, shown by the test above")
    sample = rich(op, target, requires_grad=True)
    outputs, plain = sample.run(target.backend), sample.run_plain()
    weights = cotangents(outputs)
    for name, leaf in sample.tensors.items():
        totals = [sum((out * weights[key]).sum() for key, out in several.items()) for several in (outputs, plain)]
        found, want = (torch.autograd.grad(total, leaf, create_graph=True)[0].sum() for total in totals)
        for other, by in sample.tensors.items():
            (second,) = torch.autograd.grad(want, by, retain_graph=True, allow_unused=True)
            if second is not None and second.abs().max() > 1e-12:
                with pytest.raises(RuntimeError, match=rf"{op}_backward is not differentiable"):
                    print(name, other, torch.autograd.grad(found, by, retain_graph=True))


@each_op
@each_float64
def test_second_derivative_reaches_only_what_is_asked(op: str, target: Target) -> None:
    """create_graph with one differentiable input: the others' gradients are not made up."""
    if target.backend != "reference" and op in RECURRENT:
        pytest.skip("no double backward, shown by the test above")
    if op == "split_linear":
        pytest.skip("linear in each of its inputs")
    sample = rich(op, target)
    first = next(iter(sample.tensors))
    leaf = sample.tensors[first].clone().requires_grad_()
    outputs = sample.replace({first: leaf}).run(target.backend)
    plain = sample.replace({first: leaf}).run_plain()
    weights = cotangents(outputs)
    results = []
    for several in (outputs, plain):
        total = sum((out * weights[name]).sum() for name, out in several.items())
        (grad,) = torch.autograd.grad(total, leaf, create_graph=True)
        (second,) = torch.autograd.grad((grad**2).sum(), leaf)
        results.append(second)
    assert_close(f"second derivative by {first}", results[0], results[1], 1e-10)


@each_op
@each_float64
def test_second_derivative_of_inputs_that_depend_on_each_other(op: str, target: Target) -> None:
    """The derivative by one input must not run through another one that is made of it."""
    if target.backend != "reference" and op in RECURRENT:
        pytest.skip("no double backward, shown by an earlier test")
    sample = rich(op, target)
    names = list(sample.tensors)
    leaf = sample.tensors[names[0]].clone().requires_grad_()
    made = {name: sample.tensors[name] + leaf.mean() for name in names[1:]}
    call = sample.replace({names[0]: leaf} | made)
    results = []
    for outputs in (call.run(target.backend), call.run_plain()):
        weights = cotangents(outputs)
        total = sum((out * weights[name]).sum() for name, out in outputs.items())
        (first,) = torch.autograd.grad(total, leaf, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), leaf)
        results.append((first, second))
    assert_close("first derivative", results[0][0], results[1][0], 1e-11)
    assert_close("second derivative", results[0][1], results[1][1], 1e-10)


@each_op
@each_target
def test_each_output_alone_has_its_gradient(op: str, target: Target) -> None:
    """A loss on one output: the gradients of the others are absent, not zeros that somebody must add."""
    sample = rich(op, target, requires_grad=True)
    for chosen in ROWS[op].outputs:
        outputs = sample.run(target.backend)
        exact = sample.to("cpu", torch.float64, requires_grad=True)
        want_outputs = exact.run_plain()
        want = gradients(exact, want_outputs, {chosen: cotangents(want_outputs)[chosen]})
        got = gradients(sample, outputs, {chosen: cotangents(outputs)[chosen]})
        assert_all_close(got, want, TOLERANCES[target.backend, target.dtype][1], f"loss on {chosen}:")


@each_op
@each_float32
def test_gradients_not_needed_are_not_computed(op: str, target: Target) -> None:
    """Backward is asked for the one gradient that is needed; the op returns an empty tensor for the others."""
    full = rich(op, target, requires_grad=True)
    _, want = run_with_gradients(full, target.backend)
    for number, name in enumerate(full.tensors):
        frozen = {other: tensor.detach() for other, tensor in full.tensors.items() if other != name}
        sample = full.replace(frozen)
        outputs = sample.run(target.backend)
        with RecordCalls() as record:
            got = gradients(sample, outputs, cotangents(outputs))
        assert_all_close(got, {f"grad of {name}": want[f"grad of {name}"]}, 1e-6)
        ((opname, _, results),) = record.calls
        assert opname == f"{registered(op)}_backward"
        sizes = [result.numel() for result in results]
        assert [position for position, size in enumerate(sizes) if size] == [number]


@each_op
@each_float32
def test_nothing_is_kept_for_backward_without_gradients(op: str, target: Target) -> None:
    sample = rich(op, target, requires_grad=True)
    with torch.no_grad(), RecordCalls() as record:
        outputs = sample.run(target.backend)
    assert not any(out.requires_grad for out in outputs.values())
    ((_, _, results),) = record.calls
    results = (results,) if isinstance(results, Tensor) else results
    assert all(result.numel() == 0 for result in results[len(ROWS[op].outputs) :])
    with torch.inference_mode():
        assert_all_close(rich(op, target).run(target.backend), outputs, 0.0)


# ---- Memory --------------------------------------------------------------------------------------


def storages(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.untyped_storage().nbytes()]


@each_sample
@each_float32
def test_returned_tensors_share_no_memory(sample: Sample, target: Target) -> None:
    """With an input or with another one, gradients of the op's backward included."""
    for requires_grad in (False, True):
        here = sample.to(target.device, target.dtype, requires_grad)
        outputs = here.run(target.backend)
        everything = storages(list(outputs.values()))
        if requires_grad:
            grads = cotangents(outputs)
            everything += storages(list(gradients(here, outputs, grads).values())) + storages(list(grads.values()))
        everything += storages(list(here.tensors.values()))
        assert len(everything) == len(set(everything))


@each_op
@each_float32
def test_inputs_stay_as_they_are(op: str, target: Target) -> None:
    sample = rich(op, target, requires_grad=True)
    before = {name: tensor.detach().clone() for name, tensor in sample.tensors.items()}
    outputs = sample.run(target.backend)
    grads = cotangents(outputs)
    gradients(sample, outputs, grads)
    for name, tensor in sample.tensors.items():
        assert_equal(name, tensor.detach(), before[name])
    for name, grad in cotangents(outputs).items():
        assert_equal(f"gradient of {name}", grads[name], grad)


@pytest.mark.parametrize("kind", ["transposed", "sliced", "batch_first"])
@each_op
@each_float32
def test_strides(op: str, kind: str, target: Target) -> None:
    """Any strides, of inputs and of incoming gradients, give what contiguous tensors give."""
    for name in (ROWS[op].rich, ROWS[op].bare):
        sample = find_sample(op, name).to(target.device, target.dtype, requires_grad=True)
        want_outputs, want_grads = expected(sample)
        views = {part: strided(tensor.detach(), kind).requires_grad_() for part, tensor in sample.tensors.items()}
        viewed = sample.replace(views)
        outputs = viewed.run(target.backend)
        grads = {part: strided(grad, kind) for part, grad in cotangents(outputs).items()}
        for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
        assert_all_close(outputs, want_outputs, for_outputs, kind)
        assert_all_close(gradients(viewed, outputs, grads), want_grads, for_gradients, kind)


@each_op
@each_float32
def test_expanded_inputs_and_gradients(op: str, target: Target) -> None:
    """Stride 0: every input one number spread over its shape, and the gradient of a plain sum."""
    for name in (ROWS[op].rich, ROWS[op].bare):
        sample = find_sample(op, name).to(target.device, target.dtype)
        scalars = {part: (tensor.flatten()[0] / 3).requires_grad_() for part, tensor in sample.tensors.items()}

        def total(of: Sample, leaves: dict[str, Tensor], plain: bool, backend: str) -> dict[str, Tensor]:
            spread = {part: leaf.expand(of.tensors[part].shape) for part, leaf in leaves.items()}
            call = of.replace(spread)
            outputs = call.run_plain() if plain else call.run(backend)
            loss = sum(out.sum() for out in outputs.values())
            return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

        exact = {part: leaf.detach().to("cpu", torch.float64).requires_grad_() for part, leaf in scalars.items()}
        want = total(sample.to("cpu", torch.float64), exact, True, target.backend)
        assert_all_close(total(sample, scalars, False, target.backend), want, 1e-4, name)


@each_op
@each_float32
def test_one_tensor_as_several_inputs(op: str, target: Target) -> None:
    """Inputs may share memory with one another: the gradients add up."""
    pairs = {
        "gru_sequence": None,
        "gru_packed": None,
        "posterior_sequence": ("context", "prior.context"),
        "gaussian_rsample_kl": ("mu", "prior_mu"),
        "gaussian_kl": ("logvar", "prior_logvar"),
        "mlp": ("inputs[0]", "inputs[1]"),
        "gaussian_mlp": ("inputs[0]", "inputs[1]"),
        "split_linear": ("inputs[0]", "inputs[1]"),
        "bernoulli_log_prob": ("logits", "x"),
    }
    sample = rich(op, target)
    alike = [pair for pair in combinations(sample.tensors, 2) if len({sample.tensors[one].shape for one in pair}) == 1]
    if op not in pairs and not alike:
        pytest.skip(f"no two inputs of {op} have one shape")
    pair = pairs[op] if op in pairs else alike[0]
    if pair is None:
        square = torch.randn(3, 3, 3, device=target.device)  # gates_x is weight_hh, thrice
        packed = op == "gru_packed"
        tensors = {"gates_x": square.view((3, 9) if packed else (3, 1, 9)), "weight_hh": square.view(9, 3)}
        tensors |= {"h0": sample.tensors["h0"][:1], "bias_hh": sample.tensors["bias_hh"]}
        options = {"batch_sizes": torch.ones(3, dtype=torch.int64)} if packed else {"lengths": None}
        sample = sample.replace(tensors, **options)
        first, second = "gates_x", "weight_hh"
    else:
        first, second = pair
    want_sample = sample.to("cpu", torch.float64)
    got, want = [], []
    for of, plain, results in ((sample, False, got), (want_sample, True, want)):
        leaf = of.tensors[first].detach().clone().requires_grad_()
        call = of.replace({first: leaf, second: leaf.view(of.tensors[second].shape)})
        outputs = call.run_plain() if plain else call.run(target.backend)
        loss = sum((out * grad).sum() for out, grad in zip(outputs.values(), cotangents(outputs).values(), strict=True))
        results.extend(torch.autograd.grad(loss, leaf))
    assert_close(f"gradient of {first} = {second}", got[0], want[0], 1e-4)


# ---- Padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lengths", "lengths_reverse", "wide", "all_padding"])
@each_float32
def test_gru_padding_is_never_read(name: str, target: Target) -> None:
    padding_changes_nothing(find_sample("gru_sequence", name), target)


@pytest.mark.parametrize(
    "name", ["lengths_floor", "prior_tanh", "prior_relu", "prior_leaky_relu", "prior_silu", "wide"]
)
@each_float32
def test_posterior_padding_is_never_read(name: str, target: Target) -> None:
    padding_changes_nothing(find_sample("posterior_sequence", name), target)


def padding_changes_nothing(sample: Sample, target: Target) -> None:
    """NaN at padding, in inputs and in incoming gradients: the same bits, and zeros at padding."""
    clean = sample.to(target.device, target.dtype, requires_grad=True)
    lengths = clean.options["lengths"]
    outputs = clean.run(target.backend)
    grads = gradients(clean, outputs, cotangents(outputs))

    def spoil(tensor: Tensor) -> Tensor:
        steps = torch.arange(tensor.shape[0], device=tensor.device)
        return tensor.detach().masked_fill((steps[:, None] >= lengths)[..., None], float("nan"))

    spoilt = {name: spoil(t).requires_grad_() for name, t in clean.tensors.items() if t.dim() == 3}
    dirty = clean.replace(spoilt)
    got = dirty.run(target.backend)
    incoming = {name: spoil(grad) if grad.dim() == 3 else grad for name, grad in cotangents(got).items()}
    got_grads = gradients(dirty, got, incoming)
    for name, want in (outputs | grads).items():
        assert_equal(name, (got | got_grads)[name].detach(), want.detach())
        if want.dim() == 3:
            padding = (torch.arange(want.shape[0], device=want.device)[:, None] >= lengths)[..., None].expand_as(want)
            assert not want[padding].any(), f"{name} is not 0 at padding"


@pytest.mark.parametrize("op", PADDED)
@each_float32
def test_a_padded_batch_gives_each_sequence_its_own_numbers(op: str, target: Target) -> None:
    sample = rich(op, target)
    outputs = sample.run(target.backend)
    for row, length in enumerate(sample.options["lengths"].tolist()):
        alone = {}
        for name, tensor in sample.tensors.items():
            if tensor.dim() == 3:
                alone[name] = tensor[:length, row : row + 1]
            elif name in ROWS[op].states:
                alone[name] = tensor[row : row + 1]
        resets = sample.options.get("resets")
        more = {} if resets is None else {"resets": resets[:length, row : row + 1]}
        want = sample.replace(alone, lengths=None, **more).run(target.backend)
        for name, out in outputs.items():
            here = out[row : row + 1] if name == "h_n" else out[:length, row : row + 1]
            assert_close(f"{name} of sequence {row}", here, want[name], 1e-6)


# ---- Precision, determinism ----------------------------------------------------------------------


DIVERGENCES = ("gaussian_rsample_kl", "gaussian_kl", "bernoulli_log_prob")


@each_op
@pytest.mark.parametrize("target", [t for t in targets(torch.float32) if t.device == "cpu"], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_on_the_cpu(op: str, target: Target, dtype: torch.dtype) -> None:
    """Products take bfloat16, and float32 for float16; divergences float32; each gradient comes in its input's dtype,
    a float32 state stays one."""
    sample = rich(op, target)
    first = next(iter(sample.tensors))
    mixed = {name: t.bfloat16() if name == first else t for name, t in sample.tensors.items()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in mixed.items()}
    with torch.autocast("cpu", dtype):
        outputs = sample.replace(leaves).run(target.backend)
    grads = gradients(sample.replace(leaves), outputs, cotangents(outputs))
    taken = torch.float32 if op in DIVERGENCES or dtype == torch.float16 else torch.bfloat16
    cast = {name: tensor.to(torch.float32 if name in ROWS[op].states else taken) for name, tensor in mixed.items()}
    plain = sample.replace({name: tensor.clone().requires_grad_() for name, tensor in cast.items()})
    want_outputs, want_grads = run_with_gradients(plain, target.backend)
    for name, out in outputs.items():
        assert out.dtype == (torch.float32 if name == "h_n" else taken), name
    assert_all_close(outputs, want_outputs, 1e-6)
    for name, tensor in leaves.items():
        assert grads[f"grad of {name}"].dtype == tensor.dtype
        tolerance = 5e-3 if tensor.dtype == torch.bfloat16 else 1e-6
        assert_close(name, grads[f"grad of {name}"], want_grads[f"grad of {name}"], tolerance)


@each_op
@pytest.mark.parametrize("target", [t for t in targets(torch.float64) if t.device == "cpu"], ids=str)
def test_autocast_leaves_float64(op: str, target: Target) -> None:
    sample = rich(op, target, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, grads = run_with_gradients(sample, target.backend)
    want_outputs, want_grads = run_with_gradients(sample, target.backend)
    assert_all_close(outputs | grads, want_outputs | want_grads, 0.0)


@each_op
@each_float32
def test_every_run_gives_the_same_bits(op: str, target: Target) -> None:
    name = "four_dims" if "gaussian_" in op and op != "gaussian_mlp" else "wide"
    name = name if name in {sample.name for sample in ROWS[op].samples()} else ROWS[op].rich
    sample = find_sample(op, name).to(target.device, target.dtype, requires_grad=True)
    outputs, grads = run_with_gradients(sample, target.backend)
    with poisoned_empty():
        again, grads_again = run_with_gradients(sample, target.backend)
    for part, want in (outputs | grads).items():
        assert_equal(part, (again | grads_again)[part].detach(), want.detach())


@each_op
@each_float32
def test_whoever_looks_at_ops_sees_them(op: str, target: Target) -> None:
    """Without an observer the dispatcher is left out: the bits are the same, and a profiler finds forward and
    backward."""
    sample = rich(op, target, requires_grad=True)
    outputs, grads = run_with_gradients(sample, target.backend)
    with RecordCalls() as record:
        seen, seen_grads = run_with_gradients(sample, target.backend)
    assert [name for name, _, _ in record.calls] == [registered(op), f"{registered(op)}_backward"]
    for name, want in (outputs | grads).items():
        assert_equal(name, (seen | seen_grads)[name].detach(), want.detach())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run_with_gradients(sample, target.backend)
    names = {event.key for event in profile.key_averages()}
    assert {f"vssn::{registered(op)}", f"vssn::{registered(op)}_backward"} <= names


# ---- Registration and compilation ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["rich", "bare", "empty"])
@each_op
@each_float32
def test_opcheck(op: str, name: str, target: Target) -> None:
    sample = find_sample(op, getattr(ROWS[op], name)).to(target.device, target.dtype, requires_grad=True)
    overload = getattr(torch.ops.vssn, registered(op)).default
    torch.library.opcheck(overload, sample.forward_arguments(target.backend))
    with torch.no_grad():
        plain = sample.to(target.device, target.dtype)
        for need_backward in (False, True):
            torch.library.opcheck(
                overload,
                plain.forward_arguments(target.backend, need_backward),
                test_utils=("test_schema", "test_faketensor"),
            )


@pytest.mark.parametrize("name", ["rich", "bare", "empty"])
@each_op
@each_float32
def test_opcheck_of_the_backward_op(op: str, name: str, target: Target) -> None:
    sample = find_sample(op, getattr(ROWS[op], name)).to(target.device, target.dtype)
    overload = getattr(torch.ops.vssn, f"{registered(op)}_backward").default
    arguments = sample.backward_arguments(target.backend)
    torch.library.opcheck(overload, arguments)
    count = len(arguments[-2])
    some = [number % 2 == 0 and number < len(sample.tensors) for number in range(count)]
    torch.library.opcheck(
        overload, sample.backward_arguments(target.backend, some), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("kind", ["transposed", "sliced", "batch_first"])
@each_op
@each_float32
def test_fake_strides_are_the_real_ones(op: str, kind: str, target: Target) -> None:
    """opcheck compares strides too: compiled code relies on them."""
    sample = rich(op, target)
    viewed = sample.replace({name: strided(tensor, kind) for name, tensor in sample.tensors.items()})
    checks = ("test_schema", "test_faketensor")
    for need_backward in (False, True):
        arguments = viewed.forward_arguments(target.backend, need_backward)
        torch.library.opcheck(getattr(torch.ops.vssn, registered(op)).default, arguments, test_utils=checks)
    overload = getattr(torch.ops.vssn, f"{registered(op)}_backward").default
    made_by_forward = {result.name for result in getattr(torch.ops.vssn, registered(op)).default._schema.returns}
    backward = [
        strided(argument, kind)
        if isinstance(argument, Tensor) and argument.is_floating_point() and name not in made_by_forward  # contiguous
        else argument
        for name, argument in zip(
            arguments_of(f"{registered(op)}_backward"), viewed.backward_arguments(target.backend), strict=True
        )
    ]
    torch.library.opcheck(overload, tuple(backward), test_utils=checks)


@each_op
@each_float32
def test_the_backward_op_refuses_to_be_differentiated(op: str, target: Target) -> None:
    """Never a wrong number: a registered op without an autograd formula would give one."""
    arguments = list(rich(op, target).backward_arguments(target.backend))
    arguments[0] = arguments[0].clone().requires_grad_()
    results = getattr(torch.ops.vssn, f"{registered(op)}_backward")(*arguments)
    with pytest.raises(RuntimeError, match=rf'{registered(op)}_backward is not diff.*use_backend\("reference"\)'):
        sum(result.sum() for result in results).backward()


@each_op
@each_float32
def test_compile_fullgraph(op: str, target: Target) -> None:
    """Outputs and gradients of the compiled public function, at two sizes through dynamic shapes."""
    compiled = torch.compile(lambda sample: sample.run(target.backend), fullgraph=True, backend="aot_eager")
    for name in (ROWS[op].rich, ROWS[op].bare):
        sample = find_sample(op, name).to(target.device, target.dtype, requires_grad=True)
        outputs = compiled(sample)
        grads = gradients(sample, outputs, cotangents(outputs))
        want_outputs, want_grads = run_with_gradients(sample, target.backend)
        assert_all_close(outputs | grads, want_outputs | want_grads, 1e-6, name)


@each_op
@each_float32
def test_compile_with_dynamic_shapes(op: str, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """One compilation serves every number of steps, and the calls that are not compiled do not end it."""
    monkeypatch.setattr(table, "_runs", set())  # nobody has called the op yet
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph

    sample = find_sample(op, ROWS[op].bare).to(target.device, target.dtype)
    names = list(sample.tensors)
    sequences = [name for name, tensor in sample.tensors.items() if tensor.dim() == 3]

    def function(*tensors: Tensor) -> dict[str, Tensor]:
        return sample.replace(dict(zip(names, tensors, strict=True))).run(target.backend)

    compiled = torch.compile(function, fullgraph=True, backend=count, dynamic=True)
    for steps in (5, 4, 3, 2):
        shorter = sample.replace({name: sample.tensors[name][:steps].clone() for name in sequences})
        assert_all_close(compiled(*shorter.tensors.values()), shorter.run(target.backend), 1e-6)
    assert len(graphs) == 1


@pytest.mark.slow
@each_op
@each_float32
def test_compile_with_inductor(op: str, target: Target) -> None:
    """Around the op there are pointwise products for inductor to fuse, and views with strides of their own."""

    def function(sample: Sample) -> dict[str, Tensor]:
        doubled = {name: (t * 2).transpose(0, -1).contiguous().transpose(0, -1) for name, t in sample.tensors.items()}
        return {name: out.sin() for name, out in sample.replace(doubled).run(target.backend).items()}

    sample = rich(op, target, requires_grad=True)
    outputs = torch.compile(function, fullgraph=True)(sample)
    want = function(sample)
    assert_all_close(outputs, want, 1e-5)
    grads = cotangents(want)
    assert_all_close(gradients(sample, outputs, grads), gradients(sample, want, grads), 1e-5)
