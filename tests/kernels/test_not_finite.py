"""What is not finite: the C++ kernels answer as the reference does, number by number NaN, inf, -inf or finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vssn_kernels.testing import RECURRENT, ROWS, Sample, cotangents, find_sample, gradients, ops_of

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
CASES = [(op, name) for op in ops_of("cpu") for name in NAMES.get(op, (ROWS[op].rich,))]


def kinds(tensor: Tensor) -> Tensor:
    """0 for what is finite, 1 for inf, -1 for -inf, 2 for NaN."""
    detached = tensor.detach()
    return torch.where(detached.isnan(), 2, torch.where(detached.isinf(), detached.sign(), torch.zeros_like(detached)))


def answers(sample: Sample, backend: str) -> dict[str, Tensor]:
    outputs = sample.run(backend)
    return outputs | (gradients(sample, outputs, cotangents(outputs)) if sample.op in RECURRENT else {})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("op", "name"), CASES)
def test_one_entry_of_each_input(op: str, name: str, dtype: torch.dtype, value: float) -> None:
    clean = find_sample(op, name).to("cpu", dtype)
    for changed in clean.tensors:
        sample = clean.to("cpu", dtype)
        sample.tensors[changed].view(-1)[0] = value
        for tensor in sample.tensors.values():
            tensor.requires_grad_()
        got, want = answers(sample, "cpu"), answers(sample, "reference")
        for part, expected in want.items():
            where = f"{part} with {changed} = {value}"
            assert torch.equal(kinds(got[part]), kinds(expected)), where


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
