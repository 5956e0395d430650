"""Piano rolls as notes."""

from __future__ import annotations

from typing import Any

import numpy as np

from vssn.errors import DataError

LOWEST_NOTE = 21  # MIDI number of column 0 of a roll of 88 keys
Array = np.ndarray[Any, Any]


def notes_of(roll: Array, lowest_note: int = LOWEST_NOTE) -> list[tuple[int, int, int]]:
    """(first frame, frames, MIDI number) of every note, by their starts, then from low to high.

    Args:
        roll: [T, K]; what is at least 0.5 sounds. A roll does not tell a note that is held from one that is struck
            again: frames in a row are one note.

    Raises:
        DataError: no roll, or keys beyond the MIDI numbers.
    """
    roll = np.asarray(roll)
    if roll.ndim != 2 or lowest_note < 0 or lowest_note + roll.shape[1] > 128:
        raise DataError(
            f"roll must have shape [T, keys] of MIDI numbers in [0, 127], got {list(roll.shape)} from {lowest_note} on"
        )
    on = np.zeros((len(roll) + 2, roll.shape[1]), np.int8)
    on[1:-1] = roll >= 0.5
    change = np.diff(on, axis=0).T  # [K, T+1]: by key, then by time, so that starts and ends go together
    keys, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    order = np.lexsort((keys, starts))
    return [(int(starts[i]), int(ends[i] - starts[i]), int(keys[i]) + lowest_note) for i in order]
