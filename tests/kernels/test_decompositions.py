"""The ops taken apart into PyTorch's own: the same numbers and gradients, over a dynamic number of steps too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import vssn_kernels
from vssn_kernels.ops import decompositions as module
from vssn_kernels.testing import OPS, ROWS, Sample, all_samples, assert_all_close, find_sample, registered

SCANNED = {"gru_sequence": module._gru_sequence, "posterior_sequence": module._posterior_sequence}
needs_scan = pytest.mark.skipif(
    module._scan_op() is None,
    reason=f"torch {torch.__version__} has no scan with tensors that all steps share, nor gradients of one",
)


def form(sample: Sample) -> Any:
    return vssn_kernels.decompositions()[getattr(torch.ops.vssn, registered(sample.op)).default]


def outputs(sample: Sample, found: Any) -> dict[str, Tensor]:
    several = (found,) if isinstance(found, Tensor) else tuple(found)
    return dict(zip(ROWS[sample.op].outputs, several, strict=False))  # behind them stands what backward would need


@pytest.mark.parametrize("sample", all_samples(), ids=str)
def test_an_op_is_what_it_is_made_of(sample: Sample) -> None:
    found = form(sample)(*sample.forward_arguments("reference"))
    assert_all_close(outputs(sample, found), sample.run_plain(), 1e-12)


@needs_scan
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "sample", [s for s in all_samples() if s.op in SCANNED and "no_steps" not in s.name and s.name != "empty"], ids=str
)
def test_step_by_step_is_the_whole(sample: Sample, dtype: torch.dtype) -> None:
    sample = sample.to("cpu", dtype)
    found = outputs(sample, SCANNED[sample.op](*sample.forward_arguments("reference")))
    want = sample.run("reference")
    assert {name: part.dtype for name, part in found.items()} == {name: part.dtype for name, part in want.items()}
    assert_all_close(found, want, 1e-12 if dtype == torch.float64 else 5e-3)


class Call(nn.Module):
    """An op of a sample's weights, as a module of its sequences."""

    def __init__(self, sample: Sample, moving: tuple[str, ...]) -> None:
        super().__init__()
        self.sample = sample
        self.weights = nn.ParameterDict(
            {name.replace(".", "_"): nn.Parameter(t) for name, t in sample.tensors.items() if name not in moving}
        )

    def forward(self, sequences: dict[str, Tensor], lengths: Tensor | None) -> list[Tensor]:
        given = {name: sequences.get(name, self.weights.get(name.replace(".", "_"))) for name in self.sample.tensors}
        return list(self.sample.replace(given, lengths=lengths).run().values())


@needs_scan
@pytest.mark.parametrize("name", SCANNED)
def test_a_dynamic_number_of_steps(name: str) -> None:
    """The rich samples: a reversed GRU and a residual posterior, with lengths; values and gradients."""
    sample = find_sample(name, ROWS[name].rich).to("cpu", torch.float64)
    moving = ("gates_x", "h0", "context", "eps", "z0", "prior.context")
    steps, batch = Dim("T"), Dim("B")
    call = Call(sample, moving)

    def arguments(t: int, b: int) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(t)
        sequences = {}
        for part, tensor in sample.tensors.items():
            if part in moving:
                leading = (t, b) if tensor.dim() == 3 else (b,)
                sequences[part] = torch.randn(*leading, tensor.shape[-1], dtype=torch.float64)
        return sequences, torch.arange(b).remainder(t + 1)

    example = arguments(4, 3)
    shapes = {key: ({0: steps, 1: batch} if t.dim() == 3 else {0: batch}) for key, t in example[0].items()}
    exported = export(call, example, dynamic_shapes=(shapes, {0: batch}))
    apart = exported.run_decompositions(vssn_kernels.decompositions())
    targets = [str(node.target) for node in apart.graph.nodes]
    assert "scan" in targets
    assert not [target for target in targets if target.startswith("vssn")]
    for t, b in ((7, 5), (4, 3), (2, 9)):
        given = arguments(t, b)
        found = {}
        for kind, function in (("op", call), ("apart", apart.module())):
            call.zero_grad()
            results = function(*given)
            sum((part * torch.linspace(-1, 2, part.numel()).view_as(part)).sum() for part in results).backward()
            grads = {name: parameter.grad.clone() for name, parameter in call.named_parameters()}
            found[kind] = dict(zip(ROWS[name].outputs, results, strict=True)) | grads
        assert_all_close(found["apart"], found["op"], 1e-11, f"T = {t}, B = {b}")


@pytest.mark.parametrize("name", SCANNED)
def test_a_torch_without_such_a_scan_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_scan_op", lambda: None)
    sample = find_sample(name, ROWS[name].rich)
    with pytest.raises(ImportError, match=r"^a dynamic T needs a newer torch\.ops\.higher_order\.scan than torch \d"):
        SCANNED[name](*sample.forward_arguments("reference"))


def test_every_op_has_a_form_and_one_that_keeps_its_backward_stays() -> None:
    table = vssn_kernels.decompositions()
    assert {str(op) for op in table} == {f"vssn.{registered(op)}.default" for op in OPS}
    sample = find_sample("gru_sequence", "plain")
    assert form(sample)(*sample.forward_arguments("reference", need_backward=True)) is NotImplemented
