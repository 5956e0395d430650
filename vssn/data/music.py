"""The four polyphonic music sets of Boulanger-Lewandowski, Bengio and Vincent (2012), read from a folder.

In a configuration: jsb, nottingham, musedata, piano_midi. A sequence is a piano roll: a uint8 tensor [T, 88] of 0 and
1, one row per time step, one column per key; column 0 is MIDI note 21. It becomes float32 where batches are made
(`vssn.data.batching`).

Two file forms are read. MATLAB 5 `.mat`: cells `traindata`, `validdata`, `testdata`, each entry T x 88.
The authors' `.pickle`: a dict with `train`, `valid`, `test`, each a list of sequences, a sequence a list of
time steps, a step a tuple of MIDI numbers. A pickle can name any function for its reader to call, so only
built-in containers and numbers are admitted and nothing else is ever looked up.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vssn.data.batching import SequenceDataset
from vssn.data.folder import FOLDER_VARIABLE, data_folder, entries
from vssn.data.matlab import Matrix, read_cell_arrays
from vssn.data.registry import register
from vssn.data.splits import Splits
from vssn.errors import DataError, shorten
from vssn.utils.numbers import Size
from vssn.utils.values import BINARY
from vssn_kernels.arguments import shown

MUSIC_SETS = ("JSB_Chorales", "Nottingham", "MuseData", "Piano_midi")
NUM_NOTES = 88
LOWEST_NOTE = 21
HIGHEST_NOTE = LOWEST_NOTE + NUM_NOTES - 1
SPLITS = ("train", "valid", "test")

# File stems in lower case, letters and digits only: the published names, then the short ones that are in use.
_STEMS = {
    "JSB_Chorales": ("jsbchorales", "jsb"),
    "Nottingham": ("nottingham", "nott"),
    "MuseData": ("musedata", "muse"),
    "Piano_midi": ("pianomidi", "pianomidide", "piano"),
}
_SUFFIXES = (".mat", ".pickle", ".pkl")  # in order of preference
_DOWNLOAD = "`vssn download FOLDER` fetches the four sets"
_ADVICE = "replace it by an intact copy of the published file"


class MusicSet(NamedTuple):
    """One data set in its published splits; every sequence is uint8 [T, 88]."""

    name: str
    train: list[Tensor]
    valid: list[Tensor]
    test: list[Tensor]


class Transpose:
    """Training-time augmentation: shift a whole sequence by a uniform whole number of semitones in [-k, k].

    The range is cut where a note would fall off the keyboard, so a shift never adds or removes a note.
    """

    def __init__(self, semitones: int) -> None:
        if semitones < 0:
            raise ValueError(f"semitones must be 0 or more, got {semitones}")
        self.semitones = semitones

    def __call__(self, roll: Tensor, generator: torch.Generator) -> Tensor:
        """roll [T, X] -> the shifted roll [T, X]; `generator` alone decides the shift."""
        used = roll.ne(0).any(dim=0).nonzero().flatten()
        if used.numel() == 0:
            return roll
        lowest = max(-self.semitones, -int(used[0]))
        highest = min(self.semitones, roll.shape[1] - 1 - int(used[-1]))
        shift = int(torch.randint(lowest, highest + 1, (), generator=generator))
        return torch.roll(roll, shift, dims=1)


def load_music(name: str, folder: str | os.PathLike[str] | None = None) -> MusicSet:
    """Read the set `name` (one of MUSIC_SETS, in any case) from `folder`, else from VSSN_DATA's folder."""
    name = _canonical_name(name)
    path = find_music_file(name, folder)
    read = _read_mat if path.suffix.lower() == ".mat" else _read_pickle
    return MusicSet(name, **read(path))


@register("jsb", "nottingham", "musedata", "piano_midi", x_size=NUM_NOTES, values=BINARY, free=("folder",))
def load_splits(*, set: str, seed: int, folder: str | None = None, transpose: Size = 0) -> Splits:
    """The set as `fit` takes it. Raises DataError.

    Args:
        folder: None: the folder that VSSN_DATA names.
        transpose: augmentation: each training sequence moves by up to so many semitones.
    """
    music = load_music(set, folder)
    train = SequenceDataset(music.train, transform=Transpose(transpose) if transpose else None, seed=seed)
    return Splits(train, SequenceDataset(music.valid), SequenceDataset(music.test))


def find_music_file(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """The file of the set `name` in the folder or in its `music` subfolder; `.mat` wins over a pickle, and a published
    name over a short one."""
    name = _canonical_name(name)
    root, origin = data_folder(folder, "the music sets", f"; {_DOWNLOAD}")
    places = (root, root / "music")
    found = [place for place in places if os.path.isdir(place)]
    if not found:
        looked = " and ".join(str(place) for place in places)
        raise DataError(
            f"no data folder for {name}: looked at {looked} ({origin}); "
            f"name the folder that holds {name}.mat by --data or {FOLDER_VARIABLE}; {_DOWNLOAD}"
        )
    files = [entry for place in found for entry in entries(place) if entry.is_file()]
    matches = [file for file in files if file.suffix.lower() in _SUFFIXES and _plain(file.stem) in _STEMS[name]]
    if not matches:
        looked = " and ".join(str(place) for place in found)
        raise DataError(
            f"no file of {name} in {looked} ({origin}): expected {name}.mat or the authors' {name}.pickle, "
            f"{_what_is_near(name, files)}; name another folder by --data or {FOLDER_VARIABLE}; {_DOWNLOAD}"
        )
    return min(matches, key=_preference)


def _preference(file: Path) -> tuple[int, int]:
    stems = next(stems for stems in _STEMS.values() if _plain(file.stem) in stems)
    return _SUFFIXES.index(file.suffix.lower()), stems.index(_plain(file.stem))


def _what_is_near(name: str, files: list[Path]) -> str:
    """What a folder without the set has in its place: files whose names say the set's, else other sets."""
    word = _STEMS[name][-1]
    if near := [file.name for file in files if word in _plain(file.name)]:
        return f"found {shorten(near, '')}"
    readable = [_plain(file.stem) for file in files if file.suffix.lower() in _SUFFIXES]
    others = [known for known, stems in _STEMS.items() if any(stem in stems for stem in readable)]
    return f"found {', '.join(others)} only" if others else "found none of the four sets"


def _canonical_name(name: str) -> str:
    for known, stems in _STEMS.items():
        if isinstance(name, str) and _plain(name) in stems:
            return known
    raise DataError(f"name: unknown music set {shown(name)}: choose one of {', '.join(MUSIC_SETS)}")


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _open(path: Path) -> io.BytesIO:
    try:
        return io.BytesIO(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None


# MATLAB files


def _read_mat(path: Path) -> dict[str, list[Tensor]]:
    keys = {split: f"{split}data" for split in SPLITS}
    content = read_cell_arrays(_open(path).getvalue(), keys.values(), str(path))
    missing = [key for key in keys.values() if key not in content]
    if missing:
        raise DataError(f"{path}: expected {', '.join(keys.values())}, without {', '.join(missing)}; {_ADVICE}")
    return {split: _rolls_of_cells(content[key], f"{path}: {key}") for split, key in keys.items()}


def _rolls_of_cells(cells: list[Matrix], where: str) -> list[Tensor]:
    if not cells:
        raise DataError(f"{where} must hold at least one sequence, got none; {_ADVICE}")
    return [_roll_of_matrix(cell, f"{where}[{index}]") for index, cell in enumerate(cells)]


def _roll_of_matrix(matrix: Matrix, where: str) -> Tensor:
    if matrix.shape[0] == 0 or matrix.shape[1] != NUM_NOTES:
        raise DataError(f"{where} must be T x {NUM_NOTES} with T > 0, got {_describe(matrix)}; {_ADVICE}")
    wrong = ~((matrix == 0) | (matrix == 1))
    if wrong.any():
        raise DataError(f"{where} must hold 0 and 1 only, got the value {matrix[wrong][0]}; {_ADVICE}")
    return torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.uint8))


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{' x '.join(str(size) for size in value.shape)} of {value.dtype}"
    return f"an object of type {type(value).__name__}"


# The authors' pickles


_ADMITTED: dict[str, Any] = {"set": set, "frozenset": frozenset}


# Entries of a file by its size: more of them are references to the same lists over and over.
_ENTRIES_OF_A_BYTE = 16


class _ContainerUnpickler(pickle._Unpickler):
    """Admits what pickle builds by itself (lists, tuples, dicts, strings, numbers) and sets; nothing else.

    The one that is written in Python: that in C takes memory by the largest number that a file gives an object, so that
    ten bytes of a file ask for 17 GB.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _ADMITTED:
            return _ADMITTED[name]
        asked = ascii(f"{module}.{name}")[1:-1][:80]
        raise DataError(
            f"refused, it asks for {asked}: expected built-in containers and numbers only, "
            "nothing was executed; use the published file or its .mat form"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(
            "refused, it refers to an object outside the file: expected built-in containers and numbers only; "
            "use the published file or its .mat form"
        )


def _read_pickle(path: Path) -> dict[str, list[Tensor]]:
    data = _open(path)
    try:
        content = _ContainerUnpickler(data, encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # the unpickler raises whatever the damaged bytes lead it to
        raise DataError(
            f"{path}: expected a pickle, but it is truncated or corrupt ({_reason(error)}); {_ADVICE}"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dict with {', '.join(SPLITS)}, got {_describe(content)}; {_ADVICE}")
    missing = [split for split in SPLITS if split not in content]
    if missing:
        got = shorten([_quote(key) for key in content], "an empty dict")
        raise DataError(
            f"{path}: expected the keys {', '.join(SPLITS)}, without {', '.join(missing)} (got {got}); {_ADVICE}"
        )
    _require_written_out(content, len(data.getbuffer()), path)
    return {split: _rolls_of_lists(content[split], f"{path}: {split}") for split in SPLITS}


def _require_written_out(content: dict[Any, Any], size: int, path: Path) -> None:
    """A list that stands in itself a thousand times, and so on, is small in the file alone."""

    def entries(value: Any) -> Collection[Any]:
        return value if isinstance(value, (list, tuple, set, frozenset)) else ()

    left = _ENTRIES_OF_A_BYTE * size
    for split in SPLITS:
        for sequence in entries(content[split]):
            left -= len(entries(sequence))
            for step in entries(sequence) if left >= 0 else ():
                left -= len(entries(step))
            if left < 0:
                what = "lists that are written out, got one that refers to the same lists over and over"
                raise DataError(f"{path}: expected {what}; {_ADVICE}")


def _rolls_of_lists(sequences: Any, where: str) -> list[Tensor]:
    if not isinstance(sequences, (list, tuple)) or not sequences:
        raise DataError(f"{where} must be a non-empty list of sequences, got {_describe_list(sequences)}; {_ADVICE}")
    return [_roll_of_list(sequence, f"{where}[{index}]") for index, sequence in enumerate(sequences)]


def _roll_of_list(sequence: Any, where: str) -> Tensor:
    if not isinstance(sequence, (list, tuple)) or not sequence:
        raise DataError(f"{where} must be a non-empty list of time steps, got {_describe_list(sequence)}; {_ADVICE}")
    notes = list(_notes(sequence, where))
    roll = np.zeros((len(sequence), NUM_NOTES), dtype=np.uint8)
    if notes:
        steps, keys = np.array(notes, dtype=np.int64).T
        roll[steps, keys] = 1
    return torch.from_numpy(roll)


def _notes(sequence: Any, where: str) -> Iterator[tuple[int, int]]:
    """(time step, column) of every sounding note, each of them checked."""
    for step, notes in enumerate(sequence):
        if not isinstance(notes, (list, tuple, set, frozenset)):
            raise DataError(f"{where}[{step}] must be a tuple of MIDI numbers, got {_describe(notes)}; {_ADVICE}")
        for note in notes:
            if not isinstance(note, int) or not LOWEST_NOTE <= note <= HIGHEST_NOTE:
                raise DataError(
                    f"{where}[{step}] must hold whole MIDI numbers from {LOWEST_NOTE} to {HIGHEST_NOTE}, "
                    f"got {_quote(note)}; {_ADVICE}"
                )
            yield step, note - LOWEST_NOTE


def _describe_list(value: Any) -> str:
    return f"an empty {type(value).__name__}" if isinstance(value, (list, tuple)) else _describe(value)


def _quote(value: Any) -> str:
    """A value out of a file, short and printable."""
    plain = isinstance(value, (float, str)) or (isinstance(value, int) and abs(value) < 10**9)
    return ascii(value)[:40] if plain else _describe(value)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:120]
