"""Data sets by their names. A set is one file of this folder, in which a loader enters itself (`register`):

    @register("mine", x_size=5, values=REAL)
    def load_mine(*, seed: int, num_frames: Count = 9) -> Splits:
        ...

The loader's keyword arguments are the keys of the set in a configuration, with their types and defaults; the bounds of
numbers are types too (`vssn.utils.numbers`). Those named in PROVIDED are no keys: a loader that has them gets them.
A loader outside this folder works too, once its module is imported.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar, get_type_hints

from vssn.data.batching import SequenceDataset
from vssn.data.splits import Splits
from vssn.utils.values import Support

# set: its name; seed: data.seed; controls: whether the model takes controls.
PROVIDED = ("set", "seed", "controls")
SHARED = ("batch_size", "workers")  # keys of every set, with set and seed
_PACKAGE = __name__.rpartition(".")[0]
_ORDER = ("music", "pendulum", "balls", "speech")  # files in the order in which messages list their sets; others follow

Loader = Callable[..., Splits]
_Loader = TypeVar("_Loader", bound=Loader)


@dataclass(frozen=True)
class DataSet:
    """What is known of a set besides its loader's keys."""

    load: Loader
    x_size: int | None  # X; None: the loader has the key x_size, and control_size with it
    control_size: int  # U, 0 without controls
    values: Support | None  # of the frames; None: not known before they are there
    free: frozenset[str]  # keys in which two runs of one experiment may differ: where the data is, what is measured
    check: Callable[[Mapping[str, Any]], None] | None  # of keys that go together; raises ValueError
    measured: Callable[[Splits], Mapping[str, Any]] | None  # keys that loading found out; they are kept with the run
    describe: Callable[[SequenceDataset], str] | None  # a few words behind "3 training, ... sequences"
    scores: Callable[[SequenceDataset, Any], Any] | None  # further scores, a named tuple with `table`, from the Scores
    # further scores of a model on a part of the set, which it calls; a named tuple with `table`
    model_scores: Callable[[SequenceDataset, Any], Any] | None
    from_python: bool  # the caller of `fit` has the data: no configuration loads it

    def own_keys(self) -> dict[str, tuple[Any, Any]]:
        """(type, default) of every key of its own; a default of ... : the key must be given."""
        types = get_type_hints(self.load, include_extras=True)
        return {
            name: (types[name], ... if parameter.default is parameter.empty else parameter.default)
            for name, parameter in inspect.signature(self.load).parameters.items()
            if name not in PROVIDED
        }

    def load_splits(self, settings: Mapping[str, Any], controls: bool) -> Splits:
        """Calls the loader with what it asks for of the settings and the rest of PROVIDED. Raises DataError."""
        offered = {**settings, "controls": controls}
        splits = self.load(**{name: offered[name] for name in inspect.signature(self.load).parameters})
        if not isinstance(splits, Splits):
            raise TypeError(f"{self.load.__qualname__} must return Splits, got {type(splits).__name__}")
        return splits


_sets: dict[str, DataSet] = {}


def register(
    *names: str,
    values: Support | None,
    x_size: int | None = None,
    control_size: int = 0,
    free: Sequence[str] = (),
    check: Callable[[Mapping[str, Any]], None] | None = None,
    measured: Callable[[Splits], Mapping[str, Any]] | None = None,
    describe: Callable[[SequenceDataset], str] | None = None,
    scores: Callable[[SequenceDataset, Any], Any] | None = None,
    model_scores: Callable[[SequenceDataset, Any], Any] | None = None,
    from_python: bool = False,
) -> Callable[[_Loader], _Loader]:
    """Over a loader: the names by which configurations take it, and what `DataSet` says of them.

    Raises:
        ValueError: a name stands for another set; a key has the name of a shared one.
        TypeError: a parameter of the loader cannot be a key.
    """

    def enter(load: _Loader) -> _Loader:
        keep = frozenset(free)
        told = (values, keep, check, measured, describe, scores, model_scores, from_python)
        row = DataSet(load, x_size, control_size, *told)
        for name, parameter in inspect.signature(load).parameters.items():
            if parameter.kind is not parameter.KEYWORD_ONLY or parameter.annotation is parameter.empty:
                raise TypeError(f"{load.__qualname__}: {name} must be a keyword argument (behind *) with a type")
            if name in SHARED:
                raise ValueError(f"{load.__qualname__}: {name} must have another name, all sets have that key")
        if unknown := sorted((keep | ({"x_size"} if x_size is None else set())) - row.own_keys().keys()):
            raise ValueError(f"{load.__qualname__} must have the argument {unknown[0]}, which its set names")
        for name in names:
            if name in _sets:
                raise ValueError(f"name must be a new one, got {name!r}, which is {_sets[name].load.__module__}'s")
        _sets.update(dict.fromkeys(names, row))
        return load

    return enter


def data_sets() -> Mapping[str, DataSet]:
    """Every set by its name."""
    _import_files()
    return _sets


def names_to_list() -> list[str]:
    """Of the sets that a configuration alone can load, in the order of messages."""
    order = {f"{_PACKAGE}.{file}": place for place, file in enumerate(_ORDER)}
    rows = [(name, row) for name, row in data_sets().items() if not row.from_python]
    return [name for name, row in sorted(rows, key=lambda entry: order.get(entry[1].load.__module__, len(order)))]


@cache
def _import_files() -> None:
    """A new file is enough."""
    for module in iter_modules(sys.modules[_PACKAGE].__path__):
        import_module(f"{_PACKAGE}.{module.name}")
