"""Floating-point operations of the products inside each op, for torch.utils.flop_counter.FlopCounterMode.

As PyTorch counts its own ops: 2 for a multiplication with an addition, and nothing for what is pointwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from math import prod
from types import ModuleType

import torch

_COUNTER = "torch.utils.flop_counter"
_formulas: dict[str, Callable[..., int]] = {}


def formula(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Keeps the flops of `vssn::<name>`, a function of the op's arguments with a shape in place of each tensor."""

    def keep(count: Callable[..., int]) -> Callable[..., int]:
        _formulas[name] = count
        return count

    return keep


def register() -> None:
    """Tells the counter of all ops, when somebody imports it."""
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AtImport())


def _register() -> None:
    for name, count in _formulas.items():
        sys.modules[_COUNTER].register_flop_formula(getattr(torch.ops.vssn, name))(count)


class _AtImport(MetaPathFinder, Loader):
    """Waits for the counter's import: importing it here would import Triton, a third of a second that few need."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()


def product(*sizes: int) -> int:
    """Of matrices of sizes [a, b] and [b, c]: 2 a b c."""
    return 2 * prod(sizes)


Shape = Sequence[int]


@formula("gru_sequence")
def _gru(gates_x: Shape, h0: Shape, weight_hh: Shape, *_: object, **__: object) -> int:
    return product(gates_x[0], *h0, weight_hh[0])


@formula("gru_sequence_backward")
def _gru_backward(
    grad_output: object, grad_h_n: object, output: Shape, gates: Shape, h0: Shape, weight_hh: Shape,
    lengths: object, reverse: bool, needs: Sequence[bool], *_: object, **__: object,
) -> int:  # fmt: skip
    return product(*output, weight_hh[0]) * (1 + needs[2])


@formula("posterior_sequence")
def _posterior(
    context: Shape, z0: Shape, eps: Shape, weight_z: Shape, weight_out: Shape, bias_out: Shape,
    prior_context: Shape | None, *_: object, **__: object,
) -> int:  # fmt: skip
    steps, batch, hidden = context
    widths = 3 * z0[1] + (0 if prior_context is None else 2 * z0[1])  # weight_z, and out's two halves; the prior's two
    return product(steps, batch, hidden, widths)


@formula("posterior_sequence_backward")
def _posterior_backward(
    grad_z: object, grad_mu: object, grad_logvar: object, z: Shape, logvar: Shape, hidden: Shape, prior_hidden: Shape,
    z0: Shape, eps: Shape, weight_z: Shape, weight_out: Shape, prior_weight_z: Shape | None, prior_weight_mu: object,
    lengths: object, activation: str, min_logvar: float, needs: Sequence[bool], *_: object, **__: object,
) -> int:  # fmt: skip
    latent = z0[1]
    widths = 3 * latent + latent * needs[3] + 2 * latent * needs[4]
    if prior_weight_z is not None:
        widths += 2 * latent + latent * needs[7] + latent * needs[8]
    return product(*hidden, widths)


@formula("mlp")
def _mlp(
    inputs: Sequence[Shape], weights: Sequence[Shape], bias: Shape, weight_out: Shape | None, *_: object, **__: object
) -> int:
    rows = inputs[0][:-1]
    first = product(*rows, sum(x[-1] for x in inputs), bias[0])
    return first + (0 if weight_out is None else product(*rows, *weight_out))


@formula("mlp_backward")
def _mlp_backward(
    grad_out: object, grad_logvar: object, inputs: Sequence[Shape], weights: Sequence[Shape], weight_out: Shape | None,
    logvar: object, hidden: object, activation: str, min_logvar: float | None, needs: Sequence[bool],
    *_: object, **__: object,
) -> int:  # fmt: skip
    rows, width = inputs[0][:-1], weights[0][0]
    need_inputs, need_weights = needs[: len(inputs)], needs[len(inputs) : len(inputs) + len(weights)]
    wide = [x[-1] for x in inputs]
    by_weight = [need_weights[0]] * len(inputs) if len(weights) == 1 else need_weights
    columns = sum(k * (by_x + by_w) for k, by_x, by_w in zip(wide, need_inputs, by_weight, strict=True))
    total = product(*rows, width, columns)
    if weight_out is not None:
        below = any(needs[:-2])  # the gradient of the hidden layer is there for these
        total += product(*rows, *weight_out) * (below + needs[-2])
    return total


for _name in ("gaussian_rsample_kl", "gaussian_kl", "bernoulli_log_prob"):  # no products in them
    formula(_name)(lambda *_, **__: 0)
    formula(f"{_name}_backward")(lambda *_, **__: 0)
