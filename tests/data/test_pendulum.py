"""The pendulum: its integrator, the meaning of a control's index, its pictures, and its data's variances."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from vssn.data.pendulum import GRAVITY, make_pendulum, pendulum_splits, render_pendulum, simulate_pendulum


def starts(num: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(-np.pi, np.pi, num), rng.uniform(-8, 8, num)


def test_energy_is_kept_without_friction_and_torque() -> None:
    angle, velocity = starts()
    still = np.zeros((40, 60))
    for substeps, tolerance in ((4, 2e-3), (64, 1e-7)):
        angles, velocities = simulate_pendulum(angle, velocity, still, damping=0.0, substeps=substeps)
        energy = velocities**2 / 2 + GRAVITY * np.cos(angles)
        before = velocity**2 / 2 + GRAVITY * np.cos(angle)
        np.testing.assert_allclose(energy, np.broadcast_to(before[:, None], energy.shape), rtol=0, atol=tolerance)


def test_friction_takes_energy() -> None:
    angle, velocity = starts()
    angles, velocities = simulate_pendulum(angle, velocity, np.zeros((40, 60)))
    energy = velocities**2 / 2 + GRAVITY * np.cos(angles)
    assert (np.diff(energy, axis=1) < 1e-4).all()


def test_fourth_order_convergence() -> None:
    """Half the step, a sixteenth of the error."""
    angle, velocity = starts()
    torque = np.random.default_rng(1).uniform(-8, 8, (40, 10))

    def end(substeps: int) -> np.ndarray:
        return np.stack([part[:, -1] for part in simulate_pendulum(angle, velocity, torque, substeps=substeps)])

    exact = end(256)
    errors = [np.abs(end(substeps) - exact).mean() for substeps in (4, 8, 16)]
    for coarse, fine in pairwise(errors):
        assert 13 < coarse / fine < 20


def test_closed_form_without_gravity() -> None:
    """phi'' = -mu phi' + u: the velocity falls exponentially to u / mu."""
    velocity, torque, damping, dt = np.array([2.0, -1.0]), np.array([0.7, -3.0]), 0.5, 0.1
    times = dt * np.arange(1, 8)
    _, got = simulate_pendulum(np.zeros(2), velocity, np.tile(torque[:, None], 7), gravity=0.0, damping=damping, dt=dt)
    decay = np.exp(-damping * times)
    expected = velocity[:, None] * decay + (torque / damping)[:, None] * (1 - decay)
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_upright_is_an_unstable_rest_and_hanging_a_stable_one() -> None:
    angles, _ = simulate_pendulum(np.array([0.0, 1e-3, np.pi + 1e-3]), np.zeros(3), np.zeros((3, 20)))
    assert angles[0, -1] == 0
    assert angles[1, -1] > 0.1
    assert np.abs(angles[2] - np.pi).max() < 1.1e-3


def test_a_control_acts_on_the_step_into_its_frame() -> None:
    """A change of u_t changes frame t and those after it, and no frame before it."""
    angle, velocity = starts(5)
    torque = np.zeros((5, 9))
    base = simulate_pendulum(angle, velocity, torque)
    for t in (0, 4, 8):
        pushed = torque.copy()
        pushed[:, t] = 3.0
        for before, after in zip(base, simulate_pendulum(angle, velocity, pushed), strict=True):
            np.testing.assert_array_equal(before[:, :t], after[:, :t])
            assert (before[:, t:] != after[:, t:]).all()
        np.testing.assert_array_less(base[1][:, t], simulate_pendulum(angle, velocity, pushed)[1][:, t])


def test_stored_controls_lead_from_one_stored_state_to_the_next() -> None:
    data = make_pendulum(30, 12, seed=4)
    sine, cosine, velocity = data.states.double().numpy().transpose(2, 0, 1)
    angle = np.arctan2(sine, cosine)
    for t in range(1, 12):
        torque = data.controls[:, t].double().numpy()
        angles, velocities = simulate_pendulum(angle[:, t - 1], velocity[:, t - 1], torque)
        np.testing.assert_allclose(np.sin(angles[:, 0]), sine[:, t], atol=1e-5)
        np.testing.assert_allclose(np.cos(angles[:, 0]), cosine[:, t], atol=1e-5)
        np.testing.assert_allclose(velocities[:, 0], velocity[:, t], atol=1e-5)


def test_pictures_show_the_tip() -> None:
    pictures = render_pendulum(np.array([0.0, np.pi / 2, np.pi, -np.pi / 2])).reshape(4, 16, 16)
    rows = (pictures.sum(axis=2) * np.arange(16)).sum(axis=1) / pictures.sum(axis=(1, 2))
    columns = (pictures.sum(axis=1) * np.arange(16)).sum(axis=1) / pictures.sum(axis=(1, 2))
    arm = 0.36 * 16
    np.testing.assert_allclose(rows, [7.5 - arm, 7.5, 7.5 + arm, 7.5], atol=0.15)
    np.testing.assert_allclose(columns, [7.5, 7.5 + arm, 7.5, 7.5 - arm], atol=0.15)


def test_pictures_move_with_a_small_turn() -> None:
    """Anti-aliased: a turn of a hundredth of a pixel already shows, everywhere on the circle."""
    angles = np.linspace(-np.pi, np.pi, 50)
    moved = render_pendulum(angles + 0.01 / (0.36 * 16))
    assert (np.abs(moved - render_pendulum(angles)).max(axis=1) > 1e-3).all()


def test_splits_have_the_published_variances() -> None:
    for part in pendulum_splits():
        assert part.images.shape == (500, 15, 256)
        assert part.controls.shape == (500, 15, 1)
        assert part.states.shape == (500, 15, 3)
        assert all(tensor.dtype == torch.float32 for tensor in part)
        assert part.images.min() >= 0
        assert 0.9 < part.images.max() <= 1
        variances = part.states.flatten(0, 1).var(dim=0).tolist()
        for name, got, published in zip(("sin", "cos", "velocity"), variances, (0.52, 0.47, 13.6), strict=True):
            assert got == pytest.approx(published, rel=0.1), name


def test_seed_decides_and_sizes_do_not() -> None:
    splits, again, other = pendulum_splits(8, 6, 4), pendulum_splits(3, 6, 4), pendulum_splits(8, 6, 4, seed=1)
    assert splits.valid.images.equal(again.valid.images)
    assert splits.test.controls.equal(again.test.controls)
    assert not splits.train.images.equal(other.train.images)
    train, valid, test = pendulum_splits(4, 4, 4)
    assert not train.controls.equal(valid.controls)
    assert not valid.controls.equal(test.controls)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_sequences must be an int of at least 1, got 0"):
        make_pendulum(0)
    with pytest.raises(ValueError, match="substeps must be an int of at least 1, got 0"):
        simulate_pendulum(np.zeros(1), np.zeros(1), np.zeros((1, 1)), substeps=0)
