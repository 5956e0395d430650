"""Where the recordings of a speech set stand below a folder, and which of the three splits each of them is in.

`vssn.data.speech` says which layouts there are, and how they are split.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vssn.data.folder import entries, files_below
from vssn.errors import DataError, shorten

Files = tuple[list[Path], list[Path], list[Path]]  # training, validation, test

SUFFIXES = (".wav", ".flac", ".sph", ".nist")
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


def find_timit(root: Path) -> Files:
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


def find_recordings(root: Path) -> Files:
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
        for path in sorted(path for path in files_below(folder) if path.suffix.lower() in SUFFIXES):
            name = path
            while name.suffix.lower() in SUFFIXES:
                name = name.with_suffix("")
            found.setdefault(name, path)
    return list(found.values())


def what_else(root: Path) -> str:
    """Of a folder without recordings: those of other forms, and archives."""
    counts = Counter(path.suffix.lower() for path in files_below(root))
    other = [f"{count} {suffix}" for suffix, count in counts.most_common() if suffix in _OTHER_AUDIO]
    return f", found {', '.join(other)}: convert them to wav or flac" if other else ""


def _without(items: Sequence[Path], positions: tuple[int, ...], period: int) -> list[Path]:
    return [item for index, item in enumerate(items) if index % period not in positions]
