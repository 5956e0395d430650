"""Many paths of the latents of a batch at once: what forecasts, imputations, latents and scores of frames stand on.

Path s of sequence b is row s B + b of one batch, which the model has encoded once, for the B sequences. As many paths
run together as the memory given takes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vssn.nn.interface import EncodedBatch, SequenceModel, require_model
from vssn.nn.states import AnyState
from vssn.utils.checks import require_seed, require_size
from vssn.utils.evaluation_mode import evaluating, time_major
from vssn.utils.random import seeded
from vssn.utils.sequences import check_mask, check_sequences, swap
from vssn_kernels.arguments import shown

Noise = tuple[Tensor, ...]  # (eps_w, eps_z), and eps_0 where something is inferred before the first frame


class Draws:
    """A batch that the model has prepared, time-major, and paths of it.

    Args:
        given: of B sequences.
        lengths: [B] int64 or None.
        memory: bytes for the paths that run together.
    """

    def __init__(self, model: SequenceModel, given: EncodedBatch, lengths: Tensor | None, memory: int) -> None:
        self.model, self.given, self.lengths, self.memory = model, given, lengths, memory

    def groups(self, samples: int) -> Iterator[tuple[int, EncodedBatch, Tensor | None]]:
        """For every group of paths: how many, the batch of their rows, and the rows' lengths."""
        steps, batch = self.given.x.shape[:2]
        floats = self.model.floats_per_frame(self.given.x)
        bytes_per_path = max(steps * batch * sum(floats[:3]), 1) * self.given.x.element_size()
        most = max(self.memory // bytes_per_path, 1)
        for start in range(0, samples, most):
            count = min(most, samples - start)
            lengths = None if self.lengths is None else self.lengths.repeat(count)
            yield count, repeat_rows(self.given, count), lengths

    def noise(self, rows: EncodedBatch) -> Noise:
        """Standard normal (eps_w [T, kB, W], eps_z [T, kB, Z]), and eps_0 [kB, S] where it is needed."""
        return tuple(part.normal_() for part in self._empty(rows))

    def no_noise(self) -> Noise:
        """Zeros: every latent at its mean given those before it."""
        return tuple(part.zero_() for part in self._empty(self.given))

    def _empty(self, rows: EncodedBatch) -> Noise:
        return tuple(rows.x.new_empty(shape) for shape in self.model.noise_shapes(*rows.x.shape[:2]))


@contextlib.contextmanager
def drawing(
    model: SequenceModel,
    x: Tensor,
    u: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    samples: int | None,
    seed: int | None,
    memory: int,
) -> Iterator[Draws]:
    """The batch, of the model's own layout, while the model is time-major and in evaluation mode and draws follow from
    the seed (None: from PyTorch's own generator).

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    require_model(model)
    if samples is not None:
        require_size("samples", samples, 1)
    require_size("memory", memory, 1, None)
    x, u = check_sequences(x, u, model.x_size, model.control_size, model.batch_first, model.a_parameter())
    check_mask(mask, x, model.batch_first)
    mask = swap(mask, model.batch_first)
    with evaluating(model), time_major(model):
        given = model.prepare(x, u, lengths, None, mask)
        with seeded_or_not(seed, given.x.device):
            yield Draws(model, given, lengths, memory)


def seeded_or_not(seed: int | None, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """`seeded`; None leaves PyTorch's own generator to go on."""
    if seed is None:
        return contextlib.nullcontext()
    require_seed("seed", seed)
    return seeded(seed, device)


def noise_of_one(model: SequenceModel, x: Tensor, u: Tensor | None) -> Noise | None:
    """For a call of the model on x and u of its own layout, of which one draw is wanted. None: it draws one by itself;
    with an objective of particles it would draw them all, and run them. Raises TypeError or ValueError."""
    if getattr(model, "particle_count", None) is None:
        return None
    x, _ = check_sequences(x, u, model.x_size, model.control_size, model.batch_first, model.a_parameter())
    parts = [x.new_empty(shape).normal_() for shape in model.noise_shapes(*x.shape[:2])]
    return (*(swap(part, model.batch_first) for part in parts[:2]), *parts[2:])


def repeat_rows(given: EncodedBatch, count: int) -> EncodedBatch:
    """The batch `count` times side by side: row k B + b is sequence b."""
    if count == 1:
        return given

    def of(part: Tensor) -> Tensor:
        return part.repeat(1, count, *(1,) * (part.dim() - 2))

    observed, valid, start, resets = given.observed, given.valid, given.start, given.resets
    return EncodedBatch(
        of(given.x),
        None if observed is None else of(observed),
        None if valid is None else of(valid),
        of(given.frames),
        of(given.embedded),
        tuple(map(of, given.controls)),
        None if start is None else type(start)(*(part.repeat(count, 1) for part in start)),
        resets=None if resets is None else of(resets),
    )


def state_of_priors(model: SequenceModel, rows: Tensor) -> AnyState:
    """The state before the first frame of rows [T, N, ·], that of a start anew."""
    nothing = rows.new_empty(0, rows.shape[1], model.control_size) if model.control_size else None
    return model.generate(0, rows.shape[1], u=nothing).state


def by_path(rows: Tensor, count: int) -> Tensor:
    """[T, kB, ...] to [k, T, B, ...]."""
    return rows.unflatten(1, (count, rows.shape[1] // count if count else 0)).movedim(1, 0)


def check_quantiles(quantiles: object, samples: int | None) -> None:
    """Raises TypeError or ValueError unless they are numbers in [0, 1], or None."""
    if quantiles is None:
        return
    if samples is None:
        raise ValueError("samples must be given with quantiles: they are taken of the samples")
    levels = list(quantiles) if isinstance(quantiles, Sequence) and not isinstance(quantiles, str) else None
    if levels is None or any(isinstance(level, bool) or not isinstance(level, int | float) for level in levels):
        raise TypeError(f"quantiles must be a sequence of numbers in [0, 1] or None, got {shown(quantiles)}")
    if not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"quantiles must lie in [0, 1], got {shown(quantiles)}")


def take_quantiles(samples: Tensor, levels: Sequence[float] | None) -> Tensor | None:
    """[S, ...] to [Q, ...], linear between neighbours as torch.quantile is, of any size and dtype."""
    if levels is None:
        return None
    ordered, last = samples.sort(0).values, len(samples) - 1
    taken = []
    for level in levels:
        low = min(math.floor(level * last), last)
        taken.append(torch.lerp(ordered[low], ordered[min(low + 1, last)], level * last - low))
    return torch.stack(taken) if taken else samples.new_zeros(0, *samples.shape[1:])


def of_layout(tensor: Tensor, batch_first: bool) -> Tensor:
    """[..., T, B, X] to the layout that came in, or back."""
    return tensor.transpose(-3, -2) if batch_first else tensor
