"""A model with a scaling, on data as it came, is the same model without one on data standardised by hand: with all
log-densities shifted by -sum of log std, and all frames in the data's unit."""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from small_models import LENGTHS, B, D, T, U, W, X, Z
from torch import Tensor

import vssn
from vssn import VSSN, evaluate, sequence_bounds
from vssn.data.batching import SequenceBatch
from vssn.inference.filtering import latent_states, one_step_predictions, rollouts
from vssn.likelihoods.scaled import Scaled
from vssn.utils.scaling import Scaling

SCALING = Scaling(
    torch.tensor([100.0, -3.0, 0.0, 7.0]),
    torch.tensor([10.0, 0.5, 1.0, 3.0]),
    torch.tensor([5.0, -2.0]),
    torch.tensor([2.0, 0.1]),
)
MODELS: dict[str, dict[str, Any]] = {
    "gaussian": {"likelihood": "gaussian"},
    "mixture": {"likelihood": "mixture", "mixture_size": 3, "masked": True},
    "ar_gaussian": {"likelihood": "ar_gaussian"},
    "controls": {"likelihood": "gaussian", "control": "both", "control_size": U, "embed_size": 6},
    "masked": {"likelihood": "gaussian", "masked": True, "control": "external", "control_size": U},
    "batch_first": {"likelihood": "gaussian", "batch_first": True},
}


def pair(name: str) -> tuple[VSSN, VSSN]:
    """(with a scaling, without), of the same weights, in float64."""
    options = MODELS[name]
    scaling = SCALING if "control_size" in options else SCALING._replace(u_mean=None, u_std=None)
    plain = VSSN(X, D, Z, W, **options).double().eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    scaled = VSSN(X, D, Z, W, scaling=scaling, **options).double().eval()
    weights = dict(scaled.state_dict())
    for key, value in plain.state_dict().items():
        weights[key.replace("likelihood.", "likelihood.inner.")] = value
    scaled.load_state_dict(weights)
    return scaled, plain


def draw(model: VSSN, gaps: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """x and u in data units, and standardised."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, B, X, generator=generator, dtype=torch.float64)
    u = torch.randn(T, B, U, generator=generator, dtype=torch.float64) if model.control_size else None
    if gaps:
        x[torch.rand(x.shape, generator=generator) < 0.3] = torch.nan
    if model.batch_first:
        x, u = x.transpose(0, 1), None if u is None else u.transpose(0, 1)
    raw_u = None if u is None else u * SCALING.u_std + SCALING.u_mean
    return x * SCALING.x_std + SCALING.x_mean, raw_u, x, u


def in_units(frame: Tensor) -> Tensor:
    return frame * SCALING.x_std + SCALING.x_mean


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("name", MODELS)
def test_the_objective_is_shifted_by_the_log_of_the_scale(name: str, lengths: Tensor | None) -> None:
    scaled, plain = pair(name)
    raw, raw_u, x, u = draw(scaled, gaps=scaled.masked)
    outputs = []
    for model, given in ((scaled, (raw, raw_u)), (plain, (x, u))):
        torch.manual_seed(4)
        outputs.append(model(*given, lengths=lengths))
    found, wanted = outputs
    seen = ~x.isnan()
    if lengths is not None:
        steps = torch.arange(T)[:, None] < lengths
        seen &= (steps.T if scaled.batch_first else steps)[..., None]
    shift = (SCALING.x_std.double().log() * seen).sum(-1)
    assert_close(found.reconstruction, wanted.reconstruction - shift)
    for part in ("kl_z", "kl_w"):
        assert_close(getattr(found, part), getattr(wanted, part))
    assert_close(found.elbo, wanted.elbo - shift.sum(1 if scaled.batch_first else 0))
    for own, other in zip(found.state, wanted.state, strict=True):
        assert_close(own, other)
    found.loss.backward()
    wanted.loss.backward()
    gradients = dict(plain.named_parameters())
    for key, parameter in scaled.named_parameters():
        other = gradients[key.replace("likelihood.inner.", "likelihood.")].grad
        assert (parameter.grad is None) == (other is None)
        if parameter.grad is not None and other is not None:
            assert_close(parameter.grad, other)


@pytest.mark.parametrize("name", MODELS)
def test_what_comes_out_is_in_the_unit_of_the_data(name: str) -> None:
    scaled, plain = pair(name)
    raw, raw_u, x, u = draw(scaled, gaps=scaled.masked)

    def both(call: Any) -> tuple[Any, Any]:
        results = []
        for model, given, control in ((scaled, raw, raw_u), (plain, x, u)):
            torch.manual_seed(5)
            results.append(call(model, given, control))
        return results[0], results[1]

    for sample in (True, False):
        found, wanted = both(lambda model, x, u, sample=sample: model.forecast(x, T, u=u, u_future=u, sample=sample))
        assert_close(found.x, in_units(wanted.x))
        assert_close(found.mean, in_units(wanted.mean))
        found, wanted = both(lambda model, x, u, sample=sample: model.generate(T, B, u=u, sample=sample))
        assert_close(found.x, in_units(wanted.x))
    for inference in ("filtering", "smoothing"):
        found, wanted = both(partial(latent_states, inference=inference, samples=2))
        assert_close(found.d, wanted.d)
        assert_close(found.z, wanted.z)
    found, wanted = both(one_step_predictions)
    assert_close(found, in_units(wanted))
    found, wanted = both(lambda model, x, u: rollouts(model, x, T, u, u, samples=2))
    assert_close(found, in_units(wanted))
    if name != "ar_gaussian":
        found, wanted = both(lambda model, x, u: model.impute(x, u=u, samples=3))
        assert_close(found.mean, in_units(wanted.mean))
    found, wanted = both(lambda model, x, u: model.score(x, u))
    assert_close(found, wanted - (SCALING.x_std.log() * ~x.isnan()).sum(-1))


@pytest.mark.parametrize("bound", ["iwae", "fivo"])
@pytest.mark.parametrize("name", ["gaussian", "masked", "mixture"])
def test_bounds_and_scores_are_in_the_unit_of_the_data(name: str, bound: str) -> None:
    scaled, plain = pair(name)
    raw, raw_u, x, u = draw(scaled, gaps=scaled.masked)
    lengths = torch.full((B,), T)
    found, wanted = (
        sequence_bounds(model, *given, lengths, bound=bound, particles=4, seed=1)
        for model, given in ((scaled, (raw, raw_u)), (plain, (x, u)))
    )
    shift = (SCALING.x_std.double().log() * ~x.isnan()).sum(-1).sum(0)
    assert_close(found[0], wanted[0] - shift)
    scores = [
        evaluate(model, [SequenceBatch(given, lengths, control)])
        for model, given, control in ((scaled, raw, raw_u), (plain, x, u))
    ]
    assert scores[0].micro == pytest.approx(scores[1].micro - float(shift.sum()) / (T * B), rel=1e-6)


def test_the_scaling_is_kept_as_buffers() -> None:
    scaled, plain = pair("controls")
    content = io.BytesIO()
    torch.save(scaled.state_dict(), content)
    content.seek(0)
    fresh = VSSN(X, D, Z, W, scaling=Scaling.identity(X, U), **MODELS["controls"]).double()
    fresh.load_state_dict(torch.load(content, weights_only=True))
    assert fresh.scaling is not None
    for part, wanted in zip(fresh.scaling, SCALING, strict=True):
        assert part is not None
        assert wanted is not None
        assert part.equal(wanted.double())
    assert plain.scaling is None
    assert not [name for name in plain.state_dict() if "mean_" in name or "std_" in name]
    copied = copy.deepcopy(scaled)
    copied.reset_parameters()
    assert copied.scaling is not None
    assert copied.scaling.x_mean.equal(SCALING.x_mean.double())


def test_the_scaling_of_sequences() -> None:
    x = torch.tensor([[1.0, torch.nan, 5.0, 1e6], [3.0, torch.nan, 5.0, 1e6 + 0.0625]])
    scaling = Scaling.of([x, torch.tensor([[5.0, torch.nan, torch.nan, 1e6]])], [torch.tensor([[2.0]])] * 2)
    assert scaling.x_mean.tolist() == pytest.approx([3.0, 0.0, 5.0, 1e6])
    assert scaling.x_std.tolist() == pytest.approx([(8 / 3) ** 0.5, 1.0, 1.0, 1.0])
    assert scaling.u_mean is not None
    assert (scaling.u_mean.tolist(), scaling.u_std) == ([2.0], torch.ones(1))


def test_the_scaling_of_arrays_is_that_of_tensors() -> None:
    x = 7 + torch.randn(5, 6, X, generator=torch.Generator().manual_seed(0))
    for given in (x, x.numpy(), list(x.numpy())):
        for part, wanted in zip(vssn.Scaling.of(given, given), vssn.Scaling.of(list(x), list(x)), strict=True):
            assert part is not None
            assert wanted is not None
            assert part.equal(wanted)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "sequences must hold one sequence at least, got none"),
        (torch.ones(3, 2), r"sequences must be sequences \[T, X\] of one X, got shape \[2\] of number 0"),
        ([torch.ones(3, 2), torch.ones(3, 1)], r"of one X, got shape \[3, 1\] of number 1"),
    ],
)
def test_a_scaling_of_what_are_no_sequences(sequences: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scaling.of(sequences)
    with pytest.raises(ValueError, match=message.replace("sequences must", "controls must")):
        Scaling.of([torch.ones(3, 2)], sequences)


def test_far_from_unit_scale() -> None:
    """By the largest feature: pixels that hardly ever change are no unit of their own."""
    of = Scaling(torch.tensor([0.0, 1000.0]), torch.tensor([1.0, 70.0])).far_from_unit
    assert of() == "x[1] has mean 1000 and standard deviation 70"
    assert Scaling(torch.zeros(2), torch.tensor([1e-3, 2.0])).far_from_unit() is None
    assert Scaling(torch.zeros(2), torch.tensor([1e-3, 2e-3])).far_from_unit() is not None
    assert Scaling(torch.tensor([-30.0]), torch.ones(1)).far_from_unit() is not None
    driven = Scaling(torch.zeros(1), torch.ones(1), torch.tensor([0.0]), torch.tensor([500.0]))
    assert driven.far_from_unit() == "u[0] has mean 0 and standard deviation 500"


@pytest.mark.parametrize(
    ("scaling", "options", "message"),
    [
        (SCALING, {}, r"scaling.u_mean must be None, got \[2\]"),
        (Scaling.identity(3), {}, r"scaling.x_mean must be a tensor \[4\], got \[3\]"),
        (Scaling.identity(X)._replace(x_std=torch.zeros(X)), {}, "scaling.x_std must be finite and above 0"),
        (Scaling.identity(X)._replace(x_mean=torch.full((X,), torch.nan)), {}, "scaling.x_mean must be finite"),
        (Scaling.identity(X), {"likelihood": "bernoulli"}, r"scaling must be None with likelihood='bernoulli'"),
        (Scaling.identity(X), {"likelihood": "nade"}, r"scaling must be None with likelihood='nade'"),
        (Scaling.identity(X), {"control": "both", "control_size": U}, r"scaling.u_mean must be a tensor \[2\]"),
    ],
)  # fmt: skip
def test_a_scaling_that_does_not_fit(scaling: Scaling, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VSSN(X, D, Z, W, **{"likelihood": "gaussian"} | options, scaling=scaling)


def test_a_scaling_of_another_kind() -> None:
    with pytest.raises(TypeError, match=r"scaling must be a vssn\.Scaling, got tuple"):
        VSSN(X, D, Z, W, likelihood="gaussian", scaling=(0.0, 1.0))  # type: ignore[arg-type]


def test_messages_name_the_likelihood_that_was_asked_for() -> None:
    scaled, plain = pair("ar_gaussian")
    assert isinstance(scaled.likelihood, Scaled)
    assert scaled.likelihood.title == plain.likelihood.title == "likelihood='ar_gaussian'"


def test_what_takes_whole_frames_alone_says_so_in_other_units_too() -> None:
    """As training.coordinated_dropout asks."""
    for name, whole in (("gaussian", False), ("ar_gaussian", True)):
        scaled, plain = pair(name)
        assert scaled.likelihood.whole_frames is plain.likelihood.whole_frames is whole
