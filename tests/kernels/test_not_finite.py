"""What is not finite: the kernels answer as the reference does, number by number NaN, inf, -inf or finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vssn_kernels.testing import (
    FULL,
    RECURRENT,
    ROWS,
    Sample,
    Target,
    assert_equal,
    cotangents,
    find_sample,
    gradients,
    ops_of,
    targets,
)

NAMES = {
    "gru_packed": ("plain", "reverse", "ended"),
    "gru_sequence": ("plain", "reverse", "lengths", "lengths_reverse", "all_padding"),
    "posterior_sequence": ("tanh", "silu", "relu", "prior_tanh", "prior_relu", "lengths_floor", "all_padding"),
    "interleaved_sequence": ("tanh", "silu", "elu", "relu", "softplus", "resets", "resets_anew", "all_padding"),
    "gaussian_rsample_kl": ("prior", "standard"),
    "gaussian_kl": ("prior",),
    "mlp": ("tanh", "relu", "leaky_relu", "silu"),
    "gaussian_mlp": ("tanh", "silu"),
    "split_linear": ("tanh",),
    "bernoulli_log_prob": ("plain",),
}
ON_HOST = Target("cuda", "cpu", torch.float32)
CASES = [(op, name) for op in ops_of("cpu") for name in NAMES.get(op, (ROWS[op].rich,))]


def kinds(tensor: Tensor) -> Tensor:
    """0 for what is finite, 1 for inf, -1 for -inf, 2 for NaN."""
    detached = tensor.detach()
    return torch.where(detached.isnan(), 2, torch.where(detached.isinf(), detached.sign(), torch.zeros_like(detached)))


def answers(sample: Sample, backend: str) -> dict[str, Tensor]:
    outputs = sample.run(backend)
    return outputs | (gradients(sample, outputs, cotangents(outputs)) if sample.op in RECURRENT else {})


each_value = pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
each_case = pytest.mark.parametrize(("op", "name"), CASES)
each_target = pytest.mark.parametrize("target", [one for one in targets(*FULL) if one.backend != "reference"], ids=str)
quiet = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # the interpreter's


def require_same_kinds(sample: Sample, backend: str, what: str) -> None:
    got, want = answers(sample, backend), answers(sample, "reference")
    for part, expected in want.items():
        found, wanted = kinds(got[part]), kinds(expected)
        if backend != "cpu" and part.startswith("grad"):  # sums in another order: which of inf and NaN is open
            found, wanted = found != 0, wanted != 0
        assert torch.equal(found, wanted), f"{part} with {what}"


def check_each_input(op: str, name: str, target: Target, value: float) -> None:
    """The first entry of each input in turn has the value. Of a weight that is not finite the kernels of GPUs may make
    NaN in the gradients of rows that it does not meet, those of padding: there everything else is lost as well."""
    clean = find_sample(op, name).to(target.device, target.dtype)
    for changed in clean.tensors:
        if target.backend != "cpu" and ("weight" in changed or "bias" in changed):
            continue
        sample = clean.to(target.device, target.dtype)
        sample.tensors[changed].view(-1)[0] = value
        for tensor in sample.tensors.values():
            tensor.requires_grad_()
        require_same_kinds(sample, target.backend, f"{changed} = {value}")


@quiet
@each_value
@each_case
@each_target
def test_an_answer_agrees_on_one_entry_of_each_input(target: Target, op: str, name: str, value: float) -> None:
    check_each_input(op, name, target, value)


@each_value
@each_case
def test_the_kernels_for_cuda(op: str, name: str, value: float, cuda_host: ModuleType) -> None:
    check_each_input(op, name, ON_HOST, value)


def staying() -> Sample:
    """Of gru_sequence: an infinite state of the first row's first unit, whose gate z keeps it and whose gates r are 1:
    no other unit is lost."""
    sample = find_sample("gru_sequence", "plain")
    weight, h0 = sample.tensors["weight_hh"].clone(), sample.tensors["h0"].clone()
    hidden = h0.shape[1]
    weight[: hidden + 1, 0], h0[0, 0] = 1.0, math.inf
    return sample.replace({"weight_hh": weight, "h0": h0})


def check_a_state_that_stays(target: Target) -> None:
    sample = staying().to(target.device, target.dtype, requires_grad=True)
    output = sample.run(target.backend)["output"]
    assert (output[:, 0, 0] == math.inf).all()
    assert output[:, 0, 1:].isfinite().all()
    assert output[:, 1:].isfinite().all()
    require_same_kinds(sample, target.backend, "an infinite state that stays")


@quiet
@each_target
def test_an_infinite_state_that_stays_agrees(target: Target) -> None:
    check_a_state_that_stays(target)


def test_an_infinite_state_that_stays_for_cuda(cuda_host: ModuleType) -> None:
    check_a_state_that_stays(ON_HOST)


def test_an_infinite_state_is_not_hidden() -> None:
    """As torch.nn.GRU: the row with it is not finite, the other rows are as ever."""
    sample = find_sample("gru_sequence", "plain").to("cpu", torch.float32)
    want = sample.run("cpu")["h_n"]
    h0 = sample.tensors["h0"].clone()
    h0[0, 0] = math.inf
    for backend in ("cpu", "reference"):
        h_n = sample.replace({"h0": h0}).run(backend)["h_n"]
        assert not h_n[0].isfinite().all()
        torch.testing.assert_close(h_n[1:], want[1:])


def without_steps(sample: Sample) -> Tensor:
    """[B] bool: the rows that take no step."""
    if "batch_sizes" in sample.options:
        first = sample.options["batch_sizes"][:1].sum()
        return torch.arange(len(sample.tensors["h0"])) >= first
    return sample.options["lengths"] == 0


IDLE = [
    sample
    for op in RECURRENT
    for sample in ROWS[op].samples()
    if sample.options.keys() & {"batch_sizes", "lengths"} and without_steps(sample).any()
]
each_idle = pytest.mark.parametrize("sample", IDLE, ids=str)


def check_rows_without_steps(sample: Sample, value: float, run: Callable[[Sample], dict[str, Tensor]]) -> None:
    """Whatever they start from, nothing of another row and no gradient differs: the same bits."""
    found = []
    for filled in (0.5, value):
        states = {name: sample.tensors[name].clone() for name in ROWS[sample.op].states if name in sample.tensors}
        for state in states.values():
            state[without_steps(sample).to(state.device)] = filled
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in (sample.tensors | states).items()}
        one = sample.replace(leaves)
        outputs = run(one)
        grads = gradients(one, outputs, cotangents(outputs))
        if "h_n" in outputs:  # there it is handed on
            outputs["h_n"] = outputs["h_n"][~without_steps(sample).to(outputs["h_n"].device)]
        found.append(outputs | grads)
    want, got = found
    for name, tensor in want.items():
        assert_equal(name, got[name].detach(), tensor.detach())


@quiet
@pytest.mark.parametrize("value", [math.inf, math.nan])
@each_idle
@pytest.mark.parametrize("target", targets(), ids=str)
def test_what_a_row_without_steps_starts_from_counts_for_nothing(target: Target, sample: Sample, value: float) -> None:
    check_rows_without_steps(sample.to(target.device, target.dtype), value, lambda one: one.run(target.backend))


@pytest.mark.parametrize("value", [math.inf, math.nan])
@each_idle
def test_nor_in_the_kernels_for_cuda(sample: Sample, value: float, cuda_host: ModuleType) -> None:
    check_rows_without_steps(sample.to(ON_HOST.device, ON_HOST.dtype), value, lambda one: one.run(ON_HOST.backend))


@pytest.mark.parametrize("value", [math.inf, math.nan])
@each_idle
def test_nor_in_the_plain_reference(sample: Sample, value: float) -> None:
    """Which a second derivative takes."""
    check_rows_without_steps(sample, value, lambda one: one.run_plain())
