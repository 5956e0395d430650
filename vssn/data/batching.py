"""From sequences to padded, time-major batches of similar length.

The order of an epoch and its augmentation follow from (seed, epoch) alone, so a run that is resumed at an
epoch sees what the unbroken run would have seen, with any number of loader workers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from vssn.utils.checks import require_flag, require_numbers, require_parts, require_seed, require_size
from vssn.utils.random import generator
from vssn_kernels.arguments import shown

Item = tuple[Tensor, Tensor | None]
Array = Tensor | np.ndarray[Any, Any]
Transform = Callable[[Tensor, torch.Generator], Tensor]


class SequenceBatch(NamedTuple):
    """B sequences, padded with zeros behind their ends."""

    x: Tensor  # [T, B, X] float32
    lengths: Tensor  # [B] int64
    u: Tensor | None = None  # [T, B, U] float32, controls from outside
    before: SequenceBatch | None = None  # the frames before, which a model sees and no score counts


class SequenceDataset(Dataset[Item]):
    """Sequences [T, X] and, where there are any, their controls [T, U]; an item is the pair (x, u).

    Args:
        sequences, controls: tensors or NumPy arrays of real numbers: a list of them, or one [N, T, X]. Anything else
            with a length and an index may stand for a list; its items are then made, and checked, when they are drawn.
        lengths: where taking a sequence is dear (one that is rendered when it is asked for).
        transform: `transform(x, generator)` changes a sequence each time it is drawn; its generator is seeded from
            (seed, epoch, index).
        before: for every sequence the frames before it, which a model sees and no score counts.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        sequences: Sequence[Array] | Array,
        controls: Sequence[Array] | Array | None = None,
        *,
        lengths: Sequence[int] | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        before: SequenceDataset | None = None,
    ) -> None:
        self.sequences: Sequence[Any] = _listed("sequences", sequences)
        self.controls: Sequence[Any] | None = None if controls is None else _listed("controls", controls, "U")
        if len(self.sequences) == 0:
            raise ValueError("sequences must hold at least one sequence, got none")
        for name, given in (("controls", self.controls), ("lengths", lengths)):
            if given is not None and (not hasattr(given, "__len__") or len(given) != len(self.sequences)):
                came = len(given) if hasattr(given, "__len__") else type(given).__name__
                raise ValueError(f"{name} must be one for each of {len(self.sequences)} sequences, got {came}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function of (x, generator), got {type(transform).__name__}")
        require_seed("seed", seed)
        if lengths is None:
            lengths = [len(sequence) for sequence in self.sequences]
        self.lengths = [_length(f"lengths[{index}]", length) for index, length in enumerate(lengths)]
        if before is not None and (not isinstance(before, SequenceDataset) or len(before) != len(self.sequences)):
            came = f"{len(before)} sequences" if isinstance(before, SequenceDataset) else type(before).__name__
            raise ValueError(f"before must be a SequenceDataset of {len(self.sequences)} sequences, got {came}")
        self.before = before
        self.transform = transform
        self.seed = seed
        # In shared memory, so that loader workers which outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        require_size("epoch", epoch, 0)
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Item:
        x = as_sequence(f"sequences[{index}]", self.sequences[index])
        if self.transform is not None:
            x = self.transform(x, generator(self.seed, int(self._epoch), index))
        return x, None if self.controls is None else as_sequence(f"controls[{index}]", self.controls[index], "U")

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """What a loader takes for a batch: the items, each with that of the frames before it where there are any."""
        if self.before is None:
            return [self[index] for index in indices]
        return [(*self[index], self.before[index]) for index in indices]


def _length(name: str, length: Any) -> int:
    """As an int, also where it is NumPy's or stands in a tensor."""
    try:
        number = operator.index(length)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"{name} must be an int of at least 0, got {shown(length)}")
    return number


def _listed(name: str, sequences: object, features: str = "X") -> Sequence[Any]:
    """What holds the sequences; those of a list, a tensor or an array are checked."""
    if isinstance(sequences, Tensor | np.ndarray):
        if isinstance(sequences, np.ndarray) and sequences.dtype == object and sequences.ndim != 3:
            raise TypeError(f"{name} must be a list of arrays, got an array of objects; pass a list, as list(array) is")
        if isinstance(sequences, Tensor):
            require_numbers(name, sequences)
        if sequences.ndim != 3:
            raise ValueError(
                f"{name} must be a list of tensors [T, {features}], or one tensor [N, T, {features}], got one of shape "
                f"{list(sequences.shape)}; put a single sequence in a list, and a feature alone in [T, 1]"
            )
        whole = as_sequence(name, sequences, features, 3)
        return whole  # type: ignore[return-value]  # a tensor has a length and an index
    if isinstance(sequences, list | tuple):
        return [as_sequence(f"{name}[{index}]", sequence, features) for index, sequence in enumerate(sequences)]
    if hasattr(sequences, "to_numpy"):
        raise TypeError(f"{name} must be a list of tensors [T, {features}], got {named_type(sequences)} in a list")
    if isinstance(sequences, str | dict) or not (hasattr(sequences, "__len__") and hasattr(sequences, "__getitem__")):
        raise TypeError(f"{name} must be a list of tensors [T, {features}], got {type(sequences).__name__}")
    return sequences  # type: ignore[return-value]  # as described


def as_sequence(name: str, sequence: object, features: str = "X", dims: int = 2) -> Tensor:
    """The sequence [T, `features`] as a tensor of real numbers; an array shares its memory where it can. Raises
    TypeError, ValueError, naming it."""
    if isinstance(sequence, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one; give .filled(numpy.nan) of floats, or .data")
    if isinstance(sequence, np.ndarray):
        if sequence.dtype.kind not in "biuf":
            then = "; convert it with .astype('float32')" if sequence.dtype == object else ""
            raise TypeError(f"{name} must hold real numbers, got {sequence.dtype}{then}")
        try:
            native = np.ascontiguousarray(sequence, sequence.dtype.newbyteorder("="))
            sequence = torch.from_numpy(native if native.flags.writeable else native.copy())
        except TypeError:
            raise TypeError(f"{name} must have a dtype that PyTorch has too, got {sequence.dtype}") from None
    if not isinstance(sequence, Tensor):
        raise TypeError(f"{name} must be a tensor or an array [T, {features}], got {named_type(sequence)}")
    sequence = require_numbers(name, sequence)
    if sequence.dim() != dims:
        raise ValueError(
            f"{name} must have shape [T, {features}], got {list(sequence.shape)}; give a feature alone as [T, 1]"
        )
    return sequence


def named_type(value: object) -> str:
    """For messages, with what makes an array of it."""
    name = type(value).__name__
    if hasattr(value, "to_numpy"):  # a table of pandas
        return f"{name}; give its .to_numpy()"
    return f"{name}; give numpy.asarray of it" if isinstance(value, list | tuple) else name


def collate_sequences(items: Sequence[tuple[Any, ...]]) -> SequenceBatch:
    """Pad (x [T, X], u [T, U] or None) of different T to one batch; a third part, such a pair, holds the frames before.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    if not isinstance(items, list | tuple) or not items:
        raise TypeError(f"items must be a list of pairs (x, u), one at least, got {_name(items)}")
    before = [item[2] for item in items if isinstance(item, tuple) and len(item) == 3]
    if before and len(before) == len(items):
        return collate_sequences([item[:2] for item in items])._replace(before=collate_sequences(before))
    for number, item in enumerate(items):
        require_parts(f"items[{number}]", item, "(x, u)", lists=True)
    items = [
        (as_sequence(f"items[{index}]'s x", x), None if u is None else as_sequence(f"items[{index}]'s u", u, "U"))
        for index, (x, u) in enumerate(items)
    ]
    lengths = torch.tensor([len(x) for x, _ in items], dtype=torch.int64)
    controls = [u for _, u in items if u is not None]
    if controls and len(controls) != len(items):
        raise ValueError(f"controls must come with all sequences of a batch or with none, got {len(controls)}")
    if controls and [len(u) for u in controls] != lengths.tolist():
        raise ValueError(
            f"controls must be as long as their sequences {lengths.tolist()}, got {[len(u) for u in controls]}"
        )
    return SequenceBatch(_pad([x for x, _ in items]), lengths, _pad(controls) if controls else None)


def _name(value: object) -> str:
    return "none" if isinstance(value, list | tuple) and not value else type(value).__name__


def _pad(sequences: list[Tensor]) -> Tensor:
    widths = {sequence.shape[1] for sequence in sequences}
    if len(widths) != 1:
        raise ValueError(f"sequences of a batch must have one width, got {sorted(widths)}")
    like = torch.empty(0)
    return pad_sequence([sequence.to(like) for sequence in sequences])  # [T, B, X]


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
        if not isinstance(dataset, SequenceDataset):
            raise TypeError(f"dataset must be a SequenceDataset, got {type(dataset).__name__}")
        require_size("batch_size", batch_size, 1)
        require_flag("shuffle", shuffle)
        require_seed("seed", seed)
        require_size("pool_batches", pool_batches, 1)
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
        self.dataset.set_epoch(epoch)
        self.epoch = epoch

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
    require_size("epoch", epoch, 0)
    require_size("num_workers", num_workers, 0)
    require_flag("pin_memory", pin_memory)
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


class PaddedBatch(NamedTuple):
    """B sequences side by side, in the order that they came in; [B, T, ·] with batch_first."""

    first: int  # index of the first
    x: Tensor  # [T, B, X], NaN where missing, zeros at padding
    u: Tensor | None  # [T, B, U]
    lengths: Tensor  # [B]


def padded_batches(
    x: Sequence[Tensor], u: Sequence[Tensor] | None, size: int, like: Tensor, batch_first: bool = False
) -> Iterator[PaddedBatch]:
    """Of `size` sequences each, on the device and in the dtype of `like`."""
    for first in range(0, len(x), size):
        here = slice(first, first + size)
        lengths = torch.tensor([len(part) for part in x[here]], device=like.device)
        padded = [None if parts is None else pad_sequence(list(parts[here]), batch_first).to(like) for parts in (x, u)]
        assert padded[0] is not None
        yield PaddedBatch(first, padded[0], padded[1], lengths)
