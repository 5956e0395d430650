"""The Variational Structured Stochastic Network: layer, model, data and training.

The fused ops live in `vssn_kernels`; training and the command line need `pip install -e .[train]`.
"""

from vssn.gru import GRU, TorchGRU
from vssn.layer import LayerOutput, State, VSSNLayer
from vssn.model import VSSN, Generation, VSSNOutput
from vssn.replace import replace_gru
from vssn_kernels.version import __version__

__all__ = [
    "GRU",
    "VSSN",
    "Generation",
    "LayerOutput",
    "State",
    "TorchGRU",
    "VSSNLayer",
    "VSSNOutput",
    "__version__",
    "replace_gru",
]
