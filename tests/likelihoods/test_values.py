"""What x may hold under each likelihood, and NaN and infinity wherever they come in: one line, eager and compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import LENGTHS, MODELS, B, T, U, W, X, Z, a_mask, batch, make
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from vssn import VSSN, VSSNLayer
from vssn.data.batching import SequenceBatch
from vssn.errors import DataError
from vssn.inference.filtering import latent_states, one_step_predictions, rollouts
from vssn.inference.importance import sequence_bounds
from vssn.inference.scoring import evaluate, evaluate_bound
from vssn.likelihoods.registry import LIKELIHOODS
from vssn.utils.values import BINARY, COUNTS, REAL, UNIT, Support, looked_at, require_values
from vssn_kernels import arguments
from vssn_kernels.testing import assert_all_close

NAN, INF = math.nan, math.inf


def of(likelihood: str, **more: Any) -> VSSN:
    return VSSN(X, 5, Z, W, likelihood=likelihood, **more)


def x_with(value: float, where: tuple[int, int, int] = (2, 1, 3)) -> Tensor:
    x = torch.zeros(T, B, X)
    x[where] = value
    return x


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_likelihood_states_its_support() -> None:
    wanted = {"bernoulli": UNIT, "nade": BINARY, "gaussian": REAL, "mixture": REAL, "ar_gaussian": REAL}
    reached = Support("hold counts 0, 1, 2, ... up to 3269017", 0.0, 3269017.0, whole=True)
    wanted |= {"student_t": REAL, "poisson": reached, "negative_binomial": COUNTS}
    supports = {name: of(name).likelihood.support for name in LIKELIHOODS}
    assert {name: supports[name] for name in wanted} == wanted
    assert all(support.low <= 0 <= support.high for support in supports.values())


OUTSIDE = [
    ("bernoulli", 1.5, "x must lie in [0, 1] with likelihood='bernoulli', got 1.5; scale it to [0, 1], or take "),
    ("bernoulli", -0.25, "x must lie in [0, 1] with likelihood='bernoulli', got -0.25; take likelihood='gaussian' for"),
    ("bernoulli", 255.0, "x must lie in [0, 1] with likelihood='bernoulli', got 255; divide grey values of 8 bits by"),
    ("nade", 7.0, "x must hold 0 and 1 alone with likelihood='nade', got 7; divide grey values of 8 bits by 255 and"),
    ("nade", 1.5, "x must hold 0 and 1 alone with likelihood='nade', got 1.5; scale it to [0, 1] and take"),
    ("bernoulli", 7.0, "x must lie in [0, 1] with likelihood='bernoulli', got 7; divide grey values"),
    ("bernoulli", 1e6, "x must lie in [0, 1] with likelihood='bernoulli', got 1e+06; scale it to [0, 1], or take"),
    ("nade", 0.5, "x must hold 0 and 1 alone with likelihood='nade', got 0.5; take likelihood='bernoulli'"),
    ("nade", 2.0, "x must hold 0 and 1 alone with likelihood='nade', got 2; divide"),
    ("nade", -1.0, "x must hold 0 and 1 alone with likelihood='nade', got -1; take likelihood='gaussian'"),
    ("bernoulli", 7.0, "x must lie in [0, 1] with likelihood='bernoulli', got 7; divide grey values of 8 bits by 255, "
     "or take likelihood='poisson' or 'negative_binomial' for counts"),
    ("nade", 1e6, "x must hold 0 and 1 alone with likelihood='nade', got 1e+06; scale it to [0, 1] and take "
     "likelihood='bernoulli', or take likelihood='poisson' or 'negative_binomial' for counts"),
    ("poisson", -1.0, "x must hold counts 0, 1, 2, ... up to 3269017 with likelihood='poisson', got -1; take "
     "likelihood='gaussian'"),
    ("poisson", 0.5, "x must hold counts 0, 1, 2, ... up to 3269017 with likelihood='poisson', got 0.5; take "
     "likelihood='bernoulli'"),
    ("poisson", 5e6, "x must hold counts 0, 1, 2, ... up to 3269017 with likelihood='poisson', got 5e+06; take "
     "likelihood='gaussian' for real values"),
    ("negative_binomial", 2.5, "x must hold counts 0, 1, 2, ... with likelihood='negative_binomial', got 2.5; take "
     "likelihood='gaussian' for real values"),
    ("categorical", 2.0, "x must hold class indices from 0 to 1 with likelihood='categorical', got 2; number the "
     "classes from 0 on, and give num_classes as many as there are"),
    ("categorical", 0.5, "x must hold class indices from 0 to 1 with likelihood='categorical', got 0.5; number"),
    *((name, value, f"x must be finite, got {value}; leave missing values out with mask=")
      for name in LIKELIHOODS for value in (NAN, INF, -INF)),
]  # fmt: skip


@pytest.mark.parametrize(("likelihood", "value", "message"), OUTSIDE)
def test_what_is_outside_the_support_is_refused(likelihood: str, value: float, message: str) -> None:
    model, x = of(likelihood), x_with(value)
    assert message_of(lambda: model(x)).startswith(message)
    lengths = torch.tensor([T, 2, T, T])  # the entry is in the padding
    assert model(x, lengths=lengths).loss.isfinite()
    mask = torch.ones(T, B, dtype=torch.bool)
    mask[2, 1] = False
    assert model(x, mask=mask).loss.isfinite()
    assert message_of(lambda: model(x, mask=~mask)).startswith(message)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_what_is_inside_the_support_is_taken(likelihood: str) -> None:
    inside = {"bernoulli": (0.0, 0.3, 1.0), "nade": (0.0, 1.0)}.get(likelihood, (0.0,))
    if LIKELIHOODS[likelihood].support == REAL:
        inside = (0.0, -1e4, 1e4)
    for value in inside:
        assert of(likelihood)(x_with(value)).loss.isfinite()
    for shape in ((0, 3, X), (3, 0, X)):
        assert of(likelihood)(torch.zeros(shape)).loss == 0


def test_real_data_under_bernoulli_is_an_error_and_no_rising_bound() -> None:
    """The bound had no limit: it was +997 nats after 150 steps of such a toy."""
    x = torch.randn(20, 8, X)
    assert "take likelihood='gaussian'" in message_of(lambda: of("bernoulli")(x))
    assert of("gaussian")(x).loss.isfinite()


# Wherever x comes in

CONSUMERS: dict[str, Callable[[VSSN, Tensor], object]] = {
    "forward": lambda model, x: model(x),
    "prepare": lambda model, x: model.prepare(x),
    "forecast": lambda model, x: model.forecast(x, 2),
    "sequence_bounds": lambda model, x: sequence_bounds(model, x, particles=2),
    "fivo": lambda model, x: sequence_bounds(model, x, particles=2, bound="fivo"),
    "latent_states": latent_states,
    "filtering": lambda model, x: latent_states(model, x, inference="filtering"),
    "one_step_predictions": one_step_predictions,
    "rollouts": lambda model, x: rollouts(model, x, 2),
    "evaluate": lambda model, x: evaluate(model, [SequenceBatch(x, torch.full((B,), T))]),
    "evaluate_bound": lambda model, x: evaluate_bound(model, [SequenceBatch(x, torch.full((B,), T))], particles=2),
}


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize(("likelihood", "value"), [("gaussian", NAN), ("bernoulli", -3.0)])
def test_every_consumer_says_so(consumer: str, likelihood: str, value: float) -> None:
    model, call = of(likelihood), CONSUMERS[consumer]
    message = message_of(lambda: call(model, x_with(value)))
    assert message.startswith("x must ")
    assert ("mask=" if math.isnan(value) else "likelihood='gaussian'") in message
    call(model, torch.ones(T, B, X))


# What else comes in


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("of_layer", [False, True])
def test_u_state_and_noise_are_finite(value: float, of_layer: bool) -> None:
    layer = VSSNLayer(X, 5, Z, W, control="both", control_size=U)
    model = layer if of_layer else make("both", torch.float32)
    given = batch(make("both", torch.float32))
    plain = model(**given).state
    x, u, (eps_w, eps_z) = given["x"], given["u"], given["noise"]

    def spoilt(tensor: Tensor, *where: int) -> Tensor:
        tensor = tensor.clone()
        tensor[where] = value
        return tensor

    wrong = {
        "u": {"u": spoilt(u, 4, 1, 0)},
        "noise's eps_w": {"noise": (spoilt(eps_w, 4, 1, 1), eps_z)},
        "noise's eps_z": {"noise": (eps_w, spoilt(eps_z, 4, 1, 1))},
    }
    for name, more in wrong.items():
        assert message_of(lambda more=more: model(**given | more)).startswith(f"{name} must be finite, got {value};")
        out = model(**given | more, lengths=LENGTHS)  # it is in the padding
        assert all(part.isfinite().all() for part in out.state)
    for name in ("d", "z", "x_last"):
        state = plain._replace(**{name: spoilt(getattr(plain, name), 1, 0)})
        message = message_of(lambda state=state: model(**given, state=state))
        assert message.startswith(f"state's {name} must be finite, got {value}; start anew")
    if of_layer:
        assert message_of(lambda: model(spoilt(x, 0, 0, 0), u=u)).startswith(f"x must be finite, got {value}; fill in")
        return
    state = plain._replace(d=spoilt(plain.d, 0, 0))
    assert message_of(lambda: model.generate(2, u=u[:2], state=state)).startswith("state's d must be finite")
    assert message_of(lambda: model.generate(T, B, u=wrong["u"]["u"])).startswith("u must be finite")
    ahead = spoilt(u, 0, 0, 0)
    assert message_of(lambda: model.forecast(x, T, u=u, u_future=ahead)).startswith("u_future must be finite")
    assert message_of(lambda: rollouts(model, x, T, u, ahead)).startswith("u_future must be finite")


# Compiled, transformed, traced


def refused(compiled: Callable[..., Any], model: Callable[..., Any], given: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        compiled(**given)
    said, *_ = str(caught.value).splitlines()  # aot_eager of PyTorch 2.6 adds the place in what it compiled
    assert said == message_of(lambda: model(**given))


@pytest.mark.parametrize(
    ("likelihood", "compiler"),
    [
        ("bernoulli", "aot_eager"),
        ("gaussian", "aot_eager"),
        pytest.param("bernoulli", "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_checks_too(likelihood: str, compiler: str) -> None:
    model = of(likelihood, control="both", control_size=U)
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    right = {"x": torch.zeros(T, B, X), "u": torch.zeros(T, B, U)}
    compiled(**right).loss.backward()
    refused(compiled, model, right | {"x": x_with(NAN)})
    if likelihood == "bernoulli":
        refused(compiled, model, right | {"x": x_with(3.0)})
    refused(compiled, model, right | {"u": torch.full((T, B, U), INF)})
    state = model(**right).state
    state = type(state)(*(part.detach() for part in state))
    compiled(**right, state=state)
    refused(compiled, model, right | {"state": state._replace(z=torch.full((B, Z), NAN))})


def test_a_compiled_model_refuses_frames_observed_in_part() -> None:
    """fullgraph, which a look at the mask's values in Python would break."""
    model = of("ar_gaussian")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, mask = torch.randn(T, B, X), torch.ones(T, B, X, dtype=torch.bool)
    mask[0, 1] = False
    noise = (torch.randn(T, B, W), torch.randn(T, B, Z))
    want = model(x, mask=mask, noise=noise)
    assert_all_close({"loss": compiled(x, mask=mask, noise=noise).loss}, {"loss": want.loss}, 1e-5)
    mask[1, 1, 0] = False
    with pytest.raises(ValueError, match=r"^mask must leave out whole frames with likelihood='ar_gaussian'"):
        compiled(x, mask=mask, noise=noise)


def test_the_check_passes_through_vmap_grad_and_tracing() -> None:
    def function(x: Tensor) -> Tensor:
        require_values("x", x, UNIT, "")
        return x.square().sum()

    for wrap in (torch.func.vmap, torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f)), torch.func.jacrev):
        for call in (wrap(function), torch.compile(wrap(function), fullgraph=True, backend="aot_eager")):
            call(torch.full((3, 2), 0.5))
            with pytest.raises(DataError, match=r"x must lie in \[0, 1\]"):
                call(torch.full((3, 2), 2.0))
    torch.func.jvp(function, (torch.ones(2),), (torch.ones(2),))
    graph = make_fx(function)(torch.ones(3, 2))
    with pytest.raises(DataError, match=r"x must lie in \[0, 1\]"):
        graph(torch.full((3, 2), 2.0))
    with torch._subclasses.fake_tensor.FakeTensorMode():
        function(torch.ones(3, 2))


@pytest.mark.parametrize("name", MODELS)
def test_fake_and_meta_models_run(name: str) -> None:
    """Shapes without data: nothing is looked at."""
    model = make(name, torch.float32)
    given = batch(model)
    model = model.to("meta")
    x = given["x"].to("meta")
    u = None if given["u"] is None else given["u"].to("meta")
    if name != "nade":  # whose rows follow from the data
        assert model(x, u, mask=a_mask().to("meta")).elbo.shape == (B,)


def test_a_device_is_looked_at_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda, meta = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
    assert [looked_at(device) for device in (cpu, cuda, meta)] == [True, arguments.CHECK_ON_DEVICE, False]
    monkeypatch.setattr(arguments, "CHECK_ON_DEVICE", True)
    assert [looked_at(device) for device in (cpu, cuda, meta)] == [True, True, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_waits_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of("gaussian").cuda()
    x = x_with(NAN).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    monkeypatch.setattr(arguments, "CHECK_ON_DEVICE", True)
    assert message_of(lambda: model(x)).startswith("x must be finite")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_half_precision_draws_and_forecasts(name: str, dtype: torch.dtype) -> None:
    """Of gammas, counts and triangular systems, which PyTorch has in float32 and float64 alone on a CPU."""
    torch.manual_seed(0)
    model = of(name).to(dtype)
    x = torch.zeros(T, B, X, dtype=dtype)
    found = model.forecast(x, 3, samples=4, quantiles=(0.1, 0.9))
    assert {part.dtype for part in found} == {dtype}
    assert all(part.isfinite().all() for part in found)
    parameters = torch.randn(200, model.likelihood.parameter_size, dtype=dtype)
    exact = of(name).double().likelihood
    exact.load_state_dict(model.likelihood.state_dict())
    drawn, wanted = (
        likelihood.sample(parameters.to(kind)[None].expand(500, -1, -1)).double().mean((0, 1))
        for likelihood, kind in ((model.likelihood, dtype), (exact, torch.float64))
    )
    torch.testing.assert_close(drawn, wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["student_t", "poisson", "negative_binomial"])
def test_log_gammas_keep_their_digits_in_bfloat16(name: str) -> None:
    """Nats and gradients are what float64 makes of the same numbers, but for their own rounding."""
    generator = torch.Generator().manual_seed(0)
    half = of(name).bfloat16().likelihood
    exact = of(name).double().likelihood
    exact.load_state_dict(half.state_dict())
    parameters = torch.randn(64, 3, half.parameter_size, generator=generator)
    x = torch.randn(64, 3, X, generator=generator)
    if name != "student_t":
        parameters[..., :X] += math.log(200)
        x = (200 * torch.rand(64, 3, X, generator=generator)).round()
    found, wanted = {}, {}
    for likelihood, into, dtype in ((half, found, torch.bfloat16), (exact, wanted, torch.float64)):
        given = parameters.bfloat16().to(dtype).requires_grad_()
        nats = likelihood.log_prob(given, x.bfloat16().to(dtype), None)
        assert nats.dtype == dtype
        nats.sum(dtype=torch.float64).backward()
        into |= {"nats": nats.detach(), "parameters": given.grad}
        into |= {key: parameter.grad for key, parameter in likelihood.named_parameters()}
    assert_all_close(found, wanted, 4e-3)
