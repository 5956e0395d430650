"""The error of csrc/cpu/math.h in units in the last place, against 40 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

from vssn_kernels import _cpu

# Function: (exact, smallest and largest argument for a normal float and double result).
FUNCTIONS = {
    "exp": (mpmath.exp, (-87.3, 88.72), (-708.3, 709.78)),
    "expm1": (mpmath.expm1, (-87.3, 88.72), (-708.3, 709.78)),
    "log": (mpmath.log, (1.2e-38, 3e38), (2.3e-308, 1e308)),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), (-87.3, 200.0), (-708.3, 2000.0)),
    "tanh": (mpmath.tanh, (-200.0, 200.0), (-2000.0, 2000.0)),
    "softplus": (lambda x: mpmath.log1p(mpmath.exp(x)), (-87.3, 1e6), (-708.3, 1e12)),
}
ULP = {"exp": 2, "expm1": 3, "log": 3, "sigmoid": 3, "tanh": 3, "softplus": 3}  # as csrc/cpu/math.h states


def evaluate(name: str, x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, torch.nan)
    storage = str(x.dtype).removeprefix("torch.")
    _cpu.evaluate(storage=storage, function=name, x=x.data_ptr(), y=y.data_ptr(), count=x.numel())
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_ulp(name: str, dtype: torch.dtype) -> None:
    exact, single, double = FUNCTIONS[name]
    low, high = single if dtype is torch.float32 else double
    random = np.random.default_rng(0)
    tiny = 10.0 ** random.uniform(-30, 0, 500)
    ends = np.concatenate((low + random.uniform(0, 1, 200), high - random.uniform(0, 1, 200)))
    parts = (random.uniform(low, high, 500), ends, random.uniform(-3, 3, 1000), tiny, -tiny, 1 + tiny, 1 - tiny / 2)
    points = np.concatenate((*parts, [low, high, 0.0, 1.0, -1.0]))
    x = torch.from_numpy(points[(points >= low) & (points <= high)]).to(dtype)
    y = evaluate(name, x).numpy()
    with mpmath.workdps(40):
        truth = [exact(mpmath.mpf(value)) for value in x.double().tolist()]
        nearest = np.array([float(value) for value in truth]).astype(y.dtype)
        errors = [
            float(abs(mpmath.mpf(float(got)) - value)) / float(np.spacing(abs(near)))
            for got, value, near in zip(y, truth, nearest, strict=True)
        ]
    worst = int(np.argmax(errors))
    assert errors[worst] <= ULP[name], f"{name}({x[worst]}) = {y[worst]}: {errors[worst]:.2f} ulp"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beyond_the_range(dtype: torch.dtype) -> None:
    inf = torch.inf
    tiny = torch.finfo(dtype).tiny / 64
    logarithms = evaluate("log", torch.tensor([0.0, inf, tiny, -1.0, -inf, torch.nan], dtype=dtype))
    assert logarithms[:3].tolist() == [-inf, inf, pytest.approx(float(np.log(tiny)), rel=1e-6)]
    assert logarithms[3:].isnan().all()
    x = torch.tensor([-inf, -1e30, 1e30, inf, torch.nan], dtype=dtype)
    for name, expected in {
        "exp": [0, 0, inf, inf],
        "expm1": [-1, -1, inf, inf],
        "sigmoid": [0, 0, 1, 1],
        "tanh": [-1, -1, 1, 1],
        "softplus": [0, 0, 1e30, inf],
    }.items():
        y = evaluate(name, x).tolist()
        for got, value in zip(y, expected, strict=False):
            exact = name in ("exp", "sigmoid")  # a gate of 0 times an infinite state is NaN, of 1e-38 it is not
            assert got == (value if exact else pytest.approx(value, rel=1e-6, abs=1e-37)), name
        assert y[4] != y[4], name
