"""Scores of series for `vssn evaluate`: forecasts and imputations beside the naive ones."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vssn.cli.common import Progress
from vssn.utils.command import positive, several

if TYPE_CHECKING:
    from torch import Tensor

    from vssn.data.batching import Item, SequenceDataset
    from vssn.experiments.series_scores import SeriesScores
    from vssn.nn.interface import SequenceModel
    from vssn.training.config import Config

LONGEST, GAPS = 24, 0.3
_OF_FILES = ("table", "arrays", "trials")


def add_scores(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "series",
        "CRPS, quantile loss, coverage, MAE, RMSE and MASE of forecasts and of hidden entries, beside the seasonal "
        "naive and straight lines; of one's own tables and arrays anyway, of other sets with --steps or --gaps",
    )
    group.add_argument(
        "--steps",
        metavar="N",
        type=positive,
        help=f"to forecast at the end of every sequence (a quarter of the shortest, {LONGEST} at most)",
    )
    group.add_argument("--season", metavar="N", type=positive, default=1, help="steps of the season: 12 of months (1)")
    group.add_argument(
        "--windows", metavar="N", type=positive, default=1, help="forecasts of a sequence, end to end (1)"
    )
    group.add_argument("--gaps", metavar="SHARE", type=share, help=f"of the observed entries to hide ({GAPS})")
    group.add_argument("--gap-length", metavar="N", type=positive, default=1, help="frames of a gap (1)")
    group.add_argument("--samples", metavar="S", type=several, default=100, help="paths drawn, 2 or more (100)")


def share(text: str) -> float:
    """A number in (0, 1), for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text[:40]!r}")
    return value


def scores(
    options: argparse.Namespace, model: SequenceModel, config: Config, dataset: SequenceDataset
) -> dict[str, SeriesScores]:
    """forecast and imputation, as far as they are asked for. Raises DataError."""
    from vssn.experiments.series_scores import score_forecasts, score_imputations, windows_of

    usual = _are_series(config)
    items = [dataset[index] for index in range(len(dataset))] if usual or options.steps or options.gaps else []
    if not items:
        return {}
    shortest = min(len(sequence) for sequence, _ in items)
    first = None if dataset.before is None else dataset.before.lengths
    if dataset.before is not None:  # seen and not scored
        items = [_joined(dataset.before[index], item) for index, item in enumerate(items)]
    x = [sequence.float() for sequence, _ in items]
    u = [control for _, control in items if control is not None] if model.control_size else None
    steps, gaps = options.steps, options.gaps
    if steps is None and usual and shortest > 1:  # what nobody asked for is left out where it cannot be scored
        usual_steps = min(max(shortest // 4, 1), LONGEST)
        observed = (~window.truth.isnan() for window in windows_of(x, None, usual_steps, options.windows, first))
        steps = usual_steps if any(bool(part.any()) for part in observed) else None
    if gaps is None and usual and _can_hide(options, x, first):
        gaps = GAPS
    size = options.batch_size or config.data.batch_size
    found = {}
    if steps is not None:
        with Progress("forecasting", len(x) * options.windows, "windows") as progress:
            found["forecast"] = score_forecasts(
                model,
                x,
                u,
                steps=steps,
                season=options.season,
                windows=options.windows,
                samples=options.samples,
                seed=options.seed,
                batch_size=size,
                first=first,
                advance=progress.advance,
            )
    if gaps is not None:
        with Progress("filling gaps", len(x)) as progress:
            found["imputation"] = score_imputations(
                model,
                x,
                u,
                share=gaps,
                length=options.gap_length,
                samples=options.samples,
                seed=options.seed,
                batch_size=size,
                first=first,
                advance=progress.advance,
            )
    return found


def _can_hide(options: argparse.Namespace, x: list[Tensor], first: list[int] | None) -> bool:
    """Whether an entry is hidden where the usual share of them is."""
    from vssn.errors import DataError
    from vssn.experiments.series_scores import hide

    try:
        hide(x, None, GAPS, length=options.gap_length, seed=options.seed, first=first)
    except DataError:
        return False
    return True


def _joined(before: Item, item: Item) -> Item:
    import torch

    (x, u), (more, control) = before, item
    return torch.cat((x, more)), None if u is None or control is None else torch.cat((u, control))


def _are_series(config: Config) -> bool:
    """Tables and arrays of real numbers."""
    from vssn.likelihoods import LIKELIHOODS
    from vssn.utils.values import REAL

    likelihood = getattr(config.model, "likelihood", None)
    real = likelihood in LIKELIHOODS and LIKELIHOODS[likelihood].support == REAL
    own = config.data.row.from_python or hasattr(config.data, "path")
    return real and own and getattr(config.data, "format", None) in (None, *_OF_FILES)
