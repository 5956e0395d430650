"""The torque-driven pendulum of Karl et al. (2016), simulated and drawn as small images.

    phi'' = -mu phi' + g sin phi + u,    m = l = 1, mu = 0.5, g = 9.81; phi = 0 is upright

The torque is held over each step of DT seconds; a step is integrated by SUBSTEPS steps of fourth-order
Runge-Kutta. Frames t = 1..T follow an unseen start (phi_0, phi'_0), and u_t acts from frame t-1 to frame t:

    (phi_{t-1}, phi'_{t-1}) --u_t--> (phi_t, phi'_t) -> image x_t

so u_t drives the transition INTO frame t, as the model's control "external" wants it (u_t enters d_t), and
u_1 drives the unseen start into the first frame.

phi_0 ~ uniform(-pi, pi), phi'_0 ~ uniform(-8, 8), u_t ~ uniform(-8, 8), DT = 0.1: over T = 15 frames the
variances of sin phi, cos phi, phi' are about 0.51, 0.46, 13.5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vssn.data.batching import SequenceDataset
from vssn.data.registry import register
from vssn.data.splits import Splits
from vssn.utils.checks import require_key, require_number, require_size
from vssn.utils.numbers import Count
from vssn.utils.values import UNIT

DAMPING = 0.5
GRAVITY = 9.81
DT = 0.1
SUBSTEPS = 4
MAX_VELOCITY = 8.0
MAX_TORQUE = 8.0
IMAGE_SIZE = 16
ARM = 0.36  # length of the arm on the image, in image widths
BLOB = 0.08  # standard deviation of the drawn tip, in image widths
DARK = 1e-6  # below this a pixel is 0

Array = NDArray[np.float64]


class PendulumSet(NamedTuple):
    """N sequences, float32."""

    images: Tensor  # [N, T, 256], in [0, 1]
    controls: Tensor  # [N, T, 1], the torque that leads into each frame
    states: Tensor  # [N, T, 3], sin phi, cos phi, phi'


class PendulumSplits(NamedTuple):
    train: PendulumSet
    valid: PendulumSet
    test: PendulumSet


def simulate_pendulum(
    angle: Array,
    velocity: Array,
    torque: Array,
    *,
    dt: float = DT,
    substeps: int = SUBSTEPS,
    damping: float = DAMPING,
    gravity: float = GRAVITY,
) -> tuple[Array, Array]:
    """Start angle [N], velocity [N] and torque [N, T] -> both [N, T], after every torque."""
    require_size("substeps", substeps, 1)
    h = dt / substeps
    state = np.stack([angle, velocity]).astype(np.float64)  # [2, N]
    out = np.empty((2, *torque.shape))

    def slope(state: Array, u: Array) -> Array:
        return np.stack([state[1], -damping * state[1] + gravity * np.sin(state[0]) + u])

    for t in range(torque.shape[1]):
        u = torque[:, t]
        for _ in range(substeps):
            k1 = slope(state, u)
            k2 = slope(state + h / 2 * k1, u)
            k3 = slope(state + h / 2 * k2, u)
            k4 = slope(state + h * k3, u)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        out[:, :, t] = state
    return out[0], out[1]


def render_pendulum(angle: Array, size: int = IMAGE_SIZE) -> Array:
    """Angles [...] -> images [..., size * size]: a Gaussian blob at the tip, up where the angle is 0."""
    pixels = (np.arange(size) + 0.5) / size  # centres, in image widths
    across = pixels - (0.5 + ARM * np.sin(angle))[..., None]  # [..., size]
    down = pixels - (0.5 - ARM * np.cos(angle))[..., None]
    profile_x, profile_y = (np.exp(-(offset**2) / (2 * BLOB**2)) for offset in (across, down))
    picture: Array = profile_y[..., :, None] * profile_x[..., None, :]
    picture[picture < DARK] = 0
    return picture.reshape(*np.shape(angle), size * size)


def make_pendulum(
    num_sequences: int,
    num_steps: int = 15,
    *,
    seed: int | tuple[int, ...] = 0,
    size: int = IMAGE_SIZE,
    max_velocity: float = MAX_VELOCITY,
    max_torque: float = MAX_TORQUE,
    dt: float = DT,
) -> PendulumSet:
    """Draw starts and torques from `seed`, simulate, and render."""
    for name, count in (("num_sequences", num_sequences), ("num_steps", num_steps), ("size", size)):
        require_size(name, count, 1)
    require_key("seed", seed)
    for name, number in (("max_velocity", max_velocity), ("max_torque", max_torque), ("dt", dt)):
        require_number(name, number, 0.0)
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-np.pi, np.pi, num_sequences)
    velocity = rng.uniform(-max_velocity, max_velocity, num_sequences)
    torque = rng.uniform(-max_torque, max_torque, (num_sequences, num_steps))
    angles, velocities = simulate_pendulum(angle, velocity, torque, dt=dt)
    states = np.stack([np.sin(angles), np.cos(angles), velocities], axis=-1)
    images, controls = render_pendulum(angles, size), torque[..., None]
    return PendulumSet(*(torch.from_numpy(part.astype(np.float32)) for part in (images, controls, states)))


def pendulum_splits(
    num_train: int = 500, num_valid: int = 500, num_test: int = 500, num_steps: int = 15, *, seed: int = 0
) -> PendulumSplits:
    """Each split has a stream of its own, so the size of one does not change another."""
    sizes = (num_train, num_valid, num_test)
    return PendulumSplits(*(make_pendulum(n, num_steps, seed=(seed, split)) for split, n in enumerate(sizes)))


def configured_splits(
    *,
    seed: int = 0,
    num_train: int | None = None,
    num_valid: int | None = None,
    num_test: int | None = None,
    num_frames: int | None = None,
) -> PendulumSplits:
    """By the keys of a configuration: None is what `pendulum_splits` takes by itself."""
    sizes = {"num_train": num_train, "num_valid": num_valid, "num_test": num_test, "num_steps": num_frames}
    return pendulum_splits(**{name: size for name, size in sizes.items() if size is not None}, seed=seed)


@register("pendulum", x_size=IMAGE_SIZE**2, control_size=1, values=UNIT)
def load_splits(
    *,
    seed: int,
    controls: bool,
    num_train: Count | None = None,
    num_valid: Count | None = None,
    num_test: Count | None = None,
    num_frames: Count | None = None,
) -> Splits:
    """The set as `fit` takes it; `controls` says whether the torque goes with it.

    Args:
        num_train, num_valid, num_test: films (None: 500).
        num_frames: of a film (None: 15).
    """
    films = configured_splits(
        seed=seed, num_train=num_train, num_valid=num_valid, num_test=num_test, num_frames=num_frames
    )
    return Splits(*(SequenceDataset(part.images, part.controls if controls else None, seed=seed) for part in films))
