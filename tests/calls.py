"""What an entry of public_calls.py is: a call that is right, and what is wrong with each of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from wrong_values import (
    EITHER,
    Value,
    but,
    of_count,
    of_device,
    of_dtype,
    of_tensor,
    of_tuple,
)

PLACES = ("no_file", "a_folder", "a_null", "no_letters")  # errors begin with the path itself
OF_PLACE = {"device": of_device(), "dtype": of_dtype()}
COUNTED = {"x_size": of_count(1), "hidden_size": of_count(0), "latent_size": of_count(0), "noise_size": of_count(0)}


class Argument(NamedTuple):
    """One to be wrong."""

    parameter: str  # of the signature
    values: list[Value]
    said: str = ""  # what messages call it, where that is another name
    put: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None  # the arguments with a value in a part of it

    def given(self, right: dict[str, Any], value: Any) -> dict[str, Any]:
        return right | {self.parameter: value} if self.put is None else self.put(right, value)


class Entry(NamedTuple):
    name: str
    call: Callable[..., Any]
    right: dict[str, Any]
    arguments: list[Argument]


def arguments(**values: list[Value]) -> list[Argument]:
    return [Argument(name, wrong) for name, wrong in values.items()]


def in_tuple(parameter: str, place: int, values: list[Value], said: str) -> Argument:
    """A part of an argument that is a tuple, or a named one."""

    def put(right: dict[str, Any], value: Any) -> dict[str, Any]:
        whole = list(right[parameter])
        whole[place] = value
        made = type(right[parameter])
        return right | {parameter: made(*whole) if hasattr(made, "_fields") else made(whole)}

    return Argument(parameter, values, said, put)


def name_of(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def of_state(names: tuple[str, ...], parts: tuple[Tensor, ...], parameter: str = "state") -> list[Argument]:
    given = [Argument(parameter, of_tuple())]
    for place, (name, part) in enumerate(zip(names, parts, strict=True)):
        values = of_tensor(part, finite=True)
        if name == "x_last":  # may come without the mark that it is a frame
            values = but(values, **{"size:_one_less_in_dimension_1": EITHER})
        given.append(in_tuple(parameter, place, values, f"{parameter}'s {name}"))
    return given


def of_noise(parts: tuple[Tensor, ...], names: tuple[str, ...] = ("eps_w", "eps_z")) -> list[Argument]:
    wrong = [Argument("noise", of_tuple())]
    for place, (name, part) in enumerate(zip(names, parts, strict=True)):
        wrong.append(in_tuple("noise", place, of_tensor(part, finite=True), f"noise's {name}"))
    return wrong


def loose(tensor: Tensor, *names: str) -> list[Argument]:
    """What takes any real dtype."""
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64)
    kinds = {f"of_{dtype}": EITHER for dtype in dtypes}
    values = but(of_tensor(tensor), **kinds, **{"of_torch.bool": EITHER})
    return [Argument(name, values) for name in names]
