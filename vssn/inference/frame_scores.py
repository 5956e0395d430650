"""Scores of single frames, in nats: what `SequenceModel.score` gives for the detection of what is out of place.

elbo         log p(x_t | z_t, d_t) - KL_w,t - KL_z,t, the mean over draws: they add up to the strict bound of a sequence
predictive   log 1/S sum_s p(x_t | z_t^s, d_t^s), a step of the prior behind states filtered from x_{<t}: an estimate of
             log p(x_t | x_{<t}) from below
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vssn.inference.draws import Draws, by_path, drawing, noise_of_one, seeded_or_not, state_of_priors
from vssn.nn.interface import EncodedBatch, SequenceModel, require_model
from vssn.utils.checks import require_choice, require_size
from vssn.utils.evaluation_mode import evaluating
from vssn.utils.sequences import swap, with_first, zero_padding

KINDS = ("elbo", "predictive")


@torch.no_grad()
def frame_scores(
    model: SequenceModel,
    x: Tensor,
    u: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    *,
    kind: str,
    samples: int,
    seed: int | None,
    memory: int,
) -> Tensor:
    """`SequenceModel.score`."""
    require_choice("kind", kind, KINDS)
    require_size("samples", samples, 1)
    require_size("memory", memory, 1, None)
    if kind == "elbo":
        require_model(model)
        with evaluating(model), seeded_or_not(seed, model.a_parameter().device):
            runs = [model(x, u, lengths, noise=noise_of_one(model, x, u), mask=mask) for _ in range(samples)]
        return torch.stack([run.reconstruction - run.kl_z - run.kl_w for run in runs]).mean(0)
    with drawing(model, x, u, lengths, mask, samples, seed, memory) as draws:
        densities = torch.cat([_predict(draws, count, rows) for count, rows, _ in draws.groups(samples)])
        terms = zero_padding(torch.logsumexp(densities, 0) - math.log(samples), draws.given.valid)
    return swap(terms, model.batch_first)


def _predict(draws: Draws, count: int, rows: EncodedBatch) -> Tensor:
    """log p(x_t | z_t, d_t) [k, T, B], each of a step of the prior from the state filtered before it."""
    model, (steps, wide) = draws.model, rows.x.shape[:2]
    noise = draws.noise(rows)
    d, z = model.infer_prefixes(rows, noise)
    first = state_of_priors(model, rows.x)
    d, z = (with_first(start, part)[:steps].flatten(0, 1) for start, part in ((first.d, d), (first.z, z)))
    eps_w, eps_z = (part.flatten(0, 1)[None] for part in draws.noise(rows)[:2])
    controls = tuple(part.flatten(0, 1)[None] for part in rows.controls)
    d, z = (part.view(steps, wide, part.shape[-1]) for part in model.step_from_prior(controls, d, z, (eps_w, eps_z)))
    return by_path(model.likelihood.log_prob(model.decode(z, d), rows.x, rows.observed), count)
