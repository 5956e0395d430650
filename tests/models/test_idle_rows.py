"""Rows without a step, as a batch has them in the chunks behind the ends of its shorter sequences: they hand on the
state that they got, and whatever stands there, NaN too where nobody looks (on a GPU), no gradient is another."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import small_dvbfs
import small_models
import small_vrnns
import torch
from random_models import random_batch, with_random_weights
from small_models import LENGTHS, parameter_gradients
from torch import Tensor

from vssn import PGN, RSSM, VSSNLayer
from vssn.models.base import FrameModel
from vssn.models.objectives import OF_PARTICLES
from vssn_kernels.testing import assert_equal

IDLE = 1  # of LENGTHS
Case = tuple[FrameModel, dict[str, Any]]


def of(small: Any, name: str, **more: Any) -> Case:
    model = small.make(name, **more)
    return model, small.batch(model)


def drawn(model: FrameModel) -> Case:
    with_random_weights(model.double(), 5)
    return model.eval(), random_batch(model, 6, 5, len(LENGTHS))


def rssm(**more: Any) -> Case:
    return drawn(RSSM(4, 5, 6, control_size=2, mlp_size=7, joint_size=6, likelihood="gaussian", **more))


CASES: dict[str, Callable[..., Case]] = {
    **{
        f"vssn_{name}": lambda name=name, **more: of(small_models, name, **more)
        for name in small_models.MODELS | small_models.INFERRED
    },
    **{f"vrnn_{name}": lambda name=name, **more: of(small_vrnns, name, **more) for name in small_vrnns.VRNNS},
    **{f"dvbf_{name}": lambda name=name, **more: of(small_dvbfs, name, **more) for name in small_dvbfs.DVBFS},
    "rssm": rssm,
    "rssm_classes": lambda **more: rssm(latent="categorical", classes=3, **more),
    "pgn": lambda: drawn(PGN(64, 5, channels=2, embed_size=6)),
}
each_value = pytest.mark.parametrize("value", [math.inf, math.nan])


@pytest.fixture(autouse=True)
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vssn.utils.values.looked_at", lambda device: False)


def check(model: FrameModel, given: dict[str, Any], value: float) -> None:
    """With the value in the whole state of the idle row, and with a number there: the same bits."""
    torch.manual_seed(0)
    before, found = model(**given).state, []
    for filled in (0.5, value):
        state = type(before)(*(part.detach().clone() for part in before))
        for part in state:
            part[IDLE] = filled
        torch.manual_seed(0)
        out = model(**given, lengths=LENGTHS, state=state)
        behind = out.state._asdict()
        for name, part in behind.items():
            assert_equal(f"{name} handed on", part[IDLE].detach(), getattr(state, name)[IDLE])
        busy = {f"state's {name}": part[LENGTHS > 0] for name, part in behind.items()}
        outputs = {name: part for name, part in out._asdict().items() if name != "state"}
        found.append({**outputs, **busy, **parameter_gradients(model, out.loss)})
    want, got = found
    for name, tensor in want.items():
        assert_equal(name, got[name].detach(), tensor.detach())


@each_value
@pytest.mark.parametrize("name", CASES)
def test_the_state_of_an_idle_row_counts_for_nothing(name: str, value: float) -> None:
    check(*CASES[name](), value)


@each_value
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        *product(("vssn_both", "vssn_srnn_residual", "vssn_causal_both_residual"), OF_PARTICLES),
        *product(("vrnn_both", "rssm"), OF_PARTICLES),
        ("rssm_classes", "nasmc"),
    ],
)
def test_nor_with_particles(name: str, objective: str, value: float) -> None:
    model, given = CASES[name](objective=objective, particles=3)
    check(model, {"x": given["x"], "u": given["u"]}, value)


@each_value
def test_nor_in_a_layer(value: float) -> None:
    layer = VSSNLayer(4, 5, 3, 2, dtype=torch.float64)
    x = torch.randn(5, len(LENGTHS), 4, dtype=torch.float64)
    noise = layer.draw_noise(x)
    found: list[dict[str, Tensor]] = []
    for filled in (0.5, value):
        state = tuple(torch.full((len(LENGTHS), size), 0.1, dtype=torch.float64) for size in (5, 3, 4))
        for part in state:
            part[IDLE] = filled
        output, behind, kl = layer(x, state, LENGTHS, noise=noise)
        for name, part, own in zip(behind._fields, behind, state, strict=True):
            assert_equal(f"{name} handed on", part[IDLE].detach(), own[IDLE])
        found.append({"output": output, "kl": kl, **parameter_gradients(layer, output.sum() + kl.sum())})
    want, got = found
    for name, tensor in want.items():
        assert_equal(name, got[name].detach(), tensor.detach())
