"""How parameters start: by construction, by reset_parameters, and by loading into a model that was made on "meta"."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import LENGTHS, MODELS, B, D, T, W, X, Z, batch, flat, make
from torch import Tensor, nn

from vssn import DVBF, GRU, PGN, RSSM, VRNN, VSSN, RSSMLayer, VSSNLayer
from vssn.likelihoods.ar_gaussian import ArGaussian
from vssn.likelihoods.nade import NADE
from vssn.nn.blocks import MLP, Embedding, GaussianMLP, LatentNetwork, Recurrence, SplitLinear
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

MODULES: dict[str, Any] = {
    "SplitLinear": lambda **f: SplitLinear((3, 0, 2), 4, **f),
    "MLP": lambda **f: MLP((3, 2), 4, 5, "tanh", **f),
    "GaussianMLP": lambda **f: GaussianMLP((3, 2), 4, 5, "tanh", -3.0, **f),
    "Embedding": lambda **f: Embedding(3, 4, "tanh", **f),
    "Recurrence": lambda **f: Recurrence((3, 2), 4, **f),
    "LatentNetwork": lambda **f: LatentNetwork(3, (2, 4), 5, "tanh", -3.0, **f),
    "LatentNetwork without inputs": lambda **f: LatentNetwork(3, (), 5, "tanh", -3.0, **f),
    "NADE": lambda **f: NADE(5, 4, **f),
    "ArGaussian": lambda **f: ArGaussian(5, -3.0, **f),
    "GRU": lambda **f: GRU(3, 4, 2, bidirectional=True, **f),
    "VSSNLayer": lambda **f: VSSNLayer(
        X, D, Z, W, universal="gaussian", noise_smoothing=True, learn_initial_state=True, **f
    ),
}
for _name in MODELS:
    MODULES[f"VSSN {_name}"] = lambda _name=_name, **f: VSSN(X, *MODELS[_name][0], **MODELS[_name][1], **f)
MODULES["VSSN ar_gaussian"] = lambda **f: VSSN(X, D, Z, W, likelihood="ar_gaussian", **f)
RECURRENT: dict[str, Any] = {
    "VRNN": lambda **f: VRNN(X, D, Z, **f),
    "VRNN learned": lambda **f: VRNN(X, D, Z, control="both", control_size=2, initial_state="learned", **f),
    "DVBF": lambda **f: DVBF(X, Z, W, control="none", mlp_size=6, embed_size=5, matrices=3, **f),
    "RSSM": lambda **f: RSSM(X, D, Z, control="none", embed_size=6, **f),
    "RSSM classes": lambda **f: RSSM(X, D, 4, control="none", latent="categorical", classes=2, **f),
}
MODULES |= RECURRENT
MODULES["PGN"] = lambda **f: PGN(36, D, channels=2, embed_size=5, initial_state="learned", **f)
MODULES["RSSMLayer"] = lambda **f: RSSMLayer(X, 2, D, Z, initial_state="learned", **f)
each_module = pytest.mark.parametrize("name", MODULES)


def poisoned(module: nn.Module) -> nn.Module:
    """On the CPU, with NaN in all memory that was not filled since."""
    module = module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
    return module


def by_hand(sizes: list[tuple[int, ...]], bounds: list[float]) -> list[Tensor]:
    """Uniform draws in turn; a bound of 0 is zeros, and of -1 three orthogonal gates."""
    drawn = []
    for size, bound in zip(sizes, bounds, strict=True):
        if bound == -1:
            drawn.append(torch.cat([nn.init.orthogonal_(torch.empty(size[1], size[1])) for _ in range(3)]))
        else:
            drawn.append(torch.empty(size).uniform_(-bound, bound) if bound else torch.zeros(size))
    return drawn


def test_a_seed_gives_the_draws_that_it_has_given_since_0_1_0() -> None:
    """Records of trainings depend on them. Each layer by itself, in the order of construction."""
    torch.manual_seed(3)
    found = dict(VSSN(X, D, Z, W, embed_size=6, control="none", mlp_size=7).named_parameters())
    torch.manual_seed(3)
    sizes: dict[str, tuple[tuple[int, ...], float]] = {}

    def linear(name: str, width: int, out: int, bound: float | None = None) -> None:
        bound = 1 / math.sqrt(width) if bound is None else bound
        sizes[f"{name}.weight"], sizes[f"{name}.bias"] = ((out, width), bound), ((out,), bound)

    linear("layer.duration.input", W, 3 * D)
    sizes["layer.duration.weight_hh"], sizes["layer.duration.bias_hh"] = ((3 * D, D), -1), ((3 * D,), 0)
    linear("layer.noise_posterior.hidden", 6, 7)
    linear("layer.noise_posterior.out", 7, 2 * W)
    linear("layer.backward_recurrence.input", D + 6, 3 * D)
    sizes["layer.backward_recurrence.weight_hh"] = ((3 * D, D), -1)
    sizes["layer.backward_recurrence.bias_hh"] = ((3 * D,), 0)
    for network in ("posterior", "prior"):
        linear(f"layer.{network}.context", D, 7)
        sizes[f"layer.{network}.weight_z"] = ((7, Z), 1 / math.sqrt(Z + D))
        linear(f"layer.{network}.out", 7, 2 * Z)
    linear("encoder.linear", 6, 6)
    sizes["encoder.linear.weight"] = ((6, X), 1 / math.sqrt(X))
    sizes["encoder.linear.bias"] = ((6,), 1 / math.sqrt(X))
    linear("emission.hidden", Z + D, 7)
    linear("emission.out", 7, X)
    want = dict(zip(sizes, by_hand(*map(list, zip(*sizes.values(), strict=True))), strict=True))
    assert set(found) == set(want)
    assert_all_close(found, want, 1e-6)


@each_module
def test_every_module_resets_to_what_construction_gives(name: str) -> None:
    torch.manual_seed(3)
    made = MODULES[name]()
    after = torch.rand(1)
    for module in (made, poisoned(MODULES[name](device="meta"))):
        torch.manual_seed(3)
        module.reset_parameters()
        assert_close("the draws that follow", torch.rand(1), after, 0.0)
        torch.manual_seed(3)
        assert_all_close(module.state_dict(), MODULES[name]().state_dict(), 1e-6)
        assert all(p.requires_grad and p.is_leaf for p in module.parameters())


@each_module
def test_modules_reset_one_by_one(name: str) -> None:
    """As FSDP has it after to_empty: every module for itself, nothing is left."""
    module = poisoned(MODULES[name](device="meta"))
    for below in module.modules():
        below.reset_parameters()
    for path, parameter in module.named_parameters():
        assert parameter.isfinite().all(), path


@each_module
def test_no_value_lies_where_loading_does_not_bring_it(name: str) -> None:
    module = MODULES[name]()
    held = {key for key, _ in (*module.named_parameters(), *module.named_buffers())}
    assert held == set(module.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_from_meta_gives_the_numbers_of_its_source(name: str) -> None:
    source = make(name)
    sizes, options = MODELS[name]
    with torch.device("meta"):
        model = VSSN(X, *sizes, **options).double().eval()
    poisoned(model).load_state_dict(source.state_dict())
    given = batch(source)
    out, want = (m(**given, lengths=LENGTHS) for m in (model, source))
    assert_all_close(flat(out), flat(want), 1e-12)


def test_a_model_on_meta_tells_shapes() -> None:
    model = VSSN(X, D, Z, W, device="meta")
    out = model(torch.empty(T, B, X, device="meta"))
    assert out.elbo.shape == (B,)
    assert out.elbo.is_meta


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_device_and_dtype_of_a_model(dtype: torch.dtype) -> None:
    options = {"learn_initial_state": True, "universal": "gaussian", "num_sequences": 3, "embed_size": 6}
    for more in ({"control": "both", "control_size": 2}, {"likelihood": "nade"}, {"likelihood": "ar_gaussian"}):
        model = VSSN(X, D, Z, W, **options, **more, device="cpu", dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert (model.layer.dtype, model.layer.device) == (dtype, torch.device("cpu"))
    layer = VSSNLayer(X, D, Z, dtype=dtype)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    gates = layer.duration.weight_hh.double().chunk(3)
    assert_all_close({"gate": gates[0] @ gates[0].T}, {"gate": torch.eye(D, dtype=torch.float64)}, 2e-2)


# ---- The learned initial state -------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(D, 0, W), (0, Z, 0)])
def test_a_learned_state_of_size_0_is_no_parameter(sizes: tuple[int, int, int]) -> None:
    options = {"mlp_size": 6, "backward_size": 7, "learn_initial_state": True}
    model = VSSN(X, *sizes, **options).double().eval()
    assert [name for name, parameter in model.named_parameters() if not parameter.numel()] == []
    assert (model.layer.d_0 is None, model.layer.z_0 is None) == (sizes[0] == 0, sizes[1] == 0)
    # What 0.1.0 wrote has it, and loads.
    missing = "d_0" if sizes[0] == 0 else "z_0"
    saved = model.state_dict() | {f"layer.{missing}": torch.zeros(0)}
    again = VSSN(X, *sizes, **options).double().eval()
    again.load_state_dict(saved)
    given = batch(model)
    assert_equal("elbo", again(**given).elbo, model(**given).elbo)
    assert f"layer.{missing}" in saved, "the caller's dictionary is left as it is"
    with pytest.raises(RuntimeError, match=f"Unexpected key.*{missing}"):
        again.load_state_dict(model.state_dict() | {f"layer.{missing}": torch.zeros(2)})


# ---- Modules of the caller -----------------------------------------------------------------------


def test_an_encoder_of_the_caller_is_reset_or_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.full((6,), math.nan))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    encoder = nn.Sequential(nn.Linear(X, 6), nn.Tanh(), nn.Sequential(nn.BatchNorm1d(6)))
    model = VSSN(X, D, Z, embed_size=6, encoder=encoder)
    poisoned(model).reset_parameters()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    model = VSSN(X, D, Z, embed_size=6, encoder=nn.Sequential(nn.Linear(X, 6), Scale()))
    with pytest.raises(TypeError, match=r"^encoder\.1 must have reset_parameters as it has parameters, got Scale$"):
        model.reset_parameters()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_model_made_on_meta_is_the_one_whose_weights_it_loads(name: str, assign: bool) -> None:
    want = RECURRENT[name](dtype=torch.float64)
    found = RECURRENT[name](device="meta", dtype=torch.float64)
    found = found if assign else poisoned(found)
    found.load_state_dict(want.state_dict(), assign=assign)
    x = (torch.rand(T, B, X) > 0.5).double()
    u = torch.randn(T, B, 2, dtype=torch.float64) if want.control_size else None
    noise = tuple(torch.randn(shape, dtype=torch.float64) for shape in want.noise_shapes(T, B))
    assert_close("elbo", found(x, u, noise=noise).elbo, want(x, u, noise=noise).elbo, 1e-12)
