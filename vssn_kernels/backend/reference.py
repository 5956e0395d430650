"""The `reference` backend: pure PyTorch on any device, with the hand-written backward."""

from vssn_kernels.reference.bernoulli import bernoulli_log_prob_backward, bernoulli_log_prob_forward
from vssn_kernels.reference.gaussian import gaussian_backward, gaussian_forward
from vssn_kernels.reference.gru import gru_backward, gru_forward, gru_output
from vssn_kernels.reference.mlp import mlp_backward, mlp_forward
from vssn_kernels.reference.posterior import posterior_backward, posterior_forward

__all__ = [
    "bernoulli_log_prob_backward",
    "bernoulli_log_prob_forward",
    "gaussian_backward",
    "gaussian_forward",
    "gru_backward",
    "gru_forward",
    "gru_output",
    "mlp_backward",
    "mlp_forward",
    "posterior_backward",
    "posterior_forward",
]
