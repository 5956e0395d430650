"""Every argument of the public functions and methods, wrong in every way: the error is one line that starts with the
argument's own name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_models import LENGTHS, B, D, T, U, W, X, Z, make, zeros
from torch import Tensor, nn

from vssn import State, VSSNLayer
from vssn.data.batching import (
    LengthBucketSampler,
    SequenceBatch,
    SequenceDataset,
    collate_sequences,
    sequence_loader,
)
from vssn.inference.filtering import latent_states, one_step_predictions, prediction_error, rollouts, squared_errors
from vssn.inference.importance import sequence_bounds
from vssn.inference.particles import resample
from vssn.inference.scoring import draw_noise, evaluate, evaluate_bound, sequence_sums, summarize
from vssn.training.checkpoints import load_model, read_checkpoint

MODEL = make("both", torch.float32)
LAYER = VSSNLayer(X, D, Z, W, control="both", control_size=U).eval()
DATASET = SequenceDataset([zeros(4, X), zeros(2, X)], [zeros(4, U), zeros(2, U)])
BATCH = SequenceBatch(zeros(T, B, X), LENGTHS, zeros(T, B, U))


def quantised(good: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch means to leave them out one day
        return torch.quantize_per_tensor(good, 0.1, 0, torch.quint8)


def of_tensor(good: Tensor) -> dict[str, Any]:
    """Wrong values for an argument that takes `good`."""
    other = {torch.float32: torch.float64, torch.int64: torch.int32, torch.bool: torch.float32}[good.dtype]
    return {
        "a number": 3,
        "a text": "x",
        "an array": good.numpy(),
        "a list": good.tolist(),
        "rank": good[0],
        "more dimensions": good[None],
        "size": torch.cat((good, good[..., :1]), -1),
        "dtype": good.to(other),
        "integers": good.to(torch.int16),
        "device": good.to("meta"),
        "sparse": good.to_sparse(),
        **(
            {"mkldnn": good.to_mkldnn()} if good.dtype == torch.float32 and torch.backends.mkldnn.is_available() else {}
        ),
        **({"quantised": quantised(good)} if good.is_floating_point() else {}),
    }


REQUIRED: dict[str, Any] = {"none": None}
COUNT = {"a text": "1", "a fraction": 1.5, "negative": -1, "a flag": True, "none": None}
FLAG = {"a text": "yes", "a number": 1, "none": None}
CHOICE = {"another": "some", "none": None, "a number": 3}
FACTOR = {"a text": "1", "none": None, "a flag": True, "nan": float("nan"), "a vector": zeros(2)}
A_MODEL = {"another module": nn.Linear(2, 2), "none": None, "a text": "vssn"}
A_LOADER = {"a number": 3, "none": None, "of tensors": [zeros(T, B, X)], "empty": []}
OF_X = of_tensor(zeros(T, B, X)) | REQUIRED
OF_U = of_tensor(zeros(T, B, U)) | REQUIRED | {"of x's steps": zeros(T - 1, B, U), "batch": zeros(T, B - 1, U)}
OF_LENGTHS = of_tensor(LENGTHS) | {"rank": torch.tensor(1), "beyond T": LENGTHS + T, "negative": LENGTHS - 4}
OF_MASK = of_tensor(torch.ones(T, B, X, dtype=torch.bool))
OF_FUTURE = of_tensor(zeros(3, B, U)) | REQUIRED | {"steps": zeros(2, B, U), "batch": zeros(3, B + 1, U)}
STATE = (zeros(B, D), zeros(B, Z), zeros(B, X))
NOISE = (zeros(T, B, W), zeros(T, B, Z))


def in_parts(name: str, parts: tuple[Tensor, ...], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Wrong values for a tuple, by the beginning of what is said of them."""
    wrong: dict[str, dict[str, Any]] = {
        name: {"a tensor": parts[0], "a text": name, "short": parts[:1], "long": parts * 2}
    }
    for place, part in enumerate(names):
        wrong[f"{name}'s {part}"] = {
            kind: (*parts[:place], value, *parts[place + 1 :])
            for kind, value in (of_tensor(parts[place]) | REQUIRED).items()
        }
    return wrong


OF_STATE = in_parts("state", STATE, ("d", "z", "x_last"))
OF_NOISE = in_parts("noise", NOISE, ("eps_w", "eps_z"))
DRAWS = {"samples": {k: v for k, v in COUNT.items() if k != "none"} | {"zero": 0}, "seed": COUNT}
BOUND = {"bound": CHOICE, "particles": COUNT | {"zero": 0}, "seed": COUNT, "memory": COUNT | {"zero": 0}}
SEQUENCES = {
    "a number": 3,
    "none": None,
    "a text": "abc",
    "a mapping": {0: zeros(3, X)},
    "one sequence": zeros(5, X),
    "a vector": zeros(5),
    "an array of one sequence": np.zeros((5, X)),
    "a scalar": torch.tensor(1.0),
    "of vectors": [zeros(5)],
    "of numbers": [1.0, 2.0],
    "of lists": [[0.0, 1.0]],
    "of objects": [np.array([["a"]])],
    "of complex numbers": [torch.zeros(2, 2, dtype=torch.complex64)],
    "nothing": [],
}

# Of each function: what it takes when all is right, and by the name that an error must start with what is wrong.
Case = tuple[Callable[..., Any], dict[str, Any], dict[str, dict[str, Any]]]
CASES: dict[str, Case] = {
    "VSSN.forward": (
        MODEL,
        {"x": BATCH.x, "u": BATCH.u},
        {"x": OF_X, "u": OF_U, "lengths": OF_LENGTHS, "mask": OF_MASK, "kl_weight": FACTOR, **OF_STATE, **OF_NOISE},
    ),
    "VSSN.prepare": (
        MODEL.prepare,
        {"x": BATCH.x, "u": BATCH.u},
        {"x": OF_X, "u": OF_U, "lengths": OF_LENGTHS, "mask": OF_MASK, **OF_STATE},
    ),
    "VSSN.generate": (
        MODEL.generate,
        {"steps": T, "batch_size": B, "u": BATCH.u},
        {"steps": COUNT, "batch_size": COUNT, "u": OF_U, "sample": FLAG, **OF_STATE},
    ),
    "VSSN.forecast": (
        MODEL.forecast,
        {"x": BATCH.x, "u": BATCH.u, "steps": 3, "u_future": zeros(3, B, U)},
        {
            **{"x": OF_X, "u": OF_U, "u_future": OF_FUTURE, "lengths": OF_LENGTHS, "mask": OF_MASK},
            **{"steps": COUNT, "sample": FLAG},
        },
    ),
    "VSSNLayer.forward": (
        LAYER,
        {"x": BATCH.x, "u": BATCH.u},
        {"x": OF_X, "u": OF_U, "lengths": OF_LENGTHS, **OF_STATE, **OF_NOISE},
    ),
    "latent_states": (
        latent_states,
        {"model": MODEL, "x": BATCH.x, "u": BATCH.u},
        {"model": A_MODEL, "x": OF_X, "u": OF_U, "lengths": OF_LENGTHS, "inference": CHOICE, **DRAWS},
    ),
    "one_step_predictions": (
        one_step_predictions,
        {"model": MODEL, "x": BATCH.x, "u": BATCH.u},
        {"model": A_MODEL, "x": OF_X, "u": OF_U, "lengths": OF_LENGTHS, **DRAWS},
    ),
    "rollouts": (
        rollouts,
        {"model": MODEL, "x": BATCH.x, "u": BATCH.u, "steps": 3, "u_future": zeros(3, B, U)},
        {"model": A_MODEL, "x": OF_X, "u": OF_U, "u_future": OF_FUTURE, "steps": COUNT | {"zero": 0}, **DRAWS},
    ),
    "squared_errors": (
        squared_errors,
        {"predicted": BATCH.x, "truth": BATCH.x},
        {
            "truth": {kind: value for kind, value in OF_X.items() if kind in ("a text", "an array", "rank", "none")},
            "predicted": {"a text": "x", "an array": BATCH.x.numpy(), "one feature": zeros(T, B, 1), "none": None},
            "batch_first": FLAG,
        },
    ),
    "prediction_error": (
        prediction_error,
        {"predicted": zeros(T - 1, B, X), "x": BATCH.x},
        {
            "x": {"a text": "x", "an array": BATCH.x.numpy(), "rank": zeros(T, B), "none": None},
            "predicted": {"a text": "x", "as x": BATCH.x, "one sequence": zeros(T - 1, 1, X), "none": None},
            "lengths": OF_LENGTHS,
            "batch_first": FLAG,
        },
    ),
    "sequence_bounds": (
        sequence_bounds,
        {"model": MODEL, "x": BATCH.x, "u": BATCH.u, "particles": 2},
        {
            **{"model": A_MODEL, "x": OF_X, "u": OF_U, "lengths": OF_LENGTHS, "mask": OF_MASK, "first_index": COUNT},
            **{"resampling": CHOICE, "ess_threshold": {k: v for k, v in FACTOR.items() if k != "a vector"}},
            **BOUND,
        },
    ),
    "resample": (
        resample,
        {"weights": torch.full((3, 2), 1 / 3), "uniforms": torch.rand(3, 2)},
        {
            "weights": {"a text": "x", "rank": zeros(3), "none": None},
            "uniforms": {"a text": "x", "rank": zeros(3), "rows": zeros(2, 2), "columns": zeros(3, 3), "none": None},
        },
    ),
    "evaluate": (
        evaluate,
        {"model": MODEL, "loader": [BATCH]},
        {"model": A_MODEL, "loader": A_LOADER, "samples": COUNT | {"zero": 0}, "seed": COUNT},
    ),
    "evaluate_bound": (
        evaluate_bound,
        {"model": MODEL, "loader": [BATCH], "particles": 2},
        {"model": A_MODEL, "loader": A_LOADER, **BOUND},
    ),
    "draw_noise": (
        draw_noise,
        {"model": MODEL, "x": BATCH.x, "generator": torch.Generator()},
        {
            "model": A_MODEL,
            "x": {"a text": "x", "an array": BATCH.x.numpy(), "rank": zeros(T, B), "none": None},
            "generator": {"a seed": 3, "none": None},
        },
    ),
    "sequence_sums": (
        sequence_sums,
        {"output": MODEL(BATCH.x, BATCH.u), "lengths": LENGTHS},
        {"output": {"a tensor": BATCH.x, "none": None}, "lengths": {"a list": [1], "size": LENGTHS[:2], "none": None}},
    ),
    "summarize": (
        summarize,
        {"sums": torch.ones(2, 5)},
        {"sums": {"a list": [1], "rank": zeros(5), "size": zeros(2, 4)}},
    ),
    "read_checkpoint": (read_checkpoint, {"path": __file__}, {"path": {"a number": 3, "none": None}}),
    "load_model": (load_model, {"path": __file__}, {"path": {"a number": 3, "none": None}}),
    "SequenceDataset": (
        SequenceDataset,
        {"sequences": [zeros(4, X), zeros(2, X)]},
        {
            "sequences": SEQUENCES,
            "controls": {k: v for k, v in SEQUENCES.items() if k != "none"} | {"of one": [zeros(4, U)]},
            "lengths": {"a number": 3, "of one": [4]},
            "transform": {"a text": "up"},
            "seed": COUNT,
        },
    ),
    "collate_sequences": (
        collate_sequences,
        {"items": [DATASET[0]]},
        {"items": {"none": None, "nothing": [], "a tensor": zeros(3, X), "of tensors": [zeros(3, X)]}},
    ),
    "LengthBucketSampler": (
        LengthBucketSampler,
        {"dataset": DATASET, "batch_size": 2, "shuffle": True},
        {
            **{"dataset": {"a list": [zeros(3, X)], "none": None}, "batch_size": COUNT | {"zero": 0}, "seed": COUNT},
            **{"shuffle": FLAG, "pool_batches": COUNT | {"zero": 0}},
        },
    ),
    "sequence_loader": (
        sequence_loader,
        {"dataset": DATASET, "batch_size": 2},
        {
            **{"dataset": {"a list": [zeros(3, X)], "none": None}, "batch_size": COUNT | {"zero": 0}, "seed": COUNT},
            **{"shuffle": FLAG, "pool_batches": COUNT | {"zero": 0}, "epoch": COUNT, "num_workers": COUNT},
            **{"pin_memory": FLAG},
        },
    ),
}


def wrong_calls() -> Iterator[Any]:
    for function, (_, _, arguments) in CASES.items():
        for name, values in arguments.items():
            for kind, value in values.items():
                yield pytest.param(function, name, value, id=f"{function}-{name}-{kind}")


@pytest.mark.parametrize(("function", "name", "value"), list(wrong_calls()))
def test_an_error_starts_with_the_arguments_name(function: str, name: str, value: Any) -> None:
    call, right, _ = CASES[function]
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**right | {name.partition("'")[0]: value})
    message = str(caught.value)
    assert message.startswith((f"{name} ", f"{name}[")), message
    assert "\n" not in message


@pytest.mark.parametrize("function", [name for name in CASES if name not in ("read_checkpoint", "load_model")])
def test_what_the_table_calls_right_is_right(function: str) -> None:
    call, right, _ = CASES[function]
    call(**right)


SAID: list[tuple[str, dict[str, Any], str]] = [
    (
        "VSSN.forward",
        {"u": zeros(T, B, U).double()},
        "u must be torch.float32 as the parameters are, got torch.float64; convert it with .to(torch.float32)",
    ),
    (
        "VSSN.forward",
        {"x": np.zeros((T, B, X))},
        "x must be a torch.Tensor, got a NumPy array of float64; convert it with torch.from_numpy",
    ),
    (
        "VSSN.forward",
        {"mask": np.ones((T, B), bool)},
        "mask must be a bool torch.Tensor, got a NumPy array of bool; convert it with torch.from_numpy",
    ),
    (
        "VSSN.forward",
        {"x": zeros(T, B, X).to("meta")},
        "x must be on cpu as the parameters are, got meta; move it with .to('cpu')",
    ),
    (
        "VSSN.forward",
        {"state": (STATE[0].double(), *STATE[1:])},
        "state's d must be torch.float32 as the parameters are",
    ),
    (
        "VSSN.forward",
        {"noise": (NOISE[0], NOISE[1].double())},
        "noise's eps_z must be torch.float32 as the parameters are",
    ),
    ("VSSN.forward", {"lengths": LENGTHS + 1}, "lengths must lie in [0, T] = [0, 5], got 6"),
    ("VSSN.forecast", {"u_future": None}, "u_future is missing: this model has an external control of size 2"),
    (
        "VSSN.forecast",
        {"u_future": zeros(2, B, U)},
        "u_future must have shape [steps, B, U] = [3, 4, 2], got [2, 4, 2]",
    ),
    (
        "SequenceDataset",
        {"sequences": zeros(7)},
        "sequences must be a list of tensors [T, X], or one tensor [N, T, X], got one of shape [7]",
    ),
]


@pytest.mark.parametrize(("function", "wrong", "message"), SAID)
def test_what_is_said(function: str, wrong: dict[str, Any], message: str) -> None:
    call, right, _ = CASES[function]
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**right | wrong)
    assert str(caught.value).startswith(message)


def test_a_model_without_control_names_the_argument_that_came() -> None:
    model = make("vssn", torch.float32)
    for call in (model.forecast, lambda *given, **more: rollouts(model, *given, **more)):
        with pytest.raises(ValueError, match=r"^u_future must be None: this model has no external control"):
            call(BATCH.x, 3, u_future=zeros(3, B, U))


def test_half_precision_takes_a_float32_d() -> None:
    """As the op does; z and x_last join the frames, and must be as they are."""
    model = make("vssn", torch.bfloat16)
    state = State(STATE[0], STATE[1].bfloat16(), STATE[2].bfloat16())
    assert model(BATCH.x.bfloat16(), state=state).loss.isfinite()
    with pytest.raises(TypeError, match=r"^state's z must be torch.bfloat16"):
        model(BATCH.x.bfloat16(), state=state._replace(z=STATE[1]))


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float64", ">f4", "int16"])
def test_a_dataset_takes_arrays(dtype: str) -> None:
    arrays = [np.arange(6).reshape(3, 2).astype(dtype), np.arange(2).reshape(1, 2).astype(dtype)]
    controls = [np.ones((3, 1)), np.zeros((1, 1))]
    arrays[0].flags.writeable = False  # as those of a memory map are
    want = [torch.tensor(array.astype("float32")) for array in arrays]
    batch = next(iter(sequence_loader(SequenceDataset(arrays, controls), 2)))
    assert batch.lengths.tolist() == [3, 1]
    assert batch.u is not None
    assert batch.u[:, 0].eq(1).all()
    assert batch.x.equal(collate_sequences([(x, None) for x in want]).x)
    whole = np.ones((4, 3, 2), dtype)[:, ::-1]
    assert next(iter(sequence_loader(SequenceDataset(whole), 4))).x.equal(torch.ones(3, 4, 2))
