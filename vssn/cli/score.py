"""`vssn score`: how well every frame fits the model, and which lie below a threshold."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vssn.cli.common import (
    Progress,
    add_inference,
    check_missing,
    data_of,
    dataset_of,
    level,
    say_written,
    target_of,
    use_threads,
)
from vssn.utils.command import writing

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vssn.nn.interface import SequenceModel
    from vssn.training.config import Config

SHARE = 0.01  # of the validation part's frames below the threshold
SAMPLES = {"elbo": 10, "predictive": 100}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="how well every frame fits, and what is out of place",
        description="Score every frame in nats, low where something is out of place, and flag those below a threshold: "
        "a quantile of the scores of the run's validation part. A table with the columns series, time, score and "
        "flagged, or arrays.",
    )
    counts = ", ".join(f"{number} of {kind}" for kind, number in SAMPLES.items())
    add_inference(parser, samples=None, drawn=f"draws that are averaged ({counts})")
    parser.add_argument(
        "--kind",
        choices=tuple(SAMPLES),
        default="elbo",
        help="elbo: a frame's part of the bound, given all frames; predictive: given those before it, slower (elbo)",
    )
    parser.add_argument(
        "--quantile", metavar="Q", type=level, default=SHARE, help=f"share of usual frames to be flagged ({SHARE})"
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--normal", metavar="PATH", help="data to take that share of (the run's validation part)")
    place.add_argument("--threshold", metavar="NATS", type=nats, help="that itself, of one frame")
    parser.set_defaults(run=run)


def nats(text: str) -> float:
    """A finite number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text[:40]!r}")
    return value


def run(options: argparse.Namespace) -> int:
    import numpy as np

    from vssn.errors import DataError
    from vssn.output.results import times_of
    from vssn.output.tables import write_scores
    from vssn.output.targets import SCORES
    from vssn.training.checkpoints import load_model

    use_threads(options)
    model, config = load_model(options.checkpoint)
    source = data_of(config, options.data, options.split, options.first).source
    check_missing(model, source.x)
    target = target_of(options, config, source.kind, len(source.x), forms=SCORES, stems=("scores",))
    size = options.batch_size or config.data.batch_size
    threshold, why = options.threshold, "as given"
    if threshold is None:
        usual = np.concatenate(_scores(options, model, size, *_usual(options, model, config)))
        usual = usual[~np.isnan(usual)]
        if not len(usual):
            raise DataError("--normal: expected a frame with an observed entry, got none; name other data")
        threshold = float(np.quantile(usual, options.quantile))
        part = "validation frames" if options.normal is None else f"frames of {options.normal}"
        why = f"{options.quantile:.10g} of {len(usual)} {part} lie below it"
    scores = _scores(options, model, size, source.x, source.u, None)
    written = []
    with writing("--output", options.output):
        for suffix in target.suffixes:
            path = target.of_all("scores", suffix)
            if path is not None:
                write_scores(path, source.names, times_of(source), scores, threshold)
                written.append(path)
    flagged = sum(int((of < threshold).sum()) for of in scores)
    print(f"threshold {threshold:.6g} nats: {why}")
    print(f"{flagged} of {sum(int((~np.isnan(of)).sum()) for of in scores)} frames are flagged")
    say_written(written)
    return 0


def _usual(
    options: argparse.Namespace, model: SequenceModel, config: Config
) -> tuple[list[Tensor], list[Tensor] | None, list[int] | None]:
    """What the threshold is taken from: x, u, and how many frames at the start of each are seen and not scored. Raises
    DataError."""
    import torch

    from vssn.errors import ConfigError

    if options.normal is not None:
        source = data_of(config, options.normal, None, None, of_set="valid").source
        check_missing(model, source.x)
        return source.x, source.u, None
    if config.data.row.from_python:
        raise ConfigError(
            "--normal: the run was trained on data from Python, which has its validation part; name a file of usual "
            "frames, or give --threshold"
        )
    own = "folder" in type(config.data).model_fields and options.data is not None and Path(options.data).is_dir()
    _, valid = dataset_of(config, options.data if own else None, "valid")
    items = [valid[index] for index in range(len(valid))]
    first = None
    if valid.before is not None:
        before = [valid.before[index] for index in range(len(valid))]
        first = [len(x) for x, _ in before]
        items = [
            (torch.cat((old, x)), None if u is None or old_u is None else torch.cat((old_u, u)))
            for (old, old_u), (x, u) in zip(before, items, strict=True)
        ]
    controls = [u for _, u in items if u is not None]
    return [x.float() for x, _ in items], controls or None, first


def _scores(
    options: argparse.Namespace,
    model: SequenceModel,
    size: int,
    x: Sequence[Tensor],
    u: Sequence[Tensor] | None,
    first: Sequence[int] | None,
) -> list[np.ndarray[Any, Any]]:
    """[T_i] of every sequence behind its `first` frames, NaN where nothing is observed."""
    from vssn.data.batching import padded_batches
    from vssn.utils.random import mixed_seed

    found = []
    samples = options.samples or SAMPLES[options.kind]
    with Progress("scoring", len(x)) as progress:
        for batch in padded_batches(x, u if model.control_size else None, size, model.a_parameter()):
            seed = mixed_seed(options.seed, batch.first)
            scores = model.score(batch.x, batch.u, batch.lengths, kind=options.kind, samples=samples, seed=seed)
            scores = scores.masked_fill(batch.x.isnan().all(-1), math.nan)
            for b, length in enumerate(batch.lengths.tolist()):
                start = 0 if first is None else first[batch.first + b]
                found.append(scores[start:length, b].float().cpu().numpy())
            progress.advance(len(batch.lengths))
    return found
