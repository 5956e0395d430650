"""Films: x [T, height * width], or times 3 with colours, in [0, 1]; all of one size.

NAME/0001.png, ...    a folder of pictures a film, its frames in the order of their names (PNG, JPEG, BMP, TIFF)
NAME.gif              a film (also .webp and .apng)
NAME.npz              x [N, T, height, width] or [N, T, height, width, 3], 8 bits or in [0, 1]; [T, height, width]
                      of 8 bits is one film
"""

from __future__ import annotations

import importlib
import logging
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vssn.data.folder import entries
from vssn.data.formats.arrays import load
from vssn.data.formats.base import Source, damaged, numbered
from vssn.errors import DataError, shorten
from vssn.utils.packages import needing

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MOVING = (".gif", ".webp", ".apng")
SUFFIXES = (*MOVING, ".npz", ".npy")
_SILENT = logging.NullHandler()  # without one Python prints what is logged on stderr
_MOST_PIXELS = 2**16  # of a frame: a model of more is a mistake

Array = np.ndarray[Any, Any]


def read_film(path: Path, *, resize: Sequence[int] | None = None, grey: bool | None = None) -> Source:
    """Raises DataError.

    Args:
        resize: (height, width) to which every frame is brought.
        grey: without colours; None: as the files are.
    """
    if resize is not None and (len(resize) != 2 or any(not isinstance(side, int) or side < 1 for side in resize)):
        raise DataError(f"resize: expected [height, width], whole numbers of at least 1, got {list(resize)}")
    if path.suffix.lower() in (".npz", ".npy"):
        films, rate = _of_arrays(path), None
    else:
        most = _MOST_PIXELS if resize is None else None
        frames, rate = _of_folder(path, most) if path.is_dir() else _of_moving(path, most)
        films = [_stacked(path, frames)]
    films = [_prepared(path, film, resize, grey) for film in films]
    shape = films[0].shape[1:]
    pixels = _require_few(path, shape, _MOST_PIXELS)
    for film in films:
        if film.shape[1:] != shape:
            raise DataError(f"{path}: expected frames of {_size(shape)}, got {_size(film.shape[1:])}; give resize")
    return Source(
        x=[torch.from_numpy(film.reshape(len(film), -1)) for film in films],
        u=None,
        names=[path.stem] if len(films) == 1 else [f"{path.stem}[{index}]" for index in range(len(films))],
        channels=numbered("pixel", pixels),
        controls=[],
        times=None if rate is None else [np.arange(len(film)) / rate for film in films],
        step=None if rate is None else 1 / rate,
        kind="film",
        frame_shape=tuple(int(side) for side in shape),
        rate=rate,
        options={"resize": None if resize is None else list(resize), "grey": grey},
    )


def is_film_folder(folder: Path) -> bool:
    """Whether it holds the frames of a film."""
    return any(entry.suffix.lower() in PICTURES for entry in entries(folder))


def holds_films(path: Path) -> bool:
    """Whether a NumPy file's arrays are films: of four axes or more, or of 8 bits and three. Raises DataError."""
    return any(array.ndim >= 4 or (array.ndim == 3 and array.dtype == np.uint8) for array in load(path).values())


def _pillow() -> Any:
    with needing("files", DataError):
        return importlib.import_module("PIL.Image")


def _require_few(path: Path, shape: Sequence[int], most: int | None) -> int:
    """The numbers of a frame. Raises DataError where they are more."""
    pixels = math.prod(shape)
    if most is not None and pixels > most:
        raise DataError(
            f"{path}: expected frames of at most {most:,} numbers, got {pixels:,} ({_size(shape)}); give resize"
        )
    return pixels


def _of_folder(folder: Path, most: int | None) -> tuple[list[Array], None]:
    pictures = [entry for entry in entries(folder) if entry.suffix.lower() in PICTURES]
    if not pictures:
        raise DataError(f"{folder}: expected pictures ({', '.join(PICTURES)}), found none")
    return [_pictures(picture, most, 1)[0][0] for picture in sorted(pictures, key=_by_number)], None


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """frame9 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def _of_moving(path: Path, most: int | None) -> tuple[list[Array], float | None]:
    frames, durations = zip(*_pictures(path, most), strict=True)
    milliseconds = float(np.mean(durations))
    return list(frames), 1000 / milliseconds if milliseconds > 0 else None


def _pictures(path: Path, most: int | None, first: int | None = None) -> list[tuple[Array, float]]:
    """Every frame, in 8 bits, and the milliseconds that it stands.

    Args:
        most: pixels of a frame; None: any number, within what Pillow takes.
        first: so many frames; None: all.
    """
    image_module, found = _pillow(), []
    try:
        with warnings.catch_warnings():
            # What the reader thinks of a file is said below, in one line.
            warnings.simplefilter("ignore")
            logging.getLogger("PIL").addHandler(_SILENT)
            with image_module.open(path) as image:
                _require_few(path, image.size[::-1], most)
                count: int = getattr(image, "n_frames", 1) if first is None else first
                for index in range(count):
                    image.seek(index)
                    grey = image.mode in ("1", "L", "LA", "I", "I;16", "F")
                    if image.mode in ("I", "I;16", "F"):
                        raise DataError(f"{path}: expected pictures of 8 bits, got the mode {image.mode}; convert them")
                    picture = np.asarray(image.convert("L" if grey else "RGB"))
                    found.append((picture, float(image.info.get("duration", 0))))
    except DataError:
        raise
    except Exception as error:  # whatever the damaged bytes lead the reader to
        raise damaged(path, "a picture or a film", error) from None
    if not found:
        raise DataError(f"{path}: expected a frame at least, got none; leave the file out")
    return found


def _stacked(path: Path, frames: list[Array]) -> Array:
    """[T, height, width] or [T, height, width, 3]; grey throughout where every pixel of every frame is."""
    if any(frame.ndim == 3 for frame in frames):
        frames = [frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, -1) for frame in frames]
        if all((frame == frame[..., :1]).all() for frame in frames):
            frames = [frame[..., 0] for frame in frames]
    for index, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            raise DataError(
                f"{path}: expected frames of {_size(frames[0].shape)} as the first, got {_size(frame.shape)} in frame "
                f"{index}; give all one size"
            )
    return np.stack(frames)


def _of_arrays(path: Path) -> list[Array]:
    arrays = load(path)
    name = "x" if "x" in arrays else next(iter(arrays)) if len(arrays) == 1 else None
    if name is None:
        raise DataError(f"{path}: expected an array x, got {shorten(list(arrays), 'none')}; name the films x")
    x = arrays[name]
    if x.ndim == 3 or (x.ndim == 4 and x.shape[-1] == 3 and x.dtype == np.uint8):
        x = x[None]
    if x.ndim not in (4, 5) or (x.ndim == 5 and x.shape[-1] != 3) or 0 in x.shape:
        raise DataError(f"{path}: {name}: expected [N, T, height, width] or [N, T, height, width, 3], got {x.shape}")
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path}: {name}: expected numbers, got {x.dtype}")
    low, high = float(x.min()), float(x.max())
    top = 255.0 if x.dtype == np.uint8 else 1.0
    if not (low >= 0 and high <= top):
        raise DataError(f"{path}: {name}: expected 8 bits, or values in [0, 1], got {low:g} to {high:g}; divide by 255")
    return list(x if x.dtype == np.uint8 else x.astype(np.float32))


def _prepared(path: Path, film: Array, resize: Sequence[int] | None, grey: bool | None) -> Array:
    """float32 in [0, 1], of the size and the colours asked for."""
    values = film.astype(np.float32) / np.float32(255 if film.dtype == np.uint8 else 1)
    if grey and values.ndim == 4:
        values = (values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).clip(0, 1)
    if grey is False and values.ndim == 3:
        values = np.repeat(values[..., None], 3, -1)
    if resize is not None and tuple(values.shape[1:3]) != tuple(resize):
        values = _resized(values, (int(resize[0]), int(resize[1])))
    return np.ascontiguousarray(values, dtype=np.float32)


def _resized(film: Array, size: tuple[int, int]) -> Array:
    image_module = _pillow()
    planes = film[..., None] if film.ndim == 3 else film
    box = image_module.Resampling.BOX if size[0] <= film.shape[1] else image_module.Resampling.BILINEAR
    resized = np.stack(
        [
            np.stack(
                [
                    np.asarray(image_module.fromarray(np.ascontiguousarray(frame[..., plane])).resize(size[::-1], box))
                    for plane in range(planes.shape[-1])
                ],
                -1,
            )
            for frame in planes
        ]
    )
    return (resized[..., 0] if film.ndim == 3 else resized).clip(0, 1)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
