"""vssn.GRU against torch.nn.GRU: parameters, returns, gradients, packed sequences; a one-word replacement."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import vssn
from vssn_kernels.testing import RecordCalls, assert_all_close, assert_close

OUTPUT, GRADIENT = 1e-12, 1e-11  # in float64
SETTINGS: dict[str, dict[str, Any]] = {
    "one": {},
    "layers": {"num_layers": 3},
    "both_ways": {"bidirectional": True},
    "layers_both_ways": {"num_layers": 2, "bidirectional": True},
    "no_bias": {"bias": False, "num_layers": 2},
    "batch_first": {"batch_first": True, "bidirectional": True},
}
each_setting = pytest.mark.parametrize("setting", SETTINGS)
LENGTHS = torch.tensor([5, 2, 4, 1])
T, B, X, H = 5, 4, 3, 6


def pair(setting: str) -> tuple[vssn.GRU, nn.GRU]:
    """Both with the same weights, in float64."""
    ours = vssn.GRU(X, H, **SETTINGS[setting], dtype=torch.float64)
    theirs = nn.GRU(X, H, **SETTINGS[setting], dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def batch(setting: str = "one", requires_grad: bool = False) -> Tensor:
    shape = (B, T, X) if SETTINGS[setting].get("batch_first") else (T, B, X)
    return torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)


def first_state(net: vssn.GRU, rows: int = B) -> Tensor:
    return torch.randn(net.num_layers * (2 if net.bidirectional else 1), rows, H, dtype=torch.float64)


def loss_of(output: Tensor, h_n: Tensor) -> Tensor:
    weights = torch.arange(output.numel(), dtype=output.dtype).cos().view(output.shape)
    return (output * weights).sum() + (h_n**3).sum()


@each_setting
def test_state_dict_goes_both_ways(setting: str) -> None:
    ours, theirs = vssn.GRU(X, H, **SETTINGS[setting]), nn.GRU(X, H, **SETTINGS[setting])
    shapes = [[(name, tensor.shape) for name, tensor in net.state_dict().items()] for net in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    assert_all_close(dict(ours.state_dict()), dict(theirs.state_dict()), 0.0)
    fresh = vssn.GRU(X, H, **SETTINGS[setting])
    theirs.load_state_dict(fresh.state_dict())
    assert_all_close(dict(theirs.state_dict()), dict(fresh.state_dict()), 0.0)


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(7)
    theirs = nn.GRU(X, H, 2, bidirectional=True)
    torch.manual_seed(7)
    ours = vssn.GRU(X, H, 2, bidirectional=True)
    assert_all_close(dict(ours.state_dict()), dict(theirs.state_dict()), 0.0)


@pytest.mark.parametrize("with_state", [False, True])
@each_setting
def test_values_and_gradients(setting: str, with_state: bool) -> None:
    ours, theirs = pair(setting)
    x = batch(setting)
    hx = first_state(ours) if with_state else None
    results = []
    for net in (ours, theirs):
        leaf = x.clone().requires_grad_()
        state = None if hx is None else hx.clone().requires_grad_()
        output, h_n = net(leaf, state)
        leaves = {"x": leaf} | ({} if state is None else {"hx": state}) | dict(net.named_parameters())
        grads = torch.autograd.grad(loss_of(output, h_n), list(leaves.values()))
        results.append(({"output": output, "h_n": h_n}, dict(zip(leaves, grads, strict=True))))
    assert_all_close(results[0][0], results[1][0], OUTPUT)
    assert_all_close(results[0][1], results[1][1], GRADIENT, "grad of")


@each_setting
def test_unbatched(setting: str) -> None:
    ours, theirs = pair(setting)
    x = torch.randn(T, X, dtype=torch.float64)
    for hx in (None, first_state(ours, 1)[:, 0]):
        got, want = ours(x, hx), theirs(x, hx)
        assert_close("output", got[0], want[0], OUTPUT)
        assert_close("h_n", got[1], want[1], OUTPUT)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@each_setting
def test_packed_sequences(setting: str, enforce_sorted: bool) -> None:
    """Data, batch sizes, order, last states and gradients as torch.nn.GRU returns them."""
    ours, theirs = pair(setting)
    batch_first = bool(SETTINGS[setting].get("batch_first"))
    lengths = LENGTHS.sort(descending=True).values if enforce_sorted else LENGTHS
    x = batch(setting)
    hx = first_state(ours)
    results = []
    for net in (ours, theirs):
        leaf, state = x.clone().requires_grad_(), hx.clone().requires_grad_()
        packed = pack_padded_sequence(leaf, lengths, batch_first=batch_first, enforce_sorted=enforce_sorted)
        output, h_n = net(packed, state)
        assert isinstance(output, PackedSequence)
        leaves = {"x": leaf, "hx": state} | dict(net.named_parameters())
        grads = torch.autograd.grad(loss_of(output.data, h_n), list(leaves.values()))
        results.append((output, h_n, dict(zip(leaves, grads, strict=True))))
    (output, h_n, grads), (want, want_h_n, want_grads) = results
    assert_close("data", output.data, want.data, OUTPUT)
    assert_close("h_n", h_n, want_h_n, OUTPUT)
    assert_all_close(grads, want_grads, GRADIENT, "grad of")
    assert torch.equal(output.batch_sizes, want.batch_sizes)
    for name in ("sorted_indices", "unsorted_indices"):
        one, other = getattr(output, name), getattr(want, name)
        assert (one is None and other is None) or torch.equal(one, other), name
    padded, padded_lengths = pad_packed_sequence(output, batch_first=batch_first)
    want_padded, want_lengths = pad_packed_sequence(want, batch_first=batch_first)
    assert_close("padded", padded, want_padded, OUTPUT)
    assert torch.equal(padded_lengths, want_lengths)


def test_pack_sequence_of_a_list() -> None:
    ours, theirs = pair("layers_both_ways")
    packed = pack_sequence([torch.randn(n, X, dtype=torch.float64) for n in (2, 4, 3)], enforce_sorted=False)
    got, want = ours(packed), theirs(packed)
    assert_close("data", got[0].data, want[0].data, OUTPUT)
    assert_close("h_n", got[1], want[1], OUTPUT)


@each_setting
def test_lengths_equal_packing(setting: str) -> None:
    """The same numbers as packing, zeros at padding, NaN at padding not read, each sequence as alone."""
    ours, theirs = pair(setting)
    batch_first = bool(SETTINGS[setting].get("batch_first"))
    x = batch(setting)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=batch_first, enforce_sorted=False)
    want, want_h_n = theirs(packed)
    want, _ = pad_packed_sequence(want, batch_first=batch_first, total_length=T)
    time_major = x.transpose(0, 1) if batch_first else x
    time_major[torch.arange(T)[:, None] >= LENGTHS] = float("nan")
    x.requires_grad_()
    output, h_n = ours(x, lengths=LENGTHS)
    assert_close("output", output, want, OUTPUT)
    assert_close("h_n", h_n, want_h_n, OUTPUT)
    loss_of(output, h_n).backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.isfinite().all(), f"grad of {name}"
    padding = x.grad[x.detach().isnan()]
    assert torch.equal(padding, torch.zeros_like(padding)), "a gradient reaches padding"


@each_setting
def test_a_length_of_zero_keeps_its_state(setting: str) -> None:
    ours, _ = pair(setting)
    hx = first_state(ours)
    lengths = torch.tensor([0, 2, 0, 5])
    output, h_n = ours(batch(setting), hx, lengths=lengths)
    assert torch.equal(h_n[:, [0, 2]], hx[:, [0, 2]])
    rows = output if SETTINGS[setting].get("batch_first") else output.transpose(0, 1)
    assert not rows[[0, 2]].any()


@pytest.mark.parametrize(("steps", "rows"), [(0, 3), (4, 0)])
def test_empty_batches(steps: int, rows: int) -> None:
    ours, _ = pair("layers_both_ways")
    hx = first_state(ours, rows)
    output, h_n = ours(torch.zeros(steps, rows, X, dtype=torch.float64), hx)
    assert output.shape == (steps, rows, 2 * H)
    assert_close("h_n", h_n, hx, 0.0)
    (output.sum() + h_n.sum()).backward()
    assert ours.weight_hh_l0.grad is not None


def test_outputs_share_no_memory() -> None:
    ours, _ = pair("one")
    hx = first_state(ours)
    output, h_n = ours(batch(), hx)
    assert len({tensor.untyped_storage().data_ptr() for tensor in (output, h_n, hx)}) == 3


# ---- Dropout -------------------------------------------------------------------------------------


def test_dropout_acts_between_layers_while_training_only() -> None:
    net = vssn.GRU(X, H, 2, dropout=0.5, dtype=torch.float64)
    plain = vssn.GRU(X, H, 2, dtype=torch.float64)
    plain.load_state_dict(net.state_dict())
    x = batch()
    net.eval()
    assert_close("output at evaluation", net(x)[0], plain(x)[0], 0.0)
    net.train()
    torch.manual_seed(1)
    first = net(x)
    torch.manual_seed(1)
    again = net(x)
    assert_close("output under one seed", again[0], first[0], 0.0)
    assert (net(x)[0] - first[0]).abs().max() > 1e-3
    # the first layer's last state comes before dropout, the second's after
    assert_close("h_n of layer 0", first[1][0], plain(x)[1][0], OUTPUT)
    assert (first[1][1] - plain(x)[1][1]).abs().max() > 1e-3


def test_dropout_of_one_passes_nothing_on_and_scales_by_the_rest() -> None:
    net = vssn.GRU(X, H, 2, dropout=1.0, dtype=torch.float64)
    blind = net(batch())[0]
    assert_close("output", blind, net(torch.zeros(T, B, X, dtype=torch.float64))[0], OUTPUT)


# ---- As a module ---------------------------------------------------------------------------------


def test_copies_pickles_and_dtypes() -> None:
    net = vssn.GRU(X, H, 2, bidirectional=True)
    x = torch.randn(T, B, X)
    want = net(x)[0]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_close("output", other(x)[0], want, 0.0)
    double = copy.deepcopy(net).to(torch.float64)
    assert double(x.double())[0].dtype == torch.float64
    assert_close("output in float64", double(x.double())[0], want, 1e-5)
    assert net.bfloat16()(x.bfloat16())[0].dtype == torch.bfloat16
    assert "num_layers=2" in repr(net)
    net.flatten_parameters()


def test_compiled() -> None:
    net = vssn.GRU(X, H, 2, bidirectional=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(T, B, X, requires_grad=True)
    output, h_n = compiled(x, None, LENGTHS)
    want, want_h_n = net(x, None, LENGTHS)
    assert_close("output", output, want, 1e-6)
    assert_close("h_n", h_n, want_h_n, 1e-6)
    (grad,) = torch.autograd.grad(loss_of(output, h_n), x)
    (want_grad,) = torch.autograd.grad(loss_of(want, want_h_n), x)
    assert_close("grad of x", grad, want_grad, 1e-6)


def test_autocast() -> None:
    net = vssn.GRU(X, H, 2)
    x = torch.randn(T, B, X)
    with torch.autocast("cpu", torch.bfloat16):
        output, h_n = net(x)
    assert_close("output", output.float(), net(x)[0], 2e-2)
    assert_close("h_n", h_n.float(), net(x)[1], 2e-2)


@pytest.mark.parametrize("how", ["autocast", "module"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_bfloat16_runs_on_the_cpu_kernels(packed: bool, how: str) -> None:
    """The projection of the input and the recurrence; dtypes as nn.GRU's."""
    ours, theirs = vssn.GRU(X, H, 2, bidirectional=True), nn.GRU(X, H, 2, bidirectional=True)
    theirs.load_state_dict(ours.state_dict())
    want = theirs(torch.ones(T, B, X))[0]
    x = torch.ones(T, B, X)
    if how == "module":
        ours, theirs, x = ours.bfloat16(), theirs.bfloat16(), x.bfloat16()
    leaf = x.clone().requires_grad_()
    given = pack_padded_sequence(leaf, torch.full((B,), T)) if packed else leaf
    with RecordCalls() as record, torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        output, h_n = ours(given)
        output = output.data.view(T, B, -1) if packed else output
        (grad,) = torch.autograd.grad(output.sum() + h_n.sum(), leaf)
        like_output, like_h_n = theirs(x)
    assert (output.dtype, h_n.dtype) == (like_output.dtype, like_h_n.dtype)
    assert_close("output", output.float(), want, 1e-2)
    assert grad.isfinite().all()
    op = "gru_packed" if packed else "gru_sequence"
    assert {name for name, _, _ in record.calls} == {op, f"{op}_backward", "mlp", "mlp_backward"}
    for name, arguments, _ in record.calls:
        assert arguments[-1] == "cpu", name
        assert torch.bfloat16 in {leaf.dtype for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)}, name


def test_the_arguments_of_nn_gru_by_name() -> None:
    ours = inspect.signature(vssn.GRU).parameters
    assert list(ours)[:6] == ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
    assert list(ours)[6:] == ["bidirectional", "device", "dtype", "proj_size"]
    net = vssn.GRU(
        input_size=2, hidden_size=3, num_layers=2, bias=True, batch_first=True, dropout=0.1, bidirectional=True
    )
    assert (net.input_size, net.hidden_size, net.num_layers, net.dropout) == (2, 3, 2, 0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size must be greater than zero, got 0"),
        ({"hidden_size": -1}, ValueError, "hidden_size must be greater than zero, got -1"),
        ({"num_layers": 1.5}, TypeError, "num_layers should be of type int, got: float 1.5"),
        ({"num_layers": True}, TypeError, "num_layers should be of type int, got: bool True"),
        ({"bias": 1}, TypeError, "bias should be of type bool, got: int 1"),
        ({"bidirectional": 0.5}, TypeError, "bidirectional should be of type bool, got: float 0.5"),
        ({"dropout": 1.5}, ValueError, "dropout should be a number in range [0, 1]"),
        ({"dropout": float("nan")}, ValueError, "an element being zeroed, got nan"),
        ({"dropout": True}, ValueError, "an element being zeroed, got True"),
        ({"dropout": "half"}, ValueError, "an element being zeroed, got 'half'"),
        ({"proj_size": 2}, ValueError, "proj_size argument is only supported for LSTM, not RNN or GRU"),
        ({"proj_size": 0}, ValueError, "proj_size argument is only supported for LSTM, not RNN or GRU"),
        ({"projection": 2}, TypeError, "projection"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        vssn.GRU(**{"input_size": 2, "hidden_size": 3} | arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": [1.0]}, TypeError, "input must be a torch.Tensor or PackedSequence, got list"),
        (
            {"input": torch.zeros(5, 4, 2)},
            RuntimeError,
            "input.size(-1) must be equal to input_size. Expected 3, got 2: input must be [T, B, 3] or [T, 3], "
            "got [5, 4, 2]",
        ),
        ({"input": torch.zeros(5, 2)}, RuntimeError, "input.size(-1) must be equal to input_size. Expected 3, got 2"),
        (
            {"input": torch.zeros(3)},
            ValueError,
            "GRU: Expected input to be 2D or 3D, got 1D instead: it must be [T, B, 3] or [T, 3], got [3]",
        ),
        ({"input": torch.zeros(())}, ValueError, "got 0D instead"),
        ({"input": np.zeros((5, 4, 3), np.float32)}, TypeError, "input must be a torch.Tensor or PackedSequence"),
        (
            {"input": torch.zeros(5, 4, 3).double()},
            ValueError,
            "RNN input dtype (torch.float64) does not match weight dtype (torch.float32). "
            "Convert input: input.to(torch.float32), or convert model: model.to(torch.float64)",
        ),
        ({"input": torch.zeros(5, 4, 3).half()}, ValueError, "RNN input dtype (torch.float16) does not match"),
        (
            {"input": torch.zeros(5, 4, 3).long()},
            ValueError,
            "RNN input dtype (torch.int64) does not match weight dtype (torch.float32). "
            "Convert input: input.to(torch.float32)",
        ),
        (
            {"input": torch.zeros(5, 4, 3, device="meta")},
            RuntimeError,
            "input must be on cpu as the weights are, got meta: move it with input.to('cpu'), or the model",
        ),
        (
            {"hx": torch.zeros(1, 4, 6)},
            RuntimeError,
            "Expected hidden size (2, 4, 6), got [1, 4, 6]: hx must be [num_layers * directions, B, H]",
        ),
        ({"hx": torch.zeros(2, 3, 6)}, RuntimeError, "Expected hidden size (2, 4, 6), got [2, 3, 6]"),
        (
            {"hx": torch.zeros(2, 6)},
            RuntimeError,
            "For batched 3-D input, hx should also be 3-D but got 2-D tensor: hx must be "
            "[num_layers * directions, B, H] = [2, 4, 6], got [2, 6]",
        ),
        (
            {"hx": torch.zeros(2, 4, 6).double()},
            RuntimeError,
            "hx dtype (torch.float64) does not match input dtype (torch.float32). Convert hx: hx.to(torch.float32)",
        ),
        (
            {"hx": torch.zeros(2, 4, 6, device="meta")},
            RuntimeError,
            "hx must be on cpu as input is, got meta: move it with hx.to('cpu')",
        ),
        (
            {"hx": (torch.zeros(2, 4, 6), torch.zeros(2, 4, 6))},
            TypeError,
            "hx must be a torch.Tensor, got tuple; a GRU has no cell state beside h_0",
        ),
        ({"lengths": torch.tensor([1, 2, 3, 4]).int()}, TypeError, "lengths must be int64, got torch.int32; convert"),
        (
            {"lengths": torch.tensor([1, 2, 3, 4], device="meta")},
            ValueError,
            "lengths must be on cpu as input is, got meta: move it with lengths.to('cpu')",
        ),
        ({"hx": [torch.zeros(2, 4, 6)]}, TypeError, "hx must be a torch.Tensor, got list"),
        ({"lengths": torch.tensor([1, 2, 3])}, ValueError, "lengths must have shape [B] = [4], got [3]"),
        ({"lengths": torch.tensor([1, 2, 3, 6])}, ValueError, "lengths must lie in [0, T] = [0, 5], got 6"),
        ({"lengths": [1, 2, 3, 4]}, TypeError, "lengths must be a torch.Tensor, got list"),
        (
            {"input": torch.zeros(5, 3), "lengths": torch.tensor([3])},
            ValueError,
            "lengths must be None for an unbatched",
        ),
        (
            {"input": torch.zeros(5, 3), "hx": torch.zeros(2, 1, 6)},
            RuntimeError,
            "For unbatched 2-D input, hx should also be 2-D but got 3-D tensor: hx must be "
            "[num_layers * directions, H] = [2, 6], got [2, 1, 6]",
        ),
        (
            {"input": torch.zeros(5, 3), "hx": torch.zeros(2, 7)},
            RuntimeError,
            "Expected hidden size (2, 6), got [2, 7]: hx must be [num_layers * directions, H]",
        ),
        (
            {"input": pack_padded_sequence(torch.zeros(5, 2, 4), torch.tensor([5, 3]))},
            RuntimeError,
            "input.data.size(-1) must be equal to input_size. Expected 3, got 4: input.data must be [steps, 3], "
            "got [8, 4]",
        ),
        (
            {"input": pack_padded_sequence(torch.zeros(5, 2), torch.tensor([5, 3]))},
            RuntimeError,
            "input must have 2 dimensions, got 1: the data of a PackedSequence must be [steps, 3], got [8]",
        ),
        (
            {"input": pack_padded_sequence(torch.zeros(5, 2, 3).double(), torch.tensor([5, 3]))},
            ValueError,
            "RNN input dtype (torch.float64) does not match weight dtype (torch.float32)",
        ),
        (
            {"input": pack_padded_sequence(torch.zeros(5, 2, 3), torch.tensor([5, 3])), "hx": torch.zeros(2, 4, 6)},
            RuntimeError,
            "Expected hidden size (2, 2, 6), got [2, 4, 6]",
        ),
    ],
)
def test_bad_calls(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    net = vssn.GRU(3, 6, bidirectional=True)
    with pytest.raises(error) as caught:
        net(**{"input": torch.zeros(5, 4, 3)} | arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_packed_sequences_carry_their_own_lengths() -> None:
    net = vssn.GRU(3, 6)
    packed = pack_padded_sequence(torch.zeros(5, 2, 3), torch.tensor([5, 3]))
    with pytest.raises(ValueError, match="lengths must be None for a PackedSequence"):
        net(packed, lengths=torch.tensor([5, 3]))


@pytest.mark.parametrize("batch", [1, 3, 33])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "num_layers": 2}],
    ids=str,
)
def test_a_single_step(batch: int, grad: bool, options: dict[str, Any]) -> None:
    """T = 1 runs in other ways than a sequence does."""
    theirs = nn.GRU(5, 7, dtype=torch.float64, **options)
    ours = vssn.GRU(5, 7, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn((batch, 1, 5) if options.get("batch_first") else (1, batch, 5), dtype=torch.float64)
    states = ours.num_layers * (2 if ours.bidirectional else 1)
    for hx in (None, torch.randn(states, batch, 7, dtype=torch.float64)):
        with torch.set_grad_enabled(grad):
            for name, found, want in zip(("output", "h_n"), ours(x, hx), theirs(x, hx), strict=True):
                assert_close(name, found, want, 1e-12)
                assert found.requires_grad == grad
