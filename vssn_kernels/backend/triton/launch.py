"""Devices, and how kernels are launched on them.

A recurrence is one launch where its kernel is resident or alone (configurations.py), and where several programs share
a batch tile and the device has cooperative launches: then as many batch tiles go into one launch as the device runs at
once. Without cooperative launches (Triton before 3.3, devices other than CUDA's and AMD's, the interpreter) shared
programs wait for each other at the end of a launch: one for each step of the GRU, two for each of the posterior,
four for each of the interleaved chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vssn_kernels.backend.common import allows_tf32
from vssn_kernels.backend.triton.configurations import Tiles


class Device(NamedTuple):
    """What the choice of a kernel asks of a device."""

    processors: int  # multiprocessors or compute units
    shared_memory: int  # bytes that one program can have
    cooperative: bool  # launches programs that may wait for each other
    tf32: bool  # has matrix cores that take tf32
    float32: bool  # has matrix cores that take float32
    interpreter: bool = False


FUSED = {"enable_fp_fusion": True}  # multiply-adds; Triton's default depends on its version
# Large tiles: what it interprets costs by the operation, not by the element.
INTERPRETER = Device(processors=8, shared_memory=232448, cooperative=False, tf32=False, float32=True, interpreter=True)


@cache
def _gpu(index: int, kind: str) -> Device:
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    processors, shared_memory = properties["multiprocessor_count"], properties["max_shared_mem"]
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    cooperative = kind == "cuda" and version >= (3, 3) and bool(properties.get("cooperativeLaunch", True))
    if kind == "cuda" and torch.version.hip:
        chip = torch.cuda.get_device_properties(index).gcnArchName
        return Device(processors, shared_memory, cooperative, chip.startswith("gfx942"), chip.startswith("gfx9"))
    return Device(processors, shared_memory, cooperative, tf32=kind == "cuda", float32=False)


def device_of(tensor: Tensor) -> Device:
    """The device of a tensor; its GPU must be the current one."""
    return INTERPRETER if tensor.device.type == "cpu" else _gpu(tensor.device.index, tensor.device.type)


def shared_memory(tensor: Tensor) -> int:
    """Bytes that one program can have there."""
    return device_of(tensor).shared_memory


def on(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device and its current stream: inside the block the tensor's."""
    return (
        nullcontext() if tensor.device.type == "cpu" else torch.get_device_module(tensor.device).device(tensor.device)
    )


def _precision(tensor: Tensor) -> str:
    """Of products: PyTorch's setting for float32, where the device has tf32."""
    if tensor.dtype != torch.float32 or not device_of(tensor).tf32:
        return "ieee"
    return "tf32" if allows_tf32() else "ieee"


def on_matrix_cores(tensor: Tensor) -> bool:
    """Whether products run there: float32 in full precision does on few devices."""
    return tensor.dtype != torch.float32 or _precision(tensor) == "tf32" or device_of(tensor).float32


def emulated(tensor: Tensor) -> bool:
    """Whether the interpreter has to be helped with bfloat16 (cell.narrow)."""
    return tensor.dtype == torch.bfloat16 and device_of(tensor).interpreter


def products(tensor: Tensor) -> dict[str, Any]:
    """What a kernel is told of its products."""
    return {"PRECISION": _precision(tensor), "EMULATED": emulated(tensor)}


def options(tiles: Tiles) -> dict[str, int]:
    """How a kernel is compiled."""
    return {"num_warps": tiles.warps, "num_stages": tiles.stages, **FUSED}


def strided(tensor: Tensor | None, dims: int) -> tuple[Any, ...]:
    """A tensor and its strides, as a kernel takes them."""
    return (None, *(0,) * dims) if tensor is None else (tensor, *tensor.stride())


def launch_tiled(
    kernel: Any, arguments: Sequence[Any], constants: dict[str, Any], tiles: Tiles, steps: int, like: Tensor,
    width: int, phases: int,
) -> None:  # fmt: skip
    """Launches a tiled kernel over `phases` phases; `like` [B, ·] gives batch and device, `width` the widest loop."""
    batch, device = like.shape[0], device_of(like)
    groups = triton.cdiv(batch, tiles.rows)
    counters = torch.zeros(groups, dtype=torch.int32, device=like.device)

    def launch(first: int, count: int, slices: int, begin: int, end: int, sync: str) -> None:
        more = {"launch_cooperative_grid": True} if sync == "grid" else {}
        kernel[(count * slices,)](
            *arguments, counters, steps, batch, first, slices, begin, end, SYNC=sync, **constants, **options(tiles),
            **more,
        )  # fmt: skip

    slices = min(triton.cdiv(width, tiles.units), device.processors)
    if tiles.form == "alone" or slices == 1:
        launch(0, groups, 1, 0, phases, "block")
    elif device.cooperative:
        at_once = device.processors // slices
        for first in range(0, groups, at_once):
            launch(first, min(at_once, groups - first), slices, 0, phases, "grid")
    else:
        for phase in range(phases):
            launch(0, groups, slices, phase, phase + 1, "launch")


def new_like(like: Tensor, *shape: int) -> Tensor:
    """Unwritten memory of that dtype and device."""
    return torch.empty(shape, dtype=like.dtype, device=like.device)
