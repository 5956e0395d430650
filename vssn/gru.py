"""GRU: torch.nn.GRU on the fused op: the same parameters, state_dict, returns and PackedSequence, plus lengths."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from vssn.checks import require_shape
from vssn.sequences import valid_steps, zero_padding
from vssn_kernels import gru_sequence


class GRU(nn.Module):
    """torch.nn.GRU with the fused recurrence: a one-word replacement.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, bidirectional: as in torch.nn.GRU.
        dropout: on the output of every layer but the last, while training.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {size!r}")
        for name, flag in (("bias", bias), ("batch_first", batch_first), ("bidirectional", bidirectional)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be True or False, got {flag!r}; dropout is given by its name")
        if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout must lie in [0, 1], got {dropout!r}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional, self.dropout = bias, batch_first, bidirectional, dropout
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * directions
            for suffix in self._suffixes(layer):
                shapes = {
                    f"weight_ih_{suffix}": (3 * hidden_size, width),
                    f"weight_hh_{suffix}": (3 * hidden_size, hidden_size),
                    f"bias_ih_{suffix}": (3 * hidden_size,),
                    f"bias_hh_{suffix}": (3 * hidden_size,),
                }
                for name, shape in shapes.items():
                    if bias or not name.startswith("bias"):
                        setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def _suffixes(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"] if self.bidirectional else [f"l{layer}"]

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing to do: each weight is used where it lies. Here because code written for torch.nn.GRU calls it."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs all layers.

        Args:
            input: [T, B, input_size] ([B, T, ·] with batch_first; [T, input_size] unbatched) or a PackedSequence.
            hx: [num_layers * directions, B, H] ([·, H] unbatched); None: zeros.
            lengths: [B] int64, each in [0, T]: steps beyond are padding, the output there is 0.

        Returns:
            output [T, B, H * directions] (packed where the input was), h_n [num_layers * directions, B, H].
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths)
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a torch.Tensor or PackedSequence, got {type(input).__name__}")
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input must be [T, B, {self.input_size}] or [T, {self.input_size}], got {list(input.shape)}"
            )
        if input.dim() == 2:
            if lengths is not None:
                raise ValueError("lengths must be None for an unbatched input [T, X]")
            output, h_n = self._run(input[:, None], hx[:, None] if isinstance(hx, Tensor) else hx, None)
            return output[:, 0], h_n[:, 0]
        output, h_n = self._run(input.transpose(0, 1) if self.batch_first else input, hx, lengths)
        return (output.transpose(0, 1) if self.batch_first else output), h_n

    def _forward_packed(
        self, packed: PackedSequence, hx: Tensor | None, lengths: Tensor | None
    ) -> tuple[PackedSequence, Tensor]:
        if lengths is not None:
            raise ValueError("lengths must be None for a PackedSequence: it carries its own")
        x, own = pad_packed_sequence(packed)  # in the caller's order, as hx is
        output, h_n = self._run(x, hx, own.to(x.device))
        order = packed.sorted_indices
        if order is None:
            return pack_padded_sequence(output, own), h_n
        repacked = pack_padded_sequence(output[:, order], own[order.cpu()])
        return PackedSequence(repacked.data, packed.batch_sizes, order, packed.unsorted_indices), h_n

    def _run(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Time-major: x [T, B, X] to (output [T, B, H * directions], h_n [num_layers * directions, B, H])."""
        batch, directions = x.shape[1], 2 if self.bidirectional else 1
        expected = (self.num_layers * directions, batch, self.hidden_size)
        if hx is None:
            hx = x.new_zeros(expected)
        else:
            require_shape("hx", hx, "[num_layers * directions, B, H]", expected)
        # Also outside the op: 0 * NaN in the gradient of weight_ih would be NaN.
        x = zero_padding(x, valid_steps(lengths, x))
        last_states = []
        for layer in range(self.num_layers):
            outputs = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                weight_hh = getattr(self, f"weight_hh_{suffix}")
                gates_x = F.linear(x, getattr(self, f"weight_ih_{suffix}"), getattr(self, f"bias_ih_{suffix}", None))
                bias_hh = getattr(self, f"bias_hh_{suffix}") if self.bias else weight_hh.new_zeros(len(weight_hh))
                h0 = hx[layer * directions + direction]
                output, h_n = gru_sequence(gates_x, h0, weight_hh, bias_hh, lengths=lengths, reverse=direction == 1)
                outputs.append(output)
                last_states.append(h_n)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, torch.stack(last_states)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bias={self.bias}"
        return f"{text}, batch_first={self.batch_first}, bidirectional={self.bidirectional}, dropout={self.dropout}"
