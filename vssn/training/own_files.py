"""A configuration for data of one's own: `vssn init DATA`, and `vssn fit --data DATA` without a --config."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from vssn.data.formats import KINDS, options_of, read
from vssn.data.proposals import Proposal, propose
from vssn.errors import ConfigError
from vssn.likelihoods import LIKELIHOODS
from vssn.models.registry import MODELS
from vssn.training.config import apply_override, check_config
from vssn.training.objectives import takes_annealing
from vssn.training.sections import model_section
from vssn.utils.values import REAL


def propose_for(path: str, overrides: Sequence[str] = (), output: str | None = None) -> Proposal:
    """What is proposed for the data there.

    Args:
        overrides: "section.key=value"; those of data say how it is read, and all win over what is proposed.
        output: folder of the run; None: runs/ and the name of the data.

    Raises:
        DataError: the data cannot be read.
        ConfigError: an override cannot be used.
    """
    settings: dict[Any, Any] = {}
    for override in overrides:
        apply_override(override, settings)
    given = {name: keys for name, keys in settings.items() if isinstance(keys, dict)}
    if given.get("data", {}).get("set", "files") != "files":
        raise ConfigError("data.set: expected 'files' without --config; leave it out, or name a --config")
    known = {"format", *(name for kind in KINDS for name in options_of(kind))}
    reading = {name: value for name, value in given.get("data", {}).items() if name in known}
    name = re.sub(r"[^\w.-]+", "-", Path(path).resolve().name.split(".")[0]) or "data"
    made = propose(read(path, **reading), path, output or f"runs/{name}", tuple(LIKELIHOODS))
    for section, keys in settings.items():
        if section not in made.settings or not isinstance(keys, dict):
            made.settings[section] = keys
            continue
        for key, value in keys.items():
            made.settings[section][key] = value
            made.reasons[f"{section}.{key}"] = "as given"
    leave_out_what_is_refused(made.settings, given)
    check_config(made.settings, path, overrides)
    return made


def leave_out_what_is_refused(settings: dict[str, Any], given: Mapping[str, Mapping[str, Any]]) -> None:
    """Takes out of a proposal's settings, into which those that are given were put, what these refuse. What is given
    itself stays, to be refused by its name."""
    data, model, training = (settings[name] for name in ("data", "model", "training"))
    if not all(isinstance(section, dict) for section in (data, model, training)):
        return
    refused = []
    likelihood, name = LIKELIHOODS.get(str(model.get("likelihood"))), str(model.get("name", "vssn"))
    if likelihood is not None and likelihood.support != REAL:
        refused += [("data", "standardise"), ("model", "min_logvar_x")]
    if name in MODELS:
        known = model_section({"name": name}).model_fields
        refused += [("model", key) for key in model if key not in known]
        controls = get_args(known["control"].annotation) if "control" in known else ()
        if "control" not in given.get("model", {}) and model.get("control") == "both" and "both" not in controls:
            model["control"] = "external"
    if not takes_annealing(training, model.get("objective", "elbo")):
        refused += [("training", "kl_anneal_updates"), ("training", "kl_start")]
    if training.get("kl_anneal_updates") == 0:
        refused.append(("training", "kl_start"))
    for section, key in refused:
        if key not in given.get(section, {}):
            settings[section].pop(key, None)
