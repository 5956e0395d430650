"""Bach's four-part chorales on a grid of quarter or of eighth notes, from the scores inside the package music21 (its
extra here: `chorales`): what the grid does to the figures of JSB, on the same pieces.

In a configuration: jsb_quarters, jsb_eighths. A sequence is a piano roll as those of `vssn.data.music`. A frame is what
sounds at its beginning, held or struck: a note that begins and ends between two frames is lost. So every second frame
on eighth notes is one on quarter notes, the grid of JSB itself.

The pieces are `bach/bwv*` of the corpus, in MusicXML; those without exactly four parts are left out. Repeats are not
played twice. A chorale may stand there under several numbers, in several keys, or with a few notes changed: of two that
share SHARED or more of their phrases, the one whose name comes later is left out. A phrase is PHRASE quarter notes in
succession, in any key. The split is our own, by the CRC-32 of a piece's name: three fifths train.

Reading the scores takes minutes. So the rolls are kept in the data folder, in FILE; remove it to have them read anew.
"""

from __future__ import annotations

import math
import zlib
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vssn.data.batching import SequenceDataset
from vssn.data.folder import data_folder
from vssn.data.music import HIGHEST_NOTE, LOWEST_NOTE, NUM_NOTES, Transpose
from vssn.data.registry import register
from vssn.data.splits import Splits
from vssn.errors import DataError
from vssn.utils.command import replacing
from vssn.utils.numbers import Size
from vssn.utils.packages import needing
from vssn.utils.values import BINARY

FILE = "bach_chorales.npz"  # in the data folder: a uint8 array [T, 88] on eighth notes for each piece, by its name
PARTS = 4
PER_QUARTER = {"jsb_quarters": 1, "jsb_eighths": 2}  # frames in a quarter note
FINEST = max(PER_QUARTER.values())
PHRASE, SHARED = 4, 0.25

Roll = NDArray[np.uint8]


def piano_roll(score: Any, per_quarter: int) -> Roll:
    """What sounds at the beginning of every frame, from the first note to the end of the last one.

    Args:
        score: a music21 Score.
        per_quarter: frames in a quarter note.

    Returns:
        0 and 1, [T, 88].

    Raises:
        DataError: a note that is no key of a piano.
    """
    sounding = []
    for part in score.parts:
        for note in part.flatten().notes:
            start = Fraction(note.offset)
            first, end = (math.ceil(time * per_quarter) for time in (start, start + Fraction(note.quarterLength)))
            sounding += [(first, end, pitch.midi) for pitch in note.pitches]
    roll = np.zeros((max((end for _, end, _ in sounding), default=0), NUM_NOTES), dtype=np.uint8)
    for first, end, note in sounding:
        if not LOWEST_NOTE <= note <= HIGHEST_NOTE:
            raise DataError(f"score: expected MIDI numbers from {LOWEST_NOTE} to {HIGHEST_NOTE}, got {note}")
        roll[first:end, note - LOWEST_NOTE] = 1
    return roll


def without_duplicates(rolls: dict[str, Roll]) -> dict[str, Roll]:
    """Rolls on the finest grid: those that share less than SHARED of their phrases with every one before them."""
    kept: dict[str, Roll] = {}
    known: list[set[bytes]] = []
    for name, roll in rolls.items():
        phrases = _phrases(roll[::FINEST])
        if all(len(phrases & other) < SHARED * min(len(phrases), len(other)) for other in known):
            kept[name] = roll
            known.append(phrases)
    return kept


def part_of(name: str) -> str:
    """The part of the split that a piece belongs to, which hangs on its name alone."""
    return {0: "test", 1: "valid"}.get(zlib.crc32(name.encode()) % 5, "train")


def load_chorales(folder: str | Path | None = None) -> dict[str, Roll]:
    """The rolls of all pieces by their names, [T, 88] on the finest grid: from FILE in the folder (None: that of
    VSSN_DATA), where they are put the first time.

    Raises:
        DataError: no folder is named or it cannot be written, FILE is damaged, or music21 is missing.
    """
    path = data_folder(folder, f"{FILE}, or is to hold it")[0] / FILE
    if path.is_file():
        return _kept(path)
    rolls = without_duplicates(read_corpus())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, **rolls)  # type: ignore[arg-type]  # names are no option of its own
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror}); name another folder") from None
    return rolls


@register(*PER_QUARTER, x_size=NUM_NOTES, values=BINARY, free=("folder",))
def load_splits(*, set: str, seed: int, folder: str | None = None, transpose: Size = 0) -> Splits:
    """The chorales on the grid of that name, as `fit` takes them. Raises DataError.

    Args:
        folder: None: the folder that VSSN_DATA names.
        transpose: augmentation: each training sequence moves by up to so many semitones.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in Splits._fields}
    for name, roll in load_chorales(folder).items():
        parts[part_of(name)].append(torch.from_numpy(roll[:: FINEST // PER_QUARTER[set]].copy()))
    train = SequenceDataset(parts["train"], transform=Transpose(transpose) if transpose else None, seed=seed)
    return Splits(train, SequenceDataset(parts["valid"]), SequenceDataset(parts["test"]))


def _phrases(roll: Roll) -> set[bytes]:
    """Of a roll on quarter notes: each one moved down until its lowest note is the lowest key."""
    phrases = set()
    for start in range(len(roll) - PHRASE + 1):
        phrase = roll[start : start + PHRASE]
        used = np.flatnonzero(phrase.any(0))
        if len(used):
            phrases.add(np.roll(phrase, -int(used[0]), axis=1).tobytes())
    return phrases


def read_corpus(names: str = "bwv*") -> dict[str, Roll]:
    """The chorales of the corpus whose names have that form, duplicates and all, [T, 88] on the finest grid. Raises
    DataError: music21 is missing."""
    with needing("chorales", DataError):
        music21: Any = import_module("music21")
    folder = Path(music21.__file__).parent / "corpus" / "bach"
    files = sorted(file for file in folder.glob(names) if file.suffix in (".mxl", ".xml"))
    if not files:
        raise DataError(f"expected the corpus of music21 in {folder}, found no {names} there; install the package anew")
    scores = ((file.stem, music21.converter.parse(file, forceSource=True)) for file in files)
    return {name: piano_roll(score, FINEST) for name, score in scores if len(score.parts) == PARTS}


def _kept(path: Path) -> dict[str, Roll]:
    try:
        with np.load(path) as arrays:
            rolls = dict(arrays)
        wrong = [name for name, roll in rolls.items() if not _is_roll(roll)]
    except Exception as error:  # whatever damaged bytes lead to
        raise DataError(f"{path}: cannot be read ({error}); remove it, and the scores are read anew") from None
    missing = {*Splits._fields} - {part_of(name) for name in rolls}
    if wrong or missing:
        raise DataError(f"{path}: expected piano rolls of chorales for every part, got others; remove it")
    return rolls


def _is_roll(array: NDArray[Any]) -> bool:
    whole = array.ndim == 2 and len(array) > 0 and array.shape[1] == NUM_NOTES and array.dtype == np.uint8
    return whole and int(array.max()) <= 1
