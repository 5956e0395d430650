"""What each table of the paper measures of a trained model, and the figures that go with it.

music       nats per time step: IWAE over all frames of the test set (micro, the first frame included), beside it the
            other averages and the ELBO
objectives  the same, for models trained on either objective
speech      ELBO and IWAE: nats per sequence in normalised units, bits per sample
balls       squared error over the 900 pixels: one step ahead from the prior, and free-running after SEEN frames; both
            along the mean path
pendulum    R^2 and log-likelihood of linear regressions from all latent states to sin phi, cos phi, phi', for filtering
            and for smoothing; beside them the R^2 of phi' that no filter exceeds
demo        squared error of the forecasts that `make demo` draws
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from vssn.data.balls import RESOLUTION
from vssn.data.batching import SequenceBatch, SequenceDataset, collate_sequences, sequence_loader
from vssn.data.pendulum import PendulumSet
from vssn.data.speech import scale_of, speech_scores
from vssn.demo import SEEN as DEMO_SEEN
from vssn.demo import forecast_films
from vssn.experiments.baselines import copy_last_frame_error
from vssn.experiments.figures import draw_error_ahead, draw_film, draw_latents, draw_rolls, draw_training
from vssn.experiments.linear_probe import filtering_limit, regress_pendulum
from vssn.inference.filtering import latent_states, one_step_predictions, prediction_error, rollouts, squared_errors
from vssn.inference.scoring import evaluate, evaluate_bound
from vssn.models.vssn import VSSN
from vssn.training.checkpoints import load_model
from vssn.training.config import Config
from vssn.utils.evaluation_mode import time_major

SEEN = 17  # frames of a video of balls before a rollout
SHOWN = 6  # frames of the rollout in the figure
STEPS = 20  # of a rollout
ROLL_FRAMES = 100  # of a piece of music in a figure

Metrics = dict[str, float | list[float]]
Runs = Mapping[tuple[str, str], Path]  # (set, model) -> the folder of the first seed's run


class Effort(NamedTuple):
    music_particles: int = 100
    speech_particles: int = 10
    sequences: int | None = None  # of the test set; None: all


class Protocol(NamedTuple):
    score: Callable[[VSSN, Config, Effort], Metrics]
    draw: Callable[[Runs, Path, str | None], list[Path]]  # runs, folder of the figures, data folder
    headline: tuple[str, ...]  # the metrics to print when a run ends


# Scores


def score_music(model: VSSN, config: Config, effort: Effort) -> Metrics:
    test = _head(config.load_data().test, effort.sequences)
    loader = sequence_loader(test, config.data.batch_size)
    elbo = evaluate(model, loader)
    iwae = evaluate_bound(model, loader, bound="iwae", particles=effort.music_particles)
    averages = ("micro", "macro", "micro_without_first", "macro_without_first")
    return {
        **{f"iwae_{name}": getattr(iwae, name) for name in averages},
        "elbo_micro": elbo.micro,
        "kl_z": elbo.kl_z,
        "kl_w": elbo.kl_w,
        "particles": iwae.particles,
    }


def score_speech(model: VSSN, config: Config, effort: Effort) -> Metrics:
    test = _head(config.load_data().test, effort.sequences)
    scale = scale_of(test)
    assert scale is not None
    loader = sequence_loader(test, config.data.batch_size)
    elbo = evaluate(model, loader)
    iwae = evaluate_bound(model, loader, bound="iwae", particles=effort.speech_particles)
    metrics: Metrics = {"particles": iwae.particles, "kl_z": elbo.kl_z, "kl_w": elbo.kl_w}
    metrics |= {"sequences": elbo.sequences, "frames": elbo.frames}
    for name, scores in (("elbo", elbo), ("iwae", iwae)):
        speech = speech_scores(scores.micro, scores.frames, scores.sequences, scale)
        metrics |= {f"{name}_nats": speech.nats_per_sequence, f"{name}_bits": speech.bits_per_sample}
    return metrics | {"sample_rate": scale.sample_rate, "mean": scale.mean, "std": scale.std}


def score_balls(model: VSSN, config: Config, effort: Effort) -> Metrics:
    test = _head(config.load_data().test, effort.sequences)
    error, count = 0.0, 0
    rolled, copied = torch.zeros(STEPS), torch.zeros(STEPS)
    for batch in sequence_loader(test, config.data.batch_size):
        size = batch.x.shape[1]
        seen, ahead = batch.x[:SEEN], batch.x[SEEN : SEEN + STEPS]
        with time_major(model):
            error += size * prediction_error(one_step_predictions(model, batch.x), batch.x, batch.lengths)
            rolled += size * squared_errors(rollouts(model, seen, STEPS), ahead)
        copied += size * squared_errors(seen[-1].expand_as(ahead), ahead)
        count += size
    return {
        "error": error / count,
        "copy_error": copy_last_frame_error([test[index][0] for index in range(len(test))]),
        "sequences": count,
        "rollout": (rolled / count).tolist(),
        "copy_rollout": (copied / count).tolist(),
        "rollout_mean": float(rolled.mean() / count),
        "copy_rollout_mean": float(copied.mean() / count),
    }


def score_pendulum(model: VSSN, config: Config, effort: Effort) -> Metrics:
    train, test = _swings(config)
    metrics: Metrics = {"filtering_velocity_limit": filtering_limit(train, test)}
    for inference in ("filtering", "smoothing"):
        result = regress_pendulum(model, train, test, inference=inference)
        for target, r2, log_likelihood in zip(("sin", "cos", "velocity"), *result, strict=True):
            metrics |= {
                f"{inference}_{target}": float(r2),
                f"{inference}_{target}_log_likelihood": float(log_likelihood),
            }
    return metrics


def score_demo(model: VSSN, config: Config, effort: Effort) -> Metrics:
    x, predicted = forecast_films(model, _swings(config)[1])
    truth = x[DEMO_SEEN:]
    copied = x[DEMO_SEEN - 1].expand_as(truth)
    errors, copy_errors = squared_errors(predicted, truth), squared_errors(copied, truth)
    return {"error": float(errors.mean()), "copy": float(copy_errors.mean())}


# Figures


def draw_music(runs: Runs, folder: Path, data: str | None) -> list[Path]:
    """Curves of every set, and piano rolls of the model that comes first in it."""
    figures = draw_curves(runs, folder, data)
    for name in dict.fromkeys(name for name, _ in runs):
        label = next(label for here, label in runs if here == name)
        model, config = _load(runs[name, label], data)
        x = _batch(config.load_data().test, 1).x[:ROLL_FRAMES]
        predicted = one_step_predictions(model, x, samples=8)
        torch.manual_seed(0)
        generated = model.generate(len(x)).x
        rolls = {
            "test sequence": x[:, 0],
            "probabilities one step ahead, given the steps before": torch.cat(
                (torch.full_like(x[:1], torch.nan), predicted)
            )[:, 0],
            "generated": generated[:, 0],
        }
        figures.append(folder / f"{name}-rolls.png")
        draw_rolls(rolls, figures[-1], title=f"{name}: {label}")
    return figures


def draw_curves(runs: Runs, folder: Path, data: str | None) -> list[Path]:
    """Training curves, a figure for each set."""
    figures = []
    for name in dict.fromkeys(name for name, _ in runs):
        figures.append(folder / f"{name}-training.png")
        draw_training({label: path for (here, label), path in runs.items() if here == name}, figures[-1], title=name)
    return figures


def draw_balls(runs: Runs, folder: Path, data: str | None) -> list[Path]:
    figures, curves = draw_curves(runs, folder, data), {}
    for index, ((_, label), path) in enumerate(runs.items()):
        model, config = _load(path, data)
        x = _batch(config.load_data().test, 100).x
        ahead = x[SEEN : SEEN + STEPS]
        rolled = rollouts(model, x[:SEEN], STEPS)
        curves[label] = squared_errors(rolled, ahead).tolist()
        if index == 0:
            first = torch.full_like(x[:1, 0], torch.nan)
            film = torch.cat((first, one_step_predictions(model, x[:SEEN, :1])[:, 0], rolled[:SHOWN, 0]))
            figures.append(folder / "balls-film.png")
            title = f"Bouncing balls, a test video: {SEEN} frames seen, {SHOWN} predicted free-running ({label})"
            draw_film(x[: SEEN + SHOWN, 0], film, figures[-1], seen=SEEN, size=RESOLUTION, title=title)
    curves["copy of the last frame seen"] = squared_errors(x[SEEN - 1].expand_as(ahead), ahead).tolist()
    figures.append(folder / "balls-rollout.png")
    title = f"Bouncing balls: free-running after {SEEN} frames, {x.shape[1]} test videos"
    draw_error_ahead(curves, figures[-1], title=title, unit="squared error (sum over 900 pixels)")
    return figures


def draw_pendulum(runs: Runs, folder: Path, data: str | None) -> list[Path]:
    figures = draw_curves(runs, folder, data)
    (_, label), path = next(iter(runs.items()))
    model, config = _load(path, data)
    test = _swings(config)[1]
    x, u = test.images.transpose(0, 1), test.controls.transpose(0, 1) if model.control_size else None
    sin, cos, velocity = test.states.transpose(0, 1).flatten(0, 1).T
    for inference in ("filtering", "smoothing"):
        states = latent_states(model, x, u, inference=inference)
        figures.append(folder / f"pendulum-{inference}.png")
        title = f"Pendulum, {inference}: z of {label} over {x.shape[1]} test films of {len(x)} frames"
        draw_latents(states.z.flatten(0, 1), torch.atan2(sin, cos), velocity, figures[-1], title=title)
    return figures


_R2 = tuple(
    f"{inference}_{target}" for inference in ("filtering", "smoothing") for target in ("sin", "cos", "velocity")
)

PROTOCOLS = {
    "music": Protocol(score_music, draw_music, ("iwae_micro", "elbo_micro")),
    "objectives": Protocol(score_music, draw_curves, ("iwae_micro", "elbo_micro")),
    "speech": Protocol(score_speech, draw_curves, ("elbo_bits", "elbo_nats")),
    "balls": Protocol(score_balls, draw_balls, ("error", "copy_error", "rollout_mean", "copy_rollout_mean")),
    "pendulum": Protocol(score_pendulum, draw_pendulum, _R2),
    "demo": Protocol(score_demo, draw_curves, ("error", "copy")),
}


def _load(run: Path, data: str | None) -> tuple[VSSN, Config]:
    model, config = load_model(run / "best.ckpt")
    return model, config.with_folder(data)


def _head(dataset: SequenceDataset, count: int | None) -> SequenceDataset:
    """Its first sequences."""
    if count is None or count >= len(dataset):
        return dataset
    return SequenceDataset(dataset.sequences[:count], lengths=dataset.lengths[:count], seed=dataset.seed)


def _batch(dataset: SequenceDataset, count: int) -> SequenceBatch:
    return collate_sequences([dataset[index] for index in range(min(count, len(dataset)))])


def _swings(config: Config) -> tuple[PendulumSet, PendulumSet]:
    """The training and the test set with their true states."""
    assert config.data.set == "pendulum"
    splits = config.data.swings()
    return splits.train, splits.test
