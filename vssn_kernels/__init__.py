"""Fused recurrences of the Variational Structured Stochastic Network, under autograd.

The size alphabet and the map from a public function to its kernels stand in README.md beside this file.
"""

from vssn_kernels.backend.table import backends, info, use_backend
from vssn_kernels.ops.gaussian import gaussian_kl, gaussian_rsample_kl
from vssn_kernels.ops.gru import gru_sequence
from vssn_kernels.ops.posterior import PriorMean, posterior_sequence
from vssn_kernels.version import __version__

__all__ = [
    "PriorMean",
    "__version__",
    "backends",
    "gaussian_kl",
    "gaussian_rsample_kl",
    "gru_sequence",
    "info",
    "posterior_sequence",
    "use_backend",
]
