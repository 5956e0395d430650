"""Data for VSSN: the sets (`vssn.data.registry`), data of one's own (`vssn.data.splits`), and the batches that a model
takes (`vssn.data.batching`). Import the parts by name.
"""

from vssn.errors import DataError

__all__ = ["DataError"]
