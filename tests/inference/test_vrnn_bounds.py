"""The bounds of a VRNN against the exact likelihood of linear ones, and against the weights written frame by frame."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from linear_vrnn import LinearVRNN
from small_vrnns import LENGTHS, VRNNS, batch, make
from vrnn_step_by_step import PlainVRNN

from vssn.inference import importance
from vssn.inference.importance import BOUNDS, sequence_bounds
from vssn.inference.particles import Particles, Plan
from vssn_kernels.testing import assert_close

KEYS = [(7, number) for number in range(len(LENGTHS))]


def test_every_bound_is_exact_where_the_posterior_is() -> None:
    """And so is the strict ELBO of any noise: h takes z and z looks at h, but no weight does."""
    linear = LinearVRNN(exact=True)
    x, lengths = linear.sample(7, 3), torch.tensor([7, 1, 4])
    want = torch.stack([linear.log_p(x[:length, row]).sum() for row, length in enumerate(lengths.tolist())])
    for bound in BOUNDS:
        result = sequence_bounds(linear.model, x, None, lengths, bound=bound, particles=4)
        assert_close(bound, result.total, want, 1e-6)
        first = torch.stack([linear.log_p(x[:1, row])[0] for row in range(3)])
        assert_close(f"{bound}, first frame", result.first, first, 1e-6)
    # The KL's expectation is analytic: the ELBO is exact in the mean over the noise alone.
    copies = x[:, :1].expand(-1, 4000, -1).contiguous()
    elbo = linear.model(copies).elbo.detach()
    assert abs(elbo.mean() - want[0]) < 4 * elbo.std() / len(elbo) ** 0.5
    resets = torch.zeros(7, 1, dtype=torch.bool)
    resets[3] = True
    parts = linear.log_p(x[:3, 0]).sum() + linear.log_p(x[3:, 0]).sum()
    elbo = linear.model(copies, resets=resets.expand(-1, 4000)).elbo.detach()
    assert abs(elbo.mean() - parts) < 4 * elbo.std() / len(elbo) ** 0.5


def test_the_bounds_are_ordered_and_converge_to_the_exact_likelihood() -> None:
    linear = LinearVRNN(exact=False)
    x = linear.sample(5)
    log_p = float(linear.log_p(x[:, 0]).sum())
    gaps = {}
    for bound, particles, count in (
        *(("elbo", 1, 800), ("iwae", 8, 400), ("iwae", 512, 16)),
        *(("fivo", 8, 400), ("fivo", 512, 16)),
    ):
        copies = x.expand(-1, count, -1).contiguous()
        values = sequence_bounds(linear.model, copies, bound=bound, particles=particles).total
        gaps[bound, particles] = float(log_p - values.mean()), float(values.std() / count**0.5)
    for bound in ("iwae", "fivo"):
        path = [gaps["elbo", 1], gaps[bound, 8], gaps[bound, 512]]
        for (looser, error), (tighter, other) in itertools.pairwise(path):
            assert tighter < looser + 3 * math.hypot(error, other), path
        assert path[0][0] > 3 * path[0][1], "the ELBO is strictly below"
        assert all(gap > -3 * error for gap, error in path), path
        assert path[1][0] < 0.7 * path[0][0]
        assert path[2][0] < 3 * path[2][1] + 0.03 * path[0][0]


@pytest.mark.parametrize("resampling", importance.RESAMPLINGS)
def test_fivo_is_unbiased_when_it_resamples_at_every_step(resampling: str) -> None:
    linear, steps, count = LinearVRNN(exact=False), 3, 1500
    x = linear.sample(steps, seed=4)
    copies = x.expand(-1, count, -1).contiguous()
    result = sequence_bounds(linear.model, copies, bound="fivo", particles=16, resampling=resampling, ess_threshold=2.0)
    assert result.resamplings.tolist() == [steps - 1] * count
    ratio = torch.exp(result.total - linear.log_p(x[:, 0]).sum())
    error = float(ratio.std()) / count**0.5
    assert abs(float(ratio.mean()) - 1) < 4 * error
    assert error < 0.05


@pytest.mark.parametrize("name", VRNNS)
def test_weights_are_those_of_the_model_frame_by_frame(name: str) -> None:
    """Three particles a sequence, in parts of two frames of one particle too."""
    model, particles = make(name), 3
    given = batch(model)
    prepared = model.prepare(given["x"], given["u"], LENGTHS)
    group = Particles(model, prepared, LENGTHS, KEYS, Plan(len(LENGTHS), particles, 5))
    eps = group._noise(range(particles), 0, 5)[1]
    totals = torch.zeros(particles, len(LENGTHS)).double()
    for row, length in enumerate(LENGTHS.tolist()):
        for particle in range(particles if length else 0):
            u = None if given["u"] is None else given["u"][:length, row]
            want = PlainVRNN(model).run(given["x"][:length, row], u, eps[:length, particle, row])
            totals[particle, row] = want["log_weight"].sum()
    for bound, want_total in (("elbo", totals.mean(0)), ("iwae", totals.logsumexp(0) - math.log(particles))):
        assert_close(bound, group.weighted(particles, bound)[0], want_total, 1e-12)
        options = {"lengths": LENGTHS, "bound": bound, "particles": particles, "seed": KEYS[0][0]}
        public = sequence_bounds(model, given["x"], given["u"], **options)
        assert_close(f"{bound}, by sequence_bounds", public.total, want_total, 1e-12)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", ["plain", "both"])
def test_a_memory_limit_changes_nothing(name: str, bound: str) -> None:
    """Particles by groups and frames in parts: fewer bytes than a whole run takes, the same numbers."""
    model = make(name)
    given = batch(model, 200, 2)
    options = {"u": given["u"], "lengths": torch.tensor([200, 130]), "bound": bound, "particles": 9}
    want = sequence_bounds(model, given["x"], **options)
    for memory in (3 * 2**20, 2**20) if bound != "fivo" else (3 * 2**20,):
        got = sequence_bounds(model, given["x"], **options, memory=memory)
        assert_close(f"{bound} in {memory}", got.total, want.total, 1e-11)
