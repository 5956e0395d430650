"""Every task by its name, in the order of the page."""

from __future__ import annotations

from importlib import import_module

from vssn.experiments.tasks import NAMES
from vssn.experiments.tasks.base import Task

TASKS: dict[str, Task] = {name: import_module(f"vssn.experiments.tasks.{name}").TASK for name in NAMES}
