"""DVBF-LL: the deep variational Bayes filter of Karl et al. (2017), its transitions locally linear.

w_t ~ N(0, I),  x_t ~ p(x_t | z_t)
z_1 = f(w_1)                                   q(w_1 | x_{1:T}, u_{1:T}), from a GRU that runs backward
z_t = A_t z_{t-1} + B_t u_t + C_t w_t, t > 1   q(w_t | x_t, u_t, z_{t-1})
(A, B, C)_t = sum_i alpha_i (A, B, C)_i        alpha = softmax(MLP(z_{t-1}, u_t))

All that is random is w: z_t follows from it, and what q(w_t) says of x_t has to go through the transition. Whether
there was a frame before stands in the last number of what the networks get of it (`MarkedFrames`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vssn.likelihoods.base import Likelihood
from vssn.models.marked import MarkedFrames
from vssn.models.objectives import OBJECTIVES, particle_output, takes_particles
from vssn.nn.blocks import MLP, GaussianMLP, Recurrence
from vssn.nn.dvbf_particles import DVBFParticles
from vssn.nn.given import check_noise, draw_noise
from vssn.nn.interface import EncodedBatch, Floats, Hiding, PriorSteps, SequenceOutput
from vssn.nn.locally_linear import LocallyLinear
from vssn.nn.log_ratio import log_ratio
from vssn.nn.states import AnyState, Inference, Seen, State
from vssn.utils.checks import require_choice, require_factor, require_number, require_size
from vssn.utils.numbers import Count
from vssn.utils.scaling import Scaling
from vssn.utils.sequences import last_valid, valid_steps, zero_idle, zero_padding
from vssn_kernels import gaussian_kl
from vssn_kernels.activations import ACTIVATIONS

CONTROLS = ("external", "none")


class DVBF(MarkedFrames):
    """The Deep Variational Bayes Filter with locally linear transitions, DVBF-LL (Karl et al. 2017).

    Its loop over the frames is Python's: a peer to compare with, not a fused recurrence. Other than there: matrices
    and networks are point estimates, networks have one hidden layer, and q(w_t) is one Gaussian of (z_{t-1}, x_t, u_t).

    Args:
        x_size: X, features of an observation.
        latent_size: Z, units of the state z.
        noise_size: W, units of w.
        matrices: triples (A_i, B_i, C_i) in the mixture.
        likelihood, mixture_size, nade_size, num_classes: as in `vssn.VSSN`.
        control, control_size: "external": u of that size, u_t leads to frame t; "none". u_1 has a part in q(w_1) alone.
        mlp_size: M, hidden units of every MLP.
        embed_size: features of an embedded frame (None: no embedding, unless `encoder` is given).
        backward_size: A, units of the GRU that looks at the film for w_1 (None: mlp_size).
        activation: of all of them: "tanh", "relu", "leaky_relu" (slope 1/3) or "silu".
        objective: as in `vssn.VSSN`, but for "nasmc": z has no density.
        particles, free_bits, min_logvar, min_logvar_x, masked, held_out, scaling: as in `vssn.VSSN`.
        encoder: module [N, F] -> [N, embed_size], F = X - held_out, twice that with masked.
        decoder: module [N, Z] -> [N, parameters of the likelihood] in place of the MLP on z_t.
        batch_first: sequences are [B, T, ·].
        device, dtype: of the parameters, those of modules that are given apart.

    Raises:
        ValueError: a size or a choice that is not possible, named with what was expected.
    """

    def __init__(
        self,
        x_size: int,
        latent_size: int,
        noise_size: int,
        *,
        matrices: Count = 16,
        likelihood: str | Likelihood = "gaussian",
        mixture_size: int = 20,
        nade_size: int = 128,
        num_classes: int = 2,
        control: Literal["external", "none"] = "external",
        control_size: int = 0,
        mlp_size: int = 128,
        embed_size: int | None = None,
        backward_size: int | None = None,
        activation: str = "tanh",
        objective: str = "elbo",
        particles: int | None = None,
        free_bits: float = 0.0,
        min_logvar: float = -12.0,
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
        backward_size = mlp_size if backward_size is None else backward_size
        for name, size in (
            ("latent_size", latent_size),
            ("noise_size", noise_size),
            ("matrices", matrices),
            ("mlp_size", mlp_size),
            ("backward_size", backward_size),
        ):
            require_size(name, size, 1)
        require_choice("control", control, CONTROLS)
        require_choice("objective", objective, OBJECTIVES)
        if objective == "nasmc":
            raise ValueError(
                "objective must be 'elbo', 'paper', 'iwae' or 'fivo' with a DVBF, whose z is no draw that would have a "
                "density, got 'nasmc'"
            )
        require_choice("activation", activation, ACTIVATIONS)
        require_number("min_logvar", min_logvar)
        require_size("control_size", control_size, 1 if control == "external" else 0)
        if control == "none" and control_size:
            raise ValueError(f"control_size must be 0 with control='none', got {control_size}")
        self.latent_size, self.noise_size, self.mlp_size = latent_size, noise_size, mlp_size
        self.backward_size, self.matrices = backward_size, matrices
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
        embedded = self.embedded_size
        self._mark_frames()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        controls = (control_size,) if control_size else ()
        floor = float(min_logvar)
        self._make_encoder(encoder, embed_size, activation, **factory)
        self.initial_backward = Recurrence((embedded, *controls), backward_size, **factory)
        self.initial_posterior = GaussianMLP((backward_size,), mlp_size, noise_size, activation, floor, **factory)
        self.initial_map = MLP((noise_size,), mlp_size, latent_size, activation, **factory)
        sizes = (latent_size, embedded, *controls)
        self.posterior = GaussianMLP(sizes, mlp_size, noise_size, activation, floor, **factory)
        self.transition = LocallyLinear(
            latent_size, control_size, noise_size, matrices, mlp_size, activation, **factory
        )
        sizes_x = {"mixture_size": mixture_size, "nade_size": nade_size, "num_classes": num_classes}
        self._make_likelihood(likelihood, {**sizes_x, "min_logvar_x": min_logvar_x}, scaling, **factory)
        self._make_emission(decoder, (latent_size, 0), mlp_size, activation, **factory)

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
    ) -> SequenceOutput:
        """One sample of the objective and of its parts.

        Args:
            x, u, lengths, mask, kl_weight, coordinated_dropout: as in `vssn.VSSN`: x [T, B, X] ([B, T, X] with
                batch_first; u, mask and noise likewise), u [T, B, U], lengths [B] int64, mask [T, B] or [T, B, X] bool.
            state: (d [B, 0], z [B, Z], x_last [B, F]) of the chunk before, F = X + 1 (2X + 1 with masked): the last
                number is 1, and 0 before the first frame; x_last may come without it where there was a frame. None
                starts anew. Detach it to truncate back-propagation.
            noise: (eps_w [T, B, 0], eps_z [T, B, W]) standard normal, the second to draw w with; None draws it.
            initial_kl_weight: factor of the KL of w_1, where a sequence starts, in the loss; None: kl_weight. One that
                rises later lets w_1 tell of the dynamics before the w of every frame do.

        Returns:
            SequenceOutput; reconstruction and kl_z [T, B], the KL of w_t, are zero at padding, kl_w is zero.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came; so too for values outside the
                likelihood's support, NaN and infinity (DataError, a ValueError; on a GPU with VSSN_CHECK=1 only).
        """
        if takes_particles(self, noise):
            alone = {"coordinated_dropout": coordinated_dropout, "initial_kl_weight": initial_kl_weight}
            return particle_output(self, x, u, lengths, state, noise, mask, kl_weight, **alone)
        kl_weight = require_factor("kl_weight", kl_weight, self.a_parameter())
        given = self.prepare(x, u, lengths, state, mask, coordinated_dropout)
        if initial_kl_weight is not None:
            kl_weight = self._weigh_start(given, kl_weight, initial_kl_weight)
        if noise is None:
            noise = draw_noise(given.x, self.noise_sizes)
        else:
            noise = check_noise(noise, given.x, self.noise_sizes, valid=given.valid, batch_first=self.batch_first)
        (z, _, mu, logvar), behind = self._run(given, noise, lengths)
        kl_z = zero_padding(gaussian_kl(mu, logvar), given.valid)
        result = Inference(z[..., :0], z, kl_z, torch.zeros_like(kl_z), behind.d, behind.z)
        return self._output(given, result, behind, kl_weight, coordinated_dropout)

    def _weigh_start(self, given: EncodedBatch, kl_weight: float | Tensor, initial: float | Tensor) -> Tensor:
        """Factors of the KL of every frame, [T, B]: `initial` where a sequence starts."""
        initial = require_factor("initial_kl_weight", initial, self.a_parameter())
        weights = given.x.new_ones(given.x.shape[:2]) * kl_weight
        starts = given.controls[0][:1, :, 0] > 0
        return torch.cat((torch.where(starts, initial, weights[:1]), weights[1:]))

    def _run(
        self, given: EncodedBatch, noise: tuple[Tensor, ...], lengths: Tensor | None, stop: int | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], State]:
        """`draw` of the frames before `stop`, zeros at padding, and the state behind them."""
        stop = len(given.x) if stop is None else stop
        z_0 = given.x.new_zeros(given.x.shape[1], self.latent_size) if given.start is None else given.start.z
        valid = valid_steps(lengths, given.x[:stop])
        seen, eps = self.look_at(given, lengths, stop), zero_padding(noise[1][:stop], valid)
        drawn = self.draw(seen, zero_idle(z_0, lengths), eps, valid)
        x_last = last_valid(given.frames[1 : stop + 1], given.frames[0], lengths)
        return drawn, State(z_0[:, :0], last_valid(drawn[0], z_0, lengths), x_last)

    def look_at(self, given: EncodedBatch, lengths: Tensor | None, stop: int | None = None) -> Seen:
        """What inference takes of the frames before `stop`."""
        embedded, (first, *u) = given.embedded[:stop], (part[:stop] for part in given.controls)
        nothing = embedded.new_zeros(embedded.shape[1], self.backward_size)
        film = self.initial_backward((embedded, *u), nothing, lengths=lengths, reverse=True)[1]
        return Seen(embedded, first, tuple(u), self.initial_posterior(film))

    def draw(
        self, seen: Seen, z: Tensor, eps: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z [T, B, Z], and w, the mean and the log-variance of its q, each [T, B, W]; the first frame alone may be that
        of a sequence.

        Args:
            z: [B, Z] before the frames; not looked at where a sequence starts.
            eps: [T, B, W] standard normal.
            valid: [T, B] bool: z is 0 elsewhere.
        """
        steps = []
        for t in range(len(eps)):
            u = tuple(part[t] for part in seen.u)
            mu, logvar = self.posterior(z, seen.embedded[t], *u)
            if t == 0:
                starts = seen.first[0] > 0
                mu, logvar = (
                    torch.where(starts, own, other) for own, other in zip(seen.initial, (mu, logvar), strict=True)
                )
            w = mu + torch.exp(logvar / 2) * eps[t]
            moved = self.transition(z, u, w)
            z = torch.where(starts, self.initial_map(w), moved) if t == 0 else moved
            z = z if valid is None else torch.where(valid[t, :, None], z, 0.0)
            steps.append((z, w, mu, logvar))
        if not steps:
            return eps.new_zeros(*eps.shape[:2], self.latent_size), eps, eps, eps
        z_all, w_all, mu_all, logvar_all = (torch.stack(part) for part in zip(*steps, strict=True))
        return z_all, w_all, mu_all, logvar_all

    # What scores, bounds and filtering take, as SequenceModel says

    @property
    def infers_start(self) -> bool:
        return True  # w_1

    @property
    def noise_sizes(self) -> tuple[int, int]:
        return 0, self.noise_size

    def a_parameter(self) -> Tensor:
        return self.transition.weight

    def make_controls(self, frames: Tensor, embedded: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
        first = self._is_first(frames)
        return (first,) if u is None else (first, u)

    def start_state(self, state: object, batch: int | None, like: Tensor) -> State:
        if state is None:
            assert batch is not None
            return State(*(like.new_zeros(batch, size) for size in (0, self.latent_size, self.frame_size)))
        sizes = {"d": ("D", 0), "z": ("Z", self.latent_size), "x_last": ("F", self.frame_size)}
        return self._check_state(state, sizes, batch, like)

    def infer(
        self, given: EncodedBatch, noise: tuple[Tensor, ...], lengths: Tensor | None = None, stop: int | None = None
    ) -> tuple[Tensor, Tensor, AnyState]:
        (z, *_), behind = self._run(given, noise, lengths, stop)
        return z[..., :0], z, behind

    def infer_prefixes(self, given: EncodedBatch, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """w_1 is inferred anew from every prefix, with the same noise."""
        last = [self.infer(given, noise, None, stop)[2].z for stop in range(1, len(given.x) + 1)]
        z = torch.stack(last) if last else given.x.new_zeros(0, given.x.shape[1], self.latent_size)
        return z[..., :0], z

    def infer_noise(
        self, given: EncodedBatch, noise: tuple[Tensor, ...], lengths: Tensor | None = None, prefixes: bool = False
    ) -> Tensor:
        steps = len(given.x)
        if not prefixes:
            return self._run(given, noise, lengths)[0][1]
        last = [self._run(given, noise, None, stop)[0][1][-1] for stop in range(1, steps + 1)]
        return torch.stack(last) if last else noise[1][:0]

    def step_from_prior(
        self, controls: tuple[Tensor, ...], d: Tensor, z: Tensor, noise: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        first, *u = controls
        w = (draw_noise(z[None], self.noise_sizes) if noise is None else noise)[1]
        return d, torch.where(first > 0, self.initial_map(w), self.transition(z[None], tuple(u), w))[0]

    def prior_steps(self) -> PriorSteps:
        return PriorSteps(self.step_from_prior, self.prepared_decode())

    def propose(self, given: EncodedBatch, state: AnyState, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        z, w, _, logvar = self.draw(self.look_at(given, None), state.z, noise[1])
        return state.d, z[0], log_ratio(w, noise[1], logvar)[0]

    def particles(self, given: EncodedBatch, lengths: Tensor) -> DVBFParticles:
        return DVBFParticles(self, given, lengths)

    def floats_per_frame(self, x: Tensor) -> Floats:
        z, w, e, m, a = self.latent_size, self.noise_size, self.embedded_size, self.mlp_size, self.backward_size
        seen = 1 + 2 * w + e + self.control_size
        shared = 3 * self.x_size + 3 * self.frame_size + 2 * seen + 5 * a
        networks = 4 * m + self.matrices * (2 + 2 * z) + 8 * w + 6 * z + seen
        return Floats(shared, seen + w, networks + self.likelihood.floats_per_frame(x), z)

    def extra_repr(self) -> str:
        own = f"Z={self.latent_size}, W={self.noise_size}, A={self.backward_size}, M={self.mlp_size}"
        return f"{super().extra_repr()}, {own}"
