"""d, z and w of every frame, at their means or drawn, smoothed or filtered."""

from __future__ import annotations

import torch
from torch import Tensor

from vssn.inference.draws import Noise, by_path, drawing, of_layout
from vssn.nn.interface import EncodedBatch, Latents, SequenceModel
from vssn.utils.checks import require_choice, require_like, require_parts, require_shape
from vssn.utils.sequences import zero_padding
from vssn.utils.values import require_finite

KINDS = ("smooth", "filter")


@torch.no_grad()
def latents(
    model: SequenceModel,
    x: Tensor,
    u: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    *,
    kind: str,
    samples: int | None,
    noise: Noise | None,
    seed: int | None,
    memory: int,
) -> Latents:
    """`SequenceModel.latents`."""
    require_choice("kind", kind, KINDS)
    batch_first = model.batch_first
    parts: list[Latents] = []
    with drawing(model, x, u, lengths, mask, samples, seed, memory) as draws:
        own = None if noise is None else check_noise(model, noise, draws.given.x, samples, batch_first)
        if samples is None:
            found = _run(model, draws.given, draws.lengths, draws.no_noise() if own is None else own, kind)
            return Latents(*(of_layout(part, batch_first) for part in found))
        done = 0
        for count, rows, row_lengths in draws.groups(samples):
            here = draws.noise(rows)
            if own is not None:
                chosen = [part[done : done + count] for part in own]
                here = tuple(part.movedim(0, 1).flatten(1, 2) for part in chosen[:2])
                here += tuple(part.flatten(0, 1) for part in chosen[2:])
            found = _run(model, rows, row_lengths, here, kind)
            parts.append(Latents(*(by_path(part, count) for part in found)))
            done += count
    return Latents(*(of_layout(torch.cat(part), batch_first) for part in zip(*parts, strict=True)))


def _run(model: SequenceModel, rows: EncodedBatch, lengths: Tensor | None, noise: Noise, kind: str) -> Latents:
    filters = kind == "filter"
    d, z = model.infer_prefixes(rows, noise) if filters else model.infer(rows, noise, lengths)[:2]
    w = model.infer_noise(rows, noise, lengths, filters)
    return Latents(*(zero_padding(part, rows.valid) for part in (d, z, w)))


def check_noise(
    model: SequenceModel,
    noise: object,
    like: Tensor,
    samples: int | None,
    batch_first: bool,
    steps: int | None = None,
) -> Noise:
    """(eps_w, eps_z) [T, B, ·] and eps_0 [B, S] where it is needed, with samples behind a dimension of them;
    time-major. Raises TypeError or ValueError where it does not fit `like` [T, B, ·] or is not finite.

    Args:
        steps: T; None: that of `like`.
    """
    names = "(eps_w, eps_z, eps_0)" if model.initial_size else "(eps_w, eps_z)"
    given = require_parts("noise", noise, names, " or None", lists=True)
    leading = [like.shape[0] if steps is None else steps, like.shape[1]]
    letters = "T, B"
    if batch_first:
        leading, letters = leading[::-1], "B, T"
    wanted = [(f"{letters}, {letter}", (*leading, size)) for letter, size in zip("WZ", model.noise_sizes, strict=True)]
    wanted += [("B, S", (like.shape[1], model.initial_size))] if model.initial_size else []
    parts = []
    for name, (letters, shape), part in zip(names[1:-1].split(", "), wanted, given, strict=True):
        if samples is not None:
            letters, shape = f"samples, {letters}", (samples, *shape)
        require_shape(f"noise's {name}", part, f"[{letters}]", shape)
        require_like(f"noise's {name}", part, like)
        require_finite(f"noise's {name}", part, "draw it from a standard normal distribution")
        parts.append(part if name == "eps_0" else of_layout(part, batch_first))
    return tuple(parts)
