"""Calls of scores, bounds, filters and likelihoods with bad input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from calls import (
    Argument,
    Entry,
    arguments,
    loose,
    name_of,
    normal,
    of_state,
)
from calls_of_models import frames_for, of_frames
from small_models import LENGTHS, B, T, X, make
from torch import Tensor
from wrong_values import (
    EITHER,
    SURVIVED,
    Value,
    but,
    of_choice,
    of_count,
    of_flag,
    of_lengths,
    of_model,
    of_number,
    of_numbers,
    of_seed,
    of_tensor,
    of_tuple,
    surviving,
)

import vssn
from vssn.data import batching
from vssn.inference import filtering, importance, metrics, scoring
from vssn.likelihoods import LIKELIHOODS


def inference() -> Iterator[Entry]:
    model = make("both", torch.float32)
    right = {"model": model, **frames_for(model)}
    frames = of_frames(model, right)
    drawn = {"samples": of_count(1, optional=True), "seed": of_seed()}
    plain = {name: value for name, value in right.items() if name != "mask"}
    state = tuple(part.detach() for part in model.start_state(None, B, right["x"]))
    yield Entry(
        name_of(filtering.latent_states),
        filtering.latent_states,
        plain,
        [*frames[:3], *arguments(model=of_model(), inference=of_choice(), **drawn)],
    )
    yield Entry(
        name_of(filtering.one_step_predictions),
        filtering.one_step_predictions,
        plain,
        [*frames[:3], *arguments(model=of_model(), **drawn)],
    )
    rolled = {name: right[name] for name in ("model", "x", "u")} | {"steps": T, "u_future": right["u"]}
    yield Entry(
        name_of(filtering.rollouts),
        filtering.rollouts,
        rolled,
        [
            *frames[:2],
            Argument("u_future", frames[1].values),
            *arguments(model=of_model(), steps=of_count(1), **drawn),
        ],
    )
    x = right["x"]
    yield Entry(
        name_of(filtering.squared_errors),
        filtering.squared_errors,
        {"predicted": x, "truth": x},
        [*loose(x, "predicted", "truth"), *arguments(batch_first=of_flag())],
    )
    yield Entry(
        name_of(filtering.prediction_error),
        filtering.prediction_error,
        {"predicted": x[1:], "x": x},
        [*loose(x[1:], "predicted"), *loose(x, "x"), *arguments(lengths=of_lengths(LENGTHS, T), batch_first=of_flag())],
    )
    yield Entry(
        name_of(importance.sequence_bounds),
        importance.sequence_bounds,
        {**right, "particles": 2, "state": state},
        [
            *frames,
            *of_state(("d", "z", "x_last"), state),
            *arguments(
                model=of_model(),
                bound=of_choice(),
                particles=of_count(1),
                seed=of_seed(),
                first_index=of_count(0),
                memory=of_count(1, size=False),
                resampling=of_choice(),
                ess_threshold=of_number(low=0.0),
            ),
        ],
    )
    batch = batching.SequenceBatch(right["x"], LENGTHS, right["u"])
    yield Entry(
        name_of(scoring.evaluate),
        scoring.evaluate,
        {"model": model, "loader": [batch]},
        arguments(model=of_model(), loader=of_tuple(optional=False), samples=of_count(1), seed=of_seed()),
    )
    yield from _metrics()


def _metrics() -> Iterator[Entry]:
    truth, several = normal(T, B, X), normal(3, T, B, X)
    of_levels = [*but(of_numbers(optional=False), a_tensor_of_two=EITHER), Value("falling", lambda: [0.9, 0.5, 0.1])]
    levels = [0.1, 0.5, 0.9]
    calls: dict[Callable[..., Any], dict[str, Any]] = {
        metrics.crps: {"samples": several, "truth": truth},
        metrics.crps_of_quantiles: {"quantiles": several.sort(0).values, "levels": levels, "truth": truth},
        metrics.quantile_loss: {"quantiles": several, "levels": levels, "truth": truth},
        metrics.coverage: {"lower": truth - 1, "upper": truth + 1, "truth": truth},
        metrics.mae: {"predicted": truth + 1, "truth": truth},
        metrics.rmse: {"predicted": truth + 1, "truth": truth},
        metrics.mase: {"predicted": truth + 1, "truth": truth, "scale": torch.ones(B, X)},
        metrics.seasonal_scale: {"history": truth, "season": 1},
    }
    for call, right in calls.items():
        wrong = arguments(lengths=of_lengths(LENGTHS, T), batch_first=of_flag())
        for name, value in right.items():
            if isinstance(value, Tensor):
                free = {"size": EITHER} if name in ("samples", "quantiles", "scale", "history") else {}
                wrong += [part._replace(values=but(part.values, **free)) for part in loose(value, name)]
        wrong += arguments(levels=of_levels) if "levels" in right else []
        wrong += arguments(season=of_count(1)) if "season" in right else []
        yield Entry(name_of(call), call, right | {"lengths": LENGTHS}, wrong)


# ---- Likelihoods -----------------------------------------------------------------------------------------------------

OWN_OPTIONS = {
    "x_size": of_count(1),
    "min_logvar": of_number(),
    "mixture_size": of_count(1),
    "hidden_size": of_count(1),
    "num_classes": of_count(2),
}


def likelihoods() -> Iterator[Entry]:
    given = {"min_logvar_x": -6.0, "mixture_size": 2, "nade_size": 3, "num_classes": 3}
    for name, cls in LIKELIHOODS.items():
        options = {own: given[keyword] for own, keyword in cls.options}
        right = {"x_size": X, **options}
        wrong = {parameter: OWN_OPTIONS[parameter] for parameter in right}
        yield Entry(name_of(cls), cls, right, arguments(**wrong))
        made = cls(X, **options)
        parameters = normal(T, B, made.parameter_size)
        x = torch.rand(T, B, X, generator=torch.Generator().manual_seed(5)).round()
        observed = torch.ones(T, B, X, dtype=torch.bool)
        frames = {"parameters": parameters, "x": x, "observed": observed}
        floats = {f"of_{dtype}": EITHER for dtype in (torch.float16, torch.bfloat16, torch.float64)}
        of_parameters = but(of_tensor(parameters), **floats, size=EITHER)
        of_x = but(of_tensor(x), **floats, **{"of_torch.int": EITHER, "of_torch.bool": EITHER})
        wrong_frames = {"parameters": of_parameters, "x": of_x, "observed": of_tensor(observed, optional=True)}
        for method in ("log_prob", "given_observed"):
            function = getattr(type(made), method)
            values = wrong_frames | ({"observed": of_tensor(observed)} if method == "given_observed" else {})
            yield Entry(f"{name_of(function)}[{name}]", getattr(made, method), frames, arguments(**values))
        for method in ("mean", "sample", *(("mode", "probabilities") if name == "categorical" else ())):
            function = getattr(type(made), method)
            yield Entry(
                f"{name_of(function)}[{name}]",
                getattr(made, method),
                {"parameters": parameters},
                arguments(parameters=but(of_parameters, on_meta=SURVIVED)),
            )
        yield Entry(
            f"{name_of(type(made).quantile)}[{name}]",
            made.quantile,
            {"parameters": parameters, "q": 0.5},
            arguments(parameters=of_parameters, q=of_number(low=0.0, high=1.0)),
        )
    base = vssn.likelihoods.Likelihood
    yield Entry(
        name_of(base),
        base,
        {"x_size": X, "parameter_size": 3},
        arguments(x_size=of_count(1), parameter_size=of_count(0)),
    )
    yield Entry(
        "vssn.likelihoods.registry.make_likelihood",
        vssn.likelihoods.make_likelihood,
        {"likelihood": "gaussian", "x_size": X, "given": given},
        arguments(likelihood=of_choice(), x_size=of_count(1), given=surviving(of_tuple())),
    )
    yield Entry(
        "vssn.likelihoods.registry.register",
        lambda name: vssn.likelihoods.register(name)(LIKELIHOODS["gaussian"]) if name != "new" else None,
        {"name": "new"},
        arguments(name=[Value("one that is there", lambda: "gaussian")]),
    )
