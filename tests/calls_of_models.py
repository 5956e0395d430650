"""Calls of models with bad input, and of what they are made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from tempfile import TemporaryDirectory
from typing import Any

import torch
from calls import (
    COUNTED,
    OF_PLACE,
    PLACES,
    Argument,
    Entry,
    arguments,
    in_tuple,
    name_of,
    normal,
    of_noise,
    of_state,
)
from calls_of_layers import LAYER_OPTIONS, of_world_model
from small_models import LENGTHS, B, D, T, U, W, X, Z, make
from torch import Tensor
from wrong_values import (
    EITHER,
    HUGE,
    SURVIVED,
    Value,
    but,
    of_choice,
    of_count,
    of_flag,
    of_lengths,
    of_module,
    of_number,
    of_numbers,
    of_path,
    of_seed,
    of_tensor,
    of_tuple,
    surviving,
)

import vssn
from vssn.inference import importance

FRAMES = {
    "likelihood": of_choice(),
    **{"mixture_size": of_count(1), "nade_size": of_count(1), "num_classes": of_count(2)},
    **{"embed_size": of_count(1, optional=True), "objective": of_choice(), "particles": of_count(1, optional=True)},
    **{"free_bits": of_number(low=0.0), "min_logvar": of_number(), "min_logvar_x": of_number()},
    **{"masked": of_flag(), "held_out": of_count(0), "batch_first": of_flag()},
    **{"encoder": of_module(optional=True), "decoder": of_module(optional=True), "scaling": of_tuple()},
    **OF_PLACE,
}
OF_MODELS: dict[str, tuple[Any, dict[str, Any], dict[str, list[Value]]]] = {
    "vssn": (
        vssn.VSSN,
        {"x_size": X, "hidden_size": D, "latent_size": Z},
        {**COUNTED, **LAYER_OPTIONS, **FRAMES, "num_sequences": of_count(1, optional=True)},
    ),
    "vrnn": (
        vssn.VRNN,
        {"x_size": X, "hidden_size": D, "latent_size": Z},
        {
            **{name: of_count(1) for name in ("x_size", "hidden_size", "latent_size")},
            **{name: of_choice() for name in ("prior", "control", "activation", "initial_state")},
            **{"control_size": of_count(0), "mlp_size": of_count(1, optional=True)},
            **FRAMES,
        },
    ),
    "dvbf": (
        vssn.DVBF,
        {"x_size": X, "latent_size": Z, "noise_size": W, "control": "none"},
        {
            **{name: of_count(1) for name in ("x_size", "latent_size", "noise_size", "matrices", "mlp_size")},
            **{"control": of_choice(), "control_size": of_count(0), "activation": of_choice()},
            **{"backward_size": of_count(1, optional=True), **FRAMES},
        },
    ),
    "rssm": (
        vssn.RSSM,
        {"x_size": X, "hidden_size": D, "latent_size": Z, "control": "none"},
        {
            **{name: of_count(1) for name in ("x_size", "hidden_size", "latent_size")},
            **{name: of_choice() for name in ("control", "activation", "scale", "latent", "initial_state")},
            **{name: of_count(1, optional=True) for name in ("mlp_size", "joint_size")},
            **{"control_size": of_count(0), "min_std": of_number(low=0.0), "classes": of_count(2)},
            **{"unimix": of_number(low=0.0, high=1.0), "kl_balance": of_number(optional=True, low=0.0, high=1.0)},
            **FRAMES,
        },
    ),
    "pgn": (
        vssn.PGN,
        {"x_size": 16, "hidden_size": D},
        {
            **{name: of_count(1) for name in ("x_size", "hidden_size", "channels", "embed_size")},
            **{name: of_choice() for name in ("likelihood", "activation", "control", "initial_state")},
            **{"height": of_count(4, optional=True), "logvar_x": of_number(), "control_size": of_count(0)},
            **{"batch_first": of_flag(), **OF_PLACE},
        },
    ),
}


FREE_FRAMES = {
    f"size:_{what}_in_dimension_{dim}": EITHER for what in ("one_more", "one_less", "none") for dim in (0, 1)
}


def models() -> Iterator[Entry]:
    for cls, right, wrong in OF_MODELS.values():
        yield Entry(name_of(cls), cls, right, arguments(**wrong))
    yield from _of_a_model(make("both", torch.float32), "both")
    yield _call_of(make("inferred", torch.float32), {}, "inferred")
    small = vssn.VRNN(X, D, Z, control="both", control_size=U).eval()
    resets = {"resets": torch.zeros(T, B, dtype=torch.bool)}
    yield _call_of(small, resets, "VRNN")
    yield _prepares(small, resets, "VRNN")
    yield Entry(
        name_of(type(small).set_batch_first),
        small.set_batch_first,
        {"batch_first": False},
        arguments(batch_first=of_flag()),
    )
    yield _call_of(vssn.DVBF(X, Z, W, control_size=U, likelihood="bernoulli").eval(), {}, "DVBF")
    rssm = vssn.RSSM(X, D, Z, control_size=U).eval()
    yield _call_of(rssm, {"is_first": torch.zeros(T, B, dtype=torch.bool)}, "RSSM")
    yield from of_world_model(rssm, "vssn.models.rssm.RSSM")
    x = torch.rand(T, B, X)
    yield Entry(
        "vssn.models.rssm.RSSM.encode",
        rssm.encode,
        {"x": x},
        arguments(x=but(of_tensor(x, finite=True), **FREE_FRAMES)),
    )


def more_models() -> Iterator[Entry]:
    for name in (
        "srnn_residual",
        "storn",
        "dkf_external",
        "smoothing",
        "causal",
        "masked",
        "mixture",
        "nade",
        "universal",
    ):
        yield from _of_a_model(make(name, torch.float32), name)
    yield from _of_a_model(make("both", torch.float64, batch_first=True), "both, batch_first")
    yield from _of_a_model(vssn.VRNN(X, D, Z, control="both", control_size=U).eval(), "VRNN")
    yield from _of_a_model(vssn.DVBF(X, Z, W, control_size=U, likelihood="bernoulli").eval(), "DVBF")
    yield from _of_a_model(vssn.RSSM(X, D, Z, control_size=U).eval(), "RSSM")
    for objective in ("iwae", "fivo", "nasmc"):
        yield _call_of(make("both", torch.float32, objective=objective, particles=2), {}, objective, noise=False)


def frames_for(model: Any) -> dict[str, Any]:
    """x in the support, u and a mask, of the model's own layout."""
    like, high = model.a_parameter(), model.likelihood.support.high
    x = torch.rand(T, B, model.x_size, generator=torch.Generator().manual_seed(5)).to(like.dtype)
    x = x.round() if model.likelihood.support.whole else x.clamp(max=high)
    u = normal(T, B, model.control_size).to(like.dtype) if model.control_size else None
    mask = torch.ones(T, B, model.x_size, dtype=torch.bool)
    swap = (lambda part: part.transpose(0, 1).contiguous()) if model.batch_first else lambda part: part
    return {"x": swap(x), "u": None if u is None else swap(u), "lengths": LENGTHS, "mask": swap(mask)}


def of_frames(
    model: Any, right: dict[str, Any], names: tuple[str, ...] = ("x", "u", "lengths", "mask")
) -> list[Argument]:
    u = right["u"]
    wrong = {
        "x": of_tensor(right["x"], finite=not model.masked),
        "u": but(of_choice(optional=True), a_list=EITHER) if u is None else of_tensor(u, finite=True),
        "lengths": of_lengths(LENGTHS, T),
        "mask": of_tensor(right["mask"], optional=True),
    }
    return arguments(**{name: wrong[name] for name in names})


def _call_of(model: Any, more: dict[str, Tensor], told: str, noise: bool = True) -> Entry:
    """A call of the model itself."""
    right = frames_for(model)
    given = of_frames(model, right)
    if noise:
        shapes = model.noise_shapes(T, B)
        drawn = tuple(normal(*shape).to(right["x"]) for shape in shapes)
        if model.batch_first:
            drawn = (*(part.transpose(0, 1).contiguous() for part in drawn[:2]), *drawn[2:])
        state = model.start_state(None, B, right["x"])
        right |= {"noise": drawn, "state": tuple(part.detach() for part in state)}
        given += [*of_noise(drawn, ("eps_w", "eps_z", "eps_0")[: len(drawn)]), *of_state(state._fields, right["state"])]
    right |= more
    factor = [*of_number(), *_of_factor()]
    given += arguments(kl_weight=factor)
    if "coordinated_dropout" in inspect.signature(model.forward).parameters:
        given += arguments(coordinated_dropout=but(of_number(low=0.0, high=1.0), none=EITHER))
    if model.infers_start and "initial_kl_weight" in inspect.signature(model.forward).parameters:
        given += arguments(initial_kl_weight=but(factor, none=EITHER))
    given += [Argument(name, of_tensor(part, optional=True)) for name, part in more.items()]
    return Entry(f"{name_of(type(model).forward)}[{told}]", model, right, given)


def _prepares(model: Any, more: dict[str, Tensor], told: str) -> Entry:
    right = frames_for(model)
    state = model.start_state(None, B, right["x"])
    right |= {"state": tuple(part.detach() for part in state)} | more
    given = [
        *of_frames(model, right),
        *of_state(state._fields, right["state"]),
        *arguments(coordinated_dropout=but(of_number(low=0.0, high=1.0), none=EITHER)),
        *(Argument(name, of_tensor(part, optional=True)) for name, part in more.items()),
    ]
    return Entry(f"{name_of(type(model).prepare)}[{told}]", model.prepare, right, given)


def _of_factor() -> list[Value]:
    one = torch.ones(())
    made: dict[str, Callable[[], Any]] = {
        "a tensor, complex": lambda: one.to(torch.complex64),
        "a tensor, of bool": lambda: one.bool(),
        "a tensor on meta": lambda: one.to("meta"),
        "a tensor, sparse": lambda: one[None].to_sparse(),
        "a tensor of nan": lambda: one * torch.nan,
        "a tensor of infinity": lambda: one * torch.inf,
    }
    return [Value(kind, make) for kind, make in made.items()]


def _of_a_model(model: Any, told: str) -> Iterator[Entry]:
    right = frames_for(model)
    yield _call_of(model, {}, told)
    state = tuple(part.detach() for part in model.start_state(None, B, right["x"]))
    fields = model.start_state(None, B, right["x"])._fields
    yield _prepares(model, {}, told)
    drawn = {"samples": of_count(1, optional=True), "seed": of_seed(optional=True), "memory": of_count(1, size=False)}
    u = right["u"]
    generated = {"steps": T, "batch_size": B, "u": u, "sample": True, "state": state}
    yield Entry(
        f"{name_of(type(model).generate)}[{told}]",
        model.generate,
        generated,
        [
            *arguments(steps=of_count(0), batch_size=but(of_count(0), none=EITHER), sample=of_flag()),
            *of_frames(model, right, ("u",)),
            *of_state(fields, state),
        ],
    )
    own = "vssn.nn.interface.SequenceModel"
    yield Entry(
        f"{own}.forecast[{told}]",
        model.forecast,
        right | {"steps": T, "samples": 2, "u_future": u, "quantiles": [0.5], "seed": 1},
        [
            *of_frames(model, right),
            *arguments(steps=of_count(0), sample=of_flag(), quantiles=of_numbers(), **drawn),
            *(Argument("u_future", part.values) for part in of_frames(model, right, ("u",))),
        ],
    )
    yield Entry(
        f"{own}.impute[{told}]",
        model.impute,
        right | {"samples": 2, "seed": 1},
        [*of_frames(model, right), *arguments(quantiles=of_numbers(), **drawn | {"samples": of_count(1)})],
    )
    yield Entry(
        f"{own}.latents[{told}]",
        model.latents,
        right | {"seed": 1},
        [*of_frames(model, right), *arguments(kind=of_choice(), noise=of_tuple(), **drawn)],
    )
    yield Entry(
        f"{own}.score[{told}]",
        model.score,
        right | {"seed": 1},
        [*of_frames(model, right), *arguments(kind=of_choice(), **drawn | {"samples": of_count(1)})],
    )
    yield Entry(
        f"{own}.filter[{told}]",
        model.filter,
        {"batch_size": B},
        arguments(
            batch_size=of_count(0),
            particles=of_count(1, optional=True),
            samples=of_count(1, optional=True),
            noise=of_tuple(),
            seed=of_seed(optional=True),
        ),
    )
    yield Entry(
        f"{name_of(type(model).set_batch_first)}[{told}]",
        model.set_batch_first,
        {"batch_first": model.batch_first},
        arguments(batch_first=of_flag()),
    )
    yield from _of_filter(model, told)
    yield Entry(
        f"{own}.from_pretrained[{told}]",
        _loading(type(model).from_pretrained, model),
        {"source": "right"},
        arguments(source=but(of_path(), **dict.fromkeys(PLACES, SURVIVED)), revision=[]),
    )
    yield Entry(
        f"vssn.models.pretrained.from_pretrained[{told}]",
        _loading(vssn.from_pretrained, model),
        {"source": "right"},
        arguments(source=but(of_path(), **dict.fromkeys(PLACES, SURVIVED)), revision=[]),
    )
    yield Entry(
        f"{own}.save_pretrained[{told}]",
        _saving(model),
        {"folder": "right"},
        arguments(folder=of_path(kinds=("a null",))),
    )


def _loading(load: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """Of a folder of its own, where none is named."""

    def call(source: Any) -> Any:
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return load(folder if isinstance(source, str) and source == "right" else source)

    return call


def _saving(model: Any) -> Callable[..., Any]:
    def call(folder: Any) -> None:
        with TemporaryDirectory() as own:
            model.save_pretrained(own if isinstance(folder, str) and folder == "right" else folder)

    return call


def _of_filter(model: Any, told: str) -> Iterator[Entry]:
    like = model.a_parameter()
    x = torch.zeros(B, model.x_size, dtype=like.dtype)
    u = None if not model.control_size else torch.zeros(B, model.control_size, dtype=like.dtype)
    mask = torch.ones(B, model.x_size, dtype=torch.bool)
    for kind, options in (("causal", {}), ("particles", {"particles": 3})):
        if kind == "causal" and not model.causal:
            continue

        def run(method: str, options: dict[str, Any] = options, **given: Any) -> Any:
            return getattr(model.filter(B, seed=1, **options), method)(**given)

        of_u = but(of_choice(optional=True), a_list=EITHER) if u is None else of_tensor(u, finite=True)
        of_mask = but(of_tensor(mask, optional=True), **{"size:_a_dimension_less": EITHER})  # B and X are the same
        name = "vssn.inference.streaming.Filter"
        yield Entry(
            f"{name}.step[{told}, {kind}]",
            lambda run=run, **given: run("step", **given),
            {"x": x, "u": u, "mask": mask},
            arguments(
                x=of_tensor(x, finite=not model.masked),
                u=of_u,
                mask=of_mask,
            ),
        )
        yield Entry(
            f"{name}.step[{told}, {kind}, without a mask]",
            lambda run=run, **given: run("step", **given),
            {"x": x, "u": u},
            arguments(x=of_tensor(x, finite=not model.masked), u=of_u),
        )
        yield Entry(
            f"{name}.predict[{told}, {kind}]",
            lambda run=run, **given: run("predict", **given),
            {"u": u},
            arguments(u=of_u),
        )
        which = torch.ones(B, dtype=torch.bool)
        of_which = [
            value._replace(
                verdict=EITHER if value.kind in ("a list", "of torch.int64", "of torch.int32") else value.verdict
            )
            for value in of_tensor(which, optional=True)
        ]
        numbers = {"beyond": [B], "negative": [-1], "of texts": ["0"], "of flags": [True], "huge": [2**62]}
        of_which += [Value(f"numbers, {kind}", lambda value=value: value) for kind, value in numbers.items()]
        yield Entry(
            f"{name}.reset[{told}, {kind}]",
            lambda run=run, **given: run("reset", **given),
            {"which": which},
            arguments(which=of_which),
        )


# What a model is made of: called by vssn with what has been checked. Whatever is given to it, the process lives.
INSIDE = (
    *(
        "infer",
        "infer_prefixes",
        "infer_noise",
        "infer_initial",
        "look_ahead",
        "look_at",
        "draw",
        "step_a",
        "step_from_prior",
    ),
    *(
        "control",
        "make_controls",
        "select_controls",
        "parents",
        "frames",
        "decode",
        "decode_particles",
        "behind",
        "propose",
    ),
    *(
        "start_state",
        "make_state",
        "initial_state",
        "map_initial",
        "draw_noise",
        "check_noise",
        "noise_shapes",
        "per_frame",
    ),
    *(
        "particles",
        "floats_per_frame",
        "filter_steps",
        "carried_a",
        "inputs_of_chain",
        "prior_of",
        "hold",
        "initial",
        "start",
    ),
)


def inside() -> Iterator[Entry]:
    """With the arguments of a real call, each wrong in turn."""
    options: dict[str, Any] = {"control": "both", "control_size": U}
    for model in (
        make("both", torch.float32),
        make("inferred_masked", torch.float32),
        make("causal_both_residual", torch.float32),
        vssn.VRNN(X, D, Z, **options).eval(),
        vssn.DVBF(X, Z, W, control_size=U, likelihood="bernoulli").eval(),
        vssn.RSSM(X, D, Z, control_size=U).eval(),
    ):
        for owner in (model, getattr(model, "layer", None)):
            if owner is not None:
                yield from _recorded(owner, model)


def _recorded(owner: Any, model: Any) -> Iterator[Entry]:
    """Entries of the methods of `owner` that the uses of the model call."""
    calls: dict[str, inspect.BoundArguments] = {}

    def watching(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls.setdefault(name, inspect.signature(method).bind(*args, **more))
            return method(*args, **more)

        return call

    watched: list[str] = []
    for name in INSIDE:
        if inspect.ismethod(getattr(owner, name, None)):
            vars(owner)[name] = watching(name, getattr(owner, name))
            watched.append(name)
    try:
        _use(model)
    finally:
        for name in watched:
            del vars(owner)[name]
    for name, bound in calls.items():
        method = getattr(owner, name)
        given: list[Argument] = []
        for parameter, value in bound.arguments.items():
            given += _surviving(parameter, value)
        told = f"{type(model).__name__}, {type(owner).__name__}"
        yield Entry(f"{name_of(getattr(type(owner), name))}[{told}]", method, dict(bound.arguments), given)


def _use(model: Any) -> None:
    right = frames_for(model)
    x, u = right["x"], right["u"]
    model(**right)
    model(
        **right,
        state=tuple(model.start_state(None, B, x)),
        noise=tuple(normal(*shape) for shape in model.noise_shapes(T, B)),
    )
    model.forecast(**right, steps=2, samples=2, u_future=None if u is None else u[:2])
    model.latents(**right, kind="filter")
    model.score(**right, kind="predictive")
    model.filter(B, particles=2).step(x[0], u if u is None else u[0])
    if model.causal:
        model.filter(B, samples=2).step(x[0], u if u is None else u[0])
        model.filter(B).step(x[0], u if u is None else u[0])
    for bound in importance.BOUNDS:
        importance.sequence_bounds(model, **right, bound=bound, particles=2)


def _unchecked(tensor: Tensor) -> list[Value]:
    """Without sizes that a loop of Python would take for ever."""
    return [
        value for value in surviving(of_tensor(tensor.detach())) if not any(str(huge) in value.kind for huge in HUGE)
    ]


def _surviving(parameter: str, value: Any) -> list[Argument]:
    if isinstance(value, Tensor):
        return [Argument(parameter, _unchecked(value))]
    given = [Argument(parameter, surviving(of_tuple() if isinstance(value, tuple) else of_count(0)))]
    if isinstance(value, tuple):
        given += [
            in_tuple(parameter, place, _unchecked(part), parameter)
            for place, part in enumerate(value)
            if isinstance(part, Tensor)
        ]
    return given
