"""Bad arguments of every op: the type of the error, and a single line that names the argument, what was expected and
what came. The same on every backend, under no_grad, on fake tensors and in compiled code.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vssn_kernels
from vssn_kernels.testing import OPS, PADDED, ROWS, Sample, find_sample, targets

# The tensor that the others are compared with.
FIRST = {op: next(iter(find_sample(op, ROWS[op].rich).tensors)) for op in OPS}
each_op = pytest.mark.parametrize("op", OPS)
each_target = pytest.mark.parametrize("target", targets(torch.float32), ids=str)
each_tensor = pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op in OPS for name in find_sample(op, ROWS[op].rich).tensors]
)
each_other = pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op in OPS for name in find_sample(op, ROWS[op].rich).tensors if name != FIRST[op]]
)
with_lengths = pytest.mark.parametrize("op", PADDED)


def good(op: str) -> Sample:
    return find_sample(op, ROWS[op].rich).to("cpu", torch.float32)


def assert_raises(error: type[Exception], sample: Sample, *parts: str, backend: str | None = None) -> None:
    """The error, on one line that starts with the op's name and holds every part."""
    with pytest.raises(error) as caught:
        sample.run(backend)
    text = str(caught.value)
    assert type(caught.value) is error, type(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{sample.op}: "), text
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


def shape_text(shape: torch.Size) -> str:
    return str(list(shape))


@each_op
def test_good_arguments_raise_nothing(op: str) -> None:
    good(op).run()


# ---- Type, dtype, device -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.zeros((2, 2)), [1.0], 3.0, "x"], ids=["array", "list", "float", "str"])
@each_tensor
def test_not_a_tensor(op: str, name: str, value: object) -> None:
    assert_raises(
        TypeError, good(op).replace({name: value}), f"{name} must be a torch.Tensor, got {type(value).__name__}"
    )


LAYOUTS = {"sparse_coo": Tensor.to_sparse, "sparse_csr": Tensor.to_sparse_csr, "_mkldnn": Tensor.to_mkldnn}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_tensor
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_layout_that_is_not_dense(op: str, name: str, layout: str) -> None:
    tensor = good(op).tensors[name]
    if layout == "_mkldnn" and not torch.backends.mkldnn.is_available():
        pytest.skip("a PyTorch without oneDNN")
    if layout == "sparse_csr" and tensor.dim() < 2:
        pytest.skip("a vector has no rows")
    if 0 in tensor.shape:
        pytest.skip("nothing to convert")
    changed = good(op).replace({name: LAYOUTS[layout](tensor)})
    assert_raises(
        TypeError, changed, f"{name} must be dense, got the layout torch.{layout}; convert it with .to_dense()"
    )


@pytest.mark.parametrize("op", OPS)
def test_none_for_a_tensor(op: str) -> None:
    optional = ("prior_mu", "prior_logvar", "reset_h", "reset_z")
    for name in good(op).tensors:
        if name not in optional and not name.startswith("prior."):
            assert_raises(TypeError, good(op).replace({name: None}), f"{name} must be a torch.Tensor, got NoneType")


@pytest.mark.parametrize("backend", [None, "reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
@each_op
def test_dtype_that_is_not_floating(op: str, dtype: torch.dtype, backend: str | None) -> None:
    sample = good(op)
    changed = sample.replace({name: tensor.to(dtype) for name, tensor in sample.tensors.items()})
    expected = f"{FIRST[op]} must be float16, bfloat16, float32 or float64, got {dtype}"
    assert_raises(TypeError, changed, expected, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
@each_other
def test_mixed_dtypes(op: str, name: str, dtype: torch.dtype) -> None:
    sample = good(op)
    changed = sample.replace({name: sample.tensors[name].to(dtype)})
    assert_raises(TypeError, changed, f"{name} must be torch.float32", f"got {dtype}", ".to(torch.float32)")


@each_other
def test_float32_beside_half_precision_is_for_states_alone(op: str, name: str) -> None:
    sample = good(op)
    halves = sample.replace({part: tensor.bfloat16() for part, tensor in sample.tensors.items()})
    mixed = halves.replace({name: sample.tensors[name]})
    if name in ROWS[op].states:
        mixed.run()
    else:
        assert_raises(TypeError, mixed, f"{name} must be torch.bfloat16", "got torch.float32")


@each_tensor
def test_tensors_on_two_devices(op: str, name: str) -> None:
    sample = good(op)
    changed = sample.replace({name: sample.tensors[name].to("meta")})
    if name == FIRST[op]:
        assert_raises(ValueError, changed, "must be on meta", "got cpu")
    else:
        assert_raises(ValueError, changed, f"{name} must be on cpu", "got meta", ".to('cpu')")


@each_op
def test_meta_tensors_give_shapes(op: str) -> None:
    """All on meta: the fake's shapes, and no data read."""
    sample = good(op)
    changes = {name: sample.options[name].to("meta") for name in ("lengths", "resets") if name in sample.options}
    out = sample.replace({name: t.to("meta") for name, t in sample.tensors.items()}, **changes).run()
    want = sample.run()
    assert {name: (o.shape, o.dtype, o.device.type) for name, o in out.items()} == {
        name: (o.shape, o.dtype, "meta") for name, o in want.items()
    }


# ---- Shapes --------------------------------------------------------------------------------------


@each_other
def test_wrong_shapes(op: str, name: str) -> None:
    """One size too large, one too small, one dimension too many or too few, for every dimension."""
    sample = good(op)
    tensor = sample.tensors[name]
    wrong = [tensor.unsqueeze(0), tensor[0] if tensor.dim() else tensor, tensor.new_zeros(())]
    for dim in range(tensor.dim()):
        wrong += [torch.cat((tensor, tensor), dim), tensor.narrow(dim, 0, tensor.shape[dim] - 1)]
    for other in wrong:
        if name == "z0" and other.dim() == 2 and other.shape[0] == tensor.shape[0]:
            continue  # Z is read from z0: the next test
        if name in ("embed_context", "context") and other.shape[:2] == tensor.shape[:2] and other.dim() == 3:
            continue  # as E and M are: weight_embed and weight_h say that they do not fit
        if op == "gru_packed" and name == "h0" and other.dim() == 2 and other.shape[1] == tensor.shape[1]:
            continue  # B is read from h0, and may be above every batch size
        if name == "inputs[1]" and other.shape[:-1] == tensor.shape[:-1]:
            continue  # K is read from the inputs, M from bias, O from weight_out
        if (name == "bias" and other.dim() == 1) or (name == "weight_out" and other.shape[1:] == tensor.shape[1:]):
            continue
        parts = (f"{name} must have shape [", f"got {shape_text(other.shape)}")
        assert_raises(ValueError, sample.replace({name: other}), *parts)


def test_another_latent_size_in_z0_does_not_fit_the_rest() -> None:
    sample = good("posterior_sequence")
    z0 = torch.zeros(sample.tensors["z0"].shape[0], 5)
    assert_raises(ValueError, sample.replace({"z0": z0}), "eps must have shape [T, B, Z] = [5, 4, 5], got [5, 4, 2]")


def test_expected_shapes_are_told_in_letters_and_numbers() -> None:
    sample = good("gru_sequence")
    wrong = sample.replace({"h0": torch.zeros(2, 3)})
    assert_raises(ValueError, wrong, "h0 must have shape [B, H] = [5, 3], got [2, 3]")


@pytest.mark.parametrize("shape", [(6, 9), (6, 5, 9, 1), (6, 5, 10), (6, 5, 0), ()])
def test_gates_x_needs_three_dimensions_and_3h(shape: tuple[int, ...]) -> None:
    wrong = good("gru_sequence").replace({"gates_x": torch.zeros(shape)})
    assert_raises(
        ValueError, wrong, "gates_x must have", "[T, B, 3H]" if len(shape) != 3 else "3H", f"got {list(shape)}"
    )


def test_packed_gates_need_two_dimensions_and_gates() -> None:
    sample = good("gru_packed")
    for shape in ((4, 5, 9), (9,), ()):
        wrong = sample.replace({"gates_x": torch.zeros(shape)})
        assert_raises(ValueError, wrong, f"gates_x must have shape [N, 3H], got {list(shape)}")
    for width in (8, 0):
        wrong = sample.replace({"gates_x": torch.zeros(11, width)})
        assert_raises(ValueError, wrong, f"gates_x must have a last size 3H, H >= 1, got [11, {width}]")


@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    ("sizes", "error", "text"),
    [
        ([4, 3, 2, 1, 1, 1], ValueError, "must add up to the N = 11 rows of gates_x, got 12"),
        ([], ValueError, "must add up to the N = 11 rows of gates_x, got 0"),
        ([6, 5], ValueError, "must lie in [0, B] = [0, 5], got 6"),
        ([5, 5, 2, -1], ValueError, "must lie in [0, B] = [0, 5], got -1"),
        ([4, 3, 4], ValueError, "must not rise, got 3 then 4 at step 2"),
        ([[5, 4], [1, 1]], ValueError, "must have shape [T], got [2, 2]"),
        ([5.0, 5.0, 1.0], TypeError, "must be int64, got torch.float32"),
    ],
)
def test_batch_sizes_that_are_none(
    sizes: list, error: type[Exception], text: str, requires_grad: bool, backend: str | None
) -> None:
    sample = find_sample("gru_packed", ROWS["gru_packed"].rich).to("cpu", torch.float32, requires_grad)
    batch_sizes = torch.tensor(sizes) if sizes else torch.zeros(0, dtype=torch.int64)
    assert_raises(error, sample.replace(batch_sizes=batch_sizes), f"batch_sizes {text}", backend=backend)


def test_batch_sizes_are_a_tensor() -> None:
    assert_raises(TypeError, good("gru_packed").replace(batch_sizes=[5, 4]), "batch_sizes must be a torch.Tensor")


@pytest.mark.parametrize("shape", [(5, 5), (5, 4, 5, 1), ()])
def test_context_needs_three_dimensions(shape: tuple[int, ...]) -> None:
    wrong = good("posterior_sequence").replace({"context": torch.zeros(shape)})
    assert_raises(ValueError, wrong, f"context must have shape [T, B, M], got {list(shape)}")


@pytest.mark.parametrize(("hidden", "latent"), [(0, 2), (3, 0)])
def test_posterior_sizes_of_zero(hidden: int, latent: int) -> None:
    shapes = {"context": (2, 1, hidden), "z0": (1, latent), "eps": (2, 1, latent), "weight_z": (hidden, latent)}
    shapes |= {"weight_out": (2 * latent, hidden), "bias_out": (2 * latent,)}
    wrong = Sample("posterior_sequence", "zero", {name: torch.zeros(shape) for name, shape in shapes.items()})
    assert_raises(ValueError, wrong, "M and Z must be at least 1", f"M = {hidden} and Z = {latent}")


def test_interleaved_sizes() -> None:
    sample = good("interleaved_sequence")
    for name, letters in (("gates_x", "[T, B, 3H]"), ("embed_context", "[T, B, E]"), ("context", "[T, B, M]")):
        wrong = sample.replace({name: torch.zeros(5, 4)})
        assert_raises(ValueError, wrong, f"{name} must have shape {letters}, got [5, 4]")
    assert_raises(
        ValueError, sample.replace({"gates_x": torch.zeros(5, 4, 14)}), "must have H, E, M, Z >= 1, got 3H = 14, E = 3"
    )
    assert_raises(ValueError, sample.replace({"context": torch.zeros(5, 4, 0)}), "got 3H = 15, E = 3, M = 0 and Z = 2")
    assert_raises(
        ValueError, sample.replace({"embed_context": torch.zeros(5, 4, 6)}), "weight_embed must have shape [E, Z]"
    )
    assert_raises(
        ValueError, sample.replace({"context": torch.zeros(5, 4, 6)}), "weight_h must have shape [M, H] = [6, 5]"
    )


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"resets": torch.zeros(5, 4)}, TypeError, "resets must be bool, got torch.float32"),
        (
            {"resets": torch.zeros(4, 5, dtype=torch.bool)},
            ValueError,
            "resets must have shape [T, B] = [5, 4], got [4, 5]",
        ),
        ({"resets": [True]}, TypeError, "resets must be a torch.Tensor, got list"),
        ({"resets": None}, ValueError, "resets must be given with reset_h"),
        ({"embed_activation": "gelu"}, ValueError, "embed_activation must be one of tanh, relu"),
        ({"scale": "exp"}, ValueError, "scale must be one of logvar, softplus, got 'exp'"),
        ({"min_std": -0.1}, ValueError, "min_std must be at least 0, got -0.1"),
        ({"min_std": float("inf")}, ValueError, "min_std must be finite, got inf"),
    ],
)
def test_options_of_interleaved_sequence(changed: dict[str, Any], error: type[Exception], text: str) -> None:
    assert_raises(error, good("interleaved_sequence").replace(**changed), text)


@pytest.mark.parametrize("op", ["gaussian_rsample_kl", "gaussian_kl"])
def test_scalars_have_no_latent_size(op: str) -> None:
    sample = good(op)
    wrong = sample.replace({name: torch.zeros(()) for name in sample.tensors})
    assert_raises(ValueError, wrong, "mu must have shape [..., Z], got a scalar")


def test_an_mlp_reads_its_sizes_from_inputs_bias_and_weight_out() -> None:
    sample = good("gaussian_mlp")
    wider = torch.zeros(4, 3, 6)
    assert_raises(ValueError, sample.replace({"inputs[1]": wider}), "weights[1] must have shape [M, K] = [6, 6], got")
    assert_raises(ValueError, sample.replace({"bias": torch.zeros(7)}), "weights[0] must have shape [M, K] = [7, 5]")
    assert_raises(ValueError, sample.replace({"weight_out": torch.zeros(4, 6)}), "bias_out must have shape [O] = [4]")
    odd = {"weight_out": torch.zeros(5, 6), "bias_out": torch.zeros(5)}
    assert_raises(ValueError, sample.replace(odd), "weight_out must have shape [2Z, M], got [5, 6]")


def test_the_number_of_weights_is_one_or_that_of_the_inputs() -> None:
    x, weight, bias = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)
    for inputs, weights in (([x] * 3, [weight] * 2), ([x] * 17, [weight] * 17)):
        with pytest.raises(ValueError, match="split_linear: expected 1 to 16 inputs, and a weight for each or one"):
            vssn_kernels.split_linear(inputs, weights, bias)
    for inputs in ([], x, None):
        with pytest.raises(TypeError, match="split_linear: inputs must be a list of tensors, one at least, got"):
            vssn_kernels.split_linear(inputs, weight, bias)


@pytest.mark.parametrize(("given", "missing"), [("prior_mu", "prior_logvar"), ("prior_logvar", "prior_mu")])
def test_half_a_gaussian_prior(given: str, missing: str) -> None:
    mu = torch.zeros(2, 3)
    for op, arguments in (("gaussian_rsample_kl", (mu, mu, mu)), ("gaussian_kl", (mu, mu))):
        with pytest.raises(ValueError, match=f"{op}: {missing} is missing: give both prior_mu and prior_logvar"):
            getattr(vssn_kernels, op)(*arguments, **{given: mu})


# ---- Lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, 7, 10**12, -(10**12)])
@with_lengths
@each_target
def test_lengths_out_of_range(op: str, wrong: int, target: Any) -> None:
    """Checked by every backend's op before anything is read."""
    if target.device != "cpu":
        pytest.skip("on a GPU the kernel clamps; VSSN_CHECK=1 makes it check")
    sample = good(op)
    steps = sample.tensors[FIRST[op]].shape[0]
    lengths = sample.options["lengths"].clone()
    lengths[1] = wrong
    parts = (f"lengths must lie in [0, T] = [0, {steps}]", f"got {wrong}")
    assert_raises(ValueError, sample.replace(lengths=lengths), *parts, backend=target.backend)
    with torch.no_grad():
        assert_raises(ValueError, sample.replace(lengths=lengths), *parts, backend=target.backend)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in sample.tensors.items()}
    assert_raises(ValueError, sample.replace(leaves, lengths=lengths), *parts, backend=target.backend)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
@with_lengths
def test_lengths_dtype(op: str, dtype: torch.dtype) -> None:
    sample = good(op)
    wrong = sample.replace(lengths=sample.options["lengths"].to(dtype))
    assert_raises(TypeError, wrong, f"lengths must be int64, got {dtype}", ".long()")


@with_lengths
def test_lengths_shape(op: str) -> None:
    sample = good(op)
    batch = len(sample.options["lengths"])
    for wrong in (torch.zeros(batch + 1), torch.zeros(batch - 1), torch.zeros(batch, 1), torch.zeros(())):
        parts = (f"lengths must have shape [B] = [{batch}]", f"got {list(wrong.shape)}")
        assert_raises(ValueError, sample.replace(lengths=wrong.long()), *parts)


@pytest.mark.parametrize("wrong", [[4, 0, 5, 1], 3, np.array([1])], ids=["list", "int", "array"])
@with_lengths
def test_lengths_type(op: str, wrong: object) -> None:
    parts = f"lengths must be a torch.Tensor, got {type(wrong).__name__}"
    assert_raises(TypeError, good(op).replace(lengths=wrong), parts)


@with_lengths
def test_lengths_device(op: str) -> None:
    sample = good(op)
    wrong = sample.replace(lengths=sample.options["lengths"].to("meta"))
    assert_raises(ValueError, wrong, "lengths must be on cpu", "got meta")


# ---- Other arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, 1, None, "yes"])
def test_reverse_is_a_flag(wrong: object) -> None:
    sample = good("gru_sequence").replace(reverse=wrong)
    assert_raises(TypeError, sample, f"reverse must be True or False, got {wrong!r}")


@pytest.mark.parametrize("wrong", ["sigmoid", "Tanh", "", None, 3, torch.tanh])
def test_unknown_activation(wrong: object) -> None:
    sample = good("posterior_sequence").replace(activation=wrong)
    with pytest.raises((ValueError, TypeError)) as caught:
        sample.run()
    text = str(caught.value)
    assert text.startswith("posterior_sequence: activation must be one of tanh, relu, leaky_relu, silu, got"), text
    assert "\n" not in text


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf"), "low", None, torch.zeros(3)], ids=str)
def test_min_logvar_is_a_finite_number(wrong: object) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        good("posterior_sequence").replace(min_logvar=wrong).run()
    text = str(caught.value)
    assert text.startswith("posterior_sequence: min_logvar must be"), text
    assert "\n" not in text


def test_min_logvar_may_be_an_int() -> None:
    good("posterior_sequence").replace(min_logvar=-12).run()


@pytest.mark.parametrize(
    "wrong", [3, "prior", [1, 2, 3, 4], (torch.zeros(1),) * 3, {}], ids=lambda value: type(value).__name__
)
def test_prior_is_a_prior_mean(wrong: object) -> None:
    tensors = {name: t for name, t in good("posterior_sequence").tensors.items() if not name.startswith("prior.")}
    with pytest.raises(
        TypeError, match=re.escape("posterior_sequence: prior must be a vssn_kernels.PriorMean or None, got")
    ):
        vssn_kernels.posterior_sequence(*tensors.values(), prior=wrong)


def test_a_prior_may_be_a_plain_tuple() -> None:
    sample = good("posterior_sequence")
    own = [t for name, t in sample.tensors.items() if not name.startswith("prior.")]
    prior = tuple(t for name, t in sample.tensors.items() if name.startswith("prior."))
    out = vssn_kernels.posterior_sequence(*own, prior=prior, **sample.options)
    assert torch.equal(out[0], sample.run()["z"])


def test_options_are_given_by_name() -> None:
    sample = good("gru_sequence")
    with pytest.raises(TypeError):
        vssn_kernels.gru_sequence(*sample.tensors.values(), sample.options["lengths"])


# ---- Under tracing -------------------------------------------------------------------------------


@each_op
def test_a_bad_shape_raises_under_compile(op: str) -> None:
    """The fake checks metadata with the same words."""
    sample = good(op)
    name = list(sample.tensors)[1]
    wrong = sample.replace({name: sample.tensors[name][..., :-1].contiguous()})
    compiled = torch.compile(lambda of: of.run(), backend="aot_eager")
    with pytest.raises(Exception, match=rf"{op}: [\w\[\]]+ must have shape"):
        compiled(wrong)


@with_lengths
def test_bad_lengths_raise_in_compiled_code(op: str) -> None:
    """Their values are data, so the compiled call checks them when it runs."""
    sample = good(op)
    compiled = torch.compile(lambda of, lengths: of.replace(lengths=lengths).run(), fullgraph=True, backend="aot_eager")
    compiled(sample, sample.options["lengths"])
    with pytest.raises(ValueError, match=f"{op}: lengths must lie in"):
        compiled(sample, sample.options["lengths"] + 3)
