"""VSSN: the whole model, with its embeddings, emission density and objectives.

elbo:   F = sum_t R_t - KL_w,t - KL_z,t              R_t = log p(x_t | z_t, d_t)    KL_w,1 with that of an inferred d_0
paper:  L = sum_t R_t - KL_w,t / 2 - KL_z,t / 2      a training objective, not a lower bound
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vssn.likelihoods.base import Likelihood
from vssn.likelihoods.registry import make_likelihood
from vssn.likelihoods.scaled import Scaled
from vssn.nn.blocks import MLP, Embedding, reset_children
from vssn.nn.filter_steps import FilterSteps, make_filter_steps
from vssn.nn.interface import EncodedBatch, Floats, Generation, PriorSteps, SequenceModel, SequenceOutput
from vssn.nn.layer import AnyState, Embedded, Inference, VSSNLayer, charged, require_control
from vssn.nn.paths import LayerParticles, floats_of_particles, infer_noise, infer_prefixes
from vssn.nn.prepared import LayerSteps, prepare
from vssn.utils.checks import require_choice, require_factor, require_flag, require_number, require_shape, require_size
from vssn.utils.scaling import Scaling, check_scaling
from vssn.utils.sequences import (
    check_control,
    check_lengths,
    check_mask,
    check_sequences,
    last_valid,
    swap,
    valid_steps,
    with_first,
    zero_padding,
)
from vssn.utils.values import MARK_MISSING, NO_NAN_IN_U, nan_as_missing, require_finite, require_values

OBJECTIVES = ("elbo", "paper")


VSSNOutput = SequenceOutput  # by the name that users know


class VSSN(SequenceModel):
    """The Variational Structured Stochastic Network.

    A module inside that has hooks or a parametrization, is pruned or stands in place of ours runs its own forward,
    which is slower: `layer.posterior` then once a step.

    Args:
        x_size: X, features of an observation.
        hidden_size: D, units of the deterministic state (0: none, the DKF-like ablation).
        latent_size: Z, units of the latent (0: none, the STORN-like ablation).
        noise_size: W, units of the process noise (0: none, SRNN).
        likelihood: for x in [0, 1] "bernoulli"; for 0 and 1 alone "nade" (Bernoulli entries, each given those before
            it: an autoregressive estimator of nade_size hidden units); for real numbers "gaussian", "mixture" (of
            mixture_size diagonal Gaussians), "ar_gaussian" (each entry with a linear prediction from those before it)
            or "student_t" (heavy tails); for counts "poisson" or "negative_binomial"; for class indices
            0..num_classes-1 "categorical". Other values are refused (on a GPU with VSSN_CHECK=1 only). Or a
            `vssn.likelihoods.Likelihood`, one of your own.
        mixture_size, nade_size, num_classes: components of the mixture; hidden units of the estimator; classes.
        control, control_size: u_t: "previous" (x_{t-1}), "external" (u of that size), "both" or "none".
        mlp_size: M, hidden units of every MLP (None: hidden_size).
        embed_size: features of the embeddings e_x and e_u (None: no embedding, unless `encoder` is given).
        backward_size: A, units of the backward state (None: hidden_size).
        activation: of the MLPs: "tanh", "relu", "leaky_relu" (slope 1/3) or "silu".
        residual_posterior: the posterior's mean is the prior's plus an MLP.
        universal: "point" or "gaussian": a posterior over the duration GRU's recurrent weights; then num_sequences
            is needed, and prior_std is the prior's standard deviation.
        num_sequences: training sequences: the KL of those weights is shared among them.
        objective: "elbo" or "paper" (the KLs halved), for the loss alone.
        free_bits: in nats: the loss takes max(KL[t, b], free_bits), for z and w separately.
        min_logvar, min_logvar_x: floors of the log-variances of latents and of Gaussian emissions.
        initial_state: d_0 and z_0 are "zeros", "learned" parameters, or "inferred": d_0 then is a latent of the
            sequence, q(d_0 | x_{1:T}, u_{1:T}) from a backward GRU, whose KL is in kl_w of the first frame; z_0 zeros.
            None: "learned" with learn_initial_state, else "zeros".
        initial_size: S, units of what is inferred, with a linear map to d_0 where it is not D (None: D).
        learn_initial_state: initial_state="learned", by its older name.
        noise_smoothing: q(w_t | x_{t:T}, u_{t:T}) through a backward GRU, rather than q(w_t | x_t, u_t).
        inference: "smoothing", or "causal": q(z_t | z_{t-1}, x_{1:t}) through a GRU that runs forward, so that `filter`
            goes frame by frame; with neither noise_smoothing nor initial_state="inferred", which look ahead.
        masked: the networks get the mask of observed entries beside x; without a mask, NaN in x is missing.
        held_out: the last features, so many, are targets alone, which the networks never see: what the model says of
            them it infers from the others (co-smoothing of neurons).
        encoder: module [N, F] -> [N, embed_size] in place of e_x (F = X - held_out, twice that with masked: x, then
            mask).
        decoder: module [N, Z+D] -> [N, parameters of the likelihood] in place of the MLP on (z_t, d_t).
        scaling: of the data, with a likelihood of real numbers: the networks see standardised frames and controls, all
            that goes in and comes out, log-densities too, is in the unit of the data. Kept as buffers.
        batch_first: sequences are [B, T, ·].
        device, dtype: of the parameters, those of modules that are given apart.

    Raises:
        ValueError: a size or a choice that is not possible, named with what was expected.
    """

    mean_u: Tensor | None  # [U] of the scaling, where there is one
    std_u: Tensor

    def __init__(
        self,
        x_size: int,
        hidden_size: int,
        latent_size: int,
        noise_size: int = 0,
        *,
        likelihood: str | Likelihood = "bernoulli",
        mixture_size: int = 20,
        nade_size: int = 128,
        num_classes: int = 2,
        control: str = "previous",
        control_size: int = 0,
        mlp_size: int | None = None,
        embed_size: int | None = None,
        backward_size: int | None = None,
        activation: str = "tanh",
        residual_posterior: bool = False,
        universal: str = "point",
        prior_std: float = 0.1,
        num_sequences: int | None = None,
        objective: str = "elbo",
        free_bits: float = 0.0,
        min_logvar: float = -12.0,
        min_logvar_x: float = -10.0,
        initial_state: str | None = None,
        initial_size: int | None = None,
        learn_initial_state: bool = False,
        noise_smoothing: bool = False,
        inference: str = "smoothing",
        masked: bool = False,
        held_out: int = 0,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        scaling: Scaling | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_size("x_size", x_size, 1)
        require_size("mixture_size", mixture_size, 1)
        require_size("nade_size", nade_size, 1)
        require_size("num_classes", num_classes, 2)
        require_choice("objective", objective, OBJECTIVES)
        if embed_size is not None:
            require_size("embed_size", embed_size, 1)
        if encoder is not None and embed_size is None:
            raise ValueError("embed_size must be given with encoder: the number of features that it returns")
        if universal == "gaussian" and num_sequences is None:
            raise ValueError("num_sequences must be given with universal='gaussian': the number of training sequences")
        if num_sequences is not None:
            require_size("num_sequences", num_sequences, 1)
        require_number("free_bits", free_bits, 0.0)
        require_number("min_logvar_x", min_logvar_x)
        require_control(control, control_size)
        self.x_size, self.control_size, self.masked, self.batch_first = x_size, control_size, masked, batch_first
        self.objective, self.free_bits, self.num_sequences = objective, float(free_bits), num_sequences
        require_size("held_out", held_out, 0)
        if held_out >= x_size:
            raise ValueError(f"held_out must be below x_size={x_size}, got {held_out}")
        self.held_out, seen = held_out, x_size - held_out
        self.frame_size = 2 * seen if masked else seen  # F: what the networks see of a frame
        self.layer = VSSNLayer(
            embed_size or self.frame_size,
            hidden_size,
            latent_size,
            noise_size,
            control=control,
            control_size=(embed_size or control_size) if control_size else 0,
            mlp_size=mlp_size,
            backward_size=backward_size,
            activation=activation,
            residual_posterior=residual_posterior,
            universal=universal,
            prior_std=prior_std,
            min_logvar=min_logvar,
            initial_state=initial_state,
            initial_size=initial_size,
            learn_initial_state=learn_initial_state,
            noise_smoothing=noise_smoothing,
            inference=inference,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )
        self.initial_size = self.layer.initial_size
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.encoder = encoder
        if encoder is None and embed_size is not None:
            self.encoder = Embedding(self.frame_size, embed_size, activation, **factory)
        self.control_encoder = None
        if embed_size is not None and control_size:
            self.control_encoder = Embedding(control_size, embed_size, activation, **factory)
        sizes_x = {"mixture_size": mixture_size, "nade_size": nade_size, "num_classes": num_classes}
        options = {**sizes_x, "min_logvar_x": min_logvar_x}
        self.likelihood = make_likelihood(likelihood, x_size, options, **factory)
        scaling = (
            None if scaling is None else check_scaling(scaling, x_size, control_size).like(self.layer.a_parameter())
        )
        self.is_scaled = scaling is not None
        if scaling is not None:
            self.likelihood = Scaled(self.likelihood, scaling.x_mean, scaling.x_std)
        self.register_buffer("mean_u", None if scaling is None else scaling.u_mean)
        self.register_buffer("std_u", None if scaling is None else scaling.u_std)
        self.decoder = decoder
        if decoder is None:
            sizes = (latent_size, hidden_size)
            self.emission = MLP(sizes, self.layer.mlp_size, self.likelihood.parameter_size, activation, **factory)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does.

        Raises:
            TypeError: a module in `encoder` or `decoder` has parameters and no reset_parameters.
        """
        reset_children(self)

    def forward(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        state: AnyState | tuple[Tensor, ...] | None = None,
        noise: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        kl_weight: float | Tensor = 1.0,
        coordinated_dropout: float = 0.0,
    ) -> VSSNOutput:
        """One sample of the objective and of its parts.

        Args:
            x: [T, B, X] ([B, T, X] with batch_first; u, mask and noise likewise); not read at padding and where
                mask is False, NaN included.
            u: [T, B, U] external control.
            lengths: [B] int64, each in [0, T]; None: all T steps.
            state: (d [B, D], z [B, Z], x_last [B, F]) of the chunk before, with inference="causal" and a latent a
                [B, A] behind them; None starts anew. Detach it to truncate back-propagation. An a_t that runs backward
                sees its own chunk only.
            noise: (eps_w [T, B, W], eps_z [T, B, Z]) standard normal, with eps_0 [B, S] behind them where d_0 is
                inferred; None draws it.
            mask: [T, B] or [T, B, X] bool, True where x is observed; None: everywhere, with masked=True where x is
                not NaN.
            kl_weight: factor of both KLs in the loss (annealing).
            coordinated_dropout: share of the entries of x, drawn anew, that is hidden from the networks, the rest
                scaled up (with masked: marked as not observed instead). The loss then takes the reconstruction of the
                hidden entries alone, over the share: it has the expectation of the whole one, and no entry is
                explained by itself (Keshtkaran and Pandarinath 2019). The reported parts are those of all entries.

        Returns:
            VSSNOutput; reconstruction, kl_z and kl_w [T, B] are zero at padding. kl_w of the first frame holds the KL
            of an inferred d_0, once a sequence: none where `state` is given.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came; so too for values outside the
                likelihood's support, NaN and infinity (DataError, a ValueError; on a GPU with VSSN_CHECK=1 only).
        """
        kl_weight = require_factor("kl_weight", kl_weight)
        given = self.prepare(x, u, lengths, state, mask, coordinated_dropout)
        x, valid = given.x, given.valid
        noise = self.layer.draw_noise(x) if noise is None else self.layer.check_noise(noise, x, valid)
        # A call of the layer, so that its hooks, FSDP and torch.compile(model.layer) take part.
        result: Inference = self.layer(Embedded(given.embedded, given.controls, noise), given.start, lengths)

        parameters = self.decode(result.z, result.d)
        reconstruction = zero_padding(self.likelihood.log_prob(parameters, x, given.observed), valid)
        kl_w = charged(result)
        elbo = (reconstruction - result.kl_z - kl_w).sum(0)
        target = reconstruction
        if given.hidden is not None:
            target = zero_padding(self.likelihood.log_prob(parameters, x, given.hidden), valid) / coordinated_dropout
        loss = self._loss(target, result, kl_weight, valid)
        x_last = last_valid(given.frames[1:], given.frames[0], lengths)
        next_state = self.layer.make_state(result.d_last, result.z_last, x_last, result.a_last)
        per_frame = [swap(part, self.batch_first) for part in (reconstruction, result.kl_z, kl_w)]
        return VSSNOutput(loss, elbo, per_frame[0], per_frame[1], per_frame[2], next_state)

    def prepare(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        state: AnyState | tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        coordinated_dropout: float = 0.0,
    ) -> EncodedBatch:
        """What inference starts from: the arguments of `forward`, checked, and the embeddings of every frame."""
        like = self.layer.a_parameter()
        x, u = check_sequences(x, u, self.x_size, self.control_size, self.batch_first, like)
        check_lengths(lengths, x)
        valid = valid_steps(lengths, x)
        observed = check_mask(mask, x, self.batch_first)
        x, u = zero_padding(x, valid), zero_padding(u, valid)
        if self.masked and mask is None:
            observed = nan_as_missing(x)
        if observed is not None:
            x = torch.where(observed, x, x.new_zeros(()))
        require_values("x", x, self.likelihood.support, MARK_MISSING, self.likelihood.title)
        require_finite("u", u, NO_NAN_IN_U)
        start = None if state is None else self.layer.start_state(state, x.shape[1], self.frame_size, x)
        x_last = x.new_zeros(x.shape[1], self.frame_size) if start is None else start.x_last
        seen, seen_where, hidden = x, observed, None
        if coordinated_dropout:
            seen, seen_where, hidden = self._hide(x, observed, coordinated_dropout)
        frames = with_first(x_last, self.frames(seen, seen_where))
        embedded = self._encode(frames)  # once: e_u(x_{t-1}) is e_x one step before
        controls = self.layer.select_controls(embedded[:-1], self._encode_control(u))
        return EncodedBatch(x, observed, valid, frames, embedded[1:], controls, start, hidden)

    def _hide(self, x: Tensor, observed: Tensor | None, rate: float) -> tuple[Tensor, Tensor | None, Tensor]:
        """x [T, B, X] as the networks see it, where it is observed for them, and the entries that are not shown."""
        require_number("coordinated_dropout", rate, 0.0)
        if rate >= 1:
            raise ValueError(f"coordinated_dropout must be below 1, got {rate}")
        dropped = torch.rand_like(x, dtype=torch.float32) < rate
        nothing = self.likelihood.mean_x if self.is_scaled else x.new_zeros(())  # what the networks see as 0
        shown = torch.where(dropped, nothing, x)
        hidden = dropped if observed is None else dropped & observed
        if self.masked:
            return shown, ~dropped if observed is None else observed & ~dropped, hidden
        return nothing + (shown - nothing) / (1 - rate), observed, hidden

    def frames(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """What the networks see: x [T, B, X] but for what is held out, with scaling standardised, with masked the mask
        beside it."""
        if self.is_scaled:
            x = self.likelihood.standardised(x, observed)
        if self.held_out:
            x, observed = x[..., : -self.held_out], None if observed is None else observed[..., : -self.held_out]
        if not self.masked:
            return x
        beside = torch.ones_like(x) if observed is None else observed.to(x.dtype)
        return torch.cat((x, beside), -1)

    @property
    def scaling(self) -> Scaling | None:
        if not self.is_scaled:
            return None
        return Scaling(self.likelihood.mean_x, self.likelihood.std_x, self.mean_u, self.std_u)

    def _encode(self, frames: Tensor) -> Tensor:
        if self.encoder is None:
            return frames
        rows = self.encoder(frames.reshape(-1, frames.shape[-1]))
        require_shape("what encoder returns", rows, "[N, embed_size]", (frames[..., 0].numel(), self.layer.input_size))
        return rows.view(*frames.shape[:2], self.layer.input_size)

    def _encode_control(self, u: Tensor | None) -> Tensor | None:
        if u is not None and self.mean_u is not None:
            u = (u - self.mean_u) / self.std_u
        return u if u is None or self.control_encoder is None else self.control_encoder(u)

    def control(self, x_last: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
        """What makes u_t of one step, each [1, B, ·], from the frame before it [B, F] and the external [1, B, U]."""
        return self.layer.select_controls(self._encode(x_last[None]), self._encode_control(u))

    def decode(self, z: Tensor, d: Tensor) -> Tensor:
        """The likelihood's parameters [T, B, P] from z [T, B, Z], d [T, B, D]."""
        if self.decoder is None:
            return self.emission(z, d)
        rows = self.decoder(torch.cat((z, d), -1).flatten(0, 1))
        expected = (z.shape[0] * z.shape[1], self.likelihood.parameter_size)
        require_shape("what decoder returns", rows, "[N, parameters of the likelihood]", expected)
        return rows.view(*z.shape[:2], self.likelihood.parameter_size)

    def _loss(
        self, reconstruction: Tensor, result: Inference, kl_weight: float | Tensor, valid: Tensor | None
    ) -> Tensor:
        """-sum of the objective / frames, plus the share of these sequences in the universal KL."""
        kl_z, kl_w = result.kl_z, result.kl_w
        weight = kl_weight * (0.5 if self.objective == "paper" else 1.0)
        if self.free_bits:
            kl_z, kl_w = (
                zero_padding(kl.clamp(min=self.free_bits), valid) if size else kl
                for kl, size in ((kl_z, self.layer.latent_size), (kl_w, self.layer.noise_size))
            )
        total = (weight * (kl_z + kl_w) - reconstruction).sum()
        if result.kl_0 is not None:
            total = total + weight * result.kl_0.sum()
        steps, batch = reconstruction.shape
        frames = total.new_full((), steps * batch) if valid is None else valid.sum().to(total.dtype)
        if result.universal_kl is not None and self.num_sequences is not None:
            share = batch / self.num_sequences
            total = total + share * kl_weight * result.universal_kl * (frames > 0)
        return total / frames.clamp(min=1)

    def extra_repr(self) -> str:
        return (
            f"{self.x_size}, objective={self.objective!r}"
            + (f", control_size={self.control_size}" if self.control_size else "")
            + (f", held_out={self.held_out}" if self.held_out else "")
            + (f", free_bits={self.free_bits}" if self.free_bits else "")
            + (f", num_sequences={self.num_sequences}" if self.num_sequences else "")
            + "".join(f", {name}=True" for name in ("masked", "batch_first") if getattr(self, name))
        )

    # What scores, bounds and filtering take, as SequenceModel says

    @property
    def noise_sizes(self) -> tuple[int, int]:
        return self.layer.noise_size, self.layer.latent_size

    @property
    def causal(self) -> bool:  # type: ignore[override]
        layer = self.layer
        free = layer.inference == "causal" or not layer.latent_size
        return free and not layer.initial_size and not (layer.noise_smoothing and layer.noise_size)

    def set_batch_first(self, batch_first: bool) -> None:
        self.batch_first = self.layer.batch_first = batch_first

    def a_parameter(self) -> Tensor:
        return self.layer.a_parameter()

    def infer(
        self, given: EncodedBatch, noise: tuple[Tensor, ...], lengths: Tensor | None = None, stop: int | None = None
    ) -> tuple[Tensor, Tensor, AnyState]:
        stop = given.x.shape[0] if stop is None else stop
        controls = tuple(part[:stop] for part in given.controls)
        noise = (noise[0][:stop], noise[1][:stop], *noise[2:])
        a_0 = self.layer.carried_a(given.start)
        result = self.layer.infer(given.embedded[:stop], controls, *self._start(given), noise, lengths, a_0)
        x_last = last_valid(given.frames[1 : stop + 1], given.frames[0], lengths)
        return result.d, result.z, self.layer.make_state(result.d_last, result.z_last, x_last, result.a_last)

    def infer_prefixes(self, given: EncodedBatch, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        a_0 = self.layer.carried_a(given.start)
        return infer_prefixes(self.layer, given.embedded, given.controls, self._start(given), noise, a_0)

    def infer_noise(
        self, given: EncodedBatch, noise: tuple[Tensor, ...], lengths: Tensor | None = None, prefixes: bool = False
    ) -> Tensor:
        return infer_noise(self.layer, given.embedded, given.controls, noise[0], lengths, prefixes)

    def _start(self, given: EncodedBatch) -> tuple[Tensor | None, Tensor]:
        """d_0, None where it is to be inferred, and z_0."""
        if given.start is not None:
            return given.start[:2]
        return self.layer.initial_state(given.x.shape[1], given.x)

    def step_from_prior(
        self, controls: tuple[Tensor, ...], d: Tensor, z: Tensor, noise: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        return self.layer.step_from_prior(controls, d, z, self.layer.weight_noise(), noise)

    def propose(self, given: EncodedBatch, state: AnyState, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        eps_w, eps_z = noise[:2]
        if not self.layer.noise_size or self.layer.noise_smoothing:
            return super().propose(given, state, noise)
        mu, logvar = self.layer.infer_noise(given.embedded, given.controls, None)
        w = mu + torch.exp(logvar / 2) * eps_w
        d, z = self.step_from_prior(given.controls, state.d, state.z, (w, eps_z))
        return d, z, ((eps_w.square() + logvar - w.square()).sum(-1) / 2)[0]

    def behind(self, state: AnyState, controls: tuple[Tensor, ...], d: Tensor, z: Tensor, frame: Tensor) -> AnyState:
        a = self.layer.carried_a(state)
        if a is not None:
            a = self.layer.step_a(self._encode(frame), controls, d, a)
        return self.layer.make_state(d, z, frame[0], a)

    def filter_steps(self, batch: int) -> FilterSteps | None:
        return make_filter_steps(self, batch) if type(self) is VSSN else None

    def prior_steps(self) -> PriorSteps:
        decode = self.decode if self.decoder is not None else prepare(self.emission)
        return PriorSteps(LayerSteps(self.layer, self.layer.weight_noise()), decode)

    def particles(self, given: EncodedBatch, lengths: Tensor) -> LayerParticles:
        return LayerParticles(self.layer, given.embedded, given.controls, lengths, given.x)

    def floats_per_frame(self, x: Tensor) -> Floats:
        shared, states, emission, between = floats_of_particles(self.layer)
        shared += 3 * self.x_size + 3 * self.frame_size
        return Floats(shared, states, emission + self.likelihood.floats_per_frame(x), between)

    @torch.no_grad()
    def generate(
        self,
        steps: int,
        batch_size: int = 1,
        *,
        u: Tensor | None = None,
        state: AnyState | None = None,
        sample: bool = True,
    ) -> Generation:
        """Runs the generative model on from `state` (None: from the start), w and z drawn from their priors.

        Args:
            steps: T, frames to generate.
            batch_size: B; with a state the state's own.
            u: [T, B, U] external control, [B, T, U] with batch_first.
            sample: feed samples of x_t back; False: its mean given z_t and d_t.

        Returns:
            Generation(x, mean [T, B, X], state).

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        require_size("steps", steps, 0)
        require_size("batch_size", batch_size, 0)
        require_flag("sample", sample)
        batch = batch_size if state is None else None
        like = torch.empty(0, dtype=self.layer.dtype, device=self.layer.device)
        current = self.layer.start_state(state, batch, self.frame_size, like)
        nothing = current.x_last.new_zeros(steps, current.x_last.shape[0], self.x_size)
        u = check_control("u", u, nothing, self.control_size, self.batch_first)
        require_finite("u", u, NO_NAN_IN_U)
        prior = self.prior_steps()
        xs, means = [], []
        for t in range(steps):
            here = None if u is None else u[t : t + 1]
            controls = self.control(current.x_last, here)
            d, z = prior.step(controls, current.d, current.z)
            parameters = prior.decode(z[None], d[None])
            mean = self.likelihood.mean(parameters)
            x = self.likelihood.sample(parameters) if sample else mean
            current = self.behind(current, controls, d, z, self.frames(x, None))
            xs.append(x)
            means.append(mean)
        stacked = [swap(torch.cat(part) if part else nothing, self.batch_first) for part in (xs, means)]
        return Generation(stacked[0], stacked[1], current)
