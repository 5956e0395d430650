"""python -m benchmarks.cuda_table [architecture]: the tables of vssn_kernels/README.md, as Markdown.

How each op is laid out on an H100, from the plans that its launchers make, and the registers of each kernel.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from benchmarks import markdown
from benchmarks.cuda_on_host import installed
from benchmarks.cuda_resources import SOURCES, kernels

HIDDEN = (64, 256, 512, 1024)
POSTERIOR = ((64, 16), (256, 64), (512, 100), (1024, 256))  # (M, Z)
INTERLEAVED = ((64, 64, 64, 16), (256, 256, 256, 64), (512, 512, 512, 100))  # (H, E, M, Z)
BATCH = 32
GRU = (*((hidden, BATCH) for hidden in HIDDEN), (1024, 128))  # (H, B): in the last batch tiles take turns
H100 = (90, 132, 227 * 1024, 16)
# By size: its GPCs of 16 or 18 multiprocessors leave gaps. Reported, not asked: there is no such device here.
CLUSTERS_AT_ONCE = {8: 15, 16: 7}
COMPUTE = (("float32", torch.float32, False), ("tf32", torch.float32, True), ("bfloat16", torch.bfloat16, False))


def as_text(plan: NamedTuple) -> str:
    return ", ".join(f"{field} {value}" for field, value in plan._asdict().items())


def plans() -> str:
    """Variants, places of the weights, shared memory and blocks, for both directions."""
    with installed() as module:
        module.set_device_limits(*H100)
        for size, count in CLUSTERS_AT_ONCE.items():
            module.set_clusters_at_once(size, count)
        from vssn_kernels.backend.cuda import gru, interleaved, posterior

        lines: list[tuple[object, ...]] = []
        for hidden, batch in GRU:
            for name, dtype, tf32 in COMPUTE:
                for backward in (False, True):
                    plan = gru.describe_plan(dtype, batch, hidden, backward, tf32)
                    lines.append((f"gru B={batch} H={hidden}", name, "backward" if backward else "forward", plan))
        for width, latent in POSTERIOR:
            for name, dtype, tf32 in COMPUTE:
                for backward in (False, True):
                    text = as_text(posterior.plan(dtype, width, latent, False, backward, tf32, BATCH))
                    lines.append((f"posterior M={width} Z={latent}", name, "backward" if backward else "forward", text))
        for sizes in INTERLEAVED:
            for name, dtype, tf32 in COMPUTE:
                for backward in (False, True):
                    text = as_text(interleaved.plan(dtype, interleaved.Sizes(*sizes), backward, tf32, BATCH))
                    what = "interleaved H={} E={} M={} Z={}".format(*sizes)
                    lines.append((what, name, "backward" if backward else "forward", text))
    return markdown.table(
        ("op", "compute", "pass", f"layout on an H100 (posterior and interleaved: B={BATCH})"), lines, numbers=False
    )


def largest_hidden() -> str:
    """The largest H that both directions' plans hold."""
    with installed() as module:
        module.set_device_limits(*H100)
        from vssn_kernels.backend.cuda import gru

        def fits(dtype: torch.dtype, tf32: bool, hidden: int) -> bool:
            try:
                return all(gru.describe_plan(dtype, BATCH, hidden, backward, tf32) for backward in (False, True))
            except RuntimeError:
                return False

        lines: list[tuple[object, ...]] = []
        for name, dtype, tf32 in COMPUTE:
            below, above = 16, 32768
            while above - below > 1:
                middle = (below + above) // 2
                below, above = (middle, above) if fits(dtype, tf32, middle) else (below, middle)
            lines.append((name, below))
    return markdown.table(("compute", "largest H on an H100"), lines)


def registers(architecture: str) -> str:
    """Of every kernel."""
    lines = [
        (f"`{kernel.name}`", kernel.registers, kernel.spilled, kernel.tensor_core)
        for source in SOURCES
        for kernel in sorted(kernels(source, architecture))
    ]
    return markdown.table((f"kernel, {architecture}", "registers", "spilled bytes", "tensor-core instructions"), lines)


if __name__ == "__main__":
    print(plans())
    print()
    print(largest_hidden())
    print()
    print(registers(sys.argv[1] if len(sys.argv) > 1 else "sm_90a"))
