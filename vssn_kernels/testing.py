"""What the tests of every op and backend share: sample inputs, tolerances, comparison by name, poisoned memory.

One function per op makes its samples, and `ROWS` has a row for each op; the same samples feed the tests of values, of
gradients and opcheck.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vssn_kernels
from vssn_kernels.activations import ACTIVATIONS, MORE_ACTIVATIONS
from vssn_kernels.backend.table import BACKENDS, ops
from vssn_kernels.reference import bernoulli, gaussian, gru, gru_packed, interleaved, mlp, posterior

HALF = (torch.float16, torch.bfloat16)
FULL = (torch.float32, torch.float64)

# (of outputs, of gradients), as norm(actual - expected) / norm(expected) against the plain reference in float64
TOLERANCES: dict[tuple[str, torch.dtype], tuple[float, float]] = {
    ("reference", torch.float64): (1e-12, 1e-11),
    ("reference", torch.float32): (1e-5, 2e-5),
    ("reference", torch.bfloat16): (5e-3, 2e-2),
    ("reference", torch.float16): (7e-4, 3e-3),
    ("cpu", torch.float64): (1e-12, 1e-11),
    ("cpu", torch.float32): (1e-5, 2e-5),
    ("cpu", torch.bfloat16): (5e-3, 2e-2),
    ("cuda", torch.float32): (1e-5, 2e-5),
    ("cuda", torch.bfloat16): (5e-3, 2e-2),
    ("cuda", torch.float16): (7e-4, 3e-3),
    ("triton", torch.float32): (1e-5, 2e-5),
    ("triton", torch.bfloat16): (5e-3, 2e-2),
    ("triton", torch.float16): (7e-4, 3e-3),
}

Normal = Callable[..., Tensor]  # standard normal numbers of a shape

# ---- Where an op can run -------------------------------------------------------------------------


class Target(NamedTuple):
    """A backend, a device and a dtype that go together on this machine."""

    backend: str
    device: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}-{str(self.dtype).removeprefix('torch.')}"


def targets(*dtypes: torch.dtype) -> list[Target]:
    """Every (backend, device, dtype) of this machine, of these dtypes alone where some are given."""
    found = []
    for name, status in vssn_kernels.backends().items():
        if status == "available":
            for device in _devices(name):
                takes = [dtype for dtype in BACKENDS[name].dtypes if not dtypes or dtype in dtypes]
                found += [Target(name, device, dtype) for dtype in takes]
    return found


def _devices(backend: str) -> list[str]:
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return ["cpu"]
    here = ["cpu", *(name for name in ("cuda", "xpu") if getattr(torch, name).is_available())]
    takes = BACKENDS[backend].devices
    return [device for device in here if takes is None or device in takes]


# ---- Samples -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
    """One call of a public op: its differentiable tensors by name, in the op's order, and its other arguments.

    A tensor of the prior's mean is named prior.context, prior.weight_z, prior.weight_mu or prior.bias_mu; those of a
    list inputs[0], inputs[1], ... and weights[0], ...; reset_h and reset_z are given by name.
    """

    op: str
    name: str
    tensors: dict[str, Tensor]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def to(self, device: str, dtype: torch.dtype, requires_grad: bool = False) -> Sample:
        """Fresh tensors of that device and dtype."""
        moved = {
            name: tensor.detach().to(device, dtype, copy=True).requires_grad_(requires_grad)
            for name, tensor in self.tensors.items()
        }
        options = {k: v.to(device) for k, v in self.options.items() if isinstance(v, Tensor) and k != "batch_sizes"}
        return self.replace(moved, **options)

    def replace(self, tensors: dict[str, Tensor] | None = None, **options: Any) -> Sample:
        """A copy with some tensors or options exchanged."""
        # Not dict | dict, which the compiler of torch 2.6 does not know.
        changed = {**self.tensors, **(tensors or {})}
        return dataclasses.replace(self, tensors=changed, options={**self.options, **options})

    def run(self, backend: str | None = None) -> dict[str, Tensor]:
        """The public op's outputs by name."""
        return self._named(self._call(getattr(vssn_kernels, self.op), backend=backend))

    def run_plain(self) -> dict[str, Tensor]:
        """The outputs of the plain reference, under autograd."""
        return self._named(self._call(ROWS[self.op].plain))

    def _call(self, function: Callable[..., Any], **more: Any) -> Any:
        if any("[" in name for name in self.tensors):
            return function(*self._lists(), **self.options, **more)
        prior = [tensor for name, tensor in self.tensors.items() if name.startswith("prior.")]
        more.update({name: tensor for name, tensor in self.tensors.items() if name.startswith("reset_")})
        own = [tensor for name, tensor in self.tensors.items() if not name.startswith(("prior.", "reset_"))]
        if prior:
            more["prior"] = vssn_kernels.PriorMean(*prior)
        return function(*own, **self.options, **more)

    def _lists(self) -> tuple[Any, ...]:
        """(inputs, weights, the other tensors one by one)"""
        lists = [[t for name, t in self.tensors.items() if name.startswith(part)] for part in ("inputs[", "weights[")]
        return *lists, *(tensor for name, tensor in self.tensors.items() if "[" not in name)

    def _named(self, outputs: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
        several = (outputs,) if isinstance(outputs, Tensor) else outputs
        return dict(zip(ROWS[self.op].outputs, several, strict=True))

    def forward_arguments(self, backend: str, need_backward: bool = False) -> tuple[Any, ...]:
        """The arguments of the registered op vssn::<op>, as the public function calls it."""
        with torch.no_grad(), RecordCalls() as record:
            self.run(backend)
        _, arguments, _ = record.calls[0]
        return _exchanged(registered(self.op), arguments, need_backward=need_backward)

    def backward_arguments(self, backend: str, needs: Sequence[bool] | None = None) -> tuple[Any, ...]:
        """The arguments of the registered op vssn::<op>_backward, for random gradients of the outputs."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.tensors.items()}
        sample, name = self.replace(leaves), f"{registered(self.op)}_backward"
        with RecordCalls() as record:
            outputs = sample.run(backend)
            gradients(sample, outputs, cotangents(outputs))
        ((_, arguments, _),) = [call for call in record.calls if call[0] == name]
        detached = tuple(_detached(argument) for argument in arguments)
        return detached if needs is None else _exchanged(name, detached, needs=list(needs))


def arguments_of(name: str) -> list[str]:
    """The names of the arguments of a registered op."""
    return [argument.name for argument in getattr(torch.ops.vssn, name).default._schema.arguments]


def _exchanged(name: str, arguments: Sequence[Any], **values: Any) -> tuple[Any, ...]:
    """The arguments of a registered op with other values for some, where it has them."""
    named = dict(zip(arguments_of(name), arguments, strict=True))
    return tuple((named | {key: value for key, value in values.items() if key in named}).values())


def gru_sample(normal: Normal, name: str, steps: int, batch: int, hidden: int, **options: Any) -> Sample:
    """Of gru_sequence."""
    tensors = {
        "gates_x": normal(steps, batch, 3 * hidden),
        "h0": normal(batch, hidden),
        "weight_hh": normal(3 * hidden, hidden) / hidden**0.5,
        "bias_hh": normal(3 * hidden) / 2,
    }
    return Sample("gru_sequence", name, tensors, options)


def gru_samples(generator: torch.Generator | None = None) -> list[Sample]:
    """Samples of gru_sequence in float64: odd sizes, one step, T = 0, B = 0, lengths with 0, both directions."""
    sample = partial(gru_sample, _normal(generator))
    return [
        sample("plain", 5, 3, 7),
        sample("reverse", 5, 3, 7, reverse=True),
        sample("lengths", 6, 5, 3, lengths=torch.tensor([4, 0, 6, 1, 5])),
        sample("lengths_reverse", 6, 5, 3, lengths=torch.tensor([4, 0, 6, 1, 5]), reverse=True),
        sample("one", 1, 1, 1),
        sample("wide", 4, 17, 50, lengths=torch.tensor([4, 1, 3, 2, 0, *[4] * 11, 2])),
        sample("tall_reverse", 9, 2, 65, lengths=torch.tensor([9, 7]), reverse=True),
        sample("no_steps", 0, 3, 5),
        sample("no_steps_lengths_reverse", 0, 3, 5, lengths=torch.zeros(3, dtype=torch.int64), reverse=True),
        sample("no_batch", 4, 0, 5),
        sample("no_batch_lengths", 4, 0, 5, lengths=torch.zeros(0, dtype=torch.int64)),
        sample("all_padding", 3, 2, 4, lengths=torch.zeros(2, dtype=torch.int64)),
    ]


def gru_packed_sample(
    normal: Normal, name: str, batch: int, hidden: int, sizes: Sequence[int], **options: Any
) -> Sample:
    """Of gru_packed; sizes: how many rows take each step."""
    tensors = {
        "gates_x": normal(sum(sizes), 3 * hidden),
        "h0": normal(batch, hidden),
        "weight_hh": normal(3 * hidden, hidden) / hidden**0.5,
        "bias_hh": normal(3 * hidden) / 2,
    }
    return Sample("gru_packed", name, tensors, {"batch_sizes": torch.tensor(sizes, dtype=torch.int64), **options})


def gru_packed_samples(generator: torch.Generator | None = None) -> list[Sample]:
    """Samples of gru_packed in float64: widths that change at every step, never, at once, down to 0; nothing at all."""
    sample = partial(gru_packed_sample, _normal(generator))
    return [
        sample("plain", 4, 7, [4, 3, 3, 1]),
        sample("reverse", 4, 7, [4, 3, 3, 1], reverse=True),
        sample("ended", 5, 3, [4, 3, 2, 1, 1, 0], reverse=True),
        sample("ended_forward", 5, 3, [4, 3, 2, 1, 1, 0]),
        sample("full", 3, 5, [3, 3, 3], reverse=True),
        sample("wide", 17, 50, [16, 15, 14, 12]),
        sample("tall_reverse", 3, 65, [3, 3, 2, 2, 2, 1, 1, 1, 1], reverse=True),
        sample("one", 1, 1, [1]),
        sample("no_steps", 3, 5, []),
        sample("no_batch", 0, 5, [0, 0], reverse=True),
        sample("all_ended", 2, 4, [0, 0, 0]),
    ]


def posterior_sample(
    normal: Normal, name: str, steps: int, batch: int, hidden: int, latent: int, prior: bool = False, **options: Any
) -> Sample:
    """Of posterior_sequence, with weights so small that no chain grows: an error would grow with it."""
    tensors = {
        "context": normal(steps, batch, hidden),
        "z0": normal(batch, latent),
        "eps": normal(steps, batch, latent),
        "weight_z": normal(hidden, latent) / (2 * latent**0.5),
        "weight_out": normal(2 * latent, hidden) / (2 * hidden**0.5),
        "bias_out": normal(2 * latent) / 2,
    }
    if prior:
        tensors |= {
            "prior.context": normal(steps, batch, hidden),
            "prior.weight_z": normal(hidden, latent) / (2 * latent**0.5),
            "prior.weight_mu": normal(latent, hidden) / (2 * hidden**0.5),
            "prior.bias_mu": normal(latent) / 2,
        }
    return Sample("posterior_sequence", name, tensors, options)


def posterior_samples(generator: torch.Generator | None = None) -> list[Sample]:
    """Samples of posterior_sequence in float64: every activation, with and without a prior's mean, odd sizes."""
    sample = partial(posterior_sample, _normal(generator))
    lengths = torch.tensor([4, 0, 5, 1])
    return [
        *(sample(act, 5, 3, 7, 3, activation=act) for act in ACTIVATIONS),
        *(sample(f"prior_{act}", 5, 4, 5, 2, True, activation=act, lengths=lengths) for act in ACTIVATIONS),
        sample("lengths_floor", 5, 4, 5, 3, lengths=lengths, min_logvar=-1.0),
        sample("one", 1, 1, 1, 1),
        sample("wide", 4, 17, 50, 49, lengths=torch.tensor([4, 1, 3, 2, 0, *[4] * 11, 2]), activation="silu"),
        sample("tall_prior", 9, 2, 65, 33, True, lengths=torch.tensor([9, 7])),
        sample("no_steps", 0, 3, 5, 2),
        sample("no_steps_prior", 0, 3, 5, 2, True, lengths=torch.zeros(3, dtype=torch.int64)),
        sample("no_batch", 4, 0, 5, 2),
        sample("no_batch_prior", 4, 0, 5, 2, True, lengths=torch.zeros(0, dtype=torch.int64)),
        sample("all_padding", 3, 2, 4, 3, lengths=torch.zeros(2, dtype=torch.int64)),
    ]


def interleaved_sample(
    normal: Normal, name: str, steps: int, batch: int, *sizes: int, anew: bool = False, **options: Any
) -> Sample:
    """Of interleaved_sequence, sizes H, E, M, Z; anew: with reset_h and reset_z. No chain grows, as above."""
    size, embed, hidden, latent = sizes
    tensors = {
        "gates_x": normal(steps, batch, 3 * size),
        "embed_context": normal(steps, batch, embed),
        "context": normal(steps, batch, hidden),
        "h0": normal(batch, size),
        "z0": normal(batch, latent),
        "eps": normal(steps, batch, latent),
        "weight_embed": normal(embed, latent) / (2 * latent**0.5),
        "weight_zh": normal(3 * size, embed) / (2 * embed**0.5),
        "weight_hh": normal(3 * size, size) / (2 * size**0.5),
        "bias_hh": normal(3 * size) / 2,
        "weight_h": normal(hidden, size) / (2 * size**0.5),
        "weight_out": normal(2 * latent, hidden) / (2 * hidden**0.5),
        "bias_out": normal(2 * latent) / 2,
    }
    if anew:
        tensors |= {"reset_h": normal(batch, size), "reset_z": normal(batch, latent)}
    return Sample("interleaved_sequence", name, tensors, options)


def interleaved_samples(generator: torch.Generator | None = None) -> list[Sample]:
    """Samples of interleaved_sequence in float64: every activation and scale, resets to h0 and elsewhere, odd sizes."""
    sample = partial(interleaved_sample, _normal(generator))

    def resets(steps: int, batch: int) -> Tensor:
        return torch.arange(steps * batch).view(steps, batch) % 3 == 1

    lengths, some = torch.tensor([4, 0, 5, 1]), resets(5, 4)
    ragged = torch.tensor([4, 1, 3, 2, 0, *[4] * 11, 2])
    return [
        *(sample(act, 5, 3, 7, 4, 6, 3, activation=act, embed_activation=act) for act in MORE_ACTIVATIONS),
        sample("softplus", 5, 3, 7, 4, 6, 3, scale="softplus", embed_activation="elu", activation="elu"),
        sample("resets", 5, 4, 5, 3, 4, 2, resets=some),
        sample("resets_anew", 5, 4, 5, 3, 4, 2, anew=True, lengths=lengths, resets=some, scale="softplus", min_std=0.3),
        sample("lengths_floor", 5, 4, 5, 3, 4, 3, lengths=lengths, min_logvar=-1.0),
        sample("one", 1, 1, 1, 1, 1, 1),
        sample("wide", 4, 17, 50, 19, 34, 49, lengths=ragged, resets=resets(4, 17), activation="silu"),
        sample("tall", 9, 2, 65, 33, 17, 31, anew=True, lengths=torch.tensor([9, 7]), resets=resets(9, 2)),
        sample("no_steps", 0, 3, 5, 2, 4, 2),
        sample("no_steps_resets", 0, 3, 5, 2, 4, 2, anew=True, resets=resets(0, 3)),
        sample("no_batch", 4, 0, 5, 2, 4, 2),
        sample("no_batch_resets", 4, 0, 5, 2, 4, 2, anew=True, resets=resets(4, 0), lengths=lengths[:0]),
        sample("all_padding", 3, 2, 4, 3, 4, 3, lengths=torch.zeros(2, dtype=torch.int64), resets=resets(3, 2)),
    ]


def gaussian_rsample_kl_sample(normal: Normal, name: str, *shape: int, prior: bool) -> Sample:
    """Of gaussian_rsample_kl."""
    names = ("mu", "logvar", "eps", "prior_mu", "prior_logvar")
    return Sample("gaussian_rsample_kl", name, {part: normal(*shape) for part in names[: 5 if prior else 3]})


def gaussian_kl_of(sample: Sample) -> Sample:
    """The sample of gaussian_kl in one of gaussian_rsample_kl: without eps."""
    return Sample("gaussian_kl", sample.name, {name: t for name, t in sample.tensors.items() if name != "eps"})


def gaussian_rsample_kl_samples(generator: torch.Generator | None = None) -> list[Sample]:
    """Samples of gaussian_rsample_kl in float64: one to four dimensions, with and without a prior, empty ones."""
    sample = partial(gaussian_rsample_kl_sample, _normal(generator))
    return [
        sample("standard", 5, 3, 7, prior=False),
        sample("prior", 5, 3, 7, prior=True),
        sample("vector", 5, prior=True),
        sample("one", 1, 1, prior=False),
        sample("four_dims", 2, 3, 2, 17, prior=True),
        sample("wide", 3, 131, prior=True),
        sample("no_rows", 0, 3, 5, prior=True),
        sample("no_rows_standard", 4, 0, 5, prior=False),
        sample("no_latent", 4, 3, 0, prior=True),
    ]


def gaussian_kl_samples(generator: torch.Generator | None = None) -> list[Sample]:
    """Samples of gaussian_kl in float64: those of gaussian_rsample_kl without eps."""
    return [gaussian_kl_of(sample) for sample in gaussian_rsample_kl_samples(generator)]


def _mlp_tensors(
    normal: Normal, leading: tuple[int, ...], widths: tuple[int, ...], hidden: int, one: bool
) -> dict[str, Tensor]:
    """The tensors of a linear layer; one: one weight for all inputs."""
    scale = max(sum(widths), 1) ** 0.5
    tensors = {f"inputs[{number}]": normal(*leading, width) for number, width in enumerate(widths)}
    own = (sum(widths),) if one else widths
    tensors |= {f"weights[{number}]": normal(hidden, width) / scale for number, width in enumerate(own)}
    return tensors | {"bias": normal(hidden) / 2}


def mlp_sample(
    normal: Normal,
    name: str,
    leading: tuple[int, ...],
    widths: tuple[int, ...],
    hidden: int,
    out: int,
    one: bool,
    **options: Any,
) -> Sample:
    """Of mlp; one: one weight for all inputs."""
    tensors = _mlp_tensors(normal, leading, widths, hidden, one)
    tensors |= {"weight_out": normal(out, hidden) / hidden**0.5, "bias_out": normal(out) / 2}
    return Sample("mlp", name, tensors, options)


def gaussian_mlp_of(sample: Sample) -> Sample:
    """The sample of gaussian_mlp in one of mlp: its output doubled."""
    weight, bias = sample.tensors["weight_out"], sample.tensors["bias_out"]
    doubled = {"weight_out": torch.cat((weight, weight.flip(0))), "bias_out": torch.cat((bias, bias - 1))}
    return Sample("gaussian_mlp", sample.name, sample.tensors | doubled, sample.options | {"min_logvar": -1.5})


def split_linear_of(sample: Sample) -> Sample:
    """The sample of split_linear in one of mlp: its first layer."""
    first = {name: tensor for name, tensor in sample.tensors.items() if not name.endswith("_out")}
    return Sample("split_linear", sample.name, first)


def mlp_samples(generator: torch.Generator | None = None) -> list[Sample]:
    """Samples of mlp in float64: every activation, one to three inputs, one weight or several, widths of 0, no rows."""
    sample = partial(mlp_sample, _normal(generator))
    return [
        *(sample(act, (5, 3), (7, 4), 9, 3, act == "relu", activation=act) for act in ACTIVATIONS),
        sample("twins", (4, 3), (5, 5), 6, 3, False, activation="silu"),
        sample("single", (6,), (5,), 3, 2, True),
        sample("three", (4, 3), (2, 17, 1), 33, 18, True),
        sample("empty_input", (4, 3), (0, 3), 5, 2, False),
        sample("one", (1,), (1,), 1, 1, True),
        sample("wide", (3, 67), (50, 19), 101, 49, False, activation="silu"),
        sample("no_rows", (0, 3), (4, 2), 5, 3, False),
    ]


def gaussian_mlp_samples(generator: torch.Generator | None = None) -> list[Sample]:
    """Samples of gaussian_mlp in float64: those of mlp whose output has an even width, or with it doubled."""
    return [gaussian_mlp_of(sample) for sample in mlp_samples(generator)]


def split_linear_samples(generator: torch.Generator | None = None) -> list[Sample]:
    """Samples of split_linear in float64: the first layers of mlp's."""
    return [split_linear_of(sample) for sample in mlp_samples(generator)]


def bernoulli_log_prob_sample(normal: Normal, name: str, *shape: int) -> Sample:
    """Of bernoulli_log_prob."""
    return Sample("bernoulli_log_prob", name, {"logits": 3 * normal(*shape), "x": torch.sigmoid(normal(*shape))})


def bernoulli_log_prob_samples(generator: torch.Generator | None = None) -> list[Sample]:
    """Samples of bernoulli_log_prob in float64: one to four dimensions, empty ones."""
    sample = partial(bernoulli_log_prob_sample, _normal(generator))
    return [
        sample("plain", 5, 3, 7),
        sample("vector", 5),
        sample("one", 1, 1),
        sample("four_dims", 2, 3, 2, 17),
        sample("wide", 300, 88),
        sample("no_rows", 0, 3, 5),
        sample("no_entries", 4, 3, 0),
    ]


def _detached(argument: Any) -> Any:
    if isinstance(argument, list):
        return [_detached(part) for part in argument]
    return argument.detach() if isinstance(argument, Tensor) else argument


def _normal(generator: torch.Generator | None) -> Normal:
    source = torch.Generator().manual_seed(0) if generator is None else generator
    return lambda *shape: torch.randn(shape, generator=source, dtype=torch.float64)


class Row(NamedTuple):
    """What the tests know of a public op."""

    outputs: tuple[str, ...]
    plain: Callable[..., Any]  # the plain reference
    samples: Callable[..., list[Sample]]
    rich: str  # the sample with all that it takes: a prior, lengths with a 0
    bare: str  # one with little
    empty: str
    registered: str = ""  # the op behind it, where that has another name
    states: tuple[str, ...] = ()  # of a recurrence: the tensors that may stay float32 beside half precision
    padded: bool = True  # a recurrence takes lengths
    lacking: tuple[str, ...] = ()  # backends that do not run it yet: their tests of it are left out


ROWS = {
    "gru_sequence": Row(
        *(("output", "h_n"), gru.gru_sequence, gru_samples, "lengths_reverse", "plain", "no_steps"), states=("h0",)
    ),
    "gru_packed": Row(
        *(("output", "h_n"), gru_packed.gru_packed, gru_packed_samples, "ended", "plain", "no_steps"),
        states=("h0",),
        padded=False,
    ),
    "posterior_sequence": Row(
        *(("z", "mu", "logvar"), posterior.posterior_sequence, posterior_samples, "prior_silu", "tanh", "no_steps"),
        states=("z0",),
    ),
    "interleaved_sequence": Row(
        *(("h", "z", "mu", "logvar"), interleaved.interleaved_sequence, interleaved_samples),
        *("resets_anew", "tanh", "no_steps"),
        states=("h0", "z0", "reset_h", "reset_z"),
    ),
    "gaussian_rsample_kl": Row(
        *(("z", "kl"), gaussian.gaussian_rsample_kl, gaussian_rsample_kl_samples, "prior", "standard", "no_rows")
    ),
    "gaussian_kl": Row(("kl",), gaussian.gaussian_kl, gaussian_kl_samples, "prior", "standard", "no_rows"),
    "mlp": Row(
        ("out",), lambda *args, **options: mlp.mlp(*args, **options)[0], mlp_samples, "twins", "tanh", "no_rows"
    ),
    "gaussian_mlp": Row(
        ("mu", "logvar"),
        lambda *args, **options: mlp.mlp(*args, **{"min_logvar": -12.0, **options}),
        *(gaussian_mlp_samples, "twins", "tanh", "no_rows", "mlp"),
    ),
    "split_linear": Row(
        *(("out",), lambda *args: mlp.mlp(*args)[0], split_linear_samples, "twins", "tanh", "no_rows", "mlp")
    ),
    "bernoulli_log_prob": Row(
        *(("log_prob",), bernoulli.bernoulli_log_prob, bernoulli_log_prob_samples, "plain", "plain", "no_rows")
    ),
}
OPS = ops()
RECURRENT = tuple(op for op in OPS if ROWS[op].states)
PADDED = tuple(op for op in RECURRENT if ROWS[op].padded)  # those that take lengths


def ops_of(backend: str) -> tuple[str, ...]:
    """The ops that a backend runs, as their rows say."""
    return tuple(op for op in OPS if backend not in ROWS[op].lacking)


def registered(op: str) -> str:
    """The name of the registered op behind a public function."""
    return ROWS[op].registered or op


def all_samples() -> list[Sample]:
    """The samples of every op."""
    return [sample for op in OPS for sample in ROWS[op].samples()]


def find_sample(op: str, name: str) -> Sample:
    """The sample of that name."""
    return next(sample for sample in ROWS[op].samples() if sample.name == name)


def strided(tensor: Tensor, kind: str) -> Tensor:
    """The same values under other strides: "transposed" (last dimension not contiguous), "sliced" (every second
    entry, behind an offset) or "batch_first" (the first two dimensions exchanged in memory)."""
    if tensor.dim() == 0:
        return tensor
    if kind == "transposed":
        return tensor.movedim(-1, 0).contiguous().movedim(0, -1)
    if kind == "batch_first":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else tensor
    room = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"))
    view = room[..., 1::2]
    view.copy_(tensor)
    return view


# ---- Values and gradients ------------------------------------------------------------------------


def cotangents(outputs: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """A random gradient for every output, the same values for every dtype and device."""
    source = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(out.shape, generator=source, dtype=torch.float64).to(out.device, out.dtype)
        for name, out in outputs.items()
    }


def gradients(sample: Sample, outputs: dict[str, Tensor], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of every tensor of the sample that needs one, zeros where it reaches no output."""
    wanted = {name: tensor for name, tensor in sample.tensors.items() if tensor.requires_grad}
    used = [(out, grads[name]) for name, out in outputs.items() if out.requires_grad and name in grads]
    found = torch.autograd.grad(
        [out for out, _ in used], list(wanted.values()), [grad for _, grad in used], allow_unused=True
    )
    return {
        f"grad of {name}": torch.zeros_like(tensor) if grad is None else grad
        for (name, tensor), grad in zip(wanted.items(), found, strict=True)
    }


def expected(sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients of the plain reference in float64, on the values that the sample's own dtype holds."""
    exact = sample.to("cpu", torch.float64, requires_grad=True)
    outputs = exact.run_plain()
    grads = gradients(exact, outputs, cotangents(outputs))
    return {name: out.detach() for name, out in outputs.items()}, grads


class RecordCalls(TorchDispatchMode):
    """Records name, arguments and results of every op of this project that runs inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if func.namespace == "vssn":
            self.calls.append((func._opname, args, results))
        return results


# ---- Comparison ----------------------------------------------------------------------------------


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """norm(actual - expected) / norm(expected), in float64; the plain norm where what is expected is 0."""
    actual, expected = (tensor.detach().to("cpu", torch.float64) for tensor in (actual, expected))
    scale = expected.norm().item()
    return (actual - expected).norm().item() / (scale or 1.0)


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raises AssertionError naming the tensor unless it has the expected shape, and relative_error <= tolerance."""
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    error = relative_error(actual, expected)
    # Written so that a NaN fails.
    assert error <= tolerance, f"{name}: relative error {error:.3g} is above {tolerance:.3g}"


def assert_all_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, what: str = "") -> None:
    """assert_close for every tensor of two dictionaries with the same names."""
    assert actual.keys() == expected.keys(), f"{what}: got {list(actual)}, expected {list(expected)}"
    for name, tensor in actual.items():
        assert_close(f"{what} {name}".strip(), tensor, expected[name], tolerance)


def assert_equal(name: str, actual: Tensor, expected: Tensor) -> None:
    """Raises AssertionError naming the tensor unless both hold the same bits (a NaN equals a NaN)."""
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype}, expected {expected.dtype}"
    same = torch.equal(actual.nan_to_num(nan=7.25e3), expected.nan_to_num(nan=7.25e3))
    assert same, f"{name}: not the same bits, relative error {relative_error(actual, expected):.3g}"


# ---- Poisoned memory -----------------------------------------------------------------------------


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Inside the block memory that PyTorch hands out from Python unwritten holds NaN (bytes: 255, a NaN as floats), and
    so does the working memory of the cpu backend: an entry that a kernel leaves unwritten, or reads too early, shows.
    """

    def poison(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> Tensor:
            tensor = function(*args, **kwargs)
            if tensor.dtype == torch.uint8:
                return tensor.fill_(255)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return poisoned

    places: list[tuple[Any, str]] = [(torch, name) for name in ("empty", "empty_like", "empty_strided")]
    places += [(Tensor, name) for name in ("new_empty", "new_empty_strided")]
    before = [getattr(place, name) for place, name in places]
    built = BACKENDS["cpu"].status == "available"
    poison_workspace = importlib.import_module("vssn_kernels._cpu").poison_workspace if built else bool
    poison_workspace(True)
    for (place, name), function in zip(places, before, strict=True):
        setattr(place, name, poison(function))
    try:
        yield
    finally:
        for (place, name), function in zip(places, before, strict=True):
            setattr(place, name, function)
        poison_workspace(False)
