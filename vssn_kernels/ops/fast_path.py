"""The way past PyTorch's dispatcher, for calls that nobody looks at. Nothing but time depends on it: skip this file.

A call of a registered op runs through the dispatcher twice, above and below autograd, which costs more than a small op
itself. Where the dispatcher would do no more than call the op's kernels, they are called here, as plain functions under
the same autograd formula.

Three kinds of things may stand between a call and its kernel: modes and tracers, which see every op; transforms
(torch.func), which are levels on a stack; and tensors whose key set asks the dispatcher for more than a call (a sign
bit, a batch, a subclass). `is_open` says that there is none of them. It asks PyTorch under the private names that are
probed below; where a version of PyTorch lacks one, all calls go through the dispatcher, with the same results.

What it saves, measured on an Intel Xeon with AVX-512, torch 2.13, one thread, as medians of runs in turn with the way
open and closed (float32, small sizes: 16 rows of 8, a GRU of T = 4, B = 2, H = 8; the machine was busy, so the ratios
count): closed, a call without gradients took 1.2 to 1.35 times as long (gaussian_kl 24 for 20 us, gru_sequence 57 for
42, mlp 87 for 69), forward and backward 1.15 to 1.25 times (gaussian_kl 115 for 98 us, gru_sequence 249 for 200).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vssn_kernels.backend import table
from vssn_kernels.ops import torch_internals

names: list[str] = []
missing: list[str] = []


def _probe(name: str) -> Any:
    names.append(name)
    found = torch_internals.find(name)
    if found is None:
        missing.append(name)
    return found


_dispatch_keys = _probe("torch._C._dispatch_keys")
_len_dispatch_stack = _probe("torch._C._len_torch_dispatch_stack")
_len_function_stack = _probe("torch._C._len_torch_function_stack")
_peek_transforms = _probe("torch._C._functorch.peek_interpreter_stack")
_tracing_state = _probe("torch._C._get_tracing_state")
_profiler_enabled = _probe("torch.autograd._profiler_enabled")
if missing:
    table.notes.append(f"calls of small ops are slow: torch {torch.__version__} lacks {', '.join(missing)}")


def is_open(args: Sequence[object], on_cpu: bool = False) -> bool:
    """Whether the dispatcher would do no more with an op than call its kernels: plain tensors with data, and no mode,
    transform, tracer or profiler that is to see the op.

    Args:
        on_cpu: and all tensors are on the CPU, for a kernel that is called without the checks of an op: it would take
            the address of another for one of its own memory.
    """
    return (
        not missing
        and _len_dispatch_stack() == 0
        and _len_function_stack() == 0
        and _peek_transforms() is None
        and _tracing_state() is None
        and not _profiler_enabled()
        and _all_plain(args, _known_on_cpu if on_cpu else _known)
    )


def direct(kernel: Callable, function: type[torch.autograd.Function], flat: Callable[..., tuple] | None) -> Callable:
    """An op without the dispatcher: its kernel, under its autograd formula where that is needed."""
    # Without what Function.apply does for torch.func: no transform is on, and plain tensors come from none.
    apply = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled() and torch_internals.any_requires_grad(*args):
            return apply(kernel, *(args if flat is None else flat(*args)))
        return kernel(*args)

    return call


def direct_or(kernel: Callable, with_gradients: Callable) -> Callable:
    """The kernel of an op, or where a gradient is to run through it, the other function."""

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled() and torch_internals.any_requires_grad(*args):
            return with_gradients(*args)
        return kernel(*args)

    return call


# ---- Plain tensors -----------------------------------------------------------------------------------


def is_plain(tensor: Tensor) -> bool:
    """Whether the values of the tensor are there to be read: no wrapper, no fake."""
    if _dispatch_keys is None:
        return type(tensor) in _TENSORS and not tensor.is_meta and not torch_internals.in_transform()
    return _all_plain((tensor,), _known)


def _all_plain(args: Sequence[Any], known: _Known) -> bool:
    for arg in args:
        kind = type(arg)
        if kind in _TENSORS:
            raw = _dispatch_keys(arg).raw_repr()
            if not (known[raw] if raw in known else known.learn(arg, raw)):
                return False
        elif kind in _LISTS:
            if not _all_plain(arg, known):
                return False
        elif kind not in _NO_TENSORS and isinstance(arg, Tensor):
            return False
    return True


_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_LISTS = frozenset((list, tuple))
_NO_TENSORS = frozenset((type(None), bool, int, float, str))


class _Known(dict[int, bool]):
    """By the bits of a key set: whether it has these keys alone, which any dense tensor on such a device has. Those are
    named, for of the others (Negative, ZeroTensor, Batched, Functionalize, Python, Sparse, ...) there may be new."""

    def __init__(self, devices: str) -> None:
        self.plain_keys = re.compile(rf"({devices})|ADInplaceOrView|Autograd\w+|Autocast\w+")

    def learn(self, tensor: Tensor, raw: int) -> bool:
        names = str(_dispatch_keys(tensor)).removeprefix("DispatchKeySet(").removesuffix(")").split(", ")
        self[raw] = all(self.plain_keys.fullmatch(name) for name in names)
        return self[raw]


_known, _known_on_cpu = _Known("CPU|CUDA|XPU"), _Known("CPU")
