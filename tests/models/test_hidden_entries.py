"""What the networks do not see: held-out features, and the entries that coordinated dropout hides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import B, D, T, U, W, X, Z
from torch import Tensor

from vssn import VSSN, fit, sequence_bounds
from vssn.errors import ConfigError
from vssn.inference.filtering import one_step_predictions
from vssn.likelihoods import LIKELIHOODS
from vssn.training.config import check_config
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

LENGTHS = torch.tensor([5, 0, 3, 1])


def make(**more: object) -> VSSN:
    torch.manual_seed(0)
    options = {"likelihood": "poisson", "control": "both", "control_size": U, "embed_size": 6} | more
    return VSSN(X, D, Z, W, **options).double()


def given(model: VSSN) -> dict[str, object]:
    source = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.full((T, B, X), 1.5, dtype=torch.float64), generator=source)
    u, eps_w, eps_z = (torch.randn(T, B, size, generator=source, dtype=torch.float64) for size in (U, W, Z))
    return {"x": x, "u": u, "noise": (eps_w, eps_z), "lengths": LENGTHS}


# Held-out features


@pytest.mark.parametrize("masked", [False, True])
def test_held_out_features_are_scored_and_not_seen(masked: bool) -> None:
    model = make(held_out=1, masked=masked)
    assert model.frame_size == (2 * (X - 1) if masked else X - 1)
    batch = given(model)
    changed = batch["x"].clone()
    changed[..., -1] += 3
    one, other = model(**batch), model(**batch | {"x": changed})
    for part in ("kl_w", "kl_z"):
        assert_equal(part, getattr(other, part), getattr(one, part))
    assert_all_close(other.state._asdict(), one.state._asdict(), 0.0)
    seen = torch.arange(T)[:, None] < LENGTHS
    assert ((one.reconstruction != other.reconstruction) == seen).all()
    seen_one = batch["x"].clone()
    seen_one[..., 0] += 3
    assert (model(**batch | {"x": seen_one}).kl_w != one.kl_w).any()


def test_held_out_features_go_through_everything() -> None:
    model = make(held_out=2)
    x, u = given(model)["x"], given(model)["u"]
    assert model.generate(3, 2, u=torch.zeros(3, 2, U).double()).x.shape == (3, 2, X)
    assert model.forecast(x, 2, u=u, u_future=u[:2]).x.shape == (2, B, X)
    assert one_step_predictions(model, x, u).shape == (T - 1, B, X)
    assert sequence_bounds(model, x, u, particles=3).total.shape == (B,)
    assert "held_out=2" in repr(model)
    with pytest.raises(ValueError, match=r"^held_out must be below x_size=4, got 4$"):
        make(held_out=4)


# Coordinated dropout


def hidden_of(model: VSSN, seed: int, rate: float, **batch: object) -> Tensor:
    torch.manual_seed(seed)
    return model.prepare(batch["x"], batch["u"], batch["lengths"], coordinated_dropout=rate).hidden


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_takes_hidden_entries_alone_and_no_network_sees_them(masked: bool) -> None:
    model, rate = make(masked=masked), 0.4
    batch = given(model)
    hidden = hidden_of(model, 5, rate, **batch)
    assert 0.2 < hidden.double().mean() < 0.6

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        out = model(**batch | {"x": x}, coordinated_dropout=rate)
        assert_close("elbo", out.elbo, (out.reconstruction - out.kl_z - out.kl_w).sum(0), 1e-12)
        return out.loss, out.kl_w

    loss, kl_w = run(batch["x"])
    assert_equal("kl_w", run(torch.where(hidden, batch["x"] + 1, batch["x"]))[1], kl_w)
    assert (run(torch.where(hidden, batch["x"], batch["x"] + 1))[1] != kl_w).any()
    # The same by hand: networks on what is shown, the density of what is not.
    shown = torch.where(hidden, 0.0, batch["x"]) / (1.0 if masked else 1 - rate)
    encoded = model.prepare(batch["x"], batch["u"], LENGTHS)
    frames = torch.cat((torch.zeros(1, B, model.frame_size).double(), model.frames(shown, ~hidden)))
    valid = torch.arange(T)[:, None] < LENGTHS
    frames[1:] = torch.where(valid[..., None], frames[1:], 0.0) if not masked else frames[1:]
    embedded = model.encoder(frames.flatten(0, 1)).view(T + 1, B, -1)
    controls = model.layer.select_controls(embedded[:-1], encoded.controls[1])
    start = model.layer.initial_state(B, batch["x"])
    result = model.layer.infer(embedded[1:], controls, *start, batch["noise"], LENGTHS)
    terms = torch.distributions.Poisson(model.likelihood.mean(model.decode(result.z, result.d))).log_prob(batch["x"])
    counted = (torch.where(hidden & valid[..., None], terms, 0.0)).sum() / rate
    want = ((result.kl_z + result.kl_w).sum() - counted) / LENGTHS.sum()
    assert_close("loss", loss, want, 1e-12)


def test_the_loss_has_the_expectation_of_the_whole_one() -> None:
    """Where nothing is seen anyway: only what is counted is drawn."""
    model = VSSN(X, D, Z, likelihood="poisson", control="none").double()
    with torch.no_grad():
        model.layer.backward_recurrence.input.weight[:, D:] = 0
        batch = given(model)
        more = {"noise": (torch.zeros(T, B, 0).double(), batch["noise"][1])}
        whole = model(batch["x"], **more).loss
        losses = torch.stack([model(batch["x"], **more, coordinated_dropout=0.3).loss for _ in range(600)])
    assert abs(losses.mean() - whole) < 4.5 * losses.std() / 600**0.5


def test_missing_entries_are_neither_shown_nor_counted() -> None:
    model = make(masked=True)
    batch, mask = given(model), torch.rand(T, B, X) > 0.5
    spoilt = batch["x"].masked_fill(~mask, torch.nan)
    losses = []
    for x in (batch["x"], spoilt):
        torch.manual_seed(3)
        losses.append(model(**batch | {"x": x}, mask=mask, coordinated_dropout=0.4).loss)
    assert_equal("loss", losses[1], losses[0])
    torch.manual_seed(3)
    hidden = model.prepare(batch["x"], batch["u"], LENGTHS, mask=mask, coordinated_dropout=0.4).hidden
    assert not (hidden & ~mask).any()
    assert hidden.any()


@pytest.mark.parametrize(("rate", "message"), [(1.0, "must be below 1, got 1.0"), (-0.1, "must be a finite number of")])
def test_a_rate_that_is_none_is_named(rate: float, message: str) -> None:
    model = make()
    with pytest.raises(ValueError, match=f"^coordinated_dropout {message}"):
        model(**given(model), coordinated_dropout=rate)


def config(likelihood: str, rate: float, output: Path | None = None) -> dict[str, object]:
    training = {"coordinated_dropout": rate, "max_epochs": 2} | ({"output": str(output)} if output else {})
    model = {"hidden_size": 6, "latent_size": 2, "likelihood": likelihood}
    return {"data": {"set": "given"}, "model": model, "training": training}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_run_takes_it_where_a_part_of_a_frame_has_a_density(likelihood: str) -> None:
    if likelihood not in ("nade", "ar_gaussian"):
        assert check_config(config(likelihood, 0.3), "here").training.coordinated_dropout == 0.3
        return
    check_config(config(likelihood, 0.0), "here")
    with pytest.raises(
        ConfigError, match=rf"coordinated_dropout: expected 0 with model.likelihood '{likelihood}', whi"
    ):
        check_config(config(likelihood, 0.3), "here")


def test_a_run_with_it_trains_on_other_numbers_and_validates_on_all(tmp_path: Path) -> None:
    x = torch.poisson(torch.full((6, 7, 3), 1.0))
    results = []
    for name, rate in (("with", 0.3), ("again", 0.3), ("without", 0.0)):
        results.append(fit(config("poisson", rate, tmp_path / name), (x, x, x)).valid.micro)
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_features_of_data_of_ones_own_are_held_out(tmp_path: Path) -> None:
    """Before its size is known the configuration is checked with another."""
    model = {"hidden_size": 5, "latent_size": 3, "likelihood": "gaussian", "held_out": 2}
    parts = [torch.randn(3, T, X) for _ in range(3)]
    result = fit({"model": model, "training": {"output": str(tmp_path / "run"), "max_epochs": 1}}, parts)
    assert (result.model.held_out, result.model.frame_size) == (2, X - 2)
    with pytest.raises(ConfigError, match=f"held_out must be below x_size={X}, got {X}"):
        fit({"model": model | {"held_out": X}, "training": {"output": str(tmp_path / "other")}}, parts)
