"""Which backend runs an op: by argument, by use_backend, by VSSN_BACKEND, by device and dtype; and its errors."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import conftest
import pytest
import torch
from torch import Tensor

import vssn_kernels
from vssn_kernels.backend import cpu, table
from vssn_kernels.reference import mlp as mlp_reference
from vssn_kernels.testing import OPS, ROWS, RecordCalls, Sample, find_sample, ops_of, targets

ROOT = Path(__file__).resolve().parents[2]
ABSENT = [name for name, status in vssn_kernels.backends().items() if status != "available"]
PRESENT = [name for name, status in vssn_kernels.backends().items() if status == "available"]
each_op = pytest.mark.parametrize("op", OPS)
each_op_of_cpu = pytest.mark.parametrize("op", ops_of("cpu"))


def home(backend: str, function: str) -> ModuleType:
    """Where a backend's function is looked up."""
    own = importlib.import_module(f"vssn_kernels.backend.{backend}")
    return table._needs[table._op_of[function]].reference if backend == "reference" else own


def sample(op: str = "gru_sequence", dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> Sample:
    return find_sample(op, ROWS[op].bare).to("cpu", dtype, requires_grad)


def backends_used(function) -> list[str]:
    with RecordCalls() as record:
        function()
    return [arguments[-1] for _, arguments, _ in record.calls]


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("VSSN_BACKEND", "TRITON_INTERPRET")}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture
def without_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if VSSN_BACKEND were not set."""
    monkeypatch.setattr(table, "_ENVIRONMENT", None)


@pytest.fixture
def functions_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The functions of the backends in the order in which they run, as "backend.function"."""
    called: list[str] = []

    def spy(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def spied(*args: Any) -> Any:
            called.append(name)
            return function(*args)

        return spied

    table.implementation.cache_clear()
    for backend in PRESENT:
        for name in table.functions():
            module = home(backend, name)
            if hasattr(module, name):
                monkeypatch.setattr(module, name, spy(f"{backend}.{name}", getattr(module, name)))
    yield called
    table.implementation.cache_clear()


def test_the_four_backends_are_listed() -> None:
    found = vssn_kernels.backends()
    assert list(found) == ["reference", "cpu", "cuda", "triton"]
    assert found["reference"] == "available"
    assert found["cpu"] == "available", "the C++ extension is always built"
    for name in ABSENT:
        assert len(found[name]) > 20, f"{name} says why it is not available and what to do"


@pytest.mark.parametrize("backend", PRESENT)
def test_a_backend_offers_its_functions(backend: str) -> None:
    """Those that the ops need, its own or the reference's, and no other."""
    module = importlib.import_module(f"vssn_kernels.backend.{backend}")
    for name in table.functions():
        if not name.endswith("_output") and table._op_of[name] in ops_of(backend):  # else optional, or not there yet
            assert callable(table.implementation(backend, name))
    assert set(getattr(module, "__all__", ())) <= {*table.functions(), "info"}
    with pytest.raises(AttributeError, match="none_such"):
        _ = module.none_such


@pytest.mark.parametrize("backend", PRESENT)
def test_the_rows_say_which_backends_run_an_op(backend: str) -> None:
    """By them tests are left out: a backend that lost a function would fail here."""
    assert tuple(op for op in OPS if table._runs_op(backend, op)) == ops_of(backend)
    assert ops_of("reference") == OPS


@pytest.mark.parametrize(("op", "backend"), [("gaussian_kl", "cpu"), ("gaussian_kl", "reference"), ("mlp", "cpu")])
def test_what_a_backend_lacks_is_not_tested(
    op: str, backend: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This test stands for all with such parameters."""
    monkeypatch.setitem(ROWS, "gaussian_kl", ROWS["gaussian_kl"]._replace(lacking=("cpu",)))
    items, left_out = [request.node], []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    conftest.pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)  # type: ignore[arg-type]
    lacks = (op, backend) == ("gaussian_kl", "cpu")
    assert (items, left_out) == (([], [request.node]) if lacks else ([request.node], []))
    assert ("gaussian_kl" in ops_of(backend)) == (backend != "cpu")


def test_the_ops_are_the_public_functions() -> None:
    assert set(table.ops()) == {name for name in vssn_kernels.__all__ if "backend" in parameters_of(name)}
    assert set(OPS) == set(table.ops())


def parameters_of(name: str) -> set[str]:
    thing = getattr(vssn_kernels, name)
    return set(inspect.signature(thing).parameters) if inspect.isfunction(thing) else set()


# ---- A backend that lacks functions of an op ---------------------------------------------------------------


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Takes a function away from the cpu backend."""

    def forget() -> None:
        table.implementation.cache_clear()
        table.offers.cache_clear()
        table._runs.clear()

    def lack(name: str) -> None:
        monkeypatch.delattr(cpu, name)
        forget()

    forget()
    yield lack
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("name", ["gru_forward", "gru_backward"])
def test_a_backend_that_lacks_a_function_is_passed_by(
    name: str, lacking: Callable[[str], None], without_environment: None
) -> None:
    lacking(name)
    assert set(backends_used(sample().run)) == {"reference"}
    assert set(backends_used(sample("posterior_sequence").run)) == {"cpu"}


@pytest.mark.parametrize("name", ["gru_forward", "gru_backward"])
def test_a_backend_that_lacks_a_function_is_refused_by_name(name: str, lacking: Callable[[str], None]) -> None:
    lacking(name)
    for run in (lambda: sample().run("cpu"), lambda: table.implementation("cpu", "gru_forward")):
        with pytest.raises(ValueError, match=r"^gru_sequence: backend 'cpu' lacks gru_.*backend='reference'") as error:
            run()
        assert "\n" not in str(error.value)
        assert name in str(error.value)


def test_a_backend_without_gru_output_keeps_its_output_unchanged(lacking: Callable[[str], None]) -> None:
    """As PyTorch does for cuDNN's."""
    lacking("gru_output")
    output = sample(requires_grad=True).run("cpu")["output"]
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("name", ["mlp_forward", "mlp_backward"])
def test_what_a_backend_leaves_to_pytorch_is_the_reference(name: str, lacking: Callable[[str], None]) -> None:
    """Both directions: backward reads what its own forward kept."""
    lacking(name)
    assert table.implementation("cpu", "mlp_forward") is mlp_reference.mlp_forward
    assert table.implementation("cpu", "mlp_backward") is mlp_reference.mlp_backward
    assert set(backends_used(lambda: sample("mlp").run("cpu"))) == {"cpu"}


# An op with the reference backend alone: what its two files hold.
TOY_REFERENCE = """
def double(x):
    return 2 * x

def double_forward(x):
    return 2 * x

def double_backward(grad):
    return (2 * grad,)
"""
TOY_OP = """
import toy_reference as reference
import torch
from vssn_kernels import arguments
from vssn_kernels.backend.table import choose, declare, implementation
from vssn_kernels.ops import registration

_OP = "double"
declare(_OP, functions=("double_forward", "double_backward"), reference=reference)

def double(x, *, backend=None):
    arguments.require_tensors(_OP, x=x)
    return _op(x, choose(_OP, backend, x.device, x.dtype))

def _kernel(x, backend):
    return implementation(backend, "double_forward")(x)

def _backward_kernel(grad, backend):
    return implementation(backend, "double_backward")(grad)[0]

registration.define("double(Tensor x, str backend) -> Tensor", _kernel, lambda x, backend: x.new_empty(x.shape))
registration.define(
    "double_backward(Tensor grad, str backend) -> Tensor",
    _backward_kernel,
    lambda grad, backend: grad.new_empty(grad.shape),
)
_op, _backward_op = registration.caller(_OP), registration.caller("double_backward")

class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, x, backend):
        ctx.backend = backend
        return run(x, backend)

    @staticmethod
    def backward(ctx, grad):
        return None, _backward_op(grad, ctx.backend), None

registration.define_autograd(_OP, _Double, lambda x, backend: reference.double(x))
registration.define_first_order("double_backward", _OP)
"""
TOY_USE = """
import torch, vssn_kernels
from vssn_kernels.backend import reference, table
from vssn_kernels.testing import RecordCalls
from toy_op import double

assert table.ops()[-1] == "double"
assert reference.double_forward(3) == 6
x = torch.randn(3, requires_grad=True)
compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
for run in (compiled, double):
    x.grad = None
    result = run(x)
    result.sum().backward()
    assert torch.equal(result, 2 * x) and torch.equal(x.grad, torch.full((3,), 2.0))
torch.autograd.gradcheck(double, (x.detach().double().requires_grad_(),))
assert torch.func.jvp(double, (x,), (torch.ones(3),))[1].tolist() == [2, 2, 2]
with RecordCalls() as record:
    double(x)
    double(x, backend="reference")
assert [arguments[-1] for _, arguments, _ in record.calls] == ["reference", "reference"]
broken = torch.compile(double, backend="aot_eager")
for wanted in (lambda: double(x, backend="cpu"), lambda: broken(x, backend="cpu")):
    try:
        wanted()
    except ValueError as error:
        print(str(error).splitlines()[0])
with vssn_kernels.use_backend("cpu"):
    vssn_kernels.gaussian_kl(x, x)
    try:
        double(x)
    except ValueError as error:
        print(error)
"""


def test_an_op_with_the_reference_backend_alone(tmp_path: Path) -> None:
    """Two files; no backend and no list knows of it."""
    for name, text in (("toy_reference", TOY_REFERENCE), ("toy_op", TOY_OP), ("use", TOY_USE)):
        (tmp_path / f"{name}.py").write_text(text)
    result = in_a_process("from use import *", PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT))))
    refusal = "double: backend 'cpu' lacks double_forward, double_backward; use backend='reference', or name none"
    assert result.stdout.splitlines() == [refusal] * 3, result.stdout + result.stderr


def test_the_list_is_the_callers_own() -> None:
    vssn_kernels.backends()["cpu"] = "changed"
    assert vssn_kernels.backends()["cpu"] != "changed"


@each_op_of_cpu
def test_choice_without_a_name(op: str, without_environment: None) -> None:
    """CPU tensors go to cpu; to the reference where cpu does not take the dtype."""
    for dtype, want in (
        (torch.float32, "cpu"),
        (torch.float64, "cpu"),
        (torch.bfloat16, "cpu"),
        (torch.float16, "reference"),
    ):
        here = sample(op, dtype)
        assert backends_used(here.run) == [want], dtype


@each_op_of_cpu
def test_the_argument_wins_over_use_backend(op: str) -> None:
    here = sample(op)
    with vssn_kernels.use_backend("cpu"):
        assert backends_used(here.run) == ["cpu"]
        assert backends_used(lambda: here.run("reference")) == ["reference"]


def test_use_backend_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_ENVIRONMENT", "reference")
    here = sample()
    assert backends_used(here.run) == ["reference"]
    with vssn_kernels.use_backend("cpu"):
        assert backends_used(here.run) == ["cpu"]


def test_use_backend_nests_and_ends(without_environment: None) -> None:
    here = sample()
    with vssn_kernels.use_backend("reference"):
        with vssn_kernels.use_backend("cpu"):
            assert backends_used(here.run) == ["cpu"]
        assert backends_used(here.run) == ["reference"]
        with pytest.raises(KeyError), vssn_kernels.use_backend("cpu"):
            raise KeyError
        assert backends_used(here.run) == ["reference"]
    assert backends_used(here.run) == ["cpu"]


def test_use_backend_holds_in_its_own_thread(without_environment: None) -> None:
    used: dict[str, list[str]] = {}
    here = sample()

    def other() -> None:
        used["other"] = backends_used(here.run)
        with vssn_kernels.use_backend("reference"):
            inside.set()
            leave.wait(10)

    inside, leave = threading.Event(), threading.Event()
    with vssn_kernels.use_backend("reference"):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
    used["main"] = backends_used(here.run)  # while the other thread is inside its block
    leave.set()
    thread.join()
    assert used == {"other": ["cpu"], "main": ["cpu"]}


@pytest.mark.parametrize(("forward", "backward"), [("reference", "cpu"), ("cpu", "reference")])
@each_op
def test_backward_uses_the_backend_of_forward(op: str, forward: str, backward: str) -> None:
    here = sample(op, requires_grad=True)
    with vssn_kernels.use_backend(forward):
        outputs = here.run()
    total = sum(out.sum() for out in outputs.values())
    with vssn_kernels.use_backend(backward):
        assert backends_used(total.backward) == [forward]


@pytest.mark.parametrize("backend", [name for name in PRESENT if name in ("reference", "cpu")])
@each_op
def test_the_named_backend_is_the_one_that_runs(op: str, backend: str, functions_run: list[str]) -> None:
    """Not only named in the op's arguments: its own function is called, forward and backward."""
    outputs = sample(op, requires_grad=True).run(backend)
    sum(out.sum() for out in outputs.values()).backward()
    assert functions_run == [f"{backend}.{name}" for name in table._needs[op].functions]


# ---- Errors --------------------------------------------------------------------------------------


@each_op
def test_an_unknown_backend_raises(op: str) -> None:
    with pytest.raises(ValueError, match=f"{op}: backend must be one of reference, cpu, cuda, triton, got 'fast'"):
        sample(op).run("fast")


@pytest.mark.parametrize("name", ["fast", "", "CPU", None, 3])
def test_use_backend_refuses_what_it_does_not_know(name: object) -> None:
    with pytest.raises(
        (ValueError, TypeError), match="use_backend: name must be one of reference, cpu, cuda, triton, got"
    ):
        vssn_kernels.use_backend(name).__enter__()


@pytest.mark.parametrize("name", ["", 3, torch.device("cpu")])
def test_an_argument_that_names_no_backend_raises(name: object) -> None:
    """The empty string too: only None leaves the choice open."""
    with pytest.raises((ValueError, TypeError), match="backend must be one of reference, cpu, cuda, triton, got"):
        sample().run(name)


@pytest.mark.parametrize("name", ABSENT)
def test_an_absent_backend_raises_and_says_why(name: str) -> None:
    why = vssn_kernels.backends()[name]
    for call in (lambda: sample().run(name), lambda: vssn_kernels.use_backend(name).__enter__()):
        with pytest.raises(ValueError, match=f"'{name}' is not available") as caught:
            call()
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)


@each_op_of_cpu
def test_a_named_backend_refuses_a_dtype_that_it_does_not_take(op: str) -> None:
    takes = "torch.bfloat16, torch.float32, torch.float64"
    with pytest.raises(ValueError, match=rf"{op}: backend 'cpu' takes {takes}, got \w+ of torch.float16; convert"):
        sample(op, torch.float16).run("cpu")


# ---- Environment ---------------------------------------------------------------------------------

PRINT_CHOICE = """
import os, torch, vssn_kernels
from vssn_kernels.testing import RecordCalls
def used():
    with RecordCalls() as record:
        vssn_kernels.gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3))
    return record.calls[0][1][-1]
print(used())
os.environ["VSSN_BACKEND"] = "cpu"
print(used())
"""


def test_the_environment_variable_is_read_once_at_import() -> None:
    result = in_a_process(PRINT_CHOICE, VSSN_BACKEND="reference")
    assert result.stdout.split() == ["reference", "reference"], result.stderr


def test_a_wrong_environment_variable_raises_at_import() -> None:
    result = in_a_process("import vssn_kernels", VSSN_BACKEND="fast")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: environment variable VSSN_BACKEND: backend must be one of")
    assert last.endswith("got 'fast'")


def test_info_names_versions_and_every_backend() -> None:
    text = vssn_kernels.info()
    for part in (vssn_kernels.__version__, torch.__version__, sys.version.split()[0]):
        assert part in text
    for name, status in vssn_kernels.backends().items():
        assert f"{name}: {status}" in text


# ---- Compiled code -------------------------------------------------------------------------------


@each_op_of_cpu
def test_compiled_code_follows_use_backend(op: str, without_environment: None, functions_run: list[str]) -> None:
    """A function compiled once runs on the backend that is named now, backward included."""
    here = sample(op, requires_grad=True)
    compiled = torch.compile(lambda of: of.run(), fullgraph=True, backend="aot_eager")
    both = table._needs[op].functions

    def ran() -> list[str]:
        functions_run.clear()
        torch.autograd.grad(sum(out.sum() for out in compiled(here).values()), list(here.tensors.values()))
        return functions_run

    for name in ("reference", "cpu", "reference"):
        with vssn_kernels.use_backend(name):
            assert ran() == [f"{name}.{function}" for function in both]
    assert ran() == [f"cpu.{function}" for function in both]


def test_compiled_code_follows_use_backend_in_another_thread(
    without_environment: None, functions_run: list[str]
) -> None:
    here = sample()
    compiled = torch.compile(lambda of: of.run()["output"], fullgraph=True, backend="aot_eager")
    with vssn_kernels.use_backend("reference"):
        compiled(here)
        thread = threading.Thread(target=compiled, args=(here,))
        thread.start()
        thread.join()
        compiled(here)
    assert functions_run == ["reference.gru_forward", "cpu.gru_forward", "reference.gru_forward"]


def test_a_backend_named_in_compiled_code(without_environment: None, functions_run: list[str]) -> None:
    def function(of: Sample) -> Tensor:
        return of.run("reference")["output"] + of.run("cpu")["output"]

    torch.compile(function, fullgraph=True, backend="aot_eager")(sample())
    assert sorted(functions_run) == ["cpu.gru_forward", "reference.gru_forward"]


def test_a_wrong_backend_raises_in_compiled_code_too() -> None:
    compiled = torch.compile(lambda of: of.run("fast"), backend="aot_eager")
    with pytest.raises(ValueError, match="gru_sequence: backend must be one of"):
        compiled(sample())


# ---- Where the tests run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("here", ["cuda", "xpu", None])
def test_targets_are_devices_of_this_machine(here: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton takes CUDA and Intel tensors: a machine with one kind has no target of the other."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for name in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, name), "is_available", lambda name=name: name == here)
    for backend in ("cuda", "triton"):
        monkeypatch.setitem(table.BACKENDS, backend, table.BACKENDS[backend]._replace(status="available"))
    found = {(target.backend, target.device) for target in targets(torch.float32)}
    assert {device for _, device in found} == {"cpu", here} - {None}
    assert {backend for backend, device in found if device == "cpu"} == {"reference", "cpu"}
    on_gpu = {"cuda": {"reference", "cuda", "triton"}, "xpu": {"reference", "triton"}, None: set()}
    assert {backend for backend, device in found if device != "cpu"} == on_gpu[here]
