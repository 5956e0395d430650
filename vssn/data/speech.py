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

import contextlib
import importlib
import io
import itertools
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vssn.data.batching import SequenceDataset
from vssn.data.folder import data_folder, entries, files_below
from vssn.errors import DataError, shorten

SPEECH_SETS = ("timit", "blizzard")
FRAME_SIZE = 200
SEGMENT = 8000
STEPS = 32768  # of 16 bits, from zero to full scale
_SUFFIXES = (".wav", ".flac", ".sph", ".nist")
_OTHER_AUDIO = (  # recordings that are not read, to say so
    *(".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aif", ".aiff", ".au", ".amr", ".webm", ".mp4"),
    *(".shn", ".wv", ".ape", ".raw", ".pcm", ".w64", ".wave", ".caf", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz"),
)
_FOLDERS = {  # names in lower case that lead from a data folder to a set
    "timit": ("speech", "timit", "timit_sample", "data", "raw"),
    "blizzard": ("speech", "blizzard", "blizzard2013", "ljspeech", "ljspeech_sample"),
}
_SAMPLE_SPEAKER = re.compile(r"dr\d-[fm]\w+", re.IGNORECASE)
_REGION = re.compile(r"dr\d", re.IGNORECASE)


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
        samples = (_decode(piece) - np.float32(self.scale.mean)) / np.float32(self.scale.std)
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
    if name not in SPEECH_SETS:
        raise DataError(f"unknown speech set {name!r}: choose one of {', '.join(SPEECH_SETS)}")
    root, origin = data_folder(folder, "the recordings")
    if not root.is_dir():
        raise DataError(
            f"no data folder for {name}: there is no folder {root} ({origin}); name the one that holds it by --data"
        )
    files = _find_timit(root) if name == "timit" else _find_recordings(root)
    pieces, rate = [], 0
    for split, paths in zip(("training", "validation", "test"), files, strict=True):
        if not paths:
            raise DataError(
                f"{root}: expected recordings ({', '.join(_SUFFIXES)}) of enough "
                f"{'speakers' if name == 'timit' else 'files'} for three splits, got none for {split}"
                f"{'' if any(files) else _what_else(root)}; name a folder with all of {name}"
            )
        split_pieces = []
        for path in paths:
            samples, rate = _inspect(path, rate)
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


# Where the files are


def _find_timit(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Files of the three splits, from the first folder with one of the two layouts."""
    for place in _places(root, "timit"):
        official, sample = _timit_layout(place)
        if official:
            train, held_out = map(_official_speakers, official)
            return _audio_of(_without(train, (19,), 20)), _audio_of(train[19::20]), _audio_of(held_out)
        if sample:
            speakers = _by_sex([(entry.name[:3], entry.name[4:], entry) for entry in sample])  # dr1-fvmh0
            return _audio_of(_without(speakers, (3, 7), 8)), _audio_of(speakers[3::8]), _audio_of(speakers[7::8])
    near = [entry.name for entry in _folders(root) if entry.name.lower() in ("train", "test", *_FOLDERS["timit"])]
    raise DataError(
        f"no TIMIT in {root}: expected TRAIN and TEST with the folders DR1 to DR8, or dr1-fvmh0 and the like as "
        f"in NLTK's sample, found {shorten(near, 'no such folder')}; name the folder that holds them"
    )


def _timit_layout(place: Path) -> tuple[list[Path], list[Path]]:
    """What the folder holds of TIMIT: TRAIN and TEST of the official layout; the speakers of NLTK's sample."""
    folders = _folders(place)
    splits = sorted((entry for entry in folders if entry.name.lower() in ("train", "test")), key=_lower, reverse=True)
    _require_different(splits)
    official = len(splits) == 2 and any(_REGION.fullmatch(entry.name) for entry in _folders(splits[0]))
    sample = [entry for entry in folders if _SAMPLE_SPEAKER.fullmatch(entry.name)]
    _require_different(sample)
    return splits if official else [], sample


def _require_different(folders: Sequence[Path]) -> None:
    """Raises DataError where two names differ by capitals alone: a speaker would be read twice, or one left out."""
    for before, after in itertools.pairwise(sorted(folders, key=_lower)):
        if _lower(before) == _lower(after):
            raise DataError(
                f"{before.parent}: expected one folder {before.name}, got {after.name} too; move one of them away"
            )


def _lower(path: Path) -> str:
    return path.name.lower()


def _official_speakers(split: Path) -> list[Path]:
    regions = [entry for entry in _folders(split) if _REGION.fullmatch(entry.name)]
    speakers = [_folders(region) for region in regions]
    for folders in (regions, *speakers):
        _require_different(folders)
    return _by_sex([(speaker.parent.name, speaker.name, speaker) for folders in speakers for speaker in folders])


def _by_sex(speakers: Iterable[tuple[str, str, Path]]) -> list[Path]:
    """(region, name, folder) in the order of sex (a name's first letter), region and name: the folders."""
    return [
        folder for *_, folder in sorted(speakers, key=lambda entry: (entry[1][:1].lower(), *map(str.lower, entry[:2])))
    ]


def _find_recordings(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    named = [place for place in _places(root, "blizzard")[1:] if place.name.lower() != "speech"]
    timit = [place for place in _places(root, "timit") if any(_timit_layout(place))]
    if timit and not named:
        raise DataError(
            f"no recordings of one reader in {root}: expected a folder blizzard, or recordings without a set's name, "
            f"got TIMIT in {timit[0]}; name the folder that holds the recordings"
        )
    files = _audio_of([named[0] if named else root])
    return _without(files, (4, 9), 10), files[4::10], files[9::10]


def _places(root: Path, name: str) -> list[Path]:
    """The root, and the folders that lead on from it by the names known for the set, from the root down."""
    places = [root]
    for place in places:
        places += [entry for entry in _folders(place) if entry.name.lower() in _FOLDERS[name]]
    return places


def _folders(place: Path) -> list[Path]:
    return [entry for entry in entries(place) if entry.is_dir()]


def _audio_of(folders: Sequence[Path]) -> list[Path]:
    """Recordings below the folders, in the order of their names, without the copies of one."""
    found: dict[Path, Path] = {}
    for folder in folders:
        for path in sorted(path for path in files_below(folder) if path.suffix.lower() in _SUFFIXES):
            name = path
            while name.suffix.lower() in _SUFFIXES:
                name = name.with_suffix("")
            found.setdefault(name, path)
    return list(found.values())


def _what_else(root: Path) -> str:
    """Of a folder without recordings: those of other forms, and archives."""
    counts = Counter(path.suffix.lower() for path in files_below(root))
    other = [f"{count} {suffix}" for suffix, count in counts.most_common() if suffix in _OTHER_AUDIO]
    return f", found {', '.join(other)}: convert them to wav or flac" if other else ""


def _without(items: Sequence[Path], positions: tuple[int, ...], period: int) -> list[Path]:
    return [item for index, item in enumerate(items) if index % period not in positions]


# What is in a file


def _soundfile() -> Any:
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError):  # OSError: the package is there, the library that it loads is not
        raise DataError("soundfile is not installed; reading speech needs it: pip install 'vssn[speech]'") from None


class _Mended(io.FileIO):
    """A file that is read with some of its bytes replaced."""

    def __init__(self, path: Path, start: int, content: bytes) -> None:
        super().__init__(path)
        self.replaced = {start + index: byte for index, byte in enumerate(content)}

    def readinto(self, buffer: Any) -> int:
        start, view = self.tell(), memoryview(buffer).cast("B")
        count = super().readinto(view) or 0
        for position, byte in self.replaced.items():
            if start <= position < start + count:
                view[position - start] = byte
        return count


class _WavSizes(NamedTuple):
    """What the header of a WAV file says of lengths, and what is there; in bytes."""

    order: str  # of the bytes of a number, for struct
    riff: int  # behind its own place
    data: int
    start: int  # of the samples
    whole: int  # the file

    @property
    def is_open(self) -> bool:
        """Whether it was written into a pipe: the lengths, not known then, were never filled in. Writers leave 0, or
        one of the largest numbers that the field, with or without a sign, holds."""
        if self.data == 0:  # also that of a recording without samples, whose other length is right
            return self.whole > self.start and self.riff != self.whole - 8
        return any(size == 0 or size >= 2**31 - 2**16 for size in (self.riff, self.data))


def _wav_sizes(path: Path) -> _WavSizes | None:
    """None of a file that is no WAV, or has no samples."""
    with open(path, "rb") as file:
        magic, riff = file.read(4), file.read(4)
        if magic not in (b"RIFF", b"RIFX") or file.read(4) != b"WAVE":
            return None
        order = "<I" if magic == b"RIFF" else ">I"
        while len(head := file.read(8)) == 8:
            (size,) = struct.unpack(order, head[4:])
            if head[:4] == b"data":
                start = file.tell()
                return _WavSizes(order, struct.unpack(order, riff)[0], size, start, file.seek(0, os.SEEK_END))
            file.seek(size + size % 2, os.SEEK_CUR)
    return None


@contextlib.contextmanager
def _opened(path: Path, sizes: _WavSizes | None) -> Iterator[Any]:
    """What the decoder takes for the file: its name in bytes, which need not be text; of an open length 0, which the
    decoder takes at its word, the file with its true length."""
    if sizes is None or sizes.data or not sizes.is_open:
        yield os.fsencode(path)
        return
    length = struct.pack(sizes.order, min(sizes.whole - sizes.start, 2**31 - 2))
    with _Mended(path, sizes.start - 4, length) as file:
        yield file


def _inspect(path: Path, rate: int) -> tuple[int, int]:
    """Samples and rate of a file that is whole, of one channel, and of the given rate (0: of any)."""
    soundfile = _soundfile()
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
        if head.startswith(b"NIST_1A") and (coding := re.search(rb"^sample_coding -s\d+ (\S*embedded\S*)", head, re.M)):
            raise DataError(
                f"{path}: expected plain samples, got a SPHERE file coded as {coding[1].decode('latin1')}; "
                "decode it by sph2pipe: sph2pipe -f wav FILE FILE.wav"
            )
        sizes = _wav_sizes(path)
        with _opened(path, sizes) as source:
            info = soundfile.info(source)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _damaged(path, error) from None
    if info.channels != 1:
        raise DataError(f"{path}: expected one channel, got {info.channels}; convert the file to mono")
    if rate and info.samplerate != rate:
        raise DataError(
            f"{path}: expected {rate} Hz as in the files before, got {info.samplerate} Hz; "
            "bring all files to one rate, nothing is resampled here"
        )
    # The decoder reads what is left of a truncated file without a word; the headers say how much there was.
    riff = sizes is not None and not sizes.is_open and sizes.data > sizes.whole - sizes.start
    nist = re.search(rb"^sample_count -i (\d+)", head, re.MULTILINE) if head.startswith(b"NIST_1A") else None
    if riff or (nist and int(nist[1]) > info.frames):
        raise DataError(f"{path}: truncated, {info.frames} samples are left; replace it by an intact copy")
    return int(info.frames), int(info.samplerate)


def _decode(piece: Piece) -> NDArray[np.float32]:
    """Its samples, in steps of 16 bits."""
    soundfile = _soundfile()
    wanted = piece.frames * FRAME_SIZE
    try:
        with _opened(piece.path, _wav_sizes(piece.path)) as source:
            samples, _ = soundfile.read(source, frames=wanted, start=piece.start, dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        raise _damaged(piece.path, error) from None
    if len(samples) != wanted or not np.isfinite(samples).all():
        raise DataError(
            f"{piece.path}: expected {wanted} finite samples from {piece.start} on, got {np.isfinite(samples).sum()}; "
            "replace it by an intact copy"
        )
    decoded: NDArray[np.float32] = samples * np.float32(STEPS)
    return decoded


def _measure(pieces: Sequence[Piece]) -> tuple[float, float]:
    """Mean and standard deviation of all samples."""
    count, total, squares = 0, 0.0, 0.0
    for piece in pieces:
        samples = _decode(piece).astype(np.float64)
        count, total, squares = count + samples.size, total + samples.sum(), squares + (samples**2).sum()
    mean = float(total / count)
    return mean, math.sqrt(max(squares / count - mean**2, 0.0))


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error).split())
    return DataError(
        f"{path}: expected a wav, flac or NIST SPHERE file, but {reason[:120]} Replace it by an intact copy"
    )
