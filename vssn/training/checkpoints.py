"""A checkpoint of `vssn fit` as a model with its configuration; `from_pretrained` gives the model alone, without what
training needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vssn.errors import CheckpointError, ConfigError
from vssn.models.registry import MODELS
from vssn.nn import model_files
from vssn.nn.interface import SequenceModel
from vssn.training.config import Config, check_config
from vssn.utils.checkpoint_file import FORMAT, read_checkpoint, weights_of

__all__ = ["FORMAT", "load_model", "read_checkpoint"]


def read_weights(path: str | Path) -> dict[str, Any]:
    """The state_dict of the model in a checkpoint. Raises CheckpointError."""
    return weights_of(read_checkpoint(path))


def load_model(path: str | Path) -> tuple[SequenceModel, Config]:
    """The trained model of a checkpoint, on the CPU and in evaluation mode, and its configuration.

    Raises:
        CheckpointError: missing, damaged, or not of this program.
    """
    content = read_checkpoint(path)
    own, weights = content["vssn"], weights_of(content)
    try:
        config = check_config(own.get("config"), str(path))
        if "model" in own and config.model.name in MODELS:
            try:
                return model_files.build(MODELS[config.model.name], own["model"], weights, str(path)), config
            except TypeError as error:  # it has a part of the user's own
                raise CheckpointError(str(error)) from None
        model = config.build_model(own.get("num_sequences"))  # up to 0.1.0; raises for one from Python
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    return model_files.fill(model, weights, str(path)), config
