"""The processes of one run: one on one device, whatever a cluster's variables say, unless `training.devices` or
`training.nodes` ask for more; torchrun, srun or `vssn fit` itself then starts them.

All draw the same batches, of `data.batch_size` sequences together, and the noise of all of them; process r of n takes
the sequences r, r + n, r + 2n, ... of each. Their gradients are summed, every frame of the batch with the same weight:
n processes compute, to rounding, what one does. The run's folder must be the same for all; the first process writes.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn

from vssn.data.batching import SequenceBatch
from vssn.errors import ConfigError
from vssn.training.sections import TrainingSection
from vssn.utils.command import TERMINATED, Terminated

GRACE = 10.0  # seconds for a process to end by itself


class World(NamedTuple):
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def writes(self) -> bool:
        return self.rank == 0


def started(training: TrainingSection) -> World | None:
    """This process among those that the run asks for; None where nobody has started them yet.

    Raises:
        ConfigError: others are started than it asks for.
    """
    wanted = training.devices * training.nodes
    if wanted == 1:
        return World()
    found = _of_torchrun() or _of_slurm()
    if found is not None and found.size != wanted:
        raise ConfigError(
            f"training.devices: expected as many processes as were started, {found.size}, got {training.devices} on "
            f"{training.nodes} nodes; change it or training.nodes"
        )
    return found


def require_started(training: TrainingSection) -> World:
    """`started`, or a ConfigError that says how."""
    world = started(training)
    if world is None:
        nodes = f"--nnodes {training.nodes} " if training.nodes > 1 else ""
        raise ConfigError(
            f"training.devices: expected {training.devices * training.nodes} processes, got one; start them with "
            f"torchrun {nodes}--nproc-per-node {training.devices}, or with srun"
        )
    return world


def _of_torchrun() -> World | None:
    """Of what sets RANK and WORLD_SIZE: torchrun, or `launch` below."""
    own = os.environ
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= own.keys():
        return None
    rank, size, local = (int(own[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return World(rank, size, local, int(own.get("GROUP_RANK", 0)), own["MASTER_ADDR"], int(own["MASTER_PORT"]))


def _of_slurm() -> World | None:
    """Of srun; in a batch script beside it there is no SLURM_STEP_NUM_TASKS, and one process."""
    own = os.environ
    if not {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"} <= own.keys():
        return None
    nodes = own.get("SLURM_STEP_NODELIST") or own.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    port = own.get("MASTER_PORT") or 15000 + int(own.get("SLURM_JOB_ID", 0)) % 10000
    return World(
        int(own["SLURM_PROCID"]),
        int(own["SLURM_STEP_NUM_TASKS"]),
        int(own["SLURM_LOCALID"]),
        int(own.get("SLURM_NODEID", 0)),
        own.get("MASTER_ADDR") or first_node(nodes),
        int(port),
    )


def first_node(nodes: str) -> str:
    """Of a list as SLURM writes it: "gpu[03-05,9],other" is gpu03 first."""
    return re.sub(r"^([^,\[]*)(?:\[([^-,\]]*)[^\]]*\]([^,]*))?.*$", r"\1\2\3", nodes)


def launch(count: int, arguments: Sequence[str]) -> int:
    """Runs `vssn` with the arguments in so many processes here; the exit code. The first one to fail ends all, and of
    several that fail alike one says why."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // count)
    shared = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
    shared |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "vssn", *arguments]
    running: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as files:
        errors = [None, *(files.enter_context(tempfile.TemporaryFile()) for _ in range(1, count))]
        try:
            for rank, error in enumerate(errors):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                running.append(subprocess.Popen(command, env=shared | own, stderr=error))
            while (failed := _first_to_fail(running)) is None and running[0].poll() is None:
                time.sleep(0.1)
            if failed is None:  # the first is done, and so are the others in a moment
                return max(_code(process) for process in running)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running[0].wait(5)
                return _code(running[0]) or _code(running[failed])
            error = errors[failed]
            if error is not None:
                error.seek(0)
                sys.stderr.write(error.read().decode(errors="replace"))
            return _code(running[failed])
        except KeyboardInterrupt:  # the terminal has sent it to all; `kill` has not
            _wait(running)
            _end(running)
            return max(_code(process) for process in running)
        except Terminated:  # the first process says so
            _end(running)
            return TERMINATED
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()  # it waits for one that is gone
                    process.wait()


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """As a scheduler does."""
    for process in running:
        process.terminate()
    _wait(running)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + GRACE
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))


def _first_to_fail(running: Sequence[subprocess.Popen[bytes]]) -> int | None:
    return next((rank for rank, process in enumerate(running) if process.poll()), None)


def _code(process: subprocess.Popen[bytes]) -> int:
    """As a shell gives it: 128 and the number of the signal that ended it."""
    code = process.wait()
    return code if code >= 0 else 128 - code


# ---- A batch and its gradients ------------------------------------------------------------------------


def share(batch: SequenceBatch, world: World) -> SequenceBatch:
    """The sequences of this process, as long as the longest of them; there may be none."""
    if world.size == 1:
        return batch
    columns, lengths = slice(world.rank, None, world.size), batch.lengths[world.rank :: world.size]
    steps = int(lengths.max()) if len(lengths) else 0
    u = None if batch.u is None else batch.u[:steps, columns]
    before = None if batch.before is None else share(batch.before, world)
    return SequenceBatch(batch.x[:steps, columns], lengths, u, before)


def share_of_noise(noise: tuple[Tensor, ...], own: SequenceBatch, world: World) -> tuple[Tensor, ...]:
    """Of the noise of all sequences, [T, B, ·] and [B, ·] of what is before the first frame, that of this process."""
    steps, rows = own.x.shape[0], slice(world.rank, None, world.size)
    return tuple(part[:steps, rows] if part.dim() == 3 else part[rows] for part in noise)


def sum_gradients(model: nn.Module, world: World) -> None:
    """Every parameter's gradient becomes the sum over all processes, None where no process has one."""
    if world.size == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for group in by_dtype.values():
        counts = group[0].new_tensor([parameter.grad is not None for parameter in group])
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        flat = torch.cat([counts, *(part.reshape(-1) for part in parts)])
        torch.distributed.all_reduce(flat)
        counts, *sums = flat.split([len(group), *(part.numel() for part in parts)])
        for parameter, count, total in zip(group, counts.tolist(), sums, strict=True):
            parameter.grad = total.view_as(parameter) if count else None


def sum_of_all(measured: Tensor, world: World) -> Tensor:
    """Of all processes."""
    if world.size > 1:
        measured = measured.clone()
        torch.distributed.all_reduce(measured)
    return measured


def gather_rows(rows: Tensor, loss: float, world: World) -> tuple[Tensor, float]:
    """The rows [N, ·] of all processes and the sum of their losses."""
    if world.size == 1:
        return rows, loss
    parts: list[tuple[Tensor, float]] = [(rows, loss)] * world.size
    torch.distributed.all_gather_object(parts, (rows, loss))
    return torch.cat([part for part, _ in parts]), sum(part for _, part in parts)


def wait_for_all(world: World) -> None:
    """What the first process wrote is there."""
    if world.size > 1:
        torch.distributed.barrier()
