"""The bounds of a DVBF against the exact likelihood of a linear one, and against the weights written frame by frame."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from dvbf_step_by_step import PlainDVBF
from linear_gaussian import both_signs, raw_logvar, set_mlp
from small_dvbfs import DVBFS, LENGTHS, batch, make
from torch import Tensor
from torch.distributions import MultivariateNormal

from vssn import DVBF
from vssn.inference import importance
from vssn.inference.importance import BOUNDS, sequence_bounds
from vssn.inference.particles import Particles, Plan
from vssn_kernels.testing import assert_close

KEYS = [(7, number) for number in range(len(LENGTHS))]


class LinearDVBF:
    """z_1 = F w_1 + c, z_t = A z_{t-1} + B u_t + C w_t, x_t = P z_t + r + noise: one matrix of each, MLPs of relu(v)
    and relu(-v). q(w_t) is not the posterior; q(w_1) is of no film: a constant."""

    def __init__(self, seed: int = 0) -> None:
        source = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=source, dtype=torch.float64)

        x_size, u_size, z_size, w_size = 3, 2, 2, 2
        self.F, self.c, self.A = 0.7 * normal(z_size, w_size), 0.3 * normal(z_size), 0.5 * normal(z_size, z_size)
        self.B, self.C = 0.5 * normal(z_size, u_size), 0.6 * normal(z_size, w_size)
        self.P, self.r, self.logvar_x = normal(x_size, z_size), 0.2 * normal(x_size), 0.4
        model = DVBF(
            x_size, z_size, w_size, matrices=1, control_size=u_size, mlp_size=8, backward_size=3, activation="relu"
        ).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            model.transition.weight[0] = torch.cat((self.A, self.B, self.C), 1)
            model.initial_map.hidden.weight.copy_(both_signs(self.F, 8))
            for i in range(z_size):
                model.initial_map.out.weight[i, i], model.initial_map.out.weight[i, z_size + i] = 1, -1
            model.initial_map.out.bias.copy_(self.c)
            set_mlp(model.emission, self.P, self.r, raw_logvar(self.logvar_x, -10.0))
            gain = 0.2 * self.C.T @ self.P.T
            of_x = torch.cat((-gain @ self.P @ self.A, gain, -gain @ self.P @ self.B), 1)
            set_mlp(model.posterior, of_x, 0.1 * normal(w_size), raw_logvar(0.1, -12.0))
            set_mlp(model.initial_posterior, torch.zeros(w_size, 3), 0.1 * normal(w_size), raw_logvar(0.5, -12.0))
        self.model = model.eval()

    def sample(self, steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """x [T, 1, X] and u [T, 1, U]."""
        torch.manual_seed(seed)
        u = torch.randn(steps, 1, 2).double()
        return self.model.generate(steps, u=u).x, u

    def log_p(self, x: Tensor, u: Tensor) -> float:
        """Of x [T, X] given u [T, U], exactly."""
        mean, covariance, total = self.c, self.F @ self.F.T, 0.0
        for t in range(len(x)):
            if t:
                mean = self.A @ mean + self.B @ u[t]
                covariance = self.A @ covariance @ self.A.T + self.C @ self.C.T
            spread = self.P @ covariance @ self.P.T + math.exp(self.logvar_x) * torch.eye(len(self.r)).double()
            total += float(MultivariateNormal(self.P @ mean + self.r, spread).log_prob(x[t]))
            gain = covariance @ self.P.T @ torch.linalg.inv(spread)
            mean = mean + gain @ (x[t] - self.P @ mean - self.r)
            covariance = covariance - gain @ self.P @ covariance
        return total


def test_the_bounds_are_ordered_and_converge_to_the_exact_likelihood() -> None:
    linear = LinearDVBF()
    x, u = linear.sample(5)
    log_p, gaps = linear.log_p(x[:, 0], u[:, 0]), {}
    for bound, particles, count in (
        *(("elbo", 1, 800), ("iwae", 8, 400), ("iwae", 512, 16)),
        *(("fivo", 8, 400), ("fivo", 512, 16)),
    ):
        copies = (part.expand(-1, count, -1).contiguous() for part in (x, u))
        values = sequence_bounds(linear.model, *copies, bound=bound, particles=particles).total
        gaps[bound, particles] = float(log_p - values.mean()), float(values.std() / count**0.5)
    strict = linear.model(x.expand(-1, 4000, -1), u.expand(-1, 4000, -1)).elbo.detach()
    of_strict = float(log_p - strict.mean()), float(strict.std() / len(strict) ** 0.5)
    assert abs(of_strict[0] - gaps["elbo", 1][0]) < 4 * math.hypot(of_strict[1], gaps["elbo", 1][1])
    for bound in ("iwae", "fivo"):
        path = [gaps["elbo", 1], gaps[bound, 8], gaps[bound, 512]]
        for (looser, error), (tighter, other) in itertools.pairwise(path):
            assert tighter < looser + 3 * math.hypot(error, other), path
        assert path[0][0] > 3 * path[0][1], "the ELBO is strictly below"
        assert all(gap > -3 * error for gap, error in path), path
        assert path[1][0] < 0.7 * path[0][0]
        assert path[2][0] < 3 * path[2][1] + 0.05 * path[0][0]


@pytest.mark.parametrize("resampling", importance.RESAMPLINGS)
def test_fivo_is_unbiased_when_it_resamples_at_every_step(resampling: str) -> None:
    linear, steps, count = LinearDVBF(), 3, 1500
    x, u = linear.sample(steps, seed=4)
    copies = (part.expand(-1, count, -1).contiguous() for part in (x, u))
    result = sequence_bounds(
        linear.model, *copies, bound="fivo", particles=64, resampling=resampling, ess_threshold=2.0
    )
    assert result.resamplings.tolist() == [steps - 1] * count
    ratio = torch.exp(result.total - linear.log_p(x[:, 0], u[:, 0]))
    error = float(ratio.std()) / count**0.5
    assert abs(float(ratio.mean()) - 1) < 4 * error
    assert error < 0.05


@pytest.mark.parametrize("name", DVBFS)
def test_weights_are_those_of_the_model_frame_by_frame(name: str) -> None:
    model, particles = make(name), 3
    given = batch(model)
    prepared = model.prepare(given["x"], given["u"], LENGTHS)
    group = Particles(model, prepared, LENGTHS, KEYS, Plan(len(LENGTHS), particles, 5))
    eps = group._noise(range(particles), 0, 5)[1]
    totals = torch.zeros(particles, len(LENGTHS)).double()
    for row, length in enumerate(LENGTHS.tolist()):
        for particle in range(particles if length else 0):
            u = None if given["u"] is None else given["u"][:length, row]
            want = PlainDVBF(model).run(given["x"][:length, row], u, eps[:length, particle, row])
            totals[particle, row] = want["log_weight"].sum()
    for bound, want_total in (("elbo", totals.mean(0)), ("iwae", totals.logsumexp(0) - math.log(particles))):
        assert_close(bound, group.weighted(particles, bound)[0], want_total, 1e-12)
        options = {"lengths": LENGTHS, "bound": bound, "particles": particles, "seed": KEYS[0][0]}
        public = sequence_bounds(model, given["x"], given["u"], **options)
        assert_close(f"{bound}, by sequence_bounds", public.total, want_total, 1e-12)


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_memory_limit_changes_nothing(bound: str) -> None:
    """Particles by groups and frames in parts: fewer bytes than a whole run takes, the same numbers."""
    model = make()
    given = batch(model, 200, 2)
    options = {"u": given["u"], "lengths": torch.tensor([200, 130]), "bound": bound, "particles": 9}
    want = sequence_bounds(model, given["x"], **options)
    for memory in (3 * 2**20, 2**20) if bound != "fivo" else (3 * 2**20,):
        got = sequence_bounds(model, given["x"], **options, memory=memory)
        assert_close(f"{bound} in {memory}", got.total, want.total, 1e-11)
