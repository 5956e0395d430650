"""Programs over a memory on the CPU, csrc/cpu/program.cpp: a step of many small layers in one call, weights packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.activations import ACTIVATIONS
from vssn_kernels.backend.common import row_arguments
from vssn_kernels.backend.cpu.call import storage

PANEL_BYTES = 256  # kPanelBytes
LINEAR, ACTIVATE, GRU, COPY, ADD, WAIT = range(6)  # Instruction


class Access(NamedTuple):
    """What an instruction does with `width` numbers at a place."""

    place: int
    width: int
    whole: bool = False  # every thread reads all, not its own columns alone
    write: bool = False

    def hinders(self, other: Access) -> bool:
        """Whether a thread that does one of the two may meet another thread that does the other."""
        apart = self.place >= other.place + other.width or other.place >= self.place + self.width
        own = not (self.whole or other.whole) and self[:2] == other[:2]
        return (self.write or other.write) and not apart and not own


class Program:
    """Instructions in the order in which they are added, over places in a memory of `size` numbers a row.

    Args:
        dtype: float32 or float64, of weights and memory.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.size = dtype, 0
        self._panel = PANEL_BYTES // torch.empty(0, dtype=dtype).element_size()
        self._code: list[list[int]] = []
        self._accesses: list[Access] = []  # since all threads last waited
        self._weights: list[Tensor] = []
        self._length = 0

    def __len__(self) -> int:
        return len(self._code)

    def place(self, width: int) -> int:
        """Room for `width` numbers."""
        self.size += width
        return self.size - width

    def linear(self, inputs: Sequence[tuple[int, Tensor]], bias: Tensor | None, onto: int | None = None) -> int:
        """The place of bias + sum_i in_i W_i^T, from the places of in_i [K_i] and W_i [N, K_i]; with `onto` added to
        what is there, in a place of its own."""
        width = (inputs[0][1] if bias is None else bias).shape[0]
        out, start, came = self.place(width), -1 if bias is None else self._store(bias), -1 if onto is None else onto
        assert bias is None or onto is None
        given = [(place, weight) for place, weight in inputs if weight.shape[1]] or [(0, torch.empty(width, 0))]
        for place, weight in given:
            size, reads = weight.shape[1], [Access(came, width)] if came >= 0 else []
            self._order(Access(place, size, whole=True), *reads, Access(out, width, write=True))
            self._add(LINEAR, out, place, size, width, self._store(self._packed(weight)), start, came)
            start, came = -1, out
        return out

    def activate(self, place: int, width: int, activation: str) -> None:
        self._order(Access(place, width, write=True))
        self._add(ACTIVATE, place, width, list(ACTIVATIONS).index(activation))

    def gru(self, out: int, gates_x: int, gates_h: int, h: int, size: int) -> None:
        gates = [Access(place, 3 * size, whole=True) for place in (gates_x, gates_h)]
        self._order(*gates, Access(h, size), Access(out, size, write=True))
        self._add(GRU, out, gates_x, gates_h, h, size)

    def copy(self, out: int, place: int, width: int) -> None:
        self._order(Access(place, width), Access(out, width, write=True))
        self._add(COPY, out, place, width)

    def add(self, out: int, place: int, width: int) -> None:
        self._order(Access(place, width), Access(out, width, write=True))
        self._add(ADD, out, place, width)

    def finish(self) -> None:
        """Behind the last instruction, before the first run."""
        self.code = torch.tensor(self._code, dtype=torch.int64).reshape(-1, 8)
        self.weights = torch.cat([torch.empty(0, dtype=self.dtype), *self._weights])
        self._weights = []
        self._fixed = {
            "storage": storage(self.weights),
            "code": self.code.data_ptr(),
            "weights": self.weights.data_ptr(),
        }

    def run(
        self,
        memory: Tensor,
        x: Tensor | None,
        u: Tensor | None,
        x_at: int,
        u_at: int,
        first: int,
        last: int,
        support: tuple[float, float, bool],
    ) -> bool:
        """Runs the instructions first..last-1 on the memory [B, size], to which x [B, X] and u [B, U] are copied.

        False, and nothing is done, where x is outside the support (low, high, whole) or either is not finite.
        """
        ran: bool = _cpu.run_program(
            threads=torch.get_num_threads(),
            B=memory.shape[0],
            first=first,
            last=last,
            x=row_arguments(x),
            u=row_arguments(u),
            X=0 if x is None else x.shape[1],
            x_at=x_at,
            U=0 if u is None else u.shape[1],
            u_at=u_at,
            low=support[0],
            high=support[1],
            whole=support[2],
            memory=(memory.data_ptr(), memory.stride(0)),
            **self._fixed,
        )
        return ran

    def _add(self, *code: int) -> None:
        self._code.append([*code, *[-1] * (8 - len(code))])

    def _order(self, *accesses: Access) -> None:
        """Before an instruction of these: all threads wait where one would meet another."""
        if any(new.hinders(old) for new in accesses for old in self._accesses):
            self._add(WAIT)
            self._accesses = []
        self._accesses += accesses

    def _store(self, numbers: Tensor) -> int:
        start = self._length
        self._weights.append(numbers.detach().to(self.dtype).reshape(-1))
        self._length += numbers.numel()
        return start

    def _packed(self, weight: Tensor) -> Tensor:
        """[N, K] as panels [N / P, K, P], zeros behind N."""
        panel = self._panel // 4 if weight.shape[0] <= self._panel // 4 else self._panel
        rows = -(-weight.shape[0] // panel) * panel
        padded = weight.new_zeros(rows, weight.shape[1])
        padded[: weight.shape[0]] = weight.detach()
        return padded.view(rows // panel, panel, weight.shape[1]).transpose(1, 2).contiguous()
