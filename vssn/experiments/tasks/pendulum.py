"""The pendulum: R^2 and log-likelihood of linear regressions from all latent states to sin phi, cos phi, phi', for
filtering and for smoothing; beside them the R^2 of phi' that no filter exceeds."""

from __future__ import annotations

from pathlib import Path

import torch

from vssn.data.pendulum import PendulumSet, configured_splits, pendulum_splits
from vssn.experiments.figures import draw_latents
from vssn.experiments.linear_probe import filtering_limit, probe_pendulum
from vssn.experiments.tasks.base import (
    Column,
    Detail,
    Effort,
    Entry,
    Match,
    Metrics,
    Runs,
    Task,
    draw_curves,
    load_run,
    published_row,
)
from vssn.inference.filtering import latent_states
from vssn.nn.interface import SequenceModel
from vssn.training.config import Config

SETS = {"pendulum": "pendulum"}
QUICK_DATA = {"num_train": 40, "num_valid": 10, "num_test": 10}
_INFERENCES = ("filtering", "smoothing")
_TARGETS = {"sin": "sin φ", "cos": "cos φ", "velocity": "φ'"}


def swings(config: Config) -> tuple[PendulumSet, PendulumSet]:
    """The training and the test set with their true states."""
    assert config.data.set == "pendulum"
    splits = configured_splits(seed=config.data.seed, **config.data.own)
    return splits.train, splits.test


def score_pendulum(model: SequenceModel, config: Config, effort: Effort) -> Metrics:
    train, test = swings(config)
    metrics: Metrics = {"filtering_velocity_limit": filtering_limit(train, test)}
    for inference in _INFERENCES:
        result = probe_pendulum(model, train, test, inference=inference)
        for target, r2, log_likelihood in zip(_TARGETS, *result, strict=True):
            metrics |= {
                f"{inference}_{target}": float(r2),
                f"{inference}_{target}_log_likelihood": float(log_likelihood),
            }
    return metrics


def draw_pendulum(runs: Runs, folder: Path, data: str | None) -> list[Path]:
    figures = draw_curves(runs, folder, data)
    (_, label), path = next(iter(runs.items()))
    model, config = load_run(path, data)
    test = swings(config)[1]
    x, u = test.images.transpose(0, 1), test.controls.transpose(0, 1) if model.control_size else None
    sin, cos, velocity = test.states.transpose(0, 1).flatten(0, 1).T
    for inference in _INFERENCES:
        states = latent_states(model, x, u, inference=inference)
        figures.append(folder / f"pendulum-{inference}.png")
        title = f"Pendulum, {inference}: z of {label} over {x.shape[1]} test films of {len(x)} frames"
        draw_latents(states.z.flatten(0, 1), torch.atan2(sin, cos), velocity, figures[-1], title=title)
    return figures


_COLUMNS = tuple(
    Column(f"{symbol}, {inference}", "pendulum", f"{inference}_{key}", 3, key if inference == "smoothing" else "")
    for inference in _INFERENCES
    for key, symbol in _TARGETS.items()
)

TASK = Task(
    name="pendulum",
    title="Pendulum",
    text="R^2 of linear regressions from all latent states (d and z: {latents}) to sin phi, cos phi and phi', fitted "
    "on the {train} training films, scored on the {test} test films. Training: {schedules}.",
    sets=SETS,
    entries=(
        Entry("pendulum", "VSSN", "pendulum"),
        Entry("pendulum", "VSSN, start inferred", "pendulum-inferred"),
        Entry("pendulum", "SRNN", "pendulum-srnn"),
        Entry("pendulum", "DKF", "pendulum-dkf"),
        Entry("pendulum", "DVBF-LL", "pendulum-dvbf"),
    ),
    score=score_pendulum,
    draw=draw_pendulum,
    headline=tuple(f"{inference}_{target}" for inference in _INFERENCES for target in _TARGETS),
    columns=_COLUMNS,
    unit="R^2 of a linear regression; more is better",
    better=1,
    compared=tuple(column for column in _COLUMNS if column.published),
    matches=(
        Match("VSSN", ("SRNN", "DKF", "DVBF-LL")),
        Match("VSSN, start inferred", ("SRNN", "DKF", "DVBF-LL")),
    ),
    details=(
        Detail("limit of φ', filtering", "filtering_velocity_limit", 3),
        *(
            Detail(f"ll {symbol}, {inference}", f"{inference}_{key}_log_likelihood", 0)
            for inference in _INFERENCES
            for key, symbol in _TARGETS.items()
        ),
    ),
    published=tuple(
        published_row(model, tuple(_TARGETS), values, source)
        for model, values, source in (
            ("VSSN", ".973 .991 .930", "VSSN, table 1"),
            ("DVBF-LL", ".961 .982 .916", "Karl et al. 2016"),
            ("DKF", ".929 .979 .035", "Karl et al. 2016"),
        )
    ),
    labels={
        "filtering, smoothing": "states inferred from the frames so far; from all frames of the film",
        "start inferred": "d_0 and w from the whole film, the KL of d_0 annealed after the others; chosen by "
        "validation films, after test figures of earlier tries were seen",
        "ll": "log-likelihood of the test films under the regression",
    },
    protocol={
        "The first frame's velocity": "A single frame shows no velocity, so no filter knows the first one: the limit "
        "that this sets to the R^2 of φ' stands among the runs",
        "Filtering or smoothing": "Which of the two the published figures are is not stated; they are compared with "
        "smoothing",
        "R^2, not ll": "The log-likelihood of a regression depends on the number of frames and on the scale of φ', so "
        "it is listed among the runs and not compared",
    },
    shown=("smoothing",),
    quick_data=QUICK_DATA,
    simulator=pendulum_splits,
)
