"""Forecasts, imputations, latents and scores as tables: CSV, Parquet or NPZ, by the suffix of the path.

    forecast    columns series, time, channel, mean and a quantile each (q10, q50, q90); a row for every series, frame
                and channel. NPZ: mean [N, T, X], quantiles [Q, N, T, X], levels [Q], samples [S, N, T, X], lengths [N],
                series [N], channels [X] and, where known, time [N, T]
    latents     columns series, time, d1.., z1.., w1..; a row a frame. NPZ: d [N, T, D], z, w, lengths, series, time
    scores      columns series, time, score, flagged; a row a frame, without a score where nothing of it is observed.
                NPZ: score [N, T], threshold, lengths, series, time

What is longer in one series than in another is NaN behind the shorter one's end in an NPZ (NaT in times).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vssn.utils.command import replacing
from vssn.utils.packages import needing

if TYPE_CHECKING:
    import pandas

SUFFIXES = (".csv", ".parquet", ".npz")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Frames:
    """What a model says of N series: of frames to come, or of frames with gaps."""

    names: Sequence[str]  # of the series
    channels: Sequence[str]  # X
    times: Sequence[Array]  # [T_i] each: datetime64 or numbers
    mean: Sequence[Array]  # [T_i, X] each
    samples: Sequence[Array]  # [S, T_i, X] each
    levels: Sequence[float]  # of the quantiles, Q

    def quantiles(self, series: int) -> Array:
        """[Q, T, X] of a series, from its samples."""
        samples = self.samples[series]
        return np.quantile(samples, self.levels, axis=0).astype(samples.dtype) if len(self.levels) else samples[:0]


def quantile_name(level: float) -> str:
    """q10 of 0.1, q2.5 of 0.025."""
    return f"q{100 * level:.10g}"


def write_frames(path: str | Path, frames: Frames) -> None:
    """A forecast, or an imputation in full.

    Args:
        path: of the file, with one of SUFFIXES; its folder is there.

    Raises:
        PackageError: pandas, or for Parquet pyarrow, is not installed.
    """
    if Path(path).suffix == ".npz":
        write_arrays(path, arrays_of(frames))
        return
    with needing("files"):
        import pandas

    parts = []
    for index, (name, times, mean) in enumerate(zip(frames.names, frames.times, frames.mean, strict=True)):
        steps, width = mean.shape
        columns: dict[str, Any] = {
            "series": [name] * (steps * width),
            "time": np.repeat(times, width),
            "channel": np.tile(np.asarray(frames.channels, object), steps),
            "mean": mean.reshape(-1),
        }
        for level, quantile in zip(frames.levels, frames.quantiles(index), strict=True):
            columns[quantile_name(level)] = quantile.reshape(-1)
        parts.append(pandas.DataFrame(columns))
    write_table(path, pandas.concat(parts, ignore_index=True))


def arrays_of(frames: Frames) -> dict[str, Array]:
    """What an NPZ of them holds."""
    return {
        "mean": padded(frames.mean),
        "quantiles": np.stack(
            [padded([frames.quantiles(i)[q] for i in range(len(frames.names))]) for q in range(len(frames.levels))]
        )
        if frames.levels
        else np.zeros((0, *padded(frames.mean).shape)),
        "levels": np.asarray(frames.levels, np.float64),
        "samples": padded([sample.swapaxes(0, 1) for sample in frames.samples]).transpose(2, 0, 1, 3),
        "channels": np.asarray(frames.channels, str),
        **of_series(frames.names, frames.times),
    }


def write_latents(
    path: str | Path, names: Sequence[str], times: Sequence[Array], latents: Mapping[str, Sequence[Array]]
) -> None:
    """The states of every frame; arguments and errors as in `write_frames`.

    Args:
        latents: d, z and w by their names: [T_i, units] of each series.
    """
    if Path(path).suffix == ".npz":
        write_arrays(path, {name: padded(of) for name, of in latents.items()} | of_series(names, times))
        return
    with needing("files"):
        import pandas

    parts = []
    for index, (name, time) in enumerate(zip(names, times, strict=True)):
        columns: dict[str, Any] = {"series": [name] * len(time), "time": time}
        for letter, of in latents.items():
            columns |= {f"{letter}{unit + 1}": of[index][:, unit] for unit in range(of[index].shape[1])}
        parts.append(pandas.DataFrame(columns))
    write_table(path, pandas.concat(parts, ignore_index=True))


def write_scores(
    path: str | Path, names: Sequence[str], times: Sequence[Array], scores: Sequence[Array], threshold: float
) -> None:
    """How well every frame fits the model; arguments and errors as in `write_frames`.

    Args:
        scores: [T_i] of each series, NaN where there is none.
        threshold: below it a frame is flagged.
    """
    if Path(path).suffix == ".npz":
        arrays = {"score": padded(scores), "threshold": np.asarray(threshold, np.float64)}
        write_arrays(path, arrays | of_series(names, times))
        return
    with needing("files"):
        import pandas

    parts = [
        pandas.DataFrame({"series": name, "time": time, "score": score, "flagged": score < threshold})
        for name, time, score in zip(names, times, scores, strict=True)
    ]
    write_table(path, pandas.concat(parts, ignore_index=True))


def write_table(path: str | Path, table: pandas.DataFrame) -> None:
    """CSV or Parquet, without the index."""
    with needing("files"), replacing(Path(path)) as part:
        if Path(path).suffix == ".parquet":
            table.to_parquet(part, index=False)
        else:
            table.to_csv(part, index=False)


def write_arrays(path: str | Path, arrays: Mapping[str, Array]) -> None:
    """An NPZ, compressed."""
    with replacing(Path(path)) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes a name for a flag


def of_series(names: Sequence[str], times: Sequence[Array]) -> dict[str, Array]:
    """lengths, series and time."""
    lengths = np.array([len(time) for time in times], np.int64)
    return {"lengths": lengths, "series": np.asarray(names, str), "time": padded(times)}


def padded(parts: Sequence[Array]) -> Array:
    """[N, T, ...] of N arrays [T_i, ...], NaN or NaT behind an end."""
    kind = np.result_type(*parts)
    if kind.kind not in "Mm":
        kind = np.result_type(kind, np.float32)
    whole = np.full(
        (len(parts), max(len(part) for part in parts), *parts[0].shape[1:]),
        "NaT" if kind.kind in "Mm" else np.nan,
        kind,
    )
    for row, part in zip(whole, parts, strict=True):
        row[: len(part)] = part
    return whole
