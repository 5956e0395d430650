"""Speech as frames of raw samples: TIMIT in two layouts, and Blizzard-style folders of recordings.

A sequence is float32 [T, FRAME_SIZE]: T frames of 200 samples each, cut to a whole number of frames and
normalised by one mean and standard deviation, those of all training samples:

    x = (s - mean) / std,    s in steps of 16 bits (-32768 to 32767)

timit       one sequence per utterance, whatever its length. Official folders: TRAIN/DR*/SPEAKER/*.WAV and TEST/...,
            in either case, NIST SPHERE or RIFF; every 20th training speaker validates. NLTK's sample: folders
            dr<region>-<speaker>; of every eight speakers the fourth validates and the eighth tests. Speakers are
            counted in the order of their sex, region and name, so both sexes are in every split, and no speaker is
            in two.
blizzard    one sequence per SEGMENT samples (0.5 seconds at 16 kHz) of every wav or flac file below the folder, in
            the order of their names; of every ten files the fifth validates and the tenth tests.

A recording goes by its name without suffixes, which tells capitals from small letters: SA1.WAV.wav or SA1.flac beside
SA1.WAV is a copy of it, sa1.wav is another one. Links to folders are followed.

Samples are used at the rate at which they were recorded: nothing is resampled, files of different rates are
refused, and the rate is reported with the scores. A sequence is decoded when it is taken (TIMIT is 0.6 GB,
Blizzard 35 GB of samples).

Scores. With log p(x) the log-density of a sequence of n samples in normalised units, and dx/ds = 1 / std,

    log p(s) = log p(x) - n log std          bits per sample = -(log p(x) / n - log std) / log 2

which is the length of a code for the 16-bit samples as far as the density is smooth over one step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vssn.data.audio import decode, inspect
from vssn.data.batching import SequenceDataset
from vssn.data.folder import data_folder
from vssn.data.registry import register
from vssn.data.speech_folders import SUFFIXES, find_recordings, find_timit, what_else
from vssn.data.splits import Splits
from vssn.errors import DataError
from vssn.utils.checks import require_number
from vssn.utils.numbers import Positive, Real
from vssn.utils.values import REAL
from vssn_kernels.arguments import shown

SPEECH_SETS = ("timit", "blizzard")
FRAME_SIZE = 200
SEGMENT = 8000


class Scale(NamedTuple):
    """The normalisation of a set, and its sampling rate."""

    mean: float  # of the training samples, in steps of 16 bits
    std: float
    sample_rate: int  # Hz


class SpeechScores(NamedTuple):
    nats_per_sequence: float  # log-likelihood in normalised units, mean over sequences
    bits_per_sample: float  # of a 16-bit sample: lower is better
    sample_rate: int  # Hz

    def table(self) -> str:
        """A few aligned lines to print."""
        return (
            f"{'nats per sequence':<24}{self.nats_per_sequence:>14.1f}\n"
            f"{'bits per sample':<24}{self.bits_per_sample:>14.4f}\n"
            f"at {self.sample_rate} Hz, {FRAME_SIZE} samples in a frame"
        )


class Piece(NamedTuple):
    """A sequence: where its samples stand."""

    path: Path
    start: int  # first sample
    frames: int  # T

    def decode(self) -> NDArray[np.float32]:
        """Its samples, in steps of 16 bits. Raises DataError."""
        return decode(self.path, self.start, self.frames * FRAME_SIZE)


class Recordings(Sequence[Tensor]):
    """Sequences of one split; `recordings[i]` decodes one, float32 [T, FRAME_SIZE], normalised."""

    def __init__(self, pieces: Sequence[Piece], scale: Scale) -> None:
        self.pieces, self.scale = pieces, scale

    @property
    def lengths(self) -> list[int]:
        """Frames of each sequence, known without decoding."""
        return [piece.frames for piece in self.pieces]

    def __len__(self) -> int:
        return len(self.pieces)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Recordings: ...

    def __getitem__(self, index: int | slice) -> Tensor | Recordings:
        if isinstance(index, slice):
            return Recordings(self.pieces[index], self.scale)
        piece = self.pieces[index]
        samples = (piece.decode() - np.float32(self.scale.mean)) / np.float32(self.scale.std)
        return torch.from_numpy(samples).view(piece.frames, FRAME_SIZE)


class SpeechSplits(NamedTuple):
    train: Recordings
    valid: Recordings
    test: Recordings


def scale_of(dataset: SequenceDataset) -> Scale | None:
    """The normalisation of a speech set; None of another one."""
    return dataset.sequences.scale if isinstance(dataset.sequences, Recordings) else None


def speech_scores(nats_per_frame: float, frames: int, sequences: int, scale: Scale) -> SpeechScores:
    """From the log-likelihood per frame over all frames of a split (`micro`), in normalised units."""
    per_sample = nats_per_frame / FRAME_SIZE
    bits = -(per_sample - math.log(scale.std)) / math.log(2)
    return SpeechScores(nats_per_frame * frames / sequences, bits, scale.sample_rate)


def load_speech(
    name: str, folder: str | os.PathLike[str] | None = None, *, mean: float | None = None, std: float | None = None
) -> SpeechSplits:
    """The set `name` (one of SPEECH_SETS) in `folder`, else in VSSN_DATA's folder, or in a subfolder of its name.

    Args:
        mean, std: the normalisation, in steps of 16 bits; None: measured, by one pass over the training samples.

    Raises:
        DataError: no such folder, no recordings, a damaged file, or the package soundfile is missing.
    """
    for given, number in (("mean", mean), ("std", std)):
        if number is not None:
            require_number(given, number)
    if not isinstance(name, str) or name not in SPEECH_SETS:
        raise DataError(f"name: unknown speech set {shown(name)}: choose one of {', '.join(SPEECH_SETS)}")
    root, origin = data_folder(folder, "the recordings")
    if not root.is_dir():
        raise DataError(
            f"no data folder for {name}: there is no folder {root} ({origin}); name the one that holds it by --data"
        )
    files = find_timit(root) if name == "timit" else find_recordings(root)
    pieces, rate = [], 0
    for split, paths in zip(("training", "validation", "test"), files, strict=True):
        if not paths:
            raise DataError(
                f"{root}: expected recordings ({', '.join(SUFFIXES)}) of enough "
                f"{'speakers' if name == 'timit' else 'files'} for three splits, got none for {split}"
                f"{'' if any(files) else what_else(root)}; name a folder with all of {name}"
            )
        split_pieces = []
        for path in paths:
            samples, rate = inspect(path, rate)
            size = SEGMENT if name == "blizzard" else samples - samples % FRAME_SIZE
            starts = range(0, samples - size + 1, size) if size else ()
            split_pieces += [Piece(path, start, size // FRAME_SIZE) for start in starts]
        if not split_pieces:
            raise DataError(f"{root}: every {split} recording is shorter than a sequence; name a folder of longer ones")
        pieces.append(split_pieces)
    if mean is None or std is None:
        mean, std = _measure(pieces[0])
        if std == 0:
            raise DataError(f"{root}: every training sample has the same value {mean:g}; name a folder with speech")
    return SpeechSplits(*(Recordings(part, Scale(mean, std, rate)) for part in pieces))


def _measure(pieces: Sequence[Piece]) -> tuple[float, float]:
    """Mean and standard deviation of all samples."""
    count, total, squares = 0, 0.0, 0.0
    for piece in pieces:
        samples = piece.decode().astype(np.float64)
        count, total, squares = count + samples.size, total + samples.sum(), squares + (samples**2).sum()
    mean = float(total / count)
    return mean, math.sqrt(max(squares / count - mean**2, 0.0))


# The row of the registry


def _mean_and_std_go_together(settings: Mapping[str, Any]) -> None:
    if (settings["mean"] is None) != (settings["std"] is None):
        raise ValueError("mean and std go together: give both, or neither to have them measured")


def _scale(dataset: SequenceDataset) -> Scale:
    scale = scale_of(dataset)
    assert scale is not None
    return scale


def _measured(splits: Splits) -> dict[str, float]:
    scale = _scale(splits.train)
    return {"mean": scale.mean, "std": scale.std}


def _scores(dataset: SequenceDataset, scores: Any) -> SpeechScores:
    return speech_scores(scores.micro, scores.frames, scores.sequences, _scale(dataset))


@register(
    *SPEECH_SETS,
    x_size=FRAME_SIZE,
    values=REAL,
    free=("folder", "mean", "std"),
    check=_mean_and_std_go_together,
    measured=_measured,
    describe=lambda dataset: f" at {_scale(dataset).sample_rate} Hz",
    scores=_scores,
)
def load_splits(
    *, set: str, seed: int, folder: str | None = None, mean: Real | None = None, std: Positive | None = None
) -> Splits:
    """The set as `fit` takes it. Raises DataError.

    Args:
        folder: None: the folder that VSSN_DATA names.
        mean, std: of the training samples, in steps of 16 bits (None: measured, and kept with the run).
    """
    parts = load_speech(set, folder, mean=mean, std=std)
    return Splits(*(SequenceDataset(part, lengths=part.lengths, seed=seed) for part in parts))
