"""Calls of layers with bad input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from calls import (
    COUNTED,
    OF_PLACE,
    Argument,
    Entry,
    arguments,
    in_tuple,
    name_of,
    normal,
    of_noise,
    of_state,
    zeros,
)
from small_models import LENGTHS, B, D, T, U, W, X, Z
from torch import nn
from wrong_values import (
    EITHER,
    Value,
    but,
    of_choice,
    of_count,
    of_flag,
    of_lengths,
    of_module,
    of_number,
    of_tensor,
    of_tuple,
    surviving,
)

import vssn

GRU_SIZES = {"input_size": of_count(1), "hidden_size": of_count(1), "num_layers": of_count(1)}
GRU_OPTIONS = {
    **GRU_SIZES,
    **{"bias": of_flag(), "batch_first": of_flag(), "bidirectional": but(of_flag(), one=EITHER, zero=EITHER)},
    **{"dropout": of_number(low=0.0, high=1.0), "proj_size": [Value("a number", lambda: 3)], **OF_PLACE},
}
STATE = (normal(B, D), normal(B, Z), zeros(B, X))
NOISE = (normal(T, B, W), normal(T, B, Z))


def layers() -> Iterator[Entry]:
    for cls in (vssn.GRU, vssn.TorchGRU):
        yield Entry(name_of(cls), cls, {"input_size": 3, "hidden_size": 4}, arguments(**GRU_OPTIONS))
        for options in ({}, {"bidirectional": True, "batch_first": True, "num_layers": 2}):
            yield _of_gru(cls(X, D, **options).eval())
    yield _of_packed(vssn.GRU(X, D).eval())
    yield from _of_vssn_layer()
    yield from _of_rssm_layer()
    yield Entry(
        "vssn.nn.replace.replace_gru",
        vssn.replace_gru,
        {"model": nn.Sequential(nn.Linear(2, 2))},
        arguments(model=of_module(), to=[*of_module(), Value("another class", lambda: nn.LSTM)]),
    )


def _of_gru(gru: vssn.GRU) -> Entry:
    shape = (B, T, X) if gru.batch_first else (T, B, X)
    x, hx = normal(*shape), normal(gru.num_layers * (2 if gru.bidirectional else 1), B, D)
    right = {"input": x, "hx": hx, "lengths": LENGTHS}
    wrong = {
        # More frames are fine where none of them is asked for.
        "input": but(of_tensor(x, vmap=True), **{f"size:_one_more_in_dimension_{int(gru.batch_first)}": EITHER}),
        "hx": of_tensor(hx, optional=True, vmap=True),
        "lengths": of_lengths(LENGTHS, T, vmap=True),
    }
    told = f"{type(gru).__name__}, {'batch_first' if gru.batch_first else 'time-major'}"
    return Entry(f"vssn.nn.gru.GRU.forward[{told}]", gru, right, arguments(**wrong))


def _of_packed(gru: vssn.GRU) -> Entry:
    packed = nn.utils.rnn.pack_padded_sequence(normal(T, B, X), torch.tensor([5, 1, 3, 2]), enforce_sorted=False)
    parts: dict[int, list[Value]] = {
        0: of_tensor(packed.data),
        1: [*of_lengths(packed.batch_sizes, B), Value("empty", lambda: torch.zeros(0, dtype=torch.int64))],
        2: of_lengths(packed.sorted_indices, B),
        3: of_lengths(packed.unsorted_indices, B),
    }
    given = [in_tuple("input", place, surviving(values), "input") for place, values in parts.items()]
    hx = normal(1, B, D)
    given += arguments(hx=of_tensor(hx, optional=True), lengths=[Value("given", lambda: LENGTHS)])
    return Entry("vssn.nn.gru.GRU.forward[packed]", gru, {"input": packed, "hx": hx}, given)


def _of_vssn_layer() -> Iterator[Entry]:
    sizes = {"input_size": X, "hidden_size": D, "latent_size": Z, "noise_size": W}
    wrong = {
        "input_size": of_count(1),
        **{name: COUNTED[name] for name in ("hidden_size", "latent_size", "noise_size")},
        **LAYER_OPTIONS,
    }
    yield Entry(name_of(vssn.VSSNLayer), vssn.VSSNLayer, sizes, arguments(**wrong))
    layer = vssn.VSSNLayer(X, D, Z, W, control="both", control_size=U).eval()
    x, u = normal(T, B, X), normal(T, B, U)
    right = {"x": x, "u": u, "lengths": LENGTHS, "state": STATE, "noise": NOISE}
    wrong = {"x": of_tensor(x, finite=True), "u": of_tensor(u, finite=True), "lengths": of_lengths(LENGTHS, T)}
    given = [*arguments(**wrong), *of_state(("d", "z", "x_last"), STATE), *of_noise(NOISE)]
    yield Entry("vssn.nn.layer.VSSNLayer.forward", layer, right, given)


LAYER_OPTIONS = {
    "control": of_choice(),
    "control_size": of_count(0),
    "mlp_size": of_count(1, optional=True),
    "backward_size": of_count(1, optional=True),
    "activation": of_choice(),
    "residual_posterior": of_flag(),
    "universal": of_choice(),
    "prior_std": of_number(low=0.0),
    "min_logvar": of_number(),
    "initial_state": of_choice(optional=True),
    "initial_size": of_count(1, optional=True),
    "learn_initial_state": of_flag(),
    "noise_smoothing": of_flag(),
    "inference": of_choice(),
    "batch_first": of_flag(),
    **OF_PLACE,
}


def _of_rssm_layer() -> Iterator[Entry]:
    right: dict[str, Any] = {"embed_size": X, "action_size": U, "hidden_size": D, "latent_size": Z}
    wrong = {
        **{name: of_count(1) for name in ("embed_size", "hidden_size", "latent_size")},
        **{
            "action_size": of_count(0),
            "mlp_size": of_count(1, optional=True),
            "joint_size": of_count(1, optional=True),
        },
        **{name: of_choice() for name in ("activation", "scale", "latent", "initial_state")},
        **{"min_std": of_number(low=0.0), "min_logvar": of_number(), "unimix": of_number(low=0.0, high=1.0)},
        **{"classes": of_count(2), **OF_PLACE},
    }
    yield Entry(name_of(vssn.RSSMLayer), vssn.RSSMLayer, right, arguments(**wrong))
    layer = vssn.RSSMLayer(X, U, D, Z).eval()
    yield from of_world_model(layer, "vssn.nn.rssm_layer.RSSMLayer")
    embed, eps = normal(T, B, X), normal(T, B, Z)
    inside = {
        "embed": embed,
        "action": normal(T, B, U),
        "eps": eps,
        "start": None,
        "is_first": None,
        "lengths": LENGTHS,
    }
    yield Entry("vssn.nn.rssm_layer.RSSMLayer.forward", layer, inside, arguments(**{
        "embed": surviving(of_tensor(embed)),
        "action": surviving(of_tensor(inside["action"])),
        "eps": surviving(of_tensor(eps)),
        "start": surviving(of_tuple()),
        "is_first": surviving(of_tensor(torch.zeros(T, B, dtype=torch.bool))),
        "lengths": surviving(of_lengths(LENGTHS, T)),
    }))  # fmt: skip
    step = {"h": normal(B, D), "z": normal(B, Z), "action": normal(B, U), "eps": normal(B, Z)}
    yield Entry(
        "vssn.nn.rssm_layer.RSSMLayer.step_from_prior",
        layer.step_from_prior,
        step,
        arguments(**{name: surviving(of_tensor(part)) for name, part in step.items()}),
    )
    yield Entry(
        "vssn.nn.rssm_layer.RSSMLayer.start",
        layer.start,
        {"batch": B, "like": embed},
        arguments(batch=surviving(of_count(0)), like=surviving(of_tensor(embed))),
    )
    state = layer.initial(B)
    yield Entry("vssn.nn.rssm_states.RSSMState.at", state.at, {"step": 0}, arguments(step=surviving(of_count(0))))


def of_world_model(model: Any, name: str) -> Iterator[Entry]:
    """Of RSSMLayer and of RSSM."""
    embed, action, first = normal(T, B, X), normal(T, B, U), torch.zeros(T, B, dtype=torch.bool)
    noise, state = normal(T, B, Z), model.initial(B)
    names = ("mean", "std", "stoch", "deter")
    parts = [Argument("state", of_tuple())]
    for place, part in enumerate(names):
        values = of_tensor(state[place], finite=True)
        parts.append(in_tuple("state", place, values if place > 1 else surviving(values), f"state's {part}"))
    right: dict[str, Any] = {"embed": embed, "action": action, "is_first": first, "state": state, "noise": noise}
    given = arguments(
        embed=of_tensor(embed, finite=True),
        action=of_tensor(action, finite=True),
        is_first=of_tensor(first, optional=True),
        noise=of_tensor(noise, optional=True, finite=True),
    )
    yield Entry(f"{name}.observe", model.observe, right, [*given, *parts])
    ahead: dict[str, Any] = {"action": action, "state": state, "steps": None, "noise": noise}
    given = arguments(
        action=but(of_tensor(action, finite=True), size=EITHER),
        steps=[*of_count(0, optional=True), Value("another number", lambda: T + 1)],
        noise=of_tensor(noise, optional=True, finite=True),
    )
    yield Entry(f"{name}.imagine", model.imagine, ahead, [*given, *_required(parts)])
    yield Entry(f"{name}.initial", model.initial, {"batch_size": B}, arguments(batch_size=of_count(0)))
    posterior, prior = model.observe(embed, action)
    losses = {"posterior": posterior, "prior": prior}
    wrong = [
        *arguments(
            balance=of_number(optional=True, low=0.0, high=1.0), free_bits=of_number(low=0.0), average=of_flag()
        ),
        *(Argument(parameter, of_tuple(optional=False)) for parameter in losses),
        *(
            in_tuple(parameter, place, of_tensor(losses[parameter][place].detach()), f"{parameter}'s {names[place]}")
            for parameter in losses
            for place in (0, 1)
        ),
    ]
    yield Entry(f"{name}.kl_loss", model.kl_loss, losses, wrong)


def _required(parts: list[Argument]) -> list[Argument]:
    return [parts[0]._replace(values=of_tuple(optional=False)), *parts[1:]]
