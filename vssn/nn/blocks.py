"""The small networks that the layer and the model are made of. Weights over several inputs are one matrix,
applied input by input: nothing is concatenated.

A network reads its children's weights and runs them as one op where they are plain (`is_plain`). A child with hooks, a
parametrization or another class runs its own forward, and so do the classes here when they are someone's child.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

from vssn_kernels import gaussian_mlp, gru_sequence, mlp, split_linear
from vssn_kernels.activations import ACTIVATIONS, activate

_LOG_2PI = math.log(2 * math.pi)


def floor_logvar(raw: Tensor, min_logvar: float) -> Tensor:
    """min_logvar + softplus(raw - min_logvar): a smooth floor, so that no variance reaches 0."""
    return min_logvar + F.softplus(raw - min_logvar)


def gaussian_halves(out: Tensor, min_logvar: float) -> tuple[Tensor, Tensor]:
    """A network's output [..., 2Z] as the mean and the floored log-variance, each [..., Z]."""
    mu, raw = out.chunk(2, -1)
    return mu, floor_logvar(raw, min_logvar)


def gaussian_log_density(x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(x; mu, exp logvar) of every entry, in nats."""
    return -0.5 * (_LOG_2PI + logvar + (x - mu) ** 2 * torch.exp(-logvar))


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether a call of the module does what `cls.forward` does with its weights, and nothing else.

    Not so with hooks (its own or those of every module; old weight_norm, spectral_norm and pruning are hooks), with a
    parametrization or an adapter (another class), and where its forward was replaced.
    """
    return type(module) is cls and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hooks_of_all._global_forward_hooks
        or hooks_of_all._global_forward_pre_hooks
        or hooks_of_all._global_backward_hooks
        or hooks_of_all._global_backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_plain_linear(module: nn.Module) -> bool:
    """`is_plain` of a torch.nn.Linear; another class to the ops is one without a bias, and one whose weight wraps other
    tensors (a quantised one, a DTensor), which its own F.linear multiplies."""
    own = module._parameters  # empty in a replica of DataParallel, where tensors are attributes
    return (
        is_plain(module, nn.Linear)
        and own.get("bias", own) is not None
        and not hasattr(type(own.get("weight")), "__tensor_flatten__")
    )


def reset(name: str, module: nn.Module) -> None:
    """Draws the module's parameters anew, and those of everything below it, in the order in which they were made.

    Raises:
        TypeError: a module has parameters of its own and no reset_parameters.
    """
    own: Any = getattr(module, "reset_parameters", None)
    if own is not None:
        own()
        return
    if next(module.parameters(recurse=False), None) is not None:
        raise TypeError(f"{name} must have reset_parameters as it has parameters, got {type(module).__name__}")
    for below, child in module.named_children():
        reset(f"{name}.{below}", child)


def reset_children(module: nn.Module) -> None:
    """`reset` of every child in turn."""
    for name, child in module.named_children():
        reset(name, child)


class SplitLinear(nn.Module):
    """A linear map of several inputs: bias + sum_i x_i W_i^T, with weight [out, sum of in_sizes]."""

    def __init__(self, in_sizes: tuple[int, ...], out_size: int, **factory: Any) -> None:
        super().__init__()
        self.in_sizes, self.out_size = tuple(in_sizes), out_size
        self.weight = nn.Parameter(torch.empty(out_size, sum(in_sizes), **factory))
        self.bias = nn.Parameter(torch.empty(out_size, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(max(sum(self.in_sizes), 1))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs [..., in_sizes[i]] to [..., out]; an input of size 0 adds nothing."""
        return split_linear(inputs, self.weight, self.bias)

    def product(self, number: int, x: Tensor) -> Tensor:
        """What one of the inputs adds, [..., in_sizes[number]] to [..., out], the bias not among it."""
        before = sum(self.in_sizes[:number])
        return x @ self.weight[:, before : before + self.in_sizes[number]].T

    def extra_repr(self) -> str:
        return f"in_sizes={self.in_sizes}, out_size={self.out_size}"


class MLP(nn.Module):
    """One hidden layer over several inputs: act(SplitLinear) and a linear output."""

    def __init__(
        self, in_sizes: tuple[int, ...], hidden_size: int, out_size: int, activation: str, **factory: Any
    ) -> None:
        super().__init__()
        self.activation = activation
        self.hidden = SplitLinear(in_sizes, hidden_size, **factory)
        self.out = nn.Linear(hidden_size, out_size, **factory)

    def reset_parameters(self) -> None:
        reset_children(self)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs [..., in_sizes[i]] to [..., out]."""
        if self._is_fused():
            return mlp(inputs, *self._parameters_in_order(), activation=self.activation)
        return self._by_children(inputs)

    def _is_fused(self) -> bool:
        known = self.activation in ACTIVATIONS  # to the op
        return known and is_plain(self.hidden, SplitLinear) and is_plain_linear(self.out)

    def _parameters_in_order(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.hidden.weight, self.hidden.bias, self.out.weight, self.out.bias

    def _by_children(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.out(activate(self.hidden(*inputs), self.activation))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


class GaussianMLP(MLP):
    """An MLP whose output is the mean and the raw log-variance of Z Gaussians."""

    def __init__(
        self,
        in_sizes: tuple[int, ...],
        hidden_size: int,
        latent_size: int,
        activation: str,
        min_logvar: float,
        **factory: Any,
    ) -> None:
        super().__init__(in_sizes, hidden_size, 2 * latent_size, activation, **factory)
        self.min_logvar = min_logvar

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Inputs [..., in_sizes[i]] to the mean and the floored log-variance, each [..., Z]."""
        if self._is_fused():
            weights = self._parameters_in_order()
            return gaussian_mlp(inputs, *weights, activation=self.activation, min_logvar=self.min_logvar)
        return gaussian_halves(self._by_children(inputs), self.min_logvar)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, min_logvar={self.min_logvar}"


class Embedding(nn.Module):
    """act(x W^T + b): the embedding e_x or e_u of a frame."""

    def __init__(self, in_size: int, out_size: int, activation: str, **factory: Any) -> None:
        super().__init__()
        self.activation = activation
        self.linear = nn.Linear(in_size, out_size, **factory)

    def reset_parameters(self) -> None:
        reset_children(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        # What a hook or another class returned may be kept by someone.
        return activate(self.linear(x), self.activation, overwrite=is_plain_linear(self.linear))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


class Recurrence(nn.Module):
    """A GRU over several inputs; recurrent weights start orthogonal, gate by gate."""

    def __init__(self, in_sizes: tuple[int, ...], hidden_size: int, **factory: Any) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = SplitLinear(in_sizes, 3 * hidden_size, **factory)
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden_size, hidden_size, **factory))
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden_size, **factory))
        self._reset_own()

    def _reset_own(self) -> None:
        with torch.no_grad():
            for gate in self.weight_hh.chunk(3):
                wide = gate.to(torch.promote_types(gate.dtype, torch.float32))  # no QR in half precision
                gate.copy_(nn.init.orthogonal_(wide))
            self.bias_hh.zero_()

    def reset_parameters(self) -> None:
        reset_children(self)
        self._reset_own()

    def forward(
        self,
        inputs: tuple[Tensor, ...],
        h0: Tensor,
        *,
        lengths: Tensor | None = None,
        reverse: bool = False,
        weight_noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Inputs [T, B, in_sizes[i]], h0 [B, H] to (output [T, B, H], h_n [B, H]); weight_noise [3H, H] is added to
        weight_hh."""
        return self.run(self.input(*inputs), h0, lengths=lengths, reverse=reverse, weight_noise=weight_noise)

    def run(
        self,
        gates_x: Tensor,
        h0: Tensor,
        *,
        lengths: Tensor | None = None,
        reverse: bool = False,
        weight_noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` behind its input's part: gates_x [T, B, 3H] is `input(*inputs)`."""
        weight = self.weight_hh if weight_noise is None else self.weight_hh + weight_noise
        return gru_sequence(gates_x, h0, weight, self.bias_hh, lengths=lengths, reverse=reverse)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}"


def is_plain_recurrence(recurrence: nn.Module) -> bool:
    """Whether the recurrence's input may be summed from products with parts of its weight, `SplitLinear.product`."""
    return is_plain(recurrence, Recurrence) and is_plain(recurrence.input, SplitLinear)  # type: ignore[arg-type]


class LatentNetwork(nn.Module):
    """(mu, logvar) of z_t given z_{t-1} and some inputs: f of the paper's Eq. 2, and q of its Eq. 4 alike.

    hidden = act(W_z z_{t-1} + W inputs + b), one linear output of 2Z: mean, then raw log-variance.
    """

    def __init__(
        self,
        latent_size: int,
        in_sizes: tuple[int, ...],
        hidden_size: int,
        activation: str,
        min_logvar: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.latent_size, self.activation, self.min_logvar = latent_size, activation, min_logvar
        # One draw of the same range for W_z and W: together they are one matrix over [z, inputs].
        self.context = SplitLinear(in_sizes, hidden_size, **factory) if in_sizes else None
        self.bound = 1 / math.sqrt(latent_size + sum(in_sizes))
        self.weight_z = nn.Parameter(torch.empty(hidden_size, latent_size, **factory))
        self.bias = nn.Parameter(torch.empty(hidden_size, **factory)) if self.context is None else None
        self._reset_own()
        self.out = nn.Linear(hidden_size, 2 * latent_size, **factory)

    def _reset_own(self) -> None:
        nn.init.uniform_(self.weight_z, -self.bound, self.bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        if self.context is not None:
            reset("context", self.context)
        self._reset_own()
        reset("out", self.out)

    def hidden_inputs(self, inputs: tuple[Tensor, ...], like: Tensor) -> Tensor:
        """The part that does not depend on z_{t-1}, for every t: [T, B, M]; `like` [T, B, ·] where no input is."""
        if self.context is not None:
            return self.context(*inputs)
        assert self.bias is not None
        return self.bias.expand(*like.shape[:2], -1)

    def forward(self, z_previous: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """mu, logvar [T, B, Z] for every t from z_{t-1} [T, B, Z] and the inputs [T, B, ·]."""
        fused = is_plain_linear(self.out) and (self.context is None or is_plain(self.context, SplitLinear))
        if not fused:
            return self.from_hidden_inputs(z_previous, self.hidden_inputs(inputs, z_previous))
        weights, bias = [self.weight_z], self.bias
        if self.context is not None:
            own, bias = self.context.weight, self.context.bias
            weights += [own] if len(inputs) == 1 else own.split(self.context.in_sizes, 1)
        assert bias is not None
        return gaussian_mlp(
            (z_previous, *inputs),
            weights,
            bias,
            self.out.weight,
            self.out.bias,
            activation=self.activation,
            min_logvar=self.min_logvar,
        )

    def from_hidden_inputs(self, z_previous: Tensor, hidden_inputs: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` behind its inputs' part: hidden_inputs [T, B, M] are `hidden_inputs(inputs, ·)`."""
        rows = torch.addmm(
            hidden_inputs.reshape(-1, hidden_inputs.shape[-1]),
            z_previous.reshape(-1, z_previous.shape[-1]),
            self.weight_z.T,
        )
        hidden = activate(rows, self.activation, overwrite=True).view(*z_previous.shape[:-1], rows.shape[-1])
        return gaussian_halves(self.out(hidden), self.min_logvar)

    def extra_repr(self) -> str:
        return f"latent_size={self.latent_size}, activation={self.activation!r}, min_logvar={self.min_logvar}"


def is_plain_latent(network: nn.Module) -> bool:
    """Whether `from_hidden_inputs` and the weights behind it stand for a call of the network; its parts are called."""
    return is_plain(network, LatentNetwork) and is_plain_linear(network.out)  # type: ignore[arg-type]
