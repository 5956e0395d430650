"""Updates that are not finite: looked at before the optimizer takes them, named, and stopped or left out."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn

from vssn.training.processes import World


def gradient_norm(model: nn.Module) -> Tensor:
    """Of all gradients together, a scalar."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def what_is_not_finite(model: nn.Module, loss: Tensor | None, norm: Tensor) -> str | None:
    """The first parameter, else the first gradient, else the loss, else the norm of gradients each of which is finite:
    neither clipping nor AdamW makes an update of those. None: all are finite.

    Args:
        loss: of this process; None: it has no sequence of the batch.
        norm: of the gradients, of all processes.
    """
    if bool(norm.isfinite()) and (loss is None or bool(loss.isfinite())):
        return None
    came = "" if loss is None else f", with a loss of {float(loss):.6g}"
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the parameter {name} is not finite{came}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"the gradient of {name} is not finite{came}"
    if loss is not None and not bool(loss.isfinite()):
        return f"the loss is {float(loss)}"
    return f"the norm of the gradients is not finite{came}"


def any_of_all(flag: bool, device: torch.device, world: World) -> bool:
    """Whether it is so in one of the processes."""
    if world.size == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(flags)
    return bool(flags)
