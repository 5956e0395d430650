"""A configuration for data of one's own: `vssn init DATA`, and `vssn fit --data DATA` without a --config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vssn.data.formats import KINDS, options_of, read
from vssn.data.proposals import Proposal, propose
from vssn.errors import ConfigError
from vssn.likelihoods import LIKELIHOODS
from vssn.training.config import apply_override, check_config
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
    likelihood = made.settings["model"].get("likelihood")
    if likelihood in LIKELIHOODS and LIKELIHOODS[likelihood].support != REAL and "data.standardise" in made.reasons:
        for section, key in (("data", "standardise"), ("model", "min_logvar_x")):  # were for what was proposed
            if key not in given.get(section, {}):
                del made.settings[section][key]
    check_config(made.settings, path, overrides)
    return made
