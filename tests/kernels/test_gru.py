"""gru_sequence against torch.nn.GRU, and what its two directions mean."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu_problems import tf32
from vssn_kernels import gru_sequence
from vssn_kernels.ops import registration
from vssn_kernels.testing import FULL, TOLERANCES, Target, assert_all_close, assert_close, targets

each_target = pytest.mark.parametrize("target", targets(*FULL), ids=str)


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """By PyTorch's default nn.GRU computes in tf32 on a GPU: three digits of a float32."""
    with tf32(False):
        yield


def network(target: Target, x_size: int, hidden: int) -> nn.GRU:
    torch.manual_seed(5)
    return nn.GRU(x_size, hidden).to(target.device, target.dtype)


def fused(
    net: nn.GRU, x: Tensor, h0: Tensor, target: Target, lengths: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    gates_x = nn.functional.linear(x, net.weight_ih_l0, net.bias_ih_l0)
    return gru_sequence(
        gates_x, h0, net.weight_hh_l0, net.bias_hh_l0, lengths=lengths, reverse=reverse, backend=target.backend
    )


@pytest.mark.parametrize("reverse", [False, True])
@each_target
def test_equals_nn_gru(reverse: bool, target: Target) -> None:
    """Outputs, last state and the gradient of every input and parameter."""
    net = network(target, 4, 7)
    x = torch.randn(6, 3, 4, device=target.device, dtype=target.dtype)
    h0 = torch.randn(3, 7, device=target.device, dtype=target.dtype)
    weights = torch.randn(6, 3, 7, device=target.device, dtype=target.dtype)
    results = []
    for fused_call in (True, False):
        leaves = {"x": x.clone().requires_grad_(), "h0": h0.clone().requires_grad_()} | dict(net.named_parameters())
        if fused_call:
            output, h_n = fused(net, leaves["x"], leaves["h0"], target, reverse=reverse)
        else:
            given = leaves["x"].flip(0) if reverse else leaves["x"]
            output, h_n = net(given, leaves["h0"][None])
            output, h_n = output.flip(0) if reverse else output, h_n[0]
        loss = (output * weights).sum() + (h_n**2).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        results.append(({"output": output, "h_n": h_n}, dict(zip(leaves, grads, strict=True))))
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    assert_all_close(results[0][0], results[1][0], for_outputs)
    assert_all_close(results[0][1], results[1][1], for_gradients)


@each_target
def test_reverse_runs_from_the_last_valid_step_to_the_first(target: Target) -> None:
    """Sequence by sequence: flip its valid part, run forward, flip back."""
    net = network(target, 4, 5)
    lengths = torch.tensor([3, 6, 0, 1], device=target.device)
    x = torch.randn(6, 4, 4, device=target.device, dtype=target.dtype)
    h0 = torch.randn(4, 5, device=target.device, dtype=target.dtype)
    with torch.no_grad():
        output, h_n = fused(net, x, h0, target, lengths, reverse=True)
        for row, length in enumerate(lengths.tolist()):
            if length == 0:
                assert torch.equal(h_n[row], h0[row])
                continue
            want, last = net(x[:length, row].flip(0), h0[row][None])
            tolerance = TOLERANCES[target.backend, target.dtype][0]
            assert_close(f"output of sequence {row}", output[:length, row], want.flip(0), tolerance)
            assert_close(f"h_n of sequence {row}", h_n[row], last[0], tolerance)
        assert not output[3:, 0].any()


@each_target
def test_the_last_state_is_the_last_output(target: Target) -> None:
    net = network(target, 2, 3)
    lengths = torch.tensor([2, 4], device=target.device)
    x = torch.randn(4, 2, 2, device=target.device, dtype=target.dtype)
    h0 = torch.zeros(2, 3, device=target.device, dtype=target.dtype)
    output, h_n = fused(net, x, h0, target, lengths)
    assert torch.equal(h_n, torch.stack((output[1, 0], output[3, 1])))
    output, h_n = fused(net, x, h0, target, lengths, reverse=True)
    assert torch.equal(h_n, output[0])


@each_target
def test_two_chunks_equal_the_whole(target: Target) -> None:
    """Gradients through the carried state included."""
    net = network(target, 4, 5)
    x = torch.randn(7, 3, 4, device=target.device, dtype=target.dtype)
    h0 = torch.zeros(3, 5, device=target.device, dtype=target.dtype)
    whole, last = fused(net, x, h0, target)
    first, carried = fused(net, x[:3], h0, target)
    second, carried = fused(net, x[3:], carried, target)
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    chunks = torch.cat((first, second))
    assert_close("output", chunks, whole, for_outputs)
    assert_close("h_n", carried, last, for_outputs)
    parameters = list(net.parameters())
    want = torch.autograd.grad((whole**2).sum(), parameters)
    got = torch.autograd.grad((chunks**2).sum(), parameters)
    for (name, _), one, other in zip(net.named_parameters(), got, want, strict=True):
        assert_close(f"grad of {name}", one, other, for_gradients)


@each_target
def test_saturated_gates_stay_finite(target: Target) -> None:
    """Input gates of +-1e4: sigmoid and tanh at their ends, outputs exact there, gradients vanishing."""
    gates_x = torch.full((3, 2, 12), 1e4, device=target.device, dtype=target.dtype)
    gates_x[:, 1] = -1e4
    gates_x.requires_grad_()
    h0 = torch.full((2, 4), 0.5, device=target.device, dtype=target.dtype)
    weight, bias = (torch.zeros(*shape, device=target.device, dtype=target.dtype) for shape in ((12, 4), (12,)))
    output, h_n = gru_sequence(gates_x, h0, weight, bias, backend=target.backend)
    output.sum().backward()
    assert torch.equal(output[:, 0], h0[0].expand(3, 4))  # z = 1: the state stays
    assert torch.equal(output[:, 1], torch.full_like(output[:, 1], -1))  # z = 0: the state is n = -1
    assert gates_x.grad.abs().max() < 1e-30  # a kernel may stop short of exp(-1e4) = 0
    assert torch.equal(h_n, output[-1])


@each_target
def test_nan_in_one_sequence_stays_in_it(target: Target) -> None:
    net = network(target, 4, 5)
    x = torch.randn(4, 9, 4, device=target.device, dtype=target.dtype)
    h0 = torch.zeros(9, 5, device=target.device, dtype=target.dtype)
    clean, _ = fused(net, x, h0, target)
    x[2, 4] = float("nan")
    output, _ = fused(net, x, h0, target)
    assert output[2:, 4].isnan().all()
    keep = [row for row in range(9) if row != 4]
    assert_close("other sequences", output[:, keep], clean[:, keep], 1e-6)
    assert_close("steps before", output[:2, 4], clean[:2, 4], 1e-6)


# ---- Outputs changed in place ------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 0, 3, 1])], ids=["whole", "lengths"])
@pytest.mark.parametrize("hidden", [1, 7, 16, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_output_may_be_changed_in_place(backend: str, dtype: torch.dtype, hidden: int, lengths, reverse: bool) -> None:
    """As torch.nn.GRU's on the CPU: the gradients are those of the same change on a copy; twice, with retain_graph."""
    tensors = [torch.randn(shape, dtype=dtype) for shape in ((5, 4, 3 * hidden), (4, hidden), (3 * hidden, hidden))]
    tensors.append(torch.randn(3 * hidden, dtype=dtype))
    found = []
    for in_place in (False, True):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output, h_n = gru_sequence(*leaves, lengths=lengths, reverse=reverse, backend=backend)
        changed = output if in_place else output.clone()
        changed.sub_(0.2).relu_()
        loss = (changed**2).sum() + (h_n**3).sum()
        found.append([torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2)])
    for want, got in zip(found[0], found[1], strict=True):
        for name, one, other in zip(("gates_x", "h0", "weight_hh", "bias_hh"), got, want, strict=True):
            assert_close(f"grad of {name}", one, other, 1e-5 if dtype == torch.float32 else 1e-12)


def test_an_unchanged_output_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop in Python is for a change in place alone."""

    def unwanted(*args: object) -> None:
        raise AssertionError("the output was told again")

    monkeypatch.setitem(registration._direct, "gru_sequence_output", unwanted)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((5, 4, 9), (4, 3), (9, 3), (9,))]
    gru_sequence(*leaves)[0].relu().sum().backward()
    with pytest.raises(AssertionError, match="told again"):
        gru_sequence(*leaves)[0].relu_().sum().backward()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_op_that_tells_the_output_again_is_sound(backend: str) -> None:
    """Its fake, and an error in place of a gradient."""
    gates, h0 = torch.rand(5, 4, 28), torch.rand(4, 7)
    op = torch.ops.vssn.gru_sequence_output.default
    for lengths in (None, torch.tensor([5, 0, 3, 1])):
        torch.library.opcheck(op, (gates, h0, lengths, True, backend))
    output = op(gates.requires_grad_(), h0, None, False, backend)
    with pytest.raises(RuntimeError, match="gru_sequence_output is not differentiable"):
        output.sum().backward()
