"""VSSN as a module of PyTorch: copies, dtypes, autocast, backends, torch.compile."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from small_models import (
    LENGTHS,
    MODELS,
    X,
    a_mask,
    batch,
    flat,
    make,
    parameter_gradients,
)
from torch import Tensor
from torch.utils._pytree import tree_leaves

import vssn_kernels
from vssn import VSSN, State
from vssn_kernels.testing import RecordCalls, assert_all_close, assert_close, assert_equal, targets


@pytest.mark.parametrize("name", ["vssn", "initial_state", "universal", "embedded_both", "smoothing"])
def test_copies_pickles_and_state_dicts(name: str) -> None:
    model = make(name)
    given = batch(model)
    want = model(**given, lengths=LENGTHS).elbo
    sizes, options = MODELS[name]
    fresh = VSSN(X, *sizes, **options).double().eval()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        assert_equal("elbo", other(**given, lengths=LENGTHS).elbo, want)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_dtypes() -> None:
    double = make("vssn")
    single = copy.deepcopy(double).float()
    given = batch(double)
    low = {"x": given["x"].float(), "noise": tuple(eps.float() for eps in given["noise"])}
    out = single(**low, lengths=LENGTHS)
    want = double(**given, lengths=LENGTHS)
    assert out.elbo.dtype == torch.float32
    assert {part.dtype for part in out.state} == {torch.float32}
    assert_close("elbo in float32", out.elbo, want.elbo, 1e-5)
    grads = parameter_gradients(single, out.loss)
    assert_all_close(grads, parameter_gradients(double, want.loss), 1e-4, "grad of")


def test_autocast() -> None:
    model = make("vssn", torch.float32)
    given = batch(model)
    want = model(**given, lengths=LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**given, lengths=LENGTHS)
    assert_close("elbo", out.elbo.float(), want.elbo, 2e-2)
    grads = parameter_gradients(model, out.loss)
    for name, grad in parameter_gradients(model, want.loss).items():
        assert grads[name].dtype == torch.float32
        assert_close(f"grad of {name}", grads[name], grad, 0.1)


@pytest.mark.parametrize("how", ["autocast", "module"])
@pytest.mark.parametrize("name", ["vssn", "sizes", "both", "dkf_both_residual"])
def test_bfloat16_runs_on_the_cpu_kernels(name: str, how: str) -> None:
    """Every recurrence and every linear layer, forward and backward, in bfloat16."""
    model = make(name, torch.float32)
    given = batch(model)
    want = model(**given, lengths=LENGTHS)
    if how == "module":
        model.bfloat16()
        given = batch(model)
    with RecordCalls() as record:
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            out = model(**given, lengths=LENGTHS)
        grads = parameter_gradients(model, out.loss)
    assert_close("elbo", out.elbo.float(), want.elbo, 3e-2)
    assert all(grad.isfinite().all() for grad in grads.values())
    seen = {name: arguments for name, arguments, _ in record.calls}
    wanted = {"posterior_sequence", "gru_sequence", "mlp"}
    assert set(seen) >= wanted | {f"{name}_backward" for name in wanted}
    for name in sorted(wanted | {f"{name}_backward" for name in wanted}):
        tensors = [tensor for tensor in tree_leaves(seen[name]) if isinstance(tensor, Tensor)]
        assert {tensor.dtype for tensor in tensors} >= {torch.bfloat16}, name
        assert seen[name][-1] == "cpu", name


def test_new_models_start_sensibly() -> None:
    """Finite loss near X log 2 for binary frames, orthogonal recurrent weights, no parameter left unused."""
    model = VSSN(88, 64, 16, 8)
    x = (torch.rand(20, 8, 88) > 0.9).float()
    out = model(x)
    assert abs(out.reconstruction.mean() + 88 * math.log(2)) < 8
    assert (out.kl_z.mean() < 5) & (out.kl_w.mean() < 5)
    for gate in model.layer.duration.weight_hh.chunk(3):
        assert_close("gate", gate @ gate.T, torch.eye(64), 1e-5)
    out.loss.backward()
    unused = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert unused == []


@pytest.mark.parametrize("backend", [t.backend for t in targets(torch.float32) if t.device == "cpu"])
def test_training_is_the_same_on_every_backend(backend: str) -> None:
    """Thirty steps of Adam with the same noise: the same losses as with the reference."""
    losses, models = {}, {}
    for name in ("reference", backend):
        model = make("both", torch.float32).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        given = batch(model)
        losses[name], models[name] = [], model
        with vssn_kernels.use_backend(name):
            for _ in range(30):
                loss = model(**given, lengths=LENGTHS).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[name].append(loss.detach())
    assert losses[backend][-1] < 0.9 * losses[backend][0], "training does something"
    assert_close("losses", torch.stack(losses[backend]), torch.stack(losses["reference"]), 1e-4)
    assert_all_close(dict(models[backend].named_parameters()), dict(models["reference"].named_parameters()), 5e-3)


@pytest.mark.parametrize("name", ["vssn", "both", "srnn_residual", "storn", "dkf_external", "masked", "universal"])
def test_compiled(name: str) -> None:
    """fullgraph: outputs and gradients, with lengths, noise, mask and a state in and out."""
    model = make(name, torch.float32).train()
    given = batch(model)
    mask = a_mask() if name == "masked" else None
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    state = model(**given, lengths=LENGTHS).state
    state = State(*(part.detach() for part in state))
    torch.manual_seed(3)
    out = compiled(**given, lengths=LENGTHS, mask=mask, state=state)
    torch.manual_seed(3)
    want = model(**given, lengths=LENGTHS, mask=mask, state=state)
    tolerance = 1e-5
    if name == "universal":  # draws its weights inside
        model.eval()
        out, want = (net(**given, lengths=LENGTHS, state=state) for net in (compiled, model))
    assert_all_close(flat(out), flat(want), tolerance)
    assert_all_close(parameter_gradients(model, out.loss), parameter_gradients(model, want.loss), 1e-4)


def test_compiled_with_dynamic_shapes() -> None:
    """Two numbers of steps and of sequences through one compiled model."""
    model = make("srnn", torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps, rows in ((5, 4), (3, 6)):
        given = batch(model, steps, rows)
        lengths = torch.arange(rows).clamp(max=steps)
        out, want = (net(**given, lengths=lengths) for net in (compiled, model))
        assert_all_close(flat(out), flat(want), 1e-5)
        assert_all_close(parameter_gradients(model, out.loss), parameter_gradients(model, want.loss), 1e-4)


@pytest.mark.slow
def test_compiled_with_inductor() -> None:
    model = make("both", torch.float32)
    given = batch(model)
    out = torch.compile(model, fullgraph=True)(**given, lengths=LENGTHS)
    want = model(**given, lengths=LENGTHS)
    assert_all_close(flat(out), flat(want), 1e-5)
    assert_all_close(parameter_gradients(model, out.loss), parameter_gradients(model, want.loss), 1e-4)


def test_repr_tells_sizes_and_what_is_set() -> None:
    text = repr(VSSN(4, 5, 3, 2, residual_posterior=True, control="both", control_size=6, free_bits=0.5, masked=True))
    for part in (
        "VSSN(\n  4, objective='elbo', control_size=6, free_bits=0.5, masked=True\n",
        "8, D=5, Z=3, W=2, A=5, M=5, control='both', activation='tanh', U=6, residual_posterior=True\n",
        "(duration): Recurrence(\n      hidden_size=5\n      (input): SplitLinear(in_sizes=(8, 6, 2), out_size=15)\n",
        "(prior): LatentNetwork(\n      latent_size=3, activation='tanh', min_logvar=-12.0\n",
        "(noise_posterior): GaussianMLP(\n      activation='tanh', min_logvar=-12.0\n",
        "(emission): MLP(\n    activation='tanh'\n",
    ):
        assert part in text, (part, text)
    bare = repr(VSSN(4, 5, 3))
    assert "VSSN(\n  4, objective='elbo'\n" in bare
    assert "=True" not in bare.replace("bias=True", "")
