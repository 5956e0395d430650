"""Every public function and method with arguments that are right, and for each argument what is wrong with it.

What is public: what docs/api shows, and `__all__` of vssn, vssn_kernels and vssn.likelihoods. An entry has the name of
the function itself, `vssn.models.base.FrameModel.generate` say, whichever class it is called on; behind it may stand
what tells it from another, in brackets.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from calls import (
    Entry,
    arguments,
    name_of,
)
from calls_of_inference import inference, likelihoods
from calls_of_kernels import kernels, more_kernels
from calls_of_layers import layers
from calls_of_models import INSIDE, inside, models, more_models
from calls_of_training import data, sets, training
from wrong_values import (
    Value,
)

__all__ = ["GROUPS", "INSIDE", "MORE", "OWN", "Entry", "left_out", "public"]
API = Path(__file__).resolve().parent.parent / "docs" / "api"


def public() -> dict[str, Callable[..., Any]]:
    """Every public function, method and constructor by its own name."""
    found: dict[str, Callable[..., Any]] = {}
    shown = [name for page in sorted(API.glob("*.md")) for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]
    listed = [f"{module}.{name}" for module in ("vssn", "vssn_kernels", "vssn.likelihoods") for name in _all(module)]
    for name in dict.fromkeys((*shown, *listed)):
        thing = _resolve(name)
        several = _of_module(thing) if isinstance(thing, ModuleType) else [thing]
        for one in several:
            if inspect.isclass(one):
                found |= _of_class(one)
            elif inspect.isfunction(one) and inspect.signature(one).parameters:
                found[name_of(one)] = one
    return found


def _all(module: str) -> list[str]:
    return list(importlib.import_module(module).__all__)


def _resolve(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        owner, _, last = name.rpartition(".")
        return getattr(_resolve(owner), last)


def _of_module(module: ModuleType) -> list[Any]:
    return [
        thing
        for name, thing in vars(module).items()
        if not name.startswith("_") and callable(thing) and getattr(thing, "__module__", "") == module.__name__
    ]


def _of_class(cls: type) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    if not issubclass(cls, tuple | Exception) and not inspect.isabstract(cls):
        found[name_of(cls)] = cls
    for base in cls.__mro__:
        if not base.__module__.startswith("vssn"):
            continue
        for name, thing in vars(base).items():
            function = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            takes = [
                parameter for parameter in inspect.signature(function).parameters if parameter not in ("self", "cls")
            ]
            if takes and not getattr(function, "__isabstractmethod__", False) and getattr(cls, name, None) is not None:
                found[name_of(function)] = function
    return found


GROUPS: dict[str, Callable[[], Iterator[Entry]]] = {
    "kernels": kernels,
    "layers": layers,
    "models": models,
    "inference": inference,
    "likelihoods": likelihoods,
    "data": data,
    "sets": sets,
    "training": training,
    "inside": inside,
}
MORE: dict[str, Callable[[], Iterator[Entry]]] = {"more kernels": more_kernels, "more models": more_models}
OWN: dict[str, Callable[[], Iterator[Entry]]] = {"deadly": lambda: _deadly()}


def left_out() -> dict[str, str]:
    """Public by its name, and why it is not called."""
    reasons = {
        "vssn.nn.interface.SequenceModel.push_to_hub": "needs the network",
        "vssn.data.registry.DataSet": "made by register",
        "vssn.data.registry.DataSet.load_splits": "called by a configuration, which has checked the settings",
        "vssn.data.registry.register": "for those who write a loader",
        "vssn.data.batching.named_type": "says of any value what it is",
        "vssn.data.batching.padded_batches": "takes what sequences_of has checked",
        "vssn.likelihoods.nade.nade_logits": "takes what log_prob has checked",
        "vssn.estimator.Forecaster.get_params": "as scikit-learn has it",
        "vssn.estimator.Forecaster.fit_transform": "fit, then transform",
        "vssn.estimator.Forecaster.save": "as save_pretrained",
        "vssn.estimator.Forecaster.load": "as from_pretrained",
        "vssn.likelihoods.base.Likelihood.mean": "to be given by one of your own",
        "vssn.likelihoods.base.Likelihood.sample": "to be given by one of your own",
        "vssn.likelihoods.base.Likelihood.floats_per_frame": "a plan of memory, of what has been checked",
        "vssn.likelihoods.poisson.log_rates": "takes what log_prob has checked",
        "vssn.likelihoods.student_t.student_t_quantile": "takes what quantile has checked",
        "vssn.inference.streaming.Filter": "made by a model's filter",
        "vssn.export.to_onnx": "takes seconds a call",
        "vssn.export.Step": "what a step for export has in common",
        "vssn.export.Step.example": "made of a filter's own sizes",
        "vssn.export.Step.start": "made of a filter's own sizes",
        "vssn.export.FilterStep": "takes a model that its filter checks",
        "vssn.export.FilterStep.example": "made of a filter's own sizes",
        "vssn.export.FilterStep.forward": "for the exporter, on what example made",
        "vssn.export.GenerationStep": "takes a model that its filter checks",
        "vssn.export.GenerationStep.forward": "for the exporter, on what example made",
        "vssn.utils.scaling.Scaling.identity": "made of a model's own sizes",
        "vssn.utils.scaling.Scaling.like": "made of a model's own sizes",
        "vssn.utils.scaling.Scaling.of": "its wrong values stand in the tests of scaling",
    }
    known = public()
    of_log_prob = {
        name: "called by log_prob"
        for name in known
        if name.startswith("vssn.likelihoods") and name.endswith(".forward")
    }
    plans = {
        name: "a plan of memory"
        for name in known
        if name.startswith("vssn.likelihoods") and name.endswith(".floats_per_frame")
    }
    return reasons | of_log_prob | plans


def _deadly() -> Iterator[Entry]:
    """For the test of the walk itself."""

    def call(x: Any) -> None:
        if x == "kill":
            os.kill(os.getpid(), signal.SIGSEGV)
        if x == "mumble":
            raise RuntimeError("no")
        if x != "silence":
            raise ValueError("x must be right")

    values = [Value(kind, lambda kind=kind: kind) for kind in ("no", "kill", "silence", "mumble", "never")]
    yield Entry("deadly", call, {"x": "silence"}, arguments(x=values))
