"""VSSN: the whole model, a VSSNLayer between embeddings and emission density; the rest is FrameModel's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vssn.likelihoods.base import Likelihood
from vssn.models.base import FrameModel
from vssn.models.objectives import particle_output, takes_particles
from vssn.nn.blocks import Embedding
from vssn.nn.filter_steps import FilterSteps, make_filter_steps
from vssn.nn.interface import EncodedBatch, Floats, Hiding, PriorSteps, SequenceOutput
from vssn.nn.layer import AnyState, Embedded, Inference, VSSNLayer, require_control
from vssn.nn.layer_arguments import UNIVERSALS
from vssn.nn.paths import LayerParticles, floats_of_particles, infer_noise, infer_prefixes
from vssn.nn.prepared import LayerSteps, is_own
from vssn.utils.checks import require_choice, require_factor, require_size
from vssn.utils.scaling import Scaling
from vssn.utils.sequences import last_valid

VSSNOutput = SequenceOutput  # by the name that users know


class VSSN(FrameModel):
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
            0..num_classes-1 "categorical". Other values are refused (on a GPU with VSSN_CHECK=1 only). In
            Python also a `vssn.likelihoods.Likelihood`, one of your own.
        mixture_size, nade_size, num_classes: components of the mixture; hidden units of the estimator; classes.
        control, control_size: u_t: "previous" (x_{t-1}), "external" (u of that size), "both" or "none".
        mlp_size: M, hidden units of every MLP (None: hidden_size).
        embed_size: features of the embeddings e_x and e_u (None: no embedding, unless `encoder` is given).
        backward_size: A, units of the backward state (None: hidden_size).
        activation: of the MLPs: "tanh", "relu", "leaky_relu" (slope 1/3) or "silu".
        residual_posterior: the posterior's mean is the prior's plus an MLP.
        universal: "point" or "gaussian": a posterior over the duration GRU's recurrent weights; then num_sequences
            is needed.
        prior_std: standard deviation of those weights' prior.
        num_sequences: training sequences: the KL of those weights is shared among them.
        objective: "elbo", "paper" (the KLs halved), or of weighted particles "iwae", "fivo" or "nasmc", for the loss
            alone (vssn/models/objectives.py).
        particles: K, of the last three.
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
        particles: int | None = None,
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
        require_control(control, control_size)
        require_choice("universal", universal, UNIVERSALS)
        if universal == "gaussian" and num_sequences is None:
            raise ValueError("num_sequences must be given with universal='gaussian': the number of training sequences")
        if num_sequences is not None:
            require_size("num_sequences", num_sequences, 1)
        self.num_sequences = num_sequences
        self._set_frames(
            x_size,
            control_size,
            embed_size=embed_size,
            encoder=encoder,
            objective=objective,
            particles=particles,
            free_bits=free_bits,
            masked=masked,
            held_out=held_out,
            batch_first=batch_first,
        )
        self.layer = VSSNLayer(
            self.embedded_size,
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
        self._make_encoder(encoder, embed_size, activation, **factory)
        if embed_size is not None and control_size:
            self.control_encoder = Embedding(control_size, embed_size, activation, **factory)
        sizes_x = {"mixture_size": mixture_size, "nade_size": nade_size, "num_classes": num_classes}
        self._make_likelihood(likelihood, {**sizes_x, "min_logvar_x": min_logvar_x}, scaling, **factory)
        self._make_emission(decoder, (latent_size, hidden_size), self.layer.mlp_size, activation, **factory)

    def forward(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        state: AnyState | tuple[Tensor, ...] | None = None,
        noise: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        kl_weight: float | Tensor = 1.0,
        coordinated_dropout: float | Hiding = 0.0,
        initial_kl_weight: float | Tensor | None = None,
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
                inferred; None draws it. With an objective of particles None draws that of all of them, and
                `vssn.nn.particles.ParticleNoise` gives it; noise of one draw makes a loss of one draw, that of
                "elbo".
            mask: [T, B] or [T, B, X] bool, True where x is observed; None: everywhere, with masked=True where x is
                not NaN.
            kl_weight: factor of both KLs in the loss (annealing).
            coordinated_dropout: share of the entries of x, drawn anew, that is hidden from the networks, the rest
                scaled up (with masked: marked as not observed instead). The loss then takes the reconstruction of the
                hidden entries alone, over the share: it has the expectation of the whole one, and no entry is
                explained by itself (Keshtkaran and Pandarinath 2019). The reported parts are those of all entries. Or
                the share and the entries, `vssn.nn.interface.Hiding`.
            initial_kl_weight: factor of the KL of an inferred d_0 in the loss; None: kl_weight. One that rises later
                lets d_0 tell of the dynamics before w and z tell of every frame.

        Returns:
            VSSNOutput; reconstruction, kl_z and kl_w [T, B] are zero at padding. kl_w of the first frame holds the KL
            of an inferred d_0, once a sequence: none where `state` is given.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came; so too for values outside the
                likelihood's support, NaN and infinity (DataError, a ValueError; on a GPU with VSSN_CHECK=1 only).
        """
        if takes_particles(self, noise):
            alone = {"coordinated_dropout": coordinated_dropout, "initial_kl_weight": initial_kl_weight}
            return particle_output(self, x, u, lengths, state, noise, mask, kl_weight, **alone)
        kl_weight = require_factor("kl_weight", kl_weight, self.a_parameter())
        if initial_kl_weight is not None:
            initial_kl_weight = self._require_initial_factor(initial_kl_weight)
        given = self.prepare(x, u, lengths, state, mask, coordinated_dropout)
        own = self.layer
        noise = own.draw_noise(given.x) if noise is None else own.check_noise(noise, given.x, given.valid)
        # A call of the layer, so that its hooks, FSDP and torch.compile(model.layer) take part.
        result: Inference = self.layer(Embedded(given.embedded, given.controls, noise), given.start, lengths)
        x_last = last_valid(given.frames[1:], given.frames[0], lengths)
        state_behind = self.layer.make_state(result.d_last, result.z_last, x_last, result.a_last)
        return self._output(given, result, state_behind, kl_weight, coordinated_dropout, initial_kl_weight)

    def _require_initial_factor(self, value: float | Tensor) -> float | Tensor:
        if not self.initial_size:
            raise ValueError("initial_kl_weight must be left out without initial_state='inferred'")
        return require_factor("initial_kl_weight", value, self.a_parameter())

    def start_state(self, state: object, batch: int | None, like: Tensor) -> AnyState:
        return self.layer.start_state(state, batch, self.frame_size, like)

    def make_controls(self, frames: Tensor, embedded: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
        return self.layer.select_controls(embedded, u)

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
        super().set_batch_first(batch_first)
        self.layer.batch_first = batch_first

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

    def weights_kl(self) -> Tensor | None:
        return None if self.layer.universal == "point" else self.layer.universal_kl()

    def _start(self, given: EncodedBatch) -> tuple[Tensor | None, Tensor]:
        """d_0, None where it is to be inferred, and z_0."""
        if given.start is not None:
            return given.start[0], given.start[1]
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
        if is_own(self, VSSN, "step_from_prior"):
            return PriorSteps(LayerSteps(self.layer, self.layer.weight_noise()), self.prepared_decode())

        def step(controls: tuple[Tensor, ...], d: Tensor, z: Tensor, noise: Any = None) -> tuple[Tensor, Tensor]:
            return self.step_from_prior(controls, d, z, self.layer.draw_noise(d[None]) if noise is None else noise)

        return PriorSteps(step, self.prepared_decode())

    def particles(self, given: EncodedBatch, lengths: Tensor) -> LayerParticles:
        return LayerParticles(self.layer, given.embedded, given.controls, lengths, given.x, given.start)

    def floats_per_frame(self, x: Tensor) -> Floats:
        shared, states, emission, between = floats_of_particles(self.layer)
        shared += 3 * self.x_size + 3 * self.frame_size
        return Floats(shared, states, emission + self.likelihood.floats_per_frame(x), between)
