"""The command `vssn`: fit, evaluate, reproduce, download, info.

A mistake of the user is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vssn_kernels.version import __version__

INTERRUPTED, CLOSED = 130, 141  # as a shell names the ends by SIGINT and SIGPIPE
USER_ERRORS = (
    "ConfigError",
    "DataError",
    "CheckpointError",
    "TrainingError",
    "MemoryLimitError",
)  # by name: their modules load late


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, `head` say, has gone; nor can what is left be written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except KeyboardInterrupt:
        print("vssn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name not in ("pydantic", "pytorch_lightning", "yaml", "scipy", "tensorboard"):
            raise
        return _fail(f"{error.name} is not installed; install what training needs: pip install 'vssn[train]'")
    except MemoryError:
        return _fail("out of memory; choose a smaller data set, model or batch_size")
    except ValueError as error:
        if type(error).__name__ not in USER_ERRORS:  # a fault of the program
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"vssn: error: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vssn", description="Variational Structured Stochastic Network")
    parser.add_argument("--version", action="version", version=f"vssn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="train a model", description="Train a model; the run fills one folder.")
    fit.add_argument("--config", required=True, help="a YAML file, or the name of a packaged one such as jsb")
    fit.add_argument("--data", metavar="FOLDER", help="folder of the music sets (else data.folder, else VSSN_DATA)")
    fit.add_argument("--output", metavar="DIR", help="folder of the run (else training.output)")
    fit.add_argument("--resume", action="store_true", help="continue the run in that folder from its last.ckpt")
    fit.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="e.g. training.max_epochs=3")
    fit.set_defaults(run=_fit)

    evaluate = commands.add_parser("evaluate", help="score a checkpoint", description="Score a checkpoint.")
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="a best.ckpt or last.ckpt")
    evaluate.add_argument("--data", metavar="FOLDER", help="folder of the music sets (else the run's, else VSSN_DATA)")
    evaluate.add_argument("--split", choices=("train", "valid", "test"), default="test")
    evaluate.add_argument("--bound", choices=("elbo", "iwae", "fivo"), default="elbo", help="default: elbo")
    evaluate.add_argument(
        "--particles", metavar="K", type=_positive, help="of iwae and fivo (100); of elbo: draws that are averaged (1)"
    )
    evaluate.add_argument("--seed", metavar="N", type=_seed, default=0, help="of the draws (0)")
    evaluate.add_argument("--batch-size", metavar="B", type=_positive, help="sequences read at once (else the run's)")
    evaluate.add_argument(
        "--memory", metavar="MIB", type=_positive, default=1024, help="that iwae and fivo may use (1024)"
    )
    evaluate.add_argument("--json", metavar="FILE", type=Path, help="write the scores there too")
    evaluate.set_defaults(run=_evaluate)

    reproduce = commands.add_parser(
        "reproduce",
        help="train and score what a table of the paper holds",
        description="Train and score what a table of the paper holds. The same command again goes on where it stopped.",
    )
    reproduce.add_argument(
        "tables",
        metavar="TABLE",
        nargs="*",
        help="music, objectives, speech, balls, pendulum, demo; several run in turn",
    )
    reproduce.add_argument("--budget", choices=("quick", "full"), default="full", help="quick: tiny models, one epoch")
    reproduce.add_argument("--data", metavar="FOLDER", help="folder of music sets and recordings (else VSSN_DATA)")
    reproduce.add_argument("--output", metavar="DIR", type=Path, default=Path("runs/reproduce"), help="of all runs")
    reproduce.add_argument(
        "--seeds", metavar="N", type=_positive, default=1, help="runs of each model, seeds 0 to N-1 (1)"
    )
    reproduce.add_argument(
        "--only",
        metavar="TEXT",
        action="append",
        default=[],
        help="runs whose SET-MODEL-SEED has this part: jsb, jsb-vssn, vssn_nade",
    )
    reproduce.add_argument("--threads", metavar="N", type=_positive, help="of PyTorch (else as it is set)")
    reproduce.add_argument(
        "--report", metavar="FILE", type=Path, nargs="?", const=Path("RESULTS.md"), help="write the page (RESULTS.md)"
    )
    reproduce.set_defaults(run=_reproduce)

    download = commands.add_parser(
        "download",
        help="fetch the four music sets",
        description="Fetch public copies of the four music sets (1.6 MB) and check them; name the folder as --data.",
    )
    download.add_argument("folder", metavar="FOLDER", type=Path)
    download.set_defaults(run=_download)

    info = commands.add_parser("info", help="versions, devices and backends, for bug reports")
    info.set_defaults(run=_info)
    return parser


def _positive(text: str) -> int:
    return _whole(text, 1)


def _seed(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
    return value


def _fit(options: argparse.Namespace) -> int:
    from vssn.config import load_config

    overrides = list(options.set)
    if options.data is not None:
        overrides.append(f"data.folder={json.dumps(options.data)}")
    if options.output is not None:
        overrides.append(f"training.output={json.dumps(options.output)}")
    config = load_config(options.config, overrides)

    from vssn.training import fit

    try:
        result = fit(config, resume=options.resume)
    except KeyboardInterrupt:
        last = Path(config.training.output, "last.ckpt")
        kept = f"; {last} is kept, continue with --resume" if last.is_file() else "; nothing is kept"
        print(f"vssn: interrupted{kept}", file=sys.stderr)
        return INTERRUPTED
    print(f"\nbest epoch {result.best_epoch}: {result.best_path}  ({result.seconds / 60:.1f} minutes)")
    for split, scores in (("validation", result.valid), ("test", result.test)):
        print(f"\n{split}\n{scores.table()}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from vssn.config import ConfigError
    from vssn.data.batching import sequence_loader
    from vssn.data.speech import scale_of, speech_scores
    from vssn.evaluation import BoundScores, Scores, evaluate, evaluate_bound, load_model

    model, config = load_model(options.checkpoint)
    if options.data is not None:
        if "folder" not in type(config.data).model_fields:
            raise ConfigError(f"--data: the set {config.data.set!r} is simulated and has no folder; leave it out")
        config = config.model_copy(update={"data": config.data.model_copy(update={"folder": options.data})})
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise ConfigError(f"--json: there is no folder {options.json.absolute().parent}; make it first")
    dataset = getattr(config.load_data(), options.split)
    batch_size = options.batch_size or config.data.batch_size
    loader = sequence_loader(dataset, batch_size, num_workers=config.data.workers)
    particles = options.particles or (1 if options.bound == "elbo" else 100)
    scores: Scores | BoundScores
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
    print(f"{options.checkpoint}, {config.data.set}, {options.split}\n{scores.table()}")
    scale = scale_of(dataset)
    speech = speech_scores(scores.micro, scores.frames, scores.sequences, scale) if scale else None
    if speech is not None:
        print(speech.table())
    if options.json is not None:
        settings = {
            "checkpoint": str(options.checkpoint),
            "split": options.split,
            "bound": options.bound,
            "particles": particles,
            "seed": options.seed,
        }
        content = settings | scores._asdict() | (speech._asdict() if speech else {})
        try:
            options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json: cannot write {options.json} ({error.strerror}); name another file") from None
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    import torch

    from vssn.config import ConfigError
    from vssn.reproduce import TABLES, Settings, reproduce
    from vssn.results import write_report

    unknown = [table for table in options.tables if table not in TABLES]
    if unknown or not (options.tables or options.report):
        came = f"got {unknown[0]!r}" if unknown else "got none"
        raise ConfigError(f"TABLE: expected one of {', '.join(TABLES)}, {came}; name one, or give --report")
    if options.report is not None and not options.report.absolute().parent.is_dir():
        raise ConfigError(f"--report: there is no folder {options.report.absolute().parent}; make it first")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = Settings(options.output, options.budget, options.seeds, options.data, tuple(options.only))
    failed = reproduce(options.tables, settings) if options.tables else 0
    if options.report is not None:
        absent = write_report(options.report, settings)
        print(f"{options.report}" + (f"; no runs of {', '.join(absent)}" if absent else ""))
    return 2 if failed else 0


def _download(options: argparse.Namespace) -> int:
    from vssn.data.download import download_music

    for path in download_music(options.folder):
        print(path)
    return 0


def _info(options: argparse.Namespace) -> int:
    import vssn_kernels

    print(vssn_kernels.info())
    return 0


if __name__ == "__main__":
    sys.exit(main())
