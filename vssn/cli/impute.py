"""`vssn impute`: the gaps of the data, filled from what stands before and behind them."""

from __future__ import annotations

import argparse
from typing import Any

from vssn.cli.common import Progress, add_inference, check_missing, data_of, say_written, target_of, use_threads
from vssn.utils.command import writing


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "impute",
        help="fill gaps, with intervals",
        description="Fill what is missing (empty cells, NaN, rows that are not there): a table of the columns "
        "that came in, charts of the gaps; what is observed stays as it is. The model was made with masked: true.",
    )
    add_inference(parser, samples=100, quantiles=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import numpy as np

    from vssn.data.batching import padded_batches
    from vssn.output.filled import labels_of
    from vssn.output.results import times_of, write_imputed
    from vssn.output.tables import Frames
    from vssn.training.checkpoints import load_model
    from vssn.utils.random import mixed_seed

    use_threads(options)
    model, config = load_model(options.checkpoint)
    applied = data_of(config, options.data, options.split, options.first)
    source = applied.source
    check_missing(model, source.x)
    files = list(dict.fromkeys(origin.file for origin in source.origins or ()))
    several = [f"filled-{label}" for label in labels_of(files)] if len(files) > 1 else []
    target = target_of(
        options,
        config,
        source.kind,
        len(source.x),
        stems=(*(several or ["filled"]), "imputed"),
        names=source.names,
    )
    missing = sum(int(x.isnan().sum()) for x in source.x)
    mean, samples = [], []
    size = options.batch_size or config.data.batch_size
    with Progress("filling gaps", len(source.x)) as progress:
        for batch in padded_batches(source.x, source.u if model.control_size else None, size, model.a_parameter()):
            filled = model.impute(
                batch.x,
                u=batch.u,
                lengths=batch.lengths,
                samples=options.samples,
                seed=mixed_seed(options.seed, batch.first),
            )
            for b, length in enumerate(batch.lengths.tolist()):
                mean.append(filled.mean[:length, b].float().cpu().numpy())
                samples.append(filled.samples[:, :length, b].float().cpu().numpy())
            progress.advance(len(batch.lengths))
    levels = sorted(set(options.quantiles))
    frames = Frames(source.names, source.channels, times_of(source), mean, samples, levels)
    with writing("--output", options.output), np.errstate(all="ignore"):
        written = write_imputed(target, applied.look, frames, source)
    entries = sum(x.numel() for x in source.x)
    print(f"{missing} of {entries} entries were missing ({missing / entries:.1%})")
    say_written(written)
    return 0
