"""Batches: padding, the order of an epoch, and augmentation that follows (seed, epoch, index) alone."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from vssn.data.batching import LengthBucketSampler, SequenceBatch, SequenceDataset, collate_sequences, sequence_loader
from vssn.data.music import Transpose


def made_up(num_sequences: int = 53, width: int = 7, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (num_sequences,), generator=generator).tolist()
    return [torch.randint(0, 2, (length, width), generator=generator).to(torch.uint8) for length in lengths]


def epoch_of(sampler: LengthBucketSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


# Collation


def test_collate_pads_with_zeros_behind_the_end() -> None:
    sequences = made_up(5)
    batch = collate_sequences([(sequence, None) for sequence in sequences])
    assert isinstance(batch, SequenceBatch)
    assert batch.x.shape == (max(map(len, sequences)), 5, 7)
    assert batch.x.dtype == torch.float32
    assert batch.lengths.dtype == torch.int64
    assert batch.lengths.tolist() == [len(sequence) for sequence in sequences]
    assert batch.u is None
    for b, sequence in enumerate(sequences):
        assert batch.x[: len(sequence), b].equal(sequence.float())
        assert not batch.x[len(sequence) :, b].any()


def test_collate_with_controls() -> None:
    sequences = made_up(3)
    controls = [torch.randn(len(sequence), 2) for sequence in sequences]
    batch = collate_sequences(list(zip(sequences, controls, strict=True)))
    assert batch.u is not None
    assert batch.u.shape == (len(batch.x), 3, 2)
    for b, control in enumerate(controls):
        assert batch.u[: len(control), b].equal(control)
        assert not batch.u[len(control) :, b].any()


def test_collate_refuses_what_does_not_fit() -> None:
    a, b = torch.zeros(3, 4), torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"one width, got \[4, 5\]"):
        collate_sequences([(a, None), (b, None)])
    with pytest.raises(ValueError, match="with all sequences of a batch or with none, got 1"):
        collate_sequences([(a, torch.zeros(3, 1)), (a, None)])
    with pytest.raises(ValueError, match=r"as long as their sequences \[3\], got \[2\]"):
        collate_sequences([(a, torch.zeros(2, 1))])


def test_dataset_refuses_what_does_not_fit() -> None:
    sequences = made_up(3)
    with pytest.raises(ValueError, match="at least one sequence"):
        SequenceDataset([])
    with pytest.raises(ValueError, match="controls must be one for each of 3 sequences, got 1"):
        SequenceDataset(sequences, sequences[:1])
    with pytest.raises(ValueError, match="lengths must be one for each of 3 sequences, got 2"):
        SequenceDataset(sequences, lengths=[1, 2])
    for wrong in ("long", 2.5, None, -1):
        with pytest.raises(ValueError, match=rf"lengths\[1\] must be an int of at least 0, got {wrong!r}"):
            SequenceDataset(sequences, lengths=[3, wrong, 3])  # type: ignore[list-item]
    assert SequenceDataset(sequences, lengths=torch.tensor([1, 2, 3])).lengths == [1, 2, 3]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"seed must be an int in \[0, 2\*\*64\), got -1"):
        SequenceDataset(sequences, seed=-1)
    with pytest.raises(ValueError, match="batch_size must be an int of at least 1, got 0"):
        sequence_loader(SequenceDataset(sequences), 0)
    with pytest.raises(ValueError, match="pool_batches must be an int of at least 1, got 0"):
        sequence_loader(SequenceDataset(sequences), 2, pool_batches=0)


# The order of an epoch


@pytest.mark.parametrize("num_sequences", [1, 7, 8, 9, 53])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sequence_comes_once(num_sequences: int, shuffle: bool) -> None:
    sampler = LengthBucketSampler(SequenceDataset(made_up(num_sequences)), 8, shuffle=shuffle, pool_batches=2)
    batches = epoch_of(sampler, 4)
    assert sorted(index for batch in batches for index in batch) == list(range(num_sequences))
    assert len(batches) == len(sampler)
    assert sorted(map(len, batches))[1:] == [8] * (len(batches) - 1), "more than one batch is not full"


def test_order_follows_seed_and_epoch_alone() -> None:
    dataset = SequenceDataset(made_up())
    sampler = LengthBucketSampler(dataset, 4, shuffle=True, seed=5)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert first != second
    torch.manual_seed(99)  # the global generator has no part in it
    assert epoch_of(sampler, 0) == first
    resumed = LengthBucketSampler(SequenceDataset(made_up()), 4, shuffle=True, seed=5)
    assert epoch_of(resumed, 1) == second
    assert epoch_of(LengthBucketSampler(dataset, 4, shuffle=True, seed=6), 0) != first


def test_evaluation_order_is_sorted_and_fixed() -> None:
    dataset = SequenceDataset(made_up())
    sampler = LengthBucketSampler(dataset, 4, shuffle=False)
    batches = epoch_of(sampler, 0)
    lengths = [dataset.lengths[index] for batch in batches for index in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert epoch_of(sampler, 3) == batches


def test_batches_hold_similar_lengths() -> None:
    """Padding is far less than in batches of the same size drawn at random."""
    dataset = SequenceDataset(made_up(400))

    def padding(batches: list[list[int]]) -> int:
        lengths = [[dataset.lengths[index] for index in batch] for batch in batches]
        return sum(max(batch) * len(batch) - sum(batch) for batch in lengths)

    sampler = LengthBucketSampler(dataset, 8, shuffle=True, pool_batches=8)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0)).tolist()
    at_random = padding([order[start : start + 8] for start in range(0, 400, 8)])
    assert padding(epoch_of(sampler, 0)) < at_random / 4


def test_long_batches_come_at_any_time() -> None:
    dataset = SequenceDataset(made_up(400))
    sampler = LengthBucketSampler(dataset, 8, shuffle=True, pool_batches=50)  # one pool, sorted throughout
    longest = [max(dataset.lengths[index] for index in batch) for batch in epoch_of(sampler, 0)]
    falls = sum(before > after for before, after in pairwise(longest))
    assert 12 < falls < 37


def test_the_epoch_counts_when_the_first_batch_is_drawn() -> None:
    """A trainer may set the epoch after it has made the iterator."""
    sampler = LengthBucketSampler(SequenceDataset(made_up()), 4, shuffle=True)
    third = epoch_of(sampler, 3)
    sampler.set_epoch(0)
    batches = iter(sampler)
    sampler.set_epoch(3)
    assert list(batches) == third


def test_companions_change_between_epochs() -> None:
    sampler = LengthBucketSampler(SequenceDataset(made_up(400)), 8, shuffle=True)
    together = [{frozenset(batch) for batch in epoch_of(sampler, epoch)} for epoch in (0, 1)]
    assert len(together[0] & together[1]) < 3


# Loading


def contents(loader: torch.utils.data.DataLoader[SequenceBatch], epoch: int) -> list[SequenceBatch]:
    loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]  # as trainers do it
    return list(loader)


def assert_same(left: list[SequenceBatch], right: list[SequenceBatch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.x.equal(b.x)
        assert a.lengths.equal(b.lengths)


def keyboard(num_sequences: int = 21) -> list[Tensor]:
    sequences = []
    for index in range(num_sequences):
        roll = torch.zeros(index % 5 + 1, 88, dtype=torch.uint8)
        roll[:, 40 + index % 3] = 1
        sequences.append(roll)
    return sequences


def test_augmentation_follows_the_epoch_with_and_without_workers() -> None:
    """Workers that stay alive between epochs draw what the main process would draw."""

    def make(num_workers: int, epoch: int = 0) -> torch.utils.data.DataLoader[SequenceBatch]:
        dataset = SequenceDataset(keyboard(), transform=Transpose(6), seed=2)
        return sequence_loader(dataset, 4, shuffle=True, seed=2, epoch=epoch, num_workers=num_workers)

    alone, helped = make(0), make(2)
    first = contents(alone, 0)
    assert_same(contents(helped, 0), first)
    second = contents(alone, 1)
    assert_same(contents(helped, 1), second)
    assert_same(contents(make(0), 1), second)
    assert_same(list(make(0, epoch=1)), second)
    assert_same(list(make(2, epoch=1)), second)
    assert_same(contents(alone, 0), first)


def test_each_draw_has_its_own_shift() -> None:
    dataset = SequenceDataset([torch.eye(88, dtype=torch.uint8)[40:41]] * 30, transform=Transpose(6))
    notes = []
    sampler = LengthBucketSampler(dataset, 8, shuffle=True)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        notes.append([int(dataset[index][0].argmax()) for index in range(30)])
    assert len({tuple(row) for row in notes}) == 4
    assert all(len(set(row)) > 6 for row in notes)
    assert {note for row in notes for note in row} == set(range(34, 47))


def test_evaluation_loader_gives_every_sequence_back() -> None:
    sequences = made_up(11)
    batches = list(sequence_loader(SequenceDataset(sequences), 4))
    order = sorted(range(11), key=lambda index: len(sequences[index]), reverse=True)
    got = [batch.x[: batch.lengths[b], b] for batch in batches for b in range(len(batch.lengths))]
    assert all(x.equal(sequences[index].float()) for x, index in zip(got, order, strict=True))


def test_controls_travel_with_their_sequence() -> None:
    images, controls = torch.rand(9, 15, 6), torch.rand(9, 15, 1)
    batches = list(sequence_loader(SequenceDataset(images, controls), 4))
    assert [tuple(batch.x.shape) for batch in batches] == [(15, 4, 6), (15, 4, 6), (15, 1, 6)]
    assert torch.cat([batch.x for batch in batches], dim=1).equal(images.transpose(0, 1))
    assert torch.cat([batch.u for batch in batches if batch.u is not None], dim=1).equal(controls.transpose(0, 1))


def test_sampler_and_dataset_can_be_pickled() -> None:
    dataset = SequenceDataset(keyboard(), transform=Transpose(3), seed=1)
    sampler = LengthBucketSampler(dataset, 4, shuffle=True, seed=1)
    batches = epoch_of(sampler, 2)
    copy = pickle.loads(pickle.dumps(sampler))
    assert list(copy) == batches
    assert all(copy.dataset[index][0].equal(dataset[index][0]) for index in range(len(dataset)))
