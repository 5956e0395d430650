"""Values that an argument does not take, or takes as it takes a plain one, by the kind of the argument.

A `Value` is made when it is asked for, in the process that may die of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

REFUSED = "refused"  # an exception in one line that names the argument
SAME = "same"  # the result of the plain value
IN_VMAP = "in vmap"  # the same, of each sample of torch.func.vmap
EITHER = "either"  # taken, or refused as above
SURVIVED = "survived"  # any exception or none: the process lives

HUGE = (2**31, 2**40, 2**62)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Value(NamedTuple):
    kind: str
    make: Callable[[], Any]
    verdict: str = REFUSED


class Plain(Tensor):
    """A subclass that changes nothing."""


class Watching(Tensor):
    """A subclass that looks at every call, and changes nothing."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


# ---- Tensors ---------------------------------------------------------------------------------------------------------


def of_tensor(good: Tensor, *, optional: bool = False, finite: bool = False, vmap: bool = False) -> list[Value]:
    """For an argument that takes `good`.

    Args:
        optional: None is right.
        finite: NaN and infinity are refused.
        vmap: the call may be one of torch.func.vmap.
    """
    values = [
        Value("a number", lambda: 3.0),
        Value("a text", lambda: "x"),
        Value("an object", object),
        Value("a list", good.tolist),
        Value("an array", lambda: good.numpy()),
        Value("an array of objects", lambda: np.array([None, object()], dtype=object)),
        *(_none(optional)),
        *_dtypes(good),
        Value("on meta", lambda: good.to("meta")),
        *_layouts(good),
        *_sizes(good),
        *_same(good, vmap),
    ]
    if finite:
        values += [
            Value(f"with {number}", lambda number=number: _with(good, number)) for number in (math.nan, math.inf)
        ]
    return values


def _none(optional: bool) -> list[Value]:
    return [] if optional else [Value("none", lambda: None)]


def _dtypes(good: Tensor) -> Iterator[Value]:
    others = (*FLOATS, torch.int32, torch.int64, torch.bool, torch.complex64)
    for dtype in others:
        if dtype != good.dtype:
            yield Value(f"of {dtype}", lambda dtype=dtype: good.to(dtype))
    if good.is_floating_point():
        yield Value("quantised", lambda: quantised(good))


def quantised(good: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch means to leave them out one day
        return torch.quantize_per_tensor(good.float(), 0.1, 0, torch.quint8)


def _layouts(good: Tensor) -> Iterator[Value]:
    yield Value("sparse, COO", good.to_sparse)
    if good.dim() == 2:
        for layout in (torch.sparse_csr, torch.sparse_csc):
            yield Value(f"sparse, {layout}", lambda layout=layout: _quietly(lambda: good.to_sparse(layout=layout)))
    if good.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        yield Value("in the layout of oneDNN", good.to_mkldnn)
    if good.dim() > 1:
        yield Value("nested", lambda: _quietly(lambda: torch.nested.nested_tensor(list(good))))
        yield Value(
            "nested, jagged", lambda: _quietly(lambda: torch.nested.nested_tensor(list(good), layout=torch.jagged))
        )
    yield Value("a DTensor", lambda: distributed(good))


def _quietly(make: Callable[[], Tensor]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of prototypes
        return make()


@cache
def _mesh() -> Any:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))


def distributed(good: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(good, _mesh(), [Replicate()])


def _sizes(good: Tensor) -> Iterator[Value]:
    """Kinds that begin with "size": another argument may be the one that is named."""
    if good.dim():
        yield Value("size: a dimension less", lambda: good[0] if len(good) else good.new_zeros(good.shape[1:]))
    yield Value("size: a dimension more", lambda: good[None])
    yield Value("size: no dimension", lambda: good.new_zeros(()))
    for dim in range(good.dim()):
        yield Value(
            f"size: one more in dimension {dim}", lambda dim=dim: torch.cat((good, good.narrow(dim, 0, 1)), dim)
        )
        yield Value(f"size: one less in dimension {dim}", lambda dim=dim: good.narrow(dim, 0, good.shape[dim] - 1))
        if good.shape[dim]:
            yield Value(f"size: none in dimension {dim}", lambda dim=dim: good.narrow(dim, 0, 0))
        for huge in HUGE:
            yield Value(f"size: {huge} in dimension {dim}", lambda dim=dim, huge=huge: _expanded(good, dim, huge))


def _expanded(good: Tensor, dim: int, size: int) -> Tensor:
    """In no more memory than it had."""
    return good.narrow(dim, 0, 1).expand(*good.shape[:dim], size, *good.shape[dim + 1 :])


def _same(good: Tensor, vmap: bool) -> Iterator[Value]:
    yield Value("a Parameter", lambda: nn.Parameter(good.clone(), requires_grad=good.is_floating_point()), SAME)
    yield Value("a subclass", lambda: good.clone().as_subclass(Plain), SAME)
    yield Value("a subclass with __torch_function__", lambda: good.clone().as_subclass(Watching), SAME)
    yield Value("of other strides", lambda: torch.stack((good, good), -1)[..., 0], SAME)
    yield Value("made in inference mode", lambda: _inference(good), SAME)
    if good.is_floating_point():
        yield Value("with the sign bit of conj", lambda: torch.complex(-good, -good).conj().imag, SAME)
    if vmap:
        yield Value("of a torch.func.vmap", lambda: torch.stack((good, good)), IN_VMAP)


def _inference(good: Tensor) -> Tensor:
    with torch.inference_mode():
        return good.clone()


def _with(good: Tensor, number: float) -> Tensor:
    wrong = good.clone()
    wrong.view(-1)[0] = number  # of the first frame of a sequence that has some
    return wrong


def of_lengths(good: Tensor, steps: int, *, vmap: bool = False) -> list[Value]:
    """For lengths, each in [0, steps], that may be None."""
    return [
        *of_tensor(good, optional=True, vmap=vmap),
        Value("beyond T", lambda: good + steps),
        Value("negative", lambda: good - steps - 1),
        *(Value(f"of {huge}", lambda huge=huge: torch.full_like(good, huge)) for huge in HUGE),
        Value("the least int", lambda: torch.full_like(good, -(2**63))),
    ]


# ---- Other values ----------------------------------------------------------------------------------------------------


class Unfriendly:
    """What says nothing of itself on one line."""

    def __repr__(self) -> str:
        return "a\nb\n" * 100


def _others() -> list[Value]:
    return [
        Value("an object", Unfriendly),
        Value("an array of two", lambda: np.array([1, 2])),
        Value("an array of texts", lambda: np.array(["tanh", "tanh"])),
        Value("a tensor of two", lambda: torch.ones(2)),
        Value("a tensor of rows", lambda: torch.ones(9, 9)),
        Value("a complex number", lambda: 1j),
        Value("a list", lambda: [1]),
        Value("a dict", dict),
        Value("bytes", lambda: b"1"),
    ]


def of_count(least: int, *, optional: bool = False, size: bool = True) -> list[Value]:
    """For an int of at least so much. Args: size: it is one of a tensor, which must not be huge."""
    return [
        *_others(),
        *_none(optional),
        *(
            Value(kind, lambda number=number: number)
            for kind, number in {
                "a text": "1",
                "a fraction": 1.5,
                "a float": 2.0,
                "nan": math.nan,
                "infinity": math.inf,
                "a flag": True,
                "too small": least - 1,
                "the least int": -(2**63),
            }.items()
        ),
        *_huge(size),
    ]


def _huge(size: bool) -> list[Value]:
    if not size:
        return []
    values = [Value(f"{huge}", lambda huge=huge: huge) for huge in (*HUGE, 2**63)]
    return [*values, Value("10^5000", lambda: 10**5000)]


def of_number(*, optional: bool = False, low: float | None = None, high: float | None = None) -> list[Value]:
    """For a finite number. Args: low, high: beyond them it is refused."""
    numbers: dict[str, Any] = {"a text": "1", "nan": math.nan, "infinity": math.inf, "minus infinity": -math.inf}
    numbers |= {"a flag": True, "an int that no float holds": 10**400, "10^5000": 10**5000}
    if low is not None:
        numbers["too small"] = low - 0.5
    if high is not None:
        numbers["too large"] = high + 0.5
    return [
        *_others(),
        *_none(optional),
        *(Value(kind, lambda number=number: number) for kind, number in numbers.items()),
    ]


def of_seed(*, optional: bool = False) -> list[Value]:
    return [
        *of_count(0, optional=optional, size=False),
        Value("2**64", lambda: 2**64),
        Value("10^5000", lambda: 10**5000),
    ]


def of_flag() -> list[Value]:
    wrong = {"a text": "no", "one": 1, "zero": 0, "none": None}
    return [*_others(), *(Value(kind, lambda value=value: value) for kind, value in wrong.items())]


def of_choice(*, optional: bool = False) -> list[Value]:
    wrong = {"another": "some", "no letters": "", "a number": 3, "a flag": True}
    return [*_others(), *_none(optional), *(Value(kind, lambda value=value: value) for kind, value in wrong.items())]


def of_dtype() -> list[Value]:
    wrong = {
        "a text": "float32",
        "of ints": torch.int32,
        "complex": torch.complex64,
        "of Python": float,
        "a number": 32,
    }
    return [*_others(), *(Value(kind, lambda value=value: value) for kind, value in wrong.items())]


def of_device() -> list[Value]:
    wrong = {"a text": "nowhere", "no letters": "", "a fraction": 1.5, "a flag": True, "a huge number": 2**40}
    return [*_others(), *(Value(kind, lambda value=value: value) for kind, value in wrong.items())]


def of_module(*, optional: bool = False) -> list[Value]:
    wrong: dict[str, Any] = {"a text": "x", "a number": 3, "a function": abs, "a class": nn.Linear}
    return [*_others(), *_none(optional), *(Value(kind, lambda value=value: value) for kind, value in wrong.items())]


def of_model() -> list[Value]:
    return [*of_module(), Value("another module", lambda: nn.Linear(2, 2))]


def of_path(*, kinds: tuple[str, ...] = ("no file", "a folder", "a null")) -> list[Value]:
    wrong: dict[str, Any] = {"a number": 3, "none": None, "a flag": True}
    places = {"no file": "/no/such/place", "a folder": "/tmp", "a null": "a\0b", "no letters": ""}
    wrong |= {kind: places[kind] for kind in kinds}
    return [*_others(), *(Value(kind, lambda value=value: value) for kind, value in wrong.items())]


def of_numbers(*, optional: bool = True) -> list[Value]:
    """For a list of numbers in [0, 1]."""
    wrong: dict[str, Any] = {
        "a text": "01",
        "a number": 0.5,
        "of texts": ["a"],
        "above 1": [0.5, 1.5],
        "of nan": [math.nan],
    }
    wrong |= {"of flags": [True], "of lists": [[0.5]], "of complex numbers": [0.5j]}
    others = [value for value in _others() if value.kind not in ("a list",)]
    return [*others, *_none(optional), *(Value(kind, lambda value=value: value) for kind, value in wrong.items())]


def of_tuple(optional: bool = True) -> list[Value]:
    """For a tuple of tensors."""
    wrong: dict[str, Any] = {"a text": "abc", "a number": 3, "short": (torch.zeros(2),), "long": (torch.zeros(2),) * 9}
    wrong |= {"empty": (), "of none": (None,) * 3, "of texts": ("a",) * 3}
    return [*_others(), *_none(optional), *(Value(kind, lambda value=value: value) for kind, value in wrong.items())]


def surviving(values: list[Value]) -> list[Value]:
    """The same, of an argument that is not looked at: whatever comes of it, the process lives."""
    return [value._replace(verdict=SURVIVED) for value in values]


def but(values: list[Value], **verdicts: str) -> list[Value]:
    """The values with other verdicts by the beginnings of their kinds, "_" for " ": but(values, a_list=EITHER)."""
    changed = []
    for value in values:
        own = [verdict for kind, verdict in verdicts.items() if value.kind.startswith(kind.replace("_", " "))]
        changed.append(value._replace(verdict=own[0]) if own else value)
    return changed
