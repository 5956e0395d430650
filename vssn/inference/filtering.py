"""States inferred from the past alone, one-step predictions from the prior, and free-running rollouts.

    smoothing   (d_t, z_t) from x_{1:T}: the model's own inference, whose a_t has seen the frames to come
    filtering   (d_t, z_t) from x_{1:t}: inference on the prefix that ends at t, of which the last state is kept. A run
                for every t, T^2 / 2 frames in all; of the model's parts only those that look ahead run so often.
                With initial_state="inferred" d_0 is inferred anew from each prefix, q(d_0 | x_{1:t}): from the whole
                sequence x_{t+1:T} would leak into the past.
    prediction  of x_t: (d_{t-1}, z_{t-1}) filtered, then one step of the generative model: w_t and z_t from their
                priors, E[x_t | z_t, d_t]. No frame from t on has a part in it. From smoothed states it would:
                z_{t-1} has seen x_t.
    rollout     the state filtered after the frames seen, then the generative model alone, its mean frame fed back

Each comes in two kinds. `samples=None`: no noise, every latent at its conditional mean, one deterministic path (NADE's
mean given the latents is an estimate from draws all the same; they follow from `seed`).
`samples=S`: the mean over S paths with all their latents drawn: of a prediction, an estimate of E[x_t | x_{<t}].
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vssn.nn.interface import SequenceModel, require_model
from vssn.nn.states import AnyState, State
from vssn.utils.checks import require_choice, require_flag, require_numbers, require_seed, require_shape, require_size
from vssn.utils.evaluation_mode import evaluating, time_major
from vssn.utils.random import seeded
from vssn.utils.sequences import check_control, check_lengths, check_sequences, swap
from vssn.utils.values import NO_NAN_IN_U, require_finite

INFERENCES = ("filtering", "smoothing")


class LatentStates(NamedTuple):
    d: Tensor  # [T, B, D]
    z: Tensor  # [T, B, Z]


@torch.no_grad()
def latent_states(
    model: SequenceModel,
    x: Tensor,
    u: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    inference: str = "smoothing",
    samples: int | None = None,
    seed: int = 0,
) -> LatentStates:
    """The states of every frame, zeros at padding.

    Args:
        model: set to evaluation mode meanwhile.
        x, u, lengths: as in `VSSN.forward`; with a model that is batch_first they are [B, T, ·], as what comes back.
        inference: "filtering" or "smoothing".
        samples: None: at the mean of every latent; S: the mean of S draws.
        seed: of the draws.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        DataError: x holds what the likelihood does not take.
    """
    require_choice("inference", inference, INFERENCES)
    with _running(model, x, u, lengths, samples, seed) as runs:
        d, z = runs.mean(samples, seed, lambda noise: runs.states(noise, inference))
    return LatentStates(swap(d, model.batch_first), swap(z, model.batch_first))


@torch.no_grad()
def one_step_predictions(
    model: SequenceModel,
    x: Tensor,
    u: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Predictions of x_2..x_T, each from the prior given the frames before it: [T-1, B, X], zeros at padding.

    Arguments and errors as in `latent_states`.
    """
    with _running(model, x, u, lengths, samples, seed) as runs:
        predicted = runs.mean(samples, seed, lambda noise: (runs.predict(noise),))[0]
    return swap(predicted, model.batch_first)


@torch.no_grad()
def rollouts(
    model: SequenceModel,
    x: Tensor,
    steps: int,
    u: Tensor | None = None,
    u_future: Tensor | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> Tensor:
    """The `steps` frames after x, free-running: [steps, B, X].

    Args:
        x, u: the frames seen, [T, B, X] and [T, B, U].
        u_future: [steps, B, U] external control of the frames to come.
        samples, seed: as in `latent_states`.

    Raises:
        ValueError, TypeError, DataError: as in `latent_states`.
    """
    require_size("steps", steps, 1)
    require_model(model)
    seen, _ = check_sequences(x, u, model.x_size, model.control_size, model.batch_first, model.a_parameter())
    to_come = seen.new_empty(steps, seen.shape[1], 0)
    ahead = check_control("u_future", u_future, to_come, model.control_size, model.batch_first, "steps")
    require_finite("u_future", ahead, NO_NAN_IN_U)
    with _running(model, x, u, None, samples, seed, steps) as runs:
        rolled = runs.mean(samples, seed, lambda noise: (runs.roll(noise, ahead),))[0]
    return swap(rolled, model.batch_first)


def squared_errors(predicted: Tensor, truth: Tensor, *, batch_first: bool = False) -> Tensor:
    """Squared error summed over the features, mean over the sequences: [T, B, X] twice ([B, T, X] with batch_first)
    to [T]."""
    predicted, truth = _alike(predicted, "truth", truth, batch_first)
    return (predicted - truth).square().sum(-1).mean(1)


def prediction_error(
    predicted: Tensor, x: Tensor, lengths: Tensor | None = None, *, batch_first: bool = False
) -> float:
    """Of `one_step_predictions`: squared error summed over the features, mean over t = 2..T of each sequence, then over
    the sequences that have a second frame. Compare with `vssn.experiments.baselines.copy_last_frame_error`.

    Args:
        predicted, x: [T-1, B, X] and [T, B, X], batch-major with batch_first.
        lengths: [B] int64 or None.
    """
    require_flag("batch_first", batch_first)
    if require_numbers("x", x).dim() != 3:
        raise ValueError(f"x must have shape [T, B, X], got {list(x.shape)}")
    predicted, rest = _alike(predicted, "x", x[:, 1:] if batch_first else x[1:], batch_first)
    errors = (predicted - rest).square().sum(-1)  # [T-1, B]
    check_lengths(lengths, swap(x, batch_first))
    if lengths is None:
        return float(errors.double().mean())
    rest_lengths = lengths - 1
    valid = torch.arange(len(errors), device=x.device)[:, None] < rest_lengths
    sums = torch.where(valid, errors.double(), 0.0).sum(0)
    return float((sums / rest_lengths)[rest_lengths > 0].mean())


def _alike(predicted: Tensor, name: str, truth: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Both time-major. Raises TypeError or ValueError unless they have one shape, [T, B, X]: it would be broadcast."""
    require_flag("batch_first", batch_first)
    if require_numbers(name, truth).dim() != 3:
        raise ValueError(
            f"{name} must have shape {'[B, T, X]' if batch_first else '[T, B, X]'}, got {list(truth.shape)}"
        )
    require_numbers("predicted", predicted, truth)
    for called, tensor in ((name, truth), ("predicted", predicted)):
        if tensor.dtype == torch.bool:
            raise TypeError(f"{called} must hold numbers, got {tensor.dtype}; convert it with .float()")
    require_shape("predicted", predicted, f"of the frames of {name}", tuple(truth.shape))
    return swap(predicted, batch_first), swap(truth, batch_first)


@contextlib.contextmanager
def _running(
    model: SequenceModel,
    x: Tensor,
    u: Tensor | None,
    lengths: Tensor | None,
    samples: int | None,
    seed: int,
    ahead: int = 1,
) -> Iterator[_Runs]:
    """Time-major runs of the model over a batch of its own layout."""
    require_model(model)
    if samples is not None:
        require_size("samples", samples, 1)
    require_seed("seed", seed)
    x, u = check_sequences(x, u, model.x_size, model.control_size, model.batch_first, model.a_parameter())
    with evaluating(model), time_major(model):
        yield _Runs(model, x, u, lengths, ahead)


Noise = tuple[Tensor, ...]  # (eps_w, eps_z), and eps_0 where something is inferred before the first frame


class _Runs:
    """A batch, its embeddings, and the runs of the model over it. Noise holds one more step than the frames need."""

    def __init__(
        self, model: SequenceModel, x: Tensor, u: Tensor | None, lengths: Tensor | None, ahead: int = 1
    ) -> None:
        self.model, self.ahead = model, ahead
        self.given, self.lengths = model.prepare(x, u, lengths), lengths

    def mean(self, samples: int | None, seed: int, run: Callable[[Noise], tuple[Tensor, ...]]) -> list[Tensor]:
        """The mean of what `run` returns over the samples."""
        with seeded(seed, self.given.x.device):  # an emission's mean may be estimated by draws: NADE's is
            if samples is None:
                return list(run(self.noise(None)))
            generator = torch.Generator().manual_seed(seed)
            total = list(run(self.noise(generator)))
            for _ in range(samples - 1):
                total = [part.add_(more) for part, more in zip(total, run(self.noise(generator)), strict=True)]
            return [part.div_(samples) for part in total]

    def noise(self, generator: torch.Generator | None) -> Noise:
        """(eps_w, eps_z), each [T + ahead, B, ·], and eps_0 [B, S]: zeros, the conditional means, without a
        generator."""
        steps, batch = self.given.x.shape[0] + self.ahead, self.given.x.shape[1]
        like, sizes = self.given.x, self.model.noise_sizes
        eps = torch.zeros(steps, batch, sum(sizes), dtype=like.dtype)
        if generator is not None:
            eps.normal_(generator=generator)
        eps_0 = torch.zeros(batch, self.model.initial_size, dtype=like.dtype)
        if generator is not None and eps_0.numel():
            eps_0.normal_(generator=generator)
        eps_w, eps_z = eps.to(like.device).split(sizes, -1)
        return (eps_w, eps_z, eps_0.to(like.device)) if self.model.initial_size else (eps_w, eps_z)

    def states(self, noise: Noise, inference: str) -> LatentStates:
        """[T, B, ·] each, zeros at padding."""
        steps = len(self.given.x)
        if inference == "smoothing":
            return self._infer(noise, steps, self.lengths)[0]
        d, z = self.model.infer_prefixes(self.given, noise)
        if self.given.valid is None:
            return LatentStates(d, z)
        valid = self.given.valid[..., None]
        return LatentStates(torch.where(valid, d, 0.0), torch.where(valid, z, 0.0))

    def predict(self, noise: Noise) -> Tensor:
        """[T-1, B, X]: one step from the filtered state of every frame but the last."""
        d, z = (part[:-1] for part in self.states(noise, "filtering"))
        steps, batch = d.shape[:2]
        # Of frame t: its control, which holds frames before it, and noise that no filtered state before it has used.
        controls = tuple(part[1:].flatten(0, 1)[None] for part in self.given.controls)
        eps_w, eps_z = (part[1 : steps + 1].flatten(0, 1)[None] for part in noise[:2])
        d, z = self.model.step_from_prior(controls, d.flatten(0, 1), z.flatten(0, 1), (eps_w, eps_z))
        mean = self.model.likelihood.mean(self.model.decode(z[None], d[None]))
        predicted = mean.view(steps, batch, -1)
        if self.given.valid is None:
            return predicted
        return torch.where(self.given.valid[1:, :, None], predicted, 0.0)

    def roll(self, noise: Noise, u_future: Tensor | None) -> Tensor:
        """[ahead, B, X]."""
        seen = len(self.given.x)
        current = self._infer(noise, seen, None)[1]
        prior, frames = self.model.prior_steps(), []
        for step in range(self.ahead):
            here = slice(seen + step, seen + step + 1)
            external = None if u_future is None else u_future[step : step + 1]
            controls = self.model.control(current.x_last, external)
            d, z = prior.step(controls, current.d, current.z, (noise[0][here], noise[1][here]))
            frame = self.model.likelihood.mean(prior.decode(z[None], d[None]))
            current = State(d, z, self.model.frames(frame, None)[0])
            frames.append(frame)
        return torch.cat(frames)

    def _infer(self, noise: Noise, stop: int, lengths: Tensor | None) -> tuple[LatentStates, AnyState]:
        """The states of the frames before `stop`, given those frames, and the last one."""
        d, z, last = self.model.infer(self.given, noise, lengths, stop)
        return LatentStates(d, z), last
