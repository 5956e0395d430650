"""RSSMLayer: the recurrent state-space model of PlaNet and Dreamer v1 (Hafner et al. 2019, 2020), of embedded frames.

e_t = act(W [z_{t-1}, a_{t-1}] + b)        a_{t-1}: the action that leads to frame t, `action[t]`
h_t = GRU(h_{t-1}, e_t)                    "deter"
p(z_t | h_t) = N(MLP(h_t))                 prior: for all t after the loop
q(z_t | h_t, x_t) = N(MLP([h_t, e(x_t)]))  posterior: z_t, "stoch", is drawn from it, and from the prior where imagined

Where is_first is set a sequence starts: h_{t-1} and z_{t-1} are those of a start, the action counts as 0, b stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssn.nn.blocks import MLP, is_plain, reset_children
from vssn.nn.given import check_starts
from vssn.nn.interleaved import SCALES, InterleavedChain
from vssn.nn.prepared import is_own
from vssn.nn.rssm_latents import Classes, ClassesChain, ClassesMLP, GaussianOfScale, Gaussians, Parameters
from vssn.nn.rssm_states import ClassesState, KLLoss, Observed, RSSMState, kl_loss
from vssn.nn.rssm_steps import RSSMSteps
from vssn.utils.checks import (
    require_choice,
    require_like,
    require_number,
    require_parts,
    require_place,
    require_shape,
    require_size,
    require_tensor,
)
from vssn.utils.sequences import valid_steps, zero_padding
from vssn.utils.values import require_finite
from vssn_kernels.activations import MORE_ACTIVATIONS

STARTS = ("zeros", "learned")
LATENTS = ("gaussian", "categorical")


class Inferred(NamedTuple):
    """One sample of the states given a sequence, and what it costs."""

    h: Tensor  # [T, B, H]
    z: Tensor  # [T, B, Z]
    posterior: Parameters  # of q, each [T, B, Z]
    prior: Parameters  # of p


class BesideLatent(nn.Module):
    """What an input adds to a layer that z or h enters too: x W^T + b, the bias alone of an input of size 0. The weight
    starts as a part of one nn.Linear over both."""

    weight: nn.Parameter | None

    def __init__(self, in_size: int, out_size: int, beside: int, **factory: Any) -> None:
        super().__init__()
        self.in_size, self.out_size, self.beside = in_size, out_size, beside
        weight = nn.Parameter(torch.empty(out_size, in_size, **factory)) if in_size else None
        self.register_parameter("weight", weight)
        self.bias = nn.Parameter(torch.empty(out_size, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.in_size + self.beside)
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor | None, leading: tuple[int, ...]) -> Tensor:
        """[*leading, out] of x [*leading, in], or of None."""
        if x is None or self.weight is None:
            return self.bias.expand(*leading, self.out_size)
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_size}, {self.out_size}, beside={self.beside}"


class RSSMLayer(nn.Module):
    """The recurrent state-space model of embedded frames and actions, time-major, for a world model's own code.

        posterior, prior = layer.observe(embed, action, is_first)       # [T, B, ·]
        loss, kl = layer.kl_loss(posterior, prior, balance=0.8, free_bits=1.0)
        ahead = layer.imagine(actions_to_come, posterior.at(-1))        # or a policy: imagine(policy, state, steps=15)

    `action[t]` is the action that led to frame t, as replay buffers keep it. Frames are embedded, and states decoded,
    by networks of your own; `vssn.RSSM` has both.

    Args:
        embed_size: features of an embedded frame.
        action_size: U, features of an action; 0: none.
        hidden_size: H, units of the deterministic state.
        latent_size: Z, units of the latent.
        mlp_size: M, hidden units of prior and posterior (None: hidden_size).
        joint_size: E, units of the layer over [z, action] (None: mlp_size).
        activation: of all layers: "elu", "relu", "tanh", "leaky_relu" (slope 1/3), "silu" or "identity".
        scale: of prior and posterior: "softplus": std = softplus(raw) + min_std, as Dreamer has it; "logvar":
            logvar = min_logvar + softplus(raw - min_logvar), as the other models here.
        min_std, min_logvar: their floors.
        latent: "gaussian", or "categorical": Z / classes groups of one-hot classes, with straight-through gradients
            (Dreamer v2, v3). These are composed of single steps, not fused: `interleaved_sequence` draws Gaussians
            alone; `scale` has no part in them.
        classes, unimix: of a group of latent="categorical"; the share of the uniform distribution in prior and
            posterior (Dreamer v3: 0.01).
        initial_state: where a sequence starts h and z are "zeros", or "learned" parameters.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size or a choice that is not possible, named with what was expected.
    """

    h_0: nn.Parameter | None
    z_0: nn.Parameter | None

    def __init__(
        self,
        embed_size: int,
        action_size: int,
        hidden_size: int,
        latent_size: int,
        *,
        mlp_size: int | None = None,
        joint_size: int | None = None,
        activation: str = "elu",
        scale: str = "softplus",
        min_std: float = 0.1,
        min_logvar: float = -12.0,
        latent: str = "gaussian",
        classes: int = 32,
        unimix: float = 0.01,
        initial_state: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"embed_size": embed_size, "hidden_size": hidden_size, "latent_size": latent_size}
        for name, size in (*sizes.items(), ("mlp_size", mlp_size), ("joint_size", joint_size)):
            if size is not None or name in sizes:
                require_size(name, size, 1)
        require_size("action_size", action_size, 0)
        require_choice("activation", activation, MORE_ACTIVATIONS)
        require_choice("scale", scale, SCALES)
        require_choice("initial_state", initial_state, STARTS)
        require_choice("latent", latent, LATENTS)
        require_size("classes", classes, 2)
        require_number("unimix", unimix, 0.0)
        if unimix >= 1:
            raise ValueError(f"unimix must be below 1, got {unimix}")
        if latent == "categorical" and latent_size % classes:
            raise ValueError(f"latent_size must be a multiple of classes={classes}, got {latent_size}")
        require_number("min_std", min_std, 0.0)
        require_number("min_logvar", min_logvar)
        require_place(device, dtype)
        self.embed_size, self.action_size = embed_size, action_size
        self.hidden_size, self.latent_size = hidden_size, latent_size
        self.mlp_size = mlp_size or hidden_size
        self.joint_size = joint_size or self.mlp_size
        self.activation, self.scale = activation, scale
        self.min_std, self.min_logvar = float(min_std), float(min_logvar)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.latent: Gaussians | Classes = Gaussians() if latent == "gaussian" else Classes(classes)
        inputs: dict[str, Any] = {"embed_inputs": action_size, "context_inputs": embed_size}
        inputs |= {"embed_activation": activation, "activation": activation, **factory}
        floors: dict[str, Any] = {"scale": scale, "min_logvar": self.min_logvar, "min_std": self.min_std}
        of_classes: dict[str, Any] = {"classes": classes, "unimix": float(unimix)}
        m, e = self.mlp_size, self.joint_size
        if latent == "gaussian":
            self.chain = InterleavedChain(hidden_size, latent_size, e, m, **inputs, **floors)
            self.prior: MLP = GaussianOfScale((hidden_size,), m, latent_size, activation, **floors, **factory)
        else:
            self.chain = ClassesChain(hidden_size, latent_size, e, m, **inputs, **of_classes)
            self.prior = ClassesMLP((hidden_size,), m, latent_size, activation, **of_classes, **factory)
        self.gates_bias = nn.Parameter(torch.empty(3 * hidden_size, **factory))
        self.action = BesideLatent(action_size, self.joint_size, latent_size, **factory)
        self.frame = BesideLatent(embed_size, self.mlp_size, hidden_size, **factory)
        for name, size in (("h_0", hidden_size), ("z_0", latent_size)):
            learned = nn.Parameter(torch.empty(size, **factory)) if initial_state == "learned" else None
            self.register_parameter(name, learned)
        self._reset_own()

    def _reset_own(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size)  # as nn.GRU's
        nn.init.uniform_(self.gates_bias, -bound, bound)
        for start in (self.h_0, self.z_0):
            if start is not None:
                nn.init.zeros_(start)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does."""
        reset_children(self)
        self._reset_own()

    def a_parameter(self) -> Tensor:
        """One of the parameters, for the dtype and the device that all have."""
        return self.gates_bias

    # What a world model calls

    def initial(self, batch_size: int) -> RSSMState:
        """The states [B, ·] before a first frame; std is 0."""
        require_size("batch_size", batch_size, 0)
        h, z = self.start(batch_size, self.a_parameter())
        zero = torch.zeros_like(z)
        return RSSMState(z, zero, z, h) if isinstance(self.latent, Gaussians) else self._state((zero,), z, h)

    def observe(
        self,
        embed: Tensor,
        action: Tensor | None = None,
        is_first: Tensor | None = None,
        state: RSSMState | tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
        *,
        noise: Tensor | None = None,
    ) -> Observed:
        """Filters a sequence of frames: one pass of a fused kernel over all steps.

        Args:
            embed: [T, B, embed_size].
            action: [T, B, U], action[t] led to frame t; None without actions.
            is_first: [T, B] bool, True where frame t is the first of an episode: what came before it, and action[t],
                have no part in it. None: nowhere.
            state: the states [B, ·] behind the frame before, `posterior.at(-1)` of the chunk before; None: a start.
                Detach it to truncate back-propagation.
            noise: [T, B, Z] standard normal, for the posterior's draws; zeros: its means. None draws it.

        Returns:
            Observed(posterior, prior), each RSSMState(mean, std, stoch, deter) of [T, B, ·].

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came; so too for NaN and infinity
                (DataError, a ValueError; on a GPU with VSSN_CHECK=1 only).
        """
        like = self.a_parameter()
        embed = require_tensor("embed", embed)
        if embed.dim() != 3 or embed.shape[-1] != self.embed_size:
            raise ValueError(f"embed must have shape [T, B, {self.embed_size}], got {list(embed.shape)}")
        require_like("embed", embed, like)
        require_finite("embed", embed, "its encoder gave what is no number")
        steps, batch = embed.shape[:2]
        if is_first is not None:
            is_first = check_starts("is_first", is_first, embed, of="the frames are")
        action = self._check_action(action, (steps, batch), "[T, B, U]", is_first=is_first)
        start = None if state is None else self._check_state(state, batch)
        noise = self._check_noise(noise, (steps, batch, self.latent_size), "[T, B, Z]", embed)
        result = self(embed, action, noise, start, is_first)
        prior_z = self.latent.draw(result.prior, torch.randn_like(result.z))
        return Observed(self._state(result.posterior, result.z, result.h), self._state(result.prior, prior_z, result.h))

    def _state(self, parameters: Parameters, z: Tensor, h: Tensor) -> RSSMState:
        kind: Any = RSSMState if isinstance(self.latent, Gaussians) else ClassesState
        state: RSSMState = kind(*self.latent.shown(parameters), z, h)
        return state

    def imagine(
        self,
        action: Tensor | Callable[[RSSMState], Tensor] | None,
        state: RSSMState | tuple[Tensor, Tensor, Tensor, Tensor],
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
    ) -> RSSMState:
        """Rolls the prior out behind a state, without frames. Gradients reach actions, state and weights.

        Args:
            action: [K, B, U]: action[0] leads from `state` to the first step. Or a policy: called with the RSSMState
                [B, ·] that each step starts from, it returns the action [B, U].
            state: the states [B, ·] to start from: `posterior.at(-1)`, or `posterior.flat()` for all of a batch.
            steps: K, with a policy or without actions; None: as many as there are actions.
            noise: [K, B, Z] standard normal; zeros: the prior's means. None draws it.

        Returns:
            RSSMState of [K, B, ·].

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came; so too for NaN and infinity
                (DataError, a ValueError; on a GPU with VSSN_CHECK=1 only).
        """
        h, z = self._check_state(state)
        batch = len(h)
        current: Any = (RSSMState if isinstance(self.latent, Gaussians) else ClassesState)(*state)
        count = self._count_steps(action, steps)
        if not callable(action):  # so is no tensor
            self._check_action(action, (count, batch), "[K, B, U]")
        noise = self._check_noise(noise, (count, batch, self.latent_size), "[K, B, Z]", z)
        step = self.prior_steps() if count > 1 else self.step_from_prior
        states = []
        for k in range(count):
            if callable(action):
                here = self._check_action(action(current), (batch,), "[B, U]", "what action returns")
            else:
                here = None if action is None else action[k]
            h, z, parameters = step(h, z, here, noise[k])
            current = self._state(parameters, z, h)
            states.append(current)
        if not states:
            of_none: RSSMState = type(current)(*(part.new_empty(0, *part.shape) for part in current))
            return of_none
        stacked: RSSMState = type(current)(*(torch.stack(part) for part in zip(*states, strict=True)))
        return stacked

    def kl_loss(
        self,
        posterior: RSSMState,
        prior: RSSMState,
        *,
        balance: float | None = None,
        free_bits: float = 0.0,
        average: bool = False,
    ) -> KLLoss:
        """`vssn.nn.rssm_states.kl_loss`."""
        return kl_loss(posterior, prior, balance=balance, free_bits=free_bits, average=average)

    def _count_steps(self, action: object, steps: int | None) -> int:
        if steps is not None:
            require_size("steps", steps, 0)
        if isinstance(action, Tensor):
            action = require_tensor("action", action)
            count = action.shape[0] if action.dim() else 0
            if steps is not None and steps != count:
                raise ValueError(f"steps must be {count} as action has, or None, got {steps}")
            return count
        if action is not None and not callable(action):
            raise TypeError(f"action must be a torch.Tensor or a policy to call, got {type(action).__name__}")
        if action is None and self.action_size:
            raise ValueError(f"action is missing: this model has actions of size {self.action_size}")
        if steps is None:
            raise ValueError("steps must be given with a policy, or without actions: how many to imagine")
        return steps

    def _check_action(
        self,
        action: Tensor | None,
        leading: tuple[int, ...],
        letters: str,
        name: str = "action",
        is_first: Tensor | None = None,
    ) -> Tensor | None:
        if not self.action_size:
            if action is not None:
                raise ValueError(f"{name} must be None: this model has no actions (action_size=0)")
            return None
        if action is None:
            raise ValueError(f"{name} is missing: this model has actions of size {self.action_size}")
        require_shape(name, action, letters, (*leading, self.action_size))
        require_like(name, action, self.a_parameter())
        require_finite(name, action, "fill in what is missing", None if is_first is None else ~is_first)
        return action

    def _check_state(self, state: object, batch: int | None = None) -> tuple[Tensor, Tensor]:
        """h [B, H] and z [B, Z]; B is that of stoch if it is not given."""
        names = ", ".join((*self.latent.names, "stoch", "deter"))
        *_, stoch, deter = require_parts("state", state, f"({names})")
        if batch is None:
            stoch = require_tensor("state's stoch", stoch)
            if stoch.dim() != 2:
                of_steps = "; of the states of several steps take .at(-1) or .flat()" if stoch.dim() == 3 else ""
                raise ValueError(
                    f"state's stoch must have shape [B, {self.latent_size}], got {list(stoch.shape)}{of_steps}"
                )
            batch = len(stoch)
        sizes = (("state's stoch", stoch, "Z", self.latent_size), ("state's deter", deter, "H", self.hidden_size))
        for name, part, letter, size in sizes:
            require_shape(name, part, f"[B, {letter}]", (batch, size))
            require_like(name, part, self.a_parameter(), or_float32=True)
            require_finite(name, part, "start anew with initial(batch_size)")
        return deter, stoch

    def _check_noise(self, noise: Tensor | None, shape: tuple[int, ...], letters: str, like: Tensor) -> Tensor:
        if noise is None:
            return torch.randn(shape, dtype=like.dtype, device=like.device)
        require_shape("noise", noise, letters, shape)
        require_like("noise", noise, like)
        require_finite("noise", noise, "draw it from a standard normal distribution")
        return noise

    # What the model is made of

    def start(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """h [B, H] and z [B, Z] before a first frame."""
        sizes = ((self.h_0, self.hidden_size), (self.z_0, self.latent_size))
        h, z = (
            like.new_zeros(batch, size) if learned is None else learned.expand(batch, -1) for learned, size in sizes
        )
        return h, z

    def forward(
        self,
        embed: Tensor,
        action: Tensor | None,
        eps: Tensor,
        start: tuple[Tensor, Tensor] | None = None,
        is_first: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Inferred:
        """What `observe` runs, without a look at its arguments: samples the states given the frames.

        Args:
            embed: [T, B, embed_size], finite at padding.
            action: [T, B, U] or None.
            eps: [T, B, Z] standard normal.
            start: h [B, H] and z [B, Z] before the first step; None: those of a start.
            is_first: [T, B] bool or None.
            lengths: [B] int64 or None.
        """
        steps, batch = embed.shape[:2]
        anew = self.start(batch, embed)
        h0, z0 = anew if start is None else start
        if is_first is not None and action is not None:
            action = torch.where(is_first[..., None], action.new_zeros(()), action)
        resets: dict[str, Any] = {}
        if is_first is not None:
            resets = {"resets": is_first, "reset_h": anew[0], "reset_z": anew[1]}
        h, z, *posterior = self.chain(
            self.gates_bias.expand(steps, batch, -1),
            self.action(action, (steps, batch)),
            self.frame(embed, (steps, batch)),
            h0,
            z0,
            eps,
            lengths=lengths,
            **resets,
        )
        valid = valid_steps(lengths, embed)
        prior = tuple(zero_padding(part, valid) for part in self.prior(h))
        return Inferred(h, z, tuple(posterior), prior)

    def step_from_prior(
        self, h: Tensor, z: Tensor, action: Tensor | None, eps: Tensor
    ) -> tuple[Tensor, Tensor, Parameters]:
        """h_t [B, H], z_t [B, Z] and the parameters of its distribution, from h_{t-1}, z_{t-1}, action[t] [B, U] or
        None and eps [B, Z]."""
        h = self.chain.step(self.gates_bias, self.action(action, ()), h, z)
        parameters = self.prior(h)
        return h, self.latent.draw(parameters, eps), parameters

    def prior_steps(self) -> Callable[..., tuple[Tensor, Tensor, Parameters]]:
        """`step_from_prior` for a loop of many steps, in which no weight changes."""
        plain = is_own(self, RSSMLayer, "step_from_prior") and is_plain(self.action, BesideLatent)
        if not plain or torch.is_grad_enabled():
            return self.step_from_prior
        return RSSMSteps(self)

    def extra_repr(self) -> str:
        return (
            f"{self.embed_size}, U={self.action_size}, H={self.hidden_size}, Z={self.latent_size}, M={self.mlp_size}, "
            f"E={self.joint_size}, activation={self.activation!r}, "
            + (f"scale={self.scale!r}" if isinstance(self.latent, Gaussians) else "latent='categorical'")
            + ("" if self.h_0 is None else ", initial_state='learned'")
        )
