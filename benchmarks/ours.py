"""This library's side of every problem."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import vssn
import vssn_kernels
from benchmarks.cases import MIN_LOGVAR, make_layer, make_model
from benchmarks.contestant import Bound, Tensors, differentiable, gru_module, layers, under_autocast
from benchmarks.problem import Problem


def bind(problem: Problem, backend: str | None = None) -> Bound:
    """The public functions and modules; None: the backend that runs when none is named."""
    family, constants = problem.family, problem.constants
    if family in ("layer", "train_step"):
        return _model(problem, backend)
    p = differentiable(problem)
    if family == "gru_step":
        module, x, h0 = gru_module(vssn.GRU, p), constants["x"], constants["h0"][None]

    def gru() -> Tensors:
        x, weight, bias = p["x"], p["weight_ih"], p["bias_ih"]
        in_bfloat16 = x.dtype == torch.bfloat16 and x.device.type == "cpu"  # by whom, is vssn.GRU's choice
        gates_x = vssn_kernels.split_linear([x], weight, bias) if in_bfloat16 else F.linear(x, weight, bias)
        output, h_n = vssn_kernels.gru_sequence(gates_x, p["h0"], p["weight_hh"], p["bias_hh"], backend=backend)
        return {"output": output, "h_n": h_n}

    def gru_step() -> Tensors:
        return {"output": module(x, h0)[0]}

    def gru_sequence() -> Tensors:
        output, h_n = vssn_kernels.gru_sequence(*p.values(), backend=backend)
        return {"output": output, "h_n": h_n}

    def gru_packed() -> Tensors:
        output, h_n = vssn_kernels.gru_packed(*p.values(), batch_sizes=constants["batch_sizes"], backend=backend)
        return {"output": output, "h_n": h_n}

    def posterior_sequence() -> Tensors:
        z, mu, logvar = vssn_kernels.posterior_sequence(
            p["context"],
            p["z0"],
            constants["eps"],
            p["weight_z"],
            p["weight_out"],
            p["bias_out"],
            min_logvar=MIN_LOGVAR,
            backend=backend,
        )
        return {"z": z, "mu": mu, "logvar": logvar}

    def interleaved_sequence() -> Tensors:
        tensors = list(p.values())
        tensors.insert(5, constants["eps"])
        h, z, mu, logvar = vssn_kernels.interleaved_sequence(*tensors, min_logvar=MIN_LOGVAR, backend=backend)
        return {"h": h, "z": z, "mu": mu, "logvar": logvar}

    def gaussian_rsample_kl() -> Tensors:
        z, kl = vssn_kernels.gaussian_rsample_kl(*p.values(), backend=backend)
        return {"z": z, "kl": kl}

    def gaussian_kl() -> Tensors:
        return {"kl": vssn_kernels.gaussian_kl(*p.values(), backend=backend)}

    def mlp() -> Tensors:
        return {"out": vssn_kernels.mlp(*layers(p), backend=backend)}

    def gaussian_mlp() -> Tensors:
        mu, logvar = vssn_kernels.gaussian_mlp(*layers(p), min_logvar=MIN_LOGVAR, backend=backend)
        return {"mu": mu, "logvar": logvar}

    def split_linear() -> Tensors:
        return {"out": vssn_kernels.split_linear(*layers(p), backend=backend)}

    def bernoulli_log_prob() -> Tensors:
        return {"log_prob": vssn_kernels.bernoulli_log_prob(p["logits"], constants["x"], backend=backend)}

    linear = (mlp, gaussian_mlp, split_linear)
    calls = (
        gru,
        gru_step,
        gru_sequence,
        gru_packed,
        posterior_sequence,
        interleaved_sequence,
        gaussian_rsample_kl,
        gaussian_kl,
        *linear,
        bernoulli_log_prob,
    )
    return Bound(p, {call.__name__: call for call in calls}[family])


def _model(problem: Problem, backend: str | None) -> Bound:
    size, constants = problem.settings["size"], problem.constants
    module = (make_layer(size) if problem.family == "layer" else make_model(size)).to(constants["x"].device)
    leaves: Tensors = {name.removeprefix("layer."): parameter for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in leaves.items():
            parameter.copy_(problem.tensors[name])
    x, noise = constants["x"], (constants["eps_w"], constants["eps_z"])

    def layer() -> Tensors:
        result = module(x, noise=noise)
        return {"output": result.output, "kl": result.kl}

    def train_step() -> Tensors:
        return {"loss": module(x, noise=noise).loss}

    call = under_autocast(layer if problem.family == "layer" else train_step, problem)
    if backend is None:
        return Bound(leaves, call)

    def on_backend() -> Tensors:
        with vssn_kernels.use_backend(backend):
            return call()

    return Bound(leaves, on_backend)
