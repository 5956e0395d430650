"""Missing entries, filled in by sampling: d and z from the posterior given all that is observed, before and behind,
then the missing entries of x_t given z_t, d_t and what is observed of the frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn.inference.draws import Noise, by_path, check_quantiles, drawing, of_layout, take_quantiles
from vssn.nn.interface import EncodedBatch, Imputation, SequenceModel
from vssn.utils.checks import require_size


@torch.no_grad()
def impute(
    model: SequenceModel,
    x: Tensor,
    mask: Tensor | None,
    samples: int,
    quantiles: Sequence[float] | None,
    u: Tensor | None,
    lengths: Tensor | None,
    *,
    seed: int | None,
    memory: int,
) -> Imputation:
    """`SequenceModel.impute`."""
    require_size("samples", samples, 1)
    check_quantiles(quantiles, samples)
    with drawing(model, x, u, lengths, mask, samples, seed, memory) as draws:
        given = draws.given
        # Where x stands as it came; zeros at padding.
        kept = torch.ones_like(given.x, dtype=torch.bool) if given.observed is None else given.observed
        if given.valid is not None:
            kept = kept | ~given.valid[..., None]
        kept_frames = kept.all(-1)  # [T, B]: known, so that nothing is drawn of them to be left out again
        own = (~kept_frames.all(0)).nonzero()[:, 0]  # sequences with gaps
        mean, drawn, done = given.x.clone(), given.x.repeat(samples, 1, 1, 1), 0
        kept, x, gaps = kept[:, own], given.x[:, own], ~kept_frames[:, own]
        summed = torch.zeros_like(x)
        for count, every, lengths_of_every in draws.groups(samples if len(own) else 0):
            noise = draws.noise(every)  # of whole sequences too: what is drawn of others does not depend on them
            rows, noise, row_lengths = _of_sequences(every, noise, lengths_of_every, own, count)
            d, z, _ = model.infer(rows, noise, row_lengths)
            at = gaps.repeat(1, count)
            parameters = model.decode(z[at][None], d[at][None])
            if rows.observed is not None:
                parameters = model.likelihood.given_observed(parameters, rows.x[at][None], rows.observed[at][None])
            found = torch.zeros_like(rows.x)
            found[at] = model.likelihood.sample(parameters)[0].to(x.dtype)  # of autocast
            drawn[done : done + count, :, own] = torch.where(kept, x, by_path(found, count))
            found[at] = model.likelihood.mean(parameters)[0].to(x.dtype)
            summed += by_path(found, count).sum(0)
            done += count
        mean[:, own] = torch.where(kept, x, summed / samples)
    levels = take_quantiles(drawn, quantiles)
    return Imputation(
        of_layout(mean, model.batch_first),
        of_layout(drawn, model.batch_first),
        None if levels is None else of_layout(levels, model.batch_first),
    )


def _of_sequences(
    rows: EncodedBatch, noise: Noise, lengths: Tensor | None, own: Tensor, count: int
) -> tuple[EncodedBatch, Noise, Tensor | None]:
    """Of `count` paths of a batch side by side, with their noise and lengths, those of some of its sequences."""
    batch = rows.x.shape[1] // count
    if len(own) == batch:
        return rows, noise, lengths
    taken = (torch.arange(count, device=own.device)[:, None] * batch + own).flatten()

    def of(part: Tensor) -> Tensor:
        return part[:, taken]

    chosen = EncodedBatch(
        of(rows.x),
        None if rows.observed is None else of(rows.observed),
        None if rows.valid is None else of(rows.valid),
        of(rows.frames),
        of(rows.embedded),
        tuple(map(of, rows.controls)),
        None if rows.start is None else type(rows.start)(*(part[taken] for part in rows.start)),
        resets=None if rows.resets is None else of(rows.resets),
    )
    of_noise = (*map(of, noise[:2]), *(part[taken] for part in noise[2:]))
    return chosen, of_noise, None if lengths is None else lengths[taken.to(lengths.device)]
