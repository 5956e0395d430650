"""What of the training goes with which objective of a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from vssn.errors import ConfigError
from vssn.nn.interface import SequenceModel
from vssn.training.sections import TrainingSection

BOUNDS = {"iwae": "iwae", "fivo": "fivo", "nasmc": "fivo"}  # the bound whose value the loss has, of the objectives that
# take particles


def bound_column(objective: str) -> str | None:
    """The name of the column of metrics.csv that holds the bound of the validation set; None: elbo_per_frame does."""
    return f"valid/{BOUNDS[objective]}_per_frame" if objective in BOUNDS else None


def more_columns(training: TrainingSection, objective: str) -> tuple[str, ...]:
    """Of metrics.csv, beside those of every run."""
    bound = bound_column(objective)
    return (
        *(() if training.initial_kl_anneal_updates is None else ("initial_kl_weight",)),
        *(("multiplier", "constraint") if training.constraint else ()),
        *(() if bound is None else (bound,)),
    )


def takes_annealing(training: Mapping[str, Any], objective: str) -> bool:
    """Whether a KL weight that rises goes with the keys of a section training, as `check_objective` has it."""
    return objective != "nasmc" and training.get("constraint") is None


def check_objective(training: TrainingSection, objective: str) -> None:
    """Raises ConfigError where the two do not go together."""
    where = f"with model.objective {objective!r}"
    if objective in BOUNDS and training.coordinated_dropout:
        raise ConfigError(
            f"training.coordinated_dropout: expected 0 {where}, whose weights take all of a frame, got "
            f"{training.coordinated_dropout}; leave it out"
        )
    if objective in BOUNDS and training.initial_kl_anneal_updates is not None:
        raise ConfigError(
            f"training.initial_kl_anneal_updates: expected none {where}, whose weights know no KL of a start, got "
            f"{training.initial_kl_anneal_updates}; leave it out"
        )
    if objective == "nasmc" and training.kl_anneal_updates:
        raise ConfigError(
            f"training.kl_anneal_updates: expected 0 {where}, whose weights are no annealed ones, got "
            f"{training.kl_anneal_updates}; leave it out, and kl_start"
        )
    if training.constraint is None:
        return
    if objective != "elbo":
        raise ConfigError(
            f"training.constraint: expected none {where}, got a target of {training.constraint.target}; leave it out, "
            "or take objective 'elbo', whose reconstruction it holds"
        )
    for name in ("kl_anneal_updates", "initial_kl_anneal_updates", "coordinated_dropout"):
        if came := getattr(training, name):
            raise ConfigError(
                f"training.{name}: expected {'none' if name.startswith('initial') else 0} with training.constraint, "
                f"whose multiplier weighs the whole reconstruction against the KL, got {came}; leave one of the two out"
            )


def check_initial_annealing(training: TrainingSection, model: SequenceModel) -> None:
    """Raises ConfigError where the model infers no start whose KL could rise apart."""
    if training.initial_kl_anneal_updates is None:
        return
    if not model.infers_start or "initial_kl_weight" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            "training.initial_kl_anneal_updates: expected none with a model that infers no start, got "
            f"{training.initial_kl_anneal_updates}; leave it out, or take model 'vssn' with initial_state "
            "'inferred', or 'dvbf'"
        )
