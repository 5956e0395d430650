"""GRU: torch.nn.GRU on the fused op: the same parameters, state_dict, returns and PackedSequence, plus lengths."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from vssn.utils.checks import require_place, require_tensor
from vssn.utils.numbers import LARGEST_SIZE
from vssn.utils.packing import pack, packing, unpack
from vssn.utils.sequences import valid_steps, zero_padding
from vssn_kernels import gru_packed, gru_sequence, split_linear
from vssn_kernels.arguments import dense_instead, is_dense, shown
from vssn_kernels.ops.fast_path import is_plain
from vssn_kernels.ops.gru_layer import gru_layer, gru_layer_step
from vssn_kernels.ops.registration import autocast_dtype, autocast_is_on
from vssn_kernels.ops.torch_internals import is_plain_call


class GRU(nn.RNNBase):
    """torch.nn.GRU with the fused recurrence: a one-word replacement.

    A subclass of nn.RNNBase, so all that code reads of an nn.GRU is there (`all_weights`, `_flat_weights`, `mode`,
    `check_forward_args`, ...), but not of nn.GRU, which torch.compile(fullgraph=True) refuses by its type. For code
    that asks isinstance(m, nn.GRU) there is `vssn.TorchGRU`; `vssn.replace_gru` swaps those of a whole model.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, bidirectional: as in torch.nn.GRU; a size may be an
            integer of NumPy.
        dropout: in [0, 1], on the output of every layer but the last, while training.
        device, dtype: of the parameters.
        proj_size: refused, as by torch.nn.GRU.

    Raises:
        ValueError, TypeError: naming the argument, in the words of torch.nn.GRU, and what came.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: None = None,
    ) -> None:
        if proj_size is not None:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real) or not 0 <= dropout <= 1:
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed, "
                f"got {shown(dropout)}"
            )
        for name, flag in (("bias", bias), ("batch_first", batch_first), ("bidirectional", bidirectional)):
            # torch.nn.GRU takes whatever has a truth value as bidirectional, 1 and a bool of NumPy among it.
            has_truth = isinstance(flag, numbers.Integral | np.bool_) and flag in (0, 1)
            if not isinstance(flag, bool) and not (name == "bidirectional" and has_truth):
                raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__} {shown(flag)}")
        require_place(device, dtype)
        nn.RNNBase.__init__(
            self,
            "GRU",
            _size("input_size", input_size),
            _size("hidden_size", hidden_size),
            _size("num_layers", num_layers),
            bias,
            batch_first,
            float(dropout),
            bool(bidirectional),
            device=device,
            dtype=dtype,
        )

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        # nn.RNNBase keeps a list of its own, which falls behind where a weight is parametrised, pruned or swapped.
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        for name, weight in zip(self._flat_weights_names, weights, strict=True):
            if weight is not getattr(self, name, None):
                setattr(self, name, weight)

    def flatten_parameters(self) -> None:
        """Nothing to do: each weight is used where it lies. Here because code written for torch.nn.GRU calls it."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs all layers.

        Args:
            input: [T, B, input_size] ([B, T, ·] with batch_first; [T, input_size] unbatched) or a PackedSequence, in
                the dtype of the weights (under autocast any floating dtype but float64).
            hx: [num_layers * directions, B, H] ([·, H] unbatched), in the dtype of input; None: zeros.
            lengths: [B] int64, each in [0, T]: steps beyond are padding, the output there is 0. On the CPU a batch of
                which half or more is padding is computed without it, as a PackedSequence is: to rounding, the same
                numbers (but for the dropout drawn).

        Returns:
            output [T, B, H * directions] (packed where the input was), h_n [num_layers * directions, B, H], in the
            dtype of input; under autocast in that which torch.nn.GRU gives. Both may be changed in place before
            backward on the CPU.

        Raises:
            RuntimeError, ValueError: as torch.nn.GRU, for an input or hx of another shape, dtype or device.
            TypeError: what is no tensor.
        """
        own: dict[str, Any] = self._parameters  # of weights neither parametrised nor pruned; faster than attributes
        weights = [[own[name] if name in own else getattr(self, name) for name in names] for names in self._all_weights]
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, weights)
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a torch.Tensor or PackedSequence, got {type(input).__name__}")
        if not is_dense(input):
            raise TypeError(f"input must be {dense_instead(input)}")
        if input.dim() not in (2, 3):
            raise ValueError(
                f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead: "
                f"it must be {self._form()}, got {list(input.shape)}"
            )
        self._check_input(input, weights[0][0])
        if input.dim() == 2:
            if lengths is not None:
                raise ValueError("lengths must be None for an unbatched input [T, X]")
            self._check_state(hx, input, (self._states(), self.hidden_size), "[num_layers * directions, H]")
            output, h_n = self._run(input[:, None], None if hx is None else hx[:, None], None, weights)
            return output[:, 0], h_n[:, 0]
        x = input.transpose(0, 1) if self.batch_first else input
        self._check_batched_state(hx, input, x.shape[1])
        _check_lengths(lengths, x)
        output, h_n = self._run(x, hx, lengths, weights)
        return (output.transpose(0, 1) if self.batch_first else output), h_n

    def _forward_packed(
        self, packed: PackedSequence, hx: Tensor | None, lengths: Tensor | None, weights: list[list[nn.Parameter]]
    ) -> tuple[PackedSequence, Tensor]:
        if lengths is not None:
            raise ValueError("lengths must be None for a PackedSequence: it carries its own")
        for name in ("data", "batch_sizes"):
            require_tensor(f"input.{name}", getattr(packed, name))
        if packed.batch_sizes.dim() != 1 or not len(packed.batch_sizes):
            raise ValueError(f"input.batch_sizes must have shape [T], T >= 1, got {list(packed.batch_sizes.shape)}")
        if packed.data.dim() != 2:
            raise RuntimeError(
                f"input must have 2 dimensions, got {packed.data.dim()}: the data of a PackedSequence must be "
                f"[steps, {self.input_size}], got {list(packed.data.shape)}"
            )
        self._check_input(packed.data, weights[0][0], packed=True)
        batch = int(packed.batch_sizes[0])
        self._check_batched_state(hx, packed.data, batch)
        order, back = packed.sorted_indices, packed.unsorted_indices
        if packed.data.device.type == "cpu":
            hx = hx if hx is None or order is None else hx.index_select(1, order)
            options = {"batch_sizes": packed.batch_sizes}
            data, h_n = self._run_layers(packed.data, hx, batch, weights, options)
            h_n = h_n if back is None else h_n.index_select(1, back)
            return PackedSequence(data, packed.batch_sizes, order, back), h_n
        x, own = pad_packed_sequence(packed)  # in the caller's order, as hx is
        output, h_n = self._run(x, hx, own.to(x.device), weights)
        if order is None:
            return pack_padded_sequence(output, own), h_n
        repacked = pack_padded_sequence(output[:, order], own[order.cpu()])
        return PackedSequence(repacked.data, packed.batch_sizes, order, back), h_n

    def _run(
        self, x: Tensor, hx: Tensor | None, lengths: Tensor | None, weights: list[list[nn.Parameter]]
    ) -> tuple[Tensor, Tensor]:
        """Time-major: x [T, B, X] to (output [T, B, H * directions], h_n [num_layers * directions, B, H])."""
        batch = x.shape[1]
        if isinstance(lengths, Tensor) and _packing_pays(x, lengths, self.hidden_size):
            of = packing(lengths)
            options = {"batch_sizes": of.batch_sizes}
            hx = None if hx is None else hx.index_select(1, of.order)
            output, h_n = self._run_layers(pack(x, of), hx, batch, weights, options)
            return unpack(output, of, x.shape[0]), h_n.index_select(1, of.place)
        if lengths is None and torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export():
            return self._run_for_onnx(x, hx)
        # Also outside the op: 0 * NaN in the gradient of weight_ih would be NaN.
        x = zero_padding(x, valid_steps(lengths, x))
        one_step = lengths is None and x.shape[0] == 1
        return self._run_layers(x, hx, batch, weights, {"lengths": lengths}, one_step)

    def _run_for_onnx(self, x: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        """`_run` as torch.nn.GRU's op, which ONNX has a node for."""
        start = x.new_zeros(self._states(), x.shape[1], self.hidden_size) if hx is None else hx
        weights: Any = self._flat_weights
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional, False)
        return torch.gru(x, start, weights, *options)

    def _run_layers(
        self,
        x: Tensor,
        hx: Tensor | None,
        batch: int,
        weights: list[list[nn.Parameter]],
        options: dict[str, Any],
        one_step: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """All layers and directions on x [T, B, X] or packed [N, X]; options: what the
        recurrence is given beside them, batch_sizes or lengths; `one_step`: [1, B, X], all valid."""
        given = x if hx is None else hx
        directions = 2 if self.bidirectional else 1
        dropout = self.dropout if self.training else 0.0
        recurrence: Any = gru_packed if "batch_sizes" in options else gru_sequence
        last_states = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                number = layer * directions + direction
                weight_ih, weight_hh, *biases = weights[number]
                bias_ih, bias_hh = biases if self.bias else (None, weight_hh.new_zeros(len(weight_hh)))
                h0 = given.new_zeros(batch, self.hidden_size) if hx is None else given[number]
                reverse, given_weights = direction == 1, (weight_ih, weight_hh, bias_ih, bias_hh)
                if one_step:
                    done = gru_layer_step(x, h0, *given_weights)
                else:
                    done = gru_layer(x, h0, *given_weights, reverse=reverse, **options)
                if done is None:
                    gates_x = _project(x, weight_ih, bias_ih)
                    done = recurrence(gates_x, h0, weight_hh, bias_hh, reverse=reverse, **options)
                output, h_n = done
                outputs.append(output)
                last_states.append(h_n)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if dropout and layer < self.num_layers - 1:
                x = F.dropout(x, dropout)
        h_n = torch.stack(last_states) if len(last_states) > 1 else last_states[0].unsqueeze(0)
        if autocast_is_on(x.device):
            dtype = _autocast_result(given)
            return x.to(dtype), h_n.to(dtype)
        return x, h_n

    def _states(self) -> int:
        return self.num_layers * (2 if self.bidirectional else 1)

    # ---- Checks, as torch.nn.GRU's but of what the caller gave -------------------------------------------

    def _form(self) -> str:
        return f"[{'B, T' if self.batch_first else 'T, B'}, {self.input_size}] or [T, {self.input_size}]"

    def _check_input(self, input: Tensor, weight: Tensor, packed: bool = False) -> None:
        if input.shape[-1] != self.input_size:
            name, form = ("input.data", f"[steps, {self.input_size}]") if packed else ("input", self._form())
            raise RuntimeError(
                f"{name}.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}: "
                f"{name} must be {form}, got {list(input.shape)}"
            )
        if input.dtype != weight.dtype and not _autocast_joins(input, weight):
            convert_model = f", or convert model: model.to({input.dtype})" if input.is_floating_point() else ""
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}){convert_model}"
            )
        if input.device != weight.device:
            raise RuntimeError(
                f"input must be on {weight.device} as the weights are, got {input.device}: move it with "
                f"input.to({str(weight.device)!r}), or the model with model.to({str(input.device)!r})"
            )

    def _check_batched_state(self, hx: Tensor | None, input: Tensor, batch: int) -> None:
        self._check_state(hx, input, (self._states(), batch, self.hidden_size), "[num_layers * directions, B, H]")

    def _check_state(self, hx: Tensor | None, input: Tensor, expected: tuple[int, ...], letters: str) -> None:
        if hx is None:
            return
        if not isinstance(hx, Tensor):
            no_cell = "; a GRU has no cell state beside h_0" if isinstance(hx, tuple) else ""
            raise TypeError(f"hx must be a torch.Tensor, got {type(hx).__name__}{no_cell}")
        if not is_dense(hx):
            raise TypeError(f"hx must be {dense_instead(hx)}")
        if tuple(hx.shape) != expected:
            if hx.dim() != len(expected):
                batched = "batched 3-D" if len(expected) == 3 else "unbatched 2-D"
                raise RuntimeError(
                    f"For {batched} input, hx should also be {len(expected)}-D but got {hx.dim()}-D tensor: "
                    f"hx must be {letters} = {list(expected)}, got {list(hx.shape)}"
                )
            raise RuntimeError(f"Expected hidden size {expected}, got {list(hx.shape)}: hx must be {letters}")
        if hx.dtype != input.dtype and not _autocast_joins(hx, input) and not _float_beside_half(hx, input):
            raise RuntimeError(
                f"hx dtype ({hx.dtype}) does not match input dtype ({input.dtype}). Convert hx: hx.to({input.dtype})"
            )
        if hx.device != input.device:
            raise RuntimeError(
                f"hx must be on {input.device} as input is, got {hx.device}: move it with hx.to({str(input.device)!r})"
            )


def _size(name: str, value: Any) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__} {shown(value)}")
    size = int(value)
    if size <= 0:
        raise ValueError(f"{name} must be greater than zero, got {size}")
    if size > LARGEST_SIZE:
        raise ValueError(f"{name} must be at most {LARGEST_SIZE}, got {shown(size)}")
    return size


def _check_lengths(lengths: Tensor | None, x: Tensor) -> None:
    if isinstance(lengths, Tensor):  # what is none, and a wrong shape, valid_steps names; the op looks at the values
        if lengths.dtype != torch.int64:
            raise TypeError(f"lengths must be int64, got {lengths.dtype}; convert it with lengths.long()")
        if lengths.device != x.device:
            raise ValueError(
                f"lengths must be on {x.device} as input is, got {lengths.device}: "
                f"move it with lengths.to({str(x.device)!r})"
            )


_ENTRIES_SAVED = 1 << 15  # of padding, times H, that are worth the packing


def _packing_pays(x: Tensor, lengths: Tensor, hidden_size: int) -> bool:
    """Whether a padded batch runs packed: at most half of its T B steps are valid, and it is not small. Only where it
    costs no synchronisation and the call may read values; others refuse lengths of a wrong shape or out of range."""
    # First, whether anything may be asked: sizes that a compiled graph compares are guarded.
    if x.device.type != "cpu" or not (is_plain_call() and is_plain(x) and is_plain(lengths)):
        return False
    steps, batch = x.shape[:2]
    if lengths.shape != (batch,) or steps * batch * hidden_size < _ENTRIES_SAVED:
        return False
    low, high = torch.aminmax(lengths)
    valid = int(lengths.sum())
    return (
        int(low) >= 0
        and int(high) <= steps
        and 2 * valid <= steps * batch
        and (steps * batch - valid) * hidden_size >= _ENTRIES_SAVED
    )


def _autocast_joins(one: Tensor, other: Tensor) -> bool:
    """Whether two dtypes meet under autocast, which leaves float64 and integers alone."""
    return autocast_is_on(one.device) and all(
        tensor.is_floating_point() and tensor.dtype != torch.float64 for tensor in (one, other)
    )


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b. In bfloat16 on the CPU by our own kernel: that of PyTorch takes three times as long as in float32 on a
    processor without instructions for it."""
    casts = autocast_is_on(x.device) and x.dtype != torch.float64
    if x.device.type == "cpu" and (autocast_dtype(x.device) if casts else x.dtype) == torch.bfloat16:
        return split_linear([x], weight, weight.new_zeros(len(weight)) if bias is None else bias)
    return F.linear(x, weight, bias)


def _float_beside_half(hx: Tensor, input: Tensor) -> bool:
    return hx.dtype == torch.float32 and input.dtype in (torch.float16, torch.bfloat16)


def _autocast_result(hx: Tensor) -> torch.dtype:
    """The dtype of torch.nn.GRU's results under autocast: the autocast dtype, with the state's on the CPU."""
    dtype = torch.get_autocast_dtype(hx.device.type)
    if hx.device.type == "cpu" or hx.dtype == torch.float64:
        return torch.promote_types(dtype, hx.dtype)
    return dtype


class TorchGRU(GRU, nn.GRU):  # type: ignore[misc]  # nn.GRU's forward has no lengths
    """vssn.GRU for code that asks isinstance(m, nn.GRU) to initialise, quantise, pack or derive; else the same.

    torch.compile does not trace what is an nn.GRU: it breaks the graph there and runs this module as it is, and
    fullgraph=True is refused. Take vssn.GRU where the type is not asked for.
    """
