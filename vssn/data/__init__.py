"""Data for VSSN: the sets (`vssn.data.registry`), data of one's own in Python (`vssn.data.splits`) and in files
(`vssn.data.formats`), and the batches that a model takes (`vssn.data.batching`). Import the parts by name.
"""

from vssn.errors import DataError

__all__ = ["DataError"]
