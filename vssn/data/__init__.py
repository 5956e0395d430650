"""Data for VSSN: the sets (`vssn.data.registry`), data of one's own in Python (`vssn.data.splits`) and in files
(`vssn.data.formats`), and the batches that a model takes (`vssn.data.batching`). The parts are imported when they
are asked for.
"""

from vssn.errors import DataError
from vssn.utils.late import modules_of

__all__ = ["DataError"]

__getattr__ = modules_of(__name__)
