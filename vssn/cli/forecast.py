"""`vssn forecast`: the frames behind those of the data, with their uncertainty."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vssn.cli.common import (
    Applied,
    Progress,
    add_inference,
    check_missing,
    data_of,
    say_written,
    target_of,
    use_threads,
)
from vssn.utils.command import positive, writing

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 48  # steps, unless --steps says more


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "forecast",
        help="frames to come, with intervals",
        description="Continue sequences: tables and fan charts of series, MIDI and WAV of music, GIF of films, WAV of "
        "sound. A model with controls takes those of the frames to come from the rows of the data whose features are "
        "all missing.",
    )
    add_inference(parser, samples=100, quantiles=True)
    parser.add_argument(
        "--steps",
        metavar="N",
        type=positive,
        help=f"frames to come (a quarter of the shortest sequence, {LONGEST} at most)",
    )
    parser.add_argument(
        "--holdout", action="store_true", help="forecast the last N frames of the data from those before, truth beside"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import numpy as np

    from vssn.data.batching import padded_batches
    from vssn.output.results import times_ahead, times_of, write_forecast
    from vssn.output.tables import Frames
    from vssn.training.checkpoints import load_model
    from vssn.utils.random import mixed_seed

    use_threads(options)
    model, config = load_model(options.checkpoint)
    applied = data_of(config, options.data, options.split, options.first)
    source = applied.source
    seen, steps = _seen(applied, options.steps, options.holdout, model.control_size > 0)
    past = [x[:end] for x, end in zip(source.x, seen, strict=True)]
    check_missing(model, past)
    target = target_of(
        options,
        config,
        source.kind,
        len(source.x),
        stems=("forecast",),
        names=source.names,
    )
    levels = sorted(set(options.quantiles))
    controls = source.u if model.control_size else None
    known = None if controls is None else [u[:end] for u, end in zip(controls, seen, strict=True)]
    ahead = None if controls is None else [u[end : end + steps] for u, end in zip(controls, seen, strict=True)]
    mean, samples = [], []
    size = options.batch_size or config.data.batch_size
    with Progress("forecasting", len(past)) as progress:
        for batch in padded_batches(past, known, size, model.a_parameter()):
            to_come = None
            if ahead is not None:
                to_come = _stacked(ahead[batch.first : batch.first + len(batch.lengths)], batch.x)
            forecast: Any = model.forecast(
                batch.x,
                steps,
                samples=options.samples,
                u=batch.u,
                u_future=to_come,
                lengths=batch.lengths,
                sample=source.kind not in ("film", "audio"),  # their noise is nothing to look at: means are fed back
                seed=mixed_seed(options.seed, batch.first),
            )
            mean += list(forecast.mean.transpose(0, 1).float().cpu().numpy())
            samples += list(forecast.samples.movedim(2, 0).float().cpu().numpy())
            progress.advance(len(batch.lengths))
    times = times_of(source)
    before = [time[:end] for time, end in zip(times, seen, strict=True)]
    if all(end + steps <= len(time) for time, end in zip(times, seen, strict=True)):
        coming = [time[end : end + steps] for time, end in zip(times, seen, strict=True)]
    else:
        coming = [times_ahead(time, source.step, steps) for time in before]
    frames = Frames(source.names, source.channels, coming, mean, samples, levels)
    histories = [x.float().numpy() for x in past]
    truths = None
    if options.holdout:
        truths = [x[end : end + steps].float().numpy() for x, end in zip(source.x, seen, strict=True)]
    with writing("--output", options.output), np.errstate(all="ignore"):
        say_written(write_forecast(target, applied.look, frames, histories, truths, before))
    return 0


def _seen(applied: Applied, steps: int | None, holdout: bool, controls: bool) -> tuple[list[int], int]:
    """How many frames of each sequence the model sees, and how many are to come. Raises DataError."""
    from vssn.data.files import length_of_known
    from vssn.errors import DataError

    source = applied.source
    known = [length_of_known(x) for x in source.x]
    lengths = known if holdout else source.lengths  # held out is what is known
    shortest = min(lengths)
    if controls and not holdout:
        fewest = min(length - end for length, end in zip(lengths, known, strict=True))
        if fewest == 0 or fewest < (steps or 1):
            raise DataError(
                f"--data: the model has controls, {', '.join(source.controls)}: expected {steps or 'some'} rows behind "
                f"the last frame with them and without {source.channels[0]}, got {fewest}; add the rows, or take "
                "--holdout to forecast the last frames"
            )
        seen = known
        steps = steps or fewest
    else:
        steps = steps or min(max(shortest // 4, 1), LONGEST)
        seen = [length - steps if holdout else length for length in lengths]
    if min(seen) < 1:
        name = source.names[seen.index(min(seen))]
        raise DataError(
            f"--steps: expected fewer than the frames of every sequence, got {steps}, and {name} has {shortest}; "
            "forecast fewer"
        )
    return seen, steps


def _stacked(parts: list[Tensor], like: Tensor) -> Tensor:
    import torch

    return torch.stack(parts, 1).to(like)
