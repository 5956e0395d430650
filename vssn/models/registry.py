"""Models by the name that a configuration and a checkpoint have for them: one row each."""

from __future__ import annotations

from vssn.models.dvbf import DVBF
from vssn.models.pgn import PGN
from vssn.models.rssm import RSSM
from vssn.models.vrnn import VRNN
from vssn.models.vssn import VSSN
from vssn.nn.interface import SequenceModel

MODELS: dict[str, type[SequenceModel]] = {
    "vssn": VSSN,
    "vrnn": VRNN,
    "rssm": RSSM,
    "dvbf": DVBF,
    "pgn": PGN,
}
