"""A saved model of whatever class: `vssn.from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vssn.errors import CheckpointError
from vssn.models.registry import MODELS
from vssn.nn import model_files
from vssn.nn.interface import SequenceModel


def from_pretrained(source: str | Path, *, revision: str | None = None, **given: Any) -> SequenceModel:
    """The model of a registered class in a folder of `save_pretrained`, a checkpoint of `vssn fit` or a repository of
    the Hub. Arguments and errors as in `SequenceModel.from_pretrained`, which a class that is not registered takes."""
    description, weights = model_files.read(source, revision)
    return model_files.build(class_of(description, str(source)), description, weights, str(source), **given)


def class_of(description: dict[str, Any], origin: str) -> type[SequenceModel]:
    """The class that the description names. Raises CheckpointError where it is not known here."""
    name = description.get("class", description.get("name"))
    for key, cls in MODELS.items():
        if name in (cls.__name__, key):
            return cls
    known = ", ".join(cls.__name__ for cls in MODELS.values())
    raise CheckpointError(
        f"{origin}: expected a model of class {known}, got {name!r}; load it with from_pretrained of its own class"
    )
