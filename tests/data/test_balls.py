"""Bouncing balls: what collisions keep, what the pictures show, and the two published naive errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vssn.data.balls import RADIUS, balls_splits, make_balls, render_balls, simulate_balls
from vssn.data.batching import SequenceDataset, sequence_loader
from vssn.experiments.baselines import copy_last_frame_error, mean_frame_error


def energy(velocities: np.ndarray) -> np.ndarray:
    return (velocities**2).sum(axis=(-2, -1))


def crowd(num_videos: int = 30, num_balls: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Balls on a wide grid that all head for its middle, each a little off."""
    rng = np.random.default_rng(0)
    grid = np.array([[x, y] for x in (-4.0, 0.0, 4.0) for y in (-3.0, 3.0)])[:num_balls]
    positions = 50 + grid + rng.uniform(-0.5, 0.5, (num_videos, num_balls, 2))
    return positions, -0.1 * grid + rng.uniform(-0.1, 0.1, (num_videos, num_balls, 2))


def test_ball_collisions_keep_momentum_and_energy() -> None:
    positions, velocities = crowd()
    _, v = simulate_balls(positions, velocities, 40, box_size=100.0)
    np.testing.assert_allclose(v.sum(axis=2), np.broadcast_to(velocities.sum(axis=1)[:, None], (30, 40, 2)), atol=1e-12)
    np.testing.assert_allclose(energy(v), np.broadcast_to(energy(velocities)[:, None], (30, 40)), rtol=1e-12)
    changed = (np.abs(v[:, -1] - velocities) > 1e-6).any(axis=2)
    assert changed.mean() > 0.5, "hardly any ball met another"


def test_head_on_balls_exchange_velocities() -> None:
    positions = np.array([[[20.0, 50.0], [30.0, 50.0]]])
    velocities = np.array([[[1.0, 0.0], [-0.5, 0.0]]])
    _, v = simulate_balls(positions, velocities, 20, box_size=100.0)
    np.testing.assert_allclose(v[0, -1], [[-0.5, 0.0], [1.0, 0.0]], atol=1e-12)


def test_a_glancing_hit_changes_the_line_of_centres_only() -> None:
    """Centres on a line of 45 degrees: the velocity across it stays with each ball."""
    apart = 2.3 / np.sqrt(2)
    positions = np.array([[[50.0, 50.0], [50.0 + apart, 50.0 + apart]]])
    velocities = np.array([[[0.2, 0.0], [0.0, 0.0]]])
    _, v = simulate_balls(positions, velocities, 2, box_size=100.0, substeps=1000)
    along, across = np.array([1.0, 1.0]) / np.sqrt(2), np.array([1.0, -1.0]) / np.sqrt(2)
    np.testing.assert_allclose(v[0, -1] @ across, velocities[0] @ across, atol=1e-2)
    np.testing.assert_allclose(v[0, -1] @ along, (velocities[0] @ along)[::-1], atol=1e-2)


def test_overlapping_balls_that_part_are_left_alone() -> None:
    positions = np.array([[[50.0, 50.0], [52.0, 50.0]]])
    velocities = np.array([[[-0.1, 0.0], [0.1, 0.0]]])
    _, v = simulate_balls(positions, velocities, 5, box_size=100.0)
    np.testing.assert_array_equal(v[0], np.broadcast_to(velocities[0], (5, 2, 2)))


def test_walls_keep_energy_and_the_ball_inside() -> None:
    rng = np.random.default_rng(1)
    positions, velocities = rng.uniform(1.2, 8.8, (50, 1, 2)), rng.uniform(-0.5, 0.5, (50, 1, 2))
    p, v = simulate_balls(positions, velocities, 200)
    np.testing.assert_allclose(np.abs(v), np.broadcast_to(np.abs(velocities)[:, None], v.shape), rtol=1e-12)
    assert (np.diff(np.sign(v), axis=1) != 0).any(axis=(1, 2, 3)).mean() > 0.9, "hardly any ball met a wall"
    deepest = 0.25  # one move of half a frame at the highest speed
    assert p.min() >= RADIUS - deepest
    assert p.max() <= 10 - RADIUS + deepest


def test_straight_flight() -> None:
    p, _ = simulate_balls(np.array([[[3.0, 5.0]]]), np.array([[[0.3, -0.1]]]), 8)
    expected = np.array([3.0, 5.0]) + np.arange(8)[:, None] * np.array([0.3, -0.1])
    np.testing.assert_allclose(p[0, :, 0], expected, atol=1e-12)


def test_made_videos_keep_the_protocol() -> None:
    videos = make_balls(200, 100, seed=3)
    p = videos.positions
    assert p.shape == (200, 100, 3, 2)
    start = p[:, 0]
    assert start.min() >= RADIUS
    assert start.max() <= 10 - RADIUS
    gaps = np.sqrt(((p[:, :, [0, 0, 1]] - p[:, :, [1, 2, 2]]) ** 2).sum(-1))
    assert gaps[:, 0].min() >= 2 * RADIUS
    assert gaps.min() > 2 * RADIUS - 0.4, "balls pass through each other"
    steps = np.sqrt(((p[:, 1] - p[:, 0]) ** 2).sum(axis=(1, 2)))
    assert np.median(steps) == pytest.approx(0.5)


def test_picture_of_one_ball() -> None:
    """1 in the middle, exp(-1) at the radius, 0 far off; x runs along a row."""
    picture = render_balls(np.array([[2.5, 7.5]]), radius=2.0, box_size=10.0, resolution=100).reshape(100, 100)
    assert picture[75, 25] == pytest.approx(1.0)
    assert picture[75, 44] == pytest.approx(np.exp(-((1.95**2 + 0.05**2) ** 4) / 2**8), rel=1e-4)
    assert picture[25, 75] == 0
    assert picture.dtype == np.float32


def test_touching_balls_are_cut_at_one() -> None:
    picture = render_balls(np.array([[5.0, 5.0], [5.2, 5.0]]))
    assert picture.max() == 1


def test_published_naive_errors_and_grey_share() -> None:
    splits = balls_splits(num_train=200, num_valid=2, num_test=200)
    assert copy_last_frame_error(splits.test) == pytest.approx(11.8, abs=0.3)
    assert mean_frame_error(splits.train, splits.test) == pytest.approx(75, abs=1)
    videos = torch.stack(list(splits.test))
    assert videos.shape == (200, 100, 900)
    assert videos.min() == 0
    assert videos.max() <= 1
    assert ((videos > 0.05) & (videos < 0.95)).float().mean() == pytest.approx(0.11, abs=0.005)


def test_naive_errors_by_hand() -> None:
    video = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    assert copy_last_frame_error([video]) == pytest.approx((1 + 4) / 2)
    assert mean_frame_error([torch.tensor([[1.0, 0.0], [1.0, 2.0]])], [video]) == pytest.approx((1 + 1) / 2)


def test_seed_decides_and_sizes_do_not() -> None:
    splits, again, other = (balls_splits(n, 3, 2, 10, seed=s) for n, s in ((5, 0), (9, 0), (5, 1)))
    assert (splits.valid.positions == again.valid.positions).all()
    assert splits.test[1].equal(again.test[1])
    assert (splits.train.positions != other.train.positions).any()
    train, valid, test = balls_splits(3, 3, 3, 10)
    assert (train.positions != valid.positions).any()
    assert (valid.positions != test.positions).any()


def test_videos_are_a_sequence_for_the_loader() -> None:
    videos = make_balls(5, 11, seed=1)
    assert len(videos[1:4]) == 3
    assert videos[1:4][0].equal(videos[1])
    batches = list(sequence_loader(SequenceDataset(videos, lengths=videos.lengths), 2))
    assert [tuple(batch.x.shape) for batch in batches] == [(11, 2, 900), (11, 2, 900), (11, 1, 900)]
    assert batches[2].x[:, 0].equal(videos[4])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_videos must be an int of at least 1, got 0"):
        make_balls(0)
    with pytest.raises(ValueError, match="substeps must be an int of at least 1, got 0"):
        make_balls(1, substeps=0)
    with pytest.raises(ValueError, match=r"40 balls of radius .* do not fit"):
        make_balls(1, num_balls=40)
