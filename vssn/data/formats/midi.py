"""MIDI files as piano rolls, with symusic: x [T, 88] of 0 and 1, a row for each `per_beat`th part of a quarter note,
a column for each key from MIDI note 21 on, 1 while it sounds.

Notes begin and end at the nearest row, and last one at least. All tracks sound together, without drums.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vssn.data.formats.base import Source, damaged
from vssn.data.music import LOWEST_NOTE, NUM_NOTES
from vssn.errors import DataError
from vssn.utils.packages import needing

SUFFIXES = (".mid", ".midi")
PER_BEAT = 4
_MOST_FRAMES = 1_000_000
_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def read_midi(path: Path, *, per_beat: int = PER_BEAT) -> Source:
    """Raises DataError.

    Args:
        per_beat: rows in a quarter note: 4 for sixteenths.
    """
    with needing("files", DataError):
        symusic: Any = importlib.import_module("symusic")
    if not isinstance(per_beat, int) or per_beat < 1:
        raise DataError(f"per_beat: expected a whole number of at least 1, got {per_beat!r}")
    try:
        score = symusic.Score.from_midi(path.read_bytes())
        notes = [
            (note.start / score.tpq, note.end / score.tpq, note.pitch)
            for track in score.tracks
            if not track.is_drum
            for note in track.notes
        ]
    except Exception as error:  # whatever the damaged bytes lead the reader to
        raise damaged(path, "a MIDI file", error) from None
    inside = [note for note in notes if LOWEST_NOTE <= note[2] < LOWEST_NOTE + NUM_NOTES]
    if not inside:
        raise DataError(f"{path}: expected notes of the 88 keys, got {len(notes)} others and drums; leave the file out")
    times = np.array(inside) * (per_beat, per_beat, 1)
    starts = np.floor(times[:, 0] + 0.5).astype(np.int64)
    ends = np.maximum(np.floor(times[:, 1] + 0.5).astype(np.int64), starts + 1)
    if ends.max() > _MOST_FRAMES:
        raise DataError(f"{path}: expected at most {_MOST_FRAMES:,} rows, got {ends.max():,}; give a smaller per_beat")
    roll = np.zeros((ends.max(), NUM_NOTES), dtype=np.float32)
    for start, end, pitch in zip(starts, ends, times[:, 2].astype(np.int64), strict=True):
        roll[start:end, pitch - LOWEST_NOTE] = 1
    left_out = len(notes) - len(inside)
    return Source(
        x=[torch.from_numpy(roll)],
        u=None,
        names=[path.stem],
        channels=[f"{_NAMES[note % 12]}{note // 12 - 1}" for note in range(LOWEST_NOTE, LOWEST_NOTE + NUM_NOTES)],
        controls=[],
        times=[np.arange(len(roll)) / per_beat],
        step=1 / per_beat,
        kind="midi",
        rate=float(per_beat),
        options={"per_beat": per_beat},
        remarks=(f"{left_out} notes beyond the 88 keys are left out in {path.name}",) if left_out else (),
    )
