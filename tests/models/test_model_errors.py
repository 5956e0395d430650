"""What VSSN says to wrong settings, inputs, states and modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import (
    B,
    D,
    T,
    U,
    W,
    X,
    Z,
    batch,
    make,
    zeros,
)
from torch import nn

from vssn import VSSN, VSSNLayer

WRONG_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 0, "latent_size": 0}, "hidden_size and latent_size must not both be 0"),
    ({"hidden_size": 0, "noise_size": 2, "mlp_size": 3, "backward_size": 3}, "noise_size must be 0 with hidden_size=0"),
    ({"hidden_size": 0, "noise_size": 0}, "mlp_size and backward_size must be given with hidden_size=0"),
    ({"hidden_size": 0, "noise_size": 0, "mlp_size": 3}, "mlp_size and backward_size must be given"),
    ({"hidden_size": 0, "noise_size": 0, "backward_size": 3}, "mlp_size and backward_size must be given"),
    (
        {
            "hidden_size": 0,
            "noise_size": 0,
            "mlp_size": 3,
            "backward_size": 3,
            "universal": "gaussian",
            "num_sequences": 2,
        },
        "universal must be 'point' with hidden_size=0",
    ),
    ({"x_size": 0}, "x_size must be an int of at least 1, got 0"),
    ({"x_size": 2.0}, "x_size must be an int of at least 1, got 2.0"),
    ({"hidden_size": -1}, "hidden_size must be an int of at least 0, got -1"),
    ({"latent_size": "3"}, "latent_size must be an int of at least 0, got '3'"),
    ({"noise_size": True}, "noise_size must be an int of at least 0, got True"),
    ({"mlp_size": 0}, "mlp_size must be an int of at least 1, got 0"),
    ({"backward_size": 0}, "backward_size must be an int of at least 1, got 0"),
    ({"embed_size": 0}, "embed_size must be an int of at least 1, got 0"),
    ({"mixture_size": 0, "likelihood": "mixture"}, "mixture_size must be an int of at least 1, got 0"),
    (
        {"likelihood": "gamma"},
        "likelihood must be one of bernoulli, gaussian, mixture, nade, ar_gaussian, student_t, poisson, "
        "negative_binomial, categorical, got 'gamma'",
    ),
    ({"control": "next"}, "control must be one of previous, external, both, none, got 'next'"),
    ({"control": None}, "control must be one of previous, external, both, none, got None"),
    ({"control": "external"}, "control_size must be an int of at least 1, got 0"),
    ({"control": "both", "embed_size": 3}, "control_size must be an int of at least 1, got 0"),
    ({"control": "both", "control_size": -1, "embed_size": 3}, "control_size must be an int of at least 1, got -1"),
    ({"control": "previous", "control_size": 2}, "control_size must be 0 with control='previous'"),
    (
        {"control": "previous", "control_size": 2, "embed_size": 3},
        "control_size must be 0 with control='previous', got 2",
    ),
    ({"activation": "gelu"}, "activation must be one of tanh, relu, leaky_relu, silu, got 'gelu'"),
    ({"universal": "laplace"}, "universal must be one of point, gaussian, got 'laplace'"),
    ({"universal": "gaussian"}, "num_sequences must be given with universal='gaussian'"),
    ({"universal": "gaussian", "num_sequences": 0}, "num_sequences must be an int of at least 1, got 0"),
    (
        {"universal": "gaussian", "num_sequences": 3, "prior_std": 0.0},
        "prior_std must be a finite number above 0, got 0.0",
    ),
    ({"prior_std": float("nan")}, "prior_std must be a finite number above 0, got nan"),
    ({"objective": "mse"}, "objective must be one of elbo, paper, iwae, fivo, nasmc, got 'mse'"),
    ({"free_bits": -0.1}, "free_bits must be"),
    ({"free_bits": float("nan")}, "free_bits must be"),
    ({"free_bits": "some"}, "free_bits must be"),
    ({"min_logvar": float("nan")}, "min_logvar must be"),
    ({"min_logvar": "low"}, "min_logvar must be"),
    ({"min_logvar_x": float("inf"), "likelihood": "gaussian"}, "min_logvar_x must be"),
    ({"encoder": nn.Identity()}, "embed_size must be given with encoder"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG_SETTINGS, ids=lambda value: str(value)[:50])
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        VSSN(**{"x_size": X, "hidden_size": D, "latent_size": Z, "noise_size": W} | settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
    ({"x": zeros(T, B)}, ValueError, f"x must have shape [T, B, X] with X = {X}, got [5, 4]"),
    ({"x": zeros(T, B, X + 1)}, ValueError, f"x must have shape [T, B, X] with X = {X}, got [5, 4, 5]"),
    ({"x": zeros(T, B, X).long()}, TypeError, "x must be floating point, got torch.int64"),
    ({"u": None}, ValueError, "u is missing"),
    ({"u": zeros(T, B, U + 1)}, ValueError, "u must have shape [T, B, U] = [5, 4, 2], got [5, 4, 3]"),
    ({"u": zeros(T - 1, B, U)}, ValueError, "u must have shape [T, B, U] = [5, 4, 2], got [4, 4, 2]"),
    ({"u": 3}, TypeError, "u must be a torch.Tensor, got int"),
    ({"lengths": torch.tensor([1, 2])}, ValueError, "lengths must have shape [B] = [4], got [2]"),
    ({"lengths": [1, 2, 3, 4]}, TypeError, "lengths must be a torch.Tensor, got list"),
    ({"lengths": torch.tensor([1, 2, 3, 6])}, ValueError, "lengths must lie in [0, T] = [0, 5], got 6"),
    ({"lengths": torch.tensor([1, 2, 3, -1])}, ValueError, "lengths must lie in [0, T] = [0, 5], got -1"),
    ({"lengths": torch.tensor([1.0, 2, 3, 4])}, TypeError, "lengths must be int64, got torch.float32"),
    ({"lengths": torch.tensor([1, 2, 3, 4]).int()}, TypeError, "lengths must be int64, got torch.int32"),
    ({"state": zeros(B, D)}, TypeError, "state must be a tuple (d, z, x_last) or None, got Tensor"),
    ({"state": (zeros(B, D),)}, TypeError, "state must be a tuple (d, z, x_last) or None, got tuple of 1"),
    ({"state": (zeros(B, D), zeros(B, Z))}, TypeError, "state must be a tuple (d, z, x_last) or None"),
    ({"state": (zeros(B, D), zeros(B, Z + 1), zeros(B, X))}, ValueError, "state's z must have shape [B, Z] = [4, 3]"),
    ({"state": (zeros(B, D), zeros(B, Z), None)}, TypeError, "state's x_last must be a torch.Tensor, got NoneType"),
    ({"noise": zeros(T, B, W)}, TypeError, "noise must be a tuple (eps_w, eps_z) or None, got Tensor"),
    ({"noise": [zeros(T, B, W)]}, TypeError, "noise must be a tuple (eps_w, eps_z) or None, got list of 1"),
    ({"noise": (zeros(T, B, W),)}, TypeError, "noise must be a tuple (eps_w, eps_z) or None"),
    ({"noise": (zeros(T, B, Z), zeros(T, B, W))}, ValueError, "noise's eps_w must have shape [T, B, W] = [5, 4, 2]"),
    ({"noise": (zeros(T, B, W), None)}, TypeError, "noise's eps_z must be a torch.Tensor, got NoneType"),
    ({"mask": zeros(T, B)}, TypeError, "mask must be a bool torch.Tensor, got torch.float32"),
    ({"mask": [True]}, TypeError, "mask must be a bool torch.Tensor, got list"),
    ({"mask": zeros(T, B, 1).bool()}, ValueError, "mask must have shape [T, B] or [T, B, X] as x has, got [5, 4, 1]"),
    ({"mask": zeros(B, T).bool()}, ValueError, "mask must have shape [T, B] or [T, B, X] as x has, got [4, 5]"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG_CALLS, ids=lambda value: str(value)[:40])
def test_wrong_calls(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = make("both", torch.float32)
    with pytest.raises(error) as caught:
        model(**{"x": zeros(T, B, X), "u": zeros(T, B, U)} | arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rnn", "storn", "dkf", "srnn"])
@pytest.mark.parametrize("wrong", [-1, T + 1])
def test_lengths_are_checked_in_every_ablation(name: str, wrong: int) -> None:
    model = make(name)
    with pytest.raises(ValueError, match=rf"lengths must lie in \[0, T\] = \[0, {T}\], got {wrong}"):
        model(**batch(model), lengths=torch.tensor([1, wrong, 2, 3]))


def test_a_model_without_external_control_refuses_one() -> None:
    model = make("vssn", torch.float32)
    with pytest.raises(ValueError, match="u must be None: this model has no external control"):
        model(zeros(T, B, X), zeros(T, B, U))


def test_batch_first_errors_speak_of_the_callers_layout() -> None:
    model = make("both", torch.float32, batch_first=True)
    x, u = zeros(B, T, X), zeros(B, T, U)
    with pytest.raises(ValueError, match=r"x must have shape \[B, T, X\]"):
        model(zeros(B, X), u)
    with pytest.raises(ValueError, match=r"u must have shape \[B, T, U\] = \[4, 5, 2\], got \[5, 4, 2\]"):
        model(x, zeros(T, B, U))
    with pytest.raises(ValueError, match=r"mask must have shape \[B, T\] or \[B, T, X\] as x has, got \[5, 4\]"):
        model(x, u, mask=zeros(T, B).bool())
    with pytest.raises(ValueError, match=r"noise's eps_w must have shape \[B, T, W\] = \[4, 5, 2\], got \[5, 4, 2\]"):
        model(x, u, noise=(zeros(T, B, W), zeros(T, B, Z)))


def test_modules_of_the_wrong_width_are_named() -> None:
    x = torch.rand(3, 2, 5)
    with pytest.raises(
        ValueError, match=r"what encoder returns must have shape \[N, embed_size\] = \[8, 4\], got \[8, 3\]"
    ):
        VSSN(5, 4, 3, embed_size=4, encoder=torch.nn.Linear(5, 3))(x)
    with pytest.raises(ValueError, match=r"what decoder returns must have shape .* = \[6, 5\], got \[6, 2\]"):
        VSSN(5, 4, 3, decoder=torch.nn.Linear(7, 2))(x)


@pytest.mark.parametrize("make", [lambda: VSSN(5, 4, 3), lambda: VSSNLayer(5, 4, 3)])
def test_x_of_another_dtype_than_the_parameters(make) -> None:
    with pytest.raises(TypeError, match=r"x must be torch.float32 as the parameters are, got torch.float64; convert"):
        make()(torch.rand(3, 2, 5).double())
