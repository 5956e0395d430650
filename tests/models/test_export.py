"""Models in torch.export and ONNX: any T and B, the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import batch, flat, make
from torch import Tensor, nn
from torch.export import Dim, export

import vssn
import vssn_kernels
from vssn.errors import PackageError, TargetError
from vssn.export import FilterStep, GenerationStep, to_onnx, traced_code_is_told
from vssn_kernels.ops import decompositions

needs_scan = pytest.mark.skipif(
    decompositions._scan_op() is None, reason="this PyTorch's scan cannot do what a dynamic T needs"
)
needs_onnx = pytest.mark.skipif(
    not traced_code_is_told(), reason="this PyTorch does not tell traced code that it is for ONNX"
)
DYNAMIC = {0: Dim("T"), 1: Dim("B")}


def shapes(given: dict[str, Any]) -> dict[str, Any]:
    """T and B dynamic in whatever is given."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, tuple):
            found[name] = tuple(DYNAMIC for _ in value)
        else:
            found[name] = None if value is None else {0: DYNAMIC[1]} if name == "lengths" else DYNAMIC
    return found


def given_to(model: vssn.VSSN, steps: int, rows: int, lengths: bool) -> dict[str, Any]:
    given = {name: value for name, value in batch(model, steps, rows).items() if value is not None}
    if lengths:
        given["lengths"] = torch.arange(rows).remainder(steps + 1)
    return given


def assert_same(found: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in want.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("sizes", True),
        ("embedded_both", False),
        ("dkf", False),
        ("smoothing", True),
        ("masked_mixture_embedded", False),
    ],
)
def test_a_model_is_exported_for_any_t_and_b(name: str, lengths: bool) -> None:
    model = make(name)
    example = given_to(model, 6, 3, lengths)
    exported = export(model, (), example, dynamic_shapes=shapes(example))
    apart = exported.run_decompositions(vssn_kernels.decompositions())
    assert not [str(node.target) for node in apart.graph.nodes if "vssn" in str(node.target)]
    programs = exported.module(), apart.module()
    for steps, rows in ((9, 5), (2, 4)):
        given = given_to(model, steps, rows, lengths)
        want = flat(model(**given))
        for program in programs:
            assert_same(flat(program(**given)), want, 1e-10)


@pytest.mark.parametrize("name", ["mixture", "initial_state", "universal"])
def test_other_models_are_exported_too(name: str) -> None:
    model = make(name)
    example = given_to(model, 6, 3, False)
    program = export(model, (), example, dynamic_shapes=shapes(example)).module()
    given = given_to(model, 9, 5, False)
    assert_same(flat(program(**given)), flat(model(**given)), 1e-10)


@pytest.mark.parametrize("dynamic", [pytest.param(True, marks=needs_scan), False])
def test_the_layer_and_the_gru_are_exported(dynamic: bool) -> None:
    layer = vssn.VSSNLayer(4, 5, 3, 2, residual_posterior=True).double().eval()
    gru = vssn.GRU(4, 5, 2, bidirectional=True).double()
    for module, count in ((layer, 2), (gru, 0)):

        def example(steps: int, rows: int, count: int = count) -> dict[str, Any]:
            noise = [torch.randn(steps, rows, size, dtype=torch.float64) for size in (2, 3)[:count]]
            x = torch.randn(steps, rows, 4, dtype=torch.float64)
            return {"x": x, "noise": tuple(noise)} if count else {"input": x}

        given = example(6, 3)
        exported = export(module, (), given, dynamic_shapes=shapes(given) if dynamic else None)
        apart = exported.run_decompositions(vssn_kernels.decompositions())
        assert ("scan" in [str(node.target) for node in apart.graph.nodes]) is dynamic
        given = example(9, 2) if dynamic else given
        want = module(**given)
        for program in (exported, apart):
            found = program.module()(**given)
            torch.testing.assert_close(found[0], want[0], rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both", "masked", "dkf"])
@pytest.mark.parametrize("kind", [FilterStep, GenerationStep])
def test_a_step_is_exported(kind: Any, name: str) -> None:
    step = kind(make(name))
    rows = {0: DYNAMIC[1]}
    example = step.example(3)
    dynamic = {key: tuple(rows for _ in part) if isinstance(part, tuple) else rows for key, part in example.items()}
    exported = export(step, (), example, dynamic_shapes=dynamic)
    given = drawn(step.example(5))
    for found, want in zip(exported.module()(**given), step(**given), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


def drawn(example: dict[str, Any]) -> dict[str, Any]:
    """Numbers in [0, 1] in the place of what a step starts from."""
    return {
        key: tuple(torch.rand_like(one) for one in part) if isinstance(part, tuple) else torch.rand_like(part)
        for key, part in example.items()
    }


@pytest.mark.parametrize("name", ["both", "sizes", "initial_state"])
def test_a_step_is_that_of_the_model(name: str) -> None:
    """The filter's is a chunk of one frame; what it expects is the frame that the means generate."""
    model = make(name, batch_first=True)
    step = FilterStep(model)
    for part, own in zip(step.start(3), model.layer.start_state(None, 3, 4, model.layer.a_parameter()), strict=True):
        assert part.equal(own)
    given = drawn(step.example(3))
    found = step(**given)
    more = {"u": given["u"][:, None]} if "u" in given else {}
    noise = (given["eps_w"][:, None], given["eps_z"][:, None])
    want = model(given["x"][:, None], state=vssn.State(*given["state"]), noise=noise, **more).state
    assert step.outputs == ("predicted", "next_d", "next_z", "next_x_last")
    for part, one, other in zip(step.outputs[1:], found[1:], want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=lambda text, part=part: f"{part}: {text}")
    del given["x"]
    mean, *_ = GenerationStep(model)(**given | {key: 0 * given[key] for key in ("eps_w", "eps_z")})
    torch.testing.assert_close(found[0], mean, rtol=1e-12, atol=1e-12)


def test_a_generated_frame_is_seen_by_what_infers_behind_it() -> None:
    model = vssn.VSSN(4, 5, 3, inference="causal").double()  # without noise d is the same in both parts
    step = GenerationStep(model)
    given = drawn(step.example(3))
    mean, *state = step(**given)
    seen = model(mean[None], state=given["state"]).state
    for name, found in zip(step.kind._fields, state, strict=True):
        if name != "z":
            torch.testing.assert_close(found, getattr(seen, name), rtol=1e-12, atol=1e-12)


# ONNX


def run(file: Path, given: dict[str, Tensor]) -> list[Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(file)
    assert [entry.name for entry in session.get_inputs()] == list(given)
    return [torch.from_numpy(out) for out in session.run(None, {key: part.numpy() for key, part in given.items()})]


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sizes", "embedded_both", "dkf"])
@pytest.mark.parametrize("kind", [FilterStep, GenerationStep])
def test_a_step_runs_in_onnxruntime(kind: Any, name: str, tmp_path: Path) -> None:
    """A few steps in turn, another batch than that of the example."""
    pytest.importorskip("onnx")
    model = make(name, torch.float32)
    step = kind(model.train())
    to_onnx(step, tmp_path / "step.onnx")
    assert model.training
    model.eval()
    given = step.example(5)
    states = [given["state"], given["state"]]
    for number in range(3):
        torch.manual_seed(number)
        rows = {key: torch.rand_like(part) for key, part in given.items() if key != "state"}
        named = dict(zip(("d", "z", "x_last"), states[0], strict=True))
        found = run(tmp_path / "step.onnx", {key: (rows | named)[key] for key in flat_names(given)})
        with torch.no_grad():
            want = step(**rows, state=states[1])
        for one, other in zip(found, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        states = [tuple(found[1:]), tuple(want[1:])]


def flat_names(given: dict[str, Any]) -> list[str]:
    return [own for key in given for own in (("d", "z", "x_last") if key == "state" else (key,))]


class Whole(nn.Module):
    """A model as a module of tensors to tensors."""

    def __init__(self, model: vssn.VSSN) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, eps_w: Tensor, eps_z: Tensor) -> tuple[Tensor, ...]:
        output = self.model(x, noise=(eps_w, eps_z))
        return output.elbo, output.state.d, output.state.z


@needs_onnx
def test_a_whole_model_runs_in_onnxruntime_for_any_t(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model = make("sizes", torch.float32)
    names = ("x", "eps_w", "eps_z")

    def given(steps: int, rows: int) -> dict[str, Tensor]:
        own = batch(model, steps, rows)
        return dict(zip(names, (own["x"], *own["noise"]), strict=True))

    program = to_onnx(
        Whole(model),
        tmp_path / "model.onnx",
        tuple(given(6, 3).values()),
        dynamic_shapes=(DYNAMIC,) * 3,
        input_names=names,
    )
    assert [node.op_type for node in program.model_proto.graph.node].count("Scan") == 3
    own = given(11, 4)
    for found, want in zip(run(tmp_path / "model.onnx", own), Whole(model)(**own), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


@needs_onnx
@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "options", [{"bias": False}, {}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}], ids=str
)
def test_a_gru_is_the_node_of_torch_s(options: dict[str, Any], tmp_path: Path) -> None:
    """By torch.onnx.export itself; and where a state is given."""
    pytest.importorskip("onnx")
    theirs = nn.GRU(4, 5, **options).eval()
    ours = vssn.GRU(4, 5, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    states = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    x, h = torch.randn(6, 3, 4), torch.randn(states, 6 if options.get("batch_first") else 3, 5)
    for args in ((x,), (x, h)):
        nodes = []
        for module, name in ((theirs, "theirs"), (ours, "ours")):
            program = torch.onnx.export(module, args, input_names=["x", "h"][: len(args)], dynamo=True, verbose=False)
            program.save(tmp_path / f"{name}.onnx")
            graph = program.model_proto.graph
            initial = {entry.name: entry for entry in graph.initializer}
            grus = [node for node in graph.node if node.op_type == "GRU"]
            attributes = [sorted((a.name, str(a)) for a in node.attribute) for node in grus]
            weights = [[list(initial[name].dims) for name in node.input[1:4] if name] for node in grus]
            nodes.append((attributes, weights))
        assert nodes[0] == nodes[1]
        assert len(nodes[0][0]) == options.get("num_layers", 1)
        given = dict(zip(("x", "h"), args, strict=False))
        ours_found, theirs_found = (run(tmp_path / f"{name}.onnx", given) for name in ("ours", "theirs"))
        for one, other, want in zip(ours_found, theirs_found, theirs(*args), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
            torch.testing.assert_close(one, want, rtol=1e-5, atol=1e-5)


@needs_onnx
@pytest.mark.slow
def test_a_gru_with_lengths_runs_in_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    gru = vssn.GRU(4, 5, bidirectional=True).eval()

    class WithLengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru

        def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            output, h_n = self.gru(x, lengths=lengths)
            return output, h_n

    to_onnx(
        WithLengths(),
        tmp_path / "gru.onnx",
        (torch.randn(6, 3, 4), torch.tensor([6, 2, 3])),
        dynamic_shapes=(DYNAMIC, {0: DYNAMIC[1]}),
        input_names=("x", "lengths"),
    )
    given = {"x": torch.randn(8, 4, 4), "lengths": torch.tensor([8, 0, 3, 1])}
    for found, want in zip(run(tmp_path / "gru.onnx", given), WithLengths()(**given), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


@needs_onnx
def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"^file: cannot write .*x\.onnx \(No such file or directory\)"):
        to_onnx(GenerationStep(make(dtype=torch.float32)), tmp_path / "no" / "x.onnx")


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"^model must be a SequenceModel"):
        FilterStep(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^args must be given"):
        to_onnx(nn.Linear(1, 1), tmp_path / "x.onnx")
    with pytest.raises(TypeError, match=r"^module must be a torch\.nn\.Module, got int"):
        to_onnx(3, tmp_path / "x.onnx")  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(vssn.export, "traced_code_is_told", lambda: False)
        with pytest.raises(PackageError, match=r"^an export to ONNX needs a newer \S+ than torch \S+ has; install "):
            to_onnx(GenerationStep(make()), tmp_path / "x.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(PackageError, match=r"onnx is not installed; .* pip install 'vssn\[onnx\]'$"):
        to_onnx(GenerationStep(make()), tmp_path / "x.onnx")
