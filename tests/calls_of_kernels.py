"""Calls of the ops with bad input."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from calls import (
    Argument,
    Entry,
    arguments,
    in_tuple,
    name_of,
)
from wrong_values import (
    EITHER,
    HUGE,
    Value,
    but,
    of_choice,
    of_flag,
    of_lengths,
    of_number,
    of_tensor,
    of_tuple,
)

import vssn_kernels
from vssn_kernels.testing import OPS, ROWS, Sample, find_sample

BACKEND = [value for value in of_choice(optional=True) if value.kind != "no letters"]
NUMBERS = {"min_logvar": of_number(), "min_std": of_number(low=0.0)}
# Sizes that are read from the argument, or may be above what others have.
FREE = {
    ("gru_sequence", "gates_x"): ("size: one more in dimension 0",),  # T is its own, and lengths may be below it
    ("gru_packed", "h0"): ("size: one more in dimension 0", "size: one less in dimension 0"),  # B, above batch sizes
}


def kernels() -> Iterator[Entry]:
    for op in OPS:
        yield _of_op(op, torch.float32)
        if "weights" in inspect.signature(getattr(vssn_kernels, op)).parameters:
            yield _of_one_weight(op)
        yield _huge(op)
    yield Entry("vssn_kernels.backend.table.use_backend", _in_backend, {"name": "cpu"}, arguments(name=of_choice()))
    yield Entry(
        "vssn_kernels.backend.memory.keep_memory", vssn_kernels.keep_memory, {"keep": False}, arguments(keep=of_flag())
    )


def more_kernels() -> Iterator[Entry]:
    for op in OPS:
        for backend in ("reference", "cpu"):
            for dtype in (torch.float64, torch.bfloat16):
                yield _of_op(op, dtype, backend)
        yield _of_op(op, torch.float32, "reference", requires_grad=True)
        yield _of_op(op, torch.float32, "cpu", requires_grad=True)


def _of_one_weight(op: str) -> Entry:
    """With the weights of all inputs in one tensor."""
    entry = _of_op(op, torch.float32)
    weight = torch.cat(entry.right["weights"], 1)
    wrong = of_tensor(weight, vmap=True)
    return entry._replace(
        name=f"{entry.name[:-1]}, one weight]",
        right=entry.right | {"weights": weight},
        arguments=arguments(weights=wrong),
    )


# Of each op the tensors by the letters of their sizes.
LETTERS = {
    "gru_sequence": "gates_x T,B,3H h0 B,H weight_hh 3H,H bias_hh 3H",
    "gru_packed": "gates_x N,3H h0 B,H weight_hh 3H,H bias_hh 3H",
    "posterior_sequence": "context T,B,M z0 B,Z eps T,B,Z weight_z M,Z weight_out 2Z,M bias_out 2Z",
    "interleaved_sequence": "gates_x T,B,3H embed_context T,B,E context T,B,M h0 B,H z0 B,Z eps T,B,Z weight_embed E,Z"
    " weight_zh 3H,E weight_hh 3H,H bias_hh 3H weight_h M,H weight_out 2Z,M bias_out 2Z",
    "gaussian_rsample_kl": "mu N,Z logvar N,Z eps N,Z",
    "gaussian_kl": "mu N,Z logvar N,Z",
    "bernoulli_log_prob": "logits N,X x N,X",
    "mlp": "inputs N,K weights M,K bias M weight_out O,M bias_out O",
    "gaussian_mlp": "inputs N,K weights M,K bias M weight_out 2O,M bias_out 2O",
    "split_linear": "inputs N,K weights M,K bias M",
}
LEADING = "TBN"


def _huge(op: str) -> Entry:
    """Calls whose sizes fit each other, in no memory: one number stands for all. Their results, or what a kernel needs
    beside them, have no room; where the leading sizes are 0 there is no result, and perhaps no need."""
    words = LETTERS[op].split()
    forms = dict(zip(words[::2], words[1::2], strict=True))
    letters = sorted(set(re.sub(r"[^A-Z]", "", LETTERS[op])))

    def made(sizes: dict[str, int]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, form in forms.items():
            shape = [int(part[:-1] or 1) * sizes[part[-1]] for part in form.split(",")]
            tensor = torch.zeros(()).expand(shape)
            found[name] = [tensor] if name == "inputs" else tensor
        if op == "gru_packed":
            found["batch_sizes"] = (
                torch.full((1,), sizes["N"]) if sizes["N"] <= sizes["B"] else torch.ones(sizes["N"]).long()
            )
        return found

    small = dict.fromkeys(letters, 2)
    values: dict[str, dict[str, int]] = {}
    for letter in letters:
        for huge in HUGE:
            values[f"{letter} = {huge}"] = small | {letter: huge}
    wide = [letter for letter in letters if letter not in LEADING]
    for size in (2**30, 2**31):
        for one in wide:
            for other in wide:
                sizes = small | {one: size, other: size}
                values[f"{one} = {other} = {size}"] = sizes
                values[f"{one} = {other} = {size}, of nothing"] = sizes | dict.fromkeys(LEADING, 0)

    function = getattr(vssn_kernels, op)
    wrong = [Value(f"size: {kind}", lambda sizes=sizes: made(sizes), EITHER) for kind, sizes in values.items()]
    all_of_them = [Argument("all", wrong, op, lambda right, value: value)]
    return Entry(f"{name_of(function)}[huge]", function, made(small), all_of_them)


def _in_backend(name: Any) -> None:
    with vssn_kernels.use_backend(name):
        pass


def _of_op(op: str, dtype: torch.dtype, backend: str | None = None, requires_grad: bool = False) -> Entry:
    sample = find_sample(op, ROWS[op].rich).to("cpu", dtype, requires_grad)
    call = getattr(vssn_kernels, op)
    right = _arguments_of(sample) | {"backend": backend}
    given: list[Argument] = []
    for name, tensor in sample.tensors.items():
        plain = tensor.detach()
        parameter = re.split(r"[.\[]", name)[0]
        values = of_tensor(plain, optional=name in ("reset_h", "reset_z"), vmap=not requires_grad)
        if name in ("prior_mu", "prior_logvar"):
            values = of_tensor(plain, vmap=not requires_grad)
        free = FREE.get((op, name), ())
        values = [value._replace(verdict=EITHER) if value.kind in free else value for value in values]
        if dtype != torch.float32 and name in ROWS[op].states:
            values = but(values, **{"of_torch.float32": EITHER})
        if parameter == name:
            given.append(Argument(name, values))
        elif "[" in name:
            given.append(in_tuple(parameter, int(name[name.index("[") + 1 : -1]), values, parameter))
        else:
            given.append(in_tuple("prior", vssn_kernels.PriorMean._fields.index(name.partition(".")[2]), values, name))
    steps = len(next(iter(sample.tensors.values())))
    for parameter in inspect.signature(call).parameters:
        if parameter in {argument.parameter for argument in given} - {"inputs", "weights", "prior"}:
            continue
        if parameter in ("inputs", "weights"):
            given.append(Argument(parameter, but(of_tuple(optional=False), a_tensor=EITHER)))
        elif parameter == "prior":
            given.append(Argument(parameter, of_tuple(optional=True)))
        elif parameter == "lengths":
            given.append(Argument(parameter, of_lengths(sample.options["lengths"], steps, vmap=not requires_grad)))
        elif parameter == "batch_sizes":
            values = of_lengths(sample.options["batch_sizes"], 100)
            given.append(Argument(parameter, [*but(values, **{"size:_one": EITHER}), Value("none", lambda: None)]))
        elif parameter == "resets":
            given.append(Argument(parameter, of_tensor(sample.options["resets"], vmap=not requires_grad)))
        elif parameter == "reverse":
            given.append(Argument(parameter, of_flag()))
        elif parameter == "backend":
            given.append(Argument(parameter, BACKEND))
        elif parameter in NUMBERS:
            given.append(Argument(parameter, NUMBERS[parameter]))
        else:
            given.append(Argument(parameter, of_choice()))
    told = ", ".join(filter(None, (str(dtype), backend, "grad" if requires_grad else "")))
    return Entry(f"{name_of(call)}[{told}]", call, right, given)


def _arguments_of(sample: Sample) -> dict[str, Any]:
    """By the names of the public function."""
    right: dict[str, Any] = dict(sample.options)
    prior = [tensor for name, tensor in sample.tensors.items() if name.startswith("prior.")]
    if prior:
        right["prior"] = vssn_kernels.PriorMean(*prior)
    for name, tensor in sample.tensors.items():
        if "[" in name:
            right.setdefault(name.partition("[")[0], []).append(tensor)
        elif not name.startswith("prior."):
            right[name] = tensor
    return right
