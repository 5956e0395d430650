"""Data for VSSN: the polyphonic music sets, two simulators, and the batches that a model takes.

Import the parts by name: `vssn.data.music`, `vssn.data.balls`, `vssn.data.pendulum`, `vssn.data.batching`.
"""

from vssn.errors import DataError

__all__ = ["DataError"]
