"""The chorales: their grid, on a score made by hand; what is left out as a duplicate; the split; what is kept."""

from __future__ import annotations

import io
import os
import re
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vssn.data import chorales
from vssn.data.chorales import FILE, PHRASE, SHARED, Roll, load_chorales, load_splits, part_of, piano_roll
from vssn.errors import DataError

NAMES = [f"bwv{number}" for number in range(250, 262)]  # of every part there is one


def music21() -> Any:
    return pytest.importorskip("music21", reason="reading scores needs music21 and what it imports")


def roll_of(frames: list[list[int]]) -> Roll:
    roll = np.zeros((len(frames), 88), dtype=np.uint8)
    for frame, notes in zip(roll, frames, strict=True):
        frame[np.array(notes, dtype=int) - 21] = 1
    return roll


def frames_of(roll: Roll) -> list[list[int]]:
    return [[int(key) + 21 for key in np.flatnonzero(frame)] for frame in roll]


def piece(seed: int, length: int = 40) -> Roll:
    rng = np.random.default_rng(seed)
    return roll_of([sorted(rng.choice(np.arange(45, 80), 4, replace=False)) for _ in range(length)])


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, piece(0))
    return file.getvalue()


def keep(folder: Path, rolls: dict[str, Roll]) -> Path:
    np.savez(folder / FILE, **rolls)  # type: ignore[arg-type]
    return folder / FILE


# ---- The grid --------------------------------------------------------------------------------------------------------

# Three bars of four voices, the first one short; a note is its name, a colon and twelfths of a quarter note; < > a tie.
SCORE = (
    ("C5:12", "D5:18 E5:6 F5:12<", "F5:12> R:12 G5:12"),  # held over a bar line; a dotted note; a rest
    ("A4:3 B4:3 C5:3 D5:3", "A4:36", "A4:36"),  # between the frames of eighth notes
    ("E4:4 F4:4 G4:4", "E4:36", "R:36"),  # a triplet
    ("C3:12", "grace-D3 C3:24 E3+G3:12", "C3:36"),  # a grace note; a chord
)
EIGHTHS = [
    [48, 64, 69, 72],
    [48, 65, 72, 72],
    *[[48, 64, 69, 74]] * 3,
    [48, 64, 69, 76],
    *[[52, 55, 64, 69, 77]] * 2,
    *[[48, 69, 77]] * 2,
    *[[48, 69]] * 2,
    *[[48, 69, 79]] * 2,
]


def note_of(text: str) -> str:
    name, _, length = text.removeprefix("grace-").partition(":")
    ties = {"<": "start", ">": "stop"}
    tie = "".join(f'<tie type="{kind}"/>' for sign, kind in ties.items() if sign in length)
    duration = f"<duration>{length.rstrip('<>')}</duration>"
    if text.startswith("grace-"):
        tie = duration = ""
    notes = ""
    for number, pitch in enumerate(name.split("+")):
        sound = "<rest/>" if pitch == "R" else f"<pitch><step>{pitch[0]}</step><octave>{pitch[1]}</octave></pitch>"
        grace = "<grace/>" if text.startswith("grace-") else ""
        notes += f"<note>{grace}{'<chord/>' if number else ''}{sound}{duration}{tie}</note>"
    return notes


def musicxml(parts: tuple[tuple[str, ...], ...]) -> str:
    listed, played = "", ""
    for number, bars in enumerate(parts):
        listed += f'<score-part id="P{number}"><part-name>{number}</part-name></score-part>'
        played += f'<part id="P{number}">'
        for bar, notes in enumerate(bars):
            time = "<divisions>12</divisions><time><beats>3</beats><beat-type>4</beat-type></time>"
            played += f'<measure number="{bar}">' + (f"<attributes>{time}</attributes>" if not bar else "")
            played += "".join(map(note_of, notes.split())) + "</measure>"
        played += "</part>"
    return f'<score-partwise version="3.0"><part-list>{listed}</part-list>{played}</score-partwise>'


@pytest.mark.parametrize(("per_quarter", "step"), [(1, 2), (2, 1)])
def test_a_frame_is_what_sounds_at_its_beginning(per_quarter: int, step: int) -> None:
    score = music21().converter.parse(musicxml(SCORE), format="musicxml")
    want = [sorted(set(frame)) for frame in EIGHTHS[::step]]
    assert frames_of(piano_roll(score, per_quarter)) == want
    assert piano_roll(score, per_quarter).dtype == np.uint8


def stand_in(*notes: tuple[Any, Any, int]) -> Any:
    """A score of one part, without music21: notes (offset, length, MIDI number)."""
    made = [
        SimpleNamespace(offset=offset, quarterLength=length, pitches=(SimpleNamespace(midi=midi),))
        for offset, length, midi in notes
    ]
    return SimpleNamespace(parts=[SimpleNamespace(flatten=lambda: SimpleNamespace(notes=made))])


def test_times_are_exact() -> None:
    """A third of a quarter note, three times over, ends where the next one begins."""
    thirds = [(Fraction(number, 3), Fraction(1, 3), 60 + number) for number in range(3)]
    assert frames_of(piano_roll(stand_in(*thirds, (1.0, 0.5, 70)), 3)) == [[60], [61], [62], [70], [70]]
    assert frames_of(piano_roll(stand_in(*thirds, (1.0, 0.5, 70)), 1)) == [[60], [70]]
    assert piano_roll(stand_in(), 2).shape == (0, 88)


def test_silence_within_a_piece_stays_and_behind_it_goes() -> None:
    assert frames_of(piano_roll(stand_in((0.0, 1.0, 21), (2.0, 0.25, 108), (2.75, 0.25, 50)), 1)) == [[21], [], [108]]


@pytest.mark.parametrize("midi", [20, 109])
def test_a_note_that_is_no_key_is_named(midi: int) -> None:
    with pytest.raises(DataError, match=rf"^score: expected MIDI numbers from 21 to 108, got {midi}$"):
        piano_roll(stand_in((0.0, 1.0, midi)), 1)


# ---- Duplicates and the split ----------------------------------------------------------------------------------------


def test_the_same_piece_in_another_key_or_with_a_few_other_notes_is_left_out() -> None:
    one, other = piece(0, 80), piece(1, 80)
    changed = one.copy()
    changed[20:24] = other[20:24]
    late = np.concatenate((one[:2], one))  # begins a quarter note later
    half = np.concatenate((one[:36], other[36:]))
    rolls = {"a": one, "b": other, "c": np.roll(one, 3, 1), "d": np.roll(changed, -5, 1), "e": late, "f": half}
    assert list(chorales.without_duplicates(rolls)) == ["a", "b"]  # f: half of either
    assert list(chorales.without_duplicates({name: rolls[name] for name in "dbfca"})) == ["d", "b"]


def test_pieces_that_have_a_cadence_in_common_both_stay() -> None:
    one, other = piece(0, 80), piece(1, 80)
    other[62:] = np.roll(one, 2, 1)[62:]
    assert list(chorales.without_duplicates({"a": one, "b": other})) == ["a", "b"]


def test_the_part_hangs_on_the_name_alone() -> None:
    parts = {name: part_of(name) for name in NAMES}
    assert set(parts.values()) == {"train", "valid", "test"}
    many = [part_of(f"bwv{number}") for number in range(5000)]
    assert [many.count(part) / 5000 for part in ("train", "valid", "test")] == pytest.approx([0.6, 0.2, 0.2], abs=0.03)
    assert (part_of("bwv269"), part_of("bwv66.6")) == ("test", "train")


@pytest.mark.parametrize(("name", "step"), [("jsb_quarters", 2), ("jsb_eighths", 1)])
def test_both_grids_have_the_same_pieces_in_the_same_parts(name: str, step: int, tmp_path: Path) -> None:
    rolls = {piece_name: piece(number, 11) for number, piece_name in enumerate(NAMES)}
    keep(tmp_path, rolls)
    splits = load_splits(set=name, seed=0, folder=str(tmp_path))
    for part, dataset in splits._asdict().items():
        want = [torch.from_numpy(rolls[other][::step].copy()) for other in NAMES if part_of(other) == part]
        assert len(dataset) == len(want)
        for index, roll in enumerate(want):
            assert dataset[index][0].equal(roll)
    moved = load_splits(set=name, seed=0, folder=str(tmp_path), transpose=5)
    assert any(not a[0].equal(b[0]) for a, b in zip(moved.train, splits.train, strict=True))
    assert all(a[0].equal(b[0]) for a, b in zip(moved.test, splits.test, strict=True))


# ---- What is kept ----------------------------------------------------------------------------------------------------


def test_scores_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rolls = {name: piece(number) for number, name in enumerate(NAMES)}
    copies = {"bwv999": np.roll(piece(3), 2, 1)}
    calls = []
    monkeypatch.setattr(chorales, "read_corpus", lambda: calls.append(1) or rolls | copies)
    folder = tmp_path / "new"
    first, second = load_chorales(folder), load_chorales(folder)
    assert len(calls) == 1
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert list(first) == list(second) == NAMES
    assert all(np.array_equal(first[name], second[name]) for name in NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 not an archive", "cannot be read"),
        (npy(), "cannot be read"),
        ({"bwv250": piece(0)}, "expected piano rolls of chorales for every part, got others"),
        ({name: piece(0)[:, :80] for name in NAMES}, "expected piano rolls"),
        ({name: piece(0) * 2 for name in NAMES}, "expected piano rolls"),
        ({name: piece(0).astype(float) for name in NAMES}, "expected piano rolls"),
        ({name: np.array([{}]) for name in NAMES}, "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(content: Any, message: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / FILE).write_bytes(content)
    else:
        keep(tmp_path, content)
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path / FILE))}: {message}.*remove it"):
        load_chorales(tmp_path)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    path = keep(tmp_path, {name: piece(number) for number, name in enumerate(NAMES)})
    whole = path.read_bytes()
    for length in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"remove it"):
            load_chorales(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chorales, "read_corpus", lambda: {name: piece(number) for number, name in enumerate(NAMES)})
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=rf"^cannot write .*{FILE} \(.+\); name another folder$"):
        load_chorales(tmp_path / "file" / "below")
    monkeypatch.delenv("VSSN_DATA", raising=False)
    with pytest.raises(DataError, match=rf"name the folder that holds {FILE}, or is to hold it"):
        load_chorales()


# ---- The real ones ---------------------------------------------------------------------------------------------------

# sequences, frames on eighth notes, notes per frame: train, valid, test
FACTS = ((208, 64, 69), (23132, 6976, 7176), (3.888, 3.872, 3.891))


@pytest.fixture(scope="session")
def real() -> dict[str, Roll]:
    """As VSSN_DATA, else the shared folder beside the checkout, has them: to read the scores takes minutes."""
    folder = Path(os.environ.get("VSSN_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (folder / FILE).is_file():
        pytest.skip(f"name a folder with {FILE} by VSSN_DATA; `vssn reproduce jsb_grid` makes it")
    return load_chorales(folder)


def test_facts(real: dict[str, Roll]) -> None:
    parts = [[roll for name, roll in real.items() if part_of(name) == part] for part in ("train", "valid", "test")]
    frames = [sum(map(len, rolls)) for rolls in parts]
    assert (tuple(map(len, parts)), tuple(frames)) == FACTS[:2]
    notes = [sum(int(roll.sum()) for roll in rolls) / count for rolls, count in zip(parts, frames, strict=True)]
    assert notes == pytest.approx(FACTS[2], abs=0.005)


def test_no_piece_stands_in_two_parts(real: dict[str, Roll]) -> None:
    """Nor one that it shares SHARED of its phrases with, in whatever key; found by another way than the loader's."""
    phrases = {}
    for name, roll in real.items():
        chords = [tuple(np.flatnonzero(frame)) for frame in roll[::2]]
        windows = [chords[start : start + PHRASE] for start in range(len(chords) - PHRASE + 1)]
        lowest = [min((min(chord) for chord in window if chord), default=0) for window in windows]
        phrases[name] = {
            tuple(tuple(note - low for note in chord) for chord in window)
            for window, low in zip(windows, lowest, strict=True)
        }
    for one, other in combinations(real, 2):
        if part_of(one) != part_of(other):
            least = min(len(phrases[one]), len(phrases[other]))
            assert len(phrases[one] & phrases[other]) < SHARED * least, (one, other)


def test_the_corpus_is_read_as_it_was(real: dict[str, Roll]) -> None:
    music21()
    read = chorales.read_corpus("bwv26*")
    assert {"bwv26.6", "bwv269"} <= set(read)
    for name, roll in read.items():
        assert name not in real or np.array_equal(roll, real[name]), name
