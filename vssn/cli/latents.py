"""`vssn latents`: the states of every frame, as a table."""

from __future__ import annotations

import argparse
from typing import Any

from vssn.cli.common import Progress, add_inference, check_missing, data_of, say_written, target_of, use_threads
from vssn.utils.command import writing


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "latents",
        help="the states of every frame",
        description="Infer d, z and w of every frame: columns d1.., z1.., w1.. of a table, or arrays.",
    )
    add_inference(parser, samples=None)
    parser.add_argument(
        "--kind",
        choices=("smooth", "filter"),
        default="smooth",
        help="from all frames of a sequence, or from those up to its own (smooth)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from vssn.data.batching import padded_batches
    from vssn.output.results import times_of
    from vssn.output.tables import write_latents
    from vssn.output.targets import LATENTS
    from vssn.training.checkpoints import load_model
    from vssn.utils.random import mixed_seed

    use_threads(options)
    model, config = load_model(options.checkpoint)
    source = data_of(config, options.data, options.split, options.first).source
    check_missing(model, source.x)
    target = target_of(options, config, source.kind, len(source.x), forms=LATENTS, stems=("latents",))
    states: dict[str, list[Any]] = {letter: [] for letter in "dzw"}
    size = options.batch_size or config.data.batch_size
    with Progress("inferring states", len(source.x)) as progress:
        for batch in padded_batches(source.x, source.u if model.control_size else None, size, model.a_parameter()):
            found = model.latents(
                batch.x,
                u=batch.u,
                lengths=batch.lengths,
                kind=options.kind,
                samples=options.samples,
                seed=mixed_seed(options.seed, batch.first),
            )
            for letter, part in zip("dzw", found, strict=True):
                part = part if options.samples is None else part.mean(0)
                for b, length in enumerate(batch.lengths.tolist()):
                    states[letter].append(part[:length, b].cpu().numpy())
            progress.advance(len(batch.lengths))
    written = []
    with writing("--output", options.output):
        for suffix in target.suffixes:
            path = target.of_all("latents", suffix)
            if path is not None:
                write_latents(path, source.names, times_of(source), states)
                written.append(path)
    say_written(written)
    return 0
