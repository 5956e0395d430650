"""log p + log q of the latents of weighted particles of a `vssn.nn.layer.VSSNLayer` that stand as they were drawn: all
frames at once, as z_{t-1} is known for every t.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vssn.nn.blocks import gaussian_log_density
from vssn.nn.particles import Frame


def layer_densities(
    hooks: Any, eps_w: Tensor, eps_0: Tensor | None, frames: list[Frame]
) -> tuple[Tensor, Tensor, Tensor]:
    """`vssn.nn.particles.TrainedHooks.densities` of a `vssn.nn.paths.LayerParticles`."""
    layer, controls = hooks.layer, hooks.controls
    steps, particles = eps_w.shape[:2]
    kinds = hooks.kinds(particles)
    rows = torch.stack([frame.paths for frame in frames])  # [T, k B]
    z_before, z = torch.stack([frame.z_before for frame in frames]), torch.stack([frame.z for frame in frames])
    lengths = hooks.lengths.repeat(kinds)
    total = eps_w.new_zeros(rows.shape)

    if hooks.start[0] is None:
        mu_0, logvar_0 = hooks.initial
        s, both = _stand(mu_0, logvar_0, eps_0)
        both = both + gaussian_log_density(s, layer.initial_mu, layer.initial_logvar).sum(-1)  # [k, B]
        total = torch.cat((both.flatten()[rows[:1]], total[1:]))
        d_0 = layer.map_initial(s.flatten(0, 1))
    else:
        d_0 = hooks.start[0].repeat(kinds, 1)
    d = eps_w.new_zeros(steps, kinds * hooks.batch, 0)
    if layer.hidden_size:
        w = eps_w[:, :kinds]
        if layer.noise_size:
            w, log_q = _stand(hooks.mu_w[:, None], hooks.logvar_w[:, None], eps_w)
            total = total + log_q.flatten(1).gather(1, rows)
        inputs = (*(part.repeat(1, kinds, 1) for part in controls), w.flatten(1, 2))
        d, _ = layer.duration(inputs, d_0, lengths=lengths, weight_noise=hooks.weight_noise)
    if not layer.latent_size:
        return total, z, _take(d, rows)

    a_edge = d.new_zeros(kinds * hooks.batch, layer.backward_size)
    if hooks.a_0 is not None:
        a_edge = hooks.a_0.repeat(kinds, 1)
    inputs = (*layer.parents(d.detach(), controls), hooks.x.repeat(1, kinds, 1))
    a, _ = layer.backward_recurrence(inputs, a_edge, lengths=lengths, reverse=not layer.carries_a)
    mu, logvar = layer.posterior(z_before, (_take(a, rows),))
    d = _take(d, rows)
    parents = layer.parents(d, tuple(part.repeat(1, particles, 1) for part in controls))
    z_before = torch.cat((hooks.first_z(particles)[None].to(z), z_before[1:]))  # which may be learned, as p's
    prior_mu, prior_logvar = layer.prior(z_before, parents)
    if layer.residual_posterior:
        mu = mu + prior_mu.detach()
    both = gaussian_log_density(z, mu, logvar) + gaussian_log_density(z, prior_mu, prior_logvar)
    return total + both.sum(-1), z, d


def _stand(mu: Tensor, logvar: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sample that eps gives, as a constant, and its log-density [...] of [..., Z]."""
    assert eps is not None
    sample = (mu + torch.exp(logvar / 2) * eps).detach()
    return sample, gaussian_log_density(sample, mu, logvar).sum(-1)


def _take(part: Tensor, rows: Tensor) -> Tensor:
    """part[t, rows[t]] for every t: [T, N, ·] and [T, M] to [T, M, ·]."""
    starts = torch.arange(len(part), device=part.device)[:, None] * part.shape[1]
    return part.flatten(0, 1).index_select(0, (rows + starts).flatten()).view(*rows.shape, part.shape[-1])
