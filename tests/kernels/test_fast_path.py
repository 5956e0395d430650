"""The way past the dispatcher rests on private names of PyTorch: without one of them results are right, only later;
without one that right results need, importing says so in a line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import prepared_python
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vssn_kernels.ops import fast_path, torch_internals

ROOT = Path(__file__).resolve().parents[2]
# For the import of vssn_kernels alone: PyTorch itself needs the name.
HIDE = """
import torch
path, _, name = {name!r}.rpartition(".")
holder = torch
for part in path.split(".")[1:]:
    holder = getattr(holder, part)
kept = getattr(holder, name)
delattr(holder, name)
import vssn_kernels
setattr(holder, name, kept)
"""
USE = """
from vssn_kernels.ops import fast_path
from vssn_kernels.testing import *

assert fast_path.missing == {missing}, fast_path.missing
assert fast_path.is_open(()) == (not fast_path.missing)
assert all(name in vssn_kernels.info() for name in fast_path.missing)
for op in ops_of("cpu"):
    sample = find_sample(op, ROWS[op].rich).to("cpu", torch.float32, requires_grad=True)
    outputs = sample.run("cpu")
    grads = gradients(sample, outputs, cotangents(outputs))
    want, want_grads = expected(sample)
    assert_all_close(outputs, want, TOLERANCES["cpu", torch.float32][0], str(sample))
    assert_all_close(grads, want_grads, TOLERANCES["cpu", torch.float32][1], str(sample))

mu, logvar = torch.randn(2, 4, 3, dtype=torch.float64)
kl = lambda mu: vssn_kernels.gaussian_kl(mu, logvar)
def near(one, other): assert torch.allclose(one, other), (one, other)
near(torch.func.jvp(kl, (mu,), (mu,))[1], (mu**2).sum(-1))
near(torch.func.grad(lambda mu: kl(mu).sum())(mu), mu)
near(torch.func.vmap(vssn_kernels.gaussian_kl)(mu, logvar), kl(mu))
near(torch.func.hessian(lambda mu: kl(mu).sum())(mu).reshape(12, 12), torch.eye(12, dtype=torch.float64))
leaf = mu.clone().requires_grad_()
(grad,) = torch.autograd.grad(kl(leaf).sum(), leaf, create_graph=True)
near(torch.autograd.grad(grad.sum(), leaf)[0], torch.ones_like(mu))
with torch.autograd.forward_ad.dual_level():
    dual = torch.autograd.forward_ad.make_dual(mu, mu)
    near(torch.autograd.forward_ad.unpack_dual(kl(dual)).tangent, (mu**2).sum(-1))

sample = find_sample("gru_sequence", "lengths").to("cpu", torch.float32)
too_long = sample.replace(lengths=torch.full((5,), 7))
for run in (too_long.run, lambda: torch.func.vmap(lambda x: too_long.replace({{"gates_x": x}}).run()["h_n"])(
    sample.tensors["gates_x"][None]
)):
    try:
        run()
    except ValueError as error:
        assert "lengths must lie in [0, T] = [0, 6], got 7" in str(error), error
    else:
        raise AssertionError("lengths are checked")

from vssn.utils.values import REAL, require_values  # asks whether it may read values at once
require_values("x", mu, REAL, "")
try:
    require_values("x", mu / 0, REAL, "")
except ValueError as error:
    assert str(error).startswith("x must be finite"), error
else:
    raise AssertionError("values are checked")
print("right")
"""


# Of what one version or another lacks: what this one has.
HERE = [name for name in dict.fromkeys([*fast_path.names, *torch_internals.optional]) if torch_internals.find(name)]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return prepared_python.run(code, ROOT)


@pytest.mark.parametrize("name", HERE)
def test_without_a_name_results_are_right(name: str) -> None:
    missing = [other for other in fast_path.names if other == name or other in fast_path.missing]
    result = run((HIDE + USE).format(name=name, missing=missing))
    assert result.stdout == "right\n", result.stdout + result.stderr


@pytest.mark.parametrize("name", torch_internals.required)
def test_without_a_name_that_right_results_need_importing_says_so(name: str) -> None:
    result = run(HIDE.format(name=name))
    *_, last = result.stderr.strip().splitlines()
    expected = f"ImportError: vssn_kernels needs {name}, which torch {torch.__version__} lacks"
    assert last.startswith(expected), result.stderr


def test_the_way_is_open_for_plain_calls_alone() -> None:
    tensor, opened = torch.ones(3), []

    def look(x: torch.Tensor) -> torch.Tensor:
        opened.append(fast_path.is_open((x, [x], None, 1, "cpu")))
        return x

    look(tensor)
    look(torch.nn.Parameter(tensor))
    assert opened == [True, True]
    opened.clear()
    with TorchDispatchMode():
        look(tensor)
    with torch.overrides.TorchFunctionMode():
        look(tensor)
    with torch.profiler.profile():
        look(tensor)
    torch.func.vmap(look)(tensor)
    torch.func.grad(lambda x: look(x).sum())(tensor)
    torch.jit.trace(look, tensor, check_trace=False)
    look(torch.ones(3, device="meta"))
    look(torch.ones(3, dtype=torch.complex64).conj().imag)
    look(torch.ones(3).to_sparse())
    assert opened == [False] * 9
