"""RSSM: the recurrent state-space model of PlaNet and Dreamer v1 as a model of sequences: an RSSMLayer between
embeddings and emission density.

h_t = GRU(h_{t-1}, act(W [z_{t-1}, u_t] + b)),  z_t ~ p(z_t | h_t),  x_t ~ p(x_t | z_t, h_t);   q(z_t | h_t, x_t)
elbo:   F = sum_t log p(x_t | z_t, h_t) - KL(q(z_t | h_t, x_t) || p(z_t | h_t))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vssn.likelihoods.base import Likelihood
from vssn.models.base import FrameModel
from vssn.models.objectives import OBJECTIVES, OF_PARTICLES, particle_output, takes_particles
from vssn.nn.given import check_noise, check_starts, check_state, draw_noise
from vssn.nn.interface import EncodedBatch, Floats, Hiding, PriorSteps, SequenceOutput
from vssn.nn.prepared import is_own
from vssn.nn.rssm_layer import Inferred, RSSMLayer
from vssn.nn.rssm_particles import RSSMParticles, floats_of_particles
from vssn.nn.rssm_states import KLLoss, Observed, RSSMState, balanced_kl, check_balance, kl_loss
from vssn.nn.states import AnyState, Inference, State
from vssn.utils.checks import require_choice, require_factor, require_like, require_size, require_tensor
from vssn.utils.named_tuples import with_parts
from vssn.utils.numbers import Count, NotNegative, Share
from vssn.utils.scaling import Scaling
from vssn.utils.sequences import last_valid, zero_padding
from vssn.utils.values import nan_as_missing, require_finite
from vssn_kernels.arguments import is_dense

CONTROLS = ("external", "none")


class RSSM(FrameModel):
    """The recurrent state-space model of PlaNet (Hafner et al. 2019) and Dreamer v1 (2020): states that actions drive.

    As a model of sequences it takes frames x and actions u, u[t] the one that led to frame t, and does what every model
    here does: training, bounds, forecasts under actions to come, filters, files. A world model's own code calls
    `observe`, `imagine` and `kl_loss` on embedded frames (`encode`), time-major, as `vssn.RSSMLayer` has them.

    PlaNet's cell is Dreamer's; its resets before the product are those of `is_first`. The layer normalisation of
    Dreamer v2 and v3 is not here.

    Args:
        x_size: X, features of a frame.
        hidden_size: H, units of the deterministic state ("deter").
        latent_size: Z, units of the latent ("stoch").
        likelihood, mixture_size, nade_size, num_classes, min_logvar_x: as in `vssn.VSSN`.
        control, control_size: "external": actions u of that size; "none".
        mlp_size: M, hidden units of prior, posterior and decoder (None: hidden_size).
        joint_size: E, units of the layer over [z, action] (None: mlp_size).
        embed_size: features of an embedded frame (None: no embedding, unless `encoder` is given).
        activation: of all layers: "elu", "relu", "tanh", "leaky_relu" (slope 1/3), "silu" or "identity".
        scale: of prior and posterior: "softplus": std = softplus(raw) + min_std, as Dreamer has it; "logvar":
            logvar = min_logvar + softplus(raw - min_logvar), as the other models here.
        min_std, min_logvar: their floors.
        latent: "gaussian", or "categorical": groups of one-hot classes, as in `vssn.RSSMLayer`.
        classes, unimix: of a group; share of the uniform distribution in its probabilities.
        initial_state: where a sequence starts h and z are "zeros", or "learned" parameters.
        objective: as in `vssn.VSSN`; "iwae" and "fivo" with Gaussian latents only.
        particles: as in `vssn.VSSN`.
        kl_balance: None: the KL as it is. A number in [0, 1]: its gradient reaches the prior by this share and the
            posterior by the rest, in the loss alone (Dreamer v2: 0.8).
        free_bits: in nats: the loss takes max(KL[t, b], free_bits).
        masked, held_out, encoder, scaling, batch_first: as in `vssn.VSSN`.
        decoder: as in `vssn.VSSN`, of [N, Z+H].
        device, dtype: of the parameters, those of modules that are given apart.

    Raises:
        ValueError: a size or a choice that is not possible, named with what was expected.
    """

    causal = True

    def __init__(
        self,
        x_size: int,
        hidden_size: int,
        latent_size: int,
        *,
        likelihood: str | Likelihood = "bernoulli",
        mixture_size: int = 20,
        nade_size: int = 128,
        num_classes: int = 2,
        control: Literal["external", "none"] = "external",
        control_size: int = 0,
        mlp_size: int | None = None,
        joint_size: Count | None = None,
        embed_size: int | None = None,
        activation: Literal["elu", "relu", "tanh", "leaky_relu", "silu", "identity"] = "elu",
        scale: Literal["softplus", "logvar"] = "softplus",
        min_std: NotNegative = 0.1,
        min_logvar: float = -12.0,
        latent: Literal["gaussian", "categorical"] = "gaussian",
        classes: Count = 32,
        unimix: Share = 0.01,
        initial_state: Literal["zeros", "learned"] = "zeros",
        objective: str = "elbo",
        particles: Count | None = None,
        kl_balance: Share | None = None,
        free_bits: float = 0.0,
        min_logvar_x: float = -10.0,
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
        require_choice("control", control, CONTROLS)
        require_size("control_size", control_size, 1 if control == "external" else 0)
        if control == "none" and control_size:
            raise ValueError(f"control_size must be 0 with control='none', got {control_size}")
        check_balance(kl_balance, "kl_balance")
        require_choice("objective", objective, OBJECTIVES)
        if objective in OF_PARTICLES and kl_balance is not None:
            raise ValueError(f"kl_balance must be None with objective={objective!r}, which has no KL, got {kl_balance}")
        if objective in ("iwae", "fivo") and latent == "categorical":
            raise ValueError(
                f"objective must be 'elbo', 'paper' or 'nasmc' with latent='categorical', which has no pathwise "
                f"gradient, got {objective!r}"
            )
        self.kl_balance = None if kl_balance is None else float(kl_balance)
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layer = RSSMLayer(
            self.embedded_size,
            control_size,
            hidden_size,
            latent_size,
            mlp_size=mlp_size,
            joint_size=joint_size,
            activation=activation,
            scale=scale,
            min_std=min_std,
            min_logvar=min_logvar,
            latent=latent,
            classes=classes,
            unimix=unimix,
            initial_state=initial_state,
            **factory,
        )
        self._make_encoder(encoder, embed_size, activation, **factory)
        sizes_x = {"mixture_size": mixture_size, "nade_size": nade_size, "num_classes": num_classes}
        self._make_likelihood(likelihood, {**sizes_x, "min_logvar_x": min_logvar_x}, scaling, **factory)
        self._make_emission(decoder, (latent_size, hidden_size), self.layer.mlp_size, activation, **factory)

    # A model of sequences

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
        is_first: Tensor | None = None,
    ) -> SequenceOutput:
        """One sample of the objective and of its parts.

        Args:
            x: [T, B, X] ([B, T, X] with batch_first; u, mask, noise and is_first likewise); not read at padding and
                where mask is False, NaN included.
            u: [T, B, U] actions, u[t] led to frame t.
            lengths: [B] int64, each in [0, T]; None: all T steps.
            state: (d [B, H], z [B, Z], x_last [B, F]) of the chunk before; None starts anew. Detach it to truncate
                back-propagation.
            noise: (eps_w [T, B, 0], eps_z [T, B, Z]) standard normal; None draws it.
            mask: [T, B] or [T, B, X] bool, True where x is observed; None: everywhere, with masked=True where x is
                not NaN.
            kl_weight: factor of the KL in the loss (annealing).
            coordinated_dropout: as in `VSSN.forward`.
            is_first: [T, B] bool, True where frame t is the first of an episode: what came before it, and u[t], have no
                part in it. None: nowhere.

        Returns:
            SequenceOutput, whose kl_w is 0; the state's d is h.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came; so too for values outside the
                likelihood's support, NaN and infinity (DataError, a ValueError; on a GPU with VSSN_CHECK=1 only).
        """
        if takes_particles(self, noise):
            alone = {"coordinated_dropout": coordinated_dropout, "is_first": is_first}
            return particle_output(self, x, u, lengths, state, noise, mask, kl_weight, **alone)
        kl_weight = require_factor("kl_weight", kl_weight, self.a_parameter())
        given = self.prepare(x, _without_first(u, is_first), lengths, state, mask, coordinated_dropout)
        x, sizes = given.x, self.noise_sizes
        if is_first is not None:
            given = with_parts(given, resets=check_starts("is_first", is_first, x, self.batch_first, "the frames are"))
        if noise is None:
            noise = draw_noise(x, sizes)
        else:
            noise = check_noise(noise, x, sizes, valid=given.valid, batch_first=self.batch_first)
        h, z, q, p = self._run(given, noise[1], lengths)
        kl, trained = self.layer.latent.kl(q, p), None
        if self.kl_balance is not None:
            trained = balanced_kl(self.layer.latent, kl, q, p, self.kl_balance)
        kl, trained = zero_padding(kl, given.valid), zero_padding(trained, given.valid)
        behind = self._state_behind(given, h, z, lengths)
        result = Inference(h, z, kl, torch.zeros_like(kl), behind.d, behind.z, kl_z_trained=trained)
        return self._output(given, result, behind, kl_weight, coordinated_dropout)

    def _run(self, given: EncodedBatch, eps: Tensor, lengths: Tensor | None, stop: int | None = None) -> Inferred:
        """The layer on the frames before `stop`."""
        action, resets = given.controls[0] if given.controls else None, given.resets
        action, resets = (part if part is None else part[:stop] for part in (action, resets))
        found: Inferred = self.layer(given.embedded[:stop], action, eps[:stop], self._start(given), resets, lengths)
        return found

    def start_state(self, state: object, batch: int | None, like: Tensor) -> State:
        """The state given, checked; for None one before the first frame. Args: batch: B; None: that of the state."""
        if state is None:
            assert batch is not None
            h, z = self.layer.start(batch, like)
            return State(h, z, like.new_zeros(batch, self.frame_size))
        layer = self.layer
        sizes = {"d": ("H", layer.hidden_size), "z": ("Z", layer.latent_size), "x_last": ("F", self.frame_size)}
        return State(*check_state(state, sizes, batch, like))

    def make_controls(self, frames: Tensor, embedded: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
        return () if u is None else (u,)

    @property
    def noise_sizes(self) -> tuple[int, int]:
        return 0, self.layer.latent_size

    def a_parameter(self) -> Tensor:
        return self.layer.a_parameter()

    def infer(
        self, given: EncodedBatch, noise: tuple[Tensor, ...], lengths: Tensor | None = None, stop: int | None = None
    ) -> tuple[Tensor, Tensor, AnyState]:
        stop = len(given.x) if stop is None else stop
        h, z, *_ = self._run(given, noise[1], lengths, stop)
        return h, z, self._state_behind(given, h, z, lengths)

    def infer_prefixes(self, given: EncodedBatch, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return self.infer(given, noise)[:2]

    def step_from_prior(
        self, controls: tuple[Tensor, ...], d: Tensor, z: Tensor, noise: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._step(self.layer.step_from_prior, controls, d, z, noise)

    @staticmethod
    def _step(
        step: Callable[..., tuple[Tensor, Tensor, Any]],
        controls: tuple[Tensor, ...],
        d: Tensor,
        z: Tensor,
        noise: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Args: step: the layer's `step_from_prior`, or what is prepared for it."""
        eps = torch.randn_like(z) if noise is None else noise[1][0]
        h, z, *_ = step(d, z, controls[0][0] if controls else None, eps)
        return h, z

    def prior_steps(self) -> PriorSteps:
        step = self.step_from_prior
        if is_own(self, RSSM, "step_from_prior"):
            step = partial(self._step, self.layer.prior_steps())
        return PriorSteps(step, self.prepared_decode())

    def _start(self, given: EncodedBatch) -> tuple[Tensor, Tensor] | None:
        return None if given.start is None else (given.start.d, given.start.z)

    def _state_behind(self, given: EncodedBatch, h: Tensor, z: Tensor, lengths: Tensor | None) -> State:
        h_0, z_0 = self._start(given) or self.layer.start(h.shape[1], h)
        x_last = last_valid(given.frames[1 : len(h) + 1], given.frames[0], lengths)
        return State(last_valid(h, h_0, lengths), last_valid(z, z_0, lengths), x_last)

    def particles(self, given: EncodedBatch, lengths: Tensor) -> RSSMParticles:
        return RSSMParticles(self.layer, given)

    def decode_particles(self, drawn: Tensor, d: Tensor) -> Tensor:
        return self.decode(*drawn.split((self.layer.latent_size, self.layer.hidden_size), -1))

    def floats_per_frame(self, x: Tensor) -> Floats:
        shared, states, emission, between = floats_of_particles(self.layer)
        shared += 3 * self.x_size + 3 * self.frame_size
        return Floats(shared, states, emission + self.likelihood.floats_per_frame(x), between)

    # A world model's calls, time-major whatever batch_first says

    def encode(self, x: Tensor) -> Tensor:
        """Frames [T, B, X] as `observe` takes them, [T, B, embed_size]; with masked=True NaN is missing.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came; so too for infinity and, unless
                it is missing, NaN (DataError, a ValueError; on a GPU with VSSN_CHECK=1 only).
        """
        x = require_tensor("x", x)
        if x.dim() != 3 or x.shape[-1] != self.x_size:
            raise ValueError(f"x must have shape [T, B, {self.x_size}], got {list(x.shape)}")
        require_like("x", x, self.a_parameter())
        observed = nan_as_missing(x) if self.masked else None
        if observed is not None:
            x = torch.where(observed, x, x.new_zeros(()))
        require_finite("x", x, "a model made with masked=True takes NaN as missing")
        return self._encode(self.frames(x, observed))

    def observe(
        self,
        embed: Tensor,
        action: Tensor | None = None,
        is_first: Tensor | None = None,
        state: RSSMState | tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
        *,
        noise: Tensor | None = None,
    ) -> Observed:
        """Filters embedded frames, those of `encode` or of an encoder of your own. As `RSSMLayer.observe`: embed
        [T, B, embed_size], action [T, B, U], is_first [T, B] bool."""
        return self.layer.observe(embed, self._scaled(action), is_first, state, noise=noise)

    def imagine(
        self,
        action: Tensor | Callable[[RSSMState], Tensor] | None,
        state: RSSMState | tuple[Tensor, Tensor, Tensor, Tensor],
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
    ) -> RSSMState:
        """Rolls the prior out behind a state, [B, ·], under actions [K, B, U] or a policy. As `RSSMLayer.imagine`;
        `decode(ahead.stoch, ahead.deter)` is what the frames are drawn from."""
        acts: Any = action
        if callable(action):  # so is no tensor

            def acts(now: RSSMState) -> Any:
                return self._scaled(action(now))

        else:
            acts = self._scaled(action)
        return self.layer.imagine(acts, state, steps=steps, noise=noise)

    def _scaled(self, action: Any) -> Any:
        """The action as the layer takes it; one that does not fit as it is, for the layer to say so."""
        if is_dense(action) and action.is_floating_point() and action.shape[-1:] == (self.control_size,):
            return self._encode_control(action)
        return action

    def initial(self, batch_size: int) -> RSSMState:
        """The states [B, ·] before a first frame; std is 0."""
        return self.layer.initial(batch_size)

    def kl_loss(
        self,
        posterior: RSSMState,
        prior: RSSMState,
        *,
        balance: float | None = None,
        free_bits: float = 0.0,
        average: bool = False,
    ) -> KLLoss:
        """The KL of `observe`'s two states with balancing and free bits. As `RSSMLayer.kl_loss`."""
        return kl_loss(posterior, prior, balance=balance, free_bits=free_bits, average=average)


def _without_first(u: Tensor | None, is_first: Tensor | None) -> Tensor | None:
    """u with 0 at first frames, where it may be NaN too; as it is where the two do not fit: that is said later."""
    if not (is_dense(u) and u.is_floating_point() and is_dense(is_first) and is_first.dtype == torch.bool):
        return u
    fit = is_first.shape == u.shape[:-1] and is_first.device == u.device
    return torch.where(is_first[..., None], u.new_zeros(()), u) if fit else u
