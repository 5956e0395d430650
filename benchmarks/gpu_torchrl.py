"""TorchRL's Triton recurrences beside ours, at its own size (B=16, T=64, H=512), where torchrl is installed.

Its GRU computes what torch.nn.GRU does: results are compared. Its block GRU, of DreamerV3, is another cell (a
projection with a norm, block-diagonal weights, a gate for each unit): only its time a step stands beside ours.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_contest import Outputs

STEPS, BATCH, HIDDEN = 64, 16, 512
PRECISION = {"float32": "ieee", "tf32": "tf32", "bfloat16": "ieee"}  # of bfloat16 operands it is ignored


def imported(module: str) -> Any:
    """A module of torchrl, or a text that says why not."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        return f"absent: {error}; install it with: pip install torchrl"


def gru(compute: str, batch: int, steps: int, device: str) -> Callable[..., Outputs] | str:
    """Of x [T, B, H], h0 [B, H] and torch.nn.GRU's four weights in float32: output, h_n. `compute`: of its products."""
    found = imported("torchrl.modules.tensordict_module._rnn_triton")
    if isinstance(found, str):
        return found
    never = torch.zeros(batch, steps, dtype=torch.bool, device=device)
    call = functools.partial(
        found.gru_triton,
        compute_dtype=torch.bfloat16 if compute == "bfloat16" else torch.float32,
        input_precision=PRECISION[compute],
    )

    def function(x: Tensor, h0: Tensor, *weights: Tensor) -> Outputs:
        output, h_n = call(x.transpose(0, 1), h0[:, None].expand(-1, steps, -1), *weights, never)
        return output.transpose(0, 1), h_n

    return function


def block_gru(
    hidden: int, batch: int, steps: int, device: str
) -> tuple[Callable[..., Outputs], tuple[Tensor, ...]] | str:
    """DreamerV3's block GRU with H inputs and TorchRL's own defaults beside; float32.

    The function, and its tensors: x [B, T, H], h0 [B, H] and all weights, for their gradients."""
    found = imported("torchrl.modules.models.model_based")
    if isinstance(found, str) or not hasattr(found, "DreamerV3BlockGRU"):
        return found if isinstance(found, str) else "absent: this torchrl has no DreamerV3BlockGRU"
    net = found.DreamerV3BlockGRU(hidden, hidden, recurrent_backend="triton", device=device)
    names, weights = zip(*net.named_parameters(), strict=True)
    x = torch.randn(batch, steps, hidden, device=device, requires_grad=True)
    h0 = torch.randn(batch, hidden, device=device, requires_grad=True)

    def function(x: Tensor, h0: Tensor, *weights: Tensor) -> Outputs:
        output, h_n = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x, h0))
        return output, h_n

    return function, (x, h0, *weights)
