"""The Variational Structured Stochastic Network: layers, models, inference, data and training.

The fused ops live in `vssn_kernels`; training and the command line need `pip install -e .[train]`.
"""

from typing import TYPE_CHECKING, Any

from vssn.utils import starting as _starting  # isort: skip  # noqa: F401  # ahead of PyTorch

from vssn.models.dvbf import DVBF
from vssn.models.pgn import PGN
from vssn.models.rssm import RSSM
from vssn.models.vrnn import VRNN
from vssn.models.vssn import VSSN, VSSNOutput
from vssn.nn.gru import GRU, TorchGRU
from vssn.nn.interface import Forecast, Generation, Imputation, Latents
from vssn.nn.layer import LayerOutput, State, VSSNLayer
from vssn.nn.replace import replace_gru
from vssn.nn.rssm_layer import RSSMLayer
from vssn.nn.rssm_states import RSSMState
from vssn.utils.late import modules_of
from vssn.utils.scaling import Scaling
from vssn_kernels.version import __version__

if TYPE_CHECKING:
    from vssn import data as data
    from vssn import export as export
    from vssn import inference as inference
    from vssn import training as training
    from vssn.estimator import Forecaster
    from vssn.inference.importance import sequence_bounds
    from vssn.inference.scoring import evaluate
    from vssn.models.pretrained import from_pretrained
    from vssn.training.fit import fit

__all__ = [
    "DVBF",
    "GRU",
    "PGN",
    "RSSM",
    "VRNN",
    "VSSN",
    "Forecast",
    "Forecaster",
    "Generation",
    "Imputation",
    "Latents",
    "LayerOutput",
    "RSSMLayer",
    "RSSMState",
    "Scaling",
    "State",
    "TorchGRU",
    "VSSNLayer",
    "VSSNOutput",
    "__version__",
    "evaluate",
    "fit",
    "from_pretrained",
    "replace_gru",
    "sequence_bounds",
]
# Imported when they are asked for: importing vssn needs torch and numpy alone, and is quick.
_LATE = {
    "Forecaster": "estimator",
    "evaluate": "inference.scoring",
    "fit": "training.fit",
    "from_pretrained": "models.pretrained",
    "sequence_bounds": "inference.importance",
}
_PARTS = ("data", "export", "inference", "training")  # modules, likewise


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return modules_of("vssn")(name)
    if name not in _LATE:
        raise AttributeError(f"module 'vssn' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"vssn.{_LATE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE, *_PARTS})
