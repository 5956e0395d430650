"""The tile sizes of the kernels: a small table by sizes, dtype and the device's shared memory; never by T or B.

Every row is compiled ahead of time by `benchmarks/triton_resources.py`, which prints registers and spills.
"""

from __future__ import annotations

from typing import NamedTuple

LEAST = 16  # columns, and depth, of a product: the least that every Triton takes for every dtype (3.6 for float32 too)
ROWS = 16  # sequences a program takes: the least that a tensor core's product takes


class Tiles(NamedTuple):
    """How one recurrence is cut: the form, its tile sizes, and how it is compiled."""

    form: str  # "resident"; "alone": tiled, one program a batch tile; "shared": tiled, several programs a batch tile
    rows: int
    units: int  # of a tile over H, E or M; resident: all of them
    latents: int  # of a tile over Z (posterior, interleaved); resident: all of them
    depth: int  # of one part of a product (tiled)
    warps: int
    stages: int


def tile(size: int) -> int:
    """The least power of 2 that holds `size` and that a product takes."""
    return max(LEAST, 1 << (size - 1).bit_length())


def gru_tiles(hidden: int, item_size: int, matrix_cores: bool, shared_memory: int) -> Tiles:
    """For H, the weights' bytes an element, whether products run on matrix cores, and a program's shared memory."""
    units = tile(hidden)
    weights = 3 * units * units * item_size
    form = "alone" if hidden <= 128 else "shared"
    if not matrix_cores:
        if units <= 64:
            return Tiles("resident", ROWS, units, 0, 0, 4 if units <= 32 else 8, 1)
        return Tiles(form, ROWS, 32, 0, LEAST, 4, 1)
    if units <= 128 and weights + 32768 <= shared_memory:
        return Tiles("resident", ROWS, units, 0, 0, 4 if units * item_size <= 128 else 8, 1)
    return Tiles(form, ROWS, 32, 0, 128 // item_size, 4, 3 if item_size == 2 else 2)


def posterior_tiles(
    width: int, latent: int, prior: bool, item_size: int, matrix_cores: bool, shared_memory: int
) -> Tiles:
    """For M, Z and whether there is a prior's mean; the rest as gru_tiles."""
    units, latents = tile(width), tile(latent)
    weights = (5 if prior else 3) * units * latents * item_size
    form = "alone" if width <= 256 else "shared"
    if not matrix_cores:
        if units * latents <= 64 * 16:
            return Tiles("resident", ROWS, units, latents, 0, 4, 1)
        return Tiles(form, ROWS, 32, 32, LEAST, 4, 1)
    if units <= 256 and latents <= 64 and weights + 32768 <= shared_memory:
        return Tiles("resident", ROWS, units, latents, 0, 4 if units <= 64 else 8, 1)
    return Tiles(form, ROWS, 64, 32, 128 // item_size, 8, 2)


def interleaved_tiles(
    size: int, embed: int, width: int, latent: int, item_size: int, matrix_cores: bool, shared_memory: int
) -> Tiles:
    """For H, E, M and Z; the rest as gru_tiles. Resident: E and M have tiles of their own, `tile(E)` and `tile(M)`;
    tiled: they are cut as H is."""
    units, embeds, hiddens, latents = (tile(number) for number in (size, embed, width, latent))
    widest = max(units, embeds, hiddens)
    form = "alone" if widest <= 128 else "shared"
    if not matrix_cores:
        if widest <= 32 and latents == 16:
            return Tiles("resident", ROWS, units, latents, 0, 8, 1)
        return Tiles(form, ROWS, 32, 32, LEAST, 8, 1)
    latents = max(32, latents)  # where one product gives 16 x 16, Triton lets every warp compute all of every product
    weights = (3 * units * (embeds + units) + embeds * latents + (units + 2 * latents) * hiddens) * item_size
    if widest <= 128 and latents <= 64 and weights + 32768 <= shared_memory:
        return Tiles("resident", ROWS, units, latents, 0, 8, 1)
    return Tiles(form, ROWS, 32, 32, 128 // item_size, 8, 3 if item_size == 2 else 2)


def gaussian_tiles(latent: int) -> tuple[int, int]:
    """(rows, columns) of a program: 2048 elements, or one row."""
    columns = min(1024, max(1, 1 << (latent - 1).bit_length()))
    return max(1, 2048 // columns), columns
