"""What a kernel is compiled for: sizes and dtypes, not the strides that come with a batch.

Triton compiles a kernel anew where an address or a stride begins, or ceases, to be a multiple of 16. With H = 33 the
strides of [T, B, 3H] do so as B changes, and so do the addresses of its parts. Yet where all of them are multiples,
whatever B is, a kernel should know, since then it loads 16 bytes at a time.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import triton


class View(NamedTuple):
    """A tensor among the arguments with strides of its own: parameters `name`, then `name`_t, _b, _u or _r, _c."""

    name: str
    at: int  # the tensor's place among the arguments
    strides: tuple[str, ...]  # behind it

    def lies_aligned(self, arguments: Sequence[Any]) -> bool:
        """Whether its rows are contiguous and begin at multiples of 16, in bytes from 0 and in elements from it."""
        tensor = arguments[self.at]
        if tensor is None:
            return True
        last = self.at + len(self.strides)
        joined = tensor.data_ptr()
        for stride in arguments[self.at + 1 : last]:
            joined |= stride
        return joined % 16 == 0 and arguments[last] == 1


class Kernel:
    """A function launched as `kernel[grid](*arguments, **constants)`, compiled apart for each set of unaligned views.

    Of contiguous tensors the sizes alone decide which these are. Neither the names in `counts` nor the strides and
    addresses of unaligned views make Triton compile again; only a stride of 1 between units is still told apart.
    """

    def __init__(self, function: Callable[..., Any], counts: Sequence[str]) -> None:
        self.function = function
        self.counts = tuple(counts)
        names = list(inspect.signature(function).parameters)
        strides = {name: tuple(n for n in names if re.fullmatch(f"{name}_[tburc]", n)) for name in names}
        self.views = [View(name, at, strides[name]) for at, name in enumerate(names) if strides[name]]
        # Read a number a row: nothing to gain by their alignment.
        self.loose = [name for name in ("lengths", "resets") if name in names]
        self._compiled_for: dict[tuple[View, ...], Any] = {}
        self.interpreted = not isinstance(self.jit(()), triton.JITFunction)

    def unaligned(self, arguments: Sequence[Any]) -> tuple[View, ...]:
        """The views of a call of which nothing is to be known."""
        return tuple([view for view in self.views if not view.lies_aligned(arguments)])

    def jit(self, unaligned: tuple[View, ...]) -> Any:
        """Triton's function for calls with these."""
        found = self._compiled_for.get(unaligned)
        if found is None:
            strides = [name for view in unaligned for name in view.strides]
            across = [name for name in strides if name[-1] in "tb"]
            others = [name for name in strides if name[-1] not in "tb"]
            found = self._compiled_for[unaligned] = triton.jit(
                self.function,
                do_not_specialize=[*self.counts, *across],
                do_not_specialize_on_alignment=[*self.loose, *others, *(view.name for view in unaligned)],
            )
        return found

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def launch(*arguments: Any, **constants: Any) -> Any:
            return self.jit(self.unaligned(arguments))[grid](*arguments, **constants)

        return launch


def kernel(*counts: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorates a kernel; `counts` names its numbers that change from call to call."""
    return lambda function: Kernel(function, counts)
