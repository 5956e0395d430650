"""posterior_sequence of the cuda backend on the host: every variant, dtype, activation and order of the fibers."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import cuda_host as host
import pytest
import torch
from cuda_host import check, run, without_products

from vssn_kernels.testing import (
    Sample,
    assert_equal,
    posterior_samples,
    strided,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIANTS = ("choice", "registers", "shared", "cluster", "scatter", "streamed")
TF32_TOLERANCES = (2e-3, 6e-3)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True)
def kernels(cuda_host: ModuleType) -> Iterator[ModuleType]:
    """The backend's module, as it was found after each test."""
    from vssn_kernels.backend.cuda import posterior

    yield posterior
    posterior.variant = "choice"
    cuda_host.set_order("forward")
    cuda_host.set_device_limits(*host.HOPPER)


# A slope with a jump turns a rounding error near 0 into a whole gradient: half precision takes the smooth ones here.
def draw(
    steps: int, batch: int, hidden: int, latent: int, prior: bool = True, lengths: bool = True, **options: Any
) -> Sample:
    shapes = {
        "context": (steps, batch, hidden),
        "z0": (batch, latent),
        "eps": (steps, batch, latent),
        "weight_z": (hidden, latent),
        "weight_out": (2 * latent, hidden),
        "bias_out": (2 * latent,),
        "prior.context": (steps, batch, hidden),
        "prior.weight_z": (hidden, latent),
        "prior.weight_mu": (latent, hidden),
        "prior.bias_mu": (latent,),
    }
    scales = {"weight_z": latent**-0.5, "weight_out": hidden**-0.5, "weight_mu": hidden**-0.5, "bias_out": 1.0}
    tensors = {
        name: torch.randn(shape, dtype=torch.float64) * scales.get(name.removeprefix("prior."), 2.0) / 2
        for name, shape in shapes.items()
        if prior or not name.startswith("prior.")
    }
    if lengths:
        options["lengths"] = torch.randint(0, steps + 1, (batch,))
    return Sample("posterior_sequence", f"{steps}x{batch}x{hidden}x{latent}", tensors, options)


def takes(kernels: Any, variant: str, dtype: torch.dtype, hidden: int, latent: int, prior: bool = True) -> bool:
    """Whether the variant, now set, can hold the size."""
    kernels.variant = variant
    try:
        return all(kernels.plan(dtype, hidden, latent, prior, backward).cluster for backward in (False, True))
    except RuntimeError as error:
        if f"no {variant} can hold M={hidden}, Z={latent}" in str(error):
            return False
        raise


@pytest.mark.parametrize("sample", posterior_samples(), ids=str)
@each_dtype
def test_every_sample(sample: Sample, dtype: torch.dtype) -> None:
    check(sample, dtype)


@pytest.mark.parametrize("sizes", [(3, 9, 50, 17), (3, 8, 65, 33), (2, 3, 40, 40)], ids=str)
@each_variant
@each_dtype
def test_every_variant_in_every_order(
    cuda_host: ModuleType, kernels: Any, dtype: torch.dtype, variant: str, sizes: tuple[int, ...]
) -> None:
    sample = draw(*sizes, activation="silu" if sizes[0] == 2 else "tanh")
    if not takes(kernels, variant, dtype, *sizes[2:]):
        assert variant == "registers"
        assert dtype == torch.float32
        return
    first = None
    for order in host.ORDERS:
        cuda_host.set_order(order)
        results = without_products(check(sample, dtype))
        first = first or results
        for name, tensor in results.items():
            assert_equal(f"{name} ({order})", tensor, first[name])


# A cluster of 2, 4 and 8; weights that do not fit; hidden buffers that hold a part of the tiles.
@pytest.mark.parametrize(
    "limits",
    [
        (90, 8, 227 * 1024, 2),
        (90, 8, 227 * 1024, 4),
        (90, 8, 227 * 1024, 8),
        (90, 8, 24 * 1024, 4),
        (90, 8, 9 * 1024, 8),
        (80, 8, 24 * 1024, 1),
        (80, 8, 9 * 1024, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", ["choice", "cluster", "scatter", "streamed"])
@pytest.mark.parametrize("prior", [False, True])
@each_dtype
def test_device_limits(
    cuda_host: ModuleType, kernels: Any, dtype: torch.dtype, prior: bool, variant: str, limits: tuple[int, ...]
) -> None:
    cuda_host.set_device_limits(*limits)
    cuda_host.set_order("shuffle_threads")
    if takes(kernels, variant, dtype, 150, 17, prior):
        check(draw(3, 9, 150, 17, prior), dtype)
    else:
        assert variant in ("cluster", "scatter")


def test_sizes_beyond_the_device_are_named(cuda_host: ModuleType, kernels: Any) -> None:
    cuda_host.set_device_limits(80, 8, 8 * 1024, 1)
    with pytest.raises(RuntimeError, match=r"no variant can hold M=4, Z=400 in the 8192 bytes"):
        draw(1, 1, 4, 400).to("cpu", torch.float32).run("cuda")


@each_variant
@each_dtype
def test_padding_is_never_read(kernels: Any, dtype: torch.dtype, variant: str) -> None:
    sample = draw(4, 9, 40, 17)
    if not takes(kernels, variant, dtype, 40, 17):
        return
    valid = (torch.arange(4)[:, None] < sample.options["lengths"])[..., None]
    poison = {
        name: torch.where(valid, tensor, torch.nan)
        for name, tensor in sample.tensors.items()
        if name in ("context", "eps", "prior.context")
    }
    clean = without_products(run(sample.to("cpu", dtype, requires_grad=True)))
    outputs, grads = run(sample.replace(poison).to("cpu", dtype, requires_grad=True))
    for name, tensor in without_products((outputs, grads)).items():
        assert_equal(name, tensor, clean[name])
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("kind", ["transposed", "sliced", "batch_first"])
@pytest.mark.parametrize("hidden", [40, 50])
@each_dtype
def test_strides(dtype: torch.dtype, hidden: int, kind: str) -> None:
    sample = draw(3, 5, hidden, 18).to("cpu", dtype)
    views = {name: strided(tensor, kind).requires_grad_() for name, tensor in sample.tensors.items()}
    plain = without_products(run(sample.to("cpu", dtype, requires_grad=True)))
    for name, tensor in without_products(run(sample.replace(views))).items():
        assert_equal(name, tensor, plain[name])


@pytest.mark.parametrize("hidden", [20, 130])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_float_state_beside_half_precision(dtype: torch.dtype, hidden: int) -> None:
    sample = draw(3, 5, hidden, 7).to("cpu", dtype, requires_grad=True)
    z0 = sample.tensors["z0"].detach().float().requires_grad_()
    outputs, grads = run(sample.replace({"z0": z0}))
    assert {tensor.dtype for tensor in outputs.values()} == {dtype}
    assert grads["grad of z0"].dtype == torch.float32
    same_outputs, same_grads = run(sample)
    for name, tensor in outputs.items():
        assert_equal(name, tensor, same_outputs[name])
    assert_equal("grad of z0", grads["grad of z0"].to(dtype), same_grads["grad of z0"])


@each_variant
def test_tf32(kernels: Any, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    monkeypatch.setattr(kernels, "allows_tf32", lambda: True)
    exact = draw(3, 9, 70, 20)
    if takes(kernels, variant, torch.float32, 70, 20):
        check(exact, torch.float32, TF32_TOLERANCES)


def test_gradients_not_needed_are_not_computed(kernels: Any) -> None:
    sample = draw(3, 5, 20, 7).to("cpu", torch.float32)
    *saved, lengths, activation, min_logvar, needs, _ = sample.backward_arguments("cuda")
    full = kernels.posterior_backward(*saved, lengths, activation, min_logvar, needs)
    for only in range(len(needs)):
        asked = [i == only for i in range(len(needs))]
        grads = kernels.posterior_backward(*saved, lengths, activation, min_logvar, asked)
        assert [grad is not None for grad in grads] == asked
        assert_equal(f"gradient {only}", grads[only], full[only])


def test_clusters_that_the_device_does_not_hold_are_not_chosen(cuda_host: ModuleType, kernels: Any) -> None:
    """As in a MIG slice; and few that run at once cost waves."""

    def cluster(batch: int) -> int:
        return int(kernels.plan(torch.float32, 256, 64, False, False, batch=batch).cluster)

    cuda_host.set_device_limits(90, 132, 227 * 1024, 16)
    try:
        assert cluster(128) == 8
        cuda_host.set_clusters_at_once(8, 1)
        assert cluster(8) == 8
        assert cluster(128) < 8, "sixteen waves of clusters of 8"
        for size in (2, 4, 8):
            cuda_host.set_clusters_at_once(size, 0)
        assert cluster(8) == 1
        check(draw(2, 5, 256, 64, prior=False), torch.float32)
    finally:
        cuda_host.set_device_limits(*host.HOPPER)
