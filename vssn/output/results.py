"""What a model made of data, written as the kind of the data asks for: see `vssn.output.targets` for what that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vssn.data.formats.grid import rounded
from vssn.output import films, music, sound
from vssn.output.charts import Fan, draw_fans
from vssn.output.filled import filled_tables, labels_of, together
from vssn.output.tables import Frames, arrays_of, write_arrays, write_frames, write_table
from vssn.output.targets import Target
from vssn.utils.packages import needing

if TYPE_CHECKING:
    import pandas

    from vssn.data.formats import Source

Array = np.ndarray[Any, Any]
_TABLES = (".csv", ".parquet", ".npz")


@dataclass(frozen=True)
class Look:
    """How data of its kind is shown."""

    kind: str
    label: str  # of the data, for titles
    frame_shape: tuple[int, ...] | None = None
    rate: float | None = None  # audio: samples a second; films: frames a second; midi: frames a beat
    tempo: float | None = None  # beats a minute
    gain: float = 1.0  # wave = gain x + offset
    offset: float = 0.0


def times_of(source: Source) -> list[Array]:
    """The times of every sequence; numbers of frames where they are not known."""
    if source.times is not None:
        return list(source.times)
    return [np.arange(length) for length in source.lengths]


def times_ahead(times: Array, step: str | float | None, steps: int) -> Array:
    """The `steps` times behind the last one.

    Args:
        times: [T] of one at least: datetime64 or numbers.
        step: a frequency of pandas', a number, or None: as far as the last two are apart (1 where there is one).
    """
    if times.dtype.kind == "M" and isinstance(step, str):
        with needing("files"):
            import pandas

        dates = pandas.date_range(times[-1], periods=steps + 1, freq=step)
        if dates[0] != pandas.Timestamp(times[-1]):  # not on the calendar of the step: the first is ahead already
            return np.asarray(dates[:-1].to_numpy(), times.dtype)
        return np.asarray(dates[1:].to_numpy(), times.dtype)
    unit: Any = np.timedelta64(1, "D") if times.dtype.kind == "M" else 1
    width = times[-1] - times[-2] if len(times) > 1 else unit
    if isinstance(step, int | float) and times.dtype.kind != "M":
        width = step
    ahead = np.asarray(times[-1] + width * np.arange(1, steps + 1))
    return ahead if ahead.dtype.kind != "f" else rounded(ahead)


def write_forecast(
    target: Target,
    look: Look,
    frames: Frames,
    histories: Sequence[Array],
    truths: Sequence[Array] | None,
    past: Sequence[Array],
) -> list[Path]:
    """Frames behind those that are known; the files that were written.

    Args:
        frames: the forecasts of N sequences.
        histories: [T_i, X] each, NaN where missing.
        truths: [steps, X] each, where they are known.
        past: the times of the histories.
    """
    written = _write_tables(target, "forecast", frames)
    pictures = zip(target.of_each(frames.names, ".png"), range(len(frames.names)), strict=False)
    for path, i in pictures:
        truth = None if truths is None else truths[i]
        title = f"{look.label}: {frames.names[i]}, {len(frames.mean[i])} steps ahead"
        if look.kind in ("table", "arrays", "trials"):
            _draw_series(path, frames, i, histories[i], truth, past[i], title)
        elif look.kind == "midi":
            music.write_rolls(path, _named(("given", histories[i]), ("continued", frames.samples[i][0])), title=title)
        elif look.kind == "film":
            made = np.concatenate((histories[i], frames.samples[i][0]))
            rows = [made] if truth is None else [np.concatenate((histories[i], truth)), made]
            films.write_strip(path, rows, look.frame_shape or (), seen=len(histories[i]))
        written.append(path)
    whole = [np.concatenate((history, sample[0])) for history, sample in zip(histories, frames.samples, strict=True)]
    return written + _write_playable(target, look, frames.names, whole, [len(history) for history in histories])


def write_generated(target: Target, look: Look, frames: Frames) -> list[Path]:
    """Sequences out of nothing, each of one sample; the files that were written."""
    written = _write_tables(target, "generated", frames)
    for path, i in zip(target.of_each(frames.names, ".png"), range(len(frames.names)), strict=False):
        title, sample = f"{look.label}: {frames.names[i]}", frames.samples[i][0]
        if look.kind in ("table", "arrays", "trials"):
            _draw_series(path, frames, i, sample[:0], None, frames.times[i][:0], title)
        elif look.kind == "midi":
            music.write_rolls(path, {"generated": sample}, title=title)
        elif look.kind == "film":
            films.write_strip(path, [sample], look.frame_shape or ())
        written.append(path)
    return written + _write_playable(target, look, frames.names, [sample[0] for sample in frames.samples], None)


def write_imputed(target: Target, look: Look, frames: Frames, source: Source) -> list[Path]:
    """Sequences with their gaps filled; the files that were written.

    Tables have the columns that came in, as `filled_tables` makes them, a file for each that was read; in one file of
    several a column `file` tells them apart. Beside them in a folder stands imputed.csv: the entries that were missing,
    with their quantiles.

    Args:
        frames: all frames of every sequence; samples where x is observed are x.
        source: as it came, with NaN.
    """
    observed = [x.numpy() for x in source.x]
    gaps = [np.isnan(x) for x in observed]
    written = []
    if look.kind == "table":
        for suffix in (".csv", ".parquet"):
            if suffix in target.suffixes:
                written += _write_filled(target, suffix, filled_tables(source, frames, typed=suffix == ".parquet"))
        extra = target.of_all("imputed", ".csv")
        if extra is not None and target.file is None:
            write_table(extra, _missing_table(frames, gaps))
            written.append(extra)
    else:
        for suffix in (".csv", ".parquet"):
            path = target.of_all("imputed", suffix)
            if path is not None:
                write_table(path, _missing_table(frames, gaps))
                written.append(path)
    path = target.of_all("filled", ".npz")
    if path is not None:
        filled = arrays_of(frames)
        write_arrays(path, {"x": filled.pop("mean"), **filled})
        written.append(path)
    for path, i in zip(target.of_each(frames.names, ".png"), range(len(frames.names)), strict=False):
        title = f"{look.label}: {frames.names[i]}, {gaps[i].sum()} entries filled"
        if look.kind in ("table", "arrays", "trials"):
            _draw_gaps(path, frames, i, observed[i], gaps[i], title)
        elif look.kind == "midi":
            known = np.nan_to_num(observed[i], nan=0.5)
            music.write_rolls(path, {"given": known, "filled": frames.samples[i][0]}, title=title)
        elif look.kind == "film":
            films.write_strip(path, [observed[i], frames.mean[i]], look.frame_shape or ())
        written.append(path)
    best = [sample[0] for sample in frames.samples] if look.kind == "midi" else frames.mean
    return written + _write_playable(target, look, frames.names, best, None)


def _write_filled(target: Target, suffix: str, tables: Mapping[Path, pandas.DataFrame]) -> list[Path]:
    if len(tables) > 1 and target.file is None:
        paths = target.of_each([f"filled-{label}" for label in labels_of(list(tables))], suffix)
        contents = list(tables.values())
    else:
        paths = [path for path in [target.of_all("filled", suffix)] if path is not None]
        contents = [together(tables) if len(tables) > 1 else next(iter(tables.values()))]
    for path, table in zip(paths, contents, strict=True):
        write_table(path, table)
    return paths


def _missing_table(frames: Frames, gaps: Sequence[Array]) -> pandas.DataFrame:
    """series, time, channel, mean and quantiles of the entries that were missing."""
    with needing("files"):
        import pandas

    from vssn.output.tables import quantile_name

    parts = []
    for i, name in enumerate(frames.names):
        rows, columns = np.nonzero(gaps[i])
        content: dict[str, Any] = {
            "series": [name] * len(rows),
            "time": frames.times[i][rows],
            "channel": np.asarray(frames.channels, object)[columns],
            "mean": frames.mean[i][rows, columns],
        }
        for level, quantile in zip(frames.levels, frames.quantiles(i), strict=True):
            content[quantile_name(level)] = quantile[rows, columns]
        parts.append(pandas.DataFrame(content))
    return pandas.concat(parts, ignore_index=True)


def _write_tables(target: Target, stem: str, frames: Frames) -> list[Path]:
    paths = [path for suffix in _TABLES if (path := target.of_all(stem, suffix)) is not None]
    for path in paths:
        write_frames(path, frames)
    return paths


def _write_playable(
    target: Target, look: Look, names: Sequence[str], sequences: Sequence[Array], seen: Sequence[int] | None
) -> list[Path]:
    """MIDI, WAV and GIF, of whole sequences [T_i, X]."""
    written = []
    for path, roll in zip(target.of_each(names, ".mid"), sequences, strict=False):
        music.write_midi(path, roll, frames_per_beat=look.rate or 1.0, tempo=look.tempo or music.TEMPO)
        written.append(path)
    for path, sequence in zip(target.of_each(names, ".wav"), sequences, strict=False):
        if look.kind == "midi":
            rate, tempo = look.rate or 1.0, look.tempo or music.TEMPO
            music.write_music_sound(path, sequence, frames_per_beat=rate, tempo=tempo)
        else:
            sound.write_sound(path, sequence * look.gain + look.offset, look.rate or sound.RATE)
        written.append(path)
    for number, (path, film) in enumerate(zip(target.of_each(names, ".gif"), sequences, strict=False)):
        given = None if seen is None else seen[number]
        films.write_gif(path, film, look.frame_shape or (), frames_per_second=look.rate, seen=given)
        written.append(path)
    return written


def _draw_series(
    path: Path, frames: Frames, i: int, history: Array, truth: Array | None, past: Array, title: str
) -> None:
    steps = len(frames.mean[i])
    shown = slice(max(0, len(history) - max(4 * steps, 60)), None)
    fans = [
        Fan(
            channel,
            past[shown],
            history[shown, c],
            frames.times[i],
            frames.samples[i][:, :, c],
            None if truth is None else truth[:, c],
        )
        for c, channel in enumerate(frames.channels)
    ]
    label = "median forecast" if len(history) else "generated"
    draw_fans(path, fans, title=title, time_label=_time_label(frames.times[i]), model_label=label)


def _draw_gaps(path: Path, frames: Frames, i: int, observed: Array, gaps: Array, title: str) -> None:
    fans = [
        Fan(channel, frames.times[i], observed[:, c], frames.times[i][gaps[:, c]], frames.samples[i][:, gaps[:, c], c])
        for c, channel in enumerate(frames.channels)
    ]
    fans = sorted(fans, key=lambda fan: len(fan.ahead) == 0)  # those with gaps first
    label = _time_label(frames.times[i])
    draw_fans(path, fans, title=title, time_label=label, model_label="median of what is missing", scattered=True)


def _time_label(times: Array) -> str:
    return "frame" if times.dtype.kind in "iu" else "time"


def _named(*rolls: tuple[str, Array]) -> dict[str, Array]:
    return {name: np.nan_to_num(roll, nan=0.5) for name, roll in rolls if len(roll)}
