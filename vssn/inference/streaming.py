"""A model that takes frames as they come, one step at a time, in constant time and memory.

Of a model whose states see no frame to come (`SequenceModel.causal`: inference="causal", or no latent at all) a step is
a step of its inference: the numbers of `latents(x, kind="filter")` in one pass. By default every latent is at its mean
given those before it; with samples, S paths are drawn.

Of any other a step is one of a particle filter. Particle k of a stream has d, z and a weight W:

    w_t ~ q(w_t | x_t, u_t), with noise_smoothing, whose q looks ahead, p(w_t);  d_t = GRU(d_{t-1}, [u_t, w_t])
    z_t ~ p(z_t | z_{t-1}, d_t)
    W_t prop. W_{t-1} p(w_t) / q(w_t) p(x_t | z_t, d_t)

and what comes back is weighted means. Where the effective sample size of a stream falls below half of its particles,
they are drawn anew by their weights, as `vssn.inference.particles` does for fivo. The model's own q(z_t | ·) has no
part in it: it looks ahead. In the limit of many particles these are the exact means given x_{1:t}.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vssn.errors import DataError
from vssn.inference.draws import Noise, repeat_rows, state_of_priors
from vssn.inference.latents import check_noise
from vssn.inference.particles import resample
from vssn.nn.given import require_converged
from vssn.nn.interface import EncodedBatch, SequenceModel, require_model
from vssn.nn.states import AnyState
from vssn.utils.checks import require_like, require_numbers, require_seed, require_shape, require_size, require_tensor
from vssn.utils.evaluation_mode import evaluating, time_major
from vssn.utils.random import seeded
from vssn.utils.values import NO_NAN_IN_U, require_finite
from vssn_kernels.arguments import is_dense, shown

PARTICLES = 100
ESS_THRESHOLD = 0.5  # of the particles


class FilterStep(NamedTuple):
    """Of every stream after a frame; d and z behind a dimension of samples where they are drawn."""

    d: Tensor  # [B, D]
    z: Tensor  # [B, Z]
    predicted: Tensor  # [B, X] the mean of x_t given x_{<t} and u_{<=t}, from before x_t came


class Filter:
    """B streams of frames, each at a time of its own. Made by `SequenceModel.filter`.

    The model's weights must not change meanwhile; it is run in evaluation mode.
    """

    state: AnyState

    def __init__(self, model: SequenceModel, batch_size: int, paths: int, seed: int | None) -> None:
        self.model, self.batch_size, self.paths = model, batch_size, paths
        self.like = model.a_parameter()
        self.generator = None
        if seed is not None:
            require_seed("seed", seed)
            self.generator = torch.Generator(self.like.device).manual_seed(seed)
        self._ahead: Noise | None = None  # of the prediction of the frame to come
        self.reset()

    def step(self, x: Tensor, u: Tensor | None = None, mask: Tensor | None = None) -> FilterStep:
        """Takes the next frame of every stream.

        Args:
            x: [B, X].
            u: [B, U] external control of this frame.
            mask: [B] or [B, X] bool, True where x is observed; None: everywhere, of a model made with masked=True where
                x is not NaN.

        Returns:
            FilterStep(d [B, D], z [B, Z], predicted [B, X]).

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        raise NotImplementedError

    def predict(self, u: Tensor | None = None) -> Tensor:
        """The mean of the frame to come, [B, X], given those that came: `predicted` of the next step.

        Args:
            u: [B, U] external control of the frame to come.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        raise NotImplementedError

    def reset(self, which: Tensor | list[int] | int | None = None) -> None:
        """Starts streams anew: all, or those that `which` names: numbers, or [B] bool.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        with torch.no_grad():
            fresh = self._start()
            if which is None:
                self.state, chosen = fresh, torch.ones(self.batch_size, dtype=torch.bool, device=self.like.device)
            else:
                chosen = self._chosen(which)
                rows = chosen.repeat(self.paths)[:, None]
                parts = (torch.where(rows, new, old) for new, old in zip(fresh, self.state, strict=True))
                self.state = type(fresh)(*parts)
            self._restart(chosen)

    def _restart(self, chosen: Tensor) -> None:
        """What else starts anew in the streams [B] chosen."""

    def _chosen(self, which: object) -> Tensor:
        """[B] bool."""
        chosen = torch.zeros(self.batch_size, dtype=torch.bool, device=self.like.device)
        if isinstance(which, Tensor) and which.dtype == torch.bool:
            require_numbers("which", which)
            require_shape("which", which, "[B]", (self.batch_size,))
            return which.to(chosen.device)
        numbers = require_numbers("which", which).tolist() if isinstance(which, Tensor) else which
        numbers = [numbers] if isinstance(numbers, int) and not isinstance(numbers, bool) else numbers
        if not isinstance(numbers, list | tuple) or any(type(number) is not int for number in numbers):
            raise TypeError(f"which must be numbers of streams, [B] bool or None, got {shown(which)}")
        if not all(0 <= number < self.batch_size for number in numbers):
            raise ValueError(f"which must name streams from 0 to {self.batch_size - 1}, got {shown(which)}")
        chosen[list(numbers)] = True
        return chosen

    def _start(self) -> AnyState:
        """A state of every row before its first frame."""
        wide = self.like.new_empty(0, self.batch_size * self.paths, self.model.x_size)
        with evaluating(self.model), time_major(self.model):
            if self.generator is None:
                return state_of_priors(self.model, wide)
            drawn = torch.randint(2**62, (), generator=self.generator, device=self.like.device)
            with seeded(int(drawn), self.like.device):
                return state_of_priors(self.model, wide)

    def _draw(self) -> Noise:
        """Standard normal for one step of every row, [1, kB, ·]."""
        rows = self.batch_size * self.paths
        return tuple(
            torch.randn(1, rows, size, generator=self.generator, dtype=self.like.dtype, device=self.like.device)
            for size in self.model.noise_sizes
        )

    def _encode(self, x: Tensor, u: Tensor | None, mask: Tensor | None) -> EncodedBatch:
        """The frame of every stream behind the one before, checked: one step of a batch of B."""
        require_shape("x", x, "[B, X]", (self.batch_size, self.model.x_size))
        before = type(self.state)(*(part[: self.batch_size] for part in self.state))
        mask = None if mask is None else require_tensor("mask", mask, "bool torch.Tensor")[None]
        try:
            return self.model.prepare(x[None], self._control(u), None, before, mask)
        except DataError:
            require_converged(before)
            raise

    def _control(self, u: Tensor | None) -> Tensor | None:
        """[1, B, U]"""
        if u is None or not self.model.control_size:
            return u
        require_shape("u", u, "[B, U]", (self.batch_size, self.model.control_size))
        require_like("u", u, self.like)
        require_finite("u", u, NO_NAN_IN_U)
        return u[None]

    def _step_ahead(self, u: Tensor | None, noise: Noise) -> Tensor:
        """The mean of the frame to come by a step of the prior, [k, B, X]."""
        model, state = self.model, self.state
        if model.control_size and u is None:
            raise ValueError(f"u is missing: this model has an external control of size {model.control_size}")
        if u is not None and not model.control_size:
            raise ValueError("u must be None: this model has no external control (control_size=0)")
        external = self._control(u)
        controls = model.control(state.x_last[: self.batch_size], external)
        controls = tuple(part.repeat(1, self.paths, 1) for part in controls)
        d, z = model.step_from_prior(controls, state.d, state.z, noise)
        mean: Tensor = model.likelihood.mean(model.decode(z[None], d[None]))
        return mean.view(self.paths, self.batch_size, model.x_size)


class PathFilter(Filter):
    """Of a model whose states see no frame to come: its own inference, step by step.

    Args:
        samples: S paths of every stream, or None: one, every latent at its mean.
        noise: (eps_w, eps_z) of the steps to come, [T, B, ·] or [S, T, B, ·]; None draws it where there are samples.
    """

    def __init__(
        self, model: SequenceModel, batch_size: int, samples: int | None, noise: Noise | None, seed: int | None
    ) -> None:
        self.samples, self.time, self.noise = samples, 0, None
        if noise is not None:
            like = model.a_parameter().new_empty(0, batch_size, 0)
            first = noise[0] if isinstance(noise, tuple | list) and noise else None
            steps = first.shape[int(samples is not None)] if is_dense(first) and first.dim() > 2 else 0
            own = check_noise(model, noise, like, samples, False, steps)
            self.noise = tuple(part.movedim(0, 1).flatten(1, 2) for part in own) if samples else own  # [T, SB, ·]
        self._prepared = model.filter_steps(batch_size) if samples is None and noise is None else None
        self._state: AnyState
        super().__init__(model, batch_size, samples or 1, seed)

    @property
    def state(self) -> AnyState:
        """That of every row, [SB, ·]."""
        own: AnyState = self._state if self._prepared is None else self._prepared.state
        return own

    @state.setter
    def state(self, state: AnyState) -> None:
        if self._prepared is None:
            self._state = state
        else:
            self._prepared.state = state

    @torch.no_grad()
    def step(self, x: Tensor, u: Tensor | None = None, mask: Tensor | None = None) -> FilterStep:
        if self._prepared is not None and mask is None and self._fits(x, self.model.x_size) and self._fits_control(u):
            means = self._prepared.step(x, u)
            if means is not None:  # else there is something to say, or missing
                return FilterStep(means.d, means.z, self.model.likelihood.mean(means.parameters)[0])
        with evaluating(self.model), time_major(self.model):
            given = self._encode(x, u, mask)
            noise = self._next_noise()
            predicted = self._step_ahead(u, noise).mean(0)
            rows = repeat_rows(given, self.paths)._replace(start=self.state)
            d, z, self.state = self.model.infer(rows, noise)
        self.time, self._ahead = self.time + 1, None
        if self.samples is None:
            return FilterStep(d[0], z[0], predicted)
        shape = (self.paths, self.batch_size)
        return FilterStep(d[0].unflatten(0, shape), z[0].unflatten(0, shape), predicted)

    @torch.no_grad()
    def predict(self, u: Tensor | None = None) -> Tensor:
        if self._prepared is not None and self._fits_control(u):
            means = self._prepared.predict(u)
            if means is not None:
                return self.model.likelihood.mean(means.parameters)[0]
        with evaluating(self.model), time_major(self.model):
            return self._step_ahead(u, self._next_noise()).mean(0)

    def _fits(self, rows: object, size: int) -> bool:
        return is_dense(rows) and rows.shape == (self.batch_size, size)

    def _fits_control(self, u: object) -> bool:
        size = self.model.control_size
        return self._fits(u, size) if size else u is None

    def _next_noise(self) -> Noise:
        """Of the frame to come, [1, SB, ·]."""
        if self._ahead is None:
            if self.noise is not None:
                if self.time >= len(self.noise[0]):
                    raise ValueError(f"noise must go on as long as the frames do, got {self.time} steps of it")
                self._ahead = tuple(part[self.time : self.time + 1] for part in self.noise)
            elif self.samples is None:
                self._ahead = tuple(part.zero_() for part in self._draw())
            else:
                self._ahead = self._draw()
        return self._ahead


class ParticleFilter(Filter):
    """Of any model: K weighted particles a stream."""

    def __init__(self, model: SequenceModel, batch_size: int, particles: int, seed: int | None) -> None:
        shape, device = (particles, batch_size), model.a_parameter().device
        self.even = torch.full(shape, -math.log(particles), dtype=torch.float64, device=device)
        self.log_weights = self.even
        super().__init__(model, batch_size, particles, seed)

    def _restart(self, chosen: Tensor) -> None:
        self.log_weights = torch.where(chosen, self.even, self.log_weights)
        self._ahead = None

    @torch.no_grad()
    def step(self, x: Tensor, u: Tensor | None = None, mask: Tensor | None = None) -> FilterStep:
        model, shape = self.model, (self.paths, self.batch_size)
        with evaluating(model), time_major(model):
            given = self._encode(x, u, mask)
            predicted = self._predict(u)
            rows = repeat_rows(given, self.paths)
            d, z, log_ratio = model.propose(rows, self.state, self._draw())
            log_prob = model.likelihood.log_prob(model.decode(z[None], d[None]), rows.x, rows.observed)
        self._ahead = None
        log_weights = self.log_weights + (log_ratio + log_prob[0]).view(shape).double()
        self.log_weights = log_weights - torch.logsumexp(log_weights, 0)
        mean_d, mean_z = (self._weighted(part.unflatten(0, shape)) for part in (d, z))
        self.state = self.state._replace(d=d, z=z, x_last=rows.frames[-1])
        self._resample()
        return FilterStep(mean_d, mean_z, predicted)

    @torch.no_grad()
    def predict(self, u: Tensor | None = None) -> Tensor:
        with evaluating(self.model), time_major(self.model):
            return self._predict(u)

    def _predict(self, u: Tensor | None) -> Tensor:
        if self._ahead is None:
            self._ahead = self._draw()
        return self._weighted(self._step_ahead(u, self._ahead))

    def _weighted(self, particles: Tensor) -> Tensor:
        """[K, B, ·] to its mean [B, ·]."""
        return (particles * self.log_weights.exp().to(particles.dtype)[..., None]).sum(0)

    def _resample(self) -> None:
        """Draws the particles of every stream anew that few of them stand for."""
        size = torch.exp(-torch.logsumexp(2 * self.log_weights, 0))
        chosen = size < ESS_THRESHOLD * self.paths
        if not bool(chosen.any()):
            return
        device = self.like.device
        uniform = torch.rand(1, self.batch_size, generator=self.generator, dtype=torch.float64, device=device)
        ranks = torch.arange(self.paths, device=device)[:, None].expand(self.paths, self.batch_size)
        ancestors = torch.where(chosen, resample(self.log_weights.exp(), uniform), ranks)
        rows = (ancestors * self.batch_size + torch.arange(self.batch_size, device=device)).flatten()
        self.state = self.state._replace(d=self.state.d[rows], z=self.state.z[rows])
        self.log_weights = torch.where(chosen, self.even, self.log_weights)


def make_filter(
    model: SequenceModel,
    batch_size: int,
    *,
    particles: int | None,
    samples: int | None,
    noise: Noise | None,
    seed: int | None,
) -> Filter:
    """`SequenceModel.filter`."""
    require_model(model)
    require_size("batch_size", batch_size, 0)
    for name, count in (("particles", particles), ("samples", samples)):
        if count is not None:
            require_size(name, count, 1)
    if particles is None and model.causal:
        return PathFilter(model, batch_size, samples, noise, seed)
    if samples is not None or noise is not None:
        name = "samples" if samples is not None else "noise"
        raise ValueError(f"{name} must be None with a filter of particles, which weighs them; make it with particles=")
    return ParticleFilter(model, batch_size, particles or PARTICLES, seed)
