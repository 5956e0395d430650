"""States and noise that a caller gives: checked, and noise drawn where none is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vssn.errors import TrainingError
from vssn.nn.states import AnyState
from vssn.utils.checks import require_device, require_like, require_parts, require_shape, require_tensor
from vssn.utils.sequences import swap
from vssn.utils.values import looked_at, require_finite
from vssn_kernels.arguments import is_dense
from vssn_kernels.ops.torch_internals import is_plain_call

LOWER = "lower training.learning_rate or training.gradient_clip_norm"


def check_state(
    state: object, sizes: Mapping[str, tuple[str, int]], batch: int | None, like: Tensor
) -> Sequence[Tensor]:
    """The parts of a state, each [B, size]. Raises TypeError or ValueError where they are not, or not finite.

    Args:
        sizes: of every part by its name: the letter of its size, and the size. What a GRU carries, d and a, may be
            float32 beside `like` in half precision.
        batch: B; None: that of the first part.
    """
    parts = require_parts("state", state, f"({', '.join(sizes)})", " or None")
    for (name, (letter, size)), part in zip(sizes.items(), parts, strict=True):
        if batch is None:
            batch = part.shape[0] if is_dense(part) and part.dim() else 0
        require_shape(f"state's {name}", part, f"[B, {letter}]", (batch, size))
        require_like(f"state's {name}", part, like, or_float32=name in ("d", "a"))
        require_finite(f"state's {name}", part, "start anew with state=None")
    return parts


def require_converged(state: AnyState, said: str = "the model has diverged") -> None:
    """Of a state that the model itself came to, before it is an argument of the next call: that it is not finite is no
    argument's fault. Where it is looked at, as arguments are. Raises TrainingError, which begins with what is said."""
    if looked_at(state[0].device) and is_plain_call() and not all(bool(part.isfinite().all()) for part in state):
        raise TrainingError(f"{said}: a state is not finite; {LOWER}")


def noise_shapes(steps: int, batch: int, sizes: tuple[int, int], initial_size: int = 0) -> tuple[tuple[int, ...], ...]:
    """Of eps_w [T, B, W], eps_z [T, B, Z], and with an initial size of eps_0 [B, S]."""
    of_frames = tuple((steps, batch, size) for size in sizes)
    return (*of_frames, (batch, initial_size)) if initial_size else of_frames


def draw_noise(like: Tensor, sizes: tuple[int, int], initial_size: int = 0) -> tuple[Tensor, ...]:
    """(eps_w [T, B, W], eps_z [T, B, Z]) standard normal for `like` [T, B, ·], of these sizes; eps_0 [B, S] behind them
    with an initial size."""
    shapes = noise_shapes(like.shape[0], like.shape[1], sizes, initial_size)
    return tuple(like.new_empty(shape).normal_() for shape in shapes)


def check_noise(
    noise: object,
    like: Tensor,
    sizes: tuple[int, int],
    initial_size: int = 0,
    valid: Tensor | None = None,
    batch_first: bool = False,
) -> tuple[Tensor, ...]:
    """The noise of `draw_noise` time-major. Raises TypeError or ValueError where it does not fit `like` [T, B, ·], or
    is not finite where `valid` [T, B] (None: everywhere)."""
    names = "(eps_w, eps_z, eps_0)" if initial_size else "(eps_w, eps_z)"
    given = require_parts("noise", noise, names, " or None", lists=True)
    letters = "[B, T, {}]" if batch_first else "[T, B, {}]"
    leading = (like.shape[1], like.shape[0]) if batch_first else like.shape[:2]
    draw = "draw it from a standard normal distribution"
    parts = []
    for name, letter, size, part in zip(("noise's eps_w", "noise's eps_z"), "WZ", sizes, given[:2], strict=True):
        require_shape(name, part, letters.format(letter), (*leading, size))
        require_like(name, part, like)
        part = swap(part, batch_first)
        require_finite(name, part, draw, valid)
        parts.append(part)
    for part in given[2:]:
        require_shape("noise's eps_0", part, "[B, S]", (like.shape[1], initial_size))
        require_like("noise's eps_0", part, like)
        require_finite("noise's eps_0", part, draw)
        parts.append(part)
    return tuple(parts)


def check_starts(name: str, starts: object, like: Tensor, batch_first: bool = False, of: str = "x is") -> Tensor:
    """Where sequences start anew, [T, B] bool, time-major. Raises TypeError or ValueError where it does not fit `like`
    [T, B, ·]. Args: of: what `like` stands for in a message."""
    given = require_tensor(name, starts, "bool torch.Tensor")
    if given.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool torch.Tensor, got {given.dtype}; convert it with .bool()")
    steps, batch = like.shape[:2]
    expected = ("[B, T]", (batch, steps)) if batch_first else ("[T, B]", (steps, batch))
    require_shape(name, given, *expected)
    require_device(name, given, like.device, of)
    return swap(given, batch_first)
