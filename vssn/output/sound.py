"""Sound: waveforms as WAV, and a plain synthesiser for piano rolls.

A note of frequency f that sounds for L seconds from its start is

    min(t / ATTACK, 1) sum_k k^-1.2 sin(2 pi k f t) exp(-DECAY k^0.5 t),   t < L

over its partials k below half the rate, and fades within RELEASE seconds behind L: struck strings, more or less. What
is louder than full scale is scaled down as a whole, never cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vssn.errors import DataError
from vssn.output.notes import LOWEST_NOTE, notes_of
from vssn.utils.command import replacing
from vssn.utils.packages import needing

Array = np.ndarray[Any, Any]
RATE = 22050  # Hz, of what is synthesised
PARTIALS, ATTACK, DECAY, RELEASE = 8, 0.005, 1.6, 0.06
LOUDEST = 0.9  # of full scale


def synthesise(
    roll: Array, frames_per_second: float, *, rate: int = RATE, lowest_note: int = LOWEST_NOTE
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The sound of a piano roll: [N] float32 in [-0.9, 0.9], silent where no note sounds.

    Args:
        roll: [T, K] of 0 and 1; frames of 1 in a row are one note.
        frames_per_second: of the roll.
        rate: samples a second.
        lowest_note: MIDI number of column 0.
    """
    seconds = len(roll) / frames_per_second
    sound = np.zeros(int(np.ceil((seconds + RELEASE) * rate)) + 1, np.float32)
    tones: dict[tuple[int, int], Array] = {}  # by pitch and frames: most notes come again
    for start, length, pitch in notes_of(roll, lowest_note):
        if (pitch, length) not in tones:
            tones[pitch, length] = _tone(440.0 * 2 ** ((pitch - 69) / 12), length / frames_per_second, rate)
        tone, first = tones[pitch, length], round(start / frames_per_second * rate)
        sound[first : first + len(tone)] += tone[: len(sound) - first]
    peak = float(np.abs(sound).max(initial=0.0))
    return sound * np.float32(LOUDEST / peak) if peak > 0 else sound


def _tone(frequency: float, seconds: float, rate: int) -> Array:
    time = np.arange(round((seconds + RELEASE) * rate)) / rate
    partials = [k for k in range(1, PARTIALS + 1) if k * frequency < rate / 2]
    tone = np.zeros(len(time))
    for k in partials:
        tone += k**-1.2 * np.sin(2 * np.pi * k * frequency * time) * np.exp(-DECAY * k**0.5 * time)
    tone *= np.minimum(time / ATTACK, 1.0) * np.clip((seconds + RELEASE - time) / RELEASE, 0.0, 1.0)
    return tone.astype(np.float32)


def write_sound(path: str | Path, wave: Array, rate: float) -> None:
    """A WAV of 16 bits.

    Args:
        path: of the file; its folder is there.
        wave: [N] real numbers; a wave that leaves [-1, 1] is scaled down as a whole.
        rate: samples a second.

    Raises:
        DataError: the wave is empty or not finite.
        PackageError: soundfile is not installed.
    """
    with needing("files"):
        import soundfile

    wave = np.asarray(wave, np.float64).reshape(-1)
    if not len(wave) or not np.isfinite(wave).all():
        raise DataError(f"{path}: expected a wave of finite numbers, got {_came(wave)}; there is nothing to listen to")
    peak = float(np.abs(wave).max())
    with replacing(Path(path)) as part:
        soundfile.write(part, wave / max(peak, 1.0), round(rate), format="WAV", subtype="PCM_16")


def _came(wave: Array) -> str:
    return "none" if not len(wave) else f"{(~np.isfinite(wave)).sum()} of {len(wave)} that are not"
