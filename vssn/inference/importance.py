"""Lower bounds on log p(x_{1:T} | u_{1:T}) from K weighted particles, for every sequence of a batch.

    w_t^k ~ q(w_t | x, u) for all t;  d^k and a^k follow from the whole w path;  z_t^k ~ q(z_t | z_{t-1}^k, a_t^k)
    alpha_t = log p(w_t)/q(w_t) + log p(z_t | z_{t-1}, d_t)/q(z_t | z_{t-1}, a_t) + log p(x_t | z_t, d_t)

    elbo    mean over k of sum_t alpha_t^k
    iwae    log of the mean over k of exp sum_t alpha_t^k                               (Burda et al. 2016)
    fivo    sum_t log sum_k W_{t-1}^k exp alpha_t^k;  W_t^k prop. W_{t-1}^k exp alpha_t^k   (Maddison et al. 2017)

The weights are made of log densities at the samples, so every exp of a bound's argument has the expectation
p(x_{1:T} | u_{1:T}) exactly; analytic divergences would not do. In expectation elbo <= iwae <= log p and
elbo <= fivo <= log p.

fivo: where the effective sample size 1 / sum_k (W^k)^2 of a sequence falls below a share of K, its particles are drawn
anew by their weights. A particle carries its whole w path, its future included: a_t^k, and so the proposal of z_t^k,
has seen w_{t:T}^k. That is a particle filter for the targets p(w_{1:t}, z_{1:t}, x_{1:t}) prod_{s > t} q(w_s | x, u);
the last one is the model, so the estimate stays unbiased. A copy of a path is an index: d and a are not computed again.

With universal="gaussian" the duration GRU's weights are the mean of their posterior, as at every evaluation: the bound
is that of the model with these weights.

Memory: particles are run in groups, and sequences that are too long even so in parts of PART frames. Then d is computed
forward and a backward once before, keeping their states between the parts, and again within each part. Every
(sequence, particle, part) has random numbers of its own: neither padding nor the memory limit changes a result
beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vssn.errors import MemoryLimitError
from vssn.models.vssn import VSSN, Prepared, require_model
from vssn.nn.blocks import Recurrence, SplitLinear, is_plain, is_plain_latent
from vssn.utils.checks import require_choice, require_number, require_seed, require_size, require_tensor
from vssn.utils.evaluation_mode import evaluating, time_major
from vssn.utils.random import generator
from vssn.utils.sequences import check_lengths, check_mask, check_sequences, swap, with_first

BOUNDS = ("elbo", "iwae", "fivo")
RESAMPLINGS = ("systematic", "multinomial")
DEFAULT_MEMORY = 2**30  # bytes
PART = 64  # frames; a multiple of 16, so that a draw of a part does not depend on the library's vector width
FEW_PARTICLES = 8  # a group of fewer would waste the matrix products: cut the sequence into parts instead


class SequenceBounds(NamedTuple):
    """In nats, float64."""

    total: Tensor  # [B] the bound on log p(x_{1:T} | u_{1:T}); 0 for a sequence without frames
    first: Tensor  # [B] the same particles' bound on log p(x_1 | u_1)
    resamplings: Tensor  # [B] int64, 0 unless fivo


class Plan(NamedTuple):
    """What is held in memory at once."""

    sequences: int
    particles: int
    steps: int


@torch.no_grad()
def sequence_bounds(
    model: VSSN,
    x: Tensor,
    u: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    bound: str = "iwae",
    particles: int = 100,
    mask: Tensor | None = None,
    seed: int = 0,
    first_index: int = 0,
    memory: int = DEFAULT_MEMORY,
    resampling: str = "systematic",
    ess_threshold: float = 0.5,
) -> SequenceBounds:
    """A bound for each sequence of a batch, one draw of its particles.

    Args:
        model: set to evaluation mode meanwhile.
        x, u, lengths, mask: as in `VSSN.forward`; [T, B, X] unless the model is batch_first.
        bound: "elbo", "iwae" or "fivo".
        particles: K.
        seed: of all draws; sequence b draws from the stream (seed, first_index + b).
        first_index: the number of the batch's first sequence in its data set.
        memory: bytes that the tensors of the computation may take together, the batch itself and what the modules
            `encoder` and `decoder` of a model allocate inside not counted.
        resampling: of fivo: "systematic" or "multinomial".
        ess_threshold: of fivo: resample below this share of K; 0 never does, and gives iwae.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        DataError: x holds what the likelihood does not take.
        MemoryLimitError: `memory` does not suffice for one sequence.
    """
    check_bound(model, bound, particles, seed, memory)
    require_size("first_index", first_index, 0)
    require_choice("resampling", resampling, RESAMPLINGS)
    require_number("ess_threshold", ess_threshold, 0.0)
    x, u = check_sequences(x, u, model.x_size, model.control_size, model.batch_first, model.layer.a_parameter())
    check_lengths(lengths, x)
    check_mask(mask, x, model.batch_first)
    mask = swap(mask, model.batch_first)
    steps, batch = x.shape[:2]
    lengths = torch.full((batch,), steps, device=x.device) if lengths is None else lengths
    order = lengths.argsort(descending=True, stable=True)
    results: list[tuple[Tensor, ...]] = []
    done = 0
    with evaluating(model), time_major(model):
        while done < batch:
            rest = order[done:]
            longest = int(lengths[rest[0]])
            plan = make_plan(model, x, longest, rest, particles, memory, split=bound != "fivo")
            columns = rest[: plan.sequences]
            here, u_here, mask_here = (
                part if part is None else part[:longest].index_select(1, columns) for part in (x, u, mask)
            )
            assert here is not None
            given = model.prepare(here, u_here, lengths[columns], None, mask_here)
            keys = [(seed, first_index + column) for column in columns.tolist()]
            group = _Particles(model, given, lengths[columns], keys, plan)
            if bound == "fivo":
                results.append(group.fivo(particles, resampling, ess_threshold))
            else:
                results.append(group.weighted(particles, bound))
            done += plan.sequences
    if not results:
        nothing = x.new_zeros(0, dtype=torch.float64)
        return SequenceBounds(nothing, nothing, nothing.long())
    back = order.argsort()
    return SequenceBounds(*(torch.cat(part)[back] for part in zip(*results, strict=True)))


def check_bound(model: object, bound: object, particles: object, seed: object, memory: object) -> None:
    """Raises TypeError or ValueError for what no bound can be computed with."""
    require_model(model)
    require_choice("bound", bound, BOUNDS)
    require_size("particles", particles, 1)
    require_seed("seed", seed)
    require_size("memory", memory, 1)


def make_plan(model: VSSN, x: Tensor, steps: int, columns: Tensor, particles: int, memory: int, *, split: bool) -> Plan:
    """How many sequences, particles and frames fit into `memory` bytes together.

    Args:
        x: [T, B, X] the batch; what it holds may decide how much a likelihood needs.
        steps: frames of the longest of the sequences.
        columns: the sequences that are left to run.
        split: the particles may run one group after the other.

    Raises:
        MemoryLimitError: nothing fits.
    """
    x = x[:steps, columns]
    size = x.element_size()
    shared, states, emission, between = (count * size for count in _floats_per_frame(model, x))
    # Without resampling all frames are emitted at once; fivo goes frame by frame.
    own, fixed = (states + emission, 0) if split else (states, particles * (states + emission))
    steps = max(steps, 1)
    fits = memory // (steps * (shared + particles * own) + fixed)
    if fits:
        return Plan(min(fits, len(columns)), particles, steps)
    fits = (memory // steps - shared) // own
    if split and fits >= min(particles, FEW_PARTICLES):
        return Plan(1, fits, steps)
    parts = -(-steps // PART)
    least = 0
    for group in (min(particles, FEW_PARTICLES), 1) if split else (particles,):
        always = fixed + steps * shared + parts * group * between
        fits = (memory - always) // (group * own * PART)
        if fits >= 1:
            return Plan(1, group, min(fits * PART, steps))
        least = always + group * own * PART
    raise MemoryLimitError(
        f"memory must be at least {math.ceil(least / 2**20)} MiB for a sequence of {steps} frames with {particles} "
        f"particles, got {memory / 2**20:.0f} MiB; raise it or take fewer particles"
    )


def _floats_per_frame(model: VSSN, x: Tensor) -> tuple[int, int, int, int]:
    """Numbers held for a frame of a sequence, for a frame of a particle up to its contexts and from there on, and for a
    particle between two parts."""
    layer, likelihood = model.layer, model.likelihood
    d, a, z, w, m = layer.hidden_size, layer.backward_size, layer.latent_size, layer.noise_size, layer.mlp_size
    shared = 3 * model.x_size + 3 * model.frame_size + 4 * layer.input_size + 7 * d + 7 * a + 2 * m + 6 * w
    states = 4 * w + 5 * d + (5 * a + 2 * m + 3 * z if z else 0)
    emission = d + 9 * z + 4 * m + max(likelihood.floats_per_frame(stretch) for stretch in x.split(PART))
    recurrences = ([layer.duration] if d else []) + ([layer.backward_recurrence] if z else [])
    if not all(_splits(recurrence) for recurrence in recurrences):
        states += 2 * layer.input_size + layer.control_size  # whole inputs for every particle
    return shared, states, emission, d + a


class _Particles:
    """The particles of a few sequences. Rows are particle-major: row k B + b.

    What no w enters is the same for every particle and computed once: `kinds` is then 1, else the number of particles.
    Of plain networks also the part of a product that no w enters; others are called with all of their inputs.
    """

    def __init__(self, model: VSSN, given: Prepared, lengths: Tensor, keys: list[tuple[int, int]], plan: Plan) -> None:
        self.model, self.layer, self.given, self.lengths, self.keys = model, model.layer, given, lengths, keys
        self.plan = plan
        layer, x, controls = self.layer, given.embedded, given.controls
        self.steps, self.batch = x.shape[:2]
        self.valid = torch.arange(self.steps, device=x.device)[:, None] < lengths  # [T, B]
        nothing = x.new_zeros(self.steps, self.batch, 0)
        self.start = layer.initial_state(self.batch, given.x)  # d_0, z_0
        self.duration_gates = self.backward_gates = None
        if layer.hidden_size and _splits(layer.duration):
            no_noise = x.new_zeros(self.steps, self.batch, layer.noise_size)
            self.duration_gates = layer.duration.input(*controls, no_noise)  # [T, B, 3D]
        self.mu_w, self.logvar_w = nothing, nothing
        if layer.noise_size:
            self.mu_w, self.logvar_w = layer.infer_noise(x, controls, lengths)
        self.fused = bool(layer.latent_size) and layer.fuses_latents() and is_plain_latent(layer.prior)
        if layer.latent_size and _splits(layer.backward_recurrence):
            no_d = x.new_zeros(self.steps, self.batch, layer.hidden_size)
            self.backward_gates = layer.backward_recurrence.input(*layer.drivers(no_d, controls), x)  # [T, B, 3A]

    # The three things to know of a group of particles: its noise, its states, the weights of a stretch of frames.
    # A generator's key is (seed, sequence, particle from 1 on or 0 for resampling, part).

    def _noise(self, group: range, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(eps_w [S, k, B, W], eps_z [S, k, B, Z]) of the frames start..stop-1; start is a multiple of PART."""
        w, z, like = self.layer.noise_size, self.layer.latent_size, self.given.x
        eps = torch.zeros(stop - start, len(group), self.batch, w + z, dtype=like.dtype)
        lengths = self.lengths.tolist()
        for column, key in enumerate(self.keys):
            for begin in range(start, min(stop, lengths[column]), PART):
                end = min(begin + PART, stop, lengths[column])
                for row, particle in enumerate(group):
                    draws = torch.randn(
                        PART, w + z, generator=generator(*key, 1 + particle, begin // PART), dtype=like.dtype
                    )
                    eps[begin - start : end - start, row, column] = draws[: end - begin]
        eps_w, eps_z = eps.to(like.device).split((w, z), -1)
        return eps_w, eps_z

    def _states(
        self, eps_w: Tensor, start: int, stop: int, d_before: Tensor, a_after: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Of the frames start..stop-1: log p(w)/q(w) [S, k, B], d [S, kinds B, D], the last d, a and the first a.

        a_after: a_{stop} [kinds B, A]; None: d alone is wanted, and no a is computed.
        """
        layer, frames = self.layer, slice(start, stop)
        kinds = self._kinds(eps_w.shape[1])
        lengths = self._lengths(start, stop).repeat(kinds)
        log_ratio = eps_w.new_zeros(eps_w.shape[:3])
        d, d_last = eps_w.new_zeros(stop - start, kinds * self.batch, 0), d_before
        if layer.hidden_size:
            w = eps_w[:, :kinds]  # of size 0 without noise
            if layer.noise_size:
                logvar = self.logvar_w[frames, None]
                w = self.mu_w[frames, None] + torch.exp(logvar / 2) * eps_w
                log_ratio = (eps_w.square() + logvar - w.square()).sum(-1) / 2
            if self.duration_gates is None:
                inputs = (*(self._of_kinds(part[frames], kinds) for part in self.given.controls), w.flatten(1, 2))
                d, d_last = layer.duration(inputs, d_before, lengths=lengths)
            else:
                gates = self.duration_gates[frames, None]
                if layer.noise_size:
                    gates = (w @ layer.duration.input.weight[:, -layer.noise_size :].T).add_(gates)
                d, d_last = layer.duration.run(gates.flatten(1, 2), d_before, lengths=lengths)
                del gates
        if a_after is None or not layer.latent_size:
            return log_ratio, d, d_last, None, d_before.new_zeros(len(d_before), layer.backward_size)
        recurrence = layer.backward_recurrence
        if self.backward_gates is None:
            drivers = layer.drivers(d, tuple(part[frames] for part in self.given.controls))
            inputs = (*drivers, self._of_kinds(self.given.embedded[frames], kinds))
            a, a_first = recurrence(inputs, a_after, lengths=lengths, reverse=True)
        else:
            gates = self.backward_gates[frames, None]
            if layer.hidden_size:
                own = d @ recurrence.input.weight[:, : layer.hidden_size].T
                gates = own.view(stop - start, kinds, self.batch, -1).add_(gates)
            a, a_first = recurrence.run(gates.flatten(1, 2), a_after, lengths=lengths, reverse=True)
        return log_ratio, d, d_last, a, a_first

    def _weights(
        self,
        frames: slice,
        d: Tensor,
        contexts: tuple[Tensor, ...] | None,
        z_before: Tensor,
        eps_z: Tensor,
        log_ratio: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """alpha [S, k, B] of a stretch of frames, 0 at padding, and its last z [k B, Z].

        Args:
            d: [S, k B, D].
            contexts: as `_contexts` says, each [S, k B, ·]; None without a latent.
            z_before: [k B, Z].
            eps_z: [S, k, B, Z].
            log_ratio: log p(w)/q(w) [S, k, B].
        """
        layer, given = self.layer, self.given
        shape = eps_z.shape[:3]
        eps = eps_z.flatten(1, 2)
        z, alpha = eps, log_ratio
        if contexts is not None:
            if self.fused:
                z, _, logvar = layer.infer_latent(contexts[0], contexts[1], z_before, eps)
                prior_mu, prior_logvar = layer.prior.from_contexts(with_first(z_before, z[:-1]), contexts[1])
            else:
                a, *drivers = contexts
                z, _, logvar, prior_mu, prior_logvar = layer.infer_latents_by_steps(a, tuple(drivers), z_before, eps)
            terms = (z - prior_mu).square_().mul_(torch.exp(-prior_logvar)).add_(prior_logvar)
            log_ratio_z = (eps.square() + logvar - terms).sum(-1) / 2
            alpha = alpha + log_ratio_z.view(shape)
        parameters = self.model.decode(z, d)
        x = given.x[frames].repeat(1, shape[1], 1)
        observed = None if given.observed is None else given.observed[frames].repeat(1, shape[1], 1)
        alpha = alpha + self.model.likelihood.log_prob(parameters, x, observed).view(shape)
        return torch.where(self.valid[frames, None], alpha, 0.0), z[-1]

    # The bounds

    def weighted(self, particles: int, bound: str) -> tuple[Tensor, ...]:
        """elbo or iwae, as the fields of SequenceBounds."""
        totals, firsts = [], []
        for begin in range(0, particles, self.plan.particles):
            group = range(begin, min(begin + self.plan.particles, particles))
            total = self.given.x.new_zeros(len(group), self.batch, dtype=torch.float64)
            first = total
            z = self._first_z(len(group))
            for start, log_ratio, d, contexts, eps_z in self._parts(group):
                stop = start + len(eps_z)
                d, contexts = self._expand(d, len(group)), self._expand_contexts(contexts, len(group))
                alpha, z = self._weights(slice(start, stop), d, contexts, z, eps_z, log_ratio)
                total = total + alpha.sum(0, dtype=torch.float64)
                first = alpha[0].double() if start == 0 else first
            totals.append(total)
            firsts.append(first)
        mean = _log_mean if bound == "iwae" else _mean
        return mean(torch.cat(totals)), mean(torch.cat(firsts)), torch.zeros_like(self.lengths)

    def fivo(self, particles: int, resampling: str, ess_threshold: float) -> tuple[Tensor, ...]:
        """As the fields of SequenceBounds."""
        like = self.given.x
        ranks = torch.arange(particles, device=like.device)[:, None].expand(particles, self.batch)
        columns = torch.arange(self.batch, device=like.device)
        even = torch.full((particles, self.batch), -math.log(particles), dtype=torch.float64, device=like.device)
        log_weights, path, z = even, ranks, self._first_z(particles)  # [K, B], [K, B] whose w path, [K B, Z]
        total = like.new_zeros(self.batch, dtype=torch.float64)
        first, count = total, torch.zeros_like(self.lengths)
        uniforms = self._uniforms(particles if resampling == "multinomial" else 1)
        for start, log_ratios, ds, contexts, eps_z in self._parts(range(particles)):
            for step in range(len(eps_z)):
                t = start + step
                rows = (
                    path * self.batch + columns if self._kinds(particles) > 1 else columns.expand_as(path)
                ).flatten()
                here = slice(step, step + 1)
                alpha, z = self._weights(
                    slice(t, t + 1),
                    ds[here].index_select(1, rows),
                    None if contexts is None else _pick(contexts, here, rows),
                    z,
                    eps_z[here],
                    log_ratios[here].gather(1, path[None]),
                )
                log_weights = log_weights + alpha[0].double()
                increment = torch.logsumexp(log_weights, 0)  # [B]
                total = total + increment
                first = increment if t == 0 else first
                log_weights = log_weights - increment
                size = torch.exp(-torch.logsumexp(2 * log_weights, 0))
                chosen = (size < ess_threshold * particles) & (t + 1 < self.lengths)
                if bool(chosen.any()):
                    drawn = resample(log_weights.exp(), uniforms[t])
                    ancestors = torch.where(chosen, drawn, ranks)
                    path = path.gather(0, ancestors)
                    z = z[(ancestors * self.batch + columns).flatten()]
                    log_weights = torch.where(chosen, even, log_weights)
                    count = count + chosen
        return total, first, count

    def _parts(self, group: range) -> Iterator[tuple[int, Tensor, Tensor, tuple[Tensor, ...] | None, Tensor]]:
        """For every part of the frames in turn: its start, log p(w)/q(w), d, the contexts, eps_z."""
        kinds, steps = self._kinds(len(group)), self.plan.steps
        starts = list(range(0, self.steps, steps))
        d = self.start[0].repeat(kinds, 1)
        a = d.new_zeros(kinds * self.batch, self.layer.backward_size)
        before, after = [d], [a]  # the states at the edges of the parts
        if len(starts) > 1:
            for start in starts[:-1]:
                eps_w, _ = self._noise(group, start, start + steps)
                before.append(self._states(eps_w, start, start + steps, before[-1], None)[2])
            for number in reversed(range(1, len(starts))):
                start, stop = starts[number], min(starts[number] + steps, self.steps)
                eps_w, _ = self._noise(group, start, stop)
                after.append(self._states(eps_w, start, stop, before[number], after[-1])[4])
        for number, start in enumerate(starts):
            stop = min(start + steps, self.steps)
            eps_w, eps_z = self._noise(group, start, stop)
            log_ratio, d, _, here, _ = self._states(eps_w, start, stop, before[number], after[-1 - number])
            yield start, log_ratio, d, self._contexts(d, here, start, stop), eps_z

    def _contexts(self, d: Tensor, a: Tensor | None, start: int, stop: int) -> tuple[Tensor, ...] | None:
        """What stands beside z in the posterior and in the prior: the contexts of plain networks [S, kinds B, M], else
        a and the prior's drivers, each [S, kinds B, ·]."""
        if a is None:
            return None
        drivers = self.layer.drivers(d, tuple(part[start:stop] for part in self.given.controls))
        if not self.fused:
            return a, *drivers
        return self.layer.posterior.contexts((a,), a), self.layer.prior.contexts(drivers, a)

    def _kinds(self, particles: int) -> int:
        return particles if self.layer.noise_size else 1

    def _lengths(self, start: int, stop: int) -> Tensor:
        return (self.lengths - start).clamp(0, stop - start)

    def _of_kinds(self, rows: Tensor, kinds: int) -> Tensor:
        """[S, B, ·] to [S, kinds B, ·]."""
        return rows.repeat(1, kinds, 1)

    def _first_z(self, particles: int) -> Tensor:
        return self.start[1].repeat(particles, 1)

    def _expand(self, rows: Tensor, particles: int) -> Tensor:
        """[S, kinds B, ·] to [S, k B, ·]."""
        return rows.repeat(1, particles * self.batch // rows.shape[1], 1)

    def _expand_contexts(self, contexts: tuple[Tensor, ...] | None, particles: int) -> tuple[Tensor, ...] | None:
        return None if contexts is None else tuple(self._expand(part, particles) for part in contexts)

    def _uniforms(self, count: int) -> Tensor:
        """[T, count, B] for resampling, a stream for each sequence."""
        uniforms = torch.zeros(self.steps, count, self.batch, dtype=torch.float64)
        for column, (key, length) in enumerate(zip(self.keys, self.lengths.tolist(), strict=True)):
            uniforms[:length, :, column] = torch.rand(
                length, count, generator=generator(*key, 0, 0), dtype=torch.float64
            )
        return uniforms.to(self.lengths.device)


def resample(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Indices [K, B] of particles, each expected K times its weight often.

    Args:
        weights: [K, B], each column's sum 1.
        uniforms: [K, B] in [0, 1): independent draws, multinomial; [1, B]: systematic, at (rank + uniform) / K.
    """
    for name, tensor in (("weights", weights), ("uniforms", uniforms)):
        if require_tensor(name, tensor).dim() != 2:
            raise ValueError(f"{name} must have shape [K, B], got {list(tensor.shape)}")
    count = len(weights)
    if len(uniforms) not in (1, count) or uniforms.shape[1] != weights.shape[1]:
        raise ValueError(
            f"uniforms must have shape [K, B] = {list(weights.shape)} or [1, B], got {list(uniforms.shape)}"
        )
    points = uniforms
    if len(uniforms) == 1:
        points = (torch.arange(count, device=weights.device, dtype=weights.dtype)[:, None] + uniforms) / count
    ladder = weights.cumsum(0)
    ladder = ladder / ladder[-1]
    drawn = torch.searchsorted(ladder.T.contiguous(), points.T.contiguous(), right=True)
    return drawn.clamp(max=count - 1).T


def _splits(recurrence: Recurrence) -> bool:
    """Whether the recurrence's input may be summed from products with parts of its weight."""
    return is_plain(recurrence, Recurrence) and is_plain(recurrence.input, SplitLinear)


def _pick(contexts: tuple[Tensor, ...], here: slice, rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(part[here].index_select(1, rows) for part in contexts)


def _mean(values: Tensor) -> Tensor:
    return values.mean(0)


def _log_mean(values: Tensor) -> Tensor:
    return torch.logsumexp(values, 0) - math.log(len(values))
