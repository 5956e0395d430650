"""The states of an RSSM as a world model's code has them, and the KL divergence that it trains on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vssn.nn.rssm_latents import Classes, Gaussians, Parameters
from vssn.utils.checks import (
    require_device,
    require_flag,
    require_like,
    require_number,
    require_parts,
    require_shape,
    require_tensor,
)


class RSSMState(NamedTuple):
    """Of the steps of a sequence, [T, B, ·], or of one, [B, ·]."""

    mean: Tensor  # [T, B, Z] of the Gaussian that stoch is drawn from
    std: Tensor  # [T, B, Z]
    stoch: Tensor  # [T, B, Z] z
    deter: Tensor  # [T, B, H] h

    @property
    def features(self) -> Tensor:
        """[T, B, Z+H]: stoch, then deter; what decoders, rewards and policies take."""
        return torch.cat((self.stoch, self.deter), -1)

    def at(self, step: int) -> RSSMState:
        """The states [B, ·] of one step, the last with -1: for `observe` to go on from, and for `imagine`."""
        return RSSMState(*(part[step] for part in self))

    def flat(self) -> RSSMState:
        """[T B, ·]: every step of every sequence as a row, to imagine from each of them."""
        return RSSMState(*(part.flatten(0, -2) for part in self))

    def detach(self) -> RSSMState:
        """The same without gradients."""
        return RSSMState(*(part.detach() for part in self))


class ClassesState(NamedTuple):
    """`RSSMState` of latents of classes."""

    logits: Tensor  # [T, B, Z] log-probabilities of the classes that stoch is drawn from, group by group
    stoch: Tensor  # [T, B, Z] z: one-hot in every group
    deter: Tensor  # [T, B, H] h

    @property
    def features(self) -> Tensor:
        """As `RSSMState.features`."""
        return torch.cat((self.stoch, self.deter), -1)

    def at(self, step: int) -> ClassesState:
        """As `RSSMState.at`."""
        return ClassesState(*(part[step] for part in self))

    def flat(self) -> ClassesState:
        """As `RSSMState.flat`."""
        return ClassesState(*(part.flatten(0, -2) for part in self))

    def detach(self) -> ClassesState:
        """As `RSSMState.detach`."""
        return ClassesState(*(part.detach() for part in self))


class Observed(NamedTuple):
    """What `observe` returns: the states given the frames so far, and what the prior said of each frame before it; with
    latent="categorical" each a ClassesState."""

    posterior: RSSMState
    prior: RSSMState  # stoch a draw of its own, deter the posterior's


class KLLoss(NamedTuple):
    loss: Tensor  # scalar: the mean over steps and sequences, balanced and with free bits
    kl: Tensor  # [T, B] KL(posterior || prior) as it is, nats


def kl_loss(
    posterior: RSSMState,
    prior: RSSMState,
    *,
    balance: float | None = None,
    free_bits: float = 0.0,
    average: bool = False,
) -> KLLoss:
    """The KL divergence of `observe`'s posterior from its prior, as world models train on it.

    Args:
        posterior, prior: of `observe`.
        balance: None: KL(q || p) as it is. A number in [0, 1]: balance KL(sg q || p) + (1 - balance) KL(q || sg p), sg
            stopping the gradient: the prior learns faster than the posterior is held back. Dreamer v2 has 0.8; the
            weights 0.5 and 0.1 of Dreamer v3 are 0.6 times balance=5/6.
        free_bits: in nats: max(KL, free_bits), without a gradient below it.
        average: that of the mean over the batch, as Dreamer v1 and v2 have it, rather than of every step.

    Returns:
        KLLoss(loss scalar, kl [T, B] in nats); the loss is 0 where there is no step.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    check_balance(balance)
    require_number("free_bits", free_bits, 0.0)
    require_flag("average", average)
    latent: Gaussians | Classes = Gaussians()
    if isinstance(posterior, ClassesState):
        latent = Classes(posterior.logits.shape[-1])  # a KL is the sum over classes, whatever their groups
    names = (*latent.names, "stoch", "deter")
    shown: list[Parameters] = []
    for name, state in (("posterior", posterior), ("prior", prior)):
        parts = require_parts(name, state, f"({', '.join(names)})")
        # No slice: Dynamo of PyTorch 2.6 takes none of a named tuple.
        shown.append(tuple([parts[i] for i in range(len(latent.names))]))
    called = [f"{name}'s {part}" for name in ("posterior", "prior") for part in latent.names]
    _require_alike(dict(zip(called, (*shown[0], *shown[1]), strict=True)))
    q, p = (latent.of_shown(parts) for parts in shown)
    kl = latent.kl(q, p)
    balanced = balanced_kl(latent, kl, q, p, balance)
    if not balanced.numel():
        return KLLoss(balanced.sum(), kl)
    if average:
        balanced = balanced.mean()
    return KLLoss(balanced.clamp(min=free_bits).mean() if free_bits else balanced.mean(), kl)


def _require_alike(tensors: dict[str, Tensor]) -> None:
    """Raises TypeError or ValueError unless all have shape, dtype and device of the first, which is floating point."""
    (first_name, first), *_ = tensors.items()
    first = require_tensor(first_name, first)
    require_like(first_name, first, first)
    for name, given in tensors.items():
        tensor = require_tensor(name, given)
        require_shape(name, tensor, f"of {first_name}", tuple(first.shape))
        require_device(name, tensor, first.device, f"{first_name} is")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name} must be {first.dtype} as {first_name} is, got {tensor.dtype}")


def balanced_kl(latent: Gaussians | Classes, kl: Tensor, q: Parameters, p: Parameters, balance: float | None) -> Tensor:
    """kl [T, B], that of q and p, with its gradient to prior and posterior weighted as `kl_loss` says."""
    if balance is None:
        return kl
    of_prior = latent.kl(tuple(part.detach() for part in q), p)
    of_posterior = latent.kl(q, tuple(part.detach() for part in p))
    return balance * of_prior + (1 - balance) * of_posterior


def check_balance(balance: object, name: str = "balance") -> None:
    """Raises TypeError or ValueError unless it is a number in [0, 1] or None."""
    if balance is None:
        return
    require_number(name, balance, 0.0)
    if balance > 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be at most 1, got {balance}")
