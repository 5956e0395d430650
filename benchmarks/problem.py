"""What a contestant is given: one call with its inputs, in one of three passes; and the sizes of a whole model.

FLOP: each entry of a weight matrix costs one multiplication and one addition for each row and step: 2 forward, 2 for
the gradient of the input, 2 for that of the weight.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

FORWARD, BACKWARD, ADAM = "forward", "forward+backward", "forward+backward+adam"
FLOP_PER_ENTRY = {FORWARD: 2, BACKWARD: 6, ADAM: 6}
FLOAT32_BYTES = 4


class Size(NamedTuple):
    """Sizes of a whole model; every MLP has one hidden layer of M = D, A = D, and u_t is x_{t-1}, so U = X."""

    name: str
    T: int
    B: int
    X: int
    D: int
    Z: int
    W: int

    def __str__(self) -> str:
        letters = " ".join(f"{letter}={value}" for letter, value in zip("TBXDZW", self[1:], strict=True))
        return f"{self.name}: {letters}" if self.name else letters


SIZES = {
    size.name: size
    for size in (
        Size("S", T=100, B=16, X=88, D=64, Z=16, W=8),
        Size("M", T=100, B=16, X=88, D=256, Z=64, W=16),
        Size("L", T=100, B=32, X=200, D=512, Z=100, W=32),
        Size("XL", T=100, B=64, X=200, D=1024, Z=256, W=64),
    )
}


@dataclass(frozen=True)
class Problem:
    """One call with its inputs: what every contestant gets, and what it costs at least."""

    family: str
    case: str
    steps: int  # T, for the time per step
    rows: int  # T * B
    tensors: dict[str, Tensor]  # differentiated, by name
    constants: dict[str, Tensor]  # not differentiated
    cotangents: dict[str, Tensor]  # of each output
    matrix_entries: int = 0  # of the weights that each row meets at each step
    bytes_moved: dict[str, int] = field(default_factory=dict)  # by pass; of elementwise problems alone
    settings: dict[str, Any] = field(default_factory=dict)
    bfloat16: bool = False  # its tensors are; a whole model is under autocast, and its tensors are float32

    @property
    def device(self) -> str:
        return next(iter(self.tensors.values())).device.type

    def flop(self, run: str) -> int:
        """Floating-point operations of its matrix products in one pass."""
        return FLOP_PER_ENTRY[run] * self.matrix_entries * self.rows

    def to(self, device: str) -> Problem:
        """The same on another device."""
        parts = {
            name: {key: value.to(device) for key, value in getattr(self, name).items()}
            for name in ("tensors", "constants", "cotangents")
        }
        return Problem(**{**self.__dict__, **parts})

    def in_bfloat16(self) -> Problem:
        """The same in bfloat16, on the values that float32 has."""
        return self._in(torch.bfloat16, f"{self.case} in bfloat16", bfloat16=True)

    def in_float32(self) -> Problem:
        """What is in bfloat16, on the same values."""
        return self._in(torch.float32, self.case, bfloat16=False)

    def _in(self, dtype: torch.dtype, case: str, bfloat16: bool) -> Problem:
        changed = dataclasses.replace(self, case=case, bfloat16=bfloat16)
        if "size" in self.settings:
            return changed
        tensors, constants, cotangents = (
            {key: value.to(dtype) for key, value in part.items()}
            for part in (self.tensors, self.constants, self.cotangents)
        )
        return dataclasses.replace(changed, tensors=tensors, constants=constants, cotangents=cotangents)
