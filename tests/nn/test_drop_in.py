"""What code written for torch.nn.GRU does with it, done with vssn.GRU, vssn.TorchGRU and a model after replace_gru."""

from __future__ import annotations

import abc
import copy
import io
import pickle
import warnings
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import vssn
from vssn_kernels.testing import assert_all_close, assert_close

T, B, X, H = 5, 4, 3, 6
each_class = pytest.mark.parametrize("kind", [vssn.GRU, vssn.TorchGRU], ids=lambda kind: kind.__name__)


def pair(kind: type, *arguments: Any, dtype: torch.dtype = torch.float64, **named: Any) -> tuple[Any, nn.GRU]:
    """Both with the same weights."""
    ours, theirs = kind(X, H, *arguments, dtype=dtype, **named), nn.GRU(X, H, *arguments, dtype=dtype, **named)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def batch(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(T, B, X, dtype=dtype)


def assert_same(ours: nn.Module, theirs: nn.Module, x: Any = None) -> None:
    x = batch() if x is None else x
    for name, got, want in zip(("output", "h_n"), ours(x), theirs(x), strict=True):
        assert_close(name, got, want, 1e-12)


# ---- Arguments and attributes ------------------------------------------------------------------------


@each_class
def test_every_argument_by_its_position(kind: type) -> None:
    net = kind(2, 3, 2, False, True, 0.25, True, "cpu", torch.float64)
    theirs = nn.GRU(2, 3, 2, False, True, 0.25, True)
    for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(net, name) == getattr(theirs, name), name
        assert type(getattr(net, name)) is type(getattr(theirs, name)), name
    assert net.weight_ih_l0.dtype == torch.float64
    assert repr(net) == repr(theirs).replace("GRU", kind.__name__)


@each_class
@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, int], ids=lambda kind: kind.__name__)
def test_sizes_and_dropout_of_numpy(kind: type, integer: Callable, number: Callable) -> None:
    net = kind(integer(X), integer(H), integer(2), dropout=number(1))
    assert [type(size) for size in (net.input_size, net.hidden_size, net.num_layers)] == [int, int, int]
    assert type(net.dropout) is float
    assert net(batch(torch.float32))[0].shape == (T, B, H)
    torch.compile(net.forward, backend="eager")
    with pytest.raises(ValueError, match="hidden_size must be greater than zero, got 0"):
        kind(2, integer(0))


@each_class
def test_dropout_with_one_layer_warns_as_nn_gru(kind: type) -> None:
    said = []
    for build in (kind, nn.GRU):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last") as caught:
            build(X, H, dropout=0.5)
        said.append([str(warning.message) for warning in caught])
    assert said[0] == said[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(X, H, 2, dropout=0.5)
        kind(X, H)


@each_class
@pytest.mark.parametrize("bias", [True, False])
def test_the_attributes_of_nn_gru(kind: type, bias: bool) -> None:
    ours, theirs = pair(kind, 2, bias, bidirectional=True)
    for name in ("mode", "proj_size", "_flat_weights_names", "_all_weights"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert [[w.shape for w in row] for row in ours.all_weights] == [
        [w.shape for w in row] for row in theirs.all_weights
    ]
    assert all(one is other for one, other in zip(ours._flat_weights, ours.parameters(), strict=True))
    assert ours.flatten_parameters() is None
    x, order = batch(), torch.tensor([2, 0, 1, 3])
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None) == (4, B, H)
    state = torch.randn(4, B, H, dtype=torch.float64)
    assert torch.equal(ours.permute_hidden(state, order), theirs.permute_hidden(state, order))
    ours.check_forward_args(x, state, None)
    for bad_x, bad_state in ((x[..., :2], state), (x[0], state), (x, state[:1]), (x.float(), state)):
        errors = []
        for net in (ours, theirs):
            with pytest.raises((RuntimeError, ValueError)) as caught:
                net.check_forward_args(bad_x, bad_state, None)
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        ours.check_hidden_size(state[:1], (4, B, H))


BAD_CALLS: dict[str, Callable[[], tuple]] = {
    "a state of another batch": lambda: (batch(), torch.zeros(2, 3, H).double()),
    "a state of another size": lambda: (batch(), torch.zeros(2, B, 7).double()),
    "a state without a batch": lambda: (batch(), torch.zeros(2, H).double()),
    "an unbatched state too many": lambda: (batch()[:, 0], torch.zeros(2, 1, H).double()),
    "an unbatched state of another size": lambda: (batch()[:, 0], torch.zeros(2, 7).double()),
    "a state in another dtype": lambda: (batch(), torch.zeros(2, B, H)),
    "a state elsewhere": lambda: (batch(), torch.zeros(2, B, H, device="meta").double()),
    "an input elsewhere": lambda: (batch().to("meta"),),
    "an input in another dtype": lambda: (batch().float(),),
    "integers": lambda: (batch().long(),),
    "another width": lambda: (batch()[..., :2],),
    "one dimension": lambda: (batch()[0, 0],),
    "four dimensions": lambda: (batch()[None],),
    "a packed input of another width": lambda: (pack_sequence([batch()[:, 0, :2]]),),
    "a packed input in another dtype": lambda: (pack_sequence([batch()[:, 0].float()]),),
    "a packed input and a state of another batch": lambda: (
        pack_sequence([batch()[:, 0]]),
        torch.zeros(2, 2, H).double(),
    ),
}


@each_class
@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_raises_what_nn_gru_raises(kind: type, case: str) -> None:
    """The same type, for code that catches it, in one line."""
    arguments = BAD_CALLS[case]()
    ours, theirs = pair(kind, 2)
    with pytest.raises(Exception) as wanted:  # noqa: PT011
        theirs(*arguments)
    with pytest.raises(wanted.type) as caught:
        ours(*arguments)
    assert caught.type is wanted.type
    assert "\n" not in str(caught.value)
    assert "gates_x" not in str(caught.value)
    assert "mat1" not in str(caught.value)


def test_the_shape_of_an_input_is_named_in_its_layout() -> None:
    with pytest.raises(RuntimeError, match=r"input must be \[B, T, 3\] or \[T, 3\], got \[5, 4, 2\]"):
        vssn.GRU(X, H, batch_first=True)(torch.zeros(5, 4, 2))


# ---- Autocast ----------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("state", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packed", [False, True])
def test_autocast_gives_the_dtypes_of_nn_gru(
    kind: type, dtype: torch.dtype, given: torch.dtype, state: torch.dtype | None, packed: bool
) -> None:
    ours, theirs = pair(kind, 2, dtype=torch.float32)
    x = batch(given)
    hx = None if state is None else torch.randn(2, B, H).to(state)
    input = pack_padded_sequence(x, torch.tensor([5, 4, 3, 1])) if packed else x
    with torch.autocast("cpu", dtype):
        got, want = ours(input, hx), theirs(input, hx)
    results = [[out.data if isinstance(out, PackedSequence) else out for out in outputs] for outputs in (got, want)]
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert_close("output", one.float(), other.float(), 3e-2)
    sum(out.float().sum() for out in results[0]).backward()
    assert ours.weight_ih_l0.grad.dtype == torch.float32


def test_autocast_leaves_float64_alone() -> None:
    ours, theirs = pair(vssn.GRU)
    x = batch()
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(ours, theirs, x)
        with pytest.raises(ValueError, match="does not match weight dtype"):
            ours(x.long())
        with pytest.raises(ValueError, match="does not match weight dtype"):
            ours(x.float())


# ---- Outputs changed in place ------------------------------------------------------------------------


def halve_some(output: Tensor) -> Tensor:
    torch.manual_seed(3)
    return F.dropout(output, 0.5, training=True, inplace=True)


def add_one(output: Tensor) -> Tensor:
    output += 1
    return output


def fill_rows(output: Tensor) -> Tensor:
    output[1:3] = 0.5
    return output


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_": lambda output: output.sub_(0.1).relu_(),
    "dropout": halve_some,
    "add": add_one,
    "fill": fill_rows,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "one": {},
    "batch_first": {"batch_first": True},
    "layers_both_ways": {"num_layers": 2, "bidirectional": True},
    "layers": {"num_layers": 2},
}


@each_class
@pytest.mark.parametrize("form", ["batched", "unbatched", "packed"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("change", CHANGES)
def test_outputs_may_be_changed_in_place(kind: type, change: str, setting: str, form: str) -> None:
    ours, theirs = pair(kind, **SETTINGS[setting])
    x = batch()
    found = []
    for net in (ours, theirs):
        leaf = x.clone().requires_grad_()
        input: Any = leaf
        if form == "unbatched":
            input = leaf[:, 0]
        elif form == "packed":
            first = bool(SETTINGS[setting].get("batch_first"))
            lengths = torch.tensor([2, 3, 1, 2, 4][: T if first else B])
            input = pack_padded_sequence(leaf, lengths, batch_first=first, enforce_sorted=False)
        output, h_n = net(input)
        changed = CHANGES[change](output.data if form == "packed" else output)
        h_n.mul_(2)
        loss = (changed**3).sum() + (h_n**2).sum()
        leaves = {"x": leaf} | dict(net.named_parameters())
        grads = torch.autograd.grad(loss, list(leaves.values()))
        found.append({"loss": loss.detach()} | dict(zip(leaves, grads, strict=True)))
    assert_all_close(found[0], found[1], 1e-11)


def test_outputs_may_be_changed_in_place_under_checkpointing_and_hooks() -> None:
    from torch.utils.checkpoint import checkpoint

    ours, theirs = pair(vssn.GRU)
    x = batch()
    theirs(x)[0].sub_(0.1).relu_().pow(2).sum().backward()
    want = {name: parameter.grad for name, parameter in theirs.named_parameters()}

    def run(x: Tensor) -> Tensor:
        return ours(x)[0].sub_(0.1).relu_().pow(2).sum()

    def checkpointed_then_changed(x: Tensor) -> Tensor:
        return checkpoint(lambda x: ours(x)[0], x, use_reentrant=False).sub_(0.1).relu_().pow(2).sum()

    def on_the_cpu(x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return run(x)

    for variant in (lambda x: checkpoint(run, x, use_reentrant=False), checkpointed_then_changed, on_the_cpu):
        ours.zero_grad()
        variant(x).backward()
        assert_all_close({name: p.grad for name, p in ours.named_parameters()}, want, 1e-11)


def test_outputs_may_be_changed_in_place_in_compiled_code() -> None:
    ours, theirs = pair(vssn.GRU)
    x = batch()
    theirs(x)[0].sub_(0.1).relu_().pow(2).sum().backward()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x: Tensor) -> Tensor:
        return ours(x)[0].sub_(0.1).relu_().pow(2).sum()

    run(x).backward()
    for name, parameter in theirs.named_parameters():
        assert_close(f"grad of {name}", getattr(ours, name).grad, parameter.grad, 1e-11)


# ---- Tools that work on the weights ------------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def seeded(function: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    def run(net: nn.Module) -> Any:
        torch.manual_seed(4)
        return function(net)

    return run


TOOLS: dict[str, Callable[[nn.Module], Any]] = {
    "parametrize": lambda net: parametrize.register_parametrization(net, "weight_hh_l0", Doubled()),
    "weight_norm": lambda net: parametrizations.weight_norm(net, "weight_hh_l0"),
    "spectral_norm": seeded(lambda net: parametrizations.spectral_norm(net.eval(), "weight_ih_l1")),
    "orthogonal": seeded(lambda net: parametrizations.orthogonal(net, "weight_hh_l1")),
    "prune": lambda net: prune.l1_unstructured(net, "weight_hh_l0", 0.5),
    "old weight_norm": lambda net: nn.utils.weight_norm(net, "weight_ih_l0"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@each_class
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_that_replace_a_weight(kind: type, tool: str) -> None:
    """What they put in its place is what the fused op takes, and what `_flat_weights` shows."""
    ours, theirs = pair(kind, 2)
    for net in (ours, theirs):
        net(batch())  # what was there before is not remembered
        TOOLS[tool](net)
    theirs.load_state_dict(ours.state_dict())
    x = batch()
    for net in (ours, theirs):
        net(x)[0].pow(2).sum().backward()
    assert_same(ours, theirs, x)
    for (name, parameter), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert_close(f"grad of {name}", parameter.grad, other.grad, 1e-11)
    for name, weight in zip(ours._flat_weights_names, ours._flat_weights, strict=True):
        assert torch.equal(weight, getattr(ours, name))


@each_class
def test_weights_put_in_place_of_parameters(kind: type) -> None:
    """As DropConnect on the recurrent weights is written: the parameter renamed, a tensor set at each call."""
    ours, theirs = pair(kind)
    for net in (ours, theirs):
        raw = net.weight_hh_l0
        del net.weight_hh_l0
        net.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.detach()))
        torch.manual_seed(2)
        net.weight_hh_l0 = F.dropout(net.weight_hh_l0_raw, 0.5)
        assert net._flat_weights[1] is net.weight_hh_l0
        net(torch.ones(T, B, X, dtype=torch.float64))[0].sum().backward()
    assert_same(ours, theirs)
    assert_close("grad", ours.weight_hh_l0_raw.grad, theirs.weight_hh_l0_raw.grad, 1e-11)


@each_class
def test_flat_weights_may_be_set(kind: type) -> None:
    ours, theirs = pair(kind)
    fresh = [nn.Parameter(torch.randn_like(weight)) for weight in ours._flat_weights]
    ours._flat_weights = fresh
    assert all(one is other for one, other in zip(ours.parameters(), fresh, strict=True))
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs)


@each_class
@pytest.mark.parametrize("both", [0, 1, np.bool_(True), np.int64(0)])
def test_bidirectional_takes_what_nn_gru_takes(kind: type, both: Any) -> None:
    ours, theirs = kind(X, H, bidirectional=both), nn.GRU(X, H, bidirectional=both)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.bidirectional is bool(both)
    ours(torch.zeros(2, 3, X))


@each_class
def test_functional_call_replicas_and_moves(kind: type) -> None:
    ours, theirs = pair(kind, 2)
    x = batch()
    weights = {name: torch.randn_like(parameter) for name, parameter in ours.named_parameters()}
    got = torch.func.functional_call(ours, weights, (x,))
    theirs.load_state_dict(weights)
    assert_close("output", got[0], theirs(x)[0], 1e-12)
    replica = ours._replicate_for_data_parallel()
    for name, weight in weights.items():
        setattr(replica, name, weight)
    assert_close("output of a replica", replica(x)[0], theirs(x)[0], 1e-12)
    assert ours.weight_hh_l0 is not weights["weight_hh_l0"], "the replica's weights stay its own"
    assert {weight.dtype for weight in ours.float()._flat_weights} == {torch.float32}


# ---- TorchGRU ----------------------------------------------------------------------------------------


def test_torch_gru_is_one_by_type() -> None:
    net = vssn.TorchGRU(X, H, 2)
    assert isinstance(net, nn.GRU)
    assert isinstance(net, vssn.GRU)
    assert not isinstance(vssn.GRU(X, H), nn.GRU), "torch.compile would refuse it"
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(other) is vssn.TorchGRU
        assert_same(other, net, batch(torch.float32))


def test_torch_gru_runs_the_fused_op(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    ways = {name: getattr(vssn.nn.gru, name) for name in ("gru_layer", "gru_sequence")}  # under gradients, and without
    for name, op in ways.items():

        def record(*args: Any, op: Any = op, name: str = name, **named: Any) -> Any:
            result = op(*args, **named)
            if result is not None:
                called.append(name)
            return result

        monkeypatch.setattr(vssn.nn.gru, name, record)
    module = vssn.TorchGRU(X, H, 2, bidirectional=True)
    module(batch(torch.float32))
    assert called == ["gru_layer"] * 4
    with torch.no_grad():
        module(batch(torch.float32))
    assert called[4:] == ["gru_sequence"] * 4


def test_torch_gru_in_compiled_code() -> None:
    """The graph breaks there, as at nn.GRU; the values are right."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.out = vssn.TorchGRU(X, H), nn.Linear(H, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.gru(2 * x)[0])

    net, x = Net(), batch(torch.float32)
    assert_close("output", torch.compile(net, backend="aot_eager")(x), net(x), 1e-6)


class Recurrent(abc.ABC, nn.RNNBase):
    """A mixin as forecasting libraries have it: what a recurrent network must be able to do, above the network."""

    @abc.abstractmethod
    def first_state(self, x: Tensor) -> Tensor: ...

    def forward_or_zeros(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hx = self.first_state(x)
        return self(x, hx)


@each_class
def test_a_class_of_ones_own_with_a_mixin(kind: Any) -> None:
    class Own(Recurrent, kind):
        def first_state(self, x: Tensor) -> Tensor:
            return x.new_ones(self.num_layers, x.shape[1], self.hidden_size)

    net = Own(X, H, 2, dropout=0.1, dtype=torch.float64).eval()
    theirs = nn.GRU(X, H, 2, dtype=torch.float64)
    theirs.load_state_dict(net.state_dict())
    x = batch()
    want = theirs(x, torch.ones(2, B, H, dtype=torch.float64))
    for got, other in zip(net.forward_or_zeros(x), want, strict=True):
        assert_close("result", got, other, 1e-12)
    assert isinstance(net, nn.GRU) is (kind is vssn.TorchGRU)


def test_code_that_asks_the_type() -> None:
    """Initialisation by isinstance, as recommender libraries write it, reaches a TorchGRU."""

    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.GRU):
            nn.init.zeros_(module.weight_hh_l0)

    net = nn.Sequential(nn.Embedding(5, X), vssn.TorchGRU(X, H)).apply(initialise)
    assert not net[1].weight_hh_l0.any()


# ---- replace_gru -------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(X, H, 2, dropout=0.5, batch_first=True)
        self.again = self.first
        self.inner = nn.ModuleDict({"gru": nn.GRU(H, H, bidirectional=True), "out": nn.Linear(2 * H, 1)})
        self.unregistered = [self.first]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["out"](self.inner["gru"](self.again(self.first(x)[0][..., :X])[0])[0])


@pytest.mark.parametrize("to", [vssn.GRU, vssn.TorchGRU], ids=lambda kind: kind.__name__)
def test_replace_gru(to: type) -> None:
    model = Model().eval()
    model.first.weight_hh_l0.requires_grad_(False)
    model.first.register_buffer("steps", torch.tensor(7))
    calls = []
    handle = model.inner["gru"].register_forward_hook(lambda *_: calls.append("hook"))
    model.inner["gru"].train()
    names, parameters = list(model.state_dict()), list(model.parameters())
    optimiser = torch.optim.SGD((p for p in parameters if p.requires_grad), 0.1)
    x = torch.randn(B, T, X)
    want = model(x)
    assert vssn.replace_gru(model, to=to) == 2
    assert type(model.first) is type(model.inner["gru"]) is to
    assert model.first is model.again is model.unregistered[0]
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert [p.requires_grad for p in model.parameters()] == [p is not parameters[1] for p in parameters]
    assert (model.first.training, model.inner["gru"].training) == (False, True)
    assert model.first.steps == 7
    assert_close("output", model(x), want, 1e-5)
    assert calls == ["hook", "hook"]
    handle.remove()  # the handle of the old class: and a lambda would not pickle
    model(x).sum().backward()
    optimiser.step()
    assert (model(x) - want).abs().max() > 1e-3
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.first) is to
        assert_close("output of a copy", other(x), model(x), 0.0)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    plain = Model().eval()
    plain.first.register_buffer("steps", torch.tensor(0))
    plain.load_state_dict(torch.load(buffer))
    assert_close("output of nn.GRU", plain(x), model(x), 1e-5)
    assert vssn.replace_gru(model, to=to) == 0


def test_replace_gru_of_a_gru_itself() -> None:
    net, x = nn.GRU(X, H, 2), batch(torch.float32)
    want, weight = net(x)[0], net.weight_hh_l1
    assert vssn.replace_gru(net) == 1
    assert type(net) is vssn.GRU
    assert net.weight_hh_l1 is weight
    assert_close("output", net(x)[0], want, 1e-5)


def test_replace_gru_gives_a_model_that_compiles_whole() -> None:
    model = Model().eval()
    x = torch.randn(B, T, X)
    want = model(x)
    assert vssn.replace_gru(model) == 2
    assert_close("output", torch.compile(model, fullgraph=True, backend="aot_eager")(x), want, 1e-5)


def test_replace_gru_leaves_alone_what_has_code_of_its_own() -> None:
    class Own(nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
            return super().forward(input.flip(0), hx)

    class Fused(vssn.TorchGRU):
        pass

    wrapped = nn.GRU(X, H)
    wrapped.forward = wrapped.forward  # as libraries that offload weights set it
    parametrised = nn.GRU(X, H)
    parametrize.register_parametrization(parametrised, "weight_hh_l0", Doubled())
    projected = nn.GRU(X, H, 1, True, False, 0.0, False, 2)  # a proj_size, by its position
    children = {"own": Own(X, H), "fused": Fused(X, H), "lstm": nn.LSTM(X, H), "plain": nn.GRU(X, H)}
    model = nn.ModuleDict(
        children | {"wrapped": wrapped, "parametrised": parametrised, "projected": projected, "ours": vssn.GRU(X, H)}
    )
    before = {name: type(module) for name, module in model.items()}
    with pytest.warns(UserWarning, match="replace_gru left as it was") as caught:
        assert vssn.replace_gru(model) == 1
    said = str(caught[0].message)
    for part in (
        "own (its class Own has code of its own)",
        "parametrised (its class ParametrizedGRU has code of its own)",
        "wrapped (its forward was replaced)",
        "projected (it has a proj_size)",
    ):
        assert part in said
    assert "fused" not in said
    assert "\n" not in said
    assert caught[0].filename == __file__
    assert {name: type(module) for name, module in model.items()} == before | {"plain": vssn.GRU}
    with pytest.warns(UserWarning, match="the model itself"):
        assert vssn.replace_gru(children["own"]) == 0


def test_replace_gru_and_back() -> None:
    """To torch.nn.GRU for what knows it by its name alone: here dynamic quantisation."""
    model = nn.Sequential(vssn.GRU(X, H, 2))
    x = batch(torch.float32)
    want = model(x)[0]
    assert vssn.replace_gru(model, to=nn.GRU) == 1
    assert type(model[0]) is nn.GRU
    assert_close("output", model(x)[0], want, 1e-5)
    assert_close("output of a copy", copy.deepcopy(model)(x)[0], want, 1e-5)
    model[0].double().float()
    assert_close("output after moves", model(x)[0], want, 1e-5)
    if torch.backends.quantized.engine not in ("none", ""):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantised = torch.ao.quantization.quantize_dynamic(model, {nn.GRU})
        assert type(quantised[0]) is not nn.GRU
        assert_close("quantised output", quantised(x)[0], want, 0.1)


@pytest.mark.parametrize("model", [nn.GRU, None, [nn.GRU(2, 3)]])
def test_replace_gru_wants_a_module(model: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got"):
        vssn.replace_gru(model)
    with pytest.raises(TypeError, match=r"to must be vssn.GRU, vssn.TorchGRU or torch.nn.GRU, got"):
        vssn.replace_gru(nn.GRU(2, 3), to=nn.LSTM)


# ---- The package -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["vssn", "vssn_kernels"])
def test_the_packages_say_that_they_are_typed(package: str) -> None:
    """The marker, and that an installation takes it along."""
    assert resources.files(package).joinpath("py.typed").is_file()
    project = resources.files("vssn").joinpath("..", "pyproject.toml").read_text()
    assert f'"{package}" = ["py.typed"' in project
