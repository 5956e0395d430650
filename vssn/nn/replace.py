"""replace_gru: the fused GRU in an existing model, and back."""

from __future__ import annotations

import warnings

from torch import nn

from vssn.nn.gru import GRU, TorchGRU
from vssn_kernels.arguments import shown

_KINDS = (nn.GRU, GRU, TorchGRU)


def replace_gru(model: nn.Module, to: type[nn.RNNBase] = GRU) -> int:
    """Turns every torch.nn.GRU of a model into a vssn.GRU, in place.

    Each module stays the object it is and changes its class alone. So parameters, hooks, buffers, training mode and
    requires_grad are what they were, optimisers and shared references still hold, and a model that is an nn.GRU
    itself is turned too. Left alone, with one warning that names them: subclasses of nn.GRU (a parametrised GRU is
    one), whose own code would be lost, a forward set on the module itself, and a proj_size. Call it before
    torch.compile and torch.jit.script: what is scripted is no nn.GRU any more, and not counted.

    Args:
        model: any module.
        to: vssn.GRU; vssn.TorchGRU, where the model's code asks isinstance(m, nn.GRU); or torch.nn.GRU, which turns
            those of vssn back for what knows the class by its name, as quantize_dynamic and torch.jit.script do.

    Returns:
        How many modules were turned; one that is used in several places counts once.

    Raises:
        TypeError: model is no module, or `to` none of the three.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(to, type) or to not in _KINDS:
        raise TypeError(f"to must be vssn.GRU, vssn.TorchGRU or torch.nn.GRU, got {shown(to)}")
    count, left = 0, []
    for name, module in model.named_modules():
        if type(module) is to or not isinstance(module, (nn.GRU, GRU)):
            continue
        why = _why_not(module)
        if not why:
            # nn.GRU keeps a list of its weights where ours computes one.
            vars(module).pop("_flat_weights", None)
            module.__class__ = to
            module._init_flat_weights()
            count += 1
        elif not isinstance(module, GRU) or to is nn.GRU:  # a subclass of ours is fused already
            left.append(f"{name or 'the model itself'} ({why})")
    if left:
        warnings.warn(f"replace_gru left as it was: {', '.join(left)}", stacklevel=2)
    return count


def _why_not(module: nn.RNNBase) -> str:
    if type(module) not in _KINDS:
        return f"its class {type(module).__name__} has code of its own"
    if "forward" in vars(module):
        return "its forward was replaced"
    return "it has a proj_size" if module.proj_size else ""
