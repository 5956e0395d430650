"""Fused recurrences of the Variational Structured Stochastic Network, under autograd.

The size alphabet and the map from a public function to its kernels stand in README.md beside this file.
"""

from vssn_kernels.backend.memory import keep_memory
from vssn_kernels.backend.table import backends, info, use_backend
from vssn_kernels.ops import flops
from vssn_kernels.ops.bernoulli import bernoulli_log_prob
from vssn_kernels.ops.gaussian import gaussian_kl, gaussian_rsample_kl
from vssn_kernels.ops.gru import gru_sequence
from vssn_kernels.ops.gru_packed import gru_packed
from vssn_kernels.ops.interleaved import interleaved_sequence
from vssn_kernels.ops.mlp import gaussian_mlp, mlp, split_linear
from vssn_kernels.ops.posterior import PriorMean, posterior_sequence
from vssn_kernels.version import __version__

from vssn_kernels.ops.decompositions import decompositions  # isort: skip  # behind all ops

flops.register()

__all__ = [
    "PriorMean",
    "__version__",
    "backends",
    "bernoulli_log_prob",
    "decompositions",
    "gaussian_kl",
    "gaussian_mlp",
    "gaussian_rsample_kl",
    "gru_packed",
    "gru_sequence",
    "info",
    "interleaved_sequence",
    "keep_memory",
    "mlp",
    "posterior_sequence",
    "split_linear",
    "use_backend",
]
