"""Public series: forecasts and imputations beside the seasonal naive, state-space models and a GRU of equal size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vssn.data.series import SERIES, load_series, load_splits, scale_of_series, shift_of
from vssn.experiments.series_peers import (
    StateSpace,
    normal_samples,
    peer_fillings,
    peer_forecasts,
    train_peer,
)
from vssn.experiments.series_scores import (
    Hidden,
    Scores,
    Window,
    forecast_scores,
    hide,
    imputation_scores,
    interpolated,
    naive_forecasts,
    point_forecast_scores,
    point_imputation_scores,
    sample_forecasts,
    sample_imputations,
)
from vssn.experiments.tasks.base import (
    Baseline,
    Column,
    Effort,
    Entry,
    Match,
    Metrics,
    Runs,
    Table,
    Task,
    draw_curves,
    load_run,
)
from vssn.nn.interface import SequenceModel
from vssn.output.charts import Fan, draw_fans
from vssn.training.config import Config

SETS = {
    "co2": "CO2, weekly",
    "sunspots": "sunspots, yearly",
    "elnino": "El Niño, monthly",
    "macro": "US economy, quarterly",
    "weather": "Seattle weather, daily",
}
GAPS, GAP_LENGTH, ROUNDS = 0.3, 4, 5
_NAMES = {"CRPS": "crps", "80% coverage": "coverage", "MAE": "mae", "MASE": "mase"}
_LABELS = {"co2": ("CO2 (ppm)",), "weather": ("highest (°C)", "lowest (°C)", "wind (m/s)")}


def windows_of_test(name: str) -> list[Window]:
    """The forecasts of the test part, from its end: each sees all that comes before it."""
    series, (x, u, _, test) = SERIES[name], load_series(name)
    starts = range(len(x) - series.steps, test - 1, -series.steps)
    return [
        Window(x[:start], x[start : start + series.steps], None if u is None else u[: start + series.steps])
        for start in starts
    ]


def hidden_windows(name: str) -> list[Hidden]:
    """Windows that cover the test part, with a share of its entries hidden, drawn several times."""
    series, (x, u, _, test) = SERIES[name], load_series(name)
    spans = [slice(max(end - series.window, 0), end) for end in range(len(x), test, -series.window)]
    spans = [span for span in spans for _ in range(ROUNDS)]
    tested = torch.where(torch.arange(len(x))[:, None] >= test, x, torch.nan)
    found = hide([tested[span] for span in spans], None, GAPS, length=GAP_LENGTH)
    return [
        Hidden(torch.where(one.truth.isnan(), x[span], torch.nan), one.truth, None if u is None else u[span])
        for one, span in zip(found, spans, strict=True)
    ]


class _Local:
    """Windows as the model sees them: the last `context` frames, shifted and scaled."""

    def __init__(self, name: str) -> None:
        self.series, self.scale = SERIES[name], scale_of_series(name)

    def window(self, window: Window) -> tuple[Window, Tensor]:
        past = window.past[-self.series.context :]
        shift = shift_of(past, self.series.context)
        u = None if window.u is None else window.u[-self.series.window :]
        return Window((past - shift) / self.scale, window.truth, u), shift

    def hidden(self, hidden: Hidden) -> tuple[Hidden, Tensor]:
        shift = shift_of(hidden.seen, self.series.context)
        return Hidden((hidden.seen - shift) / self.scale, hidden.truth, hidden.u), shift


def score_series(model: SequenceModel, config: Config, effort: Effort) -> Metrics:
    """The model and all that stands beside it, on the test part."""
    name, seed = config.data.set, config.training.seed
    quick = effort.sequences is not None
    windows, hidden = windows_of_test(name), hidden_windows(name)
    if quick:
        windows, hidden = windows[: effort.sequences], hidden[: effort.sequences]
    samples = effort.particles
    metrics: Metrics = {"windows": float(len(windows))}
    metrics |= _named("", *_of_model(name, model, windows, hidden, samples, seed))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    epochs = config.training.max_epochs
    metrics |= _named("gru_", *_of_gru(name, parameters, epochs, windows, hidden, samples, seed))
    metrics |= _named("space_", *_of_state_space(name, windows, hidden, samples, 3 if quick else 200))
    season = SERIES[name].season
    naive = point_forecast_scores(naive_forecasts(windows, season), windows, season)
    last = point_forecast_scores(naive_forecasts(windows), windows, season)
    line = point_imputation_scores(interpolated(hidden), hidden)
    return metrics | _named("naive_", naive, {}) | _named("last_", last, {}) | _named("line_", {}, line)


def _named(prefix: str, forecast: Scores, imputation: Scores) -> Metrics:
    """The scores that the page shows, as metrics of a record."""
    found: Metrics = {}
    for kind, scores in (("forecast", forecast), ("imputation", imputation)):
        found |= {f"{prefix}{kind}_{short}": scores[name] for name, short in _NAMES.items() if name in scores}
    return found


def _of_model(
    name: str, model: SequenceModel, windows: list[Window], hidden: list[Hidden], samples: int, seed: int
) -> tuple[Scores, Scores]:
    local = _Local(name)
    seen, shifts = zip(*map(local.window, windows), strict=True)
    drawn = sample_forecasts(model, seen, samples=samples, seed=seed) * local.scale + torch.stack(shifts)
    given, shifts = zip(*map(local.hidden, hidden), strict=True)
    filled = sample_imputations(model, given, samples=samples, seed=seed)
    fillings = [path * local.scale + shift for path, shift in zip(filled, shifts, strict=True)]
    return forecast_scores(drawn, windows, local.series.season), imputation_scores(fillings, hidden)


def _of_gru(
    name: str, parameters: int, epochs: int, windows: list[Window], hidden: list[Hidden], samples: int, seed: int
) -> tuple[Scores, Scores]:
    local, splits = _Local(name), load_splits(set=name, seed=seed)
    steps = local.series.steps
    peer = train_peer(splits.train, splits.valid, parameters, False, epochs=epochs, seed=seed)
    seen, shifts = zip(*map(local.window, windows), strict=True)
    u = [window.u for window in seen if window.u is not None] or None
    drawn = peer_forecasts(peer, [window.past for window in seen], u, steps, samples, seed)
    drawn = drawn * local.scale + torch.stack(shifts)
    peer = train_peer(splits.train, splits.valid, parameters, True, epochs=epochs, seed=seed)
    given, shifts = zip(*map(local.hidden, hidden), strict=True)
    u = [window.u for window in given if window.u is not None] or None
    filled = peer_fillings(peer, [window.seen for window in given], u, samples, seed)
    fillings = [path * local.scale + shift for path, shift in zip(filled, shifts, strict=True)]
    return forecast_scores(drawn, windows, local.series.season), imputation_scores(fillings, hidden)


def _of_state_space(
    name: str, windows: list[Window], hidden: list[Hidden], samples: int, iterations: int
) -> tuple[Scores, Scores]:
    series, (x, _, _, test) = SERIES[name], load_series(name)
    season = 0 if name == "sunspots" else series.season if series.calendar else 1
    features = x.double().numpy().T
    fitted = [StateSpace(y[:test], season, name == "co2", iterations) for y in features]

    def each(frames: Tensor, how: str) -> tuple[Tensor, Tensor]:
        columns = frames.double().numpy().T
        if how == "forecast":
            found = [space.forecast(y, series.steps) for space, y in zip(fitted, columns, strict=True)]
        else:
            found = [space.smooth(y) for space, y in zip(fitted, columns, strict=True)]
        mean, std = (torch.from_numpy(np.stack(part, -1)) for part in zip(*found, strict=True))
        return mean, std

    ahead = [each(window.past, "forecast") for window in windows]
    mean, std = (torch.stack(part, 1) for part in zip(*ahead, strict=True))
    drawn = normal_samples(mean, std, samples, 0)
    fillings = [normal_samples(*each(one.seen, "smooth"), samples, 1 + i) for i, one in enumerate(hidden)]
    return forecast_scores(drawn, windows, series.season), imputation_scores(fillings, hidden)


def draw_series(runs: Runs, folder: Path, data: str | None) -> list[Path]:
    """Training curves, and a fan chart of the first forecast of the test part."""
    figures = draw_curves(runs, folder, data)
    for run in runs.values():
        model, config = load_run(run, data)
        name = config.data.set
        local, window = _Local(name), windows_of_test(name)[-1]
        seen, shift = local.window(window)
        drawn = sample_forecasts(model, [seen], samples=200)[:, :, 0] * local.scale + shift
        start, steps = len(window.past), len(window.truth)
        past, ahead = np.arange(start - local.series.context, start), np.arange(start, start + steps)
        labels = _LABELS.get(name, tuple(f"{SETS[name]} {c + 1}" for c in range(window.truth.shape[1])))
        fans = [
            Fan(
                label,
                past,
                window.past[-len(past) :, c].numpy(),
                ahead,
                drawn[:, :, c].numpy(),
                window.truth[:, c].numpy(),
            )
            for c, label in enumerate(labels if len(labels) == window.truth.shape[1] else labels[:1])
        ]
        figures.append(folder / f"{name}-forecast.png")
        title = f"{SETS[name]}: the first forecast of the test part"
        draw_fans(figures[-1], fans, title=title, time_label=f"step ({SETS[name].split(', ')[-1]})")
    return figures


def _columns(metric: str, digits: int, kind: str = "") -> tuple[Column, ...]:
    return tuple(Column(label + kind, name, metric, digits) for name, label in SETS.items())


_BASELINES = (
    Baseline("GRU (PyTorch), as many weights", "gru"),
    Baseline("state space (statsmodels)", "space"),
    Baseline("seasonal naive", "naive"),
    Baseline("last value", "last"),
    Baseline("linear interpolation", "line"),
)
_PROTOCOLS = "; ".join(f"{SETS[name]}, {of.steps} steps behind {of.context}" for name, of in SERIES.items())

TASK = Task(
    name="series",
    title="Public series",
    text="Sets that stand inside statsmodels and vega_datasets: the last 20% of the time test. The table: CRPS of "
    "forecasts, {draws} samples each; the other scores, and gaps to fill, stand behind it.",
    sets=SETS,
    entries=tuple(
        Entry(name, "VSSN", "series", (f"data.set={name}", f"model.control={'both' if of.calendar else 'previous'}"))
        for name, of in SERIES.items()
    ),
    score=score_series,
    draw=draw_series,
    headline=("forecast_crps", "forecast_coverage", "imputation_mae"),
    columns=_columns("forecast_crps", 3),
    unit="CRPS of forecasts and of filled gaps, in the unit of the series; less is better",
    better=-1,
    compared=_columns("forecast_crps", 3, ", forecast") + _columns("imputation_crps", 3, ", gaps filled"),
    matches=(Match("VSSN", tuple(row.model for row in _BASELINES)),),
    tables=(
        Table("Forecast, MASE", _columns("forecast_mase", 3)),
        Table("Forecast, coverage of the 80% interval", _columns("forecast_coverage", 3)),
        Table("Imputation, CRPS", _columns("imputation_crps", 3)),
        Table("Imputation, MAE", _columns("imputation_mae", 3)),
        Table("Imputation, coverage of the 80% interval", _columns("imputation_coverage", 3)),
    ),
    baselines=_BASELINES,
    labels={
        "CRPS": "the error of the whole distribution of the samples, in the unit of the series; of a single value its "
        "absolute error",
        "MASE, MAE": "the absolute error of the samples' median: in those of the seasonal naive on what came before, "
        "and in the unit of the series",
        "coverage": "the share of the truth that lies inside the interval; 0.8 is right for that of 80%",
        "GRU (PyTorch), as many weights": "torch.nn.GRU; for imputation a second, bidirectional one",
        "state space (statsmodels)": "UnobservedComponents (level, season by harmonics, AR(1); a trend for CO2), of "
        "sunspots an AR(9) by SARIMAX; a model a feature",
    },
    protocol={
        "Splits of a series": "By time: the last 20% test, seen once; the 10% before stop the training",
        "Windows of a series": f"Forecasts end to end over the test part: {_PROTOCOLS}. VSSN and the GRU see so many "
        "frames before them, the others all of them",
        "Gaps of a series": "{gaps}% of the test part's entries are hidden, in gaps of {gap_length} frames, {rounds} "
        "draws of them, the same for all rows",
    },
    shown=("weather-forecast",),
    effort=Effort(particles=200),
    quick_effort=Effort(particles=4, sequences=2),
    settings={"gaps": round(100 * GAPS), "gap_length": GAP_LENGTH, "rounds": ROUNDS, "draws": 200},
)
