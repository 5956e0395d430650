"""VSSNLayer where nn.GRU stands: its outputs, its bound with any decoder, state, lengths, layouts and errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from step_by_step import PlainLayer
from torch import Tensor, nn

from vssn import LayerOutput, State, VSSNLayer
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

T, B, X, U, D, Z, W = 5, 4, 4, 2, 5, 3, 2
LENGTHS = torch.tensor([5, 0, 3, 1])

LAYERS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "all": ((D, Z, W), {}),
    "srnn": ((D, Z, 0), {"residual_posterior": True}),
    "storn": ((D, 0, W), {"control": "none"}),
    "rnn": ((D, 0, 0), {}),
    "dkf": ((0, Z, 0), {"mlp_size": 6, "backward_size": 7}),
    "both": ((D, Z, W), {"control": "both", "control_size": U, "activation": "silu", "mlp_size": 8}),
    "external": ((0, Z, 0), {"mlp_size": 6, "backward_size": 7, "control": "external", "control_size": U}),
    "smoothing": ((D, Z, W), {"noise_smoothing": True, "learn_initial_state": True, "activation": "relu"}),
    "universal": ((D, Z, W), {"universal": "gaussian"}),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def make(name: str = "all", dtype: torch.dtype = torch.float64, **more: Any) -> VSSNLayer:
    sizes, options = LAYERS[name]
    layer = VSSNLayer(X, *sizes, **options | more).to(dtype)
    source = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.35 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return layer.eval()


def batch(layer: VSSNLayer, steps: int = T, rows: int = B) -> dict[str, Any]:
    source = torch.Generator().manual_seed(12)
    dtype = layer.dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

    x = normal(steps, rows, X)
    u = normal(steps, rows, layer.control_size) if layer.control_size else None
    return {"x": x, "u": u, "noise": (normal(steps, rows, layer.noise_size), normal(steps, rows, layer.latent_size))}


def flat(out: LayerOutput) -> dict[str, Tensor]:
    return {"output": out.output, "kl": out.kl, **out.state._asdict()}


def parameter_gradients(layer: VSSNLayer, loss: Tensor) -> dict[str, Tensor]:
    named = dict(layer.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)}


def loss_of(out: LayerOutput) -> Tensor:
    return (out.output**2).sum() + out.kl.sum()


@each_layer
def test_equals_the_layer_step_by_step(name: str) -> None:
    """d_t then z_t, and KL_w + KL_z, sequence by sequence; gradients too."""
    layer = make(name)
    given = batch(layer)
    out = layer(**given, lengths=LENGTHS)
    plain = PlainLayer(layer)
    outputs, kls, states = [], [], []
    for row, length in enumerate(LENGTHS.tolist()):
        one = slice(row, row + 1)
        x, u = given["x"][:length, one], None if given["u"] is None else given["u"][:length, one]
        before = torch.cat((x.new_zeros(1, 1, X), x))
        previous = layer.control in ("previous", "both")
        controls = [([before[t]] if previous else []) + ([] if u is None else [u[t]]) for t in range(length)]
        first = (plain.weights["d_0"][None], plain.weights["z_0"][None])
        eps = (given["noise"][0][:length, one], given["noise"][1][:length, one])
        steps = plain.infer(x, controls, *first, *eps)
        size = layer.hidden_size + layer.latent_size
        rows = [torch.cat((d, z), -1) for d, z in zip(steps.d, steps.z, strict=True)]
        outputs.append(torch.stack([*rows, *[x.new_zeros(1, size)] * (T - length)]))
        kls.append(torch.stack([*map(torch.add, steps.kl_z, steps.kl_w), *[x.new_zeros(1)] * (T - length)]))
        states.append((steps.d[-1], steps.z[-1], x[-1]) if length else (*first, before[0]))
    want = {"output": torch.cat(outputs, 1), "kl": torch.cat(kls, 1)}
    want |= {part: torch.cat(several) for part, several in zip(State._fields, zip(*states, strict=True), strict=True)}
    assert_all_close(flat(out), want, 1e-11)
    grads = parameter_gradients(layer, loss_of(out))
    want_grads = parameter_gradients(layer, (want["output"] ** 2).sum() + want["kl"].sum())
    assert_all_close(grads, want_grads, 1e-10, "grad of")


def test_stands_where_nn_gru_does() -> None:
    """Without w and z it is torch.nn.GRU on u_t, here x_{t-1}."""
    layer = make("rnn")
    net = nn.GRU(X, D, dtype=torch.float64)
    own = dict(layer.named_parameters())
    net.load_state_dict(
        {
            "weight_ih_l0": own["duration.input.weight"],
            "bias_ih_l0": own["duration.input.bias"],
            "weight_hh_l0": own["duration.weight_hh"],
            "bias_hh_l0": own["duration.bias_hh"],
        }
    )
    x = batch(layer)["x"]
    output, state, kl = layer(x)
    want, h_n = net(torch.cat((torch.zeros(1, B, X, dtype=torch.float64), x[:-1])))
    assert_close("output", output, want, 1e-12)
    assert_close("d", state.d, h_n[0], 1e-12)
    assert not kl.any()


@each_layer
def test_shapes_and_layout(name: str) -> None:
    layer, swapped = make(name), make(name, batch_first=True)
    given = batch(layer)
    out = layer(**given, lengths=LENGTHS)
    size = layer.hidden_size + layer.latent_size
    assert out.output.shape == (T, B, size)
    assert out.kl.shape == (T, B)
    assert tuple(part.shape for part in out.state) == ((B, layer.hidden_size), (B, layer.latent_size), (B, X))
    noise = tuple(eps.transpose(0, 1) for eps in given["noise"])
    u = None if given["u"] is None else given["u"].transpose(0, 1)
    other = swapped(given["x"].transpose(0, 1), lengths=LENGTHS, u=u, noise=noise)
    assert_equal("output", other.output.transpose(0, 1), out.output)
    assert_equal("kl", other.kl.transpose(0, 1), out.kl)
    for part in State._fields:
        assert_equal(part, getattr(other.state, part), getattr(out.state, part))


@each_layer
def test_nan_at_padding_changes_nothing(name: str) -> None:
    layer = make(name)
    given = batch(layer)
    clean = layer(**given, lengths=LENGTHS)
    padding = (torch.arange(T)[:, None] >= LENGTHS)[..., None]

    def spoil(tensor: Tensor) -> Tensor:
        return tensor.masked_fill(padding, float("nan"))

    u = None if given["u"] is None else spoil(given["u"])
    dirty = layer(spoil(given["x"]), u=u, noise=tuple(spoil(eps) for eps in given["noise"]), lengths=LENGTHS)
    for part, want in flat(clean).items():
        assert_equal(part, flat(dirty)[part], want)
    assert not clean.output[padding[..., 0]].any()
    assert not clean.kl[padding[..., 0]].any()
    want_grads = parameter_gradients(layer, loss_of(clean))
    for part, grad in parameter_gradients(layer, loss_of(dirty)).items():
        assert_equal(f"grad of {part}", grad, want_grads[part])


@pytest.mark.parametrize("name", ["all", "storn", "rnn", "both"])
def test_chunks_with_the_state_equal_the_whole(name: str) -> None:
    """The d path everywhere; all of it where there is no z."""
    layer = make(name)
    given = batch(layer)
    whole = layer(**given, lengths=LENGTHS)
    state, outputs, kls = None, [], []
    for rows in (slice(0, 2), slice(2, 3), slice(3, T)):
        steps = (LENGTHS - rows.start).clamp(0, rows.stop - rows.start)
        u = None if given["u"] is None else given["u"][rows]
        noise = tuple(eps[rows] for eps in given["noise"])
        output, state, kl = layer(given["x"][rows], state, steps, u=u, noise=noise)
        outputs.append(output)
        kls.append(kl)
    assert_close("d_t", torch.cat(outputs)[..., :D], whole.output[..., :D], 1e-12)
    assert_close("d", state.d, whole.state.d, 1e-12)
    assert_close("x_last", state.x_last, whole.state.x_last, 0.0)
    if not layer.latent_size:
        assert_close("kl", torch.cat(kls), whole.kl, 1e-12)


@pytest.mark.parametrize(("steps", "rows"), [(0, B), (T, 0)])
@each_layer
def test_empty_batches(name: str, steps: int, rows: int) -> None:
    layer = make(name)
    given = batch(layer, steps, rows)
    sizes = (layer.hidden_size, layer.latent_size, X)
    state = State(*(torch.ones(rows, size, dtype=torch.float64) for size in sizes))
    for lengths in (None, torch.zeros(rows, dtype=torch.int64)):
        out = layer(**given, state=state, lengths=lengths)
        assert out.output.shape == (steps, rows, layer.hidden_size + layer.latent_size)
        assert out.kl.shape == (steps, rows)
        assert_all_close(out.state._asdict(), state._asdict(), 0.0)
        (out.output.sum() + out.kl.sum()).backward()


def test_returned_tensors_share_no_memory() -> None:
    layer = make("all")
    given = batch(layer)
    state = layer(**given).state
    out = layer(**given, state=state)
    everything = [out.output, out.kl, *out.state, *state, given["x"], *given["noise"]]
    assert len({tensor.untyped_storage().data_ptr() for tensor in everything}) == len(everything)


def test_a_bound_for_any_decoder() -> None:
    """One line of training with a decoder of one's own lowers -ELBO."""
    torch.manual_seed(0)
    layer, decoder = VSSNLayer(X, 16, 4, 2), nn.Linear(20, X)
    optimizer = torch.optim.Adam([*layer.parameters(), *decoder.parameters()], 1e-2)
    x = torch.sin(torch.arange(12.0)[:, None, None] + torch.rand(1, 8, 1) + torch.arange(X))
    losses = []
    for _ in range(40):
        output, _, kl = layer(x)
        loss = ((decoder(output) - x) ** 2).sum(-1).mean() + kl.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_noise_is_drawn_anew_unless_given() -> None:
    layer = make("all")
    given = batch(layer)
    assert_equal("output", layer(**given).output, layer(**given).output)
    assert (layer(given["x"]).output - layer(given["x"]).output).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["all", "both", "dkf", "storn"])
def test_compiled(name: str) -> None:
    layer = make(name, torch.float32).train()
    given = batch(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    state = State(*(part.detach() for part in layer(**given).state))
    out = compiled(**given, state=state, lengths=LENGTHS)
    want = layer(**given, state=state, lengths=LENGTHS)
    assert_all_close(flat(out), flat(want), 1e-5)
    assert_all_close(parameter_gradients(layer, loss_of(out)), parameter_gradients(layer, loss_of(want)), 1e-5)


@each_layer
def test_copies_pickles_and_dtypes(name: str) -> None:
    layer = make(name)
    given = batch(layer)
    want = layer(**given).output
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_equal("output", other(**given).output, want)
    single = copy.deepcopy(layer).float()
    low = {"x": given["x"].float(), "u": None if given["u"] is None else given["u"].float()}
    out = single(**low, noise=tuple(eps.float() for eps in given["noise"]))
    assert out.output.dtype == out.kl.dtype == torch.float32
    assert_close("output in float32", out.output, want, 1e-5)
    assert "D=" in repr(layer)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


WRONG_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": 3}, TypeError, "x must be a torch.Tensor, got int"),
    ({"x": zeros(T, X)}, ValueError, f"x must have shape [T, B, X] with X = {X}, got [5, 4]"),
    ({"x": zeros(T, B, X).int()}, TypeError, "x must be floating point, got torch.int32"),
    ({"u": None}, ValueError, "u is missing"),
    ({"u": zeros(T, B, U + 1)}, ValueError, "u must have shape [T, B, U] = [5, 4, 2], got [5, 4, 3]"),
    ({"lengths": torch.tensor([1, 2, 3])}, ValueError, "lengths must have shape [B] = [4], got [3]"),
    ({"lengths": torch.tensor([[1], [2], [3], [4]])}, ValueError, "lengths must have shape [B] = [4], got [4, 1]"),
    ({"lengths": [1, 2, 3, 4]}, TypeError, "lengths must be a torch.Tensor, got list"),
    ({"lengths": torch.tensor([1, 2, 3, 9])}, ValueError, "lengths must lie in [0, T] = [0, 5], got 9"),
    ({"lengths": torch.tensor([1.0, 2, 3, 4])}, TypeError, "lengths must be int64, got torch.float32"),
    ({"state": zeros(B, D)}, TypeError, "state must be a tuple (d, z, x_last) or None, got Tensor"),
    ({"state": (zeros(B, D), zeros(B, Z), zeros(B, 1))}, ValueError, "state's x_last must have shape [B, F] = [4, 4]"),
    (
        {"state": (zeros(1, D), zeros(B, Z), zeros(B, X))},
        ValueError,
        "state's d must have shape [B, D] = [4, 5], got [1, 5]",
    ),
    ({"noise": [zeros(T, B, W)]}, TypeError, "noise must be a tuple (eps_w, eps_z) or None"),
    ({"noise": (zeros(T, B, W), zeros(T, B, 1))}, ValueError, "noise's eps_z must have shape [T, B, Z] = [5, 4, 3]"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG_CALLS, ids=lambda value: str(value)[:40])
def test_wrong_calls(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    layer = make("both", torch.float32)
    with pytest.raises(error) as caught:
        layer(**{"x": zeros(T, B, X), "u": zeros(T, B, U)} | arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 0, "latent_size": 0, "noise_size": 0}, "hidden_size and latent_size must not both be 0"),
    ({"hidden_size": 0, "mlp_size": 3, "backward_size": 3}, "noise_size must be 0 with hidden_size=0"),
    ({"hidden_size": 0, "noise_size": 0}, "mlp_size and backward_size must be given with hidden_size=0"),
    ({"input_size": 0}, "input_size must be an int of at least 1, got 0"),
    ({"hidden_size": 1.5}, "hidden_size must be an int of at least 0, got 1.5"),
    ({"control": "external"}, "control_size must be an int of at least 1, got 0"),
    ({"control_size": 2}, "control_size must be 0 with control='previous', got 2"),
    ({"activation": "elu"}, "activation must be one of tanh, relu, leaky_relu, silu, got 'elu'"),
    ({"universal": "none"}, "universal must be one of point, gaussian, got 'none'"),
    ({"prior_std": -1.0}, "prior_std must be a finite number above 0, got -1.0"),
    ({"min_logvar": float("-inf")}, "min_logvar must be"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG_SETTINGS, ids=lambda value: str(value)[:50])
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        VSSNLayer(**{"input_size": X, "hidden_size": D, "latent_size": Z, "noise_size": W} | settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
