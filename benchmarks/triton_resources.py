"""Compiles the triton backend's kernels ahead of time, as its launchers would, for GPUs that need not be there, and
reads their registers, spills, shared memory and matrix instructions.

    python -m benchmarks.triton_resources                           prints the table
    python -m benchmarks.triton_resources vssn_kernels/README.md    writes it between the markers of that file

In a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks import markdown
from vssn_kernels.backend import triton as backend
from vssn_kernels.backend.triton import launch as launching
from vssn_kernels.backend.triton.kernels.compilation import Kernel

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
BEGIN, END = "<!-- triton resources -->", "<!-- end of triton resources -->"
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Chip(NamedTuple):
    """A GPU to compile for."""

    target: GPUTarget
    device: launching.Device


CHIPS = {
    "sm_80": Chip(GPUTarget("cuda", 80, 32), launching.Device(108, 166912, True, tf32=True, float32=False)),
    "sm_90": Chip(GPUTarget("cuda", 90, 32), launching.Device(132, 232448, True, tf32=True, float32=False)),
    "sm_120": Chip(GPUTarget("cuda", 120, 32), launching.Device(170, 101376, True, tf32=True, float32=False)),
    "gfx942": Chip(GPUTarget("hip", "gfx942", 64), launching.Device(304, 65536, True, tf32=True, float32=True)),
}


class Launch(NamedTuple):
    """One kernel as a launcher calls it."""

    kernel: Kernel
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Resources(NamedTuple):
    """What a compiled kernel takes; bytes of shared memory of a program, spilled bytes of a thread."""

    registers: int
    spilled: int
    shared: int
    matrix_instructions: int


# ---- What is launched ------------------------------------------------------------------------------------


@contextmanager
def recorded(chip: Chip, precision: str) -> Iterator[list[Launch]]:
    """Inside the block the backend's functions launch nothing on CPU tensors, but record what `chip` would get."""
    launches: list[Launch] = []

    def record(kernel: Kernel, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **keywords: launches.append(Launch(kernel, grid, arguments, keywords))

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    with (
        mock.patch.object(launching, "device_of", return_value=chip.device),
        mock.patch.object(Kernel, "__getitem__", record),
    ):
        yield launches
    torch.set_float32_matmul_precision(before)


def _zeros(precision: str, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=DTYPES[precision])


def gru_launches(chip: Chip, precision: str, hidden: int) -> list[Launch]:
    """Forward and backward of 32 sequences with lengths."""
    zeros = partial(_zeros, precision)
    lengths = torch.zeros(32, dtype=torch.int64)
    with recorded(chip, precision) as launches:
        x, h0 = zeros(2, 32, 3 * hidden), zeros(32, hidden)
        weight, bias = zeros(3 * hidden, hidden), zeros(3 * hidden)
        output, h_n, gates = backend.gru_forward(x, h0, weight, bias, lengths, False, True)
        needs = (True, True, False, False)
        backend.gru_backward(output, h_n, output, gates, h0, weight, lengths, False, needs)
    return launches


def posterior_launches(chip: Chip, precision: str, width: int, latent: int, prior: bool) -> list[Launch]:
    """Forward and backward of 32 sequences with lengths."""
    zeros = partial(_zeros, precision)
    lengths = torch.zeros(32, dtype=torch.int64)
    weights = (zeros(width, latent), zeros(2 * latent, width))
    more: tuple[Tensor | None, Tensor | None] = (zeros(width, latent), zeros(latent, width)) if prior else (None, None)
    with recorded(chip, precision) as launches:
        context, z0, eps = zeros(2, 32, width), zeros(32, latent), zeros(2, 32, latent)
        bias, prior_bias = zeros(2 * latent), zeros(latent) if prior else None
        z, _, logvar, hidden, prior_hidden = backend.posterior_forward(
            context,
            z0,
            eps,
            *weights,
            bias,
            context if prior else None,
            *more,
            prior_bias,
            lengths,
            "silu",
            -12.0,
            True,
        )
        needs = (True, True, True, False, False, False, prior, False, False, False)
        backend.posterior_backward(
            z, z, z, z, logvar, hidden, prior_hidden, z0, eps, *weights, *more, lengths, "silu", -12.0, needs
        )
    return launches


def interleaved_launches(chip: Chip, precision: str, size: int, embed: int, width: int, latent: int) -> list[Launch]:
    """Forward and backward of 32 sequences with lengths and resets, with Dreamer's activations and scale."""
    zeros = partial(_zeros, precision)
    lengths, resets = torch.zeros(32, dtype=torch.int64), torch.zeros(2, 32, dtype=torch.bool)
    weights = (zeros(embed, latent), zeros(3 * size, embed), zeros(3 * size, size))
    heads = (zeros(width, size), zeros(2 * latent, width))
    states = (zeros(32, size), zeros(32, latent))
    with recorded(chip, precision) as launches:
        gates_x, embed_context, context, eps = (zeros(2, 32, units) for units in (3 * size, embed, width, latent))
        h, z, _, logvar, gates, kept, hidden = backend.interleaved_forward(
            gates_x, embed_context, context, *states, eps, *weights, zeros(3 * size), *heads, zeros(2 * latent),
            *states, resets, lengths, "elu", "elu", "softplus", -12.0, 0.1, True,
        )  # fmt: skip
        needs = [True] * 6 + [False] * 7 + [True] * 2
        backend.interleaved_backward(
            h, z, z, z, h, z, logvar, gates, kept, hidden, *states, eps, *weights, *heads, *states, resets, lengths,
            "elu", "elu", "softplus", -12.0, 0.1, needs,
        )  # fmt: skip
    return launches


def gaussian_launches(chip: Chip, precision: str, latent: int) -> list[Launch]:
    """Forward and backward of gaussian_rsample_kl with a prior."""
    full = _zeros(precision, 32, latent)
    with recorded(chip, precision) as launches:
        z, kl = backend.gaussian_forward(full, full, full, full, full)
        backend.gaussian_backward(z, kl, full, full, full, full, full, [True] * 5)
    return launches


# ---- Compilation -----------------------------------------------------------------------------------------


def compile_for(chip: Chip, launch: Launch) -> Any:
    """The kernel compiled with the types, constants and alignments that Triton's launcher would give it."""
    function = launch.kernel.jit(launch.kernel.unaligned(launch.arguments))
    compiler = make_backend(chip.target)
    bind = create_function_from_signature(function.signature, function.params, compiler)
    bound, specialization, options = bind(*launch.arguments, **launch.keywords)
    _, signature, constants, attributes = function._pack_args(compiler, options, bound, specialization, options)
    source = ASTSource(function, signature, constants, attributes)
    return triton.compile(source, target=chip.target, options=options)


def resources(chip: Chip, compiled: Any) -> Resources:
    """Read from the machine code: cuobjdump's listing, or the metadata in AMD's assembly."""
    shared = compiled.metadata.shared
    if chip.target.backend == "hip":
        text = compiled.asm["amdgcn"]

        def field(name: str) -> int:
            return _number(rf"\.{name}:\s+(\d+)", text)

        return Resources(
            field("vgpr_count"), field("private_segment_fixed_size"), shared, len(re.findall(r"\bv_mfma_", text))
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("cuobjdump", "-sass", file.name)
    registers, stack = (_number(rf"\b{name}:(\d+)", usage) for name in ("REG", "STACK"))
    return Resources(registers, stack, shared, len(re.findall(r"\b(?:HMMA|HGMMA)\.", code)))


def _number(pattern: str, text: str) -> int:
    return int(re.findall(pattern, text)[0])


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


# ---- The table -------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Sizes and precision of a recurrence, or Z of the Gaussians."""

    op: str
    sizes: tuple[int, ...]  # H; M, Z, whether there is a prior's mean; H, E, M, Z; Z
    precision: str

    def __str__(self) -> str:
        return f"{self.op}-{'x'.join(str(size) for size in self.sizes)}-{self.precision}"

    def launches(self, chip: Chip) -> list[Launch]:
        """Forward and backward, as the launchers call them for `chip`."""
        if self.op == "gru":
            return gru_launches(chip, self.precision, *self.sizes)
        if self.op == "posterior":
            width, latent, prior = self.sizes
            return posterior_launches(chip, self.precision, width, latent, bool(prior))
        if self.op == "interleaved":
            return interleaved_launches(chip, self.precision, *self.sizes)
        return gaussian_launches(chip, self.precision, *self.sizes)

    def label(self) -> str:
        if self.op == "posterior":
            width, latent, prior = self.sizes
            return f"posterior M={width} Z={latent}{' prior' if prior else ''}, {self.precision}"
        if self.op == "interleaved":
            size, embed, width, latent = self.sizes
            sizes = f"H=E=M={size}" if size == embed == width else f"H={size} E={embed} M={width}"
            return f"interleaved {sizes} Z={latent}, {self.precision}"
        return f"{self.op} {'H' if self.op == 'gru' else 'Z'}={self.sizes[0]}, {self.precision}"


CASES = [
    *(Case("gru", (64,), precision) for precision in ("float32", "tf32", "bfloat16")),
    *(Case("gru", (128,), precision) for precision in ("float32", "tf32", "bfloat16")),
    *(Case("gru", (512,), precision) for precision in ("float32", "tf32", "bfloat16", "float16")),
    *(Case("posterior", (64, 16, 0), precision) for precision in ("float32", "tf32", "bfloat16")),
    *(Case("posterior", (256, 64, 1), precision) for precision in ("float32", "tf32", "bfloat16")),
    *(Case("posterior", (512, 100, 1), precision) for precision in ("float32", "tf32", "bfloat16")),
    *(Case("interleaved", (64, 64, 64, 16), precision) for precision in ("float32", "tf32", "bfloat16")),
    Case("interleaved", (128, 64, 64, 32), "bfloat16"),
    *(Case("interleaved", (256, 256, 256, 64), precision) for precision in ("float32", "tf32", "bfloat16")),
    *(Case("interleaved", (512, 512, 512, 100), precision) for precision in ("float32", "tf32", "bfloat16", "float16")),
    *(Case("gaussian", (64,), precision) for precision in ("float32", "bfloat16")),
]


def form(launch: Launch) -> str:
    """Where the programs of a launch meet."""
    sync = launch.keywords.get("SYNC")
    if sync is None:
        return "resident" if "UNITS" in launch.keywords or "HIDDEN" in launch.keywords else "one pass"
    return {"block": "alone", "grid": "shared"}[sync]


def heading() -> str:
    return (
        f"Compiled by Triton {triton.__version__}: form, registers / bytes spilled, of a thread / KB of shared memory."
    )


def table() -> str:
    """Markdown: for each case, direction and chip the form, registers, spilled bytes and KB of shared memory."""
    chips = ("sm_80", "sm_90", "gfx942")
    lines = []
    for case in CASES:
        launches = {name: case.launches(CHIPS[name]) for name in chips}
        for number, direction in enumerate(("forward", "backward")):
            cells = []
            for name in chips:
                launch = launches[name][number]
                found = resources(CHIPS[name], compile_for(CHIPS[name], launch))
                size = f"{found.registers} / {found.spilled} / {found.shared / 1024:.0f}"
                cells.append(f"{form(launch)}, {size}")
            lines.append((f"{case.label()}, {direction}", *cells))
    return f"{heading()}\n\n{markdown.table(('kernel', *chips), lines, numbers=False)}"


def main(arguments: list[str]) -> None:
    """Prints the table, or writes it into the file that is named."""
    text = table()
    if not arguments:
        print(text)
        return
    markdown.insert(Path(arguments[0]), BEGIN, END, text)


if __name__ == "__main__":
    main(sys.argv[1:])
