"""python -m benchmarks.gpu_layouts: the recurrences alone in every layout on the GPU, which the plans choose among.

Each kernel is launched by itself, forward and backward, over T = 512 steps, without the products before and behind it:
microseconds a step, the median of three launches between events, appended to benchmarks/results/gpu/layouts.csv with
what the plan estimates. What csrc/cuda/*_plan.cu rest on is read from these rows.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

import vssn_kernels
from benchmarks import gpu_rows
from benchmarks.gpu_contest import seconds_on_gpu
from benchmarks.gpu_problems import COMPUTE, NOT_HERE, gru_tensors, interleaved_tensors, posterior_tensors, tf32
from benchmarks.gpu_rows import Writer
from benchmarks.gpu_small import changed

CSV = gpu_rows.CSV.with_name("layouts.csv")
STEPS, LAUNCHES = 512, 3
HIDDEN = (64, 128, 256, 512, 1024)
LATENT = ((64, 16), (128, 32), (256, 64), (512, 100), (1024, 256))  # (M, Z)
CHAINS = ((64, 64, 64, 16), (256, 256, 256, 64), (512, 512, 512, 100))  # (H, E, M, Z)
# What is measured, what matters most first: (compute type, B)
ROUNDS = (("bfloat16", 32), ("bfloat16", 128), ("bfloat16", 8), ("float32", 32), ("tf32", 32))


class Layout(NamedTuple):
    """One kernel in one layout."""

    op: str
    compute: str
    B: int
    sizes: str
    direction: str
    layout: str
    status: str
    us: float | None = None  # a step
    estimate: float | None = None  # of the plan, in cycles


def timed(launch: Callable[[], object]) -> float:
    """Microseconds a step."""
    seconds_on_gpu(launch, 1)
    return 1e6 / STEPS * statistics.median(seconds_on_gpu(launch, 1) for _ in range(LAUNCHES))


def tried(row: Layout, launch: Callable[[], object], estimate: Callable[[], float | None]) -> Iterator[Layout]:
    """The row with its time, or with what the kernel answers; none where the layout cannot be on this device."""
    try:
        yield row._replace(status="ok", us=timed(launch), estimate=estimate())
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        if not any(text in why for text in NOT_HERE):
            yield row._replace(status=f"failed: {why}")


def gru_layouts(compute: str, batch: int) -> Iterator[Layout]:
    """As planned, a block alone, clusters, and grids of one, two and four unit tiles a block."""
    from vssn_kernels.backend.cuda import gru

    dtype = COMPUTE[compute]
    for hidden in HIDDEN:
        gates_x, h0, weight, bias = (t.detach() for t in gru_tensors(STEPS, batch, hidden, dtype))
        output, _, gates = gru.gru_forward(gates_x, h0, weight, bias, None, False, True)
        grad = torch.randn_like(output)
        forward = functools.partial(gru.gru_forward, gates_x, h0, weight, bias, None, False, True)
        backward = functools.partial(
            gru.gru_backward, grad, None, output, gates, h0, weight, None, False, (True, False, False, False)
        )
        rows = (1,) if compute == "float32" else (1, 2)
        wishes = [gru.Wish(), *(gru.Wish(1, 1, r) for r in rows if hidden <= 128)]
        wishes += [gru.Wish(2, blocks, r) for blocks in (2, 4, 8, 16) for r in rows]
        teams = sorted({hidden // 16 // tiles for tiles in (1, 2, 4)} - {0, 1})
        wishes += [
            gru.Wish(3, blocks, r, turns)
            for blocks in teams
            for r in rows
            for turns in (1, 2, 4)
            if batch > 8 * r * (turns - 1)
        ]
        for wish in wishes:
            for direction, launch in (("forward", forward), ("backward", backward)):
                layout = " ".join(f"{name}={value}" for name, value in wish._asdict().items() if value) or "as planned"
                row = Layout("gru", compute, batch, f"H={hidden}", direction, layout, "")
                with changed(gru, "wish", wish):
                    estimate = functools.partial(
                        gru_estimate, dtype, batch, hidden, direction == "backward", compute == "tf32"
                    )
                    yield from tried(row, launch, estimate)


def gru_estimate(dtype: torch.dtype, batch: int, hidden: int, backward: bool, tf32: bool) -> float | None:
    """Cycles of a step, as the plan estimates them."""
    from vssn_kernels.backend.cuda import gru

    found = re.search(r"estimated (\d+) cycles", gru.describe_plan(dtype, batch, hidden, backward, tf32))
    return float(found[1]) if found else None


def posterior_estimate(
    dtype: torch.dtype, width: int, latent: int, backward: bool, tf32: bool, batch: int
) -> float | None:
    """The same; registers, which are taken wherever they hold the weights, have none."""
    from vssn_kernels.backend.cuda import posterior

    return posterior.plan(dtype, width, latent, False, backward, tf32, batch).step_cycles or None


def posterior_layouts(compute: str, batch: int) -> Iterator[Layout]:
    """Every variant."""
    from vssn_kernels.backend.cuda import posterior

    for width, latent in LATENT:
        tensors = posterior_tensors(STEPS, batch, width, latent, COMPUTE[compute])
        context, z0, eps, weight_z, weight_out, bias_out = (t.detach() for t in tensors)
        forward = functools.partial(
            posterior.posterior_forward, context, z0, eps, weight_z, weight_out, bias_out, None, None, None, None, None,
            "tanh", -10.0, True,
        )  # fmt: skip
        z, _, logvar, hidden, prior_hidden = forward()
        grad = torch.randn_like(z)
        backward = functools.partial(
            posterior.posterior_backward, grad, grad, grad, z, logvar, hidden, prior_hidden, z0, eps, weight_z,
            weight_out, None, None, None, "tanh", -10.0, (True, *(False,) * 9),
        )  # fmt: skip
        for variant in posterior.VARIANTS:
            for direction, launch in (("forward", forward), ("backward", backward)):
                row = Layout("posterior", compute, batch, f"M={width} Z={latent}", direction, variant, "")
                with changed(posterior, "variant", variant):
                    estimate = functools.partial(
                        posterior_estimate, COMPUTE[compute], width, latent, direction == "backward",
                        compute == "tf32", batch,
                    )  # fmt: skip
                    yield from tried(row, launch, estimate)


def chain_layouts(compute: str, batch: int) -> Iterator[Layout]:
    """Every variant; backward with the products behind it."""
    from vssn_kernels.backend.cuda import interleaved

    for sizes in CHAINS:
        tensors = interleaved_tensors(STEPS, batch, sizes, COMPUTE[compute])
        names = " ".join(f"{letter}={size}" for letter, size in zip("HEMZ", sizes, strict=True))

        def forward(tensors: tuple[torch.Tensor, ...] = tensors) -> object:
            with torch.no_grad():
                return vssn_kernels.interleaved_sequence(*tensors, backend="cuda")

        for variant in interleaved.VARIANTS:
            with changed(interleaved, "variant", variant):
                row = Layout("interleaved", compute, batch, names, "forward", variant, "")
                found = list(tried(row, forward, lambda: None))
                yield from found
                if not found or found[0].us is None:
                    continue
                outputs = vssn_kernels.interleaved_sequence(*tensors, backend="cuda")
                grads = [torch.randn_like(out) for out in outputs]
                backward = functools.partial(torch.autograd.grad, outputs, tensors, grads, retain_graph=True)
                yield from tried(row._replace(direction="backward"), backward, lambda: None)


def layouts() -> Iterator[Layout]:
    """All, round by round."""
    for compute, batch in ROUNDS:
        with tf32(compute == "tf32"):
            yield from gru_layouts(compute, batch)
            yield from posterior_layouts(compute, batch)
            if batch == ROUNDS[0][1]:
                yield from chain_layouts(compute, batch)


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes row by row, for at most about so many seconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_layouts", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", default=os.environ.get("OUT"), help="a folder for the rows, too (or: OUT)")
    given = parser.parse_args(arguments)
    status = vssn_kernels.backends()["cuda"]
    if status != "available":
        print(f"benchmarks.gpu_layouts: backend cuda: {status}", file=sys.stderr)
        return 2
    until = time.monotonic() + given.seconds
    writer = Writer.from_environment("cuda", Layout._fields, CSV, given.out)
    failed = False
    for row in layouts():
        writer.write(row)
        failed |= row.status.startswith("failed")
        if row.us is not None and row.layout in ("as planned", "choice"):
            print(f"{row.op} {row.compute} B={row.B} {row.sizes}, {row.direction}: {row.us:.3f} us a step", flush=True)
        if time.monotonic() > until:
            print("out of time: what follows is left out", flush=True)
            break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
