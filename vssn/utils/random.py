"""Random numbers that follow from a key of several numbers, and from nothing else."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def mixed_seed(*key: int) -> int:
    """A seed that follows from all numbers of the key, well mixed. Keys of one use have one length: zeros pad a key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU with `mixed_seed(*key)`."""
    return torch.Generator().manual_seed(mixed_seed(*key))


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's own generators start from the seed inside the block, and go on behind it as if it had not been."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Behind the block the generators of Python, NumPy and PyTorch go on as if it had not been."""
    own, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(of_numpy)  # noqa: NPY002
