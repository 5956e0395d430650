"""The demo: squared error of the forecasts that `make demo` draws."""

from __future__ import annotations

from vssn.data.pendulum import IMAGE_SIZE, pendulum_splits
from vssn.demo import SEEN, forecast_films
from vssn.experiments.tasks.base import Column, Effort, Entry, Metrics, Task, draw_curves
from vssn.experiments.tasks.pendulum import QUICK_DATA, SETS, swings
from vssn.inference.filtering import squared_errors
from vssn.nn.interface import SequenceModel
from vssn.training.config import Config


def score_demo(model: SequenceModel, config: Config, effort: Effort) -> Metrics:
    x, predicted = forecast_films(model, swings(config)[1])
    truth = x[SEEN:]
    copied = x[SEEN - 1].expand_as(truth)
    errors, copy_errors = squared_errors(predicted, truth), squared_errors(copied, truth)
    return {"error": float(errors.mean()), "copy": float(copy_errors.mean())}


TASK = Task(
    name="demo",
    title="Demo",
    text="What `make demo` trains, and its score: squared error per frame ({pixels} pixels), {ahead} frames ahead of "
    "{seen} seen, {test} test films.",
    sets=SETS,
    entries=(Entry("pendulum", "VSSN", "demo"),),
    score=score_demo,
    draw=draw_curves,
    headline=("error", "copy"),
    columns=(Column("VSSN", "pendulum", "error", 2), Column("copy of the last frame seen", "pendulum", "copy", 2)),
    unit="squared error per frame of {pixels} pixels, {ahead} frames ahead; less is better",
    better=-1,
    compared=(Column("forecasts of `make demo`", "pendulum", "error", 2),),
    quick_data=QUICK_DATA,
    settings={"pixels": IMAGE_SIZE**2, "seen": SEEN},
    simulator=pendulum_splits,
)
