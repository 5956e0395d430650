"""The bounds against exact likelihoods, against the model written step by step, and under a memory limit."""

from __future__ import annotations

import itertools
import math
import weakref
from typing import Any

import pytest
import torch
from linear_gaussian import SMALL, LinearModel, raw_logvar, set_latent, set_mlp, set_recurrence
from small_models import INFERRED, MODELS, B, X, batch, make
from step_by_step import PlainModel
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vssn.inference.importance
from vssn import DVBF, VRNN, VSSN
from vssn.errors import MemoryLimitError
from vssn.inference.importance import BOUNDS, SequenceBounds, sequence_bounds
from vssn.inference.particles import INITIAL, Particles, Plan, resample
from vssn.nn.interface import SequenceModel
from vssn.utils.random import generator
from vssn_kernels.testing import assert_all_close, assert_close

STEPS = 5


@pytest.fixture(scope="module", params=[False, True], ids=["zeros", "inferred"])
def linear(request: pytest.FixtureRequest) -> tuple[LinearModel, Tensor, float]:
    """A linear-Gaussian model, its d_0 inferred or not, a sequence [T, 1, X], and its exact log p."""
    exact = LinearModel(inferred=request.param)
    x = exact.sample(STEPS)
    return exact, x, float(exact.log_p(x[:, 0]))


def draws(model: VSSN, x: Tensor, bound: str, particles: int, count: int, **more: Any) -> Tensor:
    """Independent draws of the bound for one sequence: [count]."""
    copies = x.expand(-1, count, -1).contiguous()
    return sequence_bounds(model, copies, bound=bound, particles=particles, **more).total


def test_the_bounds_are_ordered_and_converge_to_the_exact_likelihood(linear: tuple[LinearModel, Tensor, float]) -> None:
    exact, x, log_p = linear
    gaps: dict[tuple[str, int], tuple[float, float]] = {}
    for bound, particles, count in (
        *(("elbo", 1, 800), ("iwae", 8, 400), ("iwae", 64, 100), ("iwae", 512, 16)),
        *(("fivo", 8, 400), ("fivo", 64, 100), ("fivo", 512, 16)),
    ):
        values = draws(exact.model, x, bound, particles, count)
        gaps[bound, particles] = float(log_p - values.mean()), float(values.std() / count**0.5)
    for bound in ("iwae", "fivo"):
        path = [gaps["elbo", 1], *(gaps[bound, particles] for particles in (8, 64, 512))]
        for (looser, error), (tighter, other) in itertools.pairwise(path):
            assert tighter < looser + 3 * math.hypot(error, other), path
        assert path[0][0] > 3 * path[0][1], "the ELBO is strictly below"
        for gap, error in path:
            assert gap > -3 * error, path
        assert path[1][0] < 0.7 * path[0][0]
        assert path[3][0] < 3 * path[3][1] + 0.02 * path[0][0]


@pytest.mark.parametrize("resampling", vssn.inference.importance.RESAMPLINGS)
@pytest.mark.parametrize("inferred", [False, True])
def test_fivo_is_unbiased_when_it_resamples_at_every_step(resampling: str, inferred: bool) -> None:
    exact, steps, count = LinearModel(inferred=inferred), 3, 1500
    x = exact.sample(steps, seed=5 if inferred else 4)
    log_p = float(exact.log_p(x[:, 0]))
    copies = x.expand(-1, count, -1).contiguous()
    result = sequence_bounds(exact.model, copies, bound="fivo", particles=8, resampling=resampling, ess_threshold=2.0)
    assert result.resamplings.tolist() == [steps - 1] * count
    ratio = torch.exp(result.total - log_p)
    error = float(ratio.std()) / count**0.5
    assert abs(float(ratio.mean()) - 1) < 4 * error
    assert error < 0.05


def test_fivo_that_never_resamples_is_iwae(linear: tuple[LinearModel, Tensor, float]) -> None:
    exact, x, _ = linear
    fivo = draws(exact.model, x, "fivo", 9, 5, ess_threshold=0.0)
    assert_close("total", fivo, draws(exact.model, x, "iwae", 9, 5), 1e-12)


def test_every_bound_is_exact_where_the_posterior_of_z_is() -> None:
    """x_t = P z_t + noise with z_t ~ N(0, I): the posterior's mean is linear in x_t, which a_t brings along."""
    x_size, z = 3, 2
    model = VSSN(
        x_size, 2, z, likelihood="gaussian", control="none", mlp_size=6, backward_size=x_size, activation="relu"
    ).double()
    read, logvar_x = torch.randn(x_size, z).double(), -0.4
    noise = math.exp(logvar_x) * torch.eye(x_size).double()
    rotation, variance = torch.linalg.qr(torch.randn(z, z).double())[0], torch.tensor([0.5, 0.5]).double()
    # A posterior of independent entries with one variance: P^T P must be a multiple of the identity.
    read = torch.linalg.qr(read)[0] @ rotation * math.sqrt(float((1 / variance[0] - 1) * math.exp(logvar_x)))
    gain = read.T @ torch.linalg.inv(read @ read.T + noise)
    with torch.no_grad():
        layer, nothing = model.layer, torch.zeros(z).double()
        set_recurrence(layer.duration, torch.zeros(2, 0).double(), None)
        see_x = torch.cat((torch.zeros(x_size, 2), torch.eye(x_size)), 1).double()
        set_recurrence(layer.backward_recurrence, see_x, None)
        set_latent(layer.prior, torch.zeros(z, z), torch.zeros(z, 2), nothing, raw_logvar(0.0, -12))
        set_latent(layer.posterior, torch.zeros(z, z), gain / SMALL, nothing, raw_logvar(math.log(0.5), -12))
        set_mlp(
            model.emission, torch.cat((read, torch.zeros(x_size, 2)), 1), torch.zeros(x_size), raw_logvar(logvar_x, -10)
        )
    x, lengths = torch.randn(6, 3, x_size).double(), torch.tensor([6, 1, 4])
    density = MultivariateNormal(torch.zeros(x_size).double(), read @ read.T + noise).log_prob(x)
    want = torch.stack([density[:length, row].sum() for row, length in enumerate(lengths.tolist())])
    for bound in BOUNDS:
        result = sequence_bounds(model, x, None, lengths, bound=bound, particles=4)
        assert_close(bound, result.total, want, 1e-6)
        assert_close(f"{bound}, first frame", result.first, density[0], 1e-6)
        assert result.resamplings.tolist() == [0, 0, 0]


def test_every_bound_is_exact_where_the_posterior_of_w_is() -> None:
    """x_t = R G w_t + noise: a d_t without memory, no z."""
    x_size, w = 3, 2
    model = VSSN(x_size, w, 0, w, likelihood="gaussian", control="none", mlp_size=6, activation="relu").double()
    logvar_x, scale = -0.4, 1.3
    read = scale * torch.linalg.qr(torch.randn(x_size, w).double())[0]
    noise = math.exp(logvar_x) * torch.eye(x_size).double()
    gain = read.T @ torch.linalg.inv(read @ read.T + noise)
    with torch.no_grad():
        set_recurrence(model.layer.duration, torch.eye(w).double(), None)
        variance = 1 / (1 + scale**2 * math.exp(-logvar_x))
        set_mlp(model.layer.noise_posterior, gain, torch.zeros(w), raw_logvar(math.log(variance), -12))
        set_mlp(model.emission, read / SMALL, torch.zeros(x_size), raw_logvar(logvar_x, -10))
    x = torch.randn(4, 2, x_size).double()
    want = MultivariateNormal(torch.zeros(x_size).double(), read @ read.T + noise).log_prob(x).sum(0)
    for bound in BOUNDS:
        assert_close(bound, sequence_bounds(model, x, bound=bound, particles=3).total, want, 1e-6)


@pytest.mark.parametrize("name", [*MODELS, *INFERRED])
def test_weights_are_those_of_the_model_step_by_step(name: str) -> None:
    model = make(name)
    given, lengths, particles = batch(model), torch.tensor([5, 0, 3, 1]), 3
    mask = torch.rand(5, B, X) > 0.3 if "masked" in name else None
    got = {
        bound: sequence_bounds(model, given["x"], given["u"], lengths, bound=bound, particles=particles, mask=mask)
        for bound in ("elbo", "iwae")
    }
    plain, weights, firsts = PlainModel(model), torch.zeros(particles, B), torch.zeros(particles, B)
    weights, firsts = weights.double(), firsts.double()
    observed = torch.ones_like(given["x"], dtype=torch.bool) if mask is None else mask
    everything = Particles(
        model, model.prepare(given["x"], given["u"]), torch.full((B,), 5), [(0, b) for b in range(B)], Plan(B, 3, 5)
    )
    eps_w, eps_z = everything._noise(range(particles), 0, 5)  # [T, K, B, ·]
    eps_0 = initial_noise(model, particles, [(0, b) for b in range(B)])
    for row, length in enumerate(lengths.tolist()):
        here, one = slice(0, length), slice(row, row + 1)
        for particle in range(particles if length else 0):
            steps, reconstruction, _ = plain.sequence(
                given["x"][here, one],
                None if given["u"] is None else given["u"][here, one],
                observed[here, one],
                None,
                eps_w[here, particle, one],
                eps_z[here, particle, one],
                eps_0[particle, one],
            )
            alpha = torch.stack(reconstruction) + torch.stack(steps.log_weight)
            weights[particle, row], firsts[particle, row] = alpha.sum(), alpha[0]
    want = {
        "elbo": SequenceBounds(weights.mean(0), firsts.mean(0), lengths * 0),
        "iwae": SequenceBounds(*((part.exp().mean(0).log()) for part in (weights, firsts)), lengths * 0),
    }
    for bound in want:
        assert_all_close(got[bound]._asdict(), want[bound]._asdict(), 1e-10, bound)


def initial_noise(model: VSSN, particles: int, keys: list[tuple[int, int]]) -> Tensor:
    """eps_0 [K, B, S], of a stream for every particle."""
    rows = [
        torch.randn(model.initial_size, generator=generator(*key, 1 + particle, INITIAL), dtype=model.layer.dtype)
        for particle in range(particles)
        for key in keys
    ]
    return torch.stack(rows).view(particles, len(keys), -1)


@pytest.mark.parametrize("resampling", vssn.inference.importance.RESAMPLINGS)
@pytest.mark.parametrize("name", ["vssn", "smoothing", "both", "storn", "dkf", "inferred_smoothing", "inferred_srnn"])
def test_fivo_is_a_particle_filter_that_copies_whole_paths(name: str, resampling: str) -> None:
    """A particle is its noise: eps_w of all steps, eps_z of those taken. Copied whole, it gives d, a and z anew."""
    model, particles, threshold = make(name), 4, 0.8
    given = batch(model, STEPS, 1)
    options = {"particles": particles, "resampling": resampling, "ess_threshold": threshold}
    got = sequence_bounds(model, given["x"], given["u"], bound="fivo", seed=2, **options)
    lengths = torch.tensor([STEPS])
    filters = Particles(model, model.prepare(given["x"], given["u"]), lengths, [(2, 0)], Plan(1, particles, STEPS))
    eps_w, eps_z = (eps[:, :, 0].clone() for eps in filters._noise(range(particles), 0, STEPS))  # [T, K, ·]
    eps_0 = initial_noise(model, particles, [(2, 0)])[:, 0]
    uniforms = filters._uniforms(particles if resampling == "multinomial" else 1)
    plain, observed = PlainModel(model), torch.ones_like(given["x"], dtype=torch.bool)
    weights, total, resamplings = torch.full((particles,), 1 / particles).double(), 0.0, 0
    for t in range(STEPS):
        alpha = []
        for k in range(particles):
            noise = eps_w[:, k, None], eps_z[:, k, None], eps_0[k, None]
            steps, reconstruction, _ = plain.sequence(given["x"], given["u"], observed, None, *noise)
            alpha.append(reconstruction[t] + steps.log_weight[t])
        weights = weights * torch.cat(alpha).exp()
        total += float(weights.sum().log().detach())
        weights = weights / weights.sum()
        if 1 / weights.square().sum() < threshold * particles and t + 1 < STEPS:
            ancestors = resample(weights[:, None], uniforms[t])[:, 0]
            eps_w, eps_z[: t + 1], eps_0 = eps_w[:, ancestors], eps_z[: t + 1, ancestors], eps_0[ancestors]
            weights = torch.full_like(weights, 1 / particles)
            resamplings += 1
    assert resamplings == int(got.resamplings) > 1
    assert float(got.total) == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    "name", ["vssn", "srnn_residual", "storn", "dkf", "smoothing", "rnn", "both", "nade", "inferred", "inferred_storn"]
)
def test_a_padded_sequence_is_scored_as_alone(name: str, bound: str) -> None:
    model = make(name)
    steps, lengths = 20, torch.tensor([20, 0, 7, 1])
    given = batch(model, steps)
    x = given["x"].clone()
    for row, length in enumerate(lengths.tolist()):
        x[length:, row] = math.nan
    together = sequence_bounds(model, x, given["u"], lengths, bound=bound, particles=6)
    for row, length in enumerate(lengths.tolist()):
        here, one = slice(0, length), slice(row, row + 1)
        u = None if given["u"] is None else given["u"][here, one]
        alone = sequence_bounds(model, x[here, one], u, bound=bound, particles=6, first_index=row)
        assert_close(f"sequence {row}", together.total[one], alone.total, 1e-11)
        assert_close(f"first frame of {row}", together.first[one], alone.first, 1e-11)
        assert together.resamplings[row] == alone.resamplings
    assert together.total[1] == 0
    assert bound != "fivo" or name == "rnn" or together.resamplings.sum() > 0


def test_a_batch_first_model_gives_the_same() -> None:
    model, other = make("both"), make("both", batch_first=True)
    given, lengths = batch(model, 7), torch.tensor([7, 3, 0, 5])
    want = sequence_bounds(model, given["x"], given["u"], lengths, bound="fivo", particles=5)
    x, u = given["x"].transpose(0, 1), given["u"].transpose(0, 1)
    got = sequence_bounds(other, x, u, lengths, bound="fivo", particles=5)
    assert_all_close(got._asdict(), want._asdict(), 1e-12)


@pytest.mark.parametrize("name", ["vssn", "rnn", "dkf"])
def test_one_particle_is_the_same_in_every_bound(name: str) -> None:
    model = make(name)
    given = batch(model)
    elbo, iwae, fivo = (sequence_bounds(model, given["x"], bound=bound, particles=1).total for bound in BOUNDS)
    assert_close("iwae", iwae, elbo, 1e-12)
    assert_close("fivo", fivo, elbo, 1e-12)


def test_the_elbo_has_the_models_expectation() -> None:
    model = make("vssn")
    given = batch(model)
    got = sequence_bounds(model, given["x"], bound="elbo", particles=1500).total
    with torch.no_grad():
        many = model(given["x"].repeat(1, 1500, 1)).elbo.view(1500, B)
    error = many.std(0) / 1500**0.5
    # The analytic divergences have less variance than the weights: their ratio is below 4 here.
    assert ((got - many.mean(0)).abs() < 5 * 4 * error).all()


def test_universal_weights_stand_at_their_mean_and_the_mode_comes_back() -> None:
    model = make("universal").train()
    given = batch(model)
    first = sequence_bounds(model, given["x"], bound="fivo", particles=3).total
    with torch.no_grad():
        model.layer.weight_hh_logvar += 3
    assert torch.equal(first, sequence_bounds(model, given["x"], bound="fivo", particles=3).total)
    assert model.training


def test_a_bound_can_be_repeated_and_follows_its_seed() -> None:
    model = make("vssn")
    x, before = batch(model)["x"], torch.get_rng_state()
    first, second, other = (sequence_bounds(model, x, particles=4, seed=seed).total for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert before.equal(torch.get_rng_state())


# Memory


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors that are alive together, of those made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                pointer, size = storage.data_ptr(), storage.nbytes()
                if size and pointer not in self.alive:
                    self.alive.add(pointer)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, pointer, size)
        return result

    def _freed(self, pointer: int, size: int) -> None:
        self.alive.discard(pointer)
        self.now -= size


MEMORY_MODELS: dict[str, dict[str, Any]] = {
    "vssn": {"noise_size": 6, "embed_size": 24},
    "srnn": {"noise_size": 0, "residual_posterior": True},
    "nade": {"noise_size": 6, "likelihood": "nade", "nade_size": 20},
    "mixture": {"noise_size": 6, "likelihood": "mixture", "mixture_size": 4},
    "negative_binomial": {"noise_size": 6, "likelihood": "negative_binomial"},
    "categorical": {"noise_size": 6, "likelihood": "categorical", "num_classes": 5},
    "student_t": {"noise_size": 6, "likelihood": "student_t"},
    "inferred": {"noise_size": 6, "initial_state": "inferred", "initial_size": 20},
    "vrnn": {"class": VRNN, "embed_size": 24},
    "vrnn_i": {"class": VRNN, "embed_size": 24, "prior": "standard"},
    "dvbf": {"class": DVBF, "embed_size": 24, "control": "none", "mlp_size": 32, "likelihood": "bernoulli"},
}
# Frames, and limits in MiB. A VRNN holds less for every frame of every particle, and weights count here too.
LIMITS: dict[type[SequenceModel], tuple[int, dict[str, tuple[float, ...]]]] = {
    VSSN: (60, {"iwae": (8, 5, 3.5), "fivo": (5, 2.5, 1.5)}),
    VRNN: (300, {"iwae": (60, 30, 8), "fivo": (6, 3, 1.5)}),
    DVBF: (300, {"iwae": (60, 30, 8), "fivo": (6, 3, 1.5)}),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("bound", ["iwae", "fivo"])
@pytest.mark.parametrize("name", MEMORY_MODELS)
def test_a_memory_limit_is_kept_and_changes_nothing(name: str, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (vssn.inference.importance, vssn.inference.particles):
        monkeypatch.setattr(module, "PART", 16)
    torch.manual_seed(5)
    settings = {"class": VSSN} | MEMORY_MODELS[name]
    model: SequenceModel = settings.pop("class")(40, 32, 12, **settings).double()
    steps, limits = LIMITS[type(model)][0], LIMITS[type(model)][1][bound]
    x, lengths = (torch.rand(steps, 3, 40) < 0.1).double(), torch.tensor([steps // 2, steps, 7])
    options: dict[str, Any] = {"bound": bound, "particles": 10}
    want = sequence_bounds(model, x, None, lengths, **options)
    plans, peaks = [], []
    for mib in limits:
        plan = vssn.inference.importance.make_plan(
            model, x, steps, torch.tensor([1, 0, 2]), 10, int(mib * 2**20), split=bound != "fivo"
        )
        plans.append(plan)
        with PeakBytes() as used:
            got = sequence_bounds(model, x, None, lengths, memory=int(mib * 2**20), **options)
        assert used.peak <= int(mib * 2**20), plan
        peaks.append(used.peak)
        assert_all_close(got._asdict(), want._asdict(), 1e-10, f"{mib} MiB")
    assert len(set(plans)) > 1
    assert max(peak / mib for peak, mib in zip(peaks, limits, strict=True)) > 2**20 / 10, "the limit is not wasted"
    assert plans[-1].sequences == 1
    assert plans[-1].particles < 10 or plans[-1].steps < steps


def test_too_little_memory_is_one_line() -> None:
    model = make("vssn")
    with pytest.raises(MemoryLimitError, match=r"^memory must be at least \d+ MiB for a sequence of 5 frames with 3 p"):
        sequence_bounds(model, batch(model)["x"], bound="fivo", particles=3, memory=1000)


# Resampling


def test_systematic_resampling_gives_each_particle_its_share_rounded() -> None:
    weights = torch.rand(9, 200, dtype=torch.float64)
    weights /= weights.sum(0)
    drawn = resample(weights, torch.rand(1, 200, dtype=torch.float64))
    for column in range(200):
        counts = drawn[:, column].bincount(minlength=9)
        assert ((counts - 9 * weights[:, column]).abs() < 1 + 1e-9).all()


@pytest.mark.parametrize("rows", [1, 5])
def test_resampling_is_unbiased(rows: int) -> None:
    weights = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05], dtype=torch.float64)
    trials = 20000
    drawn = resample(weights[:, None].expand(-1, trials), torch.rand(rows, trials, dtype=torch.float64))
    counts = torch.stack([(drawn == i).double().sum(0) for i in range(5)])  # [5, trials]
    error = counts.std(1) / trials**0.5
    assert ((counts.mean(1) - 5 * weights).abs() <= 4.5 * error + 1e-12).all()
    assert counts[1].sum() == 0


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_resampling_stays_in_range_at_the_edges(uniform: float) -> None:
    weights = torch.full((10, 1), 0.1, dtype=torch.float64)
    for rows in (1, 10):
        drawn = resample(weights, torch.full((rows, 1), uniform, dtype=torch.float64))
        assert int(drawn.min()) >= 0
        assert int(drawn.max()) <= 9


# Errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bound": "vi"}, "bound must be one of elbo, iwae, fivo, got 'vi'"),
        ({"particles": 0}, "particles must be an int of at least 1, got 0"),
        ({"resampling": "residual"}, "resampling must be one of systematic, multinomial, got 'residual'"),
        ({"memory": 0}, "memory must be an int of at least 1, got 0"),
        ({"ess_threshold": -1.0}, "ess_threshold must be a finite number of at least 0.0, got -1.0"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], expected: str) -> None:
    model = make("vssn")
    with pytest.raises(ValueError, match=expected):
        sequence_bounds(model, batch(model)["x"], **options)


def test_an_empty_batch() -> None:
    model = make("vssn")
    assert sequence_bounds(model, torch.zeros(4, 0, X).double()).total.shape == (0,)
    assert sequence_bounds(model, torch.zeros(0, 2, X).double()).total.tolist() == [0, 0]
