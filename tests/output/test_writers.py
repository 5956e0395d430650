"""What is written: read back by other means, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from vssn.errors import DataError
from vssn.output import films, music, sound, tables
from vssn.output.charts import Fan, draw_fans, draw_rolls, save
from vssn.output.notes import notes_of


def a_roll() -> np.ndarray[Any, Any]:
    """A C held for two beats, an E behind it, a C again; 4 frames a beat."""
    roll = np.zeros((12, 88))
    roll[0:8, 60 - 21] = roll[4:6, 64 - 21] = roll[10:12, 60 - 21] = 1
    return roll


def test_notes_of_a_roll() -> None:
    assert notes_of(a_roll()) == [(0, 8, 60), (4, 2, 64), (10, 2, 60)]
    assert notes_of(np.zeros((5, 88))) == notes_of(np.zeros((0, 88))) == []
    assert notes_of(np.ones((3, 2)), 40) == [(0, 3, 40), (0, 3, 41)]
    with pytest.raises(
        DataError, match=r"roll must have shape \[T, keys\] of MIDI numbers in \[0, 127\], got \[2, 200\]"
    ):
        notes_of(np.zeros((2, 200)))


def test_midi_is_read_back(tmp_path: Path) -> None:
    symusic = pytest.importorskip("symusic")
    music.write_midi(tmp_path / "a.mid", a_roll(), frames_per_beat=4, tempo=90)
    score = symusic.Score(tmp_path / "a.mid")
    beat = score.ticks_per_quarter
    notes = [(note.time / beat, note.duration / beat, note.pitch) for note in score.tracks[0].notes]
    assert notes == [(0, 2, 60), (1, 0.5, 64), (2.5, 0.5, 60)]
    assert score.tempos[0].qpm == pytest.approx(90, rel=1e-5)
    music.write_midi(tmp_path / "none.mid", np.zeros((4, 88)), frames_per_beat=4)
    assert [len(track.notes) for track in symusic.Score(tmp_path / "none.mid").tracks] in ([], [0])


def test_the_synthesiser_plays_the_notes() -> None:
    """The strongest frequency is the note's, in the time of the note; silence is silent."""
    roll = np.zeros((16, 88))
    roll[4:12, 69 - 21] = 1  # a' from 0.5 s to 1.5 s
    wave = sound.synthesise(roll, 8.0)
    assert wave.dtype == np.float32
    assert len(wave) >= 2 * sound.RATE
    assert np.abs(wave).max() == pytest.approx(sound.LOUDEST, rel=1e-6)
    quiet = np.concatenate((wave[: sound.RATE // 2], wave[int(1.6 * sound.RATE) :]))
    assert not quiet.any()
    spectrum = np.abs(np.fft.rfft(wave[sound.RATE // 2 : sound.RATE * 3 // 2]))
    assert np.argmax(spectrum) == pytest.approx(440, abs=1)
    assert not sound.synthesise(np.zeros((4, 88)), 8.0).any()
    chord = np.ones((8, 88))
    assert np.abs(sound.synthesise(chord, 8.0)).max() <= 1  # scaled, not cut


def test_sound_is_read_back(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    wave = np.sin(np.arange(4000) / 10) * 0.5
    sound.write_sound(tmp_path / "a.wav", wave, 16000.0)
    back, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 16000
    np.testing.assert_allclose(back, wave, atol=2 / 2**15)
    sound.write_sound(tmp_path / "loud.wav", 4 * wave, 16000)
    loud, _ = soundfile.read(tmp_path / "loud.wav")
    np.testing.assert_allclose(loud, wave / np.abs(wave).max(), atol=2 / 2**15)
    for wrong in (np.array([0.0, np.nan]), np.zeros(0)):
        with pytest.raises(DataError, match="expected a wave of finite numbers"):
            sound.write_sound(tmp_path / "no.wav", wrong, 16000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "loud.wav"]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_a_gif_is_read_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    film = np.linspace(0, 1, 4)[:, None] * np.ones(int(np.prod(shape)))
    films.write_gif(tmp_path / "a.gif", film, shape, frames_per_second=5)
    gif = image.open(tmp_path / "a.gif")
    assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (4, 200, 0)
    assert gif.size[0] * 5 == gif.size[1] * 7
    for frame in range(4):
        gif.seek(frame)
        pixels = np.asarray(gif.convert("RGB"), float) / 255
        np.testing.assert_allclose(pixels, frame / 3, atol=0.02)
    films.write_gif(tmp_path / "seen.gif", film, shape, seen=2)
    bordered = image.open(tmp_path / "seen.gif")
    corners = []
    for frame in range(4):
        bordered.seek(frame)
        corners.append(np.asarray(bordered.convert("RGB"))[0, 0].tolist())
    assert corners[0] == corners[1]
    assert corners[2] == corners[3]
    assert corners[0][2] > corners[0][0]  # blue
    assert corners[3][0] > corners[3][2]  # orange


def test_frames_are_cut_and_checked() -> None:
    frames = films.frames_of(np.array([[-1.0, 0.5, np.nan, 2.0]]), (2, 2))
    assert frames[0, ..., 0].tolist() == [[0, 128], [128, 255]]
    assert frames.shape == (1, 2, 2, 3)
    with pytest.raises(DataError, match=r"film must have frames of 3 x 3 pixels, got shape \[2, 4\]"):
        films.frames_of(np.zeros((2, 4)), (3, 3))


def test_a_strip_has_a_row_a_film(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    films.write_strip(tmp_path / "a.png", [np.zeros((40, 16)), np.ones((3, 16))], (4, 4), seen=2, most=5)
    width, height = image.open(tmp_path / "a.png").size
    assert width == height // 2 * 5
    with pytest.raises(DataError, match="expected a film of one frame at least, got none"):
        films.write_strip(tmp_path / "no.png", [np.zeros((0, 16))], (4, 4))


def some_frames() -> tables.Frames:
    generator = np.random.default_rng(0)
    samples = [generator.normal(size=(9, steps, 2)) for steps in (3, 2)]
    days = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], "datetime64[ns]")
    return tables.Frames(
        ("a", "b"), ("wind", "rain"), (days, days[1:]), [s.mean(0) for s in samples], samples, (0.1, 0.5, 0.975)
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_has_a_row_for_every_series_frame_and_channel(suffix: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frames, path = some_frames(), tmp_path / f"a{suffix}"
    tables.write_frames(path, frames)
    table = pandas.read_csv(path, parse_dates=["time"]) if suffix == ".csv" else pandas.read_parquet(path)
    assert list(table.columns) == ["series", "time", "channel", "mean", "q10", "q50", "q97.5"]
    assert len(table) == 2 * (3 + 2)
    row = table[(table.series == "b") & (table.time == "2024-01-03") & (table.channel == "rain")].iloc[0]
    assert row["mean"] == pytest.approx(frames.mean[1][1, 1])
    assert row["q97.5"] == pytest.approx(np.quantile(frames.samples[1][:, 1, 1], 0.975))
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name]


def test_arrays_are_padded(tmp_path: Path) -> None:
    frames = some_frames()
    tables.write_frames(tmp_path / "a.npz", frames)
    with np.load(tmp_path / "a.npz") as arrays:
        content = dict(arrays)
    assert {name: array.shape for name, array in content.items()} == {
        "mean": (2, 3, 2),
        "quantiles": (3, 2, 3, 2),
        "levels": (3,),
        "samples": (9, 2, 3, 2),
        "channels": (2,),
        "lengths": (2,),
        "series": (2,),
        "time": (2, 3),
    }
    assert content["lengths"].tolist() == [3, 2]
    np.testing.assert_array_equal(content["mean"][1, :2], frames.mean[1])
    np.testing.assert_array_equal(content["samples"][:, 1, :2], frames.samples[1])
    np.testing.assert_array_equal(content["quantiles"][1, 0], np.median(frames.samples[0], 0))
    assert np.isnan(content["mean"][1, 2]).all()
    assert np.isnat(content["time"][1, 2])


def test_latents_are_columns(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    states = {"d": [np.ones((3, 2)), np.zeros((1, 2))], "z": [np.full((3, 1), 2.0), np.zeros((1, 1))]}
    times = [np.arange(3), np.arange(1)]
    tables.write_latents(tmp_path / "a.csv", ("a", "b"), times, states)
    table = pandas.read_csv(tmp_path / "a.csv")
    assert list(table.columns) == ["series", "time", "d1", "d2", "z1"]
    assert table.z1.tolist() == [2, 2, 2, 0]
    tables.write_latents(tmp_path / "a.npz", ("a", "b"), times, states)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["d"].shape == (2, 3, 2)


def a_fan(channel: str = "co2 (ppm)", dates: bool = True) -> Fan:
    time = np.datetime64("2024-01-01") + np.arange(30) if dates else np.arange(30.0)
    history = np.sin(np.arange(20.0))
    history[5], history[7] = np.nan, np.nan
    return Fan(channel, time[:20], history, time[20:], np.random.default_rng(0).normal(size=(50, 10)))


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("dates", [True, False])
def test_a_fan_chart_is_drawn(count: int, dates: bool, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    draw_fans(tmp_path / "a.png", [a_fan(f"c{i}", dates) for i in range(count)], title="a")
    picture = np.asarray(image.open(tmp_path / "a.png").convert("RGB"))
    blue = np.all(np.abs(picture.astype(int) - (0, 114, 178)) < 30, -1)  # of the median
    assert blue.any()
    assert np.flatnonzero(blue[: len(blue) // 2].any(0)).min() > picture.shape[1] / 2  # behind the history
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_gaps_are_filled_where_they_are(tmp_path: Path) -> None:
    fan = a_fan()
    gaps = np.flatnonzero(np.isnan(fan.history))
    fan = fan._replace(ahead=fan.times[gaps], samples=fan.samples[:, : len(gaps)])
    draw_fans(tmp_path / "a.png", [fan], title="a", scattered=True)
    draw_fans(
        tmp_path / "none.png",
        [fan._replace(ahead=fan.times[:0], samples=fan.samples[:, :0])],
        title="a",
        scattered=True,
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    path.write_text("before")

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        tables.write_frames(path, some_frames())
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


NAMES = ["price $", "$a$ and $b", "x_$^{", "\\frac"]


@pytest.mark.parametrize("name", NAMES)
def test_a_dollar_in_a_name_begins_no_formula(name: str, tmp_path: Path) -> None:
    """One alone was an error of the drawing, two were taken for signs."""
    draw_fans(tmp_path / "a.png", [a_fan(name)], title=name, model_label=name, time_label=name)
    roll = torch.zeros(4, 88)
    draw_rolls({name: roll}, tmp_path / "b.png", title=name)
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 10], [1, 1000], label=name)
    axes.set(yscale="log", title=name)
    axes.legend()
    save(figure, tmp_path / "c.png")
    assert not axes.title.get_parse_math()
    assert not axes.get_legend().get_texts()[0].get_parse_math()
    assert all(tick.label1.get_parse_math() for tick in axes.yaxis.get_major_ticks())  # powers of ten
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]
