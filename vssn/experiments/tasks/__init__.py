"""The tasks of `vssn reproduce`: what the tables of the paper train, measure, draw and print.

A task is one file of this folder, with a `Task` (see base.py) named TASK in it; no other place names it. Here are the
names alone, so that the command line can list them without importing what the tasks need; registry.py has the tasks.
"""

from __future__ import annotations

import pkgutil

_ORDER = (
    "music",
    "jsb_grid",
    "objectives",
    "speech",
    "balls",
    "pendulum",
    "world_model",
    "series",
    "demo",
)  # on the page; other files follow, by name
_NO_TASKS = ("base", "registry")

_found = {module.name for module in pkgutil.iter_modules(__path__)}.difference(_NO_TASKS)
NAMES = (*_ORDER, *sorted(_found.difference(_ORDER)))
