"""vssn.GRU on batches of sequences of very different lengths: the numbers, and time and memory by the valid steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import vssn
import vssn.nn.gru
import vssn_kernels
from vssn.utils.packing import pack, packing, unpack
from vssn_kernels.testing import RecordCalls, assert_all_close, assert_close

T, B, X, H = 60, 18, 3, 37
LENGTHS = torch.tensor([60, 3, 9, 3, 1, 2, 20, *[5] * 10, 4])
SETTINGS: dict[str, dict[str, Any]] = {
    "one": {},
    "layers_both_ways": {"num_layers": 2, "bidirectional": True},
    "no_bias": {"bias": False, "num_layers": 2},
    "batch_first": {"batch_first": True, "bidirectional": True},
}
each_setting = pytest.mark.parametrize("setting", SETTINGS)


def pair(setting: str, dtype: torch.dtype = torch.float64) -> tuple[vssn.GRU, nn.GRU]:
    ours, theirs = (kind(X, H, **SETTINGS[setting], dtype=dtype) for kind in (vssn.GRU, nn.GRU))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def batch(setting: str) -> Tensor:
    return torch.randn((B, T, X) if SETTINGS[setting].get("batch_first") else (T, B, X), dtype=torch.float64)


def first_state(net: nn.RNNBase) -> Tensor:
    return torch.randn(net.num_layers * (2 if net.bidirectional else 1), B, H, dtype=torch.float64)


def gradients(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def weighted(*tensors: Tensor) -> Tensor:
    """A loss with another weight for every entry."""
    return sum((t * torch.arange(t.numel(), dtype=t.dtype).cos().view(t.shape)).sum() for t in tensors)


def ops_run(function) -> list[str]:
    with RecordCalls() as record:
        function()
    return [name for name, _, _ in record.calls]


@pytest.mark.parametrize("enforce_sorted", [False, True])
@each_setting
def test_packed_as_torch_has_it(setting: str, enforce_sorted: bool) -> None:
    ours, theirs = pair(setting)
    x, hx = batch(setting), first_state(ours)
    lengths = LENGTHS.sort(descending=True).values if enforce_sorted else LENGTHS
    found = []
    for net in (ours, theirs):
        leaf, state = x.clone().requires_grad_(), hx.clone().requires_grad_()
        packed = pack_padded_sequence(leaf, lengths, bool(net.batch_first), enforce_sorted)
        output, h_n = net(packed, state)
        leaves = {"x": leaf, "hx": state} | dict(net.named_parameters())
        found.append({"data": output.data, "h_n": h_n} | gradients(weighted(output.data, h_n), leaves))
    assert_all_close(*found, 1e-11, "of")


def test_a_packed_batch_is_never_padded() -> None:
    net = vssn.GRU(X, H, 2, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(T, B, X), LENGTHS, enforce_sorted=False)
    called = ops_run(lambda: net(packed)[0].data.sum().backward())
    assert called == ["gru_packed"] * 4 + ["gru_packed_backward"] * 4


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_packed_under_autocast(backend: str) -> None:
    net, theirs = (kind(X, H) for kind in (vssn.GRU, nn.GRU))
    theirs.load_state_dict(net.state_dict())
    packed = pack_padded_sequence(torch.randn(T, B, X), LENGTHS, enforce_sorted=False)
    with torch.autocast("cpu", torch.bfloat16), vssn_kernels.use_backend(backend):
        output, h_n = net(packed)
        want, want_h_n = theirs(packed)
    assert (output.data.dtype, h_n.dtype) == (want.data.dtype, want_h_n.dtype)
    assert_close("output", output.data, want.data, 2e-2)
    assert_close("h_n", h_n, want_h_n, 2e-2)


def test_dropout_draws_as_torch_does() -> None:
    net, theirs = (kind(X, H, 3, dropout=0.5) for kind in (vssn.GRU, nn.GRU))
    theirs.load_state_dict(net.state_dict())
    packed = pack_padded_sequence(torch.randn(T, B, X), LENGTHS, enforce_sorted=False)
    results = []
    for module in (net, theirs):
        torch.manual_seed(3)
        results.append(module(packed)[0].data)
    assert_close("output", *results, 1e-5)


def test_a_second_derivative_of_a_packed_batch() -> None:
    """On the reference; the kernels say so."""
    net = vssn.GRU(X, 2, dtype=torch.float64)
    packed = pack_padded_sequence(torch.randn(4, 3, X, dtype=torch.float64), torch.tensor([4, 1, 2]), False, False)

    def run(data: Tensor) -> Tensor:
        return net(PackedSequence(data, *packed[1:]))[0].data.sin().sum()

    with vssn_kernels.use_backend("reference"):
        assert torch.autograd.gradgradcheck(run, (packed.data.clone().requires_grad_(),))
    data = packed.data.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(data), data, create_graph=True)
    with pytest.raises(RuntimeError, match=r'for a second derivative of gru_packed.*use_backend\("reference"\)'):
        grad.sum().backward()


def test_packed_in_compiled_code() -> None:
    net = vssn.GRU(X, H, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(T, B, X), LENGTHS, enforce_sorted=False)
    rest = packed[1:]  # a slice that torch 2.6 does not compile
    try:
        torch.compile(lambda data: PackedSequence(data, *rest).data, fullgraph=True, backend="eager")(packed.data)
    except torch._dynamo.exc.Unsupported:
        pytest.skip(f"the compiler of torch {torch.__version__} does not make a PackedSequence")
    compiled = torch.compile(lambda data: net(PackedSequence(data, *rest))[0].data, fullgraph=True)
    data = packed.data.requires_grad_()
    found = [gradients(weighted(run(data)), {"data": data}) for run in (compiled, lambda _: net(packed)[0].data)]
    assert_all_close(*found, 1e-5)


# ---- lengths= on a padded batch ---------------------------------------------------------------------------


@pytest.fixture
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vssn.nn.gru, "_ENTRIES_SAVED", 1)


@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS - 1, torch.zeros_like(LENGTHS)], ids=["all", "some 0", "none"])
@pytest.mark.parametrize("state", [False, True], ids=["zeros", "hx"])
@each_setting
def test_lengths_packed_inside_equal_lengths_padded(
    setting: str, state: bool, lengths: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a tolerance: rows meet the projections' products in other tiles. NaN at padding is not read either way."""
    net, _ = pair(setting)
    x = batch(setting)
    time_major = x.transpose(0, 1) if net.batch_first else x
    time_major[torch.arange(T)[:, None] >= lengths] = float("nan")
    hx = first_state(net).requires_grad_() if state else None
    found, ran = [], []
    for worth in (1, 1 << 40):
        monkeypatch.setattr(vssn.nn.gru, "_ENTRIES_SAVED", worth)
        leaf = x.clone().requires_grad_()
        with RecordNames(monkeypatch) as names:
            output, h_n = net(leaf, hx, lengths=lengths)
        ran.append(set(names))
        leaves = {"x": leaf} | ({"hx": hx} if state else {}) | dict(net.named_parameters())
        found.append({"output": output, "h_n": h_n} | gradients(weighted(output, h_n), leaves))
    assert ran == [{"gru_packed"}, {"gru_sequence"}]
    assert_all_close(*found, 1e-11, "of")
    assert found[0]["output"].stride() == found[1]["output"].stride()


class RecordNames(list):
    """The ops that vssn.GRU calls inside the block. (Under a dispatch mode it would not pack: nothing may be read.)"""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._patch = monkeypatch

    def __enter__(self) -> RecordNames:
        self._before = {name: getattr(vssn.nn.gru, name) for name in ("gru_packed", "gru_sequence", "gru_layer")}
        for name, op in self._before.items():

            def record(*args: Any, name: str = name, op: Any = op, **named: Any) -> Any:
                result = op(*args, **named)
                if name != "gru_layer":
                    self.append(name)
                elif result is not None:  # one node in the place of the product and the op
                    self.append("gru_packed" if "batch_sizes" in named else "gru_sequence")
                return result

            self._patch.setattr(vssn.nn.gru, name, record)
        return self

    def __exit__(self, *_: object) -> None:
        for name, op in self._before.items():
            self._patch.setattr(vssn.nn.gru, name, op)


def test_when_a_padded_batch_runs_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where half of its steps or fewer are valid and it is not small; never where values may not be read."""
    net = vssn.GRU(X, 64)

    def ran(steps: int, lengths: list[int], run=net) -> str:
        with RecordNames(monkeypatch) as names:
            run(torch.randn(steps, len(lengths), X), None, torch.tensor(lengths))
        (name,) = set(names)
        return name

    assert ran(64, [64, 64, *[0] * 14]) == "gru_packed"
    assert ran(64, [64] * 8 + [0] * 8) == "gru_packed"  # 512 of 1024 steps
    assert ran(64, [64] * 8 + [1] + [0] * 7) == "gru_sequence"
    assert ran(63, [63] * 8 + [0] * 8) == "gru_sequence"  # saves 504 steps of 64 units
    with RecordCalls():
        assert ran(64, [64, *[0] * 15]) == "gru_sequence"
    with torch.profiler.profile():
        assert ran(64, [64, *[0] * 15]) == "gru_packed"  # a profiler sees what runs without it
    meta = vssn.GRU(X, 64, device="meta")
    output, _ = meta(torch.empty(64, 16, X, device="meta"), lengths=torch.zeros(16, dtype=torch.int64, device="meta"))
    assert output.shape == (64, 16, 64)


@pytest.mark.parametrize("wrong", [-1, 65])
def test_a_length_out_of_range_is_named(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"lengths must lie in \[0, T\] = \[0, 64\], got {wrong}"):
        vssn.GRU(X, 64)(torch.randn(64, 16, X), lengths=torch.tensor([wrong, 64, *[0] * 14]))


def test_transforms_and_compiled_code_take_the_padded_way(always_worth_it: None) -> None:
    net = vssn.GRU(X, H)
    x = torch.randn(T, B, X)
    want = net(x, lengths=LENGTHS)[0]
    compiled = torch.compile(lambda x, lengths: net(x, None, lengths)[0], fullgraph=True)
    assert_close("compiled", compiled(x, LENGTHS), want, 1e-5)
    both = torch.func.vmap(lambda x: net(x, None, LENGTHS)[0])(torch.stack((x, x)))
    assert_close("vmap", both[1], want, 1e-5)


def test_packing_and_back() -> None:
    """As torch packs, but for the order of equal lengths, from either order in memory; empty sequences, and none."""
    x, of = torch.randn(T, B, X), packing(LENGTHS)
    want = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    padded, _ = pad_packed_sequence(want)
    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        packed = pack(given, of)
        assert torch.equal(of.batch_sizes, want.batch_sizes)
        assert torch.equal(pad_packed_sequence(PackedSequence(packed, of.batch_sizes, of.order, of.place))[0], padded)
        assert torch.equal(unpack(packed, of, T), padded)
    for lengths in (torch.tensor([0, 2, 0]), torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)):
        of = packing(lengths)
        y = torch.randn(4, len(lengths), 2)
        valid = torch.arange(4)[:, None] < lengths
        assert torch.equal(unpack(pack(y, of), of, 4), y * valid[..., None])


# ---- Memory ----------------------------------------------------------------------------------------------


def test_a_default_device_of_the_callers() -> None:
    """Lengths and layer stand on the CPU, whatever the caller makes elsewhere meanwhile."""
    gru, x, lengths = vssn.GRU(3, 8), torch.randn(40, 6, 3), torch.full((6,), 5)
    wanted = gru(x, lengths=lengths)[0]
    with torch.device("meta"):
        found = gru(x, lengths=lengths)[0]
    assert torch.equal(found, wanted)


MEMORY = """
import sys
import torch
import vssn
from torch import nn
from torch.nn.utils.rnn import PackedSequence

def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

def peak(net, lengths, form):
    steps, batch = int(lengths[0]), len(lengths)
    if form == "packed":
        sizes = (lengths > torch.arange(steps)[:, None]).sum(1)
        run = lambda x=PackedSequence(torch.randn(int(lengths.sum()), 64), sizes): net(x)[0].data
    else:
        run = lambda x=torch.zeros(steps, batch, 64): net(x, lengths=lengths)[0]
    before = resident("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    run().sum().backward()
    return resident("VmHWM") - before, resident("VmHWM")

torch.set_num_threads(1)
net = {"ours": vssn.GRU, "torch": nn.GRU}[sys.argv[1]](64, 64)
peak(net, torch.tensor([3, 2]), sys.argv[2])
print(*peak(net, torch.tensor([1500] + [20] * 127), sys.argv[2]))
"""


def peak(kind: str, form: str) -> tuple[float, float]:
    """MB at the peak of forward and backward: beyond the input, of the process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "VSSN_"))}
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, kind, form], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    beyond, process = map(float, result.stdout.split())
    return beyond, process


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process's peak")
def test_memory_goes_with_the_valid_steps() -> None:
    """1500 + 127 * 20 of 192,000: padded inside, it took 500 MB."""
    beyond, process = peak("ours", "packed")
    _, theirs = peak("torch", "packed")
    assert beyond < 60, f"{beyond:.0f} MB"
    assert process < 1.3 * theirs, f"{process:.0f} MB, torch.nn.GRU {theirs:.0f}"
    # With lengths the output is padded, 49 MB, as is its gradient; nothing inside is.
    beyond, _ = peak("ours", "padded")
    assert beyond < 120, f"{beyond:.0f} MB"
