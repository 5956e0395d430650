"""A model with the conventions of scikit-learn: `Forecaster(...).fit(x)`, then forecast, impute, score, transform.

What is not given is proposed from the data as `vssn init` does, training is `vssn.fit`, and each method is that of
`vssn.VSSN` on sequences in the form that they came in. scikit-learn is not needed; its clone and searches work.
"""

from __future__ import annotations

import contextlib
import csv
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vssn.data.batching import PaddedBatch
from vssn.data.files import FileDataset, hold_out, windows
from vssn.data.formats.base import Source, numbered
from vssn.data.layouts import sequences_of
from vssn.data.proposals import STANDARDISED_FLOOR, propose
from vssn.errors import CheckpointError, DataError, NotFittedError
from vssn.inference.by_sequence import (
    Call,
    Found,
    by_sequence,
    frames_and_controls,
    require_finite_or_missing,
    with_observed,
)
from vssn.likelihoods import LIKELIHOODS
from vssn.nn.interface import Forecast, Imputation, SequenceModel
from vssn.utils.checks import require_flag, require_number, require_size
from vssn.utils.command import of_user, replacing, to_json
from vssn.utils.values import REAL, one_word_of_rounding, warn_of_rounding
from vssn_kernels.arguments import shown

SETTINGS = "forecaster.json"  # beside the model's files in a saved folder
TOGETHER = 64  # sequences in a batch, unless batch_size says


class Forecaster:
    """Forecasts, fills in, scores and encodes sequences.

        forecaster = vssn.Forecaster(max_epochs=50, random_state=0).fit(x)
        ahead = forecaster.forecast(x, 12, quantiles=(0.1, 0.5, 0.9))

    x is an array of NumPy's or a tensor [N, T, X], a list of [T_i, X], or one sequence [T, X]; NaN is missing. Controls
    u from outside have the form of x. Results come in that form too, of its floating dtype.

    Args:
        hidden_size, latent_size, noise_size: D, Z, W of `vssn.VSSN`; here and below None: proposed from the data.
        likelihood: by its name, as of `vssn.VSSN`.
        standardise: whether the model keeps mean and std of the data (None: with a likelihood of real numbers).
        window: frames of the pieces that training sequences are cut into.
        batch_size, max_epochs, learning_rate: of training.
        patience: epochs without a better validation score after which training ends.
        validation: share of the data that chooses the best epoch: whole sequences, of fewer than ten their last parts.
        model, training: further keys of these sections of a configuration, which win.
        random_state: an int for results that repeat, a numpy RandomState, or None: from NumPy's own generator.
        output: folder that keeps the run; None: none.
        verbose: print a line an epoch.

    Attributes:
        model_: the `vssn.VSSN` of the best epoch, in evaluation mode and batch_first.
        history_: dict of lists, a value an epoch: "epoch", "train/elbo_per_frame", "valid/elbo_per_frame", ...
        n_features_in_, n_controls_in_: X and U.
        n_iter_, best_epoch_: epochs trained, and the one whose weights were taken, counted from 1.
        seed_: from which all draws follow.

    Raises:
        ValueError, TypeError: of every method, naming the argument, what was expected and what came.
    """

    model_: SequenceModel
    history_: dict[str, list[float]]
    n_features_in_: int
    n_controls_in_: int
    n_iter_: int
    best_epoch_: int
    seed_: int

    def __init__(
        self,
        *,
        hidden_size: int | None = None,
        latent_size: int | None = None,
        noise_size: int | None = None,
        likelihood: str | None = None,
        standardise: bool | None = None,
        window: int | None = None,
        batch_size: int | None = None,
        max_epochs: int | None = None,
        learning_rate: float | None = None,
        patience: int | None = None,
        validation: float = 0.1,
        model: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        output: str | Path | None = None,
        verbose: bool = False,
    ) -> None:
        # Kept as they came, and checked by fit: so scikit-learn's clone has it.
        self.hidden_size, self.latent_size, self.noise_size = hidden_size, latent_size, noise_size
        self.likelihood, self.standardise, self.window = likelihood, standardise, window
        self.batch_size, self.max_epochs, self.learning_rate = batch_size, max_epochs, learning_rate
        self.patience, self.validation, self.model, self.training = patience, validation, model, training
        self.random_state, self.output, self.verbose = random_state, output, verbose

    # Parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; `deep` is scikit-learn's, and changes nothing."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **parameters: Any) -> Forecaster:
        """Changes them, for the next fit. Raises ValueError for one that there is not."""
        known = self.get_params()
        for name, value in parameters.items():
            if name not in known:
                raise ValueError(f"{name} must be one of the parameters {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        given = {name: value for name, value in self.get_params().items() if value != defaults[name].default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        takes = InputTags(two_d_array=True, three_d_array=True, allow_nan=True)
        return Tags(None, TargetTags(required=False), TransformerTags(), input_tags=takes)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    # Training

    def fit(self, x: Any, y: Any = None, *, u: Any = None) -> Forecaster:
        """Trains on x with the controls u, a start anew; returns itself.

        Args:
            y: not used: scikit-learn passes it.

        Raises:
            DataError, ConfigError, TrainingError: as of `vssn.fit`; all but the last are ValueErrors of what came.
        """
        from vssn.training.fit import fit

        _refuse_controls(y, x)
        chosen = _checked(self.get_params())
        xs, us, _ = frames_and_controls(x, u)
        require_finite_or_missing(xs, us)
        with one_word_of_rounding():
            for letter, arrays in (("x", xs), ("u", us or [])):
                for index, part in enumerate(arrays):
                    warn_of_rounding(f"{letter}[{index}]", part)
        if not any(bool(part.isfinite().any()) for part in xs):
            raise DataError("x must hold values to learn from, got none but NaN")
        seed = _seed(chosen.random_state)
        channels, controls = numbered("x", xs[0].shape[1]), [] if us is None else numbered("u", us[0].shape[1])
        names = [f"x[{index}]" for index in range(len(xs))]
        frames = [part.float() for part in xs]
        driven = None if us is None else [part.float() for part in us]
        source = Source(frames, driven, names, channels, controls, None, None, "arrays")
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory()) if chosen.output is None else str(of_user(chosen.output))
            settings, window = _settings(chosen, source, folder, seed)
            train, valid = hold_out(source, chosen.validation, seed)
            if window is not None:
                train = windows(train, window)
            parts = [FileDataset(part) for part in (train, valid)]
            result = fit(settings, (*parts, parts[-1]), verbose=bool(chosen.verbose))
            self.history_ = _history(Path(folder, "metrics.csv"))
        self._take(result.model, seed)
        self.n_iter_, self.best_epoch_ = len(self.history_["epoch"]), result.best_epoch
        return self

    def _take(self, model: SequenceModel, seed: int) -> None:
        model.set_batch_first(True)
        self.model_, self.seed_ = model, seed
        self.n_features_in_, self.n_controls_in_ = model.x_size, model.control_size

    # What it is for

    def forecast(
        self,
        x: Any,
        steps: int,
        *,
        u: Any = None,
        u_future: Any = None,
        samples: int = 100,
        quantiles: Sequence[float] | None = None,
    ) -> Forecast:
        """The `steps` frames behind each sequence.

        Args:
            u_future: controls of the frames to come, in the form of x, `steps` long.
            samples: S paths drawn.
            quantiles: Q numbers in [0, 1] to take of them.

        Returns:
            Forecast(mean [N, steps, X], samples [S, N, steps, X], quantiles [Q, N, steps, X] or None); of a list lists,
            of one sequence without N.
        """
        steps, samples, quantiles = _plain(steps), _plain(samples), _plain(quantiles)
        ahead = None if u_future is None else sequences_of("u_future", u_future, "U")[0]
        if ahead is not None and [len(part) for part in ahead] != [steps] * len(sequences_of("x", x)[0]):
            raise ValueError(
                f"u_future must have as many sequences as x, each of {steps} frames as steps says; got others"
            )

        def call(model: SequenceModel, batch: PaddedBatch, seed: int) -> Forecast:
            here = slice(batch.first, batch.first + len(batch.lengths))
            to_come = None if ahead is None else torch.stack(ahead[here]).to(batch.x)
            known: dict[str, Any] = {"u": batch.u, "u_future": to_come, "lengths": batch.lengths}
            found: Forecast = model.forecast(batch.x, steps, samples, quantiles, **known, seed=seed)
            return found

        found = self._apply(call, x, u, whole=True)
        return Forecast(*(found.shown(parts) for parts in found.results))

    def impute(
        self, x: Any, *, u: Any = None, samples: int = 100, quantiles: Sequence[float] | None = None
    ) -> Imputation:
        """Fills in what is NaN in x, given all that is observed.

        Args:
            samples, quantiles: as of `forecast`.

        Returns:
            Imputation(mean [N, T, X], samples [S, N, T, X], quantiles [Q, N, T, X] or None), in all of which x stands
            as it came where it is observed; of a list lists, of one sequence without N.
        """

        samples, quantiles = _plain(samples), _plain(quantiles)

        def call(model: SequenceModel, batch: PaddedBatch, seed: int) -> Imputation:
            return model.impute(batch.x, None, samples, quantiles, u=batch.u, lengths=batch.lengths, seed=seed)

        found = self._apply(call, x, u)
        kept = [None if parts is None else list(map(with_observed, found.xs, parts)) for parts in found.results]
        return Imputation(*(found.shown(parts) for parts in kept))

    def transform(self, x: Any, *, u: Any = None, kind: str = "smooth") -> Any:
        """d and z of every frame side by side, [N, T, D+Z]: the latents at their means.

        Args:
            kind: "smooth", given the whole sequence, or "filter", each frame given those up to it.
        """

        def call(model: SequenceModel, batch: PaddedBatch, seed: int) -> tuple[Tensor]:
            latents = model.latents(batch.x, batch.u, batch.lengths, kind=kind, seed=seed)
            return (torch.cat((latents.d, latents.z), -1),)

        found = self._apply(call, x, u)
        return found.shown(found.results[0])

    def fit_transform(self, x: Any, y: Any = None, *, u: Any = None) -> Any:
        """`fit`, then `transform` of the same x."""
        return self.fit(x, y, u=u).transform(x, u=u)

    def score_samples(self, x: Any, *, u: Any = None, kind: str = "elbo", samples: int = 1) -> Any:
        """Nats of every frame, [N, T], low where something is out of place.

        Args:
            kind: "elbo", its part of the lower bound on log p(x), or "predictive", given the frames before it alone:
                see `vssn.VSSN.score`.
            samples: draws that are averaged; "predictive" takes many.
        """
        found = self._scores(x, u, _plain(samples), kind)
        return found.shown(found.results[0])

    def score(self, x: Any, y: Any = None, *, u: Any = None) -> float:
        """The lower bound on log p(x) of all sequences in nats, over the frames with an observed entry: higher is
        better. y is not used."""
        _refuse_controls(y, x)
        found = self._scores(x, u, 1)
        assert found.results[0] is not None
        total = sum(float(part.double().sum()) for part in found.results[0])
        return total / max(sum(int((~part.isnan()).any(-1).sum()) for part in found.xs), 1)

    def _scores(self, x: Any, u: Any, samples: int, kind: str = "elbo") -> Found:
        def call(model: SequenceModel, batch: PaddedBatch, seed: int) -> tuple[Tensor]:
            terms = model.score(batch.x, batch.u, batch.lengths, kind=kind, samples=samples, seed=seed)
            return (terms[..., None],)

        found = self._apply(call, x, u)
        assert found.results[0] is not None
        return found._replace(results=[[part[..., 0] for part in found.results[0]]])

    # Files

    def save(self, folder: str | Path) -> None:
        """Writes the model as its `save_pretrained` does, and the parameters.

        Raises:
            TypeError: a parameter is no plain value.
            TargetError: the folder cannot be written.
        """
        model, parameters = self._model(), _plain(self.get_params())
        if self.output is not None:
            parameters["output"] = str(self.output)
        for name, value in parameters.items():
            try:
                json.dumps(value)
            except TypeError:
                raise TypeError(
                    f"{name} must be a plain value to be saved, got {type(value).__name__}; save model_ by its own "
                    "save_pretrained"
                ) from None
        model.save_pretrained(folder)
        found = {name: getattr(self, f"{name}_", None) for name in ("seed", "history", "best_epoch")}
        kept = {"parameters": parameters, **found}
        with replacing(Path(folder, SETTINGS)) as part:
            part.write_text(to_json(kept), encoding="utf-8")

    @classmethod
    def load(cls, source: str | Path) -> Forecaster:
        """The one in a folder of `save`; or one with the model in whatever `vssn.from_pretrained` takes, such as a
        checkpoint of `vssn fit`. On the CPU.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        from vssn.models.pretrained import from_pretrained

        model, place = from_pretrained(source), Path(source, SETTINGS)
        try:
            kept = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
            made = cls(**kept.get("parameters", {}))
            made._take(model, kept.get("seed", 0))
            if kept.get("history"):
                made.history_ = {name: _numbers(column) for name, column in kept["history"].items()}
                made.best_epoch_ = kept["best_epoch"]
                made.n_iter_ = len(made.history_["epoch"])
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            raise CheckpointError(f"{source}: {SETTINGS} is damaged or of another version; save it again") from None
        return made

    # How

    def _model(self) -> SequenceModel:
        if not hasattr(self, "model_"):
            raise NotFittedError(f"{type(self).__name__} must be fitted first; call fit(x), or load(folder)")
        return self.model_

    def _apply(self, call: Call, x: Any, u: Any, *, whole: bool = False) -> Found:
        model, size = self._model(), TOGETHER if self.batch_size is None else _plain(self.batch_size)
        require_size("batch_size", size, 1)
        return by_sequence(model, call, x, u, seed=self.seed_, batch_size=size, whole=whole)


def _settings(chosen: SimpleNamespace, source: Source, folder: str, seed: int) -> tuple[dict[str, Any], int | None]:
    """The configuration of a run, and the frames of a window."""
    from vssn.training.own_files import leave_out_what_is_refused

    takes_gaps = [name for name, of in LIKELIHOODS.items() if not of.whole_frames]  # for `impute`
    proposed = propose(source, "x", folder, takes_gaps).settings
    data, model, training = proposed["data"], proposed["model"], proposed["training"]
    likelihood = (chosen.model or {}).get("likelihood", chosen.likelihood or model["likelihood"])
    real = getattr(LIKELIHOODS.get(likelihood), "support", None) == REAL
    standardise = real if chosen.standardise is None else chosen.standardise
    model.pop("min_logvar_x", None)
    if standardise:
        model["min_logvar_x"] = STANDARDISED_FLOOR
    sizes = {"hidden_size": chosen.hidden_size, "latent_size": chosen.latent_size, "noise_size": chosen.noise_size}
    own_model = _given(**sizes, likelihood=chosen.likelihood) | dict(chosen.model or {})
    model |= {"masked": True} | own_model
    if chosen.max_epochs is not None:  # the KL's weight rises over the same share of training
        rise = training["kl_anneal_updates"] * chosen.max_epochs / training["max_epochs"]
        training |= {"max_epochs": chosen.max_epochs, "kl_anneal_updates": max(1, round(rise))}
    training |= _given(seed=seed, learning_rate=chosen.learning_rate, early_stopping_patience=chosen.patience)
    own_training = dict(chosen.training or {})
    training |= own_training
    window = data.get("window") if chosen.window is None else chosen.window
    size = data["batch_size"] if chosen.batch_size is None else chosen.batch_size
    data = {"set": "given", "batch_size": size, "seed": seed, "standardise": standardise}
    settings = {"data": data, "model": model, "training": training}
    leave_out_what_is_refused(settings, {"data": data, "model": own_model, "training": own_training})
    return settings, window


def _checked(parameters: Mapping[str, Any]) -> SimpleNamespace:
    """As plain values; raises TypeError, ValueError of those that no configuration checks."""
    chosen = SimpleNamespace(**_plain(parameters))
    require_number("validation", chosen.validation)
    if not 0 < chosen.validation < 1:
        raise ValueError(f"validation must be a share between 0 and 1, got {chosen.validation}")
    least = {"hidden_size": 0, "latent_size": 0, "noise_size": 0}
    least |= dict.fromkeys(("max_epochs", "window", "batch_size", "patience"), 1)
    for name, minimum in least.items():
        if parameters[name] is not None:
            require_size(name, getattr(chosen, name), minimum)
    if not isinstance(chosen.likelihood, str | None):
        raise TypeError(f"likelihood must be a name or None, got {shown(chosen.likelihood)}")
    if chosen.learning_rate is not None:
        require_number("learning_rate", chosen.learning_rate, 0.0)
    for name in ("model", "training"):
        if not isinstance(parameters[name], Mapping | None):
            raise TypeError(f"{name} must be a dict of keys of a configuration, got {type(parameters[name]).__name__}")
    if chosen.standardise is not None:
        require_flag("standardise", chosen.standardise)
    if not isinstance(chosen.output, str | Path | None):
        raise TypeError(f"output must be a str or a Path, got {type(chosen.output).__name__}")
    return chosen


def _plain(value: Any) -> Any:
    """NumPy's numbers, which searches draw, as Python's."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _refuse_controls(y: Any, x: Any) -> None:
    """y has no use: controls that come by its place would be lost without a word."""
    if y is not None and _depth(y) >= _depth(x):
        raise TypeError("u must be given by its name, u=u: the second argument is scikit-learn's y, which is not used")


def _depth(array: Any) -> int:
    of_list = isinstance(array, list | tuple) and len(array) > 0
    return getattr(array[0], "ndim", 0) + 1 if of_list else getattr(array, "ndim", 0)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _seed(random_state: object) -> int:
    if random_state is None:
        return int(np.random.randint(2**31))  # noqa: NPY002  # NumPy's own generator, as scikit-learn has it
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer):
        came = type(random_state).__name__
        raise TypeError(f"random_state must be an int, a numpy.random.RandomState or None, got {came}")
    if not 0 <= random_state < 2**32:
        raise ValueError(f"random_state must be an int in [0, 2**32), got {shown(random_state)}")
    return int(random_state)


def _history(path: Path) -> dict[str, list[float]]:
    """The columns of a run's metrics.csv."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def _numbers(column: list[float | None]) -> list[float]:
    """Of a saved history, where null stands for NaN: an epoch whose updates were all left out."""
    return [math.nan if value is None else value for value in column]
