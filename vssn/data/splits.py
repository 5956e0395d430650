"""The three parts of a data set, and how data in Python is made into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from vssn.data.batching import Item, SequenceDataset, as_sequence
from vssn.errors import DataError
from vssn.utils.values import REAL, Support, require_finite, require_values

_TOO_LARGE = "leave out what is too large for float32"
_NO_MASK = (
    "training takes no mask: make the model with masked=True (model.masked: true), which takes NaN as missing, or fill "
    f"it in; {_TOO_LARGE}"
)
_INFINITE = "NaN stands for what is missing; leave out what is infinite or too large for float32"
MASK_IN_YAML = (
    f"set model.masked: true (--set model.masked=true), which takes it as missing, or fill it in; {_TOO_LARGE}"
)
_NO_NAN_IN_U = "training takes no mask of controls: fill in what is missing or too large for float32"


class Splits(NamedTuple):
    train: SequenceDataset
    valid: SequenceDataset
    test: SequenceDataset


class DrawnDataset(SequenceDataset):
    """A Dataset of PyTorch's, of items x [T, X], (x,) or (x, u). Each is drawn once beforehand, for its length, and
    checked whenever it is drawn; with `missing` NaN in x stands for what is missing."""

    support, likelihood = REAL, ""  # what x may hold, and whose support that is

    def __init__(self, name: str, dataset: Any, missing: bool = False) -> None:
        self.name, self.dataset, self.missing = name, dataset, missing
        super().__init__(dataset, lengths=_checked_lengths(name, (self[index] for index in range(len(dataset)))))

    def __getitem__(self, index: int) -> Item:
        item, name = self.dataset[index], f"{self.name}[{index}]"
        x, u = item, None
        if isinstance(item, tuple | list):
            if not 1 <= len(item) <= 2:
                raise DataError(f"{name}: expected x or (x, u), got a {type(item).__name__} of {len(item)}")
            x, u = (*item, None)[:2]
        x, u = _sequence(name, x), None if u is None else _sequence(f"u of {name}", u, "U")
        check_values(name, x, u, self.support, self.likelihood, self.missing)
        return x, u

    def set_epoch(self, epoch: int) -> None:
        """Of what it draws from, too: a Subset of a SequenceDataset keeps its augmentation."""
        super().set_epoch(epoch)
        inner = self.dataset
        while inner is not None and not hasattr(inner, "set_epoch"):
            inner = getattr(inner, "dataset", None)
        if inner is not None:
            inner.set_epoch(epoch)


def as_splits(splits: object, missing: bool = False) -> Splits:
    """Three parts in any of the forms that `vssn.training.fit.fit` describes, checked.

    Args:
        missing: NaN in x stands for what is missing.

    Raises:
        TypeError: `splits` is not three parts.
        DataError: a part is wrong; the line says splits.train, splits.valid or splits.test.
    """
    names = Splits._fields
    if isinstance(splits, Mapping):
        if set(splits) != set(names):
            raise TypeError(
                f"splits must have the keys {', '.join(names)}, got {', '.join(map(repr, splits)) or 'none'}"
            )
        splits = [splits[name] for name in names]
    if not isinstance(splits, tuple | list) or len(splits) != len(names):
        came = f"{len(splits)} parts" if isinstance(splits, tuple | list) else type(splits).__name__
        raise TypeError(f"splits must be three parts, ({', '.join(names)}) or a dict of them, got {came}")
    parts = [_part(f"splits.{name}", part, missing) for name, part in zip(names, splits, strict=True)]
    wanted = widths(parts[0])
    for name, part in zip(names[1:], parts[1:], strict=True):
        for letter, want, width in zip("xu", wanted, widths(part), strict=True):
            if width != want:
                raise DataError(f"splits.{name}: expected {letter} of {want} features as in splits.train, got {width}")
    return Splits(*parts)


def check_values(
    name: str,
    x: Tensor | None,
    u: Tensor | None,
    support: Support,
    likelihood: str,
    missing: bool = False,
    advice: str = _NO_MASK,
) -> None:
    """Raises DataError unless x lies in the support, as the float32 that it becomes, and u is finite.

    Args:
        missing: NaN in x stands for what is missing.
        advice: what to do where it is not finite, and nothing may be missing.
    """
    if x is not None:
        numbers = x.float()
        if missing and x.is_floating_point():
            numbers = torch.where(x.isnan(), 0.0, numbers)  # 0 has a density in every support
        require_values(name, numbers, support, _INFINITE if missing else advice, likelihood)
    require_finite(f"u of {name}", None if u is None else u.float(), _NO_NAN_IN_U)


def widths(dataset: SequenceDataset) -> tuple[int, int]:
    """X and U, 0 without controls, of its first sequence."""
    x, u = dataset[0]
    return x.shape[1], 0 if u is None else u.shape[1]


def in_memory(dataset: SequenceDataset) -> Iterator[Item]:
    """Its sequences as they are before a transform; none where they are made when they are drawn."""
    if isinstance(dataset.sequences, list | Tensor) and isinstance(dataset.controls, list | Tensor | None):
        for index, x in enumerate(dataset.sequences):
            yield x, None if dataset.controls is None else dataset.controls[index]


def _part(name: str, part: Any, missing: bool) -> SequenceDataset:
    if isinstance(part, Dataset) and not isinstance(part, SequenceDataset):
        if isinstance(part, IterableDataset) or not hasattr(part, "__len__"):
            raise DataError(f"{name}: expected a Dataset with a length and an index, got {type(part).__name__}")
        if len(part) == 0:
            raise DataError(f"{name} must hold at least one sequence, got none")
        return DrawnDataset(name, part, missing)
    if isinstance(part, SequenceDataset):
        dataset = part
    else:
        x, u = _arrays(name, part)
        try:
            dataset = SequenceDataset(x, u)
        except (TypeError, ValueError) as error:
            raise _named(name, error) from None
    _checked_lengths(name, in_memory(dataset))
    return dataset


def _arrays(name: str, part: Any) -> tuple[Any, Any]:
    """The sequences and their controls, or None: a tuple is a pair, a list holds sequences or pairs."""
    if isinstance(part, list) and part and all(isinstance(item, tuple) and len(item) == 2 for item in part):
        return [x for x, _ in part], [u for _, u in part]
    if isinstance(part, tuple):
        if len(part) != 2 or any(isinstance(array, Dataset) for array in part):
            raise DataError(
                f"{name}: expected a pair (x, u) of arrays or lists, got a tuple of "
                f"{', '.join(type(array).__name__ for array in part) or 'none'}; put sequences in a list"
            )
        return part
    return part, None


def _checked_lengths(name: str, items: Iterable[Item]) -> list[int]:
    """The frames of each; all have the widths of the first, and u as many frames as x."""
    lengths: list[int] = []
    expected: list[int] = []
    for index, (x, u) in enumerate(items):
        found = [x.shape[1], 0 if u is None else u.shape[1]]
        expected = expected or found
        for letter, width, came in zip("xu", expected, found, strict=True):
            if came != width:
                raise DataError(f"{name}[{index}]: expected {letter} of {width} features as in {name}[0], got {came}")
        if len(x) == 0:
            raise DataError(f"{name}[{index}]: expected a sequence of at least one frame, got none")
        if found[0] == 0:
            raise DataError(f"{name}[{index}]: expected x of at least one feature, got shape {list(x.shape)}")
        if u is not None and found[1] == 0:
            raise DataError(
                f"{name}[{index}]: expected u of at least one feature, got shape {list(u.shape)}; leave u out"
            )
        if u is not None and len(u) != len(x):
            raise DataError(f"{name}[{index}]: expected u of {len(x)} frames as x has, got {len(u)}")
        lengths.append(len(x))
    return lengths


def _sequence(name: str, array: Any, features: str = "X") -> Tensor:
    try:
        return as_sequence(name, array, features)
    except (TypeError, ValueError) as error:
        raise DataError(str(error)) from None


def _named(name: str, error: Exception) -> DataError:
    """What SequenceDataset says, under the caller's name."""
    text = str(error)
    for own, of in (("sequences", name), ("controls", f"u of {name}")):
        if text.startswith(own):
            return DataError(f"{of}{text.removeprefix(own)}")
    return DataError(f"{name}: {text}")
