"""python -m benchmarks.gpu_small cuda|triton: every kernel and form once, forward and backward, at small sizes.

Each is named before it runs and waited for behind it, so that the last line names the one that hangs or breaks the
context. Under compute-sanitizer this is what is examined. Exit status 0 only if all of them ran.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vssn_kernels
from benchmarks.gpu_problems import COMPUTE, NOT_HERE, gru_tensors, interleaved_tensors, posterior_tensors, tf32

STEPS, BATCH, WIDE_BATCH = 3, 3, 19
LENGTHS = (3, 0, 2)
# gru_sequence: (form, what csrc/cuda/gru_plan.cu is asked for, H): odd sizes, a unit tile of 16 for each block or more;
# the kernels in which tiles take turns are for pairs, and on tensor cores for H > 128.
GRU_FORMS: tuple[tuple[str, dict[str, int], int], ...] = (
    ("as planned", {}, 33),
    ("block", {"exchange": 1}, 33),
    ("cluster of 2", {"exchange": 2, "blocks": 2}, 41),
    ("cluster of 4", {"exchange": 2, "blocks": 4}, 57),
    ("cluster of 8", {"exchange": 2, "blocks": 8}, 121),
    ("cluster of 16", {"exchange": 2, "blocks": 16}, 249),
    ("grid", {"exchange": 3}, 33),
    ("grid of 5 blocks", {"exchange": 3, "blocks": 5}, 73),
    ("grid, 2 tiles at once", {"exchange": 3, "blocks": 5, "tiles_at_once": 2}, 146),
    ("grid, 3 tiles at once", {"exchange": 3, "blocks": 5, "tiles_at_once": 3}, 138),
)
# interleaved_sequence: (H, E, M, Z), odd and even, with layers of fewer tiles than a cluster has blocks.
INTERLEAVED = ((33, 18, 35, 5), (66, 18, 50, 20))
INTERLEAVED_CLUSTER = (250, 17, 250, 9)  # of 16 blocks
# Sizes that take each form of the Triton kernels on an H100: (form, dtype, sizes)
TRITON_GRU = (("resident", "bfloat16", 33), ("alone", "float32", 128), ("shared", "bfloat16", 160))
TRITON_POSTERIOR = (
    ("resident", "bfloat16", (18, 5)),
    ("alone", "float32", (80, 17)),
    ("shared", "bfloat16", (300, 17)),
)
TRITON_INTERLEAVED = (
    ("resident", "bfloat16", (33, 17, 20, 5)),
    ("alone", "float32", (80, 40, 65, 17)),
    ("shared", "bfloat16", (160, 70, 130, 33)),
)


class Case(NamedTuple):
    """One kernel and form, both passes."""

    name: str
    run: Callable[[], None]


def both_passes(
    op: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor], backend: str, **options: Any
) -> Callable[[], None]:
    """The op and the gradients of all its tensors, which have to be finite."""

    def call() -> None:
        outputs = op(*tensors, backend=backend, **options)
        grads = torch.autograd.grad([out.float().square().sum() for out in outputs], tensors)
        for tensor in (*outputs, *grads):
            if not torch.isfinite(tensor).all():
                raise ArithmeticError("a result is not finite")

    return call


def lengths_on(device: str, batch: int) -> Tensor:
    """Full, empty and between."""
    return torch.tensor([LENGTHS[row % len(LENGTHS)] for row in range(batch)], device=device)


def gaussian(backend: str, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """gaussian_rsample_kl with a prior, between -1 and 1: of normal log-variances the gradients may pass 65,504, the
    largest float16."""
    flat = [torch.rand(5, 24, device=device).mul(2).sub(1).to(dtype).requires_grad_() for _ in range(5)]
    return both_passes(vssn_kernels.gaussian_rsample_kl, flat, backend)


@contextmanager
def changed(place: Any, name: str, value: Any) -> Iterator[None]:
    """Inside the block place.name is `value`."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def cuda_cases(device: str) -> Iterator[Case]:
    """Every variant in every compute type."""
    from vssn_kernels.backend.cuda import gru, interleaved, posterior  # imports the extension

    def under(place: Any, name: str, value: Any, compute: str, call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with changed(place, name, value), tf32(compute == "tf32"):
                call()

        return run

    for compute, dtype in COMPUTE.items():
        for reverse, (form, wish, hidden) in enumerate(GRU_FORMS):
            for rows, batch in ((1, BATCH), (2, WIDE_BATCH)):
                if rows == 2 and compute == "float32":
                    continue  # wider batch tiles are for tensor cores
                call = both_passes(
                    vssn_kernels.gru_sequence, gru_tensors(STEPS, batch, hidden, dtype, device), "cuda",
                    lengths=lengths_on(device, batch), reverse=reverse % 2 == 1,
                )  # fmt: skip
                name = f"cuda gru {compute} {form}, {8 * rows} rows, B={batch} H={hidden}"
                yield Case(name, under(gru, "wish", gru.Wish(**wish, row_tiles=rows), compute, call))
        for variant in posterior.VARIANTS:
            for width, latent in ((18, 5), (70, 33)):
                call = both_passes(
                    vssn_kernels.posterior_sequence, posterior_tensors(STEPS, BATCH, width, latent, dtype, device),
                    "cuda", lengths=lengths_on(device, BATCH),
                )  # fmt: skip
                name = f"cuda posterior {compute} {variant}, M={width} Z={latent}"
                yield Case(name, under(posterior, "variant", variant, compute, call))
        for variant in interleaved.VARIANTS:
            for sizes in (*INTERLEAVED, *([INTERLEAVED_CLUSTER] if variant == "cluster" else [])):
                tensors = interleaved_tensors(STEPS, BATCH, sizes, dtype, device)
                resets = torch.arange(STEPS * BATCH, device=device).view(STEPS, BATCH) % 3 == 1
                scale, lengths = "softplus" if sizes[0] % 2 else "logvar", lengths_on(device, BATCH)
                op = vssn_kernels.interleaved_sequence
                call = both_passes(op, tensors, "cuda", lengths=lengths, resets=resets, scale=scale)
                name = f"cuda interleaved {compute} {variant}, H={sizes[0]} E={sizes[1]} M={sizes[2]} Z={sizes[3]}"
                yield Case(name, under(interleaved, "variant", variant, compute, call))
        if compute != "tf32":
            yield Case(f"cuda gaussian {compute}", gaussian("cuda", device, dtype))


def triton_cases(device: str) -> Iterator[Case]:
    """Every form; not every dtype, since each takes a second to compile."""
    for form, compute, hidden in TRITON_GRU:
        tensors = gru_tensors(STEPS, WIDE_BATCH, hidden, COMPUTE[compute], device)
        lengths = lengths_on(device, WIDE_BATCH)
        call = both_passes(vssn_kernels.gru_sequence, tensors, "triton", lengths=lengths)
        yield Case(f"triton gru {compute} {form}, H={hidden}", call)
    for form, compute, (width, latent) in TRITON_POSTERIOR:
        posterior = posterior_tensors(STEPS, WIDE_BATCH, width, latent, COMPUTE[compute], device)
        call = both_passes(vssn_kernels.posterior_sequence, posterior, "triton", lengths=lengths_on(device, WIDE_BATCH))
        yield Case(f"triton posterior {compute} {form}, M={width} Z={latent}", call)
    for form, compute, sizes in TRITON_INTERLEAVED:
        chain = interleaved_tensors(STEPS, WIDE_BATCH, sizes, COMPUTE[compute], device)
        resets = torch.arange(STEPS * WIDE_BATCH, device=device).view(STEPS, WIDE_BATCH) % 3 == 1
        lengths = lengths_on(device, WIDE_BATCH)
        call = both_passes(vssn_kernels.interleaved_sequence, chain, "triton", lengths=lengths, resets=resets)
        size, embed, width, latent = sizes
        yield Case(f"triton interleaved {compute} {form}, H={size} E={embed} M={width} Z={latent}", call)
    yield Case("triton gaussian bfloat16", gaussian("triton", device, torch.bfloat16))


CASES = {"cuda": cuda_cases, "triton": triton_cases}


def run_all(cases: Iterator[Case], wait: Callable[[], None]) -> list[str]:
    """Runs them, each named before; the names of those that failed."""
    failed = []
    for case in cases:
        print(case.name, end=" ... ", flush=True)
        try:
            case.run()
            wait()
        except (RuntimeError, ValueError, ArithmeticError) as error:
            why = str(error).partition("\n")[0]
            if any(text in why for text in NOT_HERE):
                print(f"left out: {why}", flush=True)
                continue
            print(f"FAILED: {type(error).__name__}: {why}", flush=True)
            failed.append(case.name)
            try:
                wait()
            except RuntimeError:
                print("the device takes no more work: what follows is not run", flush=True)
                break
        else:
            print("ok", flush=True)
    return failed


def main(backend: str) -> int:
    """All cases of a backend, on the GPU."""
    if (status := vssn_kernels.backends()[backend]) != "available":
        print(f"backend {backend}: {status}")
        return 1
    torch.manual_seed(0)  # every run has the same numbers
    failed = run_all(CASES[backend]("cuda"), torch.cuda.synchronize)
    print(f"failed: {'; '.join(failed)}" if failed else "all ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
