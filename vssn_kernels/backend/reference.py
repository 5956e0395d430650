"""The `reference` backend: pure PyTorch on any device, with the hand-written backward."""

from vssn_kernels.reference.gaussian import (
    gaussian_kl_backward,
    gaussian_kl_forward,
    gaussian_rsample_kl_backward,
    gaussian_rsample_kl_forward,
)
from vssn_kernels.reference.gru import gru_backward, gru_forward
from vssn_kernels.reference.posterior import posterior_backward, posterior_forward

__all__ = [
    "gaussian_kl_backward",
    "gaussian_kl_forward",
    "gaussian_rsample_kl_backward",
    "gaussian_rsample_kl_forward",
    "gru_backward",
    "gru_forward",
    "posterior_backward",
    "posterior_forward",
]
