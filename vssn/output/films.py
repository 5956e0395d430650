"""Films: as GIF, and as a strip of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vssn.errors import DataError
from vssn.utils.command import replacing
from vssn.utils.packages import needing

Array = np.ndarray[Any, Any]
FRAMES_PER_SECOND = 10.0  # where a film does not say
_SMALLEST = 128  # pixels, along the shorter side of what is shown: smaller frames are enlarged by a whole factor
_BLUE, _ORANGE = (0, 114, 178), (213, 94, 0)  # as the charts': seen, and predicted


def frames_of(film: Array, frame_shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[T, X] or [T, *frame_shape] in [0, 1] as [T, H, W, 3] of 8 bits; what lies outside is cut, NaN is grey.

    Raises:
        DataError: the frames have another size.
    """
    film, shape = np.asarray(film, np.float64), tuple(frame_shape)
    colours = len(shape) == 3 and shape[2] == 3
    if not (len(shape) == 2 or colours) or not film.ndim or film[:1].size != math.prod(shape) * min(len(film), 1):
        raise DataError(f"film must have frames of {_text(shape)} pixels, got shape {list(film.shape)}")
    film = np.nan_to_num(film.reshape(-1, *shape), nan=0.5)
    grey = np.rint(film.clip(0, 1) * 255).astype(np.uint8)
    return grey if colours else np.repeat(grey[..., None], 3, -1)


def write_gif(
    path: str | Path,
    film: Array,
    frame_shape: Sequence[int],
    *,
    frames_per_second: float | None = None,
    seen: int | None = None,
) -> None:
    """A film that repeats for ever.

    Args:
        path: of the file; its folder is there.
        film: as `frames_of` takes it, one frame at least.
        frame_shape: (height, width) or (height, width, 3).
        frames_per_second: None: 10.
        seen: frames that the model was given: they have a blue border, the others an orange one. None: no borders.

    Raises:
        DataError: the film has no frame, or frames of another size.
        PackageError: pillow is not installed.
    """
    with needing("files"):
        from PIL import Image

    frames = _enlarged(frames_of(film, frame_shape))
    if not len(frames):
        raise DataError(f"{path}: expected a film of one frame at least, got none")
    images = [Image.fromarray(_bordered(frame, t, seen)) for t, frame in enumerate(frames)]
    duration = round(1000 / (frames_per_second or FRAMES_PER_SECOND))
    with replacing(Path(path)) as part:
        images[0].save(part, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)


def write_strip(
    path: str | Path, films: Sequence[Array], frame_shape: Sequence[int], *, seen: int | None = None, most: int = 16
) -> None:
    """A PNG with a film a row, its frames side by side from the first to the last; arguments as in `write_gif`.

    Args:
        most: frames of a row; of a longer film as many are shown, evenly spaced.
    """
    with needing("files"):
        from PIL import Image

    steps = max(len(film) for film in films)
    shown = sorted({round(place) for place in np.linspace(0, steps - 1, min(steps, most)).tolist()})
    if not shown:
        raise DataError(f"{path}: expected a film of one frame at least, got none")
    rows = []
    for film in films:
        frames = frames_of(film, frame_shape)
        blank = np.full(frames.shape[1:], 255, np.uint8)
        cells = _enlarged(np.stack([frames[t] if t < len(frames) else blank for t in shown]), 64)
        framed = [_bordered(cell, t, seen) for cell, t in zip(cells, shown, strict=True)]
        rows.append(np.concatenate([np.pad(cell, ((2, 2), (2, 2), (0, 0)), constant_values=255) for cell in framed], 1))
    with replacing(Path(path)) as part:
        Image.fromarray(np.concatenate(rows)).save(part, "PNG")


def _enlarged(frames: Array, smallest: int = _SMALLEST) -> Array:
    """[T, H, W, 3] by a whole factor, so that pixels stay pixels."""
    factor = max(1, math.ceil(smallest / max(min(frames.shape[1:3]), 1)))
    return frames.repeat(factor, 1).repeat(factor, 2)


def _bordered(frame: Array, t: int, seen: int | None) -> Array:
    """[H, W, 3] within a border of the colour of its part."""
    if seen is None:
        return frame
    width = max(2, min(frame.shape[:2]) // 32)
    framed = np.empty((frame.shape[0] + 2 * width, frame.shape[1] + 2 * width, 3), np.uint8)
    framed[:] = _BLUE if t < seen else _ORANGE
    framed[width:-width, width:-width] = frame
    return framed


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
