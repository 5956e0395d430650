"""interleaved_sequence of the cuda backend on the host: every variant, dtype, activation and order of the fibers."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import cuda_host as host
import pytest
import torch
from cuda_host import check, run, without_products

from vssn_kernels.activations import MORE_ACTIVATIONS
from vssn_kernels.testing import Sample, assert_equal, find_sample, interleaved_samples, strided

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIANTS = ("choice", "block", "cluster", "streamed")
TF32_TOLERANCES = (2e-3, 6e-3)
STATES = ("h0", "z0", "reset_h", "reset_z")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True)
def kernels(cuda_host: ModuleType) -> Iterator[ModuleType]:
    """The backend's module, as it was found after each test."""
    from vssn_kernels.backend.cuda import interleaved

    yield interleaved
    interleaved.variant = "choice"
    cuda_host.set_order("forward")
    cuda_host.set_device_limits(*host.HOPPER)


# Smooth activations: a slope with a jump turns a rounding error near 0 into a whole gradient in half precision.
def draw(
    steps: int, batch: int, *sizes: int, anew: bool = True, lengths: bool = True, resets: bool = True, **options: Any
) -> Sample:
    """sizes: H, E, M, Z"""
    size, embed, hidden, latent = sizes
    shapes = {
        "gates_x": (steps, batch, 3 * size),
        "embed_context": (steps, batch, embed),
        "context": (steps, batch, hidden),
        "h0": (batch, size),
        "z0": (batch, latent),
        "eps": (steps, batch, latent),
        "weight_embed": (embed, latent),
        "weight_zh": (3 * size, embed),
        "weight_hh": (3 * size, size),
        "bias_hh": (3 * size,),
        "weight_h": (hidden, size),
        "weight_out": (2 * latent, hidden),
        "bias_out": (2 * latent,),
        "reset_h": (batch, size),
        "reset_z": (batch, latent),
    }
    inward = {"weight_embed": latent, "weight_zh": embed, "weight_hh": size, "weight_h": size, "weight_out": hidden}
    tensors = {
        name: torch.randn(shape, dtype=torch.float64) / (2 * inward.get(name, 1) ** 0.5)
        for name, shape in shapes.items()
        if (anew and resets) or not name.startswith("reset_")
    }
    if lengths:
        options["lengths"] = torch.randint(0, steps + 1, (batch,))
    if resets:
        options["resets"] = torch.rand(steps, batch) < 0.4
    options = {"embed_activation": "elu", "activation": "tanh"} | options
    return Sample("interleaved_sequence", f"{steps}x{batch}x{sizes}", tensors, options)


def takes(kernels: Any, variant: str, dtype: torch.dtype, *sizes: int) -> bool:
    """Whether the variant, now set, can hold the sizes in both directions."""
    kernels.variant = variant
    try:
        return all(
            kernels.plan(dtype, kernels.Sizes(*sizes), backward, with_resets=True).cluster for backward in (False, True)
        )
    except RuntimeError as error:
        if f"no {variant} can hold H={sizes[0]}, E={sizes[1]}" in str(error):
            return False
        raise


@pytest.mark.parametrize("sample", [sample for sample in interleaved_samples() if sample.name != "one"], ids=str)
@each_dtype
def test_every_sample(sample: Sample, dtype: torch.dtype) -> None:
    """But the one of single numbers, whose gradients in half precision cancel: test_cuda_ops.py has it in float32."""
    check(sample, dtype)


@pytest.mark.parametrize("activation", MORE_ACTIVATIONS)
@pytest.mark.parametrize("scale", ["logvar", "softplus"])
def test_every_activation_in_every_form(kernels: Any, activation: str, scale: str) -> None:
    sample = draw(3, 3, 34, 18, 33, 5, activation=activation, embed_activation=activation, scale=scale)
    for variant in VARIANTS:
        assert takes(kernels, variant, torch.float32, 34, 18, 33, 5)
        check(sample, torch.float32)


# Tiles that a block lacks (E and Z in a cluster), odd and even widths, a layer wider than the others.
@pytest.mark.parametrize("sizes", [(3, 9, 50, 17, 35, 9), (3, 8, 34, 82, 50, 18), (2, 3, 40, 24, 40, 40)], ids=str)
@each_variant
@each_dtype
def test_every_variant_in_every_order(
    cuda_host: ModuleType, kernels: Any, dtype: torch.dtype, variant: str, sizes: tuple[int, ...]
) -> None:
    sample = draw(*sizes, anew=sizes[0] == 3, scale="softplus" if sizes[1] == 8 else "logvar")
    assert takes(kernels, variant, dtype, *sizes[2:])
    first = None
    for order in host.ORDERS:
        cuda_host.set_order(order)
        results = without_products(check(sample, dtype))
        first = first or results
        for name, tensor in results.items():
            assert_equal(f"{name} ({order})", tensor, first[name])


@pytest.mark.parametrize("cluster", [2, 4, 8, 16])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_every_size_of_cluster(cuda_host: ModuleType, kernels: Any, dtype: torch.dtype, cluster: int) -> None:
    """With blocks that have a tile of H and M alone."""
    sizes = (16 * cluster, 17, 16 * cluster - 3, 5)
    cuda_host.set_device_limits(90, 16, 227 * 1024, cluster)
    cuda_host.set_order("shuffle_threads")
    assert takes(kernels, "cluster", dtype, *sizes)
    assert kernels.plan(dtype, kernels.Sizes(*sizes), True).cluster == cluster
    check(draw(3, 5, *sizes), dtype)


# Weights that do not fit, in a block and in clusters.
@pytest.mark.parametrize(
    "limits", [(90, 8, 48 * 1024, 4), (90, 8, 30 * 1024, 2), (80, 8, 48 * 1024, 1), (120, 8, 40 * 1024, 8)], ids=str
)
@pytest.mark.parametrize("variant", ["choice", "streamed"])
@each_dtype
def test_device_limits(
    cuda_host: ModuleType, kernels: Any, dtype: torch.dtype, variant: str, limits: tuple[int, ...]
) -> None:
    cuda_host.set_device_limits(*limits)
    cuda_host.set_order("shuffle_threads")
    sizes = (66, 34, 50, 18)
    assert takes(kernels, variant, dtype, *sizes)
    plan = kernels.plan(dtype, kernels.Sizes(*sizes), True, with_resets=True)
    assert plan.shared_bytes <= limits[2]
    check(draw(3, 9, *sizes), dtype)


def test_sizes_beyond_the_device_are_named(cuda_host: ModuleType) -> None:
    cuda_host.set_device_limits(80, 8, 16 * 1024, 1)
    with pytest.raises(
        RuntimeError,
        match=r"^interleaved_sequence: no variant can hold H=400, E=3, M=5, Z=2 in the 16384 bytes .*'reference'$",
    ):
        draw(1, 1, 400, 3, 5, 2).to("cpu", torch.float32).run("cuda")


@each_variant
@each_dtype
def test_padding_is_never_read(kernels: Any, dtype: torch.dtype, variant: str) -> None:
    sample = draw(4, 9, 40, 18, 34, 17)
    assert takes(kernels, variant, dtype, 40, 18, 34, 17)
    valid = (torch.arange(4)[:, None] < sample.options["lengths"])[..., None]
    poison = {
        name: torch.where(valid, tensor, torch.nan)
        for name, tensor in sample.tensors.items()
        if name in ("gates_x", "embed_context", "context", "eps")
    }
    clean = without_products(run(sample.to("cpu", dtype, requires_grad=True)))
    # A reset at padding has no effect.
    resets = sample.options["resets"] | ~valid[..., 0]
    dirty = sample.replace(poison).to("cpu", dtype, requires_grad=True).replace(resets=resets)
    outputs, grads = run(dirty)
    for name, tensor in without_products((outputs, grads)).items():
        assert_equal(name, tensor, clean[name])
    assert all(grad.isfinite().all() for grad in grads.values())


@each_variant
def test_a_reset_stops_what_is_not_finite(kernels: Any, variant: str) -> None:
    """Forward and backward, at every step and in every form: NaN in one stretch stays in it."""
    sizes = (34, 18, 33, 5)
    assert takes(kernels, variant, torch.float32, *sizes)
    sample = draw(5, 2, *sizes, lengths=False, resets=False)
    resets = torch.zeros(5, 2, dtype=torch.bool)
    resets[3, 1] = True
    anew = {"reset_h": torch.randn(2, 34, dtype=torch.float64), "reset_z": torch.randn(2, 5, dtype=torch.float64)}
    clean = sample.replace(anew, resets=resets)
    spoilt = sample.tensors["context"].clone()
    spoilt[1, 1] = torch.nan
    want_outputs, want_grads = run(clean.to("cpu", torch.float32, requires_grad=True))
    outputs, grads = run(clean.replace({"context": spoilt}).to("cpu", torch.float32, requires_grad=True))
    for name, out in outputs.items():
        assert_equal(name, out[3:].detach(), want_outputs[name][3:].detach())
        assert_equal(name, out[:, 0].detach(), want_outputs[name][:, 0].detach())
        assert out[2, 1].isnan().all()
    for name in ("gates_x", "embed_context", "context", "eps"):
        assert_equal(name, grads[f"grad of {name}"][3:], want_grads[f"grad of {name}"][3:])
    for name in ("reset_h", "reset_z"):
        assert_equal(name, grads[f"grad of {name}"], want_grads[f"grad of {name}"])


@pytest.mark.parametrize("kind", ["transposed", "sliced", "batch_first"])
@pytest.mark.parametrize("size", [40, 51])
@each_dtype
def test_strides(dtype: torch.dtype, size: int, kind: str) -> None:
    sample = draw(3, 5, size, 20, 34, 18).to("cpu", dtype)
    views = {name: strided(tensor, kind).requires_grad_() for name, tensor in sample.tensors.items()}
    plain = without_products(run(sample.to("cpu", dtype, requires_grad=True)))
    for name, tensor in without_products(run(sample.replace(views))).items():
        assert_equal(name, tensor, plain[name])


def test_expanded_gates() -> None:
    """gates_x that is the same at every step and row: strides of 0."""
    sample = draw(3, 5, 34, 18, 33, 4)
    expanded = sample.tensors["gates_x"][:1, :1].expand(3, 5, -1)
    outputs, _ = check(sample.replace({"gates_x": expanded}), torch.float32)
    moved = sample.to("cpu", torch.float32)
    views = moved.replace({"gates_x": moved.tensors["gates_x"][:1, :1].expand(3, 5, -1)}).run("cuda")
    for name, tensor in outputs.items():
        assert_equal(name, views[name], tensor.detach())


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("state", STATES)
def test_a_float_state_beside_half_precision(dtype: torch.dtype, state: str) -> None:
    sample = draw(3, 5, 34, 18, 33, 7).to("cpu", dtype, requires_grad=True)
    wide = sample.tensors[state].detach().float().requires_grad_()
    outputs, grads = run(sample.replace({state: wide}))
    assert {tensor.dtype for tensor in outputs.values()} == {dtype}
    assert grads[f"grad of {state}"].dtype == torch.float32
    same_outputs, same_grads = run(sample)
    for name, tensor in outputs.items():
        assert_equal(name, tensor, same_outputs[name])
    assert_equal(state, grads[f"grad of {state}"].to(dtype), same_grads[f"grad of {state}"])


@each_variant
def test_tf32(kernels: Any, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    monkeypatch.setattr(kernels, "allows_tf32", lambda: True)
    assert takes(kernels, variant, torch.float32, 70, 33, 40, 20)
    check(draw(3, 9, 70, 33, 40, 20), torch.float32, TF32_TOLERANCES)


def test_gradients_not_needed_are_not_computed(kernels: Any) -> None:
    for sample in (draw(3, 5, 20, 9, 18, 7), find_sample("interleaved_sequence", "resets")):
        *saved, needs, _ = sample.to("cpu", torch.float32).backward_arguments("cuda")
        full = kernels.interleaved_backward(*saved, needs)
        for only in range(len(needs)):
            asked = [i == only for i in range(len(needs))]
            grads = kernels.interleaved_backward(*saved, asked)
            if full[only] is not None:  # a state for resets that was not given has none
                assert [grad is not None for grad in grads] == asked
                assert_equal(f"gradient {only}", grads[only], full[only])


def test_clusters_that_the_device_does_not_hold_are_not_chosen(cuda_host: ModuleType, kernels: Any) -> None:
    """As in a MIG slice; and few that run at once cost waves."""

    def cluster(batch: int) -> int:
        return int(kernels.plan(torch.float32, kernels.Sizes(256, 256, 256, 64), False, batch=batch).cluster)

    cuda_host.set_device_limits(90, 132, 227 * 1024, 16)
    assert cluster(64) == 16
    cuda_host.set_clusters_at_once(16, 1)
    assert cluster(8) == 16
    assert cluster(64) < 16, "eight waves of clusters of 16"
    for size in (2, 4, 8, 16):
        cuda_host.set_clusters_at_once(size, 0)
    assert cluster(8) == 1
    check(draw(2, 5, 66, 34, 34, 18), torch.float32)
