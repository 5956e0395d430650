"""VSSNLayer: the recurrences of the model as a layer that stands where nn.GRU does.

w_t ~ q(w_t | x_t, u_t)                    one batch for all t
d_t = GRU(d_{t-1}, [u_t, w_t])             forward in time
a_t = GRU(a_{t+1}, [d_t, x_t])             backward in time, a_{T+1} = 0
z_t ~ q(z_t | z_{t-1}, a_t)                serial through the sample
p(z_t | z_{t-1}, d_t)                      for all t after the loop

With inference="causal" a_t = GRU(a_{t-1}, [d_t, x_t]) runs forward, a_0 = 0.

With initial_state="inferred" d_0 is a latent of every sequence, as in LFADS (Pandarinath et al. 2018) and DVBF (Karl et
al. 2017):

b_t = GRU(b_{t+1}, [x_t, u_t])             backward in time, b_{T+1} = 0; that of noise_smoothing where it is on
s ~ q(s | x_{1:T}, u_{1:T}) = N(MLP(b_1)), p(s) = N(m, diag exp v), m and v learned from N(0, I) on
d_0 = s, or a linear map of it where initial_size is not D

A sequence without a frame has d_0 from the prior, and no KL.
"""

from __future__ import annotations

import math
from typing import Any, overload

import torch
from torch import Tensor, nn

from vssn.nn.blocks import GaussianMLP, LatentNetwork, Recurrence, reset_children
from vssn.nn.given import check_noise, check_state, draw_noise
from vssn.nn.latent_chain import infer_latents
from vssn.nn.layer_arguments import (
    check_inference,
    check_initial,
    check_sizes,
    check_weights,
    initial_kind,
    require_control,
)
from vssn.nn.states import AnyState, CausalState, Embedded, Inference, LayerOutput, State, charged
from vssn.utils.checks import require_flag, require_place, require_size
from vssn.utils.named_tuples import with_parts
from vssn.utils.sequences import (
    check_lengths,
    check_sequences,
    last_valid,
    swap,
    valid_steps,
    with_first,
    zero_idle,
    zero_padding,
)
from vssn.utils.values import NO_NAN_IN_U, require_finite
from vssn_kernels import gaussian_kl, gaussian_rsample_kl

_FLAGS = ("residual_posterior", "noise_smoothing", "batch_first")  # told by repr where they are set


class VSSNLayer(nn.Module):
    """A stochastic recurrent layer: x [T, B, input_size] to [d_t, z_t] with the KL divergence that it costs.

    Sum over t of (log-density of x_t given output_t) - kl_t is a lower bound on log p(x_{1:T} | u_{1:T}), for any
    decoder of output_t: x enters through inference only, and the control u_t never contains x_t.

    Args:
        input_size: X, features of a frame.
        hidden_size: D, units of the deterministic state; 0 leaves it out.
        latent_size: Z, units of the latent; 0 leaves it and the backward recurrence out.
        noise_size: W, units of the process noise; 0 leaves it out.
        control: what drives d_t: "previous" (x_{t-1}), "external" (u), "both" or "none".
        control_size: U, features of the external control.
        mlp_size: M, hidden units of every MLP (None: hidden_size).
        backward_size: A, units of the backward state (None: hidden_size).
        activation: of the MLPs: "tanh", "relu", "leaky_relu" (slope 1/3) or "silu".
        residual_posterior: the posterior's mean is the prior's plus an MLP (Fraccaro et al. 2016).
        universal: "point" (the GRU's own weights) or "gaussian" (a posterior over its recurrent weights).
        prior_std: sigma0 of the prior N(0, sigma0^2) over those weights.
        min_logvar: floor of every latent's log-variance, in nats.
        initial_state: d_0 and z_0 are "zeros", "learned" parameters, or "inferred": d_0 then is drawn from
            q(d_0 | x_{1:T}, u_{1:T}), z_0 zeros. None: "learned" with learn_initial_state, else "zeros".
        initial_size: S, units of what is inferred, with a linear map to d_0 where it is not D (None: D).
        learn_initial_state: initial_state="learned", by its older name.
        noise_smoothing: q(w_t | x_{t:T}, u_{t:T}) through a backward GRU, rather than q(w_t | x_t, u_t).
        inference: "smoothing", or "causal": a_t = GRU(a_{t-1}, [d_t, x_t]) runs forward and q(z_t | z_{t-1}, x_{1:t})
            sees no frame to come, so that filtering goes step by step; the state that carries on has a too.
        batch_first: sequences are [B, T, ·].
        device, dtype: of the parameters.

    Raises:
        ValueError: a size or a choice that is not possible, named with what was expected.
    """

    d_0: nn.Parameter | None
    z_0: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        latent_size: int,
        noise_size: int = 0,
        *,
        control: str = "previous",
        control_size: int = 0,
        mlp_size: int | None = None,
        backward_size: int | None = None,
        activation: str = "tanh",
        residual_posterior: bool = False,
        universal: str = "point",
        prior_std: float = 0.1,
        min_logvar: float = -12.0,
        initial_state: str | None = None,
        initial_size: int | None = None,
        learn_initial_state: bool = False,
        noise_smoothing: bool = False,
        inference: str = "smoothing",
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        given_flags = (residual_posterior, noise_smoothing, batch_first)
        for name, flag in zip(_FLAGS, given_flags, strict=True):
            require_flag(name, flag)
        require_place(device, dtype)
        check_sizes(input_size, hidden_size, latent_size, noise_size, mlp_size, backward_size)
        check_weights(activation, universal, prior_std, min_logvar, hidden_size)
        require_control(control, control_size)
        kind = initial_kind(initial_state, learn_initial_state)
        check_initial(kind, initial_size, hidden_size)
        check_inference(inference, noise_smoothing, kind)
        self.input_size, self.hidden_size, self.latent_size = input_size, hidden_size, latent_size
        self.noise_size, self.control, self.control_size = noise_size, control, control_size
        self.mlp_size = hidden_size if mlp_size is None else mlp_size
        self.backward_size = hidden_size if backward_size is None else backward_size
        require_size("mlp_size", self.mlp_size, 1)
        require_size("backward_size", self.backward_size, 1)
        self.activation, self.residual_posterior, self.universal = activation, residual_posterior, universal
        self.prior_std, self.min_logvar = float(prior_std), float(min_logvar)
        self.noise_smoothing, self.inference, self.batch_first = noise_smoothing, inference, batch_first
        self.carries_a = inference == "causal" and latent_size > 0

        self.control_sizes = {
            "previous": (input_size,),
            "external": (control_size,),
            "both": (input_size, control_size),
            "none": (),
        }[control]
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if hidden_size:
            self.duration = Recurrence((*self.control_sizes, noise_size), hidden_size, **factory)
        if universal == "gaussian":
            self.weight_hh_logvar = nn.Parameter(torch.empty_like(self.duration.weight_hh))
        if noise_size:
            sizes = (input_size, *self.control_sizes)
            if noise_smoothing:
                self.noise_backward = Recurrence(sizes, self.backward_size, **factory)
                sizes = (self.backward_size,)
            self.noise_posterior = GaussianMLP(sizes, self.mlp_size, noise_size, activation, min_logvar, **factory)
        if latent_size:
            parents = self._parent_sizes()
            self.backward_recurrence = Recurrence((*parents, input_size), self.backward_size, **factory)
            own = (self.backward_size,)
            self.posterior = LatentNetwork(latent_size, own, self.mlp_size, activation, min_logvar, **factory)
            self.prior = LatentNetwork(latent_size, parents, self.mlp_size, activation, min_logvar, **factory)
        for name, size in (("d_0", hidden_size), ("z_0", latent_size)):  # None: zeros, or to be inferred
            learned = nn.Parameter(torch.empty(size, **factory)) if kind == "learned" and size else None
            self.register_parameter(name, learned)
        self.initial_size = (initial_size or hidden_size) if kind == "inferred" else 0  # S
        if self.initial_size:
            sizes = (input_size, *self.control_sizes)
            if not (noise_smoothing and noise_size):
                self.initial_backward = Recurrence(sizes, self.backward_size, **factory)
            own = (self.backward_size,)
            self.initial_posterior = GaussianMLP(
                own, self.mlp_size, self.initial_size, activation, min_logvar, **factory
            )
            self.initial_mu = nn.Parameter(torch.empty(self.initial_size, **factory))
            self.initial_logvar = nn.Parameter(torch.empty(self.initial_size, **factory))
            if self.initial_size != hidden_size:
                self.initial_map = nn.Linear(self.initial_size, hidden_size, **factory)
        self._reset_own()

    def _reset_own(self) -> None:
        if self.universal == "gaussian":
            nn.init.constant_(self.weight_hh_logvar, 2 * math.log(0.1 * self.prior_std))
        own = (self.initial_mu, self.initial_logvar) if self.initial_size else (self.d_0, self.z_0)
        for start in own:
            if start is not None:
                nn.init.zeros_(start)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does."""
        reset_children(self)
        self._reset_own()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("d_0", "z_0"):  # up to 0.1.0 a learned state of size 0 was a parameter
            key = prefix + name
            if getattr(self, name) is None and key in state_dict and state_dict[key].numel() == 0:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def dtype(self) -> torch.dtype:
        """That of the parameters."""
        return self.a_parameter().dtype

    @property
    def device(self) -> torch.device:
        """That of the parameters."""
        return self.a_parameter().device

    def a_parameter(self) -> Tensor:
        """One of the parameters, for the dtype and the device that all have."""
        recurrence = self.duration if self.hidden_size else self.backward_recurrence
        found = getattr(recurrence, "bias_hh", None)  # parameters() takes ten times as long
        return next(self.parameters()) if found is None else found

    def _parent_sizes(self) -> tuple[int, ...]:
        """What stands beside z_{t-1} in f and beside x_t in a_t: d_t, or without it an external control."""
        if self.hidden_size:
            return (self.hidden_size,)
        return self.control_sizes if self.control in ("external", "both") else ()

    def parents(self, d: Tensor, controls: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The tensors of `_parent_sizes`, each [T, B, ·]."""
        if self.hidden_size:
            return (d,)
        return controls if self.control in ("external", "both") else ()

    def start_state(self, state: object, batch: int | None, frame_size: int, like: Tensor) -> AnyState:
        """The state to generate from: the given one, checked, or for None d_0, from its prior where it is inferred, z_0
        and a first frame of zeros.

        Args:
            batch: B; None: that of the given state.
            frame_size: F.
            like: gives the dtype and the device of a new state.
        """
        if state is None:
            assert batch is not None
            d_0, z_0 = self.initial_state(batch, like)
            if d_0 is None:
                d_0 = self.map_initial(self._initial_prior(like.new_empty(batch, self.initial_size).normal_()))
            return self.make_state(d_0, z_0, like.new_zeros(batch, frame_size))
        sizes = {"d": ("D", self.hidden_size), "z": ("Z", self.latent_size), "x_last": ("F", frame_size)}
        if self.carries_a:
            sizes["a"] = ("A", self.backward_size)
        parts = check_state(state, sizes, batch, like)
        return self.make_state(*parts)

    def make_state(self, d: Tensor, z: Tensor, x_last: Tensor, a: Tensor | None = None) -> AnyState:
        """The state to carry on: with a, zeros for None, where it is carried."""
        if not self.carries_a:
            return State(d, z, x_last)
        return CausalState(d, z, x_last, x_last.new_zeros(len(x_last), self.backward_size) if a is None else a)

    def carried_a(self, state: object) -> Tensor | None:
        """a of a state of this layer; None without one."""
        return state.a if isinstance(state, CausalState) else None

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor | None, Tensor]:
        """d_0 [B, D], None where it is to be inferred, and z_0 [B, Z], in the dtype and on the device of `like`."""
        d_0, z_0 = (
            like.new_zeros(batch, size) if start is None else start.to(like.dtype).expand(batch, -1)
            for start, size in ((self.d_0, self.hidden_size), (self.z_0, self.latent_size))
        )
        return None if self.initial_size else d_0, z_0

    def infer_initial(
        self, x: Tensor, controls: tuple[Tensor, ...], lengths: Tensor | None, ahead: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(s | x, u), each [B, S]: the prior's for a sequence without a frame.

        ahead: `look_ahead` of the rest, which is as in `infer`; None: it is run here.
        """
        last = (self.look_ahead(x, controls, lengths) if ahead is None else ahead)[1]
        posterior = self.initial_posterior(last)
        if lengths is None and x.shape[0]:
            return posterior
        some = (torch.zeros_like(last[:, :1]) if lengths is None else lengths[:, None]) > 0
        prior = (self.initial_mu, self.initial_logvar)
        mu, logvar = (torch.where(some, own, other) for own, other in zip(posterior, prior, strict=True))
        return mu, logvar

    def _initial_prior(self, eps_0: Tensor) -> Tensor:
        """s [B, S] from its prior."""
        return self.initial_mu + torch.exp(self.initial_logvar / 2) * eps_0

    def map_initial(self, s: Tensor) -> Tensor:
        """d_0 [B, D] from s [B, S]."""
        return s if self.initial_size == self.hidden_size else self.initial_map(s)

    def weight_noise(self) -> Tensor | None:
        """One draw of what the duration GRU's weight_hh differs from its mean by, [3D, D]; None for the mean itself:
        "point", and at evaluation."""
        if self.universal == "point" or not self.training:
            return None
        return torch.exp(self.weight_hh_logvar / 2) * torch.randn_like(self.weight_hh_logvar)

    def universal_kl(self) -> Tensor:
        """KL(q(v) || N(0, prior_std^2)) over all recurrent weights: a scalar in nats, 0 for "point"."""
        if self.universal == "point":
            return torch.zeros((), dtype=self.dtype, device=self.device)
        mu = self.duration.weight_hh.reshape(-1)
        prior_logvar = torch.full_like(mu, 2 * math.log(self.prior_std))
        return gaussian_kl(mu, self.weight_hh_logvar.reshape(-1), torch.zeros_like(mu), prior_logvar)

    def draw_noise(self, like: Tensor) -> tuple[Tensor, ...]:
        """(eps_w [T, B, W], eps_z [T, B, Z]) standard normal, for `like` [T, B, ·]; with eps_0 [B, S] behind them where
        d_0 is inferred."""
        return draw_noise(like, (self.noise_size, self.latent_size), self.initial_size)

    def check_noise(self, noise: object, like: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
        """The noise time-major. Raises TypeError or ValueError where it does not fit `like` [T, B, ·], or is not finite
        where `valid` [T, B] (None: everywhere)."""
        sizes = (self.noise_size, self.latent_size)
        return check_noise(noise, like, sizes, self.initial_size, valid, self.batch_first)

    def infer(
        self,
        x: Tensor,
        controls: tuple[Tensor, ...],
        d0: Tensor | None,
        z0: Tensor,
        noise: tuple[Tensor, ...],
        lengths: Tensor | None = None,
        a0: Tensor | None = None,
    ) -> Inference:
        """Samples w, d and z given x, time-major whatever batch_first says.

        Args:
            x: [T, B, X], finite at padding.
            controls: the tensors that make u_t, each [T, B, ·], of the sizes `control_sizes`.
            d0, z0: [B, D], [B, Z]; d0 None: it is inferred.
            noise: (eps_w [T, B, W], eps_z [T, B, Z]) standard normal, and eps_0 [B, S] where d0 is inferred.
            lengths: [B] int64 or None.
            a0: [B, A] where a runs forward, inference="causal"; None: zeros, as always where it runs backward.
        """
        valid = valid_steps(lengths, x)
        kl_0 = ahead = None
        if d0 is None:
            ahead = self.look_ahead(x, controls, lengths)
            mu, logvar = self.infer_initial(x, controls, lengths, ahead)
            prior = (part.expand_as(mu) for part in (self.initial_mu, self.initial_logvar))
            s, kl_0 = gaussian_rsample_kl(mu, logvar, noise[2], *prior)
            d0 = self.map_initial(s)
        eps_w, eps_z = zero_padding(noise[0], valid), noise[1]  # the op masks eps_z itself
        kl_w, kl_z = x.new_zeros(x.shape[:2]), x.new_zeros(x.shape[:2])
        d, z, d_last, z_last, a_last = x.new_zeros(*x.shape[:2], 0), x.new_zeros(*x.shape[:2], 0), d0, z0, a0
        if self.hidden_size:
            w = eps_w
            if self.noise_size:
                mu, logvar = self.infer_noise(x, controls, lengths, ahead)
                w, kl_w = gaussian_rsample_kl(mu, logvar, eps_w)
                kl_w = zero_padding(kl_w, valid)
            inputs = (*controls, w)
            d, d_last = self.duration(inputs, d0, lengths=lengths, weight_noise=self.weight_noise())
        if self.latent_size:
            parents = self.parents(d, controls)
            a0 = x.new_zeros(x.shape[1], self.backward_size) if a0 is None else a0
            a, a_last = self.backward_recurrence((*parents, x), a0, lengths=lengths, reverse=not self.carries_a)
            z, mu, logvar, prior_mu, prior_logvar = infer_latents(
                self, a, parents, zero_idle(z0, lengths), eps_z, lengths
            )
            kl_z = zero_padding(gaussian_kl(mu, logvar, prior_mu, prior_logvar), valid)
            z_last = last_valid(z, z0, lengths)
        return Inference(d, z, kl_z, kl_w, d_last, z_last, kl_0=kl_0, a_last=a_last)

    def look_ahead(self, x: Tensor, controls: tuple[Tensor, ...], lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """b [T, B, A] of x_{t:T} and u_{t:T}, and b_1 [B, A]. Arguments as in `infer`."""
        recurrence = self.noise_backward if self.noise_smoothing and self.noise_size else self.initial_backward
        start = x.new_zeros(x.shape[1], self.backward_size)
        b, first = recurrence((x, *controls), start, lengths=lengths, reverse=True)
        return b, first

    def infer_noise(
        self,
        x: Tensor,
        controls: tuple[Tensor, ...],
        lengths: Tensor | None,
        ahead: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(w_t | x, u) for all t, each [T, B, W]. Arguments as in `infer_initial`."""
        if not self.noise_smoothing:
            return self.noise_posterior(x, *controls)
        return self.noise_posterior((self.look_ahead(x, controls, lengths) if ahead is None else ahead)[0])

    def step_a(self, x: Tensor, controls: tuple[Tensor, ...], d: Tensor, a: Tensor) -> Tensor:
        """a_t [B, A] of inference="causal", from x_t [1, B, X], what makes u_t, d_t [B, D] and a_{t-1}."""
        step: Tensor = self.backward_recurrence((*self.parents(d[None], controls), x), a)[1]
        return step

    def step_from_prior(
        self,
        controls: tuple[Tensor, ...],
        d: Tensor,
        z: Tensor,
        weight_noise: Tensor | None,
        noise: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """d_t [B, D] and z_t [B, Z] with w_t and z_t from their priors, from d_{t-1}, z_{t-1}.

        Args:
            controls: the tensors that make u_t, each [1, B, ·].
            weight_noise: `weight_noise()`, one draw for the whole sequence.
            noise: (eps_w [1, B, W], eps_z [1, B, Z]) standard normal, zeros for the priors' means; None draws it.
        """
        eps_w, eps_z = (self.draw_noise(d[None]) if noise is None else noise)[:2]
        states = d[None]
        if self.hidden_size:
            inputs = (*controls, eps_w)
            states, d = self.duration(inputs, d, weight_noise=weight_noise)
        if self.latent_size:
            mu, logvar = self.prior(z[None], self.parents(states, controls))
            z = (mu + torch.exp(logvar / 2) * eps_z)[0]
        return d, z

    @overload
    def forward(
        self,
        x: Tensor,
        state: AnyState | tuple[Tensor, ...] | None = None,
        lengths: Tensor | None = None,
        *,
        u: Tensor | None = None,
        noise: tuple[Tensor, ...] | None = None,
    ) -> LayerOutput: ...
    @overload
    def forward(
        self,
        x: Embedded,
        state: AnyState | tuple[Tensor, ...] | None = None,
        lengths: Tensor | None = None,
    ) -> Inference: ...
    def forward(
        self,
        x: Tensor | Embedded,
        state: AnyState | tuple[Tensor, ...] | None = None,
        lengths: Tensor | None = None,
        *,
        u: Tensor | None = None,
        noise: tuple[Tensor, ...] | None = None,
    ) -> LayerOutput | Inference:
        """Runs the layer on x [T, B, X] ([B, T, X] with batch_first; u, noise, output and kl likewise).

        Args:
            state: (d [B, D], z [B, Z], x_last [B, X]) of the chunk before, with inference="causal" and a latent a
                [B, A] behind them; None starts anew.
            lengths: [B] int64, each in [0, T]; None: all T steps.
            u: [T, B, U] external control.
            noise: (eps_w [T, B, W], eps_z [T, B, Z]) standard normal, with eps_0 [B, S], as it is whatever batch_first
                says, behind them with initial_state="inferred"; None draws it.

        Returns:
            LayerOutput(output [T, B, D+Z] of d_t then z_t, state, kl [T, B] in nats), zeros at padding. The KL of an
            inferred d_0 is in the kl of the first frame.
            Of an x that VSSN has embedded: Inference.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        if isinstance(x, Embedded):
            d_0, z_0 = self.initial_state(x.x.shape[1], x.noise[1]) if state is None else (state[0], state[1])
            result = self.infer(x.x, x.controls, d_0, z_0, x.noise, lengths, self.carried_a(state))
            return result if self.universal == "point" else with_parts(result, universal_kl=self.universal_kl())
        x, u = check_sequences(x, u, self.input_size, self.control_size, self.batch_first, self.a_parameter())
        check_lengths(lengths, x)
        valid = valid_steps(lengths, x)
        x, u = zero_padding(x, valid), zero_padding(u, valid)
        require_finite("x", x, "fill in missing values: the layer takes no mask=, VSSN does")
        require_finite("u", u, NO_NAN_IN_U)
        start = None if state is None else self.start_state(state, x.shape[1], self.input_size, x)
        d_0, z_0 = self.initial_state(x.shape[1], x) if start is None else (start[0], start[1])
        x_last = x.new_zeros(x.shape[1], self.input_size) if start is None else start.x_last
        noise = self.draw_noise(x) if noise is None else self.check_noise(noise, x, valid)
        controls = self.select_controls(with_first(zero_idle(x_last, lengths), x)[:-1], u)
        result = self.infer(x, controls, d_0, z_0, noise, lengths, self.carried_a(start))
        output = torch.cat((result.d, result.z), -1)
        next_state = self.make_state(result.d_last, result.z_last, last_valid(x, x_last, lengths), result.a_last)
        return LayerOutput(
            swap(output, self.batch_first), next_state, swap(result.kl_z + charged(result), self.batch_first)
        )

    def select_controls(self, previous: Tensor, external: Tensor | None) -> tuple[Tensor, ...]:
        """The tensors that make u_t, of those that there are."""
        if self.control == "previous":
            return (previous,)
        if self.control == "none":
            return ()
        assert external is not None
        return (external,) if self.control == "external" else (previous, external)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, D={self.hidden_size}, Z={self.latent_size}, W={self.noise_size}, "
            f"A={self.backward_size}, M={self.mlp_size}, control={self.control!r}, activation={self.activation!r}"
            + (f", U={self.control_size}" if self.control_size else "")
            + (f", universal={self.universal!r}" if self.universal != "point" else "")
            + (f", initial_state='inferred', S={self.initial_size}" if self.initial_size else "")
            + (f", inference={self.inference!r}" if self.inference != "smoothing" else "")
            + "".join(f", {name}=True" for name in _FLAGS if getattr(self, name))
        )
