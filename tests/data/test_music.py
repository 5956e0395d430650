"""The music sets: published facts of the real files, both file forms made by hand, and every way to fail."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from vssn.data.download import SHA256
from vssn.data.music import MUSIC_SETS, SPLITS, MusicSet, Transpose, find_music_file, load_music
from vssn.errors import DataError
from vssn.experiments.baselines import markov_baseline

# sequences, frames, notes per frame (each train/valid/test), longest test sequence
FACTS = {
    "JSB_Chorales": ((229, 76, 77), (13807, 4602, 4725), (3.90, 3.87, 3.89), 160),
    "Nottingham": ((694, 173, 170), (176561, 45513, 44463), (3.96, 3.96, 3.99), 1793),
    "MuseData": ((524, 135, 124), (245202, 82755, 64339), (3.49, 3.48, 3.29), 4273),
    "Piano_midi": ((87, 12, 25), (75911, 8540, 19036), (3.04, 3.23, 2.95), 2645),
}
# nats per frame, micro: with the first frame, and without it
MARKOV = {
    "JSB_Chorales": (-10.477, -10.491),
    "Nottingham": (-5.168, -5.153),
    "MuseData": (-8.561, -8.560),
    "Piano_midi": (-8.262, -8.265),
}
FRAMES = {  # the made-up set: MIDI numbers of every step; the lowest and the highest note, silence, one frame
    "train": [[(21, 60), (60, 64, 67), ()], [(108,)]],
    "valid": [[(50,), (52, 55)]],
    "test": [[(), (30,), (30, 31)], [(60,), (60,)]],
}


@pytest.fixture(scope="session")
def real_folder() -> str:
    """VSSN_DATA, else the shared folder that lies beside the checkout."""
    if folder := os.environ.get("VSSN_DATA"):
        return folder
    shared = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (shared / "music").is_dir():
        pytest.skip("the music sets are absent: set VSSN_DATA to the folder that holds them")
    return str(shared)


@pytest.fixture(autouse=True)
def no_folder_from_outside(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real_folder" in request.fixturenames:
        request.getfixturevalue("real_folder")  # reads the variable before it goes
    monkeypatch.delenv("VSSN_DATA", raising=False)


def load_real(name: str, folder: str) -> MusicSet:
    try:
        find_music_file(name, folder)
    except DataError as error:
        pytest.skip(str(error))
    return load_music(name, folder)


@pytest.mark.parametrize("name", MUSIC_SETS)
def test_the_sums_of_the_published_copies_are_those_of_the_files_at_hand(name: str, real_folder: str) -> None:
    try:
        path = find_music_file(name, real_folder)
    except DataError as error:
        pytest.skip(str(error))
    if path.suffix != ".mat":
        pytest.skip(f"{path} is not the .mat copy")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name]


def roll_of(frames: list[tuple[int, ...]]) -> np.ndarray:
    roll = np.zeros((len(frames), 88), dtype=np.uint8)
    for step, notes in enumerate(frames):
        roll[step, [note - 21 for note in notes]] = 1
    return roll


def cells_of(matrices: list[np.ndarray]) -> np.ndarray:
    cells = np.empty((1, len(matrices)), dtype=object)
    for index, matrix in enumerate(matrices):
        cells[0, index] = matrix
    return cells


def mat_content() -> dict[str, np.ndarray]:
    return {f"{split}data": cells_of([roll_of(frames) for frames in FRAMES[split]]) for split in SPLITS}


def write_mat(path: Path, content: dict[str, np.ndarray] | None = None, compress: bool = True) -> Path:
    scipy.io.savemat(path, mat_content() if content is None else content, do_compression=compress)
    return path


def write_pickle(path: Path, content: object = FRAMES, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def failure(folder: Path | None, name: str = "JSB_Chorales") -> str:
    """The message of the DataError that loading raises: one line, without a trace of another error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be a second line
        with pytest.raises(DataError) as caught:
            load_music(name, folder)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def assert_made_up(music: MusicSet) -> None:
    for split in SPLITS:
        sequences = getattr(music, split)
        assert len(sequences) == len(FRAMES[split])
        for sequence, frames in zip(sequences, FRAMES[split], strict=True):
            assert sequence.dtype == torch.uint8
            assert sequence.tolist() == roll_of(frames).tolist()


# The real sets


@pytest.mark.parametrize("name", MUSIC_SETS)
def test_real_set_has_the_published_facts(name: str, real_folder: str) -> None:
    music = load_real(name, real_folder)
    counts, frames, notes, longest = FACTS[name]
    splits = [music.train, music.valid, music.test]
    assert music.name == name
    assert tuple(len(split) for split in splits) == counts
    assert tuple(sum(map(len, split)) for split in splits) == frames
    for split, length, expected in zip(splits, frames, notes, strict=True):
        per_frame = sum(int(sequence.sum()) for sequence in split) / length
        assert per_frame == pytest.approx(expected, abs=0.0051)
        assert all(sequence.shape[1] == 88 and sequence.dtype == torch.uint8 for sequence in split)
    assert max(map(len, music.test)) == longest


@pytest.mark.parametrize("name", MUSIC_SETS)
def test_markov_baseline_on_real_sets(name: str, real_folder: str) -> None:
    music = load_real(name, real_folder)
    scores = markov_baseline(music.train, music.test)
    with_first, without_first = MARKOV[name]
    assert scores.micro == pytest.approx(with_first, abs=0.002)
    assert scores.micro_without_first == pytest.approx(without_first, abs=0.002)


def test_markov_baseline_by_hand() -> None:
    """One note, train 0 1 1 0: from silence 0->0, 0->1, then 1->1, 1->0; with s = 1/2 every step costs log 2."""
    train = [torch.tensor([[0], [1], [1], [0]], dtype=torch.uint8)]
    half = markov_baseline(train, [torch.tensor([[1], [0], [0]])])
    assert half.micro == pytest.approx(np.log(0.5))
    # train 1 1: from silence 0->1 once, then 1->1 once: p(1) = (1 + s) / (1 + 2 s) = 3/4, both from 0 and from 1
    train = [torch.tensor([[1], [1]], dtype=torch.uint8)]
    test = [torch.tensor([[1], [0], [0]]), torch.tensor([[1]])]
    scores = markov_baseline(train, test)
    yes, no = np.log(0.75), np.log(0.25)
    assert scores.micro == pytest.approx((2 * yes + 2 * no) / 4)
    assert scores.macro == pytest.approx(((yes + 2 * no) / 3 + yes) / 2)
    assert scores.micro_without_first == pytest.approx(no)
    assert scores.macro_without_first == pytest.approx(no)
    with pytest.raises(ValueError, match="smoothing must be positive, got 0"):
        markov_baseline(train, test, smoothing=0)


# Both file forms


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.bool_])
def test_mat_round_trip(tmp_path: Path, compress: bool, dtype: type) -> None:
    content = {key: cells_of([m.astype(dtype) for m in cells.ravel()]) for key, cells in mat_content().items()}
    write_mat(tmp_path / "JSB_Chorales.mat", content, compress)
    assert_made_up(load_music("JSB_Chorales", tmp_path))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_pickle_round_trip(tmp_path: Path, protocol: int) -> None:
    write_pickle(tmp_path / "JSB Chorales.pickle", protocol=protocol)
    assert_made_up(load_music("JSB_Chorales", tmp_path))


def test_python_2_pickle(tmp_path: Path) -> None:
    """Byte strings as keys (S opcodes), as Python 2 wrote them."""
    step = b"(I60\nI64\nt"
    split = b"(l(l" + step + b"aa"
    data = b"(d" + b"".join(b"S'%s'\n%ss" % (name.encode(), split) for name in SPLITS) + b"."
    (tmp_path / "Nottingham.pickle").write_bytes(data)
    music = load_music("Nottingham", tmp_path)
    assert [sequence.tolist() for sequence in music.test] == [roll_of([(60, 64)]).tolist()]


def test_pickle_may_hold_sets(tmp_path: Path) -> None:
    frames = {split: [[frozenset(step) for step in sequence] for sequence in FRAMES[split]] for split in SPLITS}
    write_pickle(tmp_path / "MuseData.pickle", frames)
    assert_made_up(load_music("MuseData", tmp_path))


# Finding the file


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("JSB_Chorales", "JSB Chorales.pickle"),
        ("JSB_Chorales", "jsb_chorales.pkl"),
        ("Nottingham", "Nottingham.pickle"),
        ("MuseData", "musedata.PICKLE"),
        ("Piano_midi", "Piano-midi.de.pickle"),
        ("piano_midi", "piano_midi.pickle"),
        ("JSB_Chorales", "jsb.pkl"),
        ("Nottingham", "nottingham.pkl"),
        ("MuseData", "musedata.pkl"),
        ("Piano_midi", "piano_midi.pkl"),
        ("Nottingham", "Nott.mat"),
        ("MuseData", "muse.mat"),
        ("Piano_midi", "piano.pkl"),
    ],
)
@pytest.mark.parametrize("under", ["", "music"])
def test_file_is_found(tmp_path: Path, name: str, file: str, under: str) -> None:
    (tmp_path / under).mkdir(exist_ok=True)
    (write_mat if file.endswith(".mat") else write_pickle)(tmp_path / under / file)
    (tmp_path / "notes on JSB Chorales.txt").touch()
    assert_made_up(load_music(name, tmp_path))


def test_folder_option_wins_over_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("option", "environment"):
        (tmp_path / place).mkdir()
        write_mat(tmp_path / place / "Nottingham.mat")
    monkeypatch.setenv("VSSN_DATA", str(tmp_path / "environment"))
    assert find_music_file("Nottingham").parent.name == "environment"
    assert find_music_file("Nottingham", tmp_path / "option").parent.name == "option"
    message = failure(tmp_path / "absent", "Nottingham")
    assert str(tmp_path / "absent") in message


def test_mat_wins_over_pickle(tmp_path: Path) -> None:
    write_pickle(tmp_path / "Nottingham.pickle")
    write_mat(tmp_path / "Nottingham.mat")
    assert find_music_file("nottingham", tmp_path).name == "Nottingham.mat"


# Every way to fail


def test_no_folder_given() -> None:
    message = failure(None)
    assert "VSSN_DATA is not set" in message
    assert "--data" in message
    assert "`vssn download FOLDER` fetches the four sets" in message


def test_missing_folder_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = failure(tmp_path / "nowhere")
    for part in (
        str(tmp_path / "nowhere"),
        str(tmp_path / "nowhere" / "music"),
        "--data",
        "VSSN_DATA",
        "vssn download",
    ):
        assert part in message
    monkeypatch.setenv("VSSN_DATA", str(tmp_path / "elsewhere"))
    assert f"{tmp_path / 'elsewhere'}" in failure(None)
    assert "from VSSN_DATA" in failure(None)


def test_missing_file_lists_what_bears_on_the_set(tmp_path: Path) -> None:
    """Not the folder's other content, but what may be the set under another name, else the other sets."""
    for name in ("readme.txt", "data.csv", "weights.pkl"):
        (tmp_path / name).touch()
    message = failure(tmp_path)
    for part in ("JSB_Chorales.mat", "found none of the four sets", str(tmp_path), "--data", "`vssn download FOLDER`"):
        assert part in message
    write_mat(tmp_path / "Nottingham.mat")
    write_pickle(tmp_path / "Piano-midi.de.pickle")
    assert "found Nottingham, Piano_midi only; " in failure(tmp_path)
    (tmp_path / "jsb-chorales-16th.json").touch()
    (tmp_path / "JSB Chorales.zip").touch()
    assert "found JSB Chorales.zip, jsb-chorales-16th.json; " in (message := failure(tmp_path))
    for other in ("readme", "data.csv", "weights", "Nottingham"):
        assert other not in message


def test_a_line_break_in_a_file_name_stays_out_of_the_message(tmp_path: Path) -> None:
    (tmp_path / "jsb\nlines").touch()
    assert "jsb lines" in failure(tmp_path)


def test_what_macos_leaves_is_no_data(tmp_path: Path) -> None:
    for name in ("._JSB_Chorales.mat", "__MACOSX/JSB_Chorales.mat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    assert "found none of the four sets" in failure(tmp_path)
    write_pickle(tmp_path / "JSB Chorales.pickle")
    assert_made_up(load_music("JSB_Chorales", tmp_path))


def test_a_published_name_wins_over_a_short_one(tmp_path: Path) -> None:
    for name in ("jsb.pkl", "JSB Chorales.pkl", "piano.pkl"):
        write_pickle(tmp_path / name)
    assert find_music_file("jsb", tmp_path).name == "JSB Chorales.pkl"


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    write_mat(folder / "Nottingham.mat")
    assert_made_up(load_music("Nottingham", folder))
    assert "found Nottingham only" in failure(folder)


def test_unknown_set(tmp_path: Path) -> None:
    message = failure(tmp_path, "Bach")
    assert "'Bach'" in message
    assert "Piano_midi" in message


@pytest.mark.parametrize("compress", [False, True])
def test_truncated_mat(tmp_path: Path, compress: bool) -> None:
    path = write_mat(tmp_path / "JSB_Chorales.mat", compress=compress)
    whole = path.read_bytes()
    for size in (0, 1, 100, 128, 131, 140, *range(150, len(whole) - 9, 37)):
        path.write_bytes(whole[:size])
        message = failure(tmp_path)
        assert "JSB_Chorales.mat" in message
        assert "intact copy" in message


def test_not_a_mat(tmp_path: Path) -> None:
    (tmp_path / "JSB_Chorales.mat").write_bytes(b"<html>not found</html>\n" * 40)
    assert "intact copy" in failure(tmp_path)


def test_mat_without_a_key(tmp_path: Path) -> None:
    content = mat_content()
    content["test"] = content.pop("testdata")
    write_mat(tmp_path / "JSB_Chorales.mat", content)
    assert "without testdata" in failure(tmp_path)


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (np.zeros((5, 87)), "got 5 x 87"),
        (np.zeros((88, 5)), "got 88 x 5"),
        (np.zeros((0, 88)), "got 0 x 88"),
        (np.full((3, 88), 2), "got the value 2"),
        (np.full((3, 88), -1), "got the value -1"),
        (np.full((3, 88), 0.5), "got the value 0.5"),
        (np.full((3, 88), np.nan), "got the value nan"),
        (np.full((3, 88), 1j), "got 3 x 88 complex numbers"),
        (np.array("a note"), "must be a matrix of real numbers, got text"),
    ],
)
def test_mat_with_a_wrong_matrix(tmp_path: Path, matrix: np.ndarray, says: str) -> None:
    content = mat_content() | {"validdata": cells_of([roll_of([(60,)]), matrix])}
    write_mat(tmp_path / "JSB_Chorales.mat", content)
    message = failure(tmp_path)
    assert "validdata[1]" in message
    assert says in message


@pytest.mark.parametrize(("cells", "says"), [(np.zeros((4, 88)), "cell array"), (cells_of([]), "at least one")])
def test_mat_with_wrong_cells(tmp_path: Path, cells: np.ndarray, says: str) -> None:
    write_mat(tmp_path / "JSB_Chorales.mat", mat_content() | {"traindata": cells})
    message = failure(tmp_path)
    assert "traindata" in message
    assert says in message


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_truncated_pickle(tmp_path: Path, protocol: int) -> None:
    path = write_pickle(tmp_path / "JSB Chorales.pickle", protocol=protocol)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        message = failure(tmp_path)
        assert "truncated or corrupt" in message
        assert "intact copy" in message


class _Runs:
    """Unpickled without restriction, this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    path = write_pickle(tmp_path / "JSB Chorales.pickle", FRAMES | {"test": _Runs(mark)}, protocol)
    message = failure(tmp_path)
    assert "mkdir" in message
    assert "nothing was executed" in message
    assert not mark.exists()
    with path.open("rb") as file:
        pickle.load(file)
    assert mark.exists(), "the file was harmless, so the test showed nothing"


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (np.zeros(3), "numpy"),
        (np.int64(60), "numpy"),
        (print, "builtins.print"),
        (getattr, "builtins.getattr"),
        (slice(3), "builtins.slice"),
        (Path("a"), "pathlib"),
    ],
)
def test_pickle_with_another_global_is_refused_by_name(tmp_path: Path, value: object, names: str) -> None:
    write_pickle(tmp_path / "JSB Chorales.pickle", FRAMES | {"extra": value}, protocol=4)
    message = failure(tmp_path)
    assert names in message
    assert "built-in containers and numbers only" in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x02]r\xff\xff\xff\x3f.", "expected a dict"),  # the number of an object: 17 GB for a table of them
        (b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1" * 50, "truncated or corrupt"),  # an integer of 2 GB
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00abc", "truncated or corrupt"),  # a text of 2^56 bytes
        (b"\x80\x04\x95" + b"\xff" * 7 + b"\x00abc", "truncated or corrupt"),  # a frame
        (b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".", "expected a dict"),  # lists in lists
        (b"\x80\x02\x82\x01.", "truncated or corrupt"),  # an extension's code
        (b"\x80\x02c__builtin__\nset\n)\x81}b.", "expected a dict"),  # a state for a set
        (b"\x80\x02c__builtin__\nset\n(K\x01K\x02tR.", "truncated or corrupt"),  # a call that fails
        (b"\x80\x02cbuiltins\nset.__class__\n.", "refused"),
        (b"\x80\x04\x8c\x08builtins\x8c\x0dset.__class__\x93.", "refused"),
        (b"\x80\x05\x97.", "truncated or corrupt"),  # a buffer beside the file
    ],
)
def test_a_pickle_made_to_harm_is_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "JSB Chorales.pickle").write_bytes(data)
    assert said in failure(tmp_path)


def test_lists_that_hold_the_same_lists_over_and_over_are_refused(tmp_path: Path) -> None:
    """27 GB of notes in a file of 10 KB."""
    step = (60,) * 3000
    sequence = [step] * 3000
    write_pickle(tmp_path / "JSB Chorales.pickle", FRAMES | {"train": [sequence] * 3000}, protocol=2)
    assert "refers to the same lists over and over" in failure(tmp_path)


def test_pickle_with_a_line_break_in_a_name(tmp_path: Path) -> None:
    data = b"\x80\x04\x8c\x05a\nb\x1b[\x8c\x03c\nd\x93."
    (tmp_path / "JSB Chorales.pickle").write_bytes(data)
    message = failure(tmp_path)
    assert "a\\nb" in message
    assert "\x1b" not in message


def test_pickle_with_an_outside_reference(tmp_path: Path) -> None:
    (tmp_path / "JSB Chorales.pickle").write_bytes(b"Psomewhere\n.")
    assert "outside the file" in failure(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "expected a dict"),
        ({}, "an empty dict"),
        (
            {"train": FRAMES["train"], "valid": FRAMES["valid"], "eval": []},
            "without test (got 'train', 'valid', 'eval')",
        ),
        (FRAMES | {"valid": []}, "valid must be a non-empty list of sequences"),
        (FRAMES | {"valid": {}}, "valid must be a non-empty list of sequences"),
        (FRAMES | {"train": [[(60,)], []]}, "train[1] must be a non-empty list"),
        (FRAMES | {"train": [[(60,), 60]]}, "train[0][1] must be a tuple"),
        (FRAMES | {"test": [[(60, 20)]]}, "from 21 to 108, got 20"),
        (FRAMES | {"test": [[(109,)]]}, "from 21 to 108, got 109"),
        (FRAMES | {"test": [[(60.5,)]]}, "got 60.5"),
        (FRAMES | {"test": [[(True,)]]}, "got True"),
        (FRAMES | {"test": [[("60",)]]}, "got '60'"),
        (FRAMES | {"test": [[(10**6000,)]]}, "got an object of type int"),
    ],
)
def test_pickle_of_a_wrong_form(tmp_path: Path, content: object, says: str) -> None:
    write_pickle(tmp_path / "JSB Chorales.pickle", content)
    message = failure(tmp_path)
    assert says in message
    assert "intact copy" in message


# Transposition


def test_transpose_shifts_the_whole_sequence() -> None:
    roll = torch.from_numpy(roll_of([(50, 60), (), (62,)]))
    generator = torch.Generator().manual_seed(3)
    shifts = set()
    for _ in range(200):
        shifted = Transpose(4)(roll, generator)
        assert shifted.shape == roll.shape
        assert shifted.dtype == roll.dtype
        shift = int(shifted[2].argmax()) - int(roll[2].argmax())
        assert shifted.equal(torch.from_numpy(roll_of([(50 + shift, 60 + shift), (), (62 + shift,)])))
        shifts.add(shift)
    assert shifts == set(range(-4, 5))


def test_transpose_lets_no_note_fall_off() -> None:
    roll = torch.from_numpy(roll_of([(22, 60), (107,)]))  # room for one semitone each way
    generator = torch.Generator().manual_seed(0)
    lowest = {int(Transpose(12)(roll, generator)[0].argmax()) for _ in range(60)}
    assert lowest == {0, 1, 2}
    full = torch.from_numpy(roll_of([(21,), (108,)]))
    assert all(Transpose(12)(full, generator).equal(full) for _ in range(20))


def test_transpose_leaves_silence_and_zero_range_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    silent = torch.zeros(4, 88, dtype=torch.uint8)
    assert Transpose(5)(silent, generator).equal(silent)
    roll = torch.from_numpy(roll_of([(60,)]))
    assert Transpose(0)(roll, generator).equal(roll)
    with pytest.raises(ValueError, match="semitones must be 0 or more, got -1"):
        Transpose(-1)


def test_transpose_follows_its_generator() -> None:
    roll = torch.from_numpy(roll_of([(60,)]))
    draws = [
        [int(Transpose(9)(roll, generator).argmax()) for _ in range(20)]
        for generator in (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
