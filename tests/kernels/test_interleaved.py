"""interleaved_sequence against its equations written step by step, and what resets mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vssn_kernels.testing import (
    FULL,
    TOLERANCES,
    Sample,
    Target,
    assert_all_close,
    assert_close,
    cotangents,
    find_sample,
    gradients,
    ops_of,
    targets,
)

OP = "interleaved_sequence"
each_target = pytest.mark.parametrize(
    "target", [target for target in targets(*FULL) if OP in ops_of(target.backend)], ids=str
)
ACTIVATE = {
    "tanh": torch.tanh,
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.maximum(x, x / 3),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "elu": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
    "identity": lambda x: x,
}


def step_by_step(
    t: dict[str, Tensor], embed_activation: str, activation: str, scale: str, min_logvar: float, min_std: float
) -> dict[str, Tensor]:
    """The equations of the contract, for one unpadded batch without resets, the cell by torch.nn.GRUCell."""
    size, latent, embed = t["h0"].shape[1], t["z0"].shape[1], t["embed_context"].shape[2]
    cell = torch.nn.GRUCell(3 * size + embed, size, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat((torch.eye(3 * size, dtype=torch.float64), t["weight_zh"]), 1))
        cell.weight_hh.copy_(t["weight_hh"])
        cell.bias_ih.zero_()
        cell.bias_hh.copy_(t["bias_hh"])
    h, z, steps = t["h0"], t["z0"], []
    for gates_x, embed_context, context, eps in zip(
        *(t[name] for name in ("gates_x", "embed_context", "context", "eps")), strict=True
    ):
        e = ACTIVATE[embed_activation](embed_context + z @ t["weight_embed"].T)
        h = cell(torch.cat((gates_x, e), 1), h)
        hidden = ACTIVATE[activation](context + h @ t["weight_h"].T)
        out = hidden @ t["weight_out"].T + t["bias_out"]
        mu, raw = out[:, :latent], out[:, latent:]
        if scale == "softplus":
            std = torch.log1p(torch.exp(raw)) + min_std
        else:
            std = torch.exp((min_logvar + torch.log1p(torch.exp(raw - min_logvar))) / 2)
        z = mu + std * eps
        steps.append((h, z, mu, 2 * torch.log(std)))
    names = ("h", "z", "mu", "logvar")
    return {name: torch.stack(parts).detach() for name, parts in zip(names, zip(*steps, strict=True), strict=True)}


@pytest.mark.parametrize(
    ("scale", "min_logvar", "min_std"),
    [("logvar", -12, 0.1), ("logvar", 1, 0.1), ("softplus", -12, 0), ("softplus", -12, 0.1), ("softplus", -12, 2)],
)
@pytest.mark.parametrize("activation", sorted(ACTIVATE))
@each_target
def test_equals_its_equations(activation: str, scale: str, min_logvar: float, min_std: float, target: Target) -> None:
    sample = find_sample(OP, activation).to(target.device, target.dtype)
    sample = sample.replace(scale=scale, min_logvar=min_logvar, min_std=min_std)
    exact = sample.to("cpu", torch.float64)
    want = step_by_step(exact.tensors, activation, activation, scale, min_logvar, min_std)
    assert_all_close(sample.run(target.backend), want, TOLERANCES[target.backend, target.dtype][0])


def cut(sample: Sample, start: int, stop: int, **states: Tensor) -> Sample:
    """The frames start..stop-1, from other states."""
    frames = {name: t[start:stop] for name, t in sample.tensors.items() if t.dim() == 3}
    kept = {name: t for name, t in (sample.tensors | frames | states).items() if not name.startswith("reset_")}
    return Sample(OP, "cut", kept, {k: v for k, v in sample.options.items() if k != "resets"})


@each_target
def test_a_batch_with_resets_equals_its_pieces_run_apart(target: Target) -> None:
    """Values and every gradient, where each sequence is reset at the same step."""
    sample = find_sample(OP, "tall").to(target.device, target.dtype)
    steps, batch = sample.options["resets"].shape
    resets = torch.zeros(steps, batch, dtype=torch.bool, device=target.device)
    resets[4] = True
    sample = sample.replace(resets=resets, lengths=None)
    leaves = sample.replace({name: t.clone().requires_grad_() for name, t in sample.tensors.items()})
    outputs = leaves.run(target.backend)
    grads = cotangents(outputs)
    found = gradients(leaves, outputs, grads)

    apart = sample.replace({name: t.clone().requires_grad_() for name, t in sample.tensors.items()})
    first = cut(apart, 0, 4).run(target.backend)
    second = cut(apart, 4, steps, h0=apart.tensors["reset_h"], z0=apart.tensors["reset_z"]).run(target.backend)
    together = {name: torch.cat((first[name], second[name])) for name in first}
    tolerance = TOLERANCES[target.backend, target.dtype]
    assert_all_close(outputs, together, tolerance[0])
    assert_all_close(found, gradients(apart, together, grads), tolerance[1])


@each_target
def test_a_reset_stops_what_is_not_finite(target: Target) -> None:
    sample = find_sample(OP, "resets_anew").to(target.device, target.dtype).replace(lengths=None)
    resets = torch.ones_like(sample.options["resets"])
    broken = {name: torch.full_like(sample.tensors[name], float("nan")) for name in ("h0", "z0")}
    outputs = sample.replace(broken, resets=resets).run(target.backend)
    want = sample.replace(resets=resets).run(target.backend)
    for name, out in outputs.items():
        assert_close(name, out, want[name], 0.0)


@each_target
def test_states_for_resets_are_the_first_ones_where_none_are_given(target: Target) -> None:
    sample = find_sample(OP, "resets").to(target.device, target.dtype, requires_grad=True)
    outputs = sample.run(target.backend)
    grads = cotangents(outputs)
    both = sample.replace({"reset_h": sample.tensors["h0"] + 0, "reset_z": sample.tensors["z0"] + 0})
    again = both.run(target.backend)
    assert_all_close(outputs, again, 0.0)
    wanted = {name: sample.tensors[name] for name in ("h0", "z0")}
    for name, tensor in wanted.items():
        (one,) = torch.autograd.grad(list(outputs.values()), tensor, list(grads.values()), retain_graph=True)
        (two,) = torch.autograd.grad(list(again.values()), tensor, list(grads.values()), retain_graph=True)
        assert_close(f"grad of {name}", one, two, TOLERANCES[target.backend, target.dtype][1])


@each_target
def test_the_softplus_scale_has_its_floor(target: Target) -> None:
    """Raw values far below give log min_std^2 and no NaN; the gradient follows; min_std=0 is as its formula says."""
    sample = find_sample(OP, "softplus").to(target.device, target.dtype)
    latent = sample.tensors["z0"].shape[1]
    raw = torch.tensor([-50.0, 0.0, 30.0], dtype=target.dtype, device=target.device)
    assert latent == len(raw)
    zero = torch.zeros_like(sample.tensors["weight_out"])
    bias = torch.cat((torch.zeros_like(raw), raw)).requires_grad_()
    logvar = sample.replace({"weight_out": zero, "bias_out": bias}, min_std=0.1).run(target.backend)["logvar"]
    std = torch.nn.functional.softplus(raw.double().cpu()) + 0.1
    assert_close("logvar", logvar[0, 0], 2 * torch.log(std), 1e-6)
    logvar[0, 0].sum().backward()
    assert bias.grad is not None
    slope = 2 * torch.sigmoid(raw.double().cpu()) / std
    assert_close("slope", bias.grad[latent:], slope, 2e-6)
