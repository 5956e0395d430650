"""bfloat16 on the CPU: where the kernels round, and the instructions that they are compiled to.

What the tests of every backend ask (test_ops.py) is met at bfloat16's own tolerance. Here each op is told again in
float32, rounded where the kernels say that they round. A step takes what the kernels themselves stored for the one
before: so no difference in the last bit of a sum, rounded the other way, goes on to the next.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend import cpu
from vssn_kernels.backend.cpu import gru, mlp, posterior
from vssn_kernels.testing import ROWS, TOLERANCES, assert_close, cotangents, find_sample, gradients

HALF_STEP = 2.0**-8  # of the power of two below a bfloat16, which has 8 bits
EXACT = 1e-5  # relative, of what stays float32


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape) * scale).bfloat16()


def rounded(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().float()


def assert_rounded(name: str, actual: Tensor, exact: Tensor) -> None:
    """Each entry of `actual` is one of the two bfloat16 beside `exact`: the nearer one but for a sum's last bits."""
    assert actual.dtype == torch.bfloat16, name
    assert actual.shape == exact.shape, name
    power = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=1e-30))))
    noise = 2e-6 * exact.abs().max().clamp(min=1e-30) if exact.numel() else torch.zeros(())
    beyond = (actual.float() - exact).abs() - HALF_STEP * power - noise
    assert (beyond <= 0).all(), f"{name}: {(beyond > 0).sum()} of {beyond.numel()} are rounded wrongly"


@pytest.fixture(autouse=True)
def sums_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of weights and states, and h_n, before they are rounded to the dtype of the tensor."""
    for module in (gru, mlp, posterior):
        monkeypatch.setattr(module, "stored", lambda sums, dtype: sums)


def gates_of(kept: Tensor) -> tuple[Tensor, ...]:
    """r, z, n, a [..., H] in float32, from what gru_forward kept."""
    return kept.float().chunk(4, -1)


# Rows and units around tiles and vectors; few enough for the weights as they are, forward alone and both ways.
@pytest.mark.parametrize("size", [(5, 3, 21), (2, 17, 33), (9, 40, 70), (1, 1, 40), (2, 5, 130)], ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_gru_rounds_where_it_says(size: tuple[int, int, int], reverse: bool) -> None:
    steps, batch, hidden = size
    gates_x, bias = draw(steps, batch, 3 * hidden), draw(3 * hidden, scale=0.5)
    weight, h0 = draw(3 * hidden, hidden, scale=hidden**-0.5), torch.randn(batch, hidden)
    output, h_n, kept = cpu.gru_forward(gates_x, h0, weight, bias, None, reverse, True)
    r, z, n, a = gates_of(kept)

    order = list(reversed(range(steps))) if reverse else list(range(steps))
    x, b, w, h, operand = gates_x.float(), bias.float(), weight.float(), h0, rounded(h0)
    for t in order:
        product = operand @ w.T + b
        x_r, x_z, x_n = x[t].chunk(3, -1)
        p_r, p_z, p_n = product.chunk(3, -1)
        gate_r, gate_z = torch.sigmoid(x_r + p_r), torch.sigmoid(x_z + p_z)
        gate_n = torch.tanh(x_n + gate_r * p_n)
        for name, gate, exact in (("r", r, gate_r), ("z", z, gate_z), ("n", n, gate_n), ("a", a, p_n)):
            assert_rounded(name, gate[t].bfloat16(), exact)
        h = gate_n + gate_z * (h - gate_n)
        assert_rounded("output", output[t], h)
        operand = output[t].float()
    assert h_n.dtype == torch.float32
    assert_close("h_n", h_n, h, EXACT)

    grad_output, grad_h_n = draw(steps, batch, hidden), torch.randn(batch, hidden)
    grad_x, grad_h0, grad_weight, grad_bias = cpu.gru_backward(
        grad_output, grad_h_n, output, kept, h0.bfloat16(), weight, None, reverse, [True] * 4
    )
    assert grad_x is not None
    carry, sums, states = grad_h_n, [], []
    for t in reversed(order):
        before = order.index(t) - 1
        state = output[order[before]].float() if before >= 0 else rounded(h0)
        dh = carry + grad_output[t].float()
        grad_z = dh * (state - n[t]) * (z[t] * (1 - z[t]))
        grad_n = dh * (1 - z[t]) * (1 - n[t] * n[t])
        grad_r = grad_n * a[t] * (r[t] * (1 - r[t]))
        assert_rounded("grad_gates_x", grad_x[t], torch.cat((grad_r, grad_z, grad_n), -1))
        # What multiplies W is stored, but for the n part, which is the gradient of a.
        operands = torch.cat((grad_x[t, :, : 2 * hidden].float(), rounded(grad_n * r[t])), -1)
        carry = dh * z[t] + operands @ w
        sums.append(operands)
        states.append(state)
    assert_close("grad_h0", grad_h0, carry, EXACT)
    exact = torch.cat(sums).T @ torch.cat(states)
    if steps == batch == 1:  # nothing is summed
        assert grad_weight is not None
        assert torch.equal(grad_weight, exact.bfloat16())
    else:
        assert_close("grad_weight", grad_weight, exact, EXACT)
    assert_close("grad_bias", grad_bias, torch.cat(sums).sum(0), EXACT)


@pytest.mark.parametrize("size", [(4, 3, 21, 5), (3, 17, 70, 33), (2, 40, 33, 17)], ids=str)
@pytest.mark.parametrize("with_prior", [False, True], ids=["plain", "prior"])
def test_posterior_rounds_where_it_says(size: tuple[int, int, int, int], with_prior: bool) -> None:
    steps, batch, width, latent = size
    context, prior_context, eps = draw(steps, batch, width), draw(steps, batch, width), draw(steps, batch, latent)
    weight_z, prior_weight_z = (draw(width, latent, scale=0.3 * latent**-0.5) for _ in range(2))
    weight_out, weight_mu = draw(2 * latent, width, scale=width**-0.5), draw(latent, width, scale=width**-0.5)
    bias_out, bias_mu, z0, least = draw(2 * latent), draw(latent), torch.randn(batch, latent), -3.0
    prior = (prior_context, prior_weight_z, weight_mu, bias_mu) if with_prior else (None,) * 4
    z, mu, logvar, hidden, prior_hidden = cpu.posterior_forward(
        context, z0, eps, weight_z, weight_out, bias_out, *prior, None, "tanh", least, True
    )
    before = torch.cat((z0.bfloat16()[None], z[:-1])).float()  # what multiplies, at each step
    assert_rounded("hidden", hidden, torch.tanh(context.float() + before @ weight_z.float().T))
    exact_mu, raw = (hidden.float() @ weight_out.float().T + bias_out.float()).chunk(2, -1)
    if with_prior:
        exact_hidden = torch.tanh(prior_context.float() + before @ prior_weight_z.float().T)
        assert_rounded("prior_hidden", prior_hidden, exact_hidden)
        exact_mu = exact_mu + prior_hidden.float() @ weight_mu.float().T + bias_mu.float()
    exact_logvar = least + torch.nn.functional.softplus(raw - least)
    assert_rounded("mu", mu, exact_mu)
    assert_rounded("logvar", logvar, exact_logvar)
    assert_rounded("z", z, exact_mu + torch.exp(exact_logvar / 2) * eps.float())

    grads = [draw(steps, batch, latent) for _ in range(3)]
    found = cpu.posterior_backward(
        *grads, z, logvar, hidden, prior_hidden, z0.bfloat16(), eps, weight_z, weight_out, prior[1], prior[2], None,
        "tanh", least, [True] * 6 + [with_prior] * 4,
    )  # fmt: skip
    grad_context, grad_z0, grad_eps, *of_weights = found
    grad_prior_context = of_weights[3]
    assert grad_context is not None
    grad_z, grad_mu, grad_logvar = (grad.float() for grad in grads)
    carry, outs = torch.zeros(batch, latent), []
    for t in reversed(range(steps)):
        dz = carry + grad_z[t]
        grad_noise = dz * torch.exp(logvar[t].float() / 2)
        assert_rounded("grad_eps", grad_eps[t], grad_noise)
        slope = -torch.expm1(least - logvar[t].float())
        grad_raw = (grad_logvar[t] + grad_noise * eps[t].float() / 2) * slope
        out = rounded(torch.cat((grad_mu[t] + dz, grad_raw), -1))
        exact = out @ weight_out.float() * (1 - hidden[t].float() ** 2)
        assert_rounded("grad_context", grad_context[t], exact)
        carry = grad_context[t].float() @ weight_z.float()
        if with_prior:
            exact = out[:, :latent] @ weight_mu.float() * (1 - prior_hidden[t].float() ** 2)
            assert_rounded("grad_prior_context", grad_prior_context[t], exact)
            carry = carry + grad_prior_context[t].float() @ prior_weight_z.float()
        outs.append(out)
    assert_close("grad_z0", grad_z0, carry, EXACT)
    out, rows = torch.stack(outs[::-1]).flatten(0, 1), lambda tensor: tensor.float().flatten(0, 1)
    want = [rows(grad_context).T @ rows(before), out.T @ rows(hidden), out.sum(0)]
    names = ["weight_z", "weight_out", "bias_out"]
    if with_prior:
        out = out[:, :latent]
        want += [rows(grad_prior_context).T @ rows(before), out.T @ rows(prior_hidden), out.sum(0)]
        names += ["prior.weight_z", "prior.weight_mu", "prior.bias_mu"]
    for name, grad, exact in zip(names, (g for g in of_weights if g is not grad_prior_context), want, strict=False):
        assert_close(f"grad of {name}", grad, exact, EXACT)


@pytest.mark.parametrize("size", [(5, (3,), 4, 2), (40, (17, 8), 33, 17), (300, (50, 0, 1), 70, 35)], ids=str)
def test_mlp_rounds_where_it_says(size: tuple[int, tuple[int, ...], int, int]) -> None:
    count, widths, width, columns = size
    inputs = [draw(count, k) for k in widths]
    weights = [draw(width, k, scale=sum(widths) ** -0.5) for k in widths]
    weight_out, bias, bias_out = draw(2 * columns, width, scale=width**-0.5), draw(width), draw(2 * columns)
    least = -3.0
    mu, logvar, hidden = cpu.mlp_forward(inputs, weights, bias, weight_out, bias_out, "tanh", least, True)
    x, w = torch.cat(inputs, 1).float(), torch.cat(weights, 1).float()
    assert_rounded("hidden", hidden, torch.tanh(x @ w.T + bias.float()))
    exact_mu, raw = (hidden.float() @ weight_out.float().T + bias_out.float()).chunk(2, -1)
    assert_rounded("mu", mu, exact_mu)
    assert_rounded("logvar", logvar, least + torch.nn.functional.softplus(raw - least))
    (linear, _, _) = cpu.mlp_forward(inputs, weights, bias, None, None, "tanh", None, True)
    assert_rounded("split_linear", linear, x @ w.T + bias.float())

    grad_mu, grad_logvar = draw(count, columns), draw(count, columns)
    needs = [True] * (2 * len(widths) + 3)
    found = cpu.mlp_backward(
        grad_mu, grad_logvar, inputs, weights, weight_out, logvar, hidden, "tanh", least, needs
    )  # fmt: skip
    grad_raw = rounded(grad_logvar.float() * -torch.expm1(least - logvar.float()))
    grad = torch.cat((grad_mu.float(), grad_raw), 1)
    grad_sum = rounded(grad @ weight_out.float() * (1 - hidden.float() ** 2))
    for part, exact in zip(found[: len(widths)], (grad_sum @ w).split(widths, 1), strict=True):
        assert part is not None
        assert_close("grad of x", part.float(), exact, 3e-3)
    want = [*(grad_sum.T @ x).split(widths, 1), grad_sum.sum(0), grad.T @ hidden.float(), grad.sum(0)]
    for part, exact in zip(found[len(widths) :], want, strict=True):
        assert part is not None
        assert part.dtype == torch.float32
        assert_close("grad", part, exact, 1e-4)  # an entry of grad_sum may be rounded the other way


@pytest.mark.parametrize("name", ["wide", "tall", "resets_anew", "softplus"])
@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16], ids=str)
def test_interleaved_is_computed_in_float32_and_rounded(name: str, states: torch.dtype) -> None:
    """The states may be float32: theirs are the gradients that are not rounded."""
    op = "interleaved_sequence"
    half = find_sample(op, name).to("cpu", torch.bfloat16)
    kept = {state: tensor.to(states) for state, tensor in half.tensors.items() if state in ROWS[op].states}
    half = half.replace({**half.tensors, **kept})
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in half.tensors.items()}
    widened = {name: tensor.float().requires_grad_() for name, tensor in half.tensors.items()}
    of_half, of_float = half.replace(leaves), half.replace(widened)
    outputs, want_outputs = of_half.run("cpu"), of_float.run("cpu")
    grads = gradients(of_half, outputs, cotangents(outputs))
    want_grads = gradients(of_float, want_outputs, cotangents(want_outputs))
    for output, found in outputs.items():
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, want_outputs[output].bfloat16()), output
    for tensor, leaf in leaves.items():
        found = grads[f"grad of {tensor}"]
        assert found.dtype == leaf.dtype
        assert_close(tensor, found, want_grads[f"grad of {tensor}"], TOLERANCES["cpu", torch.bfloat16][1])


def test_stores_round_to_the_nearest_and_loads_widen() -> None:
    """Ties go to even; infinities, denormal numbers and NaN stay: as PyTorch converts. eps is added as it is."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    added = every[torch.randperm(len(every))]
    zeros = torch.zeros_like(every)
    z, _ = cpu.gaussian_forward(every[:, None], zeros[:, None], added[:, None], None, None)
    want = (every.float() + added.float()).bfloat16()
    assert torch.equal(z[:, 0].isnan(), want.isnan())
    assert torch.equal(z[:, 0].nan_to_num(), want.nan_to_num())
    ties, _ = cpu.gaussian_forward(
        every[:, None], zeros[:, None], (every.float() * 2.0**-8).bfloat16()[:, None], None, None
    )
    want = (every.float() + (every.float() * 2.0**-8).bfloat16().float()).bfloat16()
    assert torch.equal(ties[:, 0].nan_to_num(), want.nan_to_num())


# ---- The instructions ------------------------------------------------------------------------------------


def namespaces_of(instruction: str) -> set[str]:
    """The instruction sets whose functions have it, by the names that the linker kept."""
    command = ["objdump", "-d", "--no-show-raw-insn", _cpu.__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = set()
    for function in text.split("\n\n"):
        if re.search(rf"\t{instruction}\s", function):
            name = re.search(r"4vssn(\d+)(\w+)", function)
            assert name is not None, function[:200]
            found.add(name[2][: int(name[1])])
    return found


@pytest.mark.skipif(not _cpu.bfloat16_products, reason="the compiler does not know the instructions")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_products_are_compiled_to_the_instructions_and_for_their_processors_alone() -> None:
    assert namespaces_of("tdpbf16ps") == namespaces_of("ldtilecfg") == namespaces_of("tilerelease") == {"amx"}
    assert namespaces_of("vdpbf16ps") == {"amx", "avx512_bf16"}


@pytest.mark.slow
def test_the_kernels_of_the_instructions_agree_with_these_in_plain_cpp(tmp_path: Path) -> None:
    """Their source, at odd sizes, against loops in double, and against the kernels that widen; whole numbers exactly.

    `make sanitize` runs the same under AddressSanitizer and UndefinedBehaviorSanitizer."""
    folder = Path(__file__).resolve().parents[2] / "csrc/cpu/sanitize"
    command = ["make", "-s", "-C", str(folder), "-j2", f"BUILD={tmp_path}", "plain"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    found = re.findall(r"^(\w+): (\d+) checks, (\d+) failed$", done.stdout, re.MULTILINE)
    assert [(name, failed) for name, _, failed in found] == [("amx", "0"), ("avx512_bf16", "0")]
    assert all(int(checks) > 1000 for _, checks, _ in found)
