"""FrameModel: what models share whatever their recurrences: frames as the networks see them, the emission density, the
objective and generation.

elbo:   F = sum_t R_t - KL_w,t - KL_z,t              R_t = log p(x_t | z_t, d_t)    KL_w,1 with that of an inferred d_0
paper:  L = sum_t R_t - KL_w,t / 2 - KL_z,t / 2      a training objective, not a lower bound
iwae, fivo, nasmc: of weighted particles, in vssn/models/objectives.py
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vssn.likelihoods.base import Likelihood
from vssn.likelihoods.registry import make_likelihood
from vssn.likelihoods.scaled import Scaled
from vssn.models.objectives import OBJECTIVES, check_latents, check_objective
from vssn.nn.blocks import MLP, Embedding, reset_children
from vssn.nn.interface import EncodedBatch, Generation, Hiding, SequenceModel, SequenceOutput
from vssn.nn.prepared import is_own, prepare
from vssn.nn.states import AnyState, Inference, charged
from vssn.utils.checks import (
    require_choice,
    require_device,
    require_flag,
    require_module,
    require_number,
    require_place,
    require_shape,
    require_size,
)
from vssn.utils.scaling import Scaling, check_scaling
from vssn.utils.sequences import (
    check_control,
    check_lengths,
    check_mask,
    check_sequences,
    swap,
    valid_steps,
    with_first,
    zero_idle,
    zero_padding,
)
from vssn.utils.values import MARK_MISSING, NO_NAN_IN_U, nan_as_missing, require_finite, require_values


def _share(dropout: float | Hiding) -> float:
    return dropout.share if isinstance(dropout, Hiding) else dropout


def _hides(dropout: float | Hiding | None) -> bool:
    if dropout is not None:
        require_number("coordinated_dropout", _share(dropout), 0.0)
    return isinstance(dropout, Hiding) or bool(dropout)


def _entries(hiding: Hiding, x: Tensor) -> Tensor:
    """Those that are given, checked against x [T, B, X]."""
    if not hiding.share:
        raise ValueError("coordinated_dropout's share must be above 0 with entries that are given, got 0")
    require_shape("coordinated_dropout's entries", hiding.entries, "[T, B, X]", tuple(x.shape))
    if hiding.entries.dtype != torch.bool:
        raise TypeError(f"coordinated_dropout's entries must be bool, got {hiding.entries.dtype}")
    require_device("coordinated_dropout's entries", hiding.entries, x.device, "x is")
    return hiding.entries


class FrameModel(SequenceModel):
    """A SequenceModel of frames x_t with a likelihood. A constructor calls `_set_frames`, makes its recurrences, then
    calls `_make_encoder`, `_make_likelihood` and `_make_emission`."""

    mean_u: Tensor | None  # [U] of the scaling, where there is one
    std_u: Tensor
    embedded_size: int  # features of an embedded frame
    encoder: nn.Module | None
    decoder: nn.Module | None
    control_encoder: nn.Module | None

    # Construction

    def _set_frames(
        self,
        x_size: int,
        control_size: int,
        *,
        embed_size: int | None,
        encoder: nn.Module | None,
        objective: str,
        particles: int | None,
        free_bits: float,
        masked: bool,
        held_out: int,
        batch_first: bool,
    ) -> None:
        """What a frame is, and the objective. Raises ValueError, TypeError."""
        require_size("x_size", x_size, 1)
        require_choice("objective", objective, OBJECTIVES)
        require_module("encoder", encoder)
        require_flag("masked", masked)
        require_flag("batch_first", batch_first)
        if embed_size is not None:
            require_size("embed_size", embed_size, 1)
        if encoder is not None and embed_size is None:
            raise ValueError("embed_size must be given with encoder: the number of features that it returns")
        require_number("free_bits", free_bits, 0.0)
        check_objective(objective, particles, free_bits)
        require_size("held_out", held_out, 0)
        if held_out >= x_size:
            raise ValueError(f"held_out must be below x_size={x_size}, got {held_out}")
        self.x_size, self.control_size, self.masked, self.batch_first = x_size, control_size, masked, batch_first
        self.objective, self.free_bits, self.held_out = objective, float(free_bits), held_out
        self.particle_count = particles  # K of the objective
        seen = x_size - held_out
        self.frame_size = 2 * seen if masked else seen  # F: what the networks see of a frame
        self.embedded_size = embed_size or self.frame_size

    def _make_encoder(self, encoder: nn.Module | None, embed_size: int | None, activation: str, **factory: Any) -> None:
        """e_x; without an encoder and a size there is none."""
        require_place(factory.get("device"), factory.get("dtype"))  # the first that makes parameters
        self.encoder, self.control_encoder = encoder, None
        if encoder is None and embed_size is not None:
            self.encoder = Embedding(self.seen_size, embed_size, activation, **factory)

    def _make_likelihood(
        self, likelihood: str | Likelihood, options: dict[str, Any], scaling: Scaling | None, **factory: Any
    ) -> None:
        """Args: options: those of every likelihood, by the model's keywords for them."""
        for name, least in (("mixture_size", 1), ("nade_size", 1), ("num_classes", 2)):
            require_size(name, options[name], least)
        require_number("min_logvar_x", options["min_logvar_x"])
        self.likelihood = make_likelihood(likelihood, self.x_size, options, **factory)
        if scaling is not None:
            scaling = check_scaling(scaling, self.x_size, self.control_size).like(self.a_parameter())
        self.is_scaled = scaling is not None
        if scaling is not None:
            self.likelihood = Scaled(self.likelihood, scaling.x_mean, scaling.x_std)
        self.register_buffer("mean_u", None if scaling is None else scaling.u_mean)
        self.register_buffer("std_u", None if scaling is None else scaling.u_std)

    def _make_emission(
        self, decoder: nn.Module | None, sizes: tuple[int, int], mlp_size: int, activation: str, **factory: Any
    ) -> None:
        """From what stands for z_t and d_t, of these sizes, to the likelihood's parameters."""
        check_latents(self)
        require_module("decoder", decoder)
        self.decoder = decoder
        if decoder is None:
            self.emission = MLP(sizes, mlp_size, self.likelihood.parameter_size, activation, **factory)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does.

        Raises:
            TypeError: a module in `encoder` or `decoder` has parameters and no reset_parameters.
        """
        reset_children(self)

    # What a model says of its recurrences

    @abstractmethod
    def start_state(self, state: object, batch: int | None, like: Tensor) -> AnyState:
        """The state given, checked; for None one before the first frame, of a draw where it is inferred.

        Args:
            batch: B; None: that of the given state.
            like: gives the dtype and the device of a new state.
        """

    @abstractmethod
    def make_controls(self, frames: Tensor, embedded: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
        """What drives d_t beside its own past, each [T, B, ·], from the frame before it: frames [T, B, F], embedded
        [T, B, E]; and the control [T, B, U] as the networks see it."""

    # A batch, before and behind the recurrences

    @property
    def seen_size(self) -> int:
        """Features of a frame that the encoder takes."""
        return self.frame_size

    def prepare(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        state: AnyState | tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        coordinated_dropout: float | Hiding = 0.0,
    ) -> EncodedBatch:
        """What inference starts from: the arguments of `forward`, checked, and the embeddings of every frame."""
        like = self.a_parameter()
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
        start = None if state is None else self.start_state(state, x.shape[1], x)
        x_last = x.new_zeros(x.shape[1], self.frame_size) if start is None else start.x_last
        seen, seen_where, hidden = x, observed, None
        if _hides(coordinated_dropout):
            seen, seen_where, hidden = self._hide(x, observed, coordinated_dropout)
        shown = self.frames(seen, seen_where)
        frames = read = with_first(x_last, shown)
        if start is not None and lengths is not None:
            read = with_first(zero_idle(x_last, lengths), shown)
        embedded = self._encode(read)  # once: e_u(x_{t-1}) is e_x one step before
        controls = self.make_controls(read[:-1], embedded[:-1], self._encode_control(u))
        return EncodedBatch(x, observed, valid, frames, embedded[1:], controls, start, hidden)

    def _hide(
        self, x: Tensor, observed: Tensor | None, dropout: float | Hiding
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """x [T, B, X] as the networks see it, where it is observed for them, and the entries that are not shown."""
        rate = _share(dropout)
        if rate >= 1:
            raise ValueError(f"coordinated_dropout must be below 1, got {rate}")
        dropped = _entries(dropout, x) if isinstance(dropout, Hiding) else Hiding.draw(rate, x).entries
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
        require_shape("what encoder returns", rows, "[N, embed_size]", (frames[..., 0].numel(), self.embedded_size))
        return rows.view(*frames.shape[:2], self.embedded_size)

    def _encode_control(self, u: Tensor | None) -> Tensor | None:
        if u is not None and self.mean_u is not None:
            u = (u - self.mean_u) / self.std_u
        return u if u is None or self.control_encoder is None else self.control_encoder(u)

    def control(self, x_last: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
        """What makes u_t of one step, each [1, B, ·], from the frame before it [B, F] and the external [1, B, U]."""
        frame = x_last[None]
        return self.make_controls(frame, self._encode(frame), self._encode_control(u))

    def decode(self, z: Tensor, d: Tensor) -> Tensor:
        """The likelihood's parameters [T, B, P] from z [T, B, Z], d [T, B, D]."""
        if self.decoder is None:
            return self.emission(z, d)
        rows = self.decoder(torch.cat((z, d), -1).flatten(0, 1))
        expected = (z.shape[0] * z.shape[1], self.likelihood.parameter_size)
        require_shape("what decoder returns", rows, "[N, parameters of the likelihood]", expected)
        return rows.view(*z.shape[:2], self.likelihood.parameter_size)

    def prepared_decode(self) -> Callable[[Tensor, Tensor], Tensor]:
        """`decode` for a loop in which no weight changes."""
        if self.decoder is not None or not is_own(self, FrameModel, "decode"):
            return self.decode
        return prepare(self.emission)

    def _output(
        self,
        given: EncodedBatch,
        result: Inference,
        state: AnyState,
        kl_weight: float | Tensor,
        coordinated_dropout: float | Hiding,
        initial_kl_weight: float | Tensor | None = None,
    ) -> SequenceOutput:
        """What a call returns, of a sample of the latents and the state behind it."""
        parameters = self.decode(result.z, result.d)
        reconstruction = zero_padding(self.likelihood.log_prob(parameters, given.x, given.observed), given.valid)
        kl_w = charged(result)
        elbo = (reconstruction - result.kl_z - kl_w).sum(0)
        target = reconstruction
        if given.hidden is not None:
            hidden = self.likelihood.log_prob(parameters, given.x, given.hidden)
            target = zero_padding(hidden, given.valid) / _share(coordinated_dropout)
        loss = self._loss(target, result, kl_weight, given, initial_kl_weight)
        per_frame = [swap(part, self.batch_first) for part in (reconstruction, result.kl_z, kl_w)]
        return SequenceOutput(loss, elbo, per_frame[0], per_frame[1], per_frame[2], state)

    def weights_kl(self) -> Tensor | None:
        """KL of a posterior over weights, a scalar that `num_sequences` share; None without one."""
        return None

    def _loss(
        self,
        reconstruction: Tensor,
        result: Inference,
        kl_weight: float | Tensor,
        given: EncodedBatch,
        initial_kl_weight: float | Tensor | None,
    ) -> Tensor:
        """-sum of the objective / frames, plus the share of these sequences in the universal KL."""
        kl_z, kl_w = result.kl_z if result.kl_z_trained is None else result.kl_z_trained, result.kl_w
        share = 0.5 if self.objective == "paper" else 1.0
        weight = kl_weight * share
        if self.free_bits:
            kl_w, kl_z = (
                zero_padding(kl.clamp(min=self.free_bits), given.valid) if size else kl
                for kl, size in ((kl_w, self.noise_sizes[0]), (kl_z, self.noise_sizes[1]))
            )
        total = (weight * (kl_z + kl_w) - reconstruction).sum()
        if result.kl_0 is not None:
            total = total + (weight if initial_kl_weight is None else initial_kl_weight * share) * result.kl_0.sum()
        return self.per_frame(total, result.universal_kl, kl_weight, given)

    def per_frame(
        self, total: Tensor, weights_kl: Tensor | None, kl_weight: float | Tensor, given: EncodedBatch
    ) -> Tensor:
        """A batch's loss from the sum over its frames: with its share in the KL of weights, over the frames."""
        steps, batch = given.x.shape[:2]
        frames = total.new_full((), steps * batch) if given.valid is None else given.valid.sum().to(total.dtype)
        if weights_kl is not None and self.num_sequences is not None:
            share = batch / self.num_sequences
            total = total + share * kl_weight * weights_kl * (frames > 0)
        return total / frames.clamp(min=1)

    def extra_repr(self) -> str:
        return (
            f"{self.x_size}, objective={self.objective!r}"
            + (f", particles={self.particle_count}" if self.particle_count else "")
            + (f", control_size={self.control_size}" if self.control_size else "")
            + (f", held_out={self.held_out}" if self.held_out else "")
            + (f", free_bits={self.free_bits}" if self.free_bits else "")
            + (f", num_sequences={self.num_sequences}" if self.num_sequences else "")
            + "".join(f", {name}=True" for name in ("masked", "batch_first") if getattr(self, name))
        )

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
        like = self.a_parameter().detach()
        current = self.start_state(state, batch, like)
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
