"""Emission densities p(x_t | z_t, d_t): one file each, which enters itself into the registry (`register`)."""

from importlib import import_module
from pkgutil import iter_modules

from vssn.likelihoods.base import Likelihood
from vssn.likelihoods.registry import LIKELIHOODS, make_likelihood, register
from vssn.utils.values import BINARY, COUNTS, REAL, UNIT, Support

# isort: off
# In the order in which messages list them.
from vssn.likelihoods.factorised import Bernoulli, Gaussian, Mixture
from vssn.likelihoods.nade import NADE
from vssn.likelihoods.ar_gaussian import ArGaussian
from vssn.likelihoods.student_t import StudentT
from vssn.likelihoods.poisson import Poisson
from vssn.likelihoods.negative_binomial import NegativeBinomial
from vssn.likelihoods.categorical import Categorical
# isort: on

for _module in iter_modules(__path__):  # a new file is enough
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "BINARY",
    "COUNTS",
    "LIKELIHOODS",
    "NADE",
    "REAL",
    "UNIT",
    "ArGaussian",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "Mixture",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "Support",
    "make_likelihood",
    "register",
]
