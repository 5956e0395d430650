"""The cuda backend on a GPU: streams, graphs, tf32, the tuned sizes, and memory past 2^31 elements. Skipped without
one; the kernels' arithmetic is tested on every machine (test_cuda_ops.py)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vssn_kernels
from vssn_kernels.testing import (
    TOLERANCES,
    Sample,
    assert_all_close,
    assert_equal,
    cotangents,
    expected,
    find_sample,
    gradients,
    poisoned_empty,
)

pytestmark = pytest.mark.skipif(
    vssn_kernels.backends()["cuda"] != "available", reason=f"backend cuda: {vssn_kernels.backends()['cuda']}"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
OPS = [
    ("gru_sequence", "lengths_reverse"),
    ("posterior_sequence", "prior_silu"),
    ("interleaved_sequence", "resets_anew"),
    ("gaussian_rsample_kl", "prior"),
]
each_op = pytest.mark.parametrize(("op", "name"), OPS)


def run(sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with poisoned_empty():
        outputs = sample.run("cuda")
        return outputs, gradients(sample, outputs, cotangents(outputs))


def check(sample: Sample, dtype: torch.dtype, tolerances: tuple[float, float] | None = None) -> None:
    moved = sample.to("cuda", dtype, requires_grad=True)
    outputs, grads = run(moved)
    want_outputs, want_grads = expected(moved)
    for_outputs, for_gradients = tolerances or TOLERANCES["cuda", dtype]
    assert_all_close({k: v.cpu() for k, v in outputs.items()}, want_outputs, for_outputs, str(sample))
    assert_all_close({k: v.cpu() for k, v in grads.items()}, want_grads, for_gradients, str(sample))


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def gru(steps: int, batch: int, hidden: int, **options: object) -> Sample:
    tensors = {
        "gates_x": draw(steps, batch, 3 * hidden),
        "h0": draw(batch, hidden),
        "weight_hh": draw(3 * hidden, hidden) / hidden**0.5,
        "bias_hh": draw(3 * hidden) / 2,
    }
    return Sample("gru_sequence", f"{steps}x{batch}x{hidden}", tensors, dict(options))


def posterior(steps: int, batch: int, width: int, latent: int) -> Sample:
    tensors = {
        "context": draw(steps, batch, width),
        "z0": draw(batch, latent),
        "eps": draw(steps, batch, latent),
        "weight_z": draw(width, latent) / (4 * latent**0.5),
        "weight_out": draw(2 * latent, width) / (6 * width**0.5),
        "bias_out": draw(2 * latent) / 2 - 1,
    }
    return Sample("posterior_sequence", f"{steps}x{batch}x{width}x{latent}", tensors)


def interleaved(steps: int, batch: int, *sizes: int) -> Sample:
    """sizes: H, E, M, Z; resets at every third entry"""
    size, embed, width, latent = sizes
    tensors = {
        "gates_x": draw(steps, batch, 3 * size),
        "embed_context": draw(steps, batch, embed),
        "context": draw(steps, batch, width),
        "h0": draw(batch, size),
        "z0": draw(batch, latent),
        "eps": draw(steps, batch, latent),
        "weight_embed": draw(embed, latent) / (2 * latent**0.5),
        "weight_zh": draw(3 * size, embed) / (2 * embed**0.5),
        "weight_hh": draw(3 * size, size) / (2 * size**0.5),
        "bias_hh": draw(3 * size) / 2,
        "weight_h": draw(width, size) / (2 * size**0.5),
        "weight_out": draw(2 * latent, width) / (6 * width**0.5),
        "bias_out": draw(2 * latent) / 2 - 1,
        "reset_h": draw(batch, size),
        "reset_z": draw(batch, latent),
    }
    resets = torch.arange(steps * batch).view(steps, batch) % 3 == 1
    options = {"resets": resets, "embed_activation": "elu", "scale": "softplus"}
    return Sample("interleaved_sequence", f"{steps}x{batch}x{sizes}", tensors, options)


@pytest.mark.parametrize("hidden", [64, 128, 256, 512, 1024, 1500])
@pytest.mark.parametrize("batch", [1, 32, 130])
@each_dtype
def test_gru_sizes(hidden: int, batch: int, dtype: torch.dtype) -> None:
    lengths = torch.randint(0, 10, (batch,))
    check(gru(9, batch, hidden, lengths=lengths, reverse=hidden % 256 == 0), dtype)


@pytest.mark.parametrize("size", [(64, 16), (128, 32), (256, 64), (500, 100), (1024, 256)], ids=str)
@pytest.mark.parametrize("batch", [1, 32, 130])
@each_dtype
def test_posterior_sizes(size: tuple[int, int], batch: int, dtype: torch.dtype) -> None:
    check(posterior(7, batch, *size), dtype)


INTERLEAVED = [(64, 64, 64, 16), (50, 19, 34, 49), (256, 256, 256, 64), (300, 40, 130, 30), (512, 512, 512, 100)]


@pytest.mark.parametrize("sizes", INTERLEAVED, ids=str)
@pytest.mark.parametrize("batch", [1, 32, 130])
@each_dtype
def test_interleaved_sizes(sizes: tuple[int, ...], batch: int, dtype: torch.dtype) -> None:
    check(interleaved(7, batch, *sizes), dtype)


TF32 = [gru(9, 32, 256), gru(9, 32, 1024), posterior(7, 32, 256, 64), interleaved(7, 32, 256, 256, 256, 64)]


@pytest.mark.parametrize("sample", TF32, ids=str)
def test_tf32_follows_pytorchs_setting(sample: Sample) -> None:
    """Full precision unless it is allowed; then products of ten bits, and of no fewer."""
    from benchmarks.gpu_problems import tf32

    with tf32(False):
        check(sample, torch.float32)
    with tf32(True):
        check(sample, torch.float32, (2e-3, 5e-3))
        with pytest.raises(AssertionError):
            check(sample, torch.float32)


@each_op
@each_dtype
def test_the_same_bits_every_time(op: str, name: str, dtype: torch.dtype) -> None:
    sample = find_sample(op, name).to("cuda", dtype, requires_grad=True)
    want = run(sample)
    for _ in range(5):
        for got_part, want_part in zip(run(sample), want, strict=True):
            for part, tensor in got_part.items():
                assert_equal(part, tensor, want_part[part])


RACES = [gru(40, 64, 256), gru(40, 64, 1024), posterior(40, 64, 500, 100), interleaved(40, 64, 256, 250, 130, 60)]


@pytest.mark.parametrize("sample", RACES, ids=str)
def test_exchanges_between_blocks_do_not_race(sample: Sample) -> None:
    """Clusters and grids, many steps: the same bits every time."""
    moved = sample.to("cuda", torch.bfloat16, requires_grad=True)
    want = run(moved)
    for _ in range(20):
        for got_part, want_part in zip(run(moved), want, strict=True):
            for part, tensor in got_part.items():
                assert_equal(part, tensor, want_part[part])


@each_op
def test_the_callers_stream(op: str, name: str) -> None:
    """What the stream still has to write is what the op reads."""
    sample = find_sample(op, name).to("cuda", torch.float32)
    want = sample.run("cuda")
    late = {part: torch.full_like(tensor, float("nan")) for part, tensor in sample.tensors.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for part, tensor in sample.tensors.items():
            late[part].copy_(tensor)
        outputs = sample.replace(late).run("cuda")
    stream.synchronize()
    for part, tensor in outputs.items():
        assert_equal(part, tensor, want[part])


GRAPHED = [gru(6, 9, 40), gru(6, 9, 300), gru(6, 9, 700), posterior(5, 9, 64, 16), interleaved(5, 9, 256, 64, 64, 16)]


@pytest.mark.parametrize("sample", GRAPHED, ids=str)
def test_inside_a_cuda_graph(sample: Sample) -> None:
    """Captured once, forward and backward, and replayed on other values."""
    moved = sample.to("cuda", torch.float32, requires_grad=True)
    weights = cotangents(moved.run("cuda"))

    def step() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        outputs = moved.run("cuda")
        return outputs, gradients(moved, outputs, weights)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in moved.tensors.values():
            tensor.mul_(0.5)
    for _ in range(2):  # the second replay finds what the first one left
        graph.replay()
    for got_part, want_part in zip(captured, step(), strict=True):
        for part, tensor in got_part.items():
            assert_equal(part, tensor, want_part[part])


def test_the_tensors_device_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    sample = gru(4, 3, 20).to("cuda:1", torch.float32)
    with torch.cuda.device(0):
        outputs = sample.run("cuda")
    assert {out.device.index for out in outputs.values()} == {1}
    assert_all_close({k: v.cpu() for k, v in outputs.items()}, expected(sample)[0], 1e-5)


def test_more_than_two_to_the_31_elements() -> None:
    steps, batch, hidden = 12000, 1000, 64
    need = 2.5 * steps * batch * 4 * hidden
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"needs {need / 2**30:.0f} GiB of free memory")
    gates_x = torch.zeros(steps, batch, 3 * hidden, device="cuda", dtype=torch.float16)
    gates_x[-3:, -1] = 0.5
    assert gates_x.numel() > 2**31
    weights = torch.randn(3 * hidden, hidden, device="cuda", dtype=torch.float16) / hidden**0.5
    bias = torch.zeros(3 * hidden, device="cuda", dtype=torch.float16)
    h0 = torch.zeros(batch, hidden, device="cuda", dtype=torch.float16)
    output, _ = vssn_kernels.gru_sequence(gates_x, h0, weights, bias, backend="cuda")
    last, _ = vssn_kernels.gru_sequence(gates_x[-3:, -1:], h0[-1:], weights, bias, backend="cuda")
    assert not output[:-3].any()
    assert_equal("the last steps of the last row", output[-3:, -1:], last)
