"""Data of one's own from a file or a folder: `data.set: files` with `data.path`. `vssn.data.formats` says what is read.

split    ratio  whole sequences, drawn by data.seed, as `ratios` says
         time   the last parts of each sequence validate and test; the model sees the frames before them, BEFORE at most
         given  by the folders train, valid and test, by the names of arrays, or by a column
         auto   given where the data says it; else ratio of ten sequences or more, time of fewer

A set that is given without its test part is tested on its validation part; without a validation part, a share of the
training sequences validates. Frames at the end of a sequence of which nothing is known, as rows with controls of the
future, belong to no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vssn.data import given
from vssn.data.batching import SequenceDataset
from vssn.data.formats import Source, options_of, read
from vssn.data.formats.base import PARTS, joined
from vssn.data.music import Transpose
from vssn.data.registry import register
from vssn.data.splits import Splits
from vssn.errors import DataError, shorten
from vssn.utils.numbers import Count, Share, Size
from vssn.utils.random import generator

BEFORE = 1000  # frames: a state further back has no part in what comes
MANY = 10  # sequences, from which on `auto` splits by whole ones


class FileDataset(SequenceDataset):
    """The sequences of a part, with what is known of them."""

    def __init__(self, source: Source, *, transpose: int = 0, seed: int = 0) -> None:
        self.source = source
        before = None if source.before is None else SequenceDataset(source.before.x, source.before.u)
        transform = Transpose(transpose) if transpose else None
        super().__init__(source.x, source.u, transform=transform, seed=seed, before=before)


def split_source(source: Source, how: str, ratios: Iterable[float], seed: int) -> tuple[Source, Source, Source]:
    """Training, validation and test: the validation part itself where the data has no test part.

    Raises:
        DataError: there are too few sequences, or too short ones; the data does not say what is given; nothing is known
            of the validation part.
    """
    train, valid, test = _split(without_future(source), how, ratios, seed)
    _require_known(valid)
    return train, valid, test


def _require_known(valid: Source) -> None:
    """Raises DataError: the KL alone would be the score."""
    if all(bool(x.isnan().all()) for x in valid.x):
        raise DataError(
            f"expected a value at least in the part that validates, got none in {shorten(valid.names, 'none')}; choose "
            "another split, or leave out what is never observed"
        )


def without_future(source: Source) -> Source:
    """Without the frames at the end of which nothing is known; a sequence that is empty in whole stays."""
    ends = [length_of_known(x) or len(x) for x in source.x]
    if ends == source.lengths:
        return source
    return _frames(source, [slice(end) for end in ends])


def length_of_known(x: Tensor) -> int:
    """Frames of x [T, X] up to the last one of which something is known."""
    known = (~x.isnan()).any(-1).nonzero().flatten()
    return int(known[-1]) + 1 if len(known) else 0


def _split(source: Source, how: str, ratios: Iterable[float], seed: int) -> tuple[Source, Source, Source]:
    if how == "auto":
        how = "given" if source.parts is not None else "ratio" if len(source.x) >= MANY else "time"
    shares = list(ratios)
    if how == "given":
        return _as_given(source, shares, seed)
    if how == "time":
        return _by_time(source, shares)
    return _by_ratio(source, shares, seed)


def _as_given(source: Source, shares: list[float], seed: int) -> tuple[Source, Source, Source]:
    if source.parts is None:
        raise DataError(
            f"data.split: 'given', but {source.names[0]} is of no part: expected folders train, valid and test, arrays "
            "x_train, x_valid and x_test, or a column split; choose 'ratio' or 'time'"
        )
    found = {part: [index for index, of in enumerate(source.parts) if of == part] for part in PARTS}
    if not found["train"] or not (found["valid"] or found["test"]):
        missing = "train" if not found["train"] else "valid"
        raise DataError(f"data.split: expected parts train and valid as the data says its parts, got no {missing}")
    if not found["valid"]:
        found["train"], found["valid"] = _cut(found["train"], shares[1] / (shares[0] + shares[1]), seed)
    train, valid = source.select(found["train"]), source.select(found["valid"])
    return train, valid, source.select(found["test"]) if found["test"] else valid


def hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """Training, and that share for validation: of whole sequences, of fewer than MANY the last part of each. Raises
    DataError."""
    source = without_future(source)
    if len(source.x) >= MANY:
        rest, held = _cut(list(range(len(source.x))), share, seed)
        _require_known(source.select(held))
        return source.select(rest), source.select(held)
    spans: tuple[list[slice], ...] = ([], [])
    for name, length in zip(source.names, source.lengths, strict=True):
        if length < 2:
            raise DataError(f"{name} must have two frames at least, to train on and to validate on, got {length}")
        first = length - min(max(1, round(share * length)), length - 1)
        spans[0].append(slice(first))
        spans[1].append(slice(first, None))
    return _frames(source, spans[0]), _behind(source, spans[1])


def _cut(indices: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """The rest, and a share of the sequences."""
    if len(indices) < 2:
        raise DataError(f"data.split: expected two training sequences at least, got {len(indices)}; give a part valid")
    order = torch.randperm(len(indices), generator=generator(seed)).tolist()
    count = min(max(1, round(share * len(indices))), len(indices) - 1)
    chosen = set(order[:count])
    rest = [index for place, index in enumerate(indices) if place not in chosen]
    return rest, [index for place, index in enumerate(indices) if place in chosen]


def _by_ratio(source: Source, shares: list[float], seed: int) -> tuple[Source, Source, Source]:
    number = len(source.x)
    if number < 3:
        raise DataError(
            f"data.split: expected three sequences at least for 'ratio', got {number}; choose 'time': the last part of "
            "each validates and tests"
        )
    rest, test = _cut(list(range(number)), shares[2] / sum(shares), seed)
    train, valid = _cut(rest, shares[1] / (shares[0] + shares[1]), seed)
    return source.select(train), source.select(valid), source.select(test)


def _by_time(source: Source, shares: list[float]) -> tuple[Source, Source, Source]:
    spans: tuple[list[slice], ...] = ([], [], [])
    for name, length in zip(source.names, source.lengths, strict=True):
        if length < 3:
            raise DataError(
                f"data.split: expected three frames at least in each sequence for 'time', got {length} in {name}; "
                "leave it out, or choose 'ratio'"
            )
        test = max(1, round(length * shares[2] / sum(shares)))
        valid = max(1, round(length * shares[1] / sum(shares)))
        first = max(1, length - test - valid)
        for part, span in zip(
            spans, (slice(first), slice(first, length - test), slice(length - test, None)), strict=True
        ):
            part.append(span)
    return _frames(source, spans[0]), _behind(source, spans[1]), _behind(source, spans[2])


def _behind(source: Source, spans: list[slice]) -> Source:
    """These frames, which begin behind others, with those."""
    before = [slice(max(0, span.start - BEFORE), span.start) for span in spans]
    return replace(_frames(source, spans), before=_frames(source, before))


def _frames(source: Source, spans: list[slice]) -> Source:
    def of(sequences: list[Any] | None) -> Any:
        return None if sequences is None else [one[span] for one, span in zip(sequences, spans, strict=True)]

    return replace(source, x=of(source.x), u=of(source.u), times=of(source.times), origins=None)


def windows(source: Source, size: int) -> Source:
    """Every sequence cut into pieces of so many frames, the last of what is left."""
    pieces = []
    for index, length in enumerate(source.lengths):
        one = source.select([index])
        pieces += [_frames(one, [slice(start, start + size)]) for start in range(0, length, size)]
    return joined(pieces)


def settings_of(source: Source) -> dict[str, Any]:
    """By which other data is read as this was: the keys of the set."""
    return {"format": source.kind, **{name: value for name, value in source.options.items() if value is not None}}


def _source(dataset: SequenceDataset) -> Source:
    assert isinstance(dataset, FileDataset)
    return dataset.source


def _measured(splits: Splits) -> dict[str, Any]:
    return given.measured(splits) | settings_of(_source(splits.train))


def _describe(dataset: SequenceDataset) -> str:
    source = _source(dataset)
    step = "" if source.step is None or source.kind != "table" else f" a step of {source.step} apart"
    missing = sum(int(x.isnan().sum()) for x in source.x) / sum(x.numel() for x in source.x)
    gaps = f", {missing:.1%} of them missing" if missing else ""
    return f" of {source.x_size} features{step}{gaps}" if source.x_size > 1 else f" of one feature{step}{gaps}"


def _check(settings: Mapping[str, Any]) -> None:
    ratios = settings["ratios"]
    if len(ratios) != 3 or min(ratios) <= 0:
        raise ValueError(f"ratios must be three numbers above 0, of train, valid and test, got {list(ratios)}")
    if settings["format"] is not None:
        known = options_of(settings["format"])
        for name in _READING:
            if settings[name] is not None and name not in known:
                has = ", ".join(known) or "no options"
                raise ValueError(f"{name} has no meaning for the format {settings['format']!r}, which has {has}")


_READING = (
    *("time_column", "id_column", "channel_column", "channels", "value_columns", "control_columns", "split_column"),
    *("freq", "step", "key", "per_beat", "frame_size", "sample_rate", "resize", "grey"),
)


@register("files", values=None, free=("path",), check=_check, measured=_measured, describe=_describe)
def load_splits(
    *,
    seed: int,
    path: str,
    format: Literal["table", "arrays", "trials", "midi", "audio", "film"] | None = None,
    split: Literal["auto", "ratio", "time", "given"] = "auto",
    ratios: list[Share] = [0.8, 0.1, 0.1],  # noqa: B006  # a default of the configuration, which copies it
    window: Count | None = None,
    standardise: bool = False,
    transpose: Size = 0,
    time_column: str | None = None,
    id_column: str | None = None,
    channel_column: str | None = None,
    channels: list[str] | None = None,
    value_columns: list[str] | None = None,
    control_columns: list[str] | None = None,
    split_column: str | None = None,
    freq: str | float | None = None,
    step: str | float | None = None,
    key: str | None = None,
    per_beat: Count | None = None,
    frame_size: Count | None = None,
    sample_rate: Count | None = None,
    resize: list[Count] | None = None,
    grey: bool | None = None,
    x_size: Count | None = None,
    control_size: Size | None = None,
    num_train: Count | None = None,
    num_valid: Count | None = None,
    num_test: Count | None = None,
    num_frames: Count | None = None,
    fingerprint: str | None = None,
) -> Splits:
    """The set as `fit` takes it. Raises DataError.

    Args:
        path: of the file or folder.
        format: None: by what is there.
        split: how the three parts are made: whole sequences are drawn ("ratio"), the last parts of each validate and
            test ("time"), or the data says it ("given"); "auto": given where the data says it, else ratio of ten
            sequences or more, time of fewer.
        ratios: shares of training, validation and test.
        window: training sequences are cut into pieces of so many frames, each from a start anew.
        standardise: the model keeps mean and standard deviation of the training data, and works on standardised frames.
        transpose: augmentation of MIDI: each training sequence moves by up to so many semitones.
        x_size, control_size, num_train, num_valid, num_test, num_frames, fingerprint: measured, and kept with the run.
        the others: of the form, as `vssn.data.formats` has them.
    """
    here = locals()
    source = read(path, format=format, **{name: here[name] for name in _READING})
    for letter, wanted, came in (("x", x_size, source.x_size), ("u", control_size, source.control_size)):
        if wanted is not None and wanted != came:
            raise DataError(f"{path}: expected {letter} of {wanted} features as the run has, got {came}")
    if transpose and source.kind != "midi":
        raise DataError(f"data.transpose: expected 0 as {path} is no MIDI, got {transpose}; leave it out")
    train, valid, test = split_source(source, split, ratios, seed)
    if window is not None:
        train = windows(train, window)
    held = FileDataset(valid)
    tested = held if test is valid else FileDataset(test)
    return Splits(FileDataset(train, transpose=transpose, seed=seed), held, tested)
