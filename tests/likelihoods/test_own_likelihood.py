"""A likelihood of somebody's own: one class, through everything that a model does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vssn import VSSN
from vssn.errors import DataError
from vssn.inference.filtering import latent_states, one_step_predictions, rollouts
from vssn.inference.importance import BOUNDS, sequence_bounds
from vssn.likelihoods import LIKELIHOODS, Bernoulli, Likelihood, Support, make_likelihood, register
from vssn_kernels.testing import assert_close

X, D, Z, W, T, B = 4, 6, 3, 2, 5, 3


class Counts(Likelihood):
    """Independent counts, with a rate of its own for every feature beside the decoder's."""

    support = Support("hold counts 0, 1, 2, ...", 0.0, float("inf"), whole=True)

    def __init__(self, x_size: int, **factory: Any) -> None:
        super().__init__(x_size, x_size)
        self.log_scale = nn.Parameter(torch.empty(x_size, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.log_scale)

    def forward(self, parameters: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        log_rate = parameters + self.log_scale
        terms = x * log_rate - log_rate.exp() - torch.lgamma(x + 1)
        return (terms if observed is None else torch.where(observed, terms, 0.0)).sum(-1)

    def sample(self, parameters: Tensor) -> Tensor:
        return torch.poisson((parameters + self.log_scale).exp())

    def mean(self, parameters: Tensor) -> Tensor:
        return (parameters + self.log_scale).exp()


@pytest.fixture
def model() -> VSSN:
    torch.manual_seed(0)
    return VSSN(X, D, Z, W, likelihood=Counts(X).double(), dtype=torch.float64)


@pytest.fixture
def x() -> Tensor:
    return torch.poisson(torch.full((T, B, X), 2.0, dtype=torch.float64))


@pytest.fixture
def of_the_registry() -> Iterator[None]:
    own, before = register("counts")(Counts), dict(LIKELIHOODS)
    yield
    del own.name, LIKELIHOODS["counts"]
    assert dict(LIKELIHOODS) == {name: cls for name, cls in before.items() if name != "counts"}


def test_loss_and_gradients(model: VSSN, x: Tensor) -> None:
    noise = (torch.randn(T, B, W, dtype=torch.float64), torch.randn(T, B, Z, dtype=torch.float64))
    observed = torch.rand(T, B, X) > 0.3
    out = model(x, mask=observed, noise=noise)
    given = model.prepare(x, mask=observed)
    result = model.layer.infer(given.embedded, given.controls, *model.layer.initial_state(B, x), noise)
    rate = model.decode(result.z, result.d).exp()
    want = torch.where(observed, torch.distributions.Poisson(rate).log_prob(x), 0.0).sum(-1)
    assert_close("reconstruction", out.reconstruction, want, 1e-12)
    out.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.likelihood.log_scale.grad.abs().min() > 0


def test_generation(model: VSSN, x: Tensor) -> None:
    drawn, mean, _ = model.forecast(x, 7)
    assert drawn.shape == mean.shape == (7, B, X)
    assert (drawn == drawn.round()).all()
    assert (mean > 0).all()
    assert torch.equal(*model.generate(3, 2, sample=False)[:2])


def test_what_is_inferred(model: VSSN, x: Tensor) -> None:
    assert latent_states(model, x, inference="filtering").z.shape == (T, B, Z)
    assert (one_step_predictions(model, x) > 0).all()
    assert (rollouts(model, x, 3) > 0).all()


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_within_a_limit_of_memory(model: VSSN, x: Tensor, bound: str) -> None:
    """Particles in groups and parts, as the likelihood's floats_per_frame say: the same digits."""
    long = x.repeat(40, 1, 1)
    want = sequence_bounds(model, long, bound=bound, particles=9)
    assert_close(bound, sequence_bounds(model, long, bound=bound, particles=9, memory=700_000).total, want.total, 1e-10)
    assert (want.total < 0).all()


def test_the_plan_asks_the_likelihood(model: VSSN, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counts, "floats_per_frame", lambda self, x: 10**9)
    with pytest.raises(ValueError, match=r"^memory must be at least \d{5,} MiB"):
        sequence_bounds(model, x, particles=2)


def test_it_is_a_part_of_the_model(model: VSSN) -> None:
    assert "(likelihood): Counts(4)" in repr(model)
    assert "likelihood.log_scale" in model.state_dict()
    assert model.to(torch.float32).likelihood.log_scale.dtype == torch.float32
    model.likelihood.log_scale.data.fill_(3.0)
    model.reset_parameters()
    assert model.likelihood.log_scale.abs().max() == 0
    other = copy.deepcopy(model)
    assert other.likelihood is not model.likelihood


def test_hooks_see_the_log_density(x: Tensor) -> None:
    for likelihood, like in (("bernoulli", x.clamp(max=1)), ("mixture", x), (Counts(X), x), ("nade", x.clamp(max=1))):
        model, calls = VSSN(X, D, Z, likelihood=likelihood).double(), []
        model.likelihood.register_forward_hook(lambda module, given, out, calls=calls: calls.append(out))
        out = model(like)
        assert torch.equal(calls[0], out.reconstruction)


@pytest.mark.parametrize(("value", "got"), [(-1.0, "-1"), (0.5, "0.5")])
def test_its_support_is_checked(model: VSSN, x: Tensor, value: float, got: str) -> None:
    x[0, 0, 0] = value
    want = rf"^x must hold counts 0, 1, 2, \.\.\. with likelihood=Counts, got {got}; take likelihood='gaussian'"
    with pytest.raises(DataError, match=want):
        model(x)
    with pytest.raises(DataError, match=want):
        torch.compile(model, fullgraph=True, backend="aot_eager")(x)


@pytest.mark.usefixtures("of_the_registry")
def test_a_registered_one_has_a_name(x: Tensor) -> None:
    model = VSSN(X, D, Z, likelihood="counts", dtype=torch.float64)
    assert isinstance(model.likelihood, Counts)
    assert model.likelihood.log_scale.dtype == torch.float64
    with pytest.raises(DataError, match="with likelihood='counts'"):
        model(-x - 1)
    with pytest.raises(ValueError, match="name must be a new one, got 'counts', which is Counts's"):
        register("counts")(Bernoulli)

    class Other(Counts):
        """No longer what the name stands for."""

    assert Other(X).title == "likelihood=Other"


def test_what_does_not_fit_is_named() -> None:
    for wrong in (3, None, nn.Linear(2, 2), Counts):
        with pytest.raises(
            TypeError, match=r"^likelihood must be one of bernoulli, .* or a vssn.likelihoods.Likelihood"
        ):
            VSSN(X, D, Z, likelihood=wrong)
    with pytest.raises(ValueError, match=r"^likelihood must be one of x_size=4 features, got one of 5"):
        VSSN(X, D, Z, likelihood=Counts(5))
    with pytest.raises(TypeError, match="must be a subclass of Likelihood"):
        register("linear")(nn.Linear)
    with pytest.raises(NotImplementedError, match=r"Likelihood must have sample\(parameters\)"):
        Likelihood(3, 3).sample(torch.zeros(1, 1, 3))

    class Wishful(Counts):
        options = (("temperature", "temperature"),)

    register("wishful")(Wishful)
    try:
        with pytest.raises(ValueError, match="takes temperature, which the model does not have; pass an instance"):
            make_likelihood("wishful", X, {})
    finally:
        del LIKELIHOODS["wishful"]

    class Forgetful(Counts):
        reset_parameters = Likelihood.reset_parameters

    with pytest.raises(TypeError, match="Forgetful must have reset_parameters as it has parameters"):
        Forgetful(X)

    class Above(Counts):
        support = Support("be above 1", 1.0, 9.0)

    with pytest.raises(ValueError, match=r"^support must hold 0"):
        Above(X)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_those_of_the_registry_are_parts_of_the_model(name: str) -> None:
    model = VSSN(X, D, Z, likelihood=name)
    assert f"(likelihood): {type(model.likelihood).__name__}({X}" in repr(model)
    own = {"nade": ["weight_in", "weight_out"], "ar_gaussian": ["weight"], "student_t": ["raw_df"]}.get(name, [])
    assert [key for key in model.state_dict() if "likelihood" in key] == [f"likelihood.{part}" for part in own]
    given = VSSN(X, D, Z, likelihood=copy.deepcopy(model.likelihood))
    given.load_state_dict(model.state_dict())
