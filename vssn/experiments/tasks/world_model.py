"""A world model of the pendulum: rollouts imagined under torques to come, against the simulator's under the same.

A film is seen for SEEN frames. Then it goes on under the torques that it was recorded with, and under others that the
model was never shown with it: the simulator from the film's true state, the model from the state that it has inferred.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vssn.data.pendulum import IMAGE_SIZE, MAX_TORQUE, PendulumSet, pendulum_splits, render_pendulum, simulate_pendulum
from vssn.demo import SEEN
from vssn.experiments.figures import Plan, draw_plans
from vssn.experiments.tasks.base import Column, Effort, Entry, Match, Metrics, Runs, Task, draw_curves, load_run
from vssn.experiments.tasks.pendulum import QUICK_DATA, SETS, swings
from vssn.inference.filtering import rollouts, squared_errors
from vssn.nn.interface import SequenceModel
from vssn.training.config import Config

SHOWN = 1  # the film in the figure


class Future(NamedTuple):
    """What follows the frames seen."""

    torque: Tensor  # [K, B, 1]
    frames: Tensor  # [K, B, 256] of the simulator


def recorded(films: PendulumSet) -> Future:
    """As the films go on."""
    return Future(films.controls[:, SEEN:].transpose(0, 1), films.images[:, SEEN:].transpose(0, 1))


def simulated(films: PendulumSet, torque: Tensor) -> Future:
    """As they would under torque [K, B, 1], from their true states behind the frames seen."""
    sin, cos, velocity = films.states[:, SEEN - 1].double().numpy().T
    angles, _ = simulate_pendulum(np.arctan2(sin, cos), velocity, torque[..., 0].T.double().numpy())
    images = torch.from_numpy(render_pendulum(angles).astype(np.float32))
    return Future(torque, images.transpose(0, 1))


def others(films: PendulumSet, seed: int = 0) -> Future:
    """Under torques drawn anew."""
    torque = recorded(films).torque
    drawn = np.random.default_rng(seed).uniform(-MAX_TORQUE, MAX_TORQUE, torque.shape)
    return simulated(films, torch.from_numpy(drawn.astype(np.float32)))


def imagined(model: SequenceModel, films: PendulumSet, torque: Tensor) -> Tensor:
    """What the model says of the frames to come [K, B, 256]: latents at their means, frames at theirs."""
    x, u = films.images[:, :SEEN].transpose(0, 1), films.controls[:, :SEEN].transpose(0, 1)
    return rollouts(model, x, len(torque), u, torque)


def score_world_model(model: SequenceModel, config: Config, effort: Effort) -> Metrics:
    films = swings(config)[1]
    ahead, other = recorded(films), others(films)
    told, wrong = imagined(model, films, other.torque), imagined(model, films, ahead.torque)
    copied = films.images[:, SEEN - 1].expand_as(other.frames)
    errors = {
        "recorded": squared_errors(wrong, ahead.frames),
        "other": squared_errors(told, other.frames),
        "not_told": squared_errors(wrong, other.frames),
        "copy": squared_errors(copied, other.frames),
    }
    return {name: float(error.mean()) for name, error in errors.items()}


def draw_world_model(runs: Runs, folder: Path, data: str | None) -> list[Path]:
    figures = draw_curves(runs, folder, data)
    for (_, label), path in runs.items():
        model, config = load_run(path, data)
        films = PendulumSet(*(part[SHOWN : SHOWN + 1] for part in swings(config)[1]))
        still = torch.zeros_like(recorded(films).torque)
        futures = {
            "torque as recorded": recorded(films),
            "torque to one side": simulated(films, still + MAX_TORQUE),
            "to the other side": simulated(films, still - MAX_TORQUE),
        }
        plans = [
            Plan(name, films.images[0, :SEEN], future.frames[:, 0], imagined(model, films, future.torque)[:, 0])
            for name, future in futures.items()
        ]
        figures.append(folder / f"pendulum-imagined-{label.lower()}.png")
        draw_plans(plans, figures[-1], size=IMAGE_SIZE, title=f"Pendulum: {SEEN} frames seen, then imagined by {label}")
    return figures


TASK = Task(
    name="world_model",
    title="A world model of the pendulum",
    text="Rollouts imagined {ahead} frames ahead of {seen} seen, under torques to come, against the simulator's under "
    "the same torques: squared error per frame ({pixels} pixels), {test} test films. Training: {schedules}.",
    sets=SETS,
    entries=(Entry("pendulum", "RSSM", "pendulum-rssm"), Entry("pendulum", "VSSN", "demo")),
    score=score_world_model,
    draw=draw_world_model,
    headline=("recorded", "other", "not_told"),
    columns=(
        Column("torques of the film", "pendulum", "recorded", 2),
        Column("other torques", "pendulum", "other", 2),
        Column("others, not told", "pendulum", "not_told", 2),
        Column("copy of the last frame seen", "pendulum", "copy", 2),
    ),
    unit="squared error per frame of {pixels} pixels, {ahead} frames ahead; less is better",
    better=-1,
    compared=(
        Column("torques of the film", "pendulum", "recorded", 2),
        Column("other torques", "pendulum", "other", 2),
    ),
    matches=(Match("VSSN", ("RSSM",)),),
    labels={
        "other torques, not told": "what follows is simulated anew under other torques than those of the film; a model "
        "that is not told of them imagines what the film's would do",
    },
    shown=("pendulum-imagined-vssn", "pendulum-imagined-rssm"),
    quick_data=QUICK_DATA,
    settings={"pixels": IMAGE_SIZE**2, "seen": SEEN},
    simulator=pendulum_splits,
)
