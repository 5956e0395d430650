"""Recordings as frames of raw samples: x [T, frame_size] in [-1, 1], one sequence a file, cut to a whole number of
frames. The files are those that `vssn.data.audio` reads: of one channel, and of one rate unless `sample_rate` is given.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from vssn.data.audio import STEPS, decode, inspect
from vssn.data.formats.base import Source
from vssn.data.speech_folders import SUFFIXES
from vssn.errors import DataError
from vssn.utils.packages import needing

__all__ = ["SUFFIXES", "read_recording"]

FRAME_SIZE = 200


def read_recording(path: Path, *, frame_size: int = FRAME_SIZE, sample_rate: int | None = None) -> Source:
    """Raises DataError.

    Args:
        frame_size: samples in a frame.
        sample_rate: Hz; a file of another one is resampled. None: as it was recorded.
    """
    for name, value in (("frame_size", frame_size), ("sample_rate", sample_rate)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise DataError(f"{name}: expected a whole number of at least 1, got {value!r}")
    count, rate = inspect(path, 0)
    samples = decode(path, 0, count) / np.float32(STEPS)
    if sample_rate is not None and rate != sample_rate:
        with needing("files", DataError):
            from scipy.signal import resample_poly
        common = math.gcd(rate, sample_rate)
        samples = resample_poly(samples, sample_rate // common, rate // common).astype(np.float32)
        rate = sample_rate
    frames = len(samples) // frame_size
    if not frames:
        raise DataError(f"{path}: expected at least one frame of {frame_size} samples, got {len(samples)}")
    x = torch.from_numpy(samples[: frames * frame_size].reshape(frames, frame_size).copy())
    return Source(
        x=[x],
        u=None,
        names=[path.stem],
        channels=[f"sample_{index + 1}" for index in range(frame_size)],
        controls=[],
        times=[np.arange(frames) * (frame_size / rate)],
        step=frame_size / rate,
        kind="audio",
        rate=float(rate),
        options={"frame_size": frame_size, "sample_rate": sample_rate},
    )
