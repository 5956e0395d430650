"""Lower bounds on log p(x_{1:T} | u_{1:T}) from K weighted particles, for every sequence of a batch.

    w_t^k ~ q(w_t | x, u) for all t;  d^k and a^k follow from the whole w path;  z_t^k ~ q(z_t | z_{t-1}^k, a_t^k)
    alpha_t = log p(w_t)/q(w_t) + log p(z_t | z_{t-1}, d_t)/q(z_t | z_{t-1}, a_t) + log p(x_t | z_t, d_t)
    alpha_1 has log p(d_0)/q(d_0 | x, u) too where d_0 is inferred: d_0^k belongs to the particle's path

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
from typing import NamedTuple

import torch
from torch import Tensor

from vssn.errors import MemoryLimitError
from vssn.inference.particles import PART, Particles, Plan
from vssn.nn.interface import DEFAULT_MEMORY, SequenceModel, require_model
from vssn.nn.states import AnyState
from vssn.utils.checks import require_choice, require_number, require_seed, require_size
from vssn.utils.evaluation_mode import evaluating, time_major
from vssn.utils.sequences import check_lengths, check_mask, check_sequences, swap

BOUNDS = ("elbo", "iwae", "fivo")
RESAMPLINGS = ("systematic", "multinomial")
FEW_PARTICLES = 8  # a group of fewer would waste the matrix products: cut the sequence into parts instead


class SequenceBounds(NamedTuple):
    """In nats, float64."""

    total: Tensor  # [B] the bound on log p(x_{1:T} | u_{1:T}); 0 for a sequence without frames
    first: Tensor  # [B] the same particles' bound on log p(x_1 | u_1)
    resamplings: Tensor  # [B] int64, 0 unless fivo


@torch.no_grad()
def sequence_bounds(
    model: SequenceModel,
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
    state: AnyState | tuple[Tensor, ...] | None = None,
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
        state: of each sequence, as in `VSSN.forward`, from which all its particles start: the bound then is on
            log p(x_{1:T} | u_{1:T}, state). None: a start anew.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        DataError: x holds what the likelihood does not take.
        MemoryLimitError: `memory` does not suffice for one sequence.
    """
    check_bound(model, bound, particles, seed, memory)
    require_size("first_index", first_index, 0)
    require_choice("resampling", resampling, RESAMPLINGS)
    require_number("ess_threshold", ess_threshold, 0.0)
    x, u = check_sequences(x, u, model.x_size, model.control_size, model.batch_first, model.a_parameter())
    check_lengths(lengths, x)
    check_mask(mask, x, model.batch_first)
    mask = swap(mask, model.batch_first)
    steps, batch = x.shape[:2]
    lengths = torch.full((batch,), steps, device=x.device) if lengths is None else lengths
    order = lengths.argsort(descending=True, stable=True)
    results: list[tuple[Tensor, ...]] = []
    done = 0
    with evaluating(model), time_major(model):
        start = None if state is None else model.prepare(x[:0], u if u is None else u[:0], None, state).start
        while done < batch:
            rest = order[done:]
            longest = int(lengths[rest[0]])
            plan = make_plan(model, x, longest, rest, particles, memory, split=bound != "fivo")
            columns = rest[: plan.sequences]
            here, u_here, mask_here = (
                part if part is None else part[:longest].index_select(1, columns) for part in (x, u, mask)
            )
            assert here is not None
            rows = None if start is None else type(start)(*(part[columns] for part in start))
            given = model.prepare(here, u_here, lengths[columns], rows, mask_here)
            keys = [(seed, first_index + column) for column in columns.tolist()]
            group = Particles(model, given, lengths[columns], keys, plan)
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
    require_size("memory", memory, 1, None)


def make_plan(
    model: SequenceModel, x: Tensor, steps: int, columns: Tensor, particles: int, memory: int, *, split: bool
) -> Plan:
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
    most = (max(counts) for counts in zip(*map(model.floats_per_frame, x.split(PART)), strict=True))
    shared, states, emission, between = (count * size for count in most)
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
