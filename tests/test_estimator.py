"""`vssn.Forecaster`: the conventions of scikit-learn, and results in the form in which data came."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError as TheirNotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils.validation import check_is_fitted

import vssn
from vssn import estimator
from vssn.errors import CheckpointError, ConfigError, DataError, NotFittedError

N, T, X, U, D, Z = 12, 20, 2, 1, 6, 3
SMALL: dict[str, Any] = {"hidden_size": D, "latent_size": Z, "noise_size": 2, "max_epochs": 2, "random_state": 0}
LEVELS = (0.1, 0.9)


def waves(count: int = N, seed: int = 0) -> np.ndarray[Any, Any]:
    """[N, T, X] float64 with a tenth missing."""
    draw = np.random.default_rng(seed)
    x = np.sin(np.arange(T)[:, None] / 3 + 6 * draw.random((count, 1, X))) + 0.1 * draw.normal(size=(count, T, X))
    x[draw.random(x.shape) < 0.1] = np.nan
    return x


@pytest.fixture(scope="module")
def fitted() -> vssn.Forecaster:
    return vssn.Forecaster(**SMALL).fit(waves())


@pytest.fixture(scope="module")
def driven() -> vssn.Forecaster:
    return vssn.Forecaster(**SMALL).fit(waves(), u=np.random.default_rng(1).normal(size=(N, T, U)))


# Parameters


def test_scikit_learns_clone_takes_and_keeps_the_parameters(fitted: vssn.Forecaster) -> None:
    options = {"model": {"activation": "silu"}, "training": {"weight_decay": 1e-3}, "validation": 0.2}
    one = vssn.Forecaster(**SMALL, **options)
    other = clone(one)
    assert other is not one
    assert other.get_params() == one.get_params() == vssn.Forecaster().get_params() | SMALL | options
    assert not hasattr(clone(fitted), "model_")


def test_parameters_are_set_by_name() -> None:
    forecaster = vssn.Forecaster()
    assert forecaster.set_params(hidden_size=3, verbose=True) is forecaster
    assert (forecaster.hidden_size, forecaster.verbose) == (3, True)
    with pytest.raises(ValueError, match=r"^units must be one of the parameters hidden_size, "):
        forecaster.set_params(units=3)
    with pytest.raises(TypeError):
        vssn.Forecaster(3)  # type: ignore[misc]  # by name alone
    assert repr(vssn.Forecaster(hidden_size=3)) == "Forecaster(hidden_size=3)"


def test_a_search_over_parameters_runs() -> None:
    search = GridSearchCV(
        vssn.Forecaster(**SMALL | {"max_epochs": 1}), {"hidden_size": [2, 6]}, cv=2, error_score="raise"
    )
    search.fit(waves())
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]
    assert search.best_estimator_.n_features_in_ == X


# Before it is fitted


@pytest.mark.parametrize("method", ["forecast", "impute", "transform", "score", "score_samples", "save"])
def test_what_is_not_fitted_says_so(method: str, tmp_path: Path) -> None:
    arguments: dict[str, tuple[Any, ...]] = {"forecast": (waves(), 3), "save": (tmp_path,)}
    with pytest.raises(NotFittedError, match=r"^Forecaster must be fitted first; call fit\(x\), or load\(folder\)$"):
        getattr(vssn.Forecaster(), method)(*arguments.get(method, (waves(),)))
    assert issubclass(NotFittedError, ValueError)
    assert issubclass(NotFittedError, AttributeError)
    with pytest.raises(TheirNotFittedError):
        check_is_fitted(vssn.Forecaster())


def test_it_says_what_it_learnt(fitted: vssn.Forecaster, driven: vssn.Forecaster) -> None:
    check_is_fitted(fitted)
    assert isinstance(fitted.model_, vssn.VSSN)
    assert fitted.model_.batch_first
    assert not fitted.model_.training
    assert fitted.model_.layer.hidden_size == D
    assert (fitted.n_features_in_, fitted.n_controls_in_, driven.n_controls_in_) == (X, 0, U)
    assert fitted.n_iter_ == len(fitted.history_["train/elbo_per_frame"]) == 2
    best = max(fitted.history_["valid/elbo_per_frame"])
    assert fitted.history_["valid/elbo_per_frame"][fitted.best_epoch_ - 1] == best


# Results


def test_results_of_a_stack_of_arrays(fitted: vssn.Forecaster) -> None:
    x = waves()
    ahead = fitted.forecast(x, 4, samples=5, quantiles=LEVELS)
    assert [part.shape for part in ahead] == [(N, 4, X), (5, N, 4, X), (2, N, 4, X)]
    filled = fitted.impute(x, samples=3)
    assert filled.quantiles is None
    assert (filled.mean.shape, filled.samples.shape) == ((N, T, X), (3, N, T, X))
    results = [*ahead, *filled[:2], fitted.transform(x), fitted.score_samples(x)]
    assert {type(part) for part in results} == {np.ndarray}
    assert {part.dtype for part in results} == {np.dtype("float64")}
    assert fitted.transform(x).shape == (N, T, D + Z)
    assert fitted.score_samples(x).shape == (N, T)
    assert all(np.isfinite(part).all() for part in results)


def test_what_was_observed_comes_back_to_the_digit(fitted: vssn.Forecaster) -> None:
    """Of float64, though the model is of float32."""
    x = waves()
    known = ~np.isnan(x)
    filled = fitted.impute(x, samples=2, quantiles=LEVELS)
    assert np.array_equal(filled.mean[known], x[known])
    assert all(np.array_equal(path[known], x[known]) for path in (*filled.samples, *filled.quantiles))


@pytest.mark.parametrize("kind", ["float32", "float16", "tensor"])
def test_kind_and_dtype_stay(kind: str, fitted: vssn.Forecaster) -> None:
    x = torch.from_numpy(waves()) if kind == "tensor" else waves().astype(kind)
    for found in (fitted.forecast(x, 3, samples=2).samples, fitted.impute(x, samples=2).mean, fitted.transform(x)):
        assert type(found) is type(x)
        assert found.dtype == x.dtype


def test_one_sequence_is_as_a_stack_of_one(fitted: vssn.Forecaster) -> None:
    x = waves(1)
    ahead, alone = (fitted.forecast(given, 3, samples=4, quantiles=LEVELS) for given in (x, x[0]))
    assert [part.shape for part in alone] == [(3, X), (4, 3, X), (2, 3, X)]
    np.testing.assert_array_equal(alone.samples, ahead.samples[:, 0])
    assert fitted.impute(x[0], samples=2).samples.shape == (2, T, X)
    assert fitted.transform(x[0]).shape == (T, D + Z)
    np.testing.assert_array_equal(fitted.score_samples(x[0]), fitted.score_samples(x)[0])


def test_sequences_of_several_lengths_are_each_as_alone(fitted: vssn.Forecaster) -> None:
    """The batch pads them: no padding may be seen."""
    x = [waves(1)[0], waves(1, 1)[0][:7]]
    filled = fitted.impute(x, samples=3)
    assert [part.shape for part in filled.mean] == [(T, X), (7, X)]
    assert [part.shape for part in filled.samples] == [(3, T, X), (3, 7, X)]
    assert [part.shape for part in fitted.forecast(x, 4, samples=2).samples] == [(2, 4, X)] * 2
    for index, latents in enumerate(fitted.transform(x)):
        np.testing.assert_allclose(latents, fitted.transform(x[index]), rtol=0, atol=1e-5)
    assert [part.shape for part in fitted.score_samples(x)] == [(T,), (7,)]


def test_batches_cut_the_sequences_in_their_order(fitted: vssn.Forecaster) -> None:
    x = waves()
    whole = fitted.transform(x)
    cut = vssn.Forecaster(**SMALL, batch_size=5)
    cut._take(fitted.model_, fitted.seed_)
    np.testing.assert_allclose(cut.transform(x), whole, rtol=0, atol=1e-5)
    assert cut.forecast(x, 3, samples=2).samples.shape == (2, N, 3, X)


def test_the_score_is_nats_per_observed_frame(fitted: vssn.Forecaster) -> None:
    x = waves()
    x[:, 5:10] = np.nan
    expected = fitted.score_samples(x).sum() / (~np.isnan(x)).any(-1).sum()
    assert fitted.score(x) == pytest.approx(expected, rel=1e-6)
    assert fitted.score(x) > fitted.score(x + 20 * (np.arange(T)[:, None] == 3))
    direct = fitted.model_.score(torch.from_numpy(x[:1]).float(), samples=50, seed=0).numpy()
    drawn = fitted.score_samples(x[:1], samples=50)
    assert drawn.sum() == pytest.approx(direct.sum(), rel=0.05)


def test_frames_are_scored_given_those_before_them_too(fitted: vssn.Forecaster) -> None:
    x = waves()[:2]
    ahead = fitted.score_samples(x, kind="predictive", samples=4)
    changed = x.copy()
    changed[:, 8:] += 3
    np.testing.assert_allclose(
        fitted.score_samples(changed, kind="predictive", samples=4)[:, :8], ahead[:, :8], atol=1e-4
    )
    with pytest.raises(ValueError, match="kind must be"):
        fitted.score_samples(x, kind="bound")


def test_controls_have_the_form_of_the_frames(driven: vssn.Forecaster) -> None:
    x, u = waves(), np.random.default_rng(1).normal(size=(N, T, U))
    ahead = driven.forecast(x, 4, u=u, u_future=u[:, :4], samples=3)
    assert ahead.mean.shape == (N, 4, X)
    other = driven.forecast(x, 4, u=u, u_future=u[:, :4] + 3, samples=3)
    assert not np.allclose(other.mean, ahead.mean)
    assert driven.transform(list(x), u=list(u))[0].shape == (T, D + Z)
    assert np.isfinite(driven.score(x, u=u))
    with pytest.raises(ValueError, match=r"^u must have as many sequences as x"):
        driven.transform(x, u=u[:, :-1])
    with pytest.raises(ValueError, match=r"^u_future must have as many sequences as x, each of 4 frames"):
        driven.forecast(x, 4, u=u, u_future=u[:, :3])
    with pytest.raises(ValueError, match=r"^u is missing: this model has an external control"):
        driven.transform(x)
    with pytest.raises(TypeError, match=r"^u must be given by its name, u=u: "):
        driven.fit(x, u)
    with pytest.raises(TypeError, match=r"^u must be given by its name"):
        driven.score(x, u)


# Data


def test_one_long_series_is_cut_into_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = estimator.FileDataset
    monkeypatch.setattr(estimator, "FileDataset", lambda source: seen.append(source.x) or real(source))
    x = np.sin(np.arange(100.0) / 3)[:, None]
    vssn.Forecaster(**SMALL | {"max_epochs": 1}, window=25, validation=0.2).fit(x)
    train, valid = seen
    assert [len(part) for part in train] == [25, 25, 25, 5]
    assert [len(part) for part in valid] == [20]
    assert torch.equal(torch.cat([*train, *valid]), torch.from_numpy(x).float())


def test_the_likelihood_is_that_of_the_values() -> None:
    counts = np.random.default_rng(0).poisson(3.0, (N, T, X))
    forecaster = vssn.Forecaster(**SMALL).fit(counts)
    assert forecaster.model_.config["likelihood"] == "poisson"
    assert forecaster.model_.scaling is None
    assert forecaster.forecast(counts, 2, samples=2).samples.dtype == np.float32
    real = vssn.Forecaster(**SMALL, likelihood="student_t").fit(counts)
    assert real.model_.config["likelihood"] == "student_t"
    assert real.model_.scaling is not None
    plain = vssn.Forecaster(**SMALL, standardise=False, model={"min_logvar": -5.0}).fit(waves())
    assert plain.model_.scaling is None
    assert (plain.model_.config["min_logvar"], plain.model_.config["min_logvar_x"]) == (-5.0, -10.0)


@pytest.mark.parametrize(
    "own",
    [
        {"model": {"objective": "nasmc", "particles": 2}},
        {"training": {"constraint": {"target": -1.0}}},
        {"training": {"kl_anneal_updates": 0}},
        {"model": {"name": "vrnn"}},
        {"model": {"name": "dvbf", "control": "none"}, "hidden_size": None},
    ],
    ids=str,
)
def test_what_is_given_wins_over_what_is_proposed(own: dict[str, Any]) -> None:
    """It was refused for keys that nobody gave: kl_start, kl_anneal_updates, noise_size."""
    sizes = {"hidden_size": 4, "latent_size": 2, "max_epochs": 1, "random_state": 0}
    assert np.isfinite(vssn.Forecaster(**sizes | own).fit(waves()).score(waves()))


def test_what_is_given_is_refused_by_its_name() -> None:
    own = {"model": {"objective": "nasmc", "particles": 2}, "training": {"kl_anneal_updates": 5, "kl_start": 0}}
    with pytest.raises(ConfigError, match=r"training\.kl_anneal_updates: expected 0 with model\.objective 'nasmc'"):
        vssn.Forecaster(**SMALL | own).fit(waves())


def test_binary_frames_may_be_missing_in_part() -> None:
    x = (np.random.default_rng(0).random((N, T, 4)) < 0.3).astype(np.float32)
    forecaster = vssn.Forecaster(**SMALL | {"max_epochs": 1}).fit(x)
    assert forecaster.model_.config["likelihood"] == "bernoulli"
    x[:, 3, 0] = np.nan
    assert set(np.unique(forecaster.impute(x, samples=3).samples)) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("parameters", "x", "message"),
    [
        ({}, np.zeros(5), r"^x must have shape \[N, T, X\], or \[T, X\] of one sequence, got \[5\]"),
        ({}, "waves", r"^x must be an array or a tensor"),
        ({}, [], r"^x must hold one sequence at least"),
        ({}, [np.zeros((3, 2)), np.zeros((3, 1))], r"^x must be of one number of features, got 1 and 2"),
        ({}, np.full((3, 4, 1), np.inf), r"^x\[0\] must be finite, got inf"),
        ({"validation": 1.0}, waves(), r"^validation must be a share between 0 and 1, got 1.0"),
        ({"random_state": -1}, waves(), r"^random_state must be an int in \[0, 2\*\*32\), got -1"),
        ({"random_state": "now"}, waves(), r"^random_state must be an int, a numpy.random.RandomState or None"),
        ({"likelihood": "normal"}, waves(), r"^config: model\.likelihood: expected 'bernoulli'"),
        ({"window": 0}, waves(), r"^window must be an int of at least 1"),
        ({"batch_size": 0}, waves(), r"^batch_size must be an int of at least 1, got 0$"),
        ({"standardise": "no"}, waves(), r"^standardise must be True or False, got 'no'$"),
        ({"model": ["masked"]}, waves(), r"^model must be a dict of keys of a configuration, got list$"),
        ({"training": "seed"}, waves(), r"^training must be a dict of keys of a configuration, got str$"),
        ({"output": 3}, waves(), r"^output must be a str or a Path, got int$"),
        ({}, np.zeros((N, T, 0)), r"^x must be of one feature at least, got shape \[20, 0\]$"),
        ({}, np.full((N, T, X), np.nan), r"^x must hold values to learn from, got none but NaN$"),
        ({}, waves() * 1e39, r"^x\[0\] must be finite, got -?inf; NaN stands for what is missing; leave out what is "),
        ({}, waves().tolist(), r"^x\[0\] must be a tensor or an array \[T, X\], got list; give numpy.asarray of it$"),
        ({}, pd.DataFrame(waves()[0]), r"^x must be an array .* got DataFrame; give its \.to_numpy\(\)$"),
        ({}, [pd.DataFrame(waves()[0])], r"^x\[0\] must be a tensor .* got DataFrame; give its \.to_numpy\(\)$"),
        ({}, np.ma.masked_invalid(waves()), r"^x must be a plain array, got a masked one; give \.filled\(numpy\.nan\)"),
    ],
)
def test_a_mistake_is_one_line(parameters: dict[str, Any], x: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        vssn.Forecaster(**parameters).fit(x)


def test_other_data_must_have_the_features(fitted: vssn.Forecaster) -> None:
    with pytest.raises(ValueError, match=r"^x must have 2 features as in fit, got 1$"):
        fitted.transform(waves()[..., :1])


def test_what_is_infinite_is_told_in_words_of_this_class(fitted: vssn.Forecaster) -> None:
    """Which has no mask to give."""
    for call in (fitted.impute, fitted.transform, fitted.score, fitted.score_samples, lambda x: fitted.forecast(x, 2)):
        with pytest.raises(DataError, match=r"^x\[0\] must be finite, got inf; NaN stands for what is missing; leave "):
            call(np.full((1, 4, X), np.inf))


def test_a_mask_of_numpy_is_not_passed_over(fitted: vssn.Forecaster) -> None:
    """What is masked was taken as observed."""
    hidden = np.ma.array(np.nan_to_num(waves()), mask=np.isnan(waves()))
    with pytest.raises(TypeError, match=r"^x must be a plain array, got a masked one"):
        fitted.score(hidden)
    assert fitted.score(hidden.filled(np.nan)) == fitted.score(waves())


def test_numbers_of_numpy_are_numbers(fitted: vssn.Forecaster, tmp_path: Path) -> None:
    """As searches draw them."""
    x = waves()
    ahead = fitted.forecast(x, np.int64(3), samples=np.int32(2), quantiles=np.array([0.1, 0.9]))
    np.testing.assert_array_equal(ahead.quantiles, fitted.forecast(x, 3, samples=2, quantiles=LEVELS).quantiles)
    filled = fitted.impute(x, samples=np.int64(2), quantiles=np.array(LEVELS))
    assert filled.quantiles.shape == (2, N, T, X)
    assert fitted.score_samples(x, samples=np.int64(2)).shape == (N, T)
    numbers = {"hidden_size": np.int64(D), "max_epochs": np.int64(1), "window": np.int32(9), "batch_size": np.int64(4)}
    more = {"learning_rate": np.float32(0.01), "validation": np.float32(0.2), "model": {"free_bits": np.float64(0.5)}}
    other = vssn.Forecaster(**SMALL | numbers | more).fit(x)
    other.save(tmp_path / "kept")
    back = vssn.Forecaster.load(tmp_path / "kept")
    assert back.get_params() == other.get_params()
    assert {type(back.hidden_size), type(back.model["free_bits"])} == {int, float}


def test_a_list_of_two_precisions_gives_the_wider(fitted: vssn.Forecaster) -> None:
    x = [waves(1)[0].astype("float32"), waves(1)[0]]
    filled = fitted.impute(x, samples=2).mean
    assert {part.dtype for part in filled} == {np.dtype("float64")}
    known = ~np.isnan(x[1])
    assert np.array_equal(filled[1][known], x[1][known])
    assert fitted.impute([np.ones((T, X), dtype=int), x[1]], samples=2).mean[1].dtype == np.float64


def test_batches_have_one_sequence_at_least(fitted: vssn.Forecaster) -> None:
    other = vssn.Forecaster(batch_size=0)
    other._take(fitted.model_, 0)
    with pytest.raises(ValueError, match=r"^batch_size must be an int of at least 1, got 0$"):
        other.transform(waves())


def test_one_frame_alone_is_refused() -> None:
    with pytest.raises(DataError, match=r"^x: expected sequences of 3 frames at least .*, got 1 sequence of 1 frame$"):
        vssn.Forecaster().fit(np.zeros((1, 2)))


# Random numbers


def test_one_random_state_gives_one_result() -> None:
    """And leaves the generators of the caller alone."""
    x = waves()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    one, other = (vssn.Forecaster(**SMALL).fit(x) for _ in range(2))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert one.score(x) == other.score(x) == one.score(x)
    np.testing.assert_array_equal(one.forecast(x, 3, samples=2).samples, other.forecast(x, 3, samples=2).samples)
    assert vssn.Forecaster(**SMALL | {"random_state": 1}).fit(x).score(x) != one.score(x)


def test_a_random_state_of_numpy_is_drawn_from() -> None:
    x, options = waves(), SMALL | {"max_epochs": 1}
    seeds = [vssn.Forecaster(**options | {"random_state": np.random.RandomState(5)}).fit(x).seed_ for _ in range(2)]
    assert seeds[0] == seeds[1] == np.random.RandomState(5).randint(2**31)


# Files


def test_what_is_saved_comes_back(fitted: vssn.Forecaster, tmp_path: Path) -> None:
    """In a process without what training needs, too."""
    x = waves()
    fitted.save(tmp_path / "kept")
    back = vssn.Forecaster.load(tmp_path / "kept")
    assert back.get_params() == fitted.get_params()
    assert (back.history_, back.best_epoch_, back.n_iter_) == (fitted.history_, fitted.best_epoch_, fitted.n_iter_)
    np.testing.assert_array_equal(back.forecast(x, 3, samples=2).samples, fitted.forecast(x, 3, samples=2).samples)
    np.save(tmp_path / "x.npy", x)
    code = f"""
import sys
for name in ("pytorch_lightning", "pydantic", "yaml", "sklearn", "pandas"):
    sys.modules[name] = None
import numpy, vssn
print(vssn.Forecaster.load({str(tmp_path / "kept")!r}).score(numpy.load({str(tmp_path / "x.npy")!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(fitted.score(x), rel=1e-5)


def test_a_history_with_nan_is_json(fitted: vssn.Forecaster, tmp_path: Path) -> None:
    """Of an epoch whose updates were all left out there is no training loss."""
    kept = vssn.Forecaster(**SMALL)
    kept._take(fitted.model_, 0)
    kept.history_, kept.best_epoch_ = {"epoch": [1.0], "train/loss": [np.nan]}, 1
    kept.save(tmp_path / "own")
    text = (tmp_path / "own" / "forecaster.json").read_text()
    json.loads(text, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert str(vssn.Forecaster.load(tmp_path / "own").history_) == "{'epoch': [1.0], 'train/loss': [nan]}"


def test_a_run_is_kept_and_loaded_as_a_forecaster(tmp_path: Path) -> None:
    x = waves()
    forecaster = vssn.Forecaster(**SMALL, output=tmp_path / "run").fit(x)
    back = vssn.Forecaster.load(tmp_path / "run" / "best.ckpt")
    np.testing.assert_allclose(back.transform(x), forecaster.transform(x), rtol=0, atol=1e-6)
    forecaster.save(tmp_path / "kept")
    assert vssn.Forecaster.load(tmp_path / "kept").output == str(tmp_path / "run")


def test_what_cannot_be_written_is_named(fitted: vssn.Forecaster, tmp_path: Path) -> None:
    other = vssn.Forecaster(random_state=np.random.RandomState(0))
    other._take(fitted.model_, 0)
    with pytest.raises(TypeError, match=r"^random_state must be a plain value to be saved, got RandomState"):
        other.save(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "content", ["{", "[]", "[" * 100_000, '{"parameters": {"units": 3}}', '{"history": {"loss": []}}']
)
def test_damaged_parameters_are_named(content: str, fitted: vssn.Forecaster, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    Path(tmp_path, "forecaster.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"forecaster.json is damaged or of another version; save it again$"):
        vssn.Forecaster.load(tmp_path)


def test_training_is_silent_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    vssn.Forecaster(**SMALL | {"max_epochs": 1}).fit(waves())
    assert capsys.readouterr().out == ""
    vssn.Forecaster(**SMALL | {"max_epochs": 1}, verbose=True).fit(waves())
    assert "epoch   1" in capsys.readouterr().out
