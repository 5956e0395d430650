"""Data that is given from Python, `vssn.fit(config, splits)`: its sizes are kept with the run, and nothing to load."""

from __future__ import annotations

from vssn.data.registry import register
from vssn.data.splits import Splits, widths
from vssn.errors import DataError
from vssn.utils.numbers import Count, Size


def sizes(splits: Splits) -> dict[str, int]:
    """By these a run that is resumed tells other data from its own."""
    x_size, control_size = widths(splits.train)
    counts = {f"num_{name}": len(part) for name, part in splits._asdict().items()}
    return {"x_size": x_size, "control_size": control_size, **counts, "num_frames": sum(splits.train.lengths)}


@register("given", values=None, measured=sizes, from_python=True)
def load_splits(
    *,
    x_size: Count | None = None,
    control_size: Size | None = None,
    num_train: Count | None = None,
    num_valid: Count | None = None,
    num_test: Count | None = None,
    num_frames: Count | None = None,  # of all training sequences
) -> Splits:
    """Raises DataError: where a run was given its data, a configuration or a checkpoint does not have it."""
    raise DataError(
        "data.set: 'given' is data that came from Python; give it again: vssn.fit(config, splits) trains, "
        "vssn.evaluate(model, loader) scores, with vssn.training.checkpoints.load_model and "
        "vssn.data.batching.sequence_loader"
    )
