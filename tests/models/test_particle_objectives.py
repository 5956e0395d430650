"""iwae, fivo and nasmc: values, gradients and states against the particles one by one, against finite differences, and
against the exact likelihood of linear-Gaussian models."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import small_models
import small_vrnns
import torch
from linear_gaussian import LinearModel
from plain_particles import BY_NAME, hit, of_row, run, sequence
from torch import Tensor

from vssn import RSSM, VRNN, VSSN, State
from vssn.inference.filtering import latent_states
from vssn.inference.importance import sequence_bounds
from vssn.models.base import FrameModel
from vssn.models.objectives import OF_PARTICLES
from vssn.nn.interface import EncodedBatch
from vssn.nn.particles import Filtered, ParticleNoise
from vssn.nn.states import Inference
from vssn_kernels.testing import assert_all_close, assert_close

LENGTHS = torch.tensor([5, 0, 3, 1])
K = 4


def make(name: str, objective: str, particles: int = K, **more: Any) -> FrameModel:
    """A small VSSN, or VRNN behind "vrnn_"."""
    where, own = (small_vrnns, name.removeprefix("vrnn_")) if name.startswith("vrnn_") else (small_models, name)
    return where.make(own, objective=objective, particles=particles, **more)


def given(model: FrameModel, name: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x, u and a mask."""
    batch = (small_vrnns if isinstance(model, VRNN) else small_models).batch(model)
    mask = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(3)) > 0.3 if "masked" in name else None
    return batch["x"], batch["u"], mask


def gradients(model: FrameModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


NAMES = [
    *("vssn", "srnn", "srnn_residual", "storn", "dkf_both_residual", "both", "embedded_both", "initial_state"),
    *("smoothing", "causal_both_residual", "masked", "nade", "inferred", "inferred_smoothing", "inferred_rnn"),
    *("inferred_srnn", "vrnn_plain", "vrnn_standard", "vrnn_both", "vrnn_masked"),
]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["both", "inferred", "vrnn_both"])
def test_one_draw_runs_no_particles(name: str, batch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score, and a forecast of one path, ran all of them for a part that has nothing of them."""
    model = make(name, "fivo")
    x, u, _ = given(model, name)
    future = None if u is None else u[:2]
    if batch_first:
        model.set_batch_first(True)
        x, u, future = (None if part is None else part.transpose(0, 1) for part in (x, u, future))
    monkeypatch.setattr(ParticleNoise, "draw", lambda *_: pytest.fail("particles were drawn"))
    assert model.score(x, u, seed=0).equal(model.score(x, u, seed=0))
    torch.manual_seed(0)
    found = model.forecast(x, 2, u=u, u_future=future)
    assert found.x.isfinite().all()
    with pytest.raises(ValueError, match=r"^x must have shape"):
        model.score(x[..., :1], u)


@pytest.mark.parametrize("objective", OF_PARTICLES)
@pytest.mark.parametrize("name", NAMES)
def test_values_gradients_and_states_are_those_of_the_particles_one_by_one(name: str, objective: str) -> None:
    model = make(name, objective)
    x, u, mask = given(model, name)
    torch.manual_seed(1)
    noise = ParticleNoise.draw(model, x, model.particle_count)
    out = model(x, u, LENGTHS, noise=noise, mask=mask)
    got = gradients(model, out.loss)
    total, resampled = torch.zeros(()).double(), 0
    for row, length in enumerate(LENGTHS.tolist()):
        if not length:
            continue
        one, uniform = sequence(x, u, mask, row, length), noise.uniform[:length, row]
        found = BY_NAME[objective](model, one, of_row(noise, row, length), uniform)
        total = total + found.total
        resampled += sum(a is not b for a, b in zip(found.particles, found.particles[1:], strict=False))
        chosen = hit(found.weights[-1], float(uniform[-1]))
        last = run(model, one, found.particles[-1][chosen])
        state = {"d": out.state.d[row], "z": out.state.z[row]}
        assert_all_close(state, {"d": last.d[-1], "z": last.z[-1]}, 1e-11, f"state of {row}")
    loss = -total / LENGTHS.sum()
    assert_close("loss", out.loss, loss.detach(), 1e-11)
    assert_all_close(got, gradients(model, loss), 1e-9, "gradient of ")
    assert any(bool(gradient.any()) for gradient in got.values())
    assert objective == "iwae" or resampled > 0 or name in ("both", "inferred_rnn")
    # The parts are strict: those of a call with one draw.
    plain = model(x, u, LENGTHS, noise=noise.of_particle(0), mask=mask)
    for part in ("elbo", "reconstruction", "kl_z", "kl_w"):
        assert torch.equal(getattr(out, part), getattr(plain, part)), part
    assert_close("x_last", out.state.x_last, plain.state.x_last, 0)
    if model.objective == "iwae":
        assert_close("the loss of one draw", plain.loss, -plain.elbo.sum() / LENGTHS.sum(), 1e-12)


@pytest.mark.parametrize("objective", ["iwae", "fivo"])
@pytest.mark.parametrize("inferred", [False, True])
def test_the_gradient_is_that_of_finite_differences(objective: str, inferred: bool) -> None:
    """Of the bound of linear-Gaussian models with fixed noise: ancestors then are as they were."""
    exact = LinearModel(inferred=inferred, objective=objective, particles=6)
    model, x = exact.model, exact.sample(6).expand(-1, 3, -1).contiguous()
    torch.manual_seed(2)
    noise = ParticleNoise.draw(model, x, model.particle_count)
    got = gradients(model, model(x, noise=noise).loss)
    for name, parameter in model.named_parameters():
        if not got[name].any():
            continue
        direction = torch.randn_like(parameter)
        # What drives d is small, and what reads it large: a step of the size of the weights themselves.
        step = 1e-5 * float(parameter.detach().abs().max().clamp(min=1e-3, max=1.0))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                values.append(float(model(x, noise=noise).loss))
                parameter -= sign * step * direction
        want = (values[0] - values[1]) / (2 * step)
        assert float((got[name] * direction).sum()) == pytest.approx(want, rel=2e-5, abs=1e-7), name


@pytest.mark.parametrize("objective", OF_PARTICLES)
def test_the_loss_is_a_bound_that_converges_to_the_exact_likelihood(objective: str) -> None:
    gaps = []
    for particles, copies in ((4, 40), (64, 20)):
        exact = LinearModel(objective=objective, particles=particles)
        x = exact.sample(5)
        log_p = float(exact.log_p(x[:, 0]))
        torch.manual_seed(3)
        with torch.no_grad():
            values = [log_p + 5 * float(exact.model(x.expand(-1, copies, -1).contiguous()).loss) for _ in range(12)]
            elbo = log_p - exact.model(x.expand(-1, 2000, -1).contiguous(), noise=None).elbo
        gap = torch.tensor(values)
        gaps.append((float(gap.mean()), float(gap.std()) / 12**0.5))
        assert gap.mean() > -3 * gaps[-1][1]
    strict = float(elbo.mean())
    assert gaps[0][0] + 3 * gaps[0][1] < strict
    assert gaps[1][0] < 0.25 * strict


@pytest.mark.parametrize("objective", OF_PARTICLES)
def test_the_sum_over_chunks_is_a_bound(objective: str) -> None:
    """The states that are handed on are those of particles drawn by their weights."""
    exact, strict = LinearModel(objective=objective, particles=16), LinearModel()
    x = exact.sample(6, seed=1)
    log_p = float(exact.log_p(x[:, 0]))
    sums: list[list[float]] = [[], []]
    torch.manual_seed(4)
    with torch.no_grad():
        here = x.expand(-1, 30, -1).contiguous()
        for _ in range(20):
            for values, model in zip(sums, (exact.model, strict.model), strict=True):
                first = model(here[:3])
                values.append(-3 * float(first.loss + model(here[3:], state=first.state).loss))
    (mean, error), (elbo, _) = ((torch.tensor(v).mean(), torch.tensor(v).std() / 20**0.5) for v in sums)
    assert mean < log_p + 3 * error
    assert mean > elbo + 3 * error


def test_the_value_is_that_of_the_bound_that_scores() -> None:
    """In expectation, that is: the noise differs."""
    for objective in ("iwae", "fivo"):
        exact = LinearModel(objective=objective, particles=5)
        x = exact.sample(5).expand(-1, 600, -1).contiguous()
        torch.manual_seed(5)
        with torch.no_grad():
            got = torch.tensor([-5 * float(exact.model(x).loss) for _ in range(6)])
        want = sequence_bounds(exact.model, x, bound=objective, particles=5).total
        error = math.hypot(float(got.std()) / 6**0.5, float(want.std()) / 600**0.5)
        assert abs(float(got.mean() - want.mean())) < 4 * error


@pytest.mark.parametrize("objective", OF_PARTICLES)
def test_many_particles_have_the_gradient_of_the_likelihood(objective: str) -> None:
    """Of one frame, where the filtering estimate is the posterior: Fisher's identity."""
    exact = LinearModel(objective=objective, particles=5000)
    x = exact.sample(1)
    torch.manual_seed(6)
    got = gradients(exact.model, -exact.model(x).loss)["emission.out.bias"][:3]
    want, step = [], 1e-5
    for i in range(3):
        ends = []
        for sign in (1, -1):
            exact.r[i] += sign * step
            ends.append(float(exact.log_p(x[:, 0])))
            exact.r[i] -= sign * step
        want.append((ends[0] - ends[1]) / (2 * step))
    assert_close("gradient of r", got, torch.tensor(want).double(), 0.05)


def test_nasmc_trains_the_proposal_by_the_inclusive_divergence() -> None:
    """Of one frame, with the generative model as it is: the bound gets tighter, and no other weight moves."""
    exact = LinearModel(objective="nasmc", particles=50)
    model, x = exact.model, exact.sample(1).expand(-1, 32, -1).contiguous()
    generative = {name: p.detach().clone() for name, p in model.named_parameters()}
    own = [p for name, p in model.named_parameters() if name.startswith("layer.posterior.")]
    optimizer = torch.optim.Adam(own, lr=0.02)
    torch.manual_seed(7)

    def mean_loss() -> float:
        with torch.no_grad():
            return float(torch.stack([model(x).loss for _ in range(20)]).mean())

    before = mean_loss()
    for _ in range(60):
        optimizer.zero_grad()
        model(x).loss.backward()
        optimizer.step()
    assert mean_loss() < before
    assert all(
        torch.equal(p, generative[name]) for name, p in model.named_parameters() if not name.startswith("layer.post")
    )


@pytest.mark.parametrize("objective", OF_PARTICLES)
def test_annealing_weighs_the_ratios(objective: str) -> None:
    model = make("vssn", objective, particles=2)
    x, u, _ = given(model, "vssn")
    noise = ParticleNoise.draw(model, x, model.particle_count)
    if objective == "nasmc":
        with pytest.raises(ValueError, match=r"kl_weight must be 1 with objective='nasmc', got 0\.5"):
            model(x, u, LENGTHS, noise=noise, kl_weight=0.5)
        return
    free = model(x, u, LENGTHS, noise=noise, kl_weight=0.0).loss
    reconstruction = torch.stack(
        [model(x, u, LENGTHS, noise=noise.of_particle(k)).reconstruction.sum(0) for k in range(2)]
    )
    if objective == "iwae":
        want = -(torch.logsumexp(reconstruction, 0) - math.log(2)).sum() / LENGTHS.sum()
        assert_close("without ratios", free, want, 1e-12)
    half, tensor = (model(x, u, LENGTHS, noise=noise, kl_weight=w).loss for w in (0.5, torch.tensor(0.5)))
    assert_close("a tensor", half, tensor, 1e-12)
    assert not torch.equal(half, free)
    assert not torch.equal(half, model(x, u, LENGTHS, noise=noise).loss)


@pytest.mark.parametrize("objective", OF_PARTICLES)
@pytest.mark.parametrize("latent", ["gaussian", "categorical"])
def test_an_rssm_has_them_too(objective: str, latent: str) -> None:
    options = {"likelihood": "gaussian", "control_size": 2, "latent": latent, "classes": 2, "mlp_size": 6}
    if latent == "categorical" and objective != "nasmc":
        with pytest.raises(ValueError, match="objective must be 'elbo', 'paper' or 'nasmc' with latent='categorical'"):
            RSSM(3, 5, 4, objective=objective, particles=3, **options)
        return
    model = RSSM(3, 5, 4, objective=objective, particles=600, initial_state="learned", **options).double()
    x, u = torch.randn(4, 1, 3).double(), torch.randn(4, 1, 2).double()
    torch.manual_seed(8)
    out = model(x, u)
    bound = "iwae" if objective == "iwae" else "fivo"
    want = sequence_bounds(model, x.expand(-1, 20, -1), u.expand(-1, 20, -1), bound=bound, particles=600).total
    assert abs(float(-4 * out.loss.detach() - want.mean())) < 5 * float(want.std()) + 1e-3
    assert all(bool(g.isfinite().all()) for g in gradients(model, out.loss).values())
    assert model.layer.prior.out.weight.grad.abs().sum() > 0
    assert model.layer.chain.weight_out.grad.abs().sum() > 0


@pytest.mark.parametrize("objective", OF_PARTICLES)
def test_weights_with_a_posterior_share_their_divergence(objective: str) -> None:
    model = make("universal", objective).train()
    x, u, _ = given(model, "universal")
    torch.manual_seed(9)
    noise = ParticleNoise.draw(model, x, model.particle_count)
    with torch.no_grad():  # a posterior of almost no width: the draw of the weights is their mean
        model.layer.weight_hh_logvar.fill_(-60.0)
    got = model(x, u, LENGTHS, noise=noise).loss
    share = len(LENGTHS) / model.num_sequences * model.layer.universal_kl() / LENGTHS.sum()
    assert_close("loss", got, model.eval()(x, u, LENGTHS, noise=noise).loss, 1e-9)
    want = make("vssn", objective)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in want.named_parameters():
            parameter.copy_(own[name])
    assert_close("loss less the share", got - share, want(x, u, LENGTHS, noise=noise).loss, 1e-9)


@pytest.mark.parametrize("objective", OF_PARTICLES)
def test_a_batch_first_model_and_no_frames(objective: str) -> None:
    model, other = make("both", objective), make("both", objective, batch_first=True)
    x, u, _ = given(model, "both")
    assert u is not None
    noise = ParticleNoise.draw(model, x, model.particle_count)
    want, got = model(x, u, LENGTHS, noise=noise), other(x.transpose(0, 1), u.transpose(0, 1), LENGTHS, noise=noise)
    assert_close("loss", got.loss, want.loss, 1e-12)
    assert_close("kl_z", got.kl_z, want.kl_z.T, 1e-12)
    none = model(x[:0], u[:0])
    assert float(none.loss) == 0
    none.loss.backward()
    assert float(model(x, u, torch.zeros(4, dtype=torch.int64)).loss) == 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"particles": 3}, r"particles must be None with objective='elbo', which has one draw of the latents, got 3"),
    ({"objective": "paper", "particles": 3}, r"particles must be None with objective='paper'"),
    ({"objective": "fivo"}, r"particles must be given with objective='fivo': how many, 8 say"),
    ({"objective": "iwae", "particles": 0}, r"particles must be an integer of at least 1|particles must be"),
    ({"objective": "nasmc", "particles": 1}, r"particles must be .*2"),
    ({"objective": "iwae", "particles": 2, "free_bits": 0.1}, r"free_bits must be 0 with objective='iwae'"),
    ({"objective": "nope"}, r"objective must be one of elbo, paper, iwae, fivo, nasmc, got 'nope'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_does_not_go_together_is_one_line(options: dict[str, Any], message: str) -> None:
    for cls in (VSSN, VRNN):
        with pytest.raises(ValueError, match=message):
            cls(3, 4, 2, **options)


def test_arguments_of_one_draw_are_refused() -> None:
    with pytest.raises(ValueError, match=r"objective must be 'elbo' with a model without latents"):
        VSSN(3, 4, 0, objective="iwae", particles=2)
    with pytest.raises(ValueError, match=r"kl_balance must be None with objective='fivo'"):
        RSSM(3, 4, 2, control="none", objective="fivo", particles=2, kl_balance=0.8)
    x = torch.zeros(2, 1, 3)
    with pytest.raises(ValueError, match=r"coordinated_dropout must be left out with objective='iwae'"):
        VSSN(3, 4, 2, objective="iwae", particles=2)(x, coordinated_dropout=0.2)
    model = VRNN(3, 4, 2, objective="iwae", particles=2)
    with pytest.raises(ValueError, match=r"resets must be left out with objective='iwae'"):
        model(x, resets=torch.zeros(2, 1, dtype=torch.bool))
    noise = ParticleNoise.draw(model, x, model.particle_count)
    with pytest.raises(ValueError, match=r"noise's eps_z must have shape \[K, T, B, Z\] = \[2, 2, 1, 2\]"):
        model(x, noise=noise._replace(latents=(noise.latents[0], noise.latents[1][:1])))
    with pytest.raises(ValueError, match=r"noise's uniform must have shape \[T, B\]"):
        model(x, noise=noise._replace(uniform=noise.uniform[:1]))


def test_a_model_of_particles_is_saved_and_shown(tmp_path: Any) -> None:
    model = make("vssn", "fivo").float()
    model.save_pretrained(tmp_path)
    again = VSSN.from_pretrained(tmp_path)
    assert (again.objective, again.particle_count) == ("fivo", K)
    assert "objective='fivo', particles=4" in repr(again)


NAMED_TUPLES = {
    cls
    for name, module in list(sys.modules.items())
    if name.startswith(("vssn.nn", "vssn.models", "vssn.inference"))
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")
}


@pytest.mark.parametrize("name", ["both", "causal_both_residual", "causal_storn", "inferred", "vrnn_both"])
def test_no_named_tuple_is_sliced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler of PyTorch 2.6 has no slices of them."""

    def item(own: tuple[Any, ...], index: Any) -> Any:
        assert not isinstance(index, slice), f"{type(own).__name__}[{index}]"
        return tuple.__getitem__(own, index)

    assert {State, Inference, EncodedBatch, Filtered} <= NAMED_TUPLES
    for cls in NAMED_TUPLES:
        monkeypatch.setattr(cls, "__getitem__", item)
    with pytest.raises(AssertionError, match="State"):
        State(*torch.zeros(3, 1, 1))[:2]
    for objective in OF_PARTICLES:
        model = make(name, objective)
        x, u, _ = given(model, name)
        state = model(x, u, LENGTHS).state
        assert model(x, u, LENGTHS, state).loss.isfinite()
    assert sequence_bounds(model, x, u, LENGTHS, bound="fivo", particles=2).total.isfinite().all()
    for inference in ("filtering", "smoothing"):
        assert latent_states(model, x, u, inference=inference, samples=2).d.isfinite().all()
    assert model.forecast(x, 2, u=u, u_future=None if u is None else u[:2]).mean.isfinite().all()
