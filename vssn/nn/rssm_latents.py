"""What z of an RSSM may be: Gaussian, or groups of classes, each one-hot, with straight-through gradients and a share
of the uniform distribution mixed in (Hafner et al. 2021, 2023).

Parameters of a distribution are tuples: (mean, log-variance), or (log-probabilities,) of all classes of all groups.
Noise is standard normal for both: of classes, Phi(eps) is the uniform number of a Gumbel draw, and eps = 0 picks the
likeliest class.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vssn.nn.blocks import MLP, gaussian_log_density
from vssn.nn.interleaved import InterleavedChain
from vssn.utils.sequences import valid_steps, zero_padding
from vssn_kernels import gaussian_kl, gaussian_mlp
from vssn_kernels.activations import activate
from vssn_kernels.reference.interleaved import log_variance

Parameters = tuple[Tensor, ...]


class Gaussians:
    """Z Gaussians."""

    names = ("mean", "std")

    def draw(self, parameters: Parameters, eps: Tensor) -> Tensor:
        mu, logvar = parameters
        return mu + torch.exp(logvar / 2) * eps

    def kl(self, q: Parameters, p: Parameters) -> Tensor:
        """KL(q || p) [T, B] of [T, B, Z]."""
        return gaussian_kl(*q, *p)

    def log_ratio(self, z: Tensor, q: Parameters, p: Parameters) -> Tensor:
        """log p(z) - log q(z) [...] of [..., Z]."""
        (mu, logvar), (prior_mu, prior_logvar) = q, p
        own, other = ((z - m).square() * torch.exp(-v) + v for m, v in ((mu, logvar), (prior_mu, prior_logvar)))
        return (own - other).sum(-1) / 2

    def log_density(self, z: Tensor, parameters: Parameters) -> Tensor:
        """log p(z) [...] of [..., Z]."""
        return gaussian_log_density(z, *parameters).sum(-1)

    def shown(self, parameters: Parameters) -> Parameters:
        """As a state has them."""
        return parameters[0], torch.exp(parameters[1] / 2)

    def of_shown(self, shown: Parameters) -> Parameters:
        return shown[0], 2 * torch.log(shown[1])


class Classes:
    """Groups of so many classes, Z in all."""

    names = ("logits",)

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def grouped(self, parts: Tensor) -> Tensor:
        """[..., Z] to [..., groups, classes]."""
        return parts.unflatten(-1, (-1, self.classes))

    def draw(self, parameters: Parameters, eps: Tensor) -> Tensor:
        log_probs = self.grouped(parameters[0])
        gumbel = -torch.log(
            -torch.special.log_ndtr(self.grouped(eps).to(torch.promote_types(eps.dtype, torch.float32)))
        )
        chosen = F.one_hot((log_probs + gumbel).argmax(-1), self.classes).to(log_probs.dtype)
        probs = log_probs.exp()
        return (chosen + (probs - probs.detach())).flatten(-2)

    def kl(self, q: Parameters, p: Parameters) -> Tensor:
        """KL(q || p) [T, B] of [T, B, Z], the sum over the groups."""
        return (q[0].exp() * (q[0] - p[0])).sum(-1)

    def log_ratio(self, z: Tensor, q: Parameters, p: Parameters) -> Tensor:
        """log p(z) - log q(z) [...] of [..., Z]."""
        return (z.detach() * (p[0] - q[0])).sum(-1)

    def log_density(self, z: Tensor, parameters: Parameters) -> Tensor:
        """log p(z) [...] of [..., Z]."""
        return (z.detach() * parameters[0]).sum(-1)

    def shown(self, parameters: Parameters) -> Parameters:
        return parameters

    def of_shown(self, shown: Parameters) -> Parameters:
        return shown


def log_probabilities(raw: Tensor, classes: int, unimix: float) -> Tensor:
    """Of every class in its group, [..., Z] of what a network returned, unimix of the uniform distribution among it."""
    grouped = torch.log_softmax(raw.unflatten(-1, (-1, classes)), -1)
    if unimix:
        uniform = torch.full_like(grouped[..., :1], math.log(unimix / classes))
        grouped = torch.logaddexp(grouped + math.log1p(-unimix), uniform)
    return grouped.flatten(-2)


class GaussianOfScale(MLP):
    """An MLP whose output is the mean and the raw scale of Z Gaussians, read as `scale` says.

    Args:
        scale: "logvar": logvar = min_logvar + softplus(raw - min_logvar); "softplus": std = softplus(raw) + min_std.
    """

    def __init__(
        self,
        in_sizes: tuple[int, ...],
        hidden_size: int,
        latent_size: int,
        activation: str,
        scale: str,
        min_logvar: float,
        min_std: float,
        **factory: Any,
    ) -> None:
        super().__init__(in_sizes, hidden_size, 2 * latent_size, activation, **factory)
        self.scale, self.min_logvar, self.min_std = scale, min_logvar, min_std

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Inputs [..., in_sizes[i]] to the mean and the log-variance, each [..., Z]."""
        if self.scale == "logvar" and self._is_fused():
            weights = self._parameters_in_order()
            return gaussian_mlp(inputs, *weights, activation=self.activation, min_logvar=self.min_logvar)
        return self.read(MLP.forward(self, *inputs))

    def read(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log-variance [..., Z] of what the second layer gives, [..., 2Z]."""
        mu, raw_scale = raw.chunk(2, -1)
        return mu, log_variance(raw_scale, self.scale, self.min_logvar, self.min_std)

    def extra_repr(self) -> str:
        floor = f"min_std={self.min_std}" if self.scale == "softplus" else f"min_logvar={self.min_logvar}"
        return f"{super().extra_repr()}, scale={self.scale!r}, {floor}"


class ClassesMLP(MLP):
    """An MLP whose output is the log-probabilities of groups of classes."""

    def __init__(
        self,
        in_sizes: tuple[int, ...],
        hidden_size: int,
        latent_size: int,
        activation: str,
        classes: int,
        unimix: float,
        **factory: Any,
    ) -> None:
        super().__init__(in_sizes, hidden_size, latent_size, activation, **factory)
        self.classes, self.unimix = classes, unimix

    def forward(self, *inputs: Tensor) -> Parameters:  # type: ignore[override]
        """Inputs [..., in_sizes[i]] to (log-probabilities [..., Z],)."""
        return self.read(MLP.forward(self, *inputs))

    def read(self, raw: Tensor) -> Parameters:
        """(log-probabilities [..., Z],) of what the second layer gives, [..., Z]."""
        return (log_probabilities(raw, self.classes, self.unimix),)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, classes={self.classes}, unimix={self.unimix}"


class ClassesChain(InterleavedChain):
    """The chain with latents of classes, step by step: `interleaved_sequence` samples Gaussians alone.

    Args:
        classes: of a group; latent_size is a multiple of it.
        unimix: share of the uniform distribution in every group.
        The rest as in `InterleavedChain`, but for what is Gaussian.
    """

    outputs = 1

    def __init__(
        self,
        hidden_size: int,
        latent_size: int,
        embed_size: int,
        mlp_size: int,
        *,
        classes: int,
        unimix: float,
        **options: Any,
    ) -> None:
        super().__init__(hidden_size, latent_size, embed_size, mlp_size, **options)
        self.classes, self.unimix = classes, unimix

    def forward(  # type: ignore[override]
        self,
        gates_x: Tensor,
        embed_context: Tensor,
        context: Tensor,
        h0: Tensor,
        z0: Tensor,
        eps: Tensor,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_h: Tensor | None = None,
        reset_z: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h [T, B, H], z and log-probabilities [T, B, Z], zeros at padding. Arguments as in `InterleavedChain`."""
        latent, valid = Classes(self.classes), valid_steps(lengths, context)
        gates_x, embed_context, context, eps = (
            zero_padding(part, valid) for part in (gates_x, embed_context, context, eps)
        )
        h, z, found = h0.to(context.dtype), z0.to(context.dtype), []
        h_anew, z_anew = h if reset_h is None else reset_h, z if reset_z is None else reset_z
        for t in range(len(context)):
            if resets is not None:
                h, z = (torch.where(resets[t, :, None], new, old) for new, old in ((h_anew, h), (z_anew, z)))
            if valid is not None:  # a NaN that is carried over padding: no gradient
                h, z = (torch.where(valid[t, :, None], state, 0.0) for state in (h, z))
            h = self.step(gates_x[t], embed_context[t], h, z)
            parameters = self.posterior(context[t], h)
            z = latent.draw(parameters, eps[t]).to(h.dtype)
            found.append((h, z, parameters[0]))
        if not found:
            return context.new_empty(0, *h.shape), context.new_empty(0, *z.shape), context.new_empty(0, *z.shape)
        h, z, log_probs = (zero_padding(torch.stack(part), valid) for part in zip(*found, strict=True))
        return h, z, log_probs

    def posterior(self, context: Tensor, h: Tensor) -> Parameters:  # type: ignore[override]
        """(log-probabilities [..., Z],) of q(z_t | context_t, h_t), from context [..., M] and h [..., H]."""
        hidden = activate(context + h @ self.weight_h.T, self.activation)
        raw = F.linear(hidden, self.weight_out, self.bias_out)
        return (log_probabilities(raw, self.classes, self.unimix),)

    def extra_repr(self) -> str:
        return (
            f"H={self.hidden_size}, Z={self.latent_size}, E={self.embed_size}, M={self.mlp_size}, "
            f"classes={self.classes}, unimix={self.unimix}, activation={self.activation!r}"
        )
