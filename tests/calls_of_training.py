"""Calls of data sets, training and the estimator with bad input."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from tempfile import TemporaryDirectory
from typing import Any

from calls import (
    PLACES,
    Argument,
    Entry,
    arguments,
    loose,
    name_of,
    normal,
    zeros,
)
from small_models import D, T, U, X, Z
from wrong_values import (
    EITHER,
    SURVIVED,
    Value,
    but,
    of_choice,
    of_count,
    of_flag,
    of_number,
    of_numbers,
    of_path,
    of_seed,
    of_tensor,
    of_tuple,
    quantised,
)

import vssn
from vssn.data import batching


def _of_sequences(optional: bool = False) -> list[Value]:
    good = normal(4, X)
    wrong: dict[str, Any] = {
        **{"a number": 3, "a text": "abc", "a dict": {0: good}, "nothing": [], "numbers": [1.0], "lists": [[[1.0]]]},
        **{"one sequence": good, "a vector": zeros(5), "of none": [None, None], "of texts": ["a", "b"]},
    }
    made: dict[str, Callable[[], Any]] = {
        value.kind: (lambda value=value: [value.make(), good])
        for value in of_tensor(good)
        if value.verdict == "refused" and not value.kind.startswith(("size", "of torch", "an array", "quantised"))
    }
    values = [Value(kind, lambda value=value: value) for kind, value in wrong.items()]
    values += [Value(f"of {kind}", make) for kind, make in made.items() if kind not in ("an array",)]
    values += [Value("quantised", lambda: [quantised(good)] * 2)]
    return [*values, *([] if optional else [Value("none", lambda: None)])]


def data() -> Iterator[Entry]:
    x, u = [normal(4, X), normal(2, X)], [normal(4, U), normal(2, U)]
    dataset = batching.SequenceDataset(x, u)
    of_dataset = but(of_tuple(optional=False), a_list=EITHER)
    yield Entry(
        name_of(batching.SequenceDataset),
        batching.SequenceDataset,
        {"sequences": x, "controls": u},
        arguments(
            sequences=_of_sequences(),
            controls=_of_sequences(optional=True),
            lengths=but(of_tuple(), **dict.fromkeys(("a_tensor_of_two", "an_array_of_two"), EITHER)),
            transform=[Value("a text", lambda: "x"), Value("a number", lambda: 3)],
            seed=of_seed(),
            before=of_tuple(),
        ),
    )
    own = name_of(batching.SequenceDataset)
    yield Entry(f"{own}.set_epoch", dataset.set_epoch, {"epoch": 1}, arguments(epoch=of_count(0)))
    yield Entry(
        name_of(batching.as_sequence),
        batching.as_sequence,
        {"name": "here", "sequence": x[0], "features": "X", "dims": 2},
        [
            Argument(
                "sequence",
                but(loose(x[0], "x")[0].values, **{"an_array": EITHER, "size": EITHER}),
                "here",
            ),
            *arguments(name=[], features=[], dims=[]),
        ],
    )
    kinds = ("a number", "a text", "on meta", "sparse, COO", "a DTensor")
    pairs = [
        Value(f"pairs, {value.kind}", lambda value=value: [(value.make(), None)])
        for value in of_tensor(x[0])
        if value.kind in kinds
    ]
    yield Entry(
        name_of(batching.collate_sequences),
        batching.collate_sequences,
        {"items": [dataset[0], dataset[1]]},
        arguments(items=[*of_tuple(optional=False), *pairs]),
    )
    sizes = {"batch_size": of_count(1), "seed": of_seed(), "pool_batches": of_count(1), "shuffle": of_flag()}
    yield Entry(
        name_of(batching.LengthBucketSampler),
        batching.LengthBucketSampler,
        {"dataset": dataset, "batch_size": 2, "shuffle": True},
        arguments(dataset=of_dataset, **sizes),
    )
    sampler = batching.LengthBucketSampler(dataset, 2, shuffle=True)
    yield Entry(
        f"{name_of(batching.LengthBucketSampler)}.set_epoch",
        sampler.set_epoch,
        {"epoch": 1},
        arguments(epoch=of_count(0)),
    )
    yield Entry(
        name_of(batching.sequence_loader),
        batching.sequence_loader,
        {"dataset": dataset, "batch_size": 2},
        arguments(dataset=of_dataset, **sizes, epoch=of_count(0), num_workers=of_count(0), pin_memory=of_flag()),
    )


def sets() -> Iterator[Entry]:
    """Of the data sets that are simulated, and of what reads the others."""
    from vssn.data.balls import make_balls
    from vssn.data.formats import read
    from vssn.data.lorenz import bits_per_spike, lorenz_rates, rate_r2
    from vssn.data.music import load_music
    from vssn.data.pendulum import make_pendulum
    from vssn.data.speech import load_speech

    seed = [value for value in of_seed() if value.kind != "a tuple"]
    of_real = {"dt": of_number(low=0.0), "max_velocity": of_number(low=0.0), "max_torque": of_number(low=0.0)}
    yield Entry(
        name_of(make_pendulum),
        make_pendulum,
        {"num_sequences": 1, "num_steps": 2},
        arguments(num_sequences=of_count(1), num_steps=of_count(1), seed=seed, size=of_count(1), **of_real),
    )
    counts = {name: of_count(1) for name in ("num_videos", "num_frames", "num_balls", "resolution", "substeps")}
    sizes = {name: of_number(low=0.0) for name in ("radius", "box_size", "speed")}
    yield Entry(
        name_of(make_balls), make_balls, {"num_videos": 1, "num_frames": 2}, arguments(**counts, **sizes, seed=seed)
    )
    yield Entry(
        name_of(lorenz_rates),
        lorenz_rates,
        {"num_conditions": 1, "num_frames": 2},
        arguments(num_conditions=of_count(1), num_frames=of_count(1), seed=seed),
    )
    one, other = normal(2, 3, X).abs(), normal(2, 3, X).abs().round()
    for call, names in ((rate_r2, ("estimated", "true")), (bits_per_spike, ("rates", "spikes"))):
        right = dict(zip(names, (one, other), strict=True))
        wrong = [part for name, tensor in right.items() for part in loose(tensor, name)]
        yield Entry(name_of(call), call, right, wrong)
    path = but(of_path(kinds=()), none=SURVIVED)
    with_name = {"name": of_choice(), "folder": path}
    for load in (load_music, load_speech):
        more = {"mean": of_number(optional=True), "std": of_number(optional=True)} if load is load_speech else {}
        yield Entry(name_of(load), _not_loading(load), {"name": "right"}, arguments(**with_name, **more))
    of_read = arguments(path=of_path(kinds=()), format=of_choice(optional=True))
    yield Entry(name_of(read), _not_loading(read), {"path": "right"}, of_read)


def _not_loading(load: Callable[..., Any]) -> Callable[..., Any]:
    """The set is not there."""

    def call(**given: Any) -> Any:
        first, *rest = given.values()
        if not rest and isinstance(first, str) and first == "right":
            return None
        names = {"load_music": "jsb", "load_speech": "timit", "read": "/tmp"}
        right = {
            name: names[load.__name__] if isinstance(value, str) and value == "right" else value
            for name, value in given.items()
        }
        return load(**right)

    return call


def training() -> Iterator[Entry]:
    from vssn.training.checkpoints import load_model
    from vssn.training.config import load_config

    yield Entry(
        name_of(load_config),
        load_config,
        {"path": "jsb", "overrides": ["data.seed=3"]},
        arguments(
            path=but(of_path(), **dict.fromkeys(PLACES, SURVIVED)),
            overrides=but(of_tuple(optional=False), empty=EITHER, a_dict=EITHER, short=SURVIVED, of_texts=SURVIVED),
        ),
    )
    yield Entry(
        name_of(load_model),
        _loading_checkpoint(load_model),
        {"path": "right"},
        arguments(path=but(of_path(), **dict.fromkeys(PLACES, SURVIVED))),
    )
    parts = [normal(3, 4, X)] * 3
    config = {"model": {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian"}}
    yield Entry(
        name_of(vssn.fit),
        _not_training(vssn.fit),
        {"config": config, "splits": parts},
        arguments(
            config=but(of_path(), **dict.fromkeys(PLACES, SURVIVED)),
            splits=but(of_tuple(), a_flag=EITHER),
            callbacks=but(of_tuple(optional=False), empty=SURVIVED, a_dict=SURVIVED),
            resume=of_flag(),
            data=of_tuple(),
            training=of_tuple(),
            verbose=of_flag(),
        ),
    )
    yield from _of_forecaster()


def _loading_checkpoint(load: Callable[..., Any]) -> Callable[..., Any]:
    return lambda path: None if isinstance(path, str) and path == "right" else load(path)


def _not_training(fit: Callable[..., Any]) -> Callable[..., Any]:
    """A call that is right would train."""

    def call(config: Any, splits: Any, **more: Any) -> Any:
        if isinstance(config, dict) and config and isinstance(splits, list) and len(splits) == 3 and not more:
            return None
        with TemporaryDirectory() as folder:
            run = {"training": {"output": f"{folder}/run", "max_epochs": 1}}
            given = config | run if isinstance(config, dict) and config else config
            return fit(given, splits, **{"verbose": False} | more)

    return call


def _of_forecaster() -> Iterator[Entry]:
    """Of one that has a model as a fit leaves it."""
    model = vssn.VSSN(X, D, Z, likelihood="gaussian", masked=True)
    fitted = vssn.Forecaster()
    fitted._take(model.eval(), 3)
    x = normal(2, T, X)
    of_x = but(loose(x, "x")[0].values, an_array=EITHER, size=EITHER, a_list=EITHER)
    of_x = [value for value in of_x if not re.match(r"size: \d", value.kind)]  # so many sequences are so many tensors
    counts = {"samples": of_count(1)}
    optional = {"standardise": of_flag(), "likelihood": of_choice(), "learning_rate": of_number(low=0.0)}
    sizes = ("hidden_size", "latent_size", "noise_size", "window", "batch_size", "max_epochs", "patience")
    made = {**{size: of_count(0) for size in sizes}, **optional, "validation": of_number(low=0.0, high=1.0)}
    settings = [value for value in of_tuple() if value.kind != "a dict"]  # which would be right
    made |= {
        "model": settings,
        "training": settings,
        "random_state": of_seed(),
        "output": of_path(kinds=()),
        "verbose": [],
    }
    without = {name: [value for value in values if value.kind != "none"] for name, values in made.items()}
    yield Entry(name_of(vssn.Forecaster), _fitting_with, {"max_epochs": 1}, arguments(**without))
    yield Entry(
        f"{name_of(vssn.Forecaster)}.fit",
        lambda **given: None if given["x"] is x and len(given) == 1 else vssn.Forecaster(max_epochs=1).fit(**given),
        {"x": x},
        arguments(x=[value for value in of_x if value.verdict == "refused"], u=of_tuple(), y=[]),
    )
    yield Entry(
        f"{name_of(vssn.Forecaster)}.set_params",
        lambda **given: vssn.Forecaster().set_params(**given),
        {},
        [Argument("parameters", [Value("another", lambda: 3)], "wrong", lambda right, value: {"wrong": value})],
    )
    name = name_of(vssn.Forecaster)
    yield Entry(
        f"{name}.forecast",
        fitted.forecast,
        {"x": x, "steps": 2, "samples": 2},
        arguments(x=of_x, steps=of_count(0), quantiles=of_numbers(), u=[], u_future=of_tuple(), **counts),
    )
    yield Entry(
        f"{name}.impute",
        fitted.impute,
        {"x": x, "samples": 2},
        arguments(x=of_x, quantiles=of_numbers(), u=[], **counts),
    )
    yield Entry(f"{name}.transform", fitted.transform, {"x": x}, arguments(x=of_x, kind=of_choice(), u=[]))
    of_scores = arguments(x=of_x, u=[], kind=of_choice(), **counts)
    yield Entry(f"{name}.score_samples", fitted.score_samples, {"x": x}, of_scores)
    yield Entry(f"{name}.score", fitted.score, {"x": x}, arguments(x=of_x, y=[], u=[]))


def _fitting_with(**given: Any) -> Any:
    """A fit that is right would train."""
    if list(given) == ["max_epochs"] and type(given["max_epochs"]) is int and given["max_epochs"] == 1:
        return None
    return vssn.Forecaster(**{"max_epochs": 1} | given).fit(normal(12, T, X))
