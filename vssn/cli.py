"""The command `vssn`: fit, evaluate, info. A mistake of the user is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vssn_kernels.version import __version__

INTERRUPTED = 130
USER_ERRORS = ("ConfigError", "DataError", "CheckpointError", "TrainingError")  # by name: their modules load late


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
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
    evaluate.add_argument("--samples", metavar="K", type=_positive, default=1, help="draws whose ELBO is averaged")
    evaluate.add_argument("--json", metavar="FILE", type=Path, help="write the scores there too")
    evaluate.set_defaults(run=_evaluate)

    info = commands.add_parser("info", help="versions, devices and backends, for bug reports")
    info.set_defaults(run=_info)
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
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
    from vssn.evaluation import evaluate, load_model

    model, config = load_model(options.checkpoint)
    if options.data is not None:
        if "folder" not in type(config.data).model_fields:
            raise ConfigError(f"--data: the set {config.data.set!r} is simulated and has no folder; leave it out")
        config = config.model_copy(update={"data": config.data.model_copy(update={"folder": options.data})})
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise ConfigError(f"--json: there is no folder {options.json.absolute().parent}; make it first")
    dataset = getattr(config.load_data(), options.split)
    loader = sequence_loader(dataset, config.data.batch_size, num_workers=config.data.workers)
    scores = evaluate(model, loader, samples=options.samples)
    print(f"{options.checkpoint}, {config.data.set}, {options.split}\n{scores.table()}")
    if options.json is not None:
        settings = {"checkpoint": str(options.checkpoint), "split": options.split, "samples": options.samples}
        try:
            options.json.write_text(json.dumps(settings | scores._asdict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json: cannot write {options.json} ({error.strerror}); name another file") from None
    return 0


def _info(options: argparse.Namespace) -> int:
    import vssn_kernels

    print(vssn_kernels.info())
    return 0


if __name__ == "__main__":
    sys.exit(main())
