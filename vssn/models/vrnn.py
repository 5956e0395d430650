"""VRNN: the variational recurrent network of Chung et al. (2015), on interleaved_sequence.

p(z_t | h_{t-1}) = N(MLP(h_{t-1})),  or N(0, I): VRNN-I
q(z_t | x_t, h_{t-1}) = N(MLP([phi_x(x_t), h_{t-1}]))
x_t ~ p(x_t | phi_z(z_t), h_{t-1})
h_t = GRU(h_{t-1}, [phi_x(x_t), phi_z(z_t)])

The op's state takes the z of the step before and gives z_t behind it, so its h is this one shifted by one: d_t, as the
interface of models calls it, is h_{t-1}. Where a sequence starts there is no frame before, and d_1 is h_0: the update
gate is held shut there. Whether there was a frame stands in the last number of what the networks get of it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vssn.likelihoods.base import Likelihood
from vssn.models.marked import MarkedFrames
from vssn.models.objectives import particle_output, takes_particles
from vssn.nn.blocks import GaussianMLP, SplitLinear, is_plain
from vssn.nn.given import check_noise, check_starts, draw_noise
from vssn.nn.interface import EncodedBatch, Floats, Hiding, PriorSteps, SequenceOutput
from vssn.nn.interleaved import InterleavedChain
from vssn.nn.log_ratio import log_ratio
from vssn.nn.prepared import is_own
from vssn.nn.states import AnyState, Inference, State
from vssn.nn.vrnn_particles import VRNNParticles
from vssn.nn.vrnn_steps import VRNNSteps
from vssn.utils.checks import (
    require_choice,
    require_factor,
    require_size,
)
from vssn.utils.named_tuples import with_parts
from vssn.utils.scaling import Scaling
from vssn.utils.sequences import last_valid, zero_padding
from vssn_kernels import gaussian_kl, split_linear
from vssn_kernels.activations import ACTIVATIONS

PRIORS = ("learned", "standard")
CONTROLS = ("previous", "both")
INITIAL_STATES = ("zeros", "learned")
SHUT = 1e4  # of the update gate: h_t = h_{t-1}, exactly


class VRNN(MarkedFrames):
    """The Variational Recurrent Neural Network of Chung et al. (2015): a latent that is drawn frame by frame from what
    the GRU remembers of the frames and latents before. It sees no frame to come, so that it filters as it infers.

    Other than there: a GRU in the place of an LSTM, and networks of one hidden layer: phi_x and phi_z are one layer
    each, the prior, the posterior and the emission one hidden layer and a linear output.

    Args:
        x_size: X, features of an observation.
        hidden_size: H, units of the GRU.
        latent_size: Z, units of the latent.
        prior: "learned", from h_{t-1}, or "standard": N(0, I) (VRNN-I).
        likelihood: as in `vssn.VSSN`; "gaussian" is Chung's VRNN-Gauss, "mixture" its VRNN-GMM.
        mixture_size, nade_size, num_classes: as in `vssn.VSSN`.
        control, control_size: "previous" (x_{t-1} alone), or "both": an external u_t of that size too, for the GRU that
            leads to frame t, the posterior and a learned prior.
        mlp_size: M, hidden units of every MLP (None: hidden_size).
        embed_size: E, units of phi_x and of phi_z (None: hidden_size).
        activation: of all of them: "relu", "tanh", "leaky_relu" (slope 1/3) or "silu".
        objective, particles, free_bits, min_logvar, min_logvar_x, masked, held_out, scaling: as in `vssn.VSSN`.
        initial_state: h_0: "zeros" or a "learned" parameter.
        encoder: module [N, F] -> [N, embed_size] in place of phi_x, F = X - held_out, twice that with masked.
        decoder: module [N, E+H] -> [N, parameters of the likelihood] in place of the MLP on (phi_z(z_t), h_{t-1}).
        batch_first: sequences are [B, T, ·].
        device, dtype: of the parameters, those of modules that are given apart.

    Raises:
        ValueError: a size or a choice that is not possible, named with what was expected.
    """

    causal = True
    h_0: nn.Parameter | None

    def __init__(
        self,
        x_size: int,
        hidden_size: int,
        latent_size: int,
        *,
        prior: Literal["learned", "standard"] = "learned",
        likelihood: str | Likelihood = "bernoulli",
        mixture_size: int = 20,
        nade_size: int = 128,
        num_classes: int = 2,
        control: Literal["previous", "both"] = "previous",
        control_size: int = 0,
        mlp_size: int | None = None,
        embed_size: int | None = None,
        activation: str = "relu",
        objective: str = "elbo",
        particles: int | None = None,
        free_bits: float = 0.0,
        min_logvar: float = -12.0,
        min_logvar_x: float = -10.0,
        initial_state: Literal["zeros", "learned"] = "zeros",
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
        for name, size in (("hidden_size", hidden_size), ("latent_size", latent_size)):
            require_size(name, size, 1)
        for name, choice, choices in (
            ("prior", prior, PRIORS),
            ("control", control, CONTROLS),
            ("activation", activation, ACTIVATIONS),
            ("initial_state", initial_state, INITIAL_STATES),
        ):
            require_choice(name, choice, choices)
        require_size("control_size", control_size, 1 if control == "both" else 0)
        if control == "previous" and control_size:
            raise ValueError(f"control_size must be 0 with control='previous', got {control_size}")
        mlp_size = hidden_size if mlp_size is None else mlp_size
        embed_size = hidden_size if embed_size is None else embed_size
        require_size("mlp_size", mlp_size, 1)
        self.hidden_size, self.latent_size, self.mlp_size = hidden_size, latent_size, mlp_size
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
        self._mark_frames()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        controls = (control_size,) if control_size else ()
        self._make_encoder(encoder, embed_size, activation, **factory)
        self.input = SplitLinear((embed_size, *controls), 3 * hidden_size, **factory)
        self.context = SplitLinear((embed_size, *controls), mlp_size, **factory)
        self.chain = InterleavedChain(
            hidden_size,
            latent_size,
            embed_size,
            mlp_size,
            context_inputs=embed_size + control_size,
            embed_activation=activation,
            activation=activation,
            min_logvar=min_logvar,
            **factory,
        )
        self.prior = None
        if prior == "learned":
            sizes = (hidden_size, *controls)
            self.prior = GaussianMLP(sizes, mlp_size, latent_size, activation, float(min_logvar), **factory)
        sizes_x = {"mixture_size": mixture_size, "nade_size": nade_size, "num_classes": num_classes}
        self._make_likelihood(likelihood, {**sizes_x, "min_logvar_x": min_logvar_x}, scaling, **factory)
        self._make_emission(decoder, (embed_size, hidden_size), mlp_size, activation, **factory)
        self.bias_embed = nn.Parameter(torch.empty(embed_size, **factory))
        learned = nn.Parameter(torch.empty(hidden_size, **factory)) if initial_state == "learned" else None
        self.register_parameter("h_0", learned)
        self._reset_own()

    def _reset_own(self) -> None:
        bound = 1 / math.sqrt(self.latent_size)
        nn.init.uniform_(self.bias_embed, -bound, bound)
        if self.h_0 is not None:
            nn.init.zeros_(self.h_0)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._reset_own()

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
        resets: Tensor | None = None,
    ) -> SequenceOutput:
        """One sample of the objective and of its parts.

        Args:
            x, u, lengths, mask, kl_weight, coordinated_dropout: as in `vssn.VSSN`: x [T, B, X] ([B, T, X] with
                batch_first; u, mask, noise and resets likewise), u [T, B, U], lengths [B] int64, mask [T, B] or
                [T, B, X] bool.
            state: (d [B, H], z [B, Z], x_last [B, F]) of the chunk before, F = X + 1 (2X + 1 with masked): the last
                number is 1, and 0 before the first frame; x_last may come without it where there was a frame. None
                starts anew. Detach it to truncate back-propagation.
            noise: (eps_w [T, B, 0], eps_z [T, B, Z]) standard normal; None draws it.
            resets: [T, B] bool: at these frames a sequence starts anew: neither states nor frames before them count.

        Returns:
            SequenceOutput; reconstruction and kl_z [T, B] are zero at padding, kl_w is zero. elbo [B] is the sum over
            all that stands in a row, with resets of several sequences.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came; so too for values outside the
                likelihood's support, NaN and infinity (DataError, a ValueError; on a GPU with VSSN_CHECK=1 only).
        """
        if takes_particles(self, noise):
            alone = {"coordinated_dropout": coordinated_dropout, "resets": resets}
            return particle_output(self, x, u, lengths, state, noise, mask, kl_weight, **alone)
        kl_weight = require_factor("kl_weight", kl_weight, self.a_parameter())
        given = self.prepare(x, u, lengths, state, mask, coordinated_dropout, resets)
        like, sizes = given.x, self.noise_sizes
        if noise is None:
            noise = draw_noise(like, sizes)
        else:
            noise = check_noise(noise, like, sizes, valid=given.valid, batch_first=self.batch_first)
        (h, z, mu, logvar), behind = self._run(given, noise, lengths)
        kl_z = zero_padding(gaussian_kl(mu, logvar, *self.prior_of(h, given.controls[2:])), given.valid)
        result = Inference(h, z, kl_z, torch.zeros_like(kl_z), behind.d, behind.z)
        return self._output(given, result, behind, kl_weight, coordinated_dropout)

    def prepare(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        state: AnyState | tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        coordinated_dropout: float | Hiding = 0.0,
        resets: Tensor | None = None,
    ) -> EncodedBatch:
        given = super().prepare(x, u, lengths, state, mask, coordinated_dropout)
        if resets is None:
            return given
        resets = check_starts("resets", resets, given.x, self.batch_first)
        previous, first, *more = given.controls
        none = resets[..., None]
        controls = (torch.where(none, 0, previous), torch.where(none, 1, first), *more)
        return with_parts(given, controls=controls, resets=resets)

    def _run(
        self, given: EncodedBatch, noise: tuple[Tensor, ...], lengths: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], State]:
        """h [T, B, H], z, mu, logvar [T, B, Z] of q, and the state behind."""
        steps, batch = given.x.shape[:2]
        h_0, z_0 = self.initial(batch, noise[1]) if given.start is None else (given.start[0], given.start[1])
        of_resets = {}
        if given.resets is not None:
            reset_h, reset_z = self.initial(batch, noise[1])
            of_resets = {"resets": given.resets, "reset_h": reset_h, "reset_z": reset_z}
        gates, context = self.inputs_of_chain(given)
        # A call of the chain, so that its hooks and torch.compile(model.chain) take part.
        drawn = self.chain(
            gates, self.bias_embed.expand(steps, batch, -1), context, h_0, z_0, noise[1], lengths=lengths, **of_resets
        )
        x_last = last_valid(given.frames[1:], given.frames[0], lengths)
        return drawn, State(last_valid(drawn[0], h_0, lengths), last_valid(drawn[1], z_0, lengths), x_last)

    def inputs_of_chain(self, given: EncodedBatch) -> tuple[Tensor, Tensor]:
        """gates_x [T, B, 3H] and context [T, B, M], of all frames."""
        return self._gates(given.controls), self.context(given.embedded, *given.controls[2:])

    def _gates(self, controls: tuple[Tensor, ...]) -> Tensor:
        """gates_x [T, B, 3H] from the controls, with the update gate shut where a sequence starts."""
        previous, first, *u = controls
        if not is_plain(self.input, SplitLinear):
            return self.input(previous, *u) + first * self.hold(first)[:, 0]
        weights = self.input.weight.split(self.input.in_sizes, 1)
        return split_linear((previous, *u, first), (*weights, self.hold(previous)), self.input.bias)

    def hold(self, like: Tensor) -> Tensor:
        """[3H, 1] what the gates get where a sequence starts. Made where it is used: a buffer that no file holds would
        be lost on the way from the device "meta"."""
        hold = like.new_zeros(3, self.hidden_size)
        hold[1] = SHUT
        return hold.view(-1, 1)

    def prior_of(self, h: Tensor, u: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
        """mu and logvar [..., Z] of p(z_t | h_{t-1}) from h [..., H] and the external control; None for N(0, I)."""
        return (None, None) if self.prior is None else self.prior(h, *u)

    def initial(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """h_0 [B, H] and a z [B, Z] that is not read, in the dtype and on the device of `like`."""
        h_0 = like.new_zeros(batch, self.hidden_size)
        if self.h_0 is not None:
            h_0 = self.h_0.to(like.dtype).expand(batch, -1)
        return h_0, like.new_zeros(batch, self.latent_size)

    # What scores, bounds and filtering take, as SequenceModel says

    @property
    def noise_sizes(self) -> tuple[int, int]:
        return 0, self.latent_size

    def a_parameter(self) -> Tensor:
        return self.chain.bias_hh

    def make_controls(self, frames: Tensor, embedded: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
        first = self._is_first(frames)
        return (embedded, first) if u is None else (embedded, first, u)

    def start_state(self, state: object, batch: int | None, like: Tensor) -> State:
        if state is None:
            assert batch is not None
            return State(*self.initial(batch, like), like.new_zeros(batch, self.frame_size))
        sizes = {"d": ("H", self.hidden_size), "z": ("Z", self.latent_size), "x_last": ("F", self.frame_size)}
        return self._check_state(state, sizes, batch, like)

    def infer(
        self, given: EncodedBatch, noise: tuple[Tensor, ...], lengths: Tensor | None = None, stop: int | None = None
    ) -> tuple[Tensor, Tensor, AnyState]:
        seen = slice(len(given.x) if stop is None else stop)
        given = with_parts(
            given,
            x=given.x[seen],
            frames=given.frames[: len(given.x[seen]) + 1],
            embedded=given.embedded[seen],
            controls=tuple(part[seen] for part in given.controls),
            resets=None if given.resets is None else given.resets[seen],
        )
        (h, z, _, _), behind = self._run(given, (noise[0], noise[1][seen]), lengths)
        return h, z, behind

    def infer_prefixes(self, given: EncodedBatch, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return self.infer(given, (noise[0], noise[1][: len(given.x)]))[:2]

    def step_from_prior(
        self, controls: tuple[Tensor, ...], d: Tensor, z: Tensor, noise: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        h = self.chain.step(self._gates(controls)[0], self.bias_embed, d, z)
        eps = (draw_noise(h[None], self.noise_sizes) if noise is None else noise)[1]
        mu, logvar = self.prior_of(h[None], controls[2:])
        return h, eps[0] if mu is None or logvar is None else (mu + torch.exp(logvar / 2) * eps)[0]

    def prior_steps(self) -> PriorSteps:
        own = is_own(self, VRNN, "step_from_prior", "decode", "prior_of")
        if not own or not is_plain(self.input, SplitLinear):
            return super().prior_steps()
        steps = VRNNSteps(self)
        return PriorSteps(steps.step, steps.decode)

    def propose(self, given: EncodedBatch, state: AnyState, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        gates, context = self.inputs_of_chain(given)
        h = self.chain.step(gates[0], self.bias_embed, state.d, state.z)[None]
        mu, logvar = self.chain.posterior(context, h)
        z = mu + torch.exp(logvar / 2) * noise[1]
        return h[0], z[0], log_ratio(z, noise[1], logvar, *self.prior_of(h, given.controls[2:]))[0]

    def decode(self, z: Tensor, d: Tensor) -> Tensor:
        return super().decode(self.chain.embed(self.bias_embed, z), d)

    def decode_particles(self, drawn: Tensor, d: Tensor) -> Tensor:
        return self.decode(*drawn.split((self.latent_size, self.hidden_size), -1))

    def particles(self, given: EncodedBatch, lengths: Tensor) -> VRNNParticles:
        return VRNNParticles(self, given)

    def floats_per_frame(self, x: Tensor) -> Floats:
        h, z, e, m, u = self.hidden_size, self.latent_size, self.embedded_size, self.mlp_size, self.control_size
        shared = 3 * self.x_size + 3 * self.frame_size + 2 * e + 3 * h + m + 2 * u
        emission = 5 * h + 3 * m + 2 * e + 9 * z + u
        return Floats(shared, 2 * z + 1, emission + self.likelihood.floats_per_frame(x), h + z)

    def extra_repr(self) -> str:
        own = f"H={self.hidden_size}, Z={self.latent_size}, prior={'standard' if self.prior is None else 'learned'!r}"
        return f"{super().extra_repr()}, {own}"
