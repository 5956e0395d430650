"""`vssn fit`: a model is trained."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from vssn.cli.common import add_threads, use_threads, with_data
from vssn.utils.command import INTERRUPTED, TERMINATED, Terminated, of_user, positive

if TYPE_CHECKING:
    from vssn.training.config import Config


def add(commands: Any) -> None:
    parser = commands.add_parser("fit", help="train a model", description="Train a model; the run fills one folder.")
    parser.add_argument(
        "--config", help="a YAML file, or the name of a packaged one such as jsb; without it one is proposed for --data"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="data of your own, a file or a folder; with --config the place of its set (else data.folder, else "
        "VSSN_DATA)",
    )
    parser.add_argument("--output", metavar="DIR", help="folder of the run (else training.output)")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder from its last.ckpt")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="e.g. training.max_epochs=3")
    parser.add_argument("--devices", metavar="N", type=positive, help="processes of each machine, a device each (1)")
    parser.add_argument("--nodes", metavar="N", type=positive, help="machines, with srun or torchrun (1)")
    add_threads(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from vssn.utils.values import one_word_of_rounding

    with one_word_of_rounding():  # of data that is read to propose a configuration, and again to train
        return _fit_as(_config_to_fit(options), options)


def _config_to_fit(options: argparse.Namespace) -> Config:
    """The one named; else that of the run which is resumed, or one proposed for the data."""
    from vssn.errors import ConfigError
    from vssn.training.config import check_config, load_config
    from vssn.training.own_files import propose_for

    overrides = list(options.set)
    if options.output is not None:
        overrides.append(f"training.output={json.dumps(options.output)}")
    for name in ("devices", "nodes"):
        if getattr(options, name) is not None:
            overrides.append(f"training.{name}={getattr(options, name)}")
    if options.config is not None:
        return with_data(load_config(options.config, overrides), options.data)
    if options.resume and options.output is not None:
        return with_data(load_config(of_user(options.output) / "config.yaml", overrides), options.data)
    if options.data is None:
        raise ConfigError("--config: expected a configuration, or --data with data of your own; give one of them")
    proposal = propose_for(options.data, overrides, options.output)
    print(proposal.to_yaml())
    return check_config(proposal.settings, options.data, overrides)


def _fit_as(config: Config, options: argparse.Namespace) -> int:
    from vssn.training.fit import fit
    from vssn.training.processes import launch, started
    from vssn.training.run_directory import what_is_kept

    training = config.training
    world = started(training)
    if world is None and training.nodes == 1:
        return launch(training.devices, options.arguments)

    use_threads(options)
    try:
        result = fit(config, resume=options.resume)
    except (KeyboardInterrupt, Terminated) as end:
        if world is not None and not world.writes:  # the first process speaks
            raise
        word, code = ("terminated", TERMINATED) if isinstance(end, Terminated) else ("interrupted", INTERRUPTED)
        print(f"vssn: {word}; {what_is_kept(config)}", file=sys.stderr)
        return code
    if world is not None and not world.writes:
        return 0
    print(f"\nbest epoch {result.best_epoch}: {result.best_path}  ({result.seconds / 60:.1f} minutes)")
    parts = [("validation", result.valid), ("test", result.test)]
    for split, scores in parts if result.test is not result.valid else parts[:1]:
        print(f"\n{split}\n{scores.table()}")
    return 0
