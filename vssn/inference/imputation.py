"""Missing entries, filled in by sampling: d and z from the posterior given all that is observed, before and behind,
then the missing entries of x_t given z_t, d_t and what is observed of the frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn.inference.draws import by_path, check_quantiles, drawing, of_layout, take_quantiles
from vssn.nn.interface import Imputation, SequenceModel
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
        paths, mean = [], torch.zeros_like(given.x)
        if kept.all():  # nothing is drawn to be left out again
            paths.append(given.x.expand(samples, *given.x.shape))
        for count, rows, row_lengths in draws.groups(0 if paths else samples):
            d, z, _ = model.infer(rows, draws.noise(rows), row_lengths)
            parameters = model.decode(z, d)
            if rows.observed is not None:
                parameters = model.likelihood.given_observed(parameters, rows.x, rows.observed)
            paths.append(torch.where(kept, given.x, by_path(model.likelihood.sample(parameters), count)))
            mean += by_path(model.likelihood.mean(parameters), count).sum(0)
        drawn, mean = torch.cat(paths), torch.where(kept, given.x, mean / samples)
    levels = take_quantiles(drawn, quantiles)
    return Imputation(
        of_layout(mean, model.batch_first),
        of_layout(drawn, model.batch_first),
        None if levels is None else of_layout(levels, model.batch_first),
    )
