"""The three parts of a data set."""

from __future__ import annotations

from typing import NamedTuple

from vssn.data.batching import SequenceDataset


class Splits(NamedTuple):
    train: SequenceDataset
    valid: SequenceDataset
    test: SequenceDataset
