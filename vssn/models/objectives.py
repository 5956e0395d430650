"""Objectives of K weighted particles, which stand in the place of the ELBO's one draw.

iwae     log of the mean over k of p(x, w^k, z^k) / q(w^k, z^k | x), the particles rows of one batch; its pathwise
         gradient (Burda et al. 2016)
fivo     sum_t log sum_k W_{t-1}^k exp alpha_t^k, as `vssn.inference.importance` has it; its pathwise gradient, without
         the term of resampling, whose variance is large (Maddison et al. 2017)
nasmc    the particles and the value of fivo, drawn without gradients, and two objectives side by side (Gu et al. 2015)
         the generative model   sum_t sum_k W_t^k log p(x_t, w_t^k, z_t^k | the particle's past)
         the proposal           sum_t sum_k W_t^k log q(w_t^k, z_t^k | ·), the inclusive divergence
         W_t the weights that have seen x_t: the filtering estimate. An encoder that both take has both gradients.

Memory: backward needs what all K particles of all frames held, K B rows of T frames: a long sequence is cut into
chunks (`training.chunk_length`). The state that a chunk hands on is that of a particle drawn by its weight. So the sum
of the chunks' bounds stays a bound in expectation: log sum_k W^k p(x' | state^k) >= sum_k W^k log p(x' | state^k).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from vssn.nn.interface import SequenceOutput
from vssn.nn.particles import Frame, Part, ParticleNoise, TrainedHooks, WeightedParticles, search
from vssn.nn.states import AnyState
from vssn.utils.checks import require_device, require_factor, require_like, require_parts, require_shape, require_size
from vssn.utils.named_tuples import with_parts
from vssn.utils.sequences import last_valid, swap, zero_idle
from vssn_kernels.arguments import shown

Model = Any  # a vssn.models.base.FrameModel, which imports this file
OBJECTIVES = ("elbo", "paper", "iwae", "fivo", "nasmc")
OF_PARTICLES = ("iwae", "fivo", "nasmc")
ESS_THRESHOLD = 0.5


def check_objective(objective: str, particles: int | None, free_bits: float) -> None:
    """Raises ValueError for what does not go together; the names are those of a model's arguments."""
    if objective not in OF_PARTICLES:
        if particles is not None:
            raise ValueError(
                f"particles must be None with objective={objective!r}, which has one draw of the latents, got "
                f"{shown(particles)}; leave it out, or take objective='iwae', 'fivo' or 'nasmc'"
            )
        return
    if particles is None:
        raise ValueError(f"particles must be given with objective={objective!r}: how many, 8 say")
    require_size("particles", particles, 2 if objective == "nasmc" else 1)
    if free_bits:
        raise ValueError(
            f"free_bits must be 0 with objective={objective!r}, which is made of weights and has no KL to bound, got "
            f"{free_bits}; leave it out, or take objective='elbo'"
        )


def check_latents(model: Model) -> None:
    """Raises ValueError where the particles of the model's objective would be all the same."""
    if model.particle_count is not None and not (sum(model.noise_sizes) or model.initial_size):
        raise ValueError(
            f"objective must be 'elbo' with a model without latents, whose particles are all the same, got "
            f"{model.objective!r}"
        )


def takes_particles(model: Model, noise: object) -> bool:
    """Whether a call with this noise is one of K particles: noise of one draw stands for one draw."""
    return model.particle_count is not None and (noise is None or isinstance(noise, ParticleNoise))


def particle_output(
    model: Model,
    x: Tensor,
    u: Tensor | None,
    lengths: Tensor | None,
    state: AnyState | tuple[Tensor, ...] | None,
    noise: tuple[Any, ...] | None,
    mask: Tensor | None,
    kl_weight: float | Tensor,
    **alone: Any,
) -> SequenceOutput:
    """What a call returns: the loss of the objective, the other parts those of a call with the first particle's noise.

    Args:
        noise: a ParticleNoise; None draws it.
        alone: arguments of the call that go with one draw alone, by their names.

    Raises:
        ValueError, TypeError: as a call with one draw; and for a kl_weight with nasmc, whose weights are no annealed
            ones.
    """
    for name, value in alone.items():
        if value is not None and not (isinstance(value, (float, int)) and value == 0):
            raise ValueError(f"{name} must be left out with objective={model.objective!r}; take objective='elbo'")
    kl_weight = require_factor("kl_weight", kl_weight, model.a_parameter())
    if model.objective == "nasmc" and kl_weight != 1:
        raise ValueError(f"kl_weight must be 1 with objective='nasmc', got {float(kl_weight)}; train without annealing")
    given = model.prepare(x, u, lengths, state, mask)
    if isinstance(noise, ParticleNoise):
        noise = _checked(noise, model, given.x)
    else:
        noise = ParticleNoise.draw(model, given.x, model.particle_count)
    one = tuple(swap(part, model.batch_first) if part.dim() == 3 else part for part in noise.of_particle(0))
    if not len(given.x):
        nothing: SequenceOutput = model.forward(x, u, lengths, state, one, mask, kl_weight)
        return nothing
    with torch.no_grad():
        strict: SequenceOutput = model.forward(x, u, lengths, state, one, mask)
    steps, batch = given.x.shape[:2]
    full = torch.full((batch,), steps, device=given.x.device) if lengths is None else lengths
    start = given.start
    if start is not None:
        given = with_parts(given, start=type(start)(*[zero_idle(part, lengths) for part in start]))
    run = {"iwae": _iwae, "fivo": _fivo, "nasmc": _nasmc}[model.objective]
    bound, state_behind = run(WeightedParticles(model, given, full), noise, kl_weight)
    if start is not None:  # a row without a step hands on what it got
        busy, parts = (full > 0)[:, None], zip(state_behind, start, strict=True)
        state_behind = type(start)(*[torch.where(busy, part, before) for part, before in parts])
    loss = model.per_frame(-bound.sum().to(given.x.dtype), model.weights_kl(), kl_weight, given)
    return with_parts(strict, loss=loss, state=state_behind)


def _checked(noise: ParticleNoise, model: Model, x: Tensor) -> ParticleNoise:
    shapes = model.noise_shapes(*x.shape[:2])
    names = ("eps_w", "eps_z", "eps_0")[: len(shapes)]
    parts = require_parts("noise's latents", noise.latents, f"({', '.join(names)})")
    for name, part, shape in zip(names, parts, shapes, strict=True):
        letters = "[K, B, S]" if name == "eps_0" else f"[K, T, B, {name[-1].upper()}]"
        require_shape(f"noise's {name}", part, letters, (model.particle_count, *shape))
        require_like(f"noise's {name}", part, x)
    require_shape("noise's uniform", noise.uniform, "[T, B]", tuple(x.shape[:2]))
    require_device("noise's uniform", noise.uniform, x.device, "x is")
    if not noise.uniform.is_floating_point():
        raise TypeError(f"noise's uniform must be floating point, got {noise.uniform.dtype}")
    return noise


def _start(group: WeightedParticles, noise: ParticleNoise) -> tuple[Part, Tensor]:
    """All frames as one part, and the last d of every particle."""
    hooks, (eps_w, eps_z, *eps_0) = group.hooks, noise.latents
    eps_w, eps_z, steps = eps_w.transpose(0, 1), eps_z.transpose(0, 1), group.steps
    d, a, *of_start = hooks.edges(hooks.kinds(eps_w.shape[1]), *eps_0)
    log_ratio, d, d_last, a_all, _ = hooks.states(eps_w, 0, steps, d, a)
    if of_start:
        log_ratio = torch.cat((log_ratio[:1] + of_start[0], log_ratio[1:]))
    return (0, log_ratio, d, hooks.hidden_inputs(d, a_all, 0, steps), eps_z), d_last


def _iwae(group: WeightedParticles, noise: ParticleNoise, ratio_weight: float | Tensor) -> tuple[Tensor, AnyState]:
    (_, log_ratio, d, hidden_inputs, eps_z), d_last = _start(group, noise)
    count = eps_z.shape[1]
    if group.hooks.kinds(count) == 1:
        d = d.repeat(1, count, 1)
        hidden_inputs = None if hidden_inputs is None else tuple(part.repeat(1, count, 1) for part in hidden_inputs)
    first = group.hooks.first_z(count)
    alpha, z = group.weights(slice(None), d, hidden_inputs, first, eps_z, log_ratio, ratio_weight)
    totals = alpha.sum(0, dtype=torch.float64)  # [K, B]
    bound = torch.logsumexp(totals, 0) - torch.log(totals.new_tensor(count))
    paths = torch.arange(count, device=totals.device)[:, None].expand_as(totals)
    z_last = last_valid(z, first, group.lengths.repeat(count))
    return bound, _handed_on(group, noise, torch.log_softmax(totals, 0), paths, d_last, z_last)


def _fivo(group: WeightedParticles, noise: ParticleNoise, ratio_weight: float | Tensor) -> tuple[Tensor, AnyState]:
    part, d_last = _start(group, noise)
    count, uniforms = part[-1].shape[1], noise.uniform[:, None]
    found = group.run_filter(count, [part], uniforms, ESS_THRESHOLD, ratio_weight)
    return found.total, _handed_on(group, noise, found.log_weights, found.paths, d_last, found.z)


def _nasmc(group: WeightedParticles, noise: ParticleNoise, ratio_weight: float | Tensor) -> tuple[Tensor, AnyState]:
    frames: list[Frame] = []
    with torch.no_grad():
        part, d_last = _start(group, noise)
        count, uniforms = part[-1].shape[1], noise.uniform[:, None]
        found = group.run_filter(count, [part], uniforms, ESS_THRESHOLD, trace=frames)
    state = _handed_on(group, noise, found.log_weights, found.paths, d_last, found.z)
    if not torch.is_grad_enabled():
        return found.total, state
    eps_w, _, *eps_0 = noise.latents
    log_density, z, d = cast(TrainedHooks, group.hooks).densities(
        eps_w.transpose(0, 1), eps_0[0] if eps_0 else None, frames
    )
    log_density = log_density + group.log_prob(slice(None), z, d)  # [T, K B]
    weights = torch.stack([frame.log_weights for frame in frames]).exp()  # [T, K, B]
    terms = torch.where(group.valid[:, None], weights * log_density.view(weights.shape), 0.0).sum((0, 1))
    return found.total + (terms - terms.detach()), state


def _handed_on(
    group: WeightedParticles, noise: ParticleNoise, log_weights: Tensor, paths: Tensor, d_last: Tensor, z: Tensor
) -> AnyState:
    """The state behind a particle of each sequence, drawn by its weight; without gradients.

    Args:
        log_weights, paths: [K, B] behind each sequence's last frame.
        d_last: [kinds B, ·] of `ParticleHooks.states`.
        z: [K B, Z].
    """
    batch, given, lengths = group.batch, group.given, group.lengths
    with torch.no_grad():
        columns = torch.arange(batch, device=z.device)
        uniform = noise.uniform[(lengths - 1).clamp(min=0), columns]
        chosen = search(log_weights.detach().exp(), uniform[None])  # [1, B]
        path = paths.gather(0, chosen)[0] if len(d_last) > batch else torch.zeros_like(chosen[0])
        x_last = last_valid(given.frames[1:], given.frames[0], lengths)
        d, z = d_last.detach()[path * batch + columns], z.detach()[chosen[0] * batch + columns]
        return cast(TrainedHooks, group.hooks).behind(d, z, x_last)
