"""Music: piano rolls as MIDI files, as sound and as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vssn.output.charts import draw_rolls
from vssn.output.notes import LOWEST_NOTE, notes_of
from vssn.output.sound import RATE, synthesise, write_sound
from vssn.utils.command import replacing
from vssn.utils.packages import needing

Array = np.ndarray[Any, Any]
TEMPO = 120.0  # beats a minute
_TICKS = 480  # a beat


def write_midi(
    path: str | Path,
    roll: Array,
    *,
    frames_per_beat: float,
    tempo: float = TEMPO,
    lowest_note: int = LOWEST_NOTE,
    velocity: int = 80,
) -> None:
    """One track, a piano's.

    Args:
        path: of the file; its folder is there.
        roll: [T, K] of 0 and 1, as `vssn.output.notes.notes_of` takes it.
        frames_per_beat: of the roll, such as 4 for sixteenths.
        tempo: beats a minute.
        lowest_note: MIDI number of column 0.
        velocity: of every note, 1 to 127.

    Raises:
        DataError: no roll.
        PackageError: symusic is not installed.
    """
    with needing("files"):
        import symusic

    score: Any = symusic.Score(_TICKS)  # its stubs leave the attributes out
    track: Any = symusic.Track("piano", 0, False)
    score.tempos.append(symusic.Tempo(0, tempo))
    for start, length, pitch in notes_of(roll, lowest_note):
        first, end = (round(frame * _TICKS / frames_per_beat) for frame in (start, start + length))
        track.notes.append(symusic.Note(first, end - first, pitch, velocity))
    score.tracks.append(track)
    with replacing(Path(path)) as part:
        score.dump_midi(part)


def write_music_sound(
    path: str | Path, roll: Array, *, frames_per_beat: float, tempo: float = TEMPO, lowest_note: int = LOWEST_NOTE
) -> None:
    """A WAV of the roll, synthesised; arguments and errors as in `write_midi`."""
    sound = synthesise(roll, frames_per_beat * tempo / 60, lowest_note=lowest_note)
    write_sound(path, sound, RATE)


def write_rolls(path: str | Path, rolls: Mapping[str, Array], *, title: str, lowest_note: int = LOWEST_NOTE) -> None:
    """A PNG of piano rolls [T, K], one above the other, by their names."""
    tensors = {name: torch.from_numpy(np.asarray(roll, np.float32)) for name, roll in rolls.items()}
    draw_rolls(tensors, path, title=title, lowest_note=lowest_note)
