"""Speech: both layouts of TIMIT, folders of recordings, normalisation, scores; a damaged file is named in one line."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vssn.cli import main
from vssn.data.speech import (
    FRAME_SIZE,
    SEGMENT,
    Scale,
    SpeechSplits,
    load_speech,
    scale_of,
    speech_scores,
)
from vssn.errors import DataError
from vssn.training.checkpoints import load_model
from vssn.training.config import check_config, load_config
from vssn.training.fit import fit

soundfile = pytest.importorskip("soundfile", reason="reading speech needs soundfile: pip install 'vssn[speech]'")
RATE = 16000


def samples_of(path: Path, count: int) -> np.ndarray:
    """Whole numbers that follow from the file's name."""
    rng = np.random.default_rng(sum(map(ord, path.stem)) + 7 * sum(map(ord, path.parent.name)))
    return rng.integers(-3000, 3000, count).astype(np.int16)


def write(path: Path, count: int, rate: int = RATE, *, form: str = "WAV") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples_of(path, count), rate, format=form, subtype="PCM_16")
    return path


def official(root: Path, *, upper: bool = True, form: str = "NIST") -> Path:
    """22 training speakers, 2 test speakers, 2 utterances each of 2 to 4 frames and a rest."""
    for split, speakers in (("TRAIN", 22), ("TEST", 2)):
        for number in range(speakers):
            sex = "F" if number % 3 == 0 else "M"
            for index, stem in enumerate(("SA1", "SX9")):
                name = f"TIMIT/{split}/DR{1 + number % 8}/{sex}{number:02}A0/{stem}.WAV"
                count = FRAME_SIZE * (2 + (number + index) % 3) + 17
                write(root / (name if upper else name.lower()), count, form=form)
    return root


def sample(root: Path) -> Path:
    """16 speakers in NLTK's layout."""
    for region in range(1, 9):
        for sex in "fm":
            for stem in ("sa1", "sx9"):
                write(root / "timit_sample" / f"dr{region}-{sex}ab{region}" / f"{stem}.wav", 3 * FRAME_SIZE + region)
    return root


def speakers(splits: SpeechSplits) -> list[set[str]]:
    return [{piece.path.parent.name.lower() for piece in part.pieces} for part in splits]


@pytest.mark.parametrize(("upper", "form"), [(True, "NIST"), (False, "WAV"), (True, "WAV")])
def test_the_official_layout(tmp_path: Path, upper: bool, form: str) -> None:
    splits = load_speech("timit", official(tmp_path, upper=upper, form=form))
    assert [len(part) for part in splits] == [42, 2, 4]
    train, valid, test = speakers(splits)
    assert len(valid) == 1
    assert not train & valid
    assert not (train | valid) & test or all("test" in str(p.path).lower() for p in splits.test.pieces)
    assert {piece.path.parts[-4].lower() for piece in splits.test.pieces} == {"test"}
    assert {piece.path.parts[-4].lower() for piece in (*splits.train.pieces, *splits.valid.pieces)} == {"train"}


def test_samples_are_exact_and_cut_to_whole_frames(tmp_path: Path) -> None:
    splits = load_speech("timit", official(tmp_path))
    scale = splits.train.scale
    assert scale.sample_rate == RATE
    everything = []
    for part in splits:
        for index, piece in enumerate(part.pieces):
            x = part[index]
            whole = samples_of(piece.path, 10_000)[: x.numel()]
            assert x.shape == (part.lengths[index], FRAME_SIZE)
            assert x.dtype == torch.float32
            np.testing.assert_allclose(x.numpy().ravel() * scale.std + scale.mean, whole, atol=2e-3)
            if part is splits.train:
                everything.append(whole.astype(np.float64))
    joined = np.concatenate(everything)
    assert scale.mean == pytest.approx(joined.mean(), rel=1e-9)
    assert scale.std == pytest.approx(joined.std(), rel=1e-9)


def test_a_copy_beside_the_original_counts_once(tmp_path: Path) -> None:
    root = official(tmp_path)
    for path in list(root.rglob("*.WAV")):
        soundfile.write(f"{path}.wav", samples_of(path, 400), RATE, format="WAV")
    assert [len(part) for part in load_speech("timit", root)] == [42, 2, 4]


def test_the_layout_of_the_sample(tmp_path: Path) -> None:
    splits = load_speech("timit", sample(tmp_path))
    assert [len(part) for part in splits] == [24, 4, 4]
    train, valid, test = speakers(splits)
    assert valid == {"dr4-fab4", "dr4-mab4"}
    assert test == {"dr8-fab8", "dr8-mab8"}
    assert len(train | valid | test) == 16


def test_recordings_are_cut_into_segments(tmp_path: Path) -> None:
    for number in range(20):
        form = "FLAC" if number % 2 else "WAV"
        write(tmp_path / "book" / f"{number:02}.{form.lower()}", (1 + number % 3) * SEGMENT + 100, 22050, form=form)
    splits = load_speech("blizzard", tmp_path)
    files = [sorted({int(piece.path.stem) for piece in part.pieces}) for part in splits]
    assert files[1:] == [[4, 14], [9, 19]]
    assert sorted(number for part in files for number in part) == list(range(20))
    assert set(splits.train.lengths) == {SEGMENT // FRAME_SIZE}
    assert splits.test.scale.sample_rate == 22050
    third = next(index for index, piece in enumerate(splits.train.pieces) if piece.start == 2 * SEGMENT)
    piece, scale = splits.train.pieces[third], splits.train.scale
    wanted = samples_of(piece.path, 3 * SEGMENT + 100)[2 * SEGMENT : 3 * SEGMENT]
    np.testing.assert_allclose(splits.train[third].numpy().ravel() * scale.std + scale.mean, wanted, atol=2e-3)


def test_a_given_normalisation_is_used(tmp_path: Path) -> None:
    splits = load_speech("timit", sample(tmp_path), mean=10.0, std=500.0)
    whole = samples_of(splits.test.pieces[0].path, 3 * FRAME_SIZE)
    np.testing.assert_allclose(splits.test[0].numpy().ravel(), (whole - 10.0) / 500.0, rtol=1e-5, atol=1e-6)


def test_the_data_variable_and_its_subfolders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(tmp_path / "speech")
    for number in range(10):
        write(tmp_path / "speech" / "ljspeech_sample" / "wavs" / f"{number}.wav", SEGMENT)
    monkeypatch.setenv("VSSN_DATA", str(tmp_path))
    assert [len(part) for part in load_speech("timit")] == [24, 4, 4]
    assert [len(part) for part in load_speech("blizzard")] == [8, 1, 1]


# Folders and files as people have them


def ten(folder: Path) -> Path:
    for number in range(10):
        write(folder / f"{number}.wav", SEGMENT)
    return folder


def test_a_folder_of_recordings_may_be_a_link(tmp_path: Path) -> None:
    real = ten(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wavs").symlink_to(real)
    (real / "up").symlink_to(tmp_path / "data")  # an endless way down
    splits = load_speech("blizzard", tmp_path / "data")
    assert [len(part) for part in splits] == [8, 1, 1]
    assert splits.valid.pieces[0].path == tmp_path / "data" / "wavs" / "4.wav"


def test_capitals_tell_recordings_apart(tmp_path: Path) -> None:
    for number in range(5):
        for name in (f"lj00{number}", f"LJ00{number}"):
            write(tmp_path / f"{name}.wav", SEGMENT)
    (tmp_path / "LJ001.WAV.wav").write_bytes((tmp_path / "LJ001.wav").read_bytes())
    splits = load_speech("blizzard", tmp_path)
    names = sorted(piece.path.stem for part in splits for piece in part.pieces)
    assert [name.removesuffix(".WAV") for name in names] == sorted(
        f"{name}00{number}" for name in ("lj", "LJ") for number in range(5)
    )


@pytest.mark.parametrize("layout", [official, sample])
def test_speakers_whose_folders_differ_by_capitals_alone(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    root = layout(tmp_path)
    name = "TIMIT/TRAIN" if layout is official else "timit_sample/dr1-fab1"
    twin = root / name.replace("TRAIN", "train").replace("fab", "FAB")
    twin.mkdir()
    message = message_of("timit", root)
    assert message.startswith(f"{twin.parent}: expected one folder ")
    assert Path(name).name in message
    assert twin.name in message


def test_what_macos_leaves_is_no_recording(tmp_path: Path) -> None:
    ten(tmp_path / "wavs")
    for name in ("wavs/._0.wav", "__MACOSX/wavs/._1.wav", "__MACOSX/2.wav", ".hidden/3.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    assert [len(part) for part in load_speech("blizzard", tmp_path)] == [8, 1, 1]


def test_recordings_of_other_forms_are_named(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.mp3").write_bytes(b"ID3")
    (tmp_path / "more.zip").touch()
    (tmp_path / "notes.txt").touch()
    message = message_of("blizzard", tmp_path)
    assert "expected recordings (.wav, .flac, .sph, .nist)" in message
    assert "found 12 .mp3, 1 .zip: convert them to wav or flac" in message
    assert "txt" not in message


@pytest.mark.parametrize(
    "names", [(b"caf\xe9", b"%d.wav"), (b"wavs", b"caf\xe9 %d.wav"), (b"wavs", b"caf\xc3\xa9 %d.flac")]
)
def test_names_that_are_not_utf_8(names: tuple[bytes, bytes], tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(names[0])
    folder.mkdir()
    for number in range(10):
        plain = write(tmp_path / "plain.wav", SEGMENT + number)
        os.replace(plain, folder / os.fsdecode(names[1] % number))
    splits = load_speech("blizzard", folder)
    assert [len(part) for part in splits] == [8, 1, 1]
    assert splits.train[0].shape == (SEGMENT // FRAME_SIZE, FRAME_SIZE)
    path = splits.test.pieces[0].path
    path.write_bytes(b"")
    assert str(path) in message_of("blizzard", folder)


def resize(path: Path, riff: int, data: int) -> None:
    """Puts two lengths into the header of a plain WAV file."""
    content = path.read_bytes()
    order = "<I" if content.startswith(b"RIFF") else ">I"
    head = content[:4] + struct.pack(order, riff) + content[8:40] + struct.pack(order, data)
    path.write_bytes(head + content[44:])


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (2**32 - 1, 2**32 - 1),
        (0, 0),
        (36, 0),  # the header of a recording that has not begun
        (2**31, 2**31),
        (2**31 + 36, 2**31),
        (2**31 - 1, 2**31 - 37),
        (2**31 - 4096 + 36, 2**31 - 4096),
        (0, 10**6),
        (2**32 - 1, 10**6),
        (2**32 - 1, 0),
    ],
)
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_a_header_of_unknown_length(tmp_path: Path, riff: int, data: int, endian: str) -> None:
    """As a pipe writes it: the samples reach to the end of the file."""
    ten(tmp_path)
    path = tmp_path / "3.wav"
    soundfile.write(path, samples_of(path, 2 * SEGMENT), RATE, format="WAV", subtype="PCM_16", endian=endian)
    resize(path, riff, data)
    splits = load_speech("blizzard", tmp_path)
    own = [index for index, piece in enumerate(splits.train.pieces) if piece.path == path]
    assert len(own) == 2
    read = torch.cat([splits.train[index] for index in own]).numpy().ravel()
    scale = splits.train.scale
    np.testing.assert_allclose(read * scale.std + scale.mean, samples_of(path, 2 * SEGMENT), atol=2e-3)


def test_a_known_length_beyond_the_end_is_still_truncated(tmp_path: Path) -> None:
    ten(tmp_path)
    size = 2 * SEGMENT
    resize(tmp_path / "3.wav", size + 36, size + 2)
    assert message_of("blizzard", tmp_path).startswith(f"{tmp_path / '3.wav'}: truncated, {SEGMENT} samples are left")


def test_a_recording_without_samples_is_no_open_length(tmp_path: Path) -> None:
    ten(tmp_path)
    path = tmp_path / "3.wav"
    soundfile.write(path, np.zeros(0, dtype=np.int16), RATE, format="WAV", subtype="PCM_16")
    content = path.read_bytes() + b"LIST" + struct.pack("<I", SEGMENT * 2) + bytes(SEGMENT * 2)
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    assert [len(part) for part in load_speech("blizzard", tmp_path)] == [7, 1, 1]


def test_a_shortened_file_needs_sph2pipe(tmp_path: Path) -> None:
    root = official(tmp_path)
    path = root / "TIMIT" / "TRAIN" / "DR1" / "F00A0" / "SA1.WAV"
    content = path.read_bytes()
    coding = b"sample_coding -s26 pcm,embedded-shorten-v2.00"
    head = content[:1024].replace(b"sample_coding -s3 pcm", coding)[:1024]
    path.write_bytes(head + content[1024:])
    message = message_of("timit", root)
    assert message.startswith(f"{path}: expected plain samples, got a SPHERE file coded as pcm,embedded-shorten-v2.00")
    assert "sph2pipe -f wav" in message


# Scores


def test_bits_of_a_known_density() -> None:
    """Normal samples under their own density: the entropy of the normal in steps of 16 bits."""
    std = 700.0
    nats_per_frame = -FRAME_SIZE * 0.5 * math.log(2 * math.pi * math.e)  # of N(0, 1), per normalised sample
    scores = speech_scores(nats_per_frame, frames=30, sequences=4, scale=Scale(3.0, std, RATE))
    assert scores.bits_per_sample == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * std**2))
    assert scores.nats_per_sequence == pytest.approx(nats_per_frame * 30 / 4)


def test_bits_do_not_depend_on_the_normalisation() -> None:
    """A Gaussian with the same mean and variance in steps, seen through two normalisations."""
    s = np.random.default_rng(0).normal(5, 300, FRAME_SIZE * 10)
    bits = []
    for mean, std in ((0.0, 1.0), (5.0, 250.0)):
        x = (s - mean) / std
        mu, sigma = (5 - mean) / std, 300 / std
        log_prob = -0.5 * (np.log(2 * np.pi * sigma**2) + ((x - mu) / sigma) ** 2)
        bits.append(speech_scores(log_prob.sum() / 10, 10, 1, Scale(mean, std, RATE)).bits_per_sample)
    assert bits[0] == pytest.approx(bits[1], rel=1e-12)


def test_a_run_keeps_its_normalisation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = sample(tmp_path)
    settings = {
        "data": {"set": "timit", "folder": str(root), "batch_size": 5},
        "model": {"hidden_size": 3, "latent_size": 2, "noise_size": 1, "likelihood": "gaussian"},
        "training": {"output": str(tmp_path / "run"), "max_epochs": 1, "chunk_length": 2, "accelerator": "cpu"},
    }
    fit(check_config(settings, ""))
    _, config = load_model(tmp_path / "run" / "best.ckpt")
    scale = load_speech("timit", root).train.scale
    assert (config.data.mean, config.data.std) == (scale.mean, scale.std)
    again = fit(check_config({**settings, "training": settings["training"] | {"max_epochs": 2}}, ""), resume=True)
    assert again.best_path.is_file()
    assert scale_of(config.load_data().test) == scale
    assert load_config(tmp_path / "run" / "config.yaml").data == config.data

    target = tmp_path / "scores.json"
    assert main(["evaluate", str(tmp_path / "run" / "best.ckpt"), "--json", str(target)]) == 0
    content = json.loads(target.read_text())
    wanted = speech_scores(content["micro"], 12, 4, scale)
    assert {name: content[name] for name in wanted._fields} == pytest.approx(wanted._asdict())
    assert f"bits per sample{wanted.bits_per_sample:>23.4f}" in capsys.readouterr().out


# What goes wrong


def message_of(name: str, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_speech(name, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("form", ["WAV", "NIST", "FLAC"])
def test_a_truncated_file_is_named(tmp_path: Path, form: str) -> None:
    for number in range(10):
        path = write(tmp_path / f"{number}.{'flac' if form == 'FLAC' else 'wav'}", SEGMENT + 9, form=form)
    path = path.with_stem("3")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert message_of("blizzard", tmp_path).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"RIFF", b"<html>not found</html>", bytes(2000)])
def test_a_file_that_is_no_recording_is_named(tmp_path: Path, content: bytes) -> None:
    for number in range(10):
        write(tmp_path / f"{number}.wav", SEGMENT)
    (tmp_path / "7.wav").write_bytes(content)
    assert message_of("blizzard", tmp_path).startswith(
        f"{tmp_path / '7.wav'}: expected a wav, flac or NIST SPHERE file"
    )


def test_nothing_is_resampled(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"{number}.wav", SEGMENT, 44100 if number == 6 else RATE)
    message = message_of("blizzard", tmp_path)
    assert "expected 16000 Hz as in the files before, got 44100 Hz" in message
    assert "6.wav" in message


def test_two_channels_are_refused(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"{number}.wav", SEGMENT)
    soundfile.write(tmp_path / "2.wav", np.zeros((SEGMENT, 2), dtype=np.int16), RATE)
    assert "2.wav: expected one channel, got 2" in message_of("blizzard", tmp_path)


def test_folders_without_the_set(tmp_path: Path) -> None:
    assert "there is no folder" in message_of("timit", tmp_path / "absent")
    (tmp_path / "notes").mkdir()
    assert "expected TRAIN and TEST" in message_of("timit", tmp_path)
    assert "got none for training" in message_of("blizzard", tmp_path)
    write(tmp_path / "one.wav", SEGMENT)
    assert "got none for validation" in message_of("blizzard", tmp_path)
    for number in range(20):
        write(tmp_path / f"{number}.wav", 100)
    assert "every validation recording is shorter than a sequence" in message_of("blizzard", tmp_path)
    with pytest.raises(DataError, match="unknown speech set 'vctk': choose one of timit, blizzard"):
        load_speech("vctk", tmp_path)


@pytest.mark.parametrize("layout", [official, sample])
def test_timit_is_not_taken_for_recordings_of_one_reader(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    root = layout(tmp_path)
    assert "got TIMIT in " in message_of("blizzard", root)
    for number in range(10):
        write(tmp_path / "blizzard" / f"{number}.wav", SEGMENT)
    assert len(load_speech("blizzard", tmp_path).train) > 0


def test_recordings_in_folders_train_and_test_are_no_timit(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / ("train" if number < 7 else "test") / f"{number}.wav", SEGMENT)
    splits = load_speech("blizzard", tmp_path)
    assert sum(map(len, splits)) == 10


def test_names_with_dots_are_different_recordings(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"chapter.{number}.wav", SEGMENT)
    assert sum(map(len, load_speech("blizzard", tmp_path))) == 10


def test_silence_cannot_be_normalised(tmp_path: Path) -> None:
    for number in range(10):
        soundfile.write(tmp_path / f"{number}.wav", np.full(SEGMENT, 3, dtype=np.int16), RATE)
    assert "every training sample has the same value 3" in message_of("blizzard", tmp_path)


def test_without_soundfile_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(tmp_path)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DataError, match=r"^soundfile is not installed; .* pip install 'vssn\[speech\]'$"):
        load_speech("timit", tmp_path)


# The real samples


@pytest.mark.skipif("VSSN_DATA" not in os.environ, reason="VSSN_DATA names no folder with the speech samples")
@pytest.mark.parametrize(("name", "frames", "rate"), [("timit", 4710, 16000), ("blizzard", 2200, 22050)])
def test_the_real_samples(name: str, frames: int, rate: int) -> None:
    try:
        splits = load_speech(name)
    except DataError as error:
        pytest.skip(str(error))
    if not any(word in str(splits.train.pieces[0].path) for word in ("timit_sample", "ljspeech_sample")):
        pytest.skip(f"VSSN_DATA has another set of {name}")
    assert sum(splits.test.lengths) == frames
    assert splits.test.scale.sample_rate == rate
    x = torch.cat([splits.train[index] for index in range(len(splits.train))])
    assert abs(float(x.double().mean())) < 1e-5
    assert float(x.double().std()) == pytest.approx(1, abs=1e-5)
