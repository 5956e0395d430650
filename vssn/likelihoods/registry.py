"""Emission densities p(x_t | z_t, d_t): log-density of a frame, mean and samples, from a decoder's output.

`support` says which values of x have a density. `log_prob` does not look at them: VSSN checks x once, for all that it
does with it (`vssn.utils.values.require_values`).
"""

from __future__ import annotations

from typing import Any

from vssn.likelihoods.ar_gaussian import ArGaussian
from vssn.likelihoods.factorised import Bernoulli, Gaussian, Mixture
from vssn.likelihoods.nade import NADE

LIKELIHOODS = ("bernoulli", "gaussian", "mixture", "nade", "ar_gaussian")


Likelihood = Bernoulli | Gaussian | Mixture | NADE | ArGaussian


def make_likelihood(
    name: str, x_size: int, mixture_size: int, min_logvar_x: float, nade_size: int, **factory: Any
) -> Likelihood:
    if name == "bernoulli":
        return Bernoulli(x_size)
    if name == "gaussian":
        return Gaussian(x_size, min_logvar_x)
    if name == "mixture":
        return Mixture(x_size, mixture_size, min_logvar_x)
    if name == "nade":
        return NADE(x_size, nade_size, **factory)
    if name == "ar_gaussian":
        return ArGaussian(x_size, min_logvar_x, **factory)
    raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {name!r}")
