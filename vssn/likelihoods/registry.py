"""Likelihoods by their names, and how a model makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vssn.likelihoods.base import Likelihood
from vssn.utils.checks import require_choice
from vssn_kernels.arguments import shown

LIKELIHOODS: dict[str, type[Likelihood]] = {}
_Class = TypeVar("_Class", bound=type[Likelihood])


def register(name: str) -> Callable[[_Class], _Class]:
    """Over a class: the name by which models take it.

    Raises:
        ValueError: the name stands for another class.
        TypeError: the class is no Likelihood.
    """

    def enter(cls: _Class) -> _Class:
        if not (isinstance(cls, type) and issubclass(cls, Likelihood)):
            raise TypeError(f"what is registered as {name!r} must be a subclass of Likelihood, got {cls!r}")
        if name in LIKELIHOODS:
            raise ValueError(f"name must be a new one, got {name!r}, which is {LIKELIHOODS[name].__name__}'s")
        cls.name = name
        LIKELIHOODS[name] = cls
        return cls

    return enter


def make_likelihood(likelihood: object, x_size: int, given: Mapping[str, Any], **factory: Any) -> Likelihood:
    """The likelihood of that name, made anew, or the instance itself.

    Args:
        likelihood: a registered name, or a Likelihood of x_size features.
        x_size: X.
        given: the model's keywords, of which the class takes those in its `options`.
        factory: device and dtype, for a class that is made here.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    if isinstance(likelihood, Likelihood):
        if likelihood.x_size != x_size:
            raise ValueError(f"likelihood must be one of x_size={x_size} features, got one of {likelihood.x_size}")
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            f"likelihood must be one of {', '.join(LIKELIHOODS)} or a vssn.likelihoods.Likelihood, got "
            f"{shown(likelihood)}"
        )
    require_choice("likelihood", likelihood, tuple(LIKELIHOODS))
    cls = LIKELIHOODS[likelihood]
    unknown = [keyword for _, keyword in cls.options if keyword not in given]
    if unknown:
        raise ValueError(
            f"likelihood={likelihood!r} takes {', '.join(unknown)}, which the model does not have; pass an instance"
        )
    options = {own: given[keyword] for own, keyword in cls.options}
    made: Likelihood = cls(x_size, **options, **factory)
    return made
