"""InterleavedChain: the op with weights of its own; the halves of a step are the op's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vssn.nn.interleaved import InterleavedChain

T, B, H, Z, E, M = 4, 3, 5, 2, 6, 7


def made(**options: Any) -> tuple[InterleavedChain, dict[str, Tensor]]:
    torch.manual_seed(0)
    chain = InterleavedChain(H, Z, E, M, dtype=torch.float64, **options)
    given = {
        "gates_x": torch.randn(T, B, 3 * H),
        "embed_context": torch.randn(T, B, E),
        "context": torch.randn(T, B, M),
        "h0": torch.randn(B, H),
        "z0": torch.randn(B, Z),
        "eps": torch.randn(T, B, Z),
    }
    return chain, {name: tensor.double() for name, tensor in given.items()}


@pytest.mark.parametrize("options", [{}, {"scale": "softplus", "embed_activation": "elu", "activation": "elu"}])
def test_steps_are_the_sequence(options: dict[str, Any]) -> None:
    chain, given = made(**options)
    hs, zs, mus, logvars = chain(**given)
    h, z = given["h0"], given["z0"]
    for t in range(T):
        h = chain.step(given["gates_x"][t], given["embed_context"][t], h, z)
        mu, logvar = chain.posterior(given["context"][t], h)
        z = mu + torch.exp(logvar / 2) * given["eps"][t]
        for own, whole in ((h, hs), (mu, mus), (logvar, logvars), (z, zs)):
            torch.testing.assert_close(own, whole[t], rtol=0, atol=1e-12)


def test_resets_and_lengths_reach_the_op() -> None:
    chain, given = made()
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2, 1] = True
    reset_h, reset_z = torch.ones(B, H).double(), torch.ones(B, Z).double()
    lengths = torch.tensor([4, 4, 2])
    h, z, *_ = chain(**given, lengths=lengths, resets=resets, reset_h=reset_h, reset_z=reset_z)
    anew = chain.step(given["gates_x"][2], given["embed_context"][2], reset_h, reset_z)
    torch.testing.assert_close(h[2, 1], anew[1], rtol=0, atol=1e-12)
    assert not h[2:, 2].any()
    assert not z[2:, 2].any()
    assert h[1, 2].all()


def test_weights_start_within_the_bounds_of_their_layers() -> None:
    chain, _ = made(embed_inputs=2, context_inputs=11)
    bounds = {"weight_embed": 4, "weight_zh": H, "weight_hh": H, "bias_hh": H, "weight_h": 16, "weight_out": M}
    for name, parameter in chain.named_parameters():
        bound = 1 / math.sqrt(bounds.get(name, M))
        assert 0.5 * bound < parameter.abs().max().item() <= bound, name
    before = chain.weight_zh.clone()
    chain.reset_parameters()
    assert not torch.equal(before, chain.weight_zh)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "std"}, "scale must be one of logvar, softplus, got 'std'"),
        ({"activation": "sine"}, "activation must be one of"),
        ({"min_std": -1.0}, "min_std must be a finite number of at least 0.0, got -1.0"),
        ({"embed_inputs": -1}, "embed_inputs must be an int of at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InterleavedChain(H, Z, E, M, **options)
