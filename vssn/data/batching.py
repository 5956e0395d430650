"""From sequences to padded, time-major batches of similar length.

The order of an epoch and its augmentation follow from (seed, epoch) alone, so a run that is resumed at an
epoch sees what the unbroken run would have seen, with any number of loader workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vssn.seeds import generator

Item = tuple[Tensor, Tensor | None]
Transform = Callable[[Tensor, torch.Generator], Tensor]


class SequenceBatch(NamedTuple):
    """B sequences, padded with zeros behind their ends."""

    x: Tensor  # [T, B, X] float32
    lengths: Tensor  # [B] int64
    u: Tensor | None = None  # [T, B, U] float32, controls from outside


class SequenceDataset(Dataset[Item]):
    """Sequences [T, X] and, where there are any, their controls [T, U]; an item is the pair (x, u).

    `transform(x, generator)` changes a sequence each time it is drawn; its generator is seeded from (seed,
    epoch, index). Give `lengths` where taking a sequence is dear (one that is rendered when it is asked for).
    """

    def __init__(
        self,
        sequences: Sequence[Tensor] | Tensor,
        controls: Sequence[Tensor] | Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        if len(sequences) == 0:
            raise ValueError("sequences must hold at least one sequence, got none")
        if controls is not None and len(controls) != len(sequences):
            raise ValueError(f"controls must be one for each of {len(sequences)} sequences, got {len(controls)}")
        if lengths is not None and len(lengths) != len(sequences):
            raise ValueError(f"lengths must be one for each of {len(sequences)} sequences, got {len(lengths)}")
        _check_seed(seed)
        self.sequences = sequences
        self.controls = controls
        self.lengths = [int(length) for length in (map(len, sequences) if lengths is None else lengths)]
        self.transform = transform
        self.seed = seed
        # In shared memory, so that loader workers which outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Item:
        x = self.sequences[index]
        if self.transform is not None:
            x = self.transform(x, generator(self.seed, int(self._epoch), index))
        return x, None if self.controls is None else self.controls[index]


def collate_sequences(items: Sequence[Item]) -> SequenceBatch:
    """Pad (x [T, X], u [T, U] or None) of different T to one batch."""
    lengths = torch.tensor([len(x) for x, _ in items], dtype=torch.int64)
    controls = [u for _, u in items if u is not None]
    if controls and len(controls) != len(items):
        raise ValueError(f"controls must come with all sequences of a batch or with none, got {len(controls)}")
    if controls and [len(u) for u in controls] != lengths.tolist():
        raise ValueError(
            f"controls must be as long as their sequences {lengths.tolist()}, got {[len(u) for u in controls]}"
        )
    return SequenceBatch(_pad([x for x, _ in items]), lengths, _pad(controls) if controls else None)


def _pad(sequences: list[Tensor]) -> Tensor:
    widths = {sequence.shape[1] for sequence in sequences}
    if len(widths) != 1:
        raise ValueError(f"sequences of a batch must have one width, got {sorted(widths)}")
    padded = torch.zeros(max(map(len, sequences)), len(sequences), widths.pop())  # [T, B, X]
    for column, sequence in enumerate(sequences):
        padded[: len(sequence), column] = sequence
    return padded


class LengthBucketSampler(Sampler[list[int]]):
    """Batches of indices whose sequences have similar lengths; every sequence comes once in an epoch.

    shuffle=True: the sequences are shuffled and cut into pools of `pool_batches` batches, each pool is sorted
    by length and cut into batches, and the batches of all pools are shuffled. shuffle=False: one pool, sorted
    from long to short, always the same. The one batch that may be smaller is kept.
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        pool_batches: int = 8,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if pool_batches < 1:
            raise ValueError(f"pool_batches must be 1 or more, got {pool_batches}")
        _check_seed(seed)
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.pool_batches = pool_batches
        self.epoch = 0

    @property
    def sampler(self) -> LengthBucketSampler:
        """Trainers call `loader.batch_sampler.sampler.set_epoch`; this is that sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws; the dataset's augmentation follows."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # A generator function: the epoch counts when the first batch is drawn, not when the iterator is made.
        if not self.shuffle:
            yield from self._cut(list(range(len(self.dataset))))
            return
        own = generator(self.seed, self.epoch)
        order = torch.randperm(len(self.dataset), generator=own).tolist()
        size = self.pool_batches * self.batch_size
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        batches = [batch for pool in pools for batch in self._cut(pool)]
        for index in torch.randperm(len(batches), generator=own).tolist():
            yield batches[index]

    def _cut(self, pool: list[int]) -> list[list[int]]:
        pool = sorted(pool, key=self.dataset.lengths.__getitem__, reverse=True)
        return [pool[start : start + self.batch_size] for start in range(0, len(pool), self.batch_size)]


def sequence_loader(
    dataset: SequenceDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    pool_batches: int = 8,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[SequenceBatch]:
    """A loader of `SequenceBatch`es: shuffle=True for training, False for evaluation.

    `epoch` is the first one to be drawn: give it on resuming, because workers begin to draw before a trainer
    can set it. Later epochs are set by `loader.batch_sampler.set_epoch`.
    """
    sampler = LengthBucketSampler(dataset, batch_size, shuffle=shuffle, seed=seed, pool_batches=pool_batches)
    sampler.set_epoch(epoch)
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # a loader's type is that of its batches
        batch_sampler=sampler,
        collate_fn=collate_sequences,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
