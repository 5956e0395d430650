"""`vssn generate`: sequences out of nothing."""

from __future__ import annotations

import argparse
from typing import Any

from vssn.cli.common import Progress, add_inference, data_of, say_written, target_of, use_threads
from vssn.utils.command import positive, writing

STEPS = 100
_AT_ONCE = 64  # sequences


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="new sequences",
        description="Draw sequences from the model's priors: MIDI and WAV of music, GIF of films, WAV of sound, tables "
        "and charts of series. A model with controls takes those of the data, a sequence drawn for each.",
    )
    add_inference(parser, samples=4)
    parser.add_argument("--steps", metavar="N", type=positive, help=f"frames ({STEPS}; with controls as many as those)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from vssn.errors import DataError
    from vssn.output.results import times_ahead, write_generated
    from vssn.output.tables import Frames
    from vssn.training.checkpoints import load_model
    from vssn.utils.evaluation_mode import evaluating, time_major
    from vssn.utils.random import mixed_seed, seeded

    use_threads(options)
    model, config = load_model(options.checkpoint)
    applied = data_of(config, options.data, options.split, options.first)  # for the form of what is written, too
    source, like = applied.source, model.a_parameter()
    count, steps = options.samples, options.steps or STEPS
    controls = None
    if model.control_size:
        if source.u is None:
            raise DataError("--data: the model has controls, but the data has none; name data with them")
        steps = options.steps or min(source.lengths)
        if steps > min(source.lengths):
            raise DataError(f"--steps: expected at most the frames of the controls, {min(source.lengths)}, got {steps}")
        count = min(options.samples, len(source.u))
        controls = torch.stack([u[:steps] for u in source.u[:count]], 1).to(like)
    names = [f"generated-{number + 1:03d}" for number in range(count)]
    target = target_of(
        options,
        config,
        source.kind,
        count,
        stems=("generated",),
        names=names,
    )
    drawn, mean = [], []
    at_once = options.batch_size or _AT_ONCE
    with Progress("generating", count) as progress, evaluating(model), time_major(model):
        for first in range(0, count, at_once):
            here = min(at_once, count - first)
            u = None if controls is None else controls[:, first : first + here]
            with seeded(mixed_seed(options.seed, first), like.device):
                made = model.generate(steps, here, u=u, sample=source.kind not in ("film", "audio"))
            drawn += list(made.x.transpose(0, 1).float().cpu().numpy())
            mean += list(made.mean.transpose(0, 1).float().cpu().numpy())
            progress.advance(here)
    times = [times_ahead(np.array([-1.0]) if isinstance(source.step, float) else np.array([-1]), None, steps)] * count
    frames = Frames(names, source.channels, times, mean, [x[None] for x in drawn], ())
    with writing("--output", options.output), np.errstate(all="ignore"):
        say_written(write_generated(target, applied.look, frames))
    return 0
