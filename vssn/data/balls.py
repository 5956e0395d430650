"""Bouncing balls, after the protocol of Sutskever and Hinton (2009): discs of equal mass in a square box.

Physics: a frame is SUBSTEPS straight moves of time 1 / SUBSTEPS; after each move a ball beyond a wall turns
back, and two overlapping balls that approach each other exchange their velocities along their centres' line:

    n = (p_i - p_j) / |p_i - p_j|,    a = (v_i - v_j) . n,    where |p_i - p_j| < 2 r and a < 0:
    v_i -= a n,    v_j += a n

Momentum and energy are kept at ball collisions, energy at walls. Velocities start normal, scaled so that all
balls of a video together have the norm SPEED (box units per frame); positions start uniform, without overlap.

Picture: a pixel at distance e from a centre gets exp(-(e / r)^8), summed over the balls and cut at 1.

A data set keeps positions and renders a video when it is taken: 4000 videos of 100 frames would be 1.4 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

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

NUM_BALLS = 3
RADIUS = 1.2
BOX_SIZE = 10.0
RESOLUTION = 30
SPEED = 0.5
SUBSTEPS = 2
DARK = 1e-6  # below this a pixel is 0: subnormal numbers show nothing and slow arithmetic down

Array = NDArray[np.float64]


class BallVideos(Sequence[Tensor]):
    """N videos; `videos[i]` renders one, float32 [T, resolution * resolution] in [0, 1]."""

    def __init__(
        self,
        positions: Array,
        *,
        radius: float = RADIUS,
        box_size: float = BOX_SIZE,
        resolution: int = RESOLUTION,
    ) -> None:
        self.positions = positions  # [N, T, balls, 2]
        self.radius = radius
        self.box_size = box_size
        self.resolution = resolution

    @property
    def lengths(self) -> list[int]:
        """Frames of each video, known without rendering."""
        return [self.positions.shape[1]] * len(self)

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> BallVideos: ...

    def __getitem__(self, index: int | slice) -> Tensor | BallVideos:
        if isinstance(index, slice):
            return BallVideos(
                self.positions[index], radius=self.radius, box_size=self.box_size, resolution=self.resolution
            )
        frames = render_balls(
            self.positions[index], radius=self.radius, box_size=self.box_size, resolution=self.resolution
        )
        return torch.from_numpy(frames)


class BallSplits(NamedTuple):
    train: BallVideos
    valid: BallVideos
    test: BallVideos


def simulate_balls(
    positions: Array,
    velocities: Array,
    num_frames: int,
    *,
    radius: float = RADIUS,
    box_size: float = BOX_SIZE,
    substeps: int = SUBSTEPS,
) -> tuple[Array, Array]:
    """Start positions and velocities [N, balls, 2] -> those of T frames, [N, T, balls, 2], the start included."""
    require_size("substeps", substeps, 1)
    p, v = positions.astype(np.float64), velocities.astype(np.float64)
    num_videos, num_balls, _ = p.shape
    out_p = np.empty((num_videos, num_frames, num_balls, 2))
    out_v = np.empty_like(out_p)
    for t in range(num_frames):
        out_p[:, t], out_v[:, t] = p, v
        for _ in range(substeps):
            p = p + v / substeps
            v = np.where(p < radius, np.abs(v), v)
            v = np.where(p > box_size - radius, -np.abs(v), v)
            for i in range(num_balls):
                for j in range(i):
                    _collide(p, v, i, j, 2 * radius)
    return out_p, out_v


def _collide(p: Array, v: Array, i: int, j: int, reach: float) -> None:
    """Bounce balls i and j off each other in all videos where they touch and approach; changes v."""
    apart = p[:, i] - p[:, j]  # [N, 2]
    distance = np.sqrt((apart**2).sum(axis=1, keepdims=True))
    normal = apart / np.maximum(distance, np.finfo(np.float64).tiny)
    approach = ((v[:, i] - v[:, j]) * normal).sum(axis=1, keepdims=True)
    push = np.where((distance < reach) & (approach < 0), approach, 0.0) * normal
    v[:, i] -= push
    v[:, j] += push


def render_balls(
    positions: Array, *, radius: float = RADIUS, box_size: float = BOX_SIZE, resolution: int = RESOLUTION
) -> NDArray[np.float32]:
    """Positions [..., balls, 2] -> pictures [..., resolution * resolution]; x runs along a row of pixels."""
    pixels = ((np.arange(resolution) + 0.5) * (box_size / resolution)).astype(np.float32)  # centres
    offsets = (pixels - positions.astype(np.float32)[..., None]) / np.float32(radius)  # [..., balls, 2, pixel]
    squares = offsets**2
    picture = np.zeros((*positions.shape[:-2], resolution, resolution), dtype=np.float32)
    for ball in range(positions.shape[-2]):
        e2 = squares[..., ball, 1, :, None] + squares[..., ball, 0, None, :]  # (e / r)^2
        picture += np.exp(-((e2 * e2) ** 2))
    np.minimum(picture, 1, out=picture)
    picture[picture < DARK] = 0
    return picture.reshape(*positions.shape[:-2], resolution * resolution)


def make_balls(
    num_videos: int,
    num_frames: int = 100,
    *,
    seed: int | tuple[int, ...] = 0,
    num_balls: int = NUM_BALLS,
    radius: float = RADIUS,
    box_size: float = BOX_SIZE,
    resolution: int = RESOLUTION,
    speed: float = SPEED,
    substeps: int = SUBSTEPS,
) -> BallVideos:
    """Draw starts from `seed` and simulate; the videos are rendered as they are taken."""
    counts = {"num_videos": num_videos, "num_frames": num_frames, "num_balls": num_balls}
    for name, count in (*counts.items(), ("resolution", resolution), ("substeps", substeps)):
        require_size(name, count, 1)
    require_key("seed", seed)
    for name, number in (("radius", radius), ("box_size", box_size), ("speed", speed)):
        require_number(name, number, 0.0)
    rng = np.random.default_rng(seed)
    velocities = rng.standard_normal((num_videos, num_balls, 2))
    velocities *= speed / np.sqrt((velocities**2).sum(axis=(1, 2), keepdims=True))
    positions = _draw_positions(rng, num_videos, num_balls, radius, box_size)
    frames, _ = simulate_balls(positions, velocities, num_frames, radius=radius, box_size=box_size, substeps=substeps)
    return BallVideos(frames, radius=radius, box_size=box_size, resolution=resolution)


def _draw_positions(
    rng: np.random.Generator,
    num_videos: int,
    num_balls: int,
    radius: float,
    box_size: float,
    max_draws: int = 10_000,
) -> Array:
    """Uniform positions inside the walls [N, balls, 2], drawn again where balls overlap."""
    positions = np.empty((num_videos, num_balls, 2))
    open_videos = np.arange(num_videos)
    for _ in range(max_draws):
        draw = rng.uniform(radius, box_size - radius, (len(open_videos), num_balls, 2))
        apart = ((draw[:, :, None] - draw[:, None]) ** 2).sum(axis=-1)  # [N, balls, balls]
        apart[:, range(num_balls), range(num_balls)] = np.inf
        free = (apart >= (2 * radius) ** 2).all(axis=(1, 2))
        positions[open_videos[free]] = draw[free]
        open_videos = open_videos[~free]
        if len(open_videos) == 0:
            return positions
    raise ValueError(
        f"{num_balls} balls of radius {radius} do not fit into a box of {box_size}: use fewer, smaller balls"
    )


def balls_splits(
    num_train: int = 4000, num_valid: int = 200, num_test: int = 200, num_frames: int = 100, *, seed: int = 0
) -> BallSplits:
    """Each split has a stream of its own, so the size of one does not change another."""
    sizes = (num_train, num_valid, num_test)
    return BallSplits(*(make_balls(n, num_frames, seed=(seed, split)) for split, n in enumerate(sizes)))


@register("balls", x_size=RESOLUTION**2, values=UNIT)
def load_splits(
    *,
    seed: int,
    num_train: Count | None = None,
    num_valid: Count | None = None,
    num_test: Count | None = None,
    num_frames: Count | None = None,
) -> Splits:
    """The set as `fit` takes it; sizes that are None are those of `balls_splits`.

    Args:
        num_train, num_valid, num_test: films (None: 4000); films (None: 200); films (None: 200).
        num_frames: of a film (None: 100).
    """
    sizes = {"num_train": num_train, "num_valid": num_valid, "num_test": num_test, "num_frames": num_frames}
    videos = balls_splits(**{name: size for name, size in sizes.items() if size is not None}, seed=seed)
    return Splits(*(SequenceDataset(part, lengths=part.lengths, seed=seed) for part in videos))
