"""Data that is given from Python, `vssn.fit(config, splits)`: its sizes and a fingerprint are kept with the run, and
nothing to load."""

from __future__ import annotations

import zlib

import torch

from vssn.data.registry import register
from vssn.data.splits import Splits, in_memory, widths
from vssn.errors import DataError
from vssn.utils.numbers import Count, Size


def fingerprint(splits: Splits) -> str | None:
    """A checksum of all sequences and controls, as the float32 that they become: by what they hold, whatever form they
    came in. None where some are made when they are drawn."""
    checksum = 0
    for part in splits:
        items = list(in_memory(part))
        if not items:
            return None
        for array in (array for item in items for array in item if array is not None):
            numbers = array.detach().to("cpu", torch.float32).contiguous()
            checksum = zlib.crc32(numbers.numpy().data, zlib.crc32(repr(tuple(numbers.shape)).encode(), checksum))
    return f"crc32 {checksum:08x}"


def measured(splits: Splits) -> dict[str, int | str | None]:
    """By these a run that is resumed tells other data from its own."""
    x_size, control_size = widths(splits.train)
    counts = {f"num_{name}": len(part) for name, part in splits._asdict().items()}
    frames = sum(splits.train.lengths)
    sizes = {"x_size": x_size, "control_size": control_size, **counts, "num_frames": frames}
    return {**sizes, "fingerprint": fingerprint(splits)}


@register("given", values=None, measured=measured, from_python=True)
def load_splits(
    *,
    standardise: bool = False,
    x_size: Count | None = None,
    control_size: Size | None = None,
    num_train: Count | None = None,
    num_valid: Count | None = None,
    num_test: Count | None = None,
    num_frames: Count | None = None,  # of all training sequences
    fingerprint: str | None = None,
) -> Splits:
    """Raises DataError: where a run was given its data, a configuration or a checkpoint does not have it.

    Args:
        standardise: the model keeps mean and standard deviation of the training data, and works on standardised frames.
        the others: measured, and kept with the run.
    """
    raise DataError(
        "data.set: 'given' is data that came from Python; give it again: vssn.fit(config, splits) trains, "
        "vssn.evaluate(model, loader) scores, with vssn.training.checkpoints.load_model and "
        "vssn.data.batching.sequence_loader"
    )
