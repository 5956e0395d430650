"""The cpu backend where it differs from the others: sizes around its tiles, panels and vectors, both ways to share the
work between threads, and every instruction set. What all backends owe alike stands in test_ops.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend import cpu
from vssn_kernels.testing import Sample, assert_all_close, assert_close, cotangents, expected, gradients, poisoned_empty

# (of outputs, of gradients)
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-12, 1e-11), torch.bfloat16: (7e-3, 3e-2)}
INSTRUCTION_SETS = ("amx", "avx512_bf16", "avx512", "avx2", "generic")

each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def mixed_lengths(steps: int, batch: int) -> Tensor:
    """Full, empty and everything between."""
    lengths = torch.randint(0, steps + 1, (batch,))
    lengths[0] = steps
    lengths[-1] = 0
    return lengths


def gru_sample(steps: int, batch: int, hidden: int, **options: object) -> Sample:
    tensors = {
        "gates_x": draw(steps, batch, 3 * hidden),
        "h0": draw(batch, hidden),
        "weight_hh": draw(3 * hidden, hidden) / hidden**0.5,
        "bias_hh": draw(3 * hidden) / 2,
    }
    return Sample("gru_sequence", f"{steps}x{batch}x{hidden}", tensors, dict(options))


def packed_sample(steps: int, batch: int, hidden: int, ended: int, reverse: bool) -> Sample:
    """Widths that change at each step, or stay for some; `ended` sequences without a step."""
    lengths = torch.randint(1, steps + 1, (batch,)).sort(descending=True).values
    lengths[0] = steps
    lengths[batch - ended :] = 0
    sizes = (lengths > torch.arange(steps)[:, None]).sum(1)
    tensors = gru_sample(1, int(sizes.sum()), hidden).tensors
    tensors |= {"gates_x": tensors["gates_x"][0], "h0": draw(batch, hidden)}
    return Sample("gru_packed", f"{steps}x{batch}x{hidden}", tensors, {"batch_sizes": sizes, "reverse": reverse})


def posterior_sample(steps: int, batch: int, width: int, latent: int, prior: bool, **options: object) -> Sample:
    # The inputs of relu and leaky_relu stay away from 0, where float32 and float64 may see different slopes.
    def context() -> Tensor:
        noise = draw(steps, batch, width)
        return noise + 4 * noise.sign() if "relu" in str(options["activation"]) else noise

    tensors = {
        "context": context(),
        "z0": draw(batch, latent),
        "eps": draw(steps, batch, latent),
        "weight_z": draw(width, latent) / (4 * latent**0.5),
        "weight_out": draw(2 * latent, width) / (6 * width**0.5),
        "bias_out": draw(2 * latent) / 2 - 1,
    }
    if prior:
        tensors |= {
            "prior.context": context(),
            "prior.weight_z": draw(width, latent) / (4 * latent**0.5),
            "prior.weight_mu": draw(latent, width) / (6 * width**0.5),
            "prior.bias_mu": draw(latent) / 2,
        }
    return Sample("posterior_sequence", f"{steps}x{batch}x{width}x{latent}", tensors, dict(options))


def check(sample: Sample, dtype: torch.dtype) -> None:
    """Outputs and gradients against the plain reference in float64, on memory that starts as NaN."""
    moved = sample.to("cpu", dtype, requires_grad=True)
    outputs, grads = expected(moved)
    with poisoned_empty():
        actual = moved.run("cpu")
        actual_grads = gradients(moved, actual, cotangents(actual))
    for_outputs, for_gradients = TOLERANCES[dtype]
    assert_all_close(actual, outputs, for_outputs, str(sample))
    assert_all_close(actual_grads, grads, for_gradients, str(sample))


# Rows: fewer than, equal to and more than a tile of 8 or 12, or of 4 or 6; units: around vectors of 16, 8, 4 and 2 and
# panels of twice that. A hidden size of 300 in float32 and 210 in float64 splits the units between threads.
GRU_SIZES = [(3, 1, 5), (4, 2, 16), (3, 7, 33), (2, 13, 48), (3, 16, 31), (2, 25, 64), (2, 9, 130), (2, 6, 301)]
# Few steps and rows meet the weights as they are: one row, whole groups of rows and others; panels whole or not.
GRU_SIZES += [(1, 1, 16), (1, 1, 300), (1, 4, 48), (2, 3, 64), (1, 7, 301), (3, 5, 33)]
# More rows than one tile, and panels of several parts; the weights' gradients from copies of the rows.
GRU_SIZES += [(2, 70, 270), (3, 19, 530)]
POSTERIOR_SIZES = [(3, 1, 5, 2), (2, 8, 16, 16), (3, 13, 33, 17), (2, 25, 31, 48), (2, 5, 100, 9), (2, 3, 260, 70)]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("size", GRU_SIZES, ids=str)
@each_dtype
def test_gru_agrees(size: tuple[int, int, int], padded: bool, reverse: bool, dtype: torch.dtype) -> None:
    steps, batch, _ = size
    check(gru_sample(*size, lengths=mixed_lengths(steps, batch) if padded else None, reverse=reverse), dtype)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("size", [*GRU_SIZES, (40, 3, 16), (9, 60, 48)], ids=str)
@each_dtype
def test_packed_gru_agrees(size: tuple[int, int, int], reverse: bool, dtype: torch.dtype) -> None:
    check(packed_sample(*size, ended=0, reverse=reverse), dtype)
    check(packed_sample(*size, ended=size[1] // 2, reverse=reverse), dtype)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("hidden", [5, 64])
@each_dtype
def test_packed_and_padded_give_the_same_bits(hidden: int, reverse: bool, dtype: torch.dtype) -> None:
    """Of outputs and of the gradients of inputs; those of the weights add their rows up in another order."""
    packed = packed_sample(7, 9, hidden, 1, reverse).to("cpu", dtype, requires_grad=True)
    sizes = packed.options["batch_sizes"]
    valid = torch.arange(9) < sizes[:, None]
    x = torch.full((7, 9, 3 * hidden), torch.nan, dtype=dtype)
    x[valid] = packed.tensors["gates_x"].detach()
    tensors = packed.tensors | {"gates_x": x.requires_grad_()}
    padded = Sample("gru_sequence", "padded", tensors, {"lengths": valid.sum(0), "reverse": reverse})
    found = []
    for sample in (packed, padded):
        outputs = sample.run("cpu")
        output = outputs["output"] if sample is packed else outputs["output"][valid]
        grads = cotangents({"output": output, "h_n": outputs["h_n"]})
        found.append(outputs | {"output": output} | gradients(sample, {**outputs, "output": output}, grads))
    got, want = found
    want["grad of gates_x"] = want["grad of gates_x"][valid]
    for name, actual in got.items():
        if "weight" in name or "bias" in name:
            assert_close(name, actual, want[name], TOLERANCES[dtype][0])
        else:
            assert torch.equal(actual, want[name]), name


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("size", [(1, 3, 33), (3, 1, 64), (4, 13, 48)], ids=str)
@each_dtype
def test_gru_agrees_where_h0_needs_no_gradient(size: tuple[int, int, int], reverse: bool, dtype: torch.dtype) -> None:
    """Nothing goes back past the first step then, and its product is left out."""
    sample = gru_sample(*size, lengths=mixed_lengths(*size[:2]), reverse=reverse)
    moved = sample.to("cpu", dtype, requires_grad=True)
    _, grads = expected(moved)
    moved.tensors["h0"].requires_grad_(False)
    with poisoned_empty():
        outputs = moved.run("cpu")
        actual = gradients(moved, outputs, cotangents(outputs))
    assert_all_close(actual, {name: grads[name] for name in actual}, TOLERANCES[dtype][1], str(sample))


@pytest.mark.parametrize("size", POSTERIOR_SIZES, ids=str)
@each_dtype
def test_posterior_agrees(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    steps, batch, width, _ = size
    lengths = mixed_lengths(steps, batch) if width % 2 else None
    check(posterior_sample(*size, prior=True, activation="tanh", lengths=lengths), dtype)


@pytest.mark.parametrize("prior", [False, True], ids=["plain", "prior"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "leaky_relu", "silu"])
@each_dtype
def test_every_activation_agrees(activation: str, prior: bool, dtype: torch.dtype) -> None:
    check(posterior_sample(3, 7, 37, 19, prior, activation=activation, lengths=mixed_lengths(3, 7)), dtype)


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (5, 16), (2, 3, 17), (700, 33)], ids=str)
@pytest.mark.parametrize("op", ["gaussian_rsample_kl", "gaussian_kl"])
@each_dtype
def test_gaussian_agrees(op: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    names = ["mu", "logvar", "eps", "prior_mu", "prior_logvar"]
    if op == "gaussian_kl":
        names.remove("eps")
    check(Sample(op, str(shape), {name: draw(*shape) for name in names}), dtype)


# Rows around tiles and chunks; columns around one to seven vectors of 16, 8, 4 and 2.
MLP_SIZES = [
    (1, (5,), 3, 2),
    (7, (16, 1), 16, 8),
    (13, (17,), 33, 1),
    (97, (48, 8, 3), 49, 100),
    (193, (40,), 64, 16),
    (600, (31, 65), 130, 48),
]


@pytest.mark.parametrize("op", ["mlp", "gaussian_mlp", "split_linear"])
@pytest.mark.parametrize("size", MLP_SIZES, ids=str)
@each_dtype
def test_mlp_agrees(size: tuple[int, tuple[int, ...], int, int], op: str, dtype: torch.dtype) -> None:
    rows, widths, hidden, out = size
    tensors = {f"inputs[{number}]": draw(rows, width) for number, width in enumerate(widths)}
    tensors |= {"weights[0]": draw(hidden, sum(widths)) / sum(widths) ** 0.5, "bias": draw(hidden)}
    if op != "split_linear":
        out *= 2 if op == "gaussian_mlp" else 1
        tensors |= {"weight_out": draw(out, hidden) / hidden**0.5, "bias_out": draw(out)}
    check(Sample(op, str(size), tensors), dtype)


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (5, 16), (2, 3, 17), (700, 33)], ids=str)
@each_dtype
def test_bernoulli_agrees(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(Sample("bernoulli_log_prob", str(shape), {"logits": 3 * draw(*shape), "x": draw(*shape)}), dtype)


def test_a_long_sequence_keeps_its_precision() -> None:
    check(gru_sample(200, 3, 20, lengths=torch.tensor([200, 130, 1])), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("hidden", [1, 5, 16, 37, 64])
def test_the_output_told_again_from_the_gates_agrees(hidden: int, dtype: torch.dtype) -> None:
    """Whatever order the kernels keep the gates in."""
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 7e-3}[dtype]
    gates_x, h0, weight, bias = (
        torch.randn(shape, dtype=dtype)
        for shape in ((4, 3, 3 * hidden), (3, hidden), (3 * hidden, hidden), (3 * hidden,))
    )
    for lengths in (None, torch.tensor([2, 4, 0])):
        for reverse in (False, True):
            output, _, gates = cpu.gru_forward(gates_x, h0, weight, bias, lengths, reverse, True)
            again = cpu.gru_output(gates, h0, lengths, reverse)
            assert_close("output", again, output, tolerance)
    sizes = torch.tensor([3, 2, 2, 1, 0])
    for reverse in (False, True):
        output, _, gates = cpu.gru_packed_forward(gates_x.flatten(0, 1)[:8], h0, weight, bias, sizes, reverse, True)
        again = cpu.gru_packed_output(gates, h0, sizes, reverse)
        assert_close("packed output", again, output, tolerance)


# ---- Instruction sets ------------------------------------------------------------------------------------


def run_python(code: str, instruction_set: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"VSSN_CPU_ISA": instruction_set}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


def available_here() -> str:
    """The instruction sets of this processor, as the message about an unknown one lists them."""
    return run_python("from vssn_kernels import _cpu; _cpu.isa()", "none such").stderr.strip().splitlines()[-1]


def test_slow_products_of_pairs_are_not_chosen_by_themselves() -> None:
    """vdpbf16ps of an Intel core with AVX512-FP16 is slower than multiply-adds of floats: AMX is there for products."""
    offered = re.findall(r"[a-z0-9_]+", available_here().partition("(")[2].partition(")")[0])
    if "avx512_bf16" not in offered:
        pytest.skip("this processor, or the compiler of this extension, has no avx512_bf16")
    with open("/proc/cpuinfo") as file:
        processor = file.read().partition("\n\n")[0]
    slow = "GenuineIntel" in processor and "avx512_fp16" in processor
    others = [name for name in offered if not (slow and name == "avx512_bf16")]
    assert run_python("from vssn_kernels import _cpu; print(_cpu.isa())", "").stdout.strip() == others[0]


def _sets() -> list[Any]:
    """The set below the one in use; the others are further cases, and make test-lower runs more of them."""
    below = INSTRUCTION_SETS.index(_cpu.isa()) + 1
    return [
        pytest.param(name, marks=[] if number == below else pytest.mark.more)
        for number, name in enumerate(INSTRUCTION_SETS)
    ]


@pytest.mark.parametrize("name", _sets())
def test_the_kernels_agree_in_every_instruction_set(name: str) -> None:
    if name == _cpu.isa():
        pytest.skip("the one in use in this process, where the tests above ran")
    if name not in available_here():
        pytest.skip(f"this processor has no {name}")
    in_use = run_python("from vssn_kernels import _cpu; print(_cpu.isa())", name)
    assert in_use.stdout.strip() == name, in_use.stderr
    names = ("test_cpu_kernels.py", "test_cpu_math.py", "test_cpu_bfloat16.py", "test_stress.py", "test_not_finite.py")
    files = [os.path.join(os.path.dirname(__file__), file) for file in names]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", "agrees or ulp or rounds"],
        env=os.environ | {"VSSN_CPU_ISA": name},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]


def test_an_unknown_instruction_set_raises_at_first_use() -> None:
    message = available_here()
    assert message.startswith("RuntimeError: environment variable VSSN_CPU_ISA must be one of"), message
    assert "got 'none such'" in message
    assert "generic" in message


def test_info_names_instruction_set_threads_and_compiler() -> None:
    text = cpu.info()
    assert text.startswith(_cpu.isa())
    assert f"{torch.get_num_threads()} threads" in text
    assert "g++" in text
