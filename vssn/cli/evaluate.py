"""`vssn evaluate`: the scores of a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vssn.cli import series
from vssn.cli.common import TEST, add_threads, check_json, check_missing, dataset_of, use_threads
from vssn.training.heartbeat import Heartbeat
from vssn.utils.command import positive, seed, to_json, writing


def add(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="score a checkpoint", description="Score a checkpoint.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a best.ckpt or last.ckpt")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="the place of the run's set, or a file of its form (else the run's, else VSSN_DATA)",
    )
    parser.add_argument("--split", choices=("train", "valid", "test"), help=f"of the set ({TEST})")
    parser.add_argument("--bound", choices=("elbo", "iwae", "fivo"), default="elbo", help="default: elbo")
    parser.add_argument(
        "--particles", metavar="K", type=positive, help="of iwae and fivo (100); of elbo: draws that are averaged (1)"
    )
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="of the draws (0)")
    parser.add_argument("--batch-size", metavar="B", type=positive, help="sequences read at once (else the run's)")
    parser.add_argument(
        "--memory", metavar="MIB", type=positive, default=1024, help="that iwae and fivo may use (1024)"
    )
    series.add_scores(parser)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the scores there too")
    add_threads(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from vssn.data.batching import sequence_loader
    from vssn.data.splits import in_memory
    from vssn.inference.scoring import BoundScores, Scores, evaluate, evaluate_bound
    from vssn.training.checkpoints import load_model

    use_threads(options)
    model, config = load_model(options.checkpoint)
    check_json(options, config)
    split = options.split or TEST
    particles = options.particles or (1 if options.bound == "elbo" else 100)
    scores: Scores | BoundScores
    with Heartbeat("reading the data", lambda line: print(line, file=sys.stderr)) as pulse:
        config, dataset = dataset_of(config, options.data, options.split)
        check_missing(model, (x for x, _ in in_memory(dataset)))
        pulse.doing = f"scoring {len(dataset)} sequences"
        batch_size = options.batch_size or config.data.batch_size
        loader = sequence_loader(dataset, batch_size, num_workers=config.data.workers)
        if options.bound == "elbo":
            scores = evaluate(model, loader, samples=particles, seed=options.seed)
        else:
            scores = evaluate_bound(
                model,
                loader,
                bound=options.bound,
                particles=particles,
                seed=options.seed,
                memory=options.memory * 2**20,
            )
    print(f"{options.checkpoint}, {config.data.set}, {split}\n{scores.table()}")
    further = config.data.row.scores
    more = None if further is None else further(dataset, scores)
    if config.data.row.model_scores is not None:
        more = config.data.row.model_scores(dataset, model)
    if more is not None:
        print(more.table())
    beside = series.scores(options, model, config, dataset)
    for table in beside.values():
        print(f"\n{table.table()}")
    if options.json is not None:
        settings = {
            "checkpoint": str(options.checkpoint),
            "split": split,
            "bound": options.bound,
            "particles": particles,
            "seed": options.seed,
        }
        content = settings | scores._asdict() | (more._asdict() if more else {})
        content |= {name: table.as_dict() for name, table in beside.items()}
        with writing("--json", options.json):
            options.json.write_text(to_json(content), encoding="utf-8")
    return 0
