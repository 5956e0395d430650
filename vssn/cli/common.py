"""What the commands share: options, the data of a run, batches, progress."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vssn.training.heartbeat import Heartbeat
from vssn.utils.command import of_user, positive, seed, threads

if TYPE_CHECKING:
    from torch import Tensor

    from vssn.data.batching import SequenceDataset
    from vssn.data.formats import Source
    from vssn.data.splits import Splits
    from vssn.nn.interface import SequenceModel
    from vssn.output.results import Look
    from vssn.output.targets import Target
    from vssn.training.config import Config

TEST = "test"  # the split that is taken unless --split says more
FIRST_OF_A_SET = 8  # sequences of a run's own set that are looked at unless --first says more


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        metavar="N",
        type=threads,
        help="of PyTorch and the kernels (else as OMP_NUM_THREADS says, else all cores); 1 where other programs run",
    )


def use_threads(options: argparse.Namespace) -> None:
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)


def with_data(config: Config, folder: str | None) -> Config:
    from vssn.errors import ConfigError

    if config.data.row.from_python:
        config.load_data()  # says what to call instead
    if folder is not None and not {"folder", "path"} & type(config.data).model_fields.keys():
        raise ConfigError(f"--data: the set {config.data.set!r} is simulated and has no folder; leave it out")
    return config.with_folder(folder)


def add_inference(
    parser: argparse.ArgumentParser, *, samples: int | None, quantiles: bool = False, drawn: str | None = None
) -> None:
    """The options of commands that apply a model to data.

    Args:
        samples: default of --samples; None: no draws.
        drawn: what --samples says instead of that.
    """
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a best.ckpt or last.ckpt")
    parser.add_argument(
        "--data", metavar="PATH", help="a file or folder of the form that the run was trained on (else its own data)"
    )
    parser.add_argument("--split", choices=("train", "valid", "test"), help="of a run's own set, without --data (test)")
    parser.add_argument("--first", metavar="N", type=positive, help=f"sequences (all; {FIRST_OF_A_SET} of a run's set)")
    parser.add_argument(
        "--output", metavar="PATH", type=Path, required=True, help="a folder, or a file whose suffix says what to write"
    )
    help_of = drawn or "paths drawn" + (f" ({samples})" if samples is not None else " (none: means)")
    parser.add_argument("--samples", metavar="S", type=positive, default=samples, help=help_of)
    if quantiles:
        parser.add_argument(
            "--quantiles", metavar="Q", type=level, nargs="+", default=[0.1, 0.5, 0.9], help="in (0, 1) (0.1 0.5 0.9)"
        )
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="of the draws (0)")
    parser.add_argument("--batch-size", metavar="B", type=positive, help="sequences run at once (else the run's)")
    add_threads(parser)


def level(text: str) -> float:
    """A number in (0, 1), for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text[:40]!r}")
    return value


class Applied(NamedTuple):
    """What a model is applied to, and how that is shown."""

    source: Source
    look: Look


def data_of(config: Config, path: str | None, split: str | None, first: int | None, of_set: str = TEST) -> Applied:
    """The sequences that a command is for: a file in the form of the run's own, or the run's own, of which `of_set` is
    the split unless `split`, the user's, says another. Raises DataError."""
    from vssn.data.formats import read_like
    from vssn.data.speech import SPEECH_SETS
    from vssn.errors import ConfigError
    from vssn.output.results import Look

    own = config.data
    path_of_set = path is None or ("folder" in type(own).model_fields and Path(path).is_dir()) or own.set in SPEECH_SETS
    path = getattr(own, "path", None) if path is None else path
    if path is None and own.row.from_python:
        raise ConfigError("--data: the run was trained on data from Python; name a file of its form")
    if path is None or (path_of_set and not hasattr(own, "path")):
        return _of_set(with_data(config, path), split or of_set, first or FIRST_OF_A_SET)
    if split is not None:
        raise ConfigError(
            f"--split: expected none with files, whose sequences are all taken, got {split!r}; leave it out"
        )
    source = read_like(own, path)
    look = Look(source.kind, Path(path).name, source.frame_shape, source.rate)
    return Applied(source.select(range(min(first or len(source.x), len(source.x)))), look)


def _of_set(config: Config, split: str, first: int) -> Applied:
    """The first sequences of a split of a named set."""
    from vssn.data.formats.base import Source, numbered
    from vssn.data.speech import scale_of
    from vssn.output.results import Look

    dataset, row = getattr(_splits(config, is_own=True), split), config.data.row
    items = [dataset[index] for index in range(min(first, len(dataset)))]
    width, scale = items[0][0].shape[1], scale_of(dataset)
    side = math.isqrt(width)
    within_unit = row.values is not None and (row.values.low, row.values.high) == (0, 1)
    label = f"{config.data.set}, {split}"
    look = Look("arrays", label)
    if scale is not None:
        look = Look("audio", label, None, scale.sample_rate, gain=scale.std / 2**15, offset=scale.mean / 2**15)
    elif within_unit and row.values is not None and row.values.whole and width == 88:
        look = Look("midi", label, None, 2.0, tempo=100.0)  # 0.3 seconds a frame, as the authors of the sets play them
    elif within_unit and side * side == width and side >= 8:
        look = Look("film", label, (side, side))
    controls = None if items[0][1] is None else [u for _, u in items]
    source = Source(
        x=[x.float() for x, _ in items],
        u=controls,
        names=[f"{split}-{number:03d}" for number in range(len(items))],
        channels=numbered("x", width),
        controls=[] if controls is None else numbered("u", controls[0].shape[1]),
        times=None,
        step=None,
        kind=look.kind,
        frame_shape=look.frame_shape,
        rate=look.rate,
    )
    return Applied(source, look)


def dataset_of(config: Config, path: str | None, split: str | None) -> tuple[Config, SequenceDataset]:
    """What a run is scored on: a split of its set; of a run on data from Python files of its form, that split of them
    where they have splits. Raises DataError."""
    from vssn.data.batching import SequenceDataset
    from vssn.data.files import without_future
    from vssn.data.formats import read_like
    from vssn.errors import DataError

    own = config.data
    if path is None or not own.row.from_python:
        is_own = path is None or ("path" in type(own).model_fields and _same(path, own.path))
        config = with_data(config, path)
        return config, getattr(_splits(config, is_own), split or TEST)
    source = read_like(own, path)
    if source.parts is None and split is not None:
        raise DataError(f"{path}: expected parts for --split {split}, got sequences of no part; leave it out")
    if source.parts is not None:
        split = split or TEST
        if split not in source.parts:
            parts = ", ".join(dict.fromkeys(source.parts))
            raise DataError(f"{path}: expected a part {split}, got {parts}; name another --split")
        source = source.select(index for index, part in enumerate(source.parts) if part == split)
    source = without_future(source)  # nothing of it can be scored
    return config, SequenceDataset(source.x, source.u)


def target_of(options: argparse.Namespace, config: Config, kind: str, count: int, **more: Any) -> Target:
    """`vssn.output.targets.choose` of --output: nothing is written over what the command reads."""
    from vssn.output.targets import choose

    return choose("--output", options.output, kind, count, sources=_read(options, config), **more)


def check_json(options: argparse.Namespace, config: Config) -> None:
    """Raises TargetError where --json cannot be written, or the command reads it."""
    from vssn.output.targets import check_file

    if options.json is not None:
        check_file("--json", options.json, _read(options, config))


def _read(options: argparse.Namespace, config: Config) -> dict[str, str | None]:
    """What a command reads, by what names it."""
    from vssn.data.folder import named_folder

    read = {f"--{name}": getattr(options, name, None) for name in ("data", "normal")}
    own = getattr(config.data, "path", None)
    if "folder" in type(config.data).model_fields and (named := named_folder(config.data.folder)):
        own, _ = named
    return read | {"CHECKPOINT": options.checkpoint, "the run's data": own}


def _splits(config: Config, is_own: bool) -> Splits:
    """Of the run's own set, or of other data in its place.

    Raises:
        ConfigError: the run's own data has changed since, of which the splits would be others: what was trained on
            might be scored.
    """
    from vssn.errors import ConfigError

    splits = config.load_data()
    try:
        config.with_measured(splits)
    except ConfigError as error:
        if is_own:
            changed = str(error).removesuffix("; leave it out or change it")
            raise ConfigError(
                f"the run's own data has changed since it was trained ({changed}), and its split with it; bring back "
                "what it was, or name data that the run has not seen by --data"
            ) from None
    return splits


def _same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(of_user(path), of_user(other))
    except OSError:
        return False


def check_missing(model: SequenceModel, sequences: Iterable[Tensor]) -> None:
    """Raises DataError where x has gaps and the model takes none."""
    from vssn.errors import DataError

    gaps = [part.isnan() for part in sequences]
    missing = sum(int(part.sum()) for part in gaps)
    if missing and not getattr(model, "masked", False):
        raise DataError(
            f"--data: {missing} of {sum(part.numel() for part in gaps)} numbers of x are missing, and the model takes "
            "none that are; fill them in, or train one with model.masked: true (vssn fit --set model.masked=true)"
        )


class Progress:
    """How far a command is, on stderr: a line that changes on a terminal, now and then a line in a log."""

    def __init__(self, doing: str, total: int, things: str = "sequences") -> None:
        self.doing, self.total, self.things, self.done = doing, total, things, 0
        self.terminal = sys.stderr.isatty()
        self.pulse = Heartbeat(self.text, lambda line: print(line, file=sys.stderr, flush=True))

    def text(self) -> str:
        return f"{self.doing}: {self.done} of {self.total} {self.things}"

    def __enter__(self) -> Progress:
        if self.terminal:
            self._show()
        else:
            self.pulse.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
        else:
            self.pulse.__exit__(*error)

    def advance(self, count: int) -> None:
        self.done += count
        if self.terminal:
            self._show()

    def _show(self) -> None:
        print(f"\r\x1b[2K{self.text()}", end="", file=sys.stderr, flush=True)


def say_written(paths: Sequence[Path]) -> None:
    """The files, a line each; of many the first ones and their number."""
    for path in paths[:12]:
        print(path)
    if len(paths) > 12:
        print(f"and {len(paths) - 12} more in {paths[-1].parent}")
