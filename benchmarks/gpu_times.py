"""python -m benchmarks.gpu_times: the recurrences, the elementwise op and whole steps of training beside PyTorch's.

What matters most comes first, and each row is written when it is measured: what is cut off by a time limit leaves what
was done before. T is long and calls are replayed as CUDA graphs, so the host bounds no small size.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

import vssn_kernels
from benchmarks import gpu_torchrl
from benchmarks.cases import train_step
from benchmarks.contestant import LEARNING_RATE
from benchmarks.gpu_contest import Contestant, Outputs, Result, contest
from benchmarks.gpu_problems import COMPUTE, interleaved_tensors, posterior_tensors, tf32
from benchmarks.gpu_rows import Writer
from benchmarks.gpu_small import changed
from benchmarks.peers import bind
from benchmarks.peers_torch import interleaved_loop, posterior_loop
from benchmarks.problem import ADAM, FORWARD, SIZES, Problem, Size

BOTH = "forward and backward"


class Setup(NamedTuple):
    """What is measured, on which device."""

    device: str = "cuda"
    backends: tuple[str, ...] = ("cuda", "triton")
    steps: int = 512
    loop_steps: int = 16  # of the loop that torch.compile unrolls
    batches: tuple[int, ...] = (32, 1, 8, 128)  # all sizes with the first, then with the next
    hidden: tuple[int, ...] = (64, 256, 512, 1024)
    clusters: tuple[int, ...] = (4, 8, 16)
    at_once: tuple[int, ...] = (1, 2, 4)  # batch tiles that take turns in a grid
    latent: tuple[tuple[int, int], ...] = ((64, 16), (256, 64), (512, 100), (1024, 256))  # (M, Z)
    # (H, E, M, Z) of VRNN and RSSM, S, M and L
    interleaved: tuple[tuple[int, int, int, int], ...] = ((64, 64, 64, 16), (256, 256, 256, 64), (512, 512, 512, 100))
    gru_compute: tuple[str, ...] = ("bfloat16", "float32", "tf32")
    compute: tuple[str, ...] = ("bfloat16", "float32")
    rows: int = 1 << 18  # of the elementwise op
    training: tuple[Size, ...] = tuple(SIZES.values())
    training_compute: tuple[str, ...] = ("bfloat16", "float32", "tf32")
    torchrl: tuple[int, int, int] = (gpu_torchrl.STEPS, gpu_torchrl.BATCH, gpu_torchrl.HIDDEN)


LARGEST_IN_CLUSTER = 512  # H
SEVERAL_TILES = 32  # B from which a team may have several batch tiles


# ---- Calls ----------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A function in a case, of tensors that all need gradients."""

    function: Callable[..., Outputs]
    tensors: Sequence[Tensor]
    captured: bool = True
    place: Callable[[], AbstractContextManager[None]] = nullcontext  # in which both passes run

    def forward(self) -> Outputs:
        """Without autograd."""
        with self.place(), torch.no_grad():
            return self.function(*self.tensors)

    def both(self) -> Outputs:
        """The gradients of all tensors."""
        with self.place():
            outputs = self.function(*self.tensors)
            return torch.autograd.grad(outputs, self.tensors, [torch.ones_like(out) for out in outputs])

    def contestant(self, run: str) -> Contestant:
        return Contestant(self.forward if run == FORWARD else self.both, self.captured)


def contests(case: str, entries: dict[str, Entry | str], divide_by: int, device: str) -> Iterator[Result]:
    """Both passes of a case."""
    for run in (FORWARD, BOTH):
        contestants = {
            name: entry if isinstance(entry, str) else entry.contestant(run) for name, entry in entries.items()
        }
        yield from contest(case, run, contestants, divide_by, device)


def on_backends(op: Callable[..., Outputs], tensors: Sequence[Tensor], setup: Setup) -> dict[str, Entry | str]:
    """The op on each of our GPU backends, or why not."""
    status = vssn_kernels.backends()
    return {
        f"vssn {name}": Entry(functools.partial(op, backend=name), tensors)
        if status[name] == "available"
        else status[name]
        for name in setup.backends
    }


# ---- GRU ------------------------------------------------------------------------------------------------------------


def layer(x: Tensor, h0: Tensor, *weights: Tensor, backend: str) -> Outputs:
    """What torch.nn.GRU does, as it is done with this library. weights: weight_ih, weight_hh, bias_ih, bias_hh"""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    gates_x = nn.functional.linear(x, weight_ih, bias_ih)
    return vssn_kernels.gru_sequence(gates_x, h0, weight_hh, bias_hh, backend=backend)


def torch_gru(setup: Setup, batch: int, hidden: int, dtype: torch.dtype) -> Entry:
    """torch.nn.GRU (on a GPU cuDNN's) of as many inputs as units; its tensors are those of `layer`."""
    net = nn.GRU(hidden, hidden).to(setup.device, dtype)
    x = torch.randn(setup.steps, batch, hidden, device=setup.device).to(dtype).requires_grad_()
    h0 = torch.randn(batch, hidden, device=setup.device).to(dtype).requires_grad_()

    def function(x: Tensor, h0: Tensor, *weights: Tensor) -> Outputs:
        output, h_n = net(x, h0[None])
        return output, h_n[0]

    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return Entry(function, (x, h0, *(getattr(net, f"{name}_l0") for name in names)))


def laid_out(**wish: int) -> AbstractContextManager[None]:
    """Inside the block the cuda backend lays the GRU out as wished for, instead of as planned."""
    from vssn_kernels.backend.cuda import gru

    return changed(gru, "wish", gru.Wish(**wish))


def layouts(entry: Entry, batch: int, hidden: int, setup: Setup) -> dict[str, Entry | str]:
    """The recurrence alone, without its input's projection: as planned, and in each size of cluster, or where these are
    too small for it in a grid whose batch tiles take turns and do not."""
    if "cuda" not in setup.backends or vssn_kernels.backends()["cuda"] != "available":
        return {}
    x, h0, weight_ih, weight_hh, bias_ih, bias_hh = entry.tensors
    with torch.no_grad():
        gates_x = nn.functional.linear(x, weight_ih, bias_ih)
    tensors = (gates_x.requires_grad_(), h0, weight_hh, bias_hh)
    op = functools.partial(vssn_kernels.gru_sequence, backend="cuda")
    wishes: dict[str, dict[str, int]] = {}
    if hidden <= LARGEST_IN_CLUSTER:
        wishes = {f"clusters of {n}": {"exchange": 2, "blocks": n} for n in setup.clusters}
    elif batch >= SEVERAL_TILES:
        wishes = {f"{n} tiles at once": {"tiles_at_once": n} for n in setup.at_once}
    return {
        "vssn cuda": Entry(op, tensors),
        **{
            f"vssn cuda, {name}": Entry(op, tensors, place=functools.partial(laid_out, **wish))
            for name, wish in wishes.items()
        },
    }


def gru_cases(setup: Setup, batch: int, computes: Sequence[str]) -> Iterator[Result]:
    """The layer on our backends and PyTorch's, then our recurrence alone by layout."""
    for hidden in setup.hidden:
        for compute in computes:
            with tf32(compute == "tf32"):
                peer = torch_gru(setup, batch, hidden, COMPUTE[compute])
                entries = on_backends(layer, peer.tensors, setup) | {"torch.nn.GRU": peer}
                sizes = f"{compute} T={setup.steps} B={batch} H={hidden}"
                yield from contests(f"gru {sizes}", entries, setup.steps, setup.device)
                alone = layouts(peer, batch, hidden, setup)
                yield from contests(f"gru_sequence {sizes}", alone, setup.steps, setup.device)


def torchrl_cases(setup: Setup) -> Iterator[Result]:
    """TorchRL's Triton GRU at its own size, then its block GRU, another cell, whose results are not compared."""
    steps, batch, hidden = setup.torchrl
    own = setup._replace(steps=steps)
    for compute in setup.gru_compute:
        with tf32(compute == "tf32"):
            peer = torch_gru(own, batch, hidden, COMPUTE[compute])
            entries = on_backends(layer, peer.tensors, own) | {"torch.nn.GRU": peer}
            theirs = gpu_torchrl.gru(compute, batch, steps, setup.device)
            wide = [t.detach().float().requires_grad_() for t in peer.tensors]
            entries["torchrl's Triton GRU"] = theirs if isinstance(theirs, str) else Entry(theirs, wide)
            yield from contests(f"gru {compute} T={steps} B={batch} H={hidden}", entries, steps, setup.device)
    block = gpu_torchrl.block_gru(hidden, batch, steps, setup.device)
    entries = {"torchrl's Triton block GRU": block if isinstance(block, str) else Entry(*block)}
    yield from contests(f"block gru float32 T={steps} B={batch} H={hidden}", entries, steps, setup.device)


# ---- Posterior, elementwise op --------------------------------------------------------------------------------------


def posterior_cases(setup: Setup, batch: int, computes: Sequence[str]) -> Iterator[Result]:
    """Our backends; with the first batch also PyTorch's loop over z, as launched and as a graph."""
    for width, latent in setup.latent:
        for compute in computes:
            tensors = posterior_tensors(setup.steps, batch, width, latent, COMPUTE[compute], setup.device)
            entries = on_backends(vssn_kernels.posterior_sequence, tensors, setup)
            if batch == setup.batches[0]:
                entries["loop over z, in a graph"] = Entry(posterior_loop, tensors)
                entries["loop over z"] = Entry(posterior_loop, tensors, captured=False)
            case = f"posterior {compute} T={setup.steps} B={batch} M={width} Z={latent}"
            yield from contests(case, entries, setup.steps, setup.device)


INTERLEAVED = (
    *("gates_x", "embed_context", "context", "h0", "z0", "eps", "weight_embed", "weight_zh", "weight_hh", "bias_hh"),
    *("weight_h", "weight_out", "bias_out"),
)


def loop_of_cells(*tensors: Tensor) -> Outputs:
    """interleaved_sequence as PyTorch's loop."""
    named = dict(zip(INTERLEAVED, tensors, strict=True))
    return interleaved_loop(named, named["eps"])


def interleaved_cases(setup: Setup, batch: int, computes: Sequence[str]) -> Iterator[Result]:
    """Our backends; with the first batch also PyTorch's loop over the cell, as launched and as a graph."""
    for sizes in setup.interleaved:
        for compute in computes:
            tensors = interleaved_tensors(setup.steps, batch, sizes, COMPUTE[compute], setup.device)
            entries = on_backends(vssn_kernels.interleaved_sequence, tensors, setup)
            if batch == setup.batches[0]:
                entries["loop over the cell, in a graph"] = Entry(loop_of_cells, tensors)
                entries["loop over the cell"] = Entry(loop_of_cells, tensors, captured=False)
            size, embed, width, latent = sizes
            case = f"interleaved {compute} T={setup.steps} B={batch} H={size} E={embed} M={width} Z={latent}"
            yield from contests(case, entries, setup.steps, setup.device)


def compiled_loop(setup: Setup) -> Iterator[Result]:
    """The loop over z by torch.compile, which unrolls it: few steps of one size, since its compilation takes long."""
    width, latent = setup.latent[0]
    batch, steps = setup.batches[0], setup.loop_steps
    tensors = posterior_tensors(steps, batch, width, latent, torch.float32, setup.device)
    entries = on_backends(vssn_kernels.posterior_sequence, tensors, setup)
    entries["loop over z, in a graph"] = Entry(posterior_loop, tensors)
    entries["loop over z, torch.compile"] = Entry(torch.compile(posterior_loop), tensors)
    yield from contests(f"posterior float32 T={steps} B={batch} M={width} Z={latent}", entries, steps, setup.device)


def gaussian_cases(setup: Setup) -> Iterator[Result]:
    """The sample with its divergence, beside a copy of as many bytes as forward reads and writes."""
    for compute in setup.compute:
        new = functools.partial(torch.randn, device=setup.device, dtype=COMPUTE[compute])
        flat = [new(setup.rows, 64, requires_grad=True) for _ in range(5)]
        case = f"gaussian {compute} N={setup.rows} Z=64"
        yield from contests(case, on_backends(vssn_kernels.gaussian_rsample_kl, flat, setup), 1, setup.device)
        # Forward reads five tensors and writes one.
        source, target = new(3 * setup.rows, 64), new(3 * setup.rows, 64)
        copy = Contestant(functools.partial(_copied, target, source))
        yield from contest(case, FORWARD, {"copy of as many bytes": copy}, 1, setup.device)


def _copied(target: Tensor, source: Tensor) -> Outputs:
    return (target.copy_(source),)


# ---- Training -------------------------------------------------------------------------------------------------------


def training_cases(setup: Setup) -> Iterator[Result]:
    """A whole step, Adam included: this library and PyTorch (nn.GRU and the loop over z), launched and as graphs."""
    for size in setup.training:
        problem = train_step(size).to(setup.device)
        for compute in setup.training_compute:
            contestants: dict[str, Contestant | str] = {}
            for peer in ("vssn", "torch"):
                contestants[f"{peer}, in a graph"] = Contestant(training_step(peer, problem, compute))
                contestants[peer] = Contestant(training_step(peer, problem, compute), captured=False)
            with tf32(compute == "tf32"):
                yield from contest(f"training {compute} {problem.case}", ADAM, contestants, 1, setup.device)


def training_step(peer: str, problem: Problem, compute: str = "float32") -> Callable[[], Outputs]:
    """Forward, under autocast where `compute` is bfloat16, backward and the optimiser; its output is the loss."""
    leaves, call = bind(peer, problem)
    on_gpu = problem.device == "cuda"
    optimiser = torch.optim.Adam(leaves.values(), LEARNING_RATE, fused=True, capturable=on_gpu)

    def step() -> Outputs:
        for leaf in leaves.values():
            leaf.grad = None
        with torch.autocast(problem.device, torch.bfloat16, enabled=compute == "bfloat16"):
            loss = call()["loss"]
        loss.backward()
        optimiser.step()
        return (loss.detach(),)

    return step


# ---- All ------------------------------------------------------------------------------------------------------------


def measure(setup: Setup) -> Iterator[Result]:
    """Everything, what matters most first: bfloat16 of the first batch, what is compared with others' whole programs,
    the other types, then the other batches."""
    batch, *others = setup.batches

    def recurrences(batch: int, wanted: Callable[[str], bool]) -> Iterator[Result]:
        yield from gru_cases(setup, batch, [name for name in setup.gru_compute if wanted(name)])
        yield from posterior_cases(setup, batch, [name for name in setup.compute if wanted(name)])
        yield from interleaved_cases(setup, batch, [name for name in setup.compute if wanted(name)])

    yield from recurrences(batch, lambda compute: compute == "bfloat16")
    yield from training_cases(setup)
    yield from gaussian_cases(setup)
    yield from torchrl_cases(setup)
    yield from recurrences(batch, lambda compute: compute != "bfloat16")
    for other in others:
        yield from recurrences(other, lambda compute: compute == "bfloat16")
    yield from compiled_loop(setup)
    for other in others:
        yield from recurrences(other, lambda compute: compute != "bfloat16")


def main(setup: Setup, seconds: float) -> int:
    """Measures, prints and writes row by row, for at most about that long."""
    until, failed, case = time.monotonic() + seconds, False, ""
    writer = Writer.from_environment(setup.device)
    for result in measure(setup):
        print(result.line(), flush=True)
        writer.write(result)
        failed |= result.status.startswith("failed")
        if result.case != case and setup.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()  # graphs keep pools of their own
        case = result.case
        if time.monotonic() > until:
            writer.write(Result("what follows", "", "", "left out: no time"))
            break
    return 1 if failed else 0


if __name__ == "__main__":
    backends = tuple(os.environ.get("VSSN_GPU_BACKENDS", "cuda triton").split())
    sys.exit(main(Setup(backends=backends), float(os.environ.get("VSSN_GPU_SECONDS", "120"))))
