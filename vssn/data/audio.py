"""The samples of a recording: wav, flac or NIST SPHERE, of one channel; a damaged file is named in one line."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vssn.errors import DataError
from vssn.utils.packages import needing

STEPS = 32768  # of 16 bits, from zero to full scale
BLOCK = 1 << 22  # samples read at once
MOST_SAMPLES = 10_000  # a byte of a file: a FLAC frame of silence, the best packed, has 65,535 in some ten bytes


def _soundfile() -> Any:
    with needing("speech", DataError):
        return importlib.import_module("soundfile")


class _Mended(io.FileIO):
    """A file that is read with some of its bytes replaced."""

    def __init__(self, path: Path, start: int, content: bytes) -> None:
        super().__init__(path)
        self.replaced = {start + index: byte for index, byte in enumerate(content)}

    def readinto(self, buffer: Any) -> int:
        start, view = self.tell(), memoryview(buffer).cast("B")
        count = super().readinto(view) or 0
        for position, byte in self.replaced.items():
            if start <= position < start + count:
                view[position - start] = byte
        return count


class _WavSizes(NamedTuple):
    """What the header of a WAV file says of lengths, and what is there; in bytes."""

    order: str  # of the bytes of a number, for struct
    riff: int  # behind its own place
    data: int
    start: int  # of the samples
    whole: int  # the file

    @property
    def is_open(self) -> bool:
        """Whether it was written into a pipe: the lengths, not known then, were never filled in. Writers leave 0, or
        one of the largest numbers that the field, with or without a sign, holds."""
        if self.data == 0:  # also that of a recording without samples, whose other length is right
            return self.whole > self.start and self.riff != self.whole - 8
        return any(size == 0 or size >= 2**31 - 2**16 for size in (self.riff, self.data))


def _wav_sizes(path: Path) -> _WavSizes | None:
    """None of a file that is no WAV, or has no samples."""
    with open(path, "rb") as file:
        magic, riff = file.read(4), file.read(4)
        if magic not in (b"RIFF", b"RIFX") or file.read(4) != b"WAVE":
            return None
        order = "<I" if magic == b"RIFF" else ">I"
        while len(head := file.read(8)) == 8:
            (size,) = struct.unpack(order, head[4:])
            if head[:4] == b"data":
                start = file.tell()
                return _WavSizes(order, struct.unpack(order, riff)[0], size, start, file.seek(0, os.SEEK_END))
            file.seek(size + size % 2, os.SEEK_CUR)
    return None


@contextlib.contextmanager
def _opened(path: Path, sizes: _WavSizes | None) -> Iterator[Any]:
    """What the decoder takes for the file: its name in bytes, which need not be text; of an open length 0, which the
    decoder takes at its word, the file with its true length."""
    if sizes is None or sizes.data or not sizes.is_open:
        yield os.fsencode(path)
        return
    length = struct.pack(sizes.order, min(sizes.whole - sizes.start, 2**31 - 2))
    with _Mended(path, sizes.start - 4, length) as file:
        yield file


def inspect(path: Path, rate: int) -> tuple[int, int]:
    """Samples and rate of a file that is whole, of one channel, and of the given rate (0: of any)."""
    soundfile = _soundfile()
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
        if head.startswith(b"NIST_1A") and (coding := re.search(rb"^sample_coding -s\d+ (\S*embedded\S*)", head, re.M)):
            raise DataError(
                f"{path}: expected plain samples, got a SPHERE file coded as {coding[1].decode('latin1')}; "
                "decode it by sph2pipe: sph2pipe -f wav FILE FILE.wav"
            )
        sizes = _wav_sizes(path)
        with _opened(path, sizes) as source:
            info = soundfile.info(source)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _damaged(path, error) from None
    if info.channels != 1:
        raise DataError(f"{path}: expected one channel, got {info.channels}; convert the file to mono")
    if rate and info.samplerate != rate:
        raise DataError(
            f"{path}: expected {rate} Hz as in the files before, got {info.samplerate} Hz; "
            "bring all files to one rate, nothing is resampled here"
        )
    # The decoder reads what is left of a truncated file without a word; the headers say how much there was.
    riff = sizes is not None and not sizes.is_open and sizes.data > sizes.whole - sizes.start
    nist = re.search(rb"^sample_count -i (\d+)", head, re.MULTILINE) if head.startswith(b"NIST_1A") else None
    if riff or (nist and int(nist[1]) > info.frames):
        raise DataError(f"{path}: truncated, {info.frames} samples are left; replace it by an intact copy")
    if info.frames > MOST_SAMPLES * path.stat().st_size:
        raise DataError(
            f"{path}: expected {MOST_SAMPLES} samples a byte at most, got a header that promises {info.frames}; "
            "replace it by an intact copy"
        )
    return int(info.frames), int(info.samplerate)


def decode(path: Path, start: int, count: int) -> NDArray[np.float32]:
    """Its samples from `start` on, in steps of 16 bits. Raises DataError."""
    soundfile = _soundfile()
    try:
        with _opened(path, _wav_sizes(path)) as source, soundfile.SoundFile(source) as file:
            file.seek(start)
            parts, left = [np.zeros(0, np.float32)], count
            while left and len(part := file.read(min(left, BLOCK), dtype="float32")):  # headers may promise anything
                parts.append(part)
                left -= len(part)
            samples = np.concatenate(parts)
            with np.errstate(over="ignore", invalid="ignore"):  # of samples that no recording has: looked at below
                samples *= np.float32(STEPS)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _damaged(path, error) from None
    if len(samples) != count or not np.isfinite(samples).all():
        raise DataError(
            f"{path}: expected {count} finite samples from {start} on, got {np.isfinite(samples).sum()}; "
            "replace it by an intact copy"
        )
    return samples


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error).split())
    return DataError(
        f"{path}: expected a wav, flac or NIST SPHERE file, but {reason[:120]} Replace it by an intact copy"
    )
