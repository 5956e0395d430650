"""The compiled kernels take their arguments by name (csrc/common/arguments.h), and the backends pass these names."""

from __future__ import annotations

import ast
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import torch

import vssn_kernels.backend
from vssn_kernels import _cpu

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = Path(vssn_kernels.backend.__file__).parent


def refused(call: Callable[..., object], *values: object, **arguments: object) -> str:
    with pytest.raises(TypeError) as error:
        call(*values, **arguments)
    return str(error.value)


def test_a_missing_an_unknown_and_a_wrongly_typed_argument_is_named() -> None:
    sizes = {"storage": "float32", "function": "tanh", "x": 0, "y": 0, "count": 0}
    where = "vssn_kernels._cpu.evaluate: "
    for name in sizes:
        others = {other: value for other, value in sizes.items() if other != name}
        assert refused(_cpu.evaluate, **others) == f"{where}argument {name!r} is missing"
        unknown = f"{where}there is no argument '{name}_'; it takes storage, function, x, y, count"
        assert refused(_cpu.evaluate, **others, **{f"{name}_": sizes[name]}) == unknown
        assert refused(_cpu.evaluate, **sizes, **{f"{name}_": sizes[name]}) == unknown
    for name, value, expected in (
        ("storage", 0, "one of float32, float64, bfloat16"),
        ("storage", None, "one of float32, float64, bfloat16"),
        ("count", 3.0, "an int"),
        ("count", True, "an int"),
        ("count", None, "an int"),
        ("count", 2**70, "an int"),
        ("x", None, "an address"),
    ):
        wrong = {**sizes, name: value}
        assert refused(_cpu.evaluate, **wrong) == f"{where}{name} must be {expected}, got {value}"
    assert refused(_cpu.evaluate, *sizes.values()) == f"{where}arguments are passed by name"
    by_position = {name: value for name, value in sizes.items() if name != "storage"}
    assert refused(_cpu.evaluate, "float32", **by_position) == f"{where}arguments are passed by name"
    _cpu.evaluate(**sizes)  # what was refused leaves nothing behind


def test_what_has_no_kernel_for_bfloat16_says_so() -> None:
    """Nothing is called through a null entry of the table."""
    absent = (
        *("gru_pack", "gru_step", "gru_layer_step", "gru_cell", "gru_cell_backward", "interleaved_forward"),
        *("interleaved_backward", "mlp_pack", "run_program"),
    )
    zeros = {"an int": 0, "a float": 0.0, "a bool": False, "an address": 0}
    for name in absent:
        empty: dict[str, object] = {}
        for field, kind in _cpu.fields[name].items():
            if kind.startswith("a tuple"):
                empty[field] = (0,) * len(kind.split(","))
            elif kind.startswith("one of "):
                empty[field] = kind.removeprefix("one of ").split(", ")[0]
            else:
                empty[field] = zeros.get(kind, [])
        empty["storage"] = "bfloat16"
        message = f"vssn_kernels._cpu.{name}: storage must be float32 or float64, got bfloat16"
        assert refused(getattr(_cpu, name), **empty) == message


def test_any_order_will_do_and_no_call_remembers_that_of_another() -> None:
    x = torch.linspace(-2, 2, 7)
    results = []
    for turn in range(6):
        y, z = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
        _cpu.evaluate(storage="float32", function="tanh", x=x.data_ptr(), y=y.data_ptr(), count=7)
        _cpu.evaluate(count=7, y=z.data_ptr(), x=x.data_ptr(), storage="float32", function="tanh")
        reordered = {"y": z.data_ptr(), "x": x.data_ptr(), "count": 7, "function": "tanh", "storage": "float32"}
        if turn > 2:
            _cpu.evaluate(**reordered)
        results += [y, z]
    for result in results:
        torch.testing.assert_close(result, x.tanh())
        assert torch.equal(result, results[0])


def test_a_value_of_several_parts_is_checked_in_full() -> None:
    x = torch.ones(2, 3)
    out = torch.empty(2)
    arguments = {
        "storage": "float32",
        "threads": 1,
        "N": 2,
        "X": 3,
        "logits": (x.data_ptr(), 3),
        "x": (x.data_ptr(), 3),
        "log_prob": out.data_ptr(),
    }
    where = "vssn_kernels._cpu.bernoulli_forward: x must be a tuple (data, stride), got "
    for wrong in ((x.data_ptr(),), (x.data_ptr(), 3, 1), (x.data_ptr(), 3.0), x.data_ptr(), None):
        assert refused(_cpu.bernoulli_forward, **{**arguments, "x": wrong}) == f"{where}{wrong}"
    assert refused(_cpu.bernoulli_forward, **{**arguments, "threads": 2**40}).endswith(f"got {2**40}")
    _cpu.bernoulli_forward(**arguments)
    torch.testing.assert_close(out, (x - torch.nn.functional.softplus(x)).sum(1))

    function = refused(_cpu.evaluate, storage="float32", function="sin", x=0, y=0, count=0)
    assert function == (
        "vssn_kernels._cpu.evaluate: function must be one of exp, expm1, log, sigmoid, tanh, softplus, got 'sin'"
    )


def test_the_lists_of_a_linear_maps_inputs_are_of_one_length_and_bounded() -> None:
    kinds = {"an int": 0, "a float": 0.0, "a bool": False, "an address": 0, "a tuple (data, stride)": (0, 0)}
    for name, lists in (
        ("mlp_forward", "K, x and weight"),
        ("mlp_backward", "K, x, weight, grad_x and grad_weight"),
    ):
        fields = _cpu.fields[name]
        of_inputs = [field for field, kind in fields.items() if kind.startswith("a list")]
        assert of_inputs == lists.replace(" and", ",").split(", ")
        rest = {
            field: {"activation": "tanh", "storage": "float32"}.get(field) or kinds[kind]
            for field, kind in fields.items()
            if field not in of_inputs
        }
        values = {field: [kinds[fields[field].removeprefix("a list, each ")]] for field in of_inputs}
        call = getattr(_cpu, name)
        call(**rest, **values)  # no rows
        for field in of_inputs:
            longer = {**values, field: 2 * values[field]}
            message = f"vssn_kernels._cpu.{name}: {lists} must be of one length"
            assert refused(call, **rest, **longer) == message
            too_long = {**values, field: 17 * values[field]}
            assert f": {field} must be a list" in refused(call, **rest, **too_long)


def calls(backend: str) -> Iterator[tuple[str, ast.Call]]:
    """(function, call) for each call of the backend's extension."""
    for path in sorted((BACKENDS / backend).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path.name)):
            match node:
                case ast.Call(ast.Attribute(ast.Name(module), function)) if module == f"_{backend}":
                    yield function, node


def check_calls(backend: str, module: ModuleType) -> None:
    """Each call that spells its arguments out names those that the function takes, and no function is left out."""
    seen = set()
    for function, call in calls(backend):
        seen.add(function)
        names = [keyword.arg for keyword in call.keywords]
        if function in module.fields and None not in names:
            assert not call.args, function
            assert sorted(map(str, names)) == sorted(module.fields[function]), function
    assert seen >= set(module.fields) - {"evaluate"}


def test_the_cpu_backend_names_what_the_kernels_take() -> None:
    check_calls("cpu", _cpu)


def test_the_cuda_backend_names_what_the_kernels_take(cuda_host: ModuleType) -> None:
    """On the host's build, whose bindings are the real ones."""
    check_calls("cuda", cuda_host)
    assert {"steps", "exchange", "gates_x"} <= set(cuda_host.fields["gru_forward"])  # a base, a struct within, its own
    assert cuda_host.fields["gru_forward"]["storage"] == "one of float32, bfloat16, float16"
    sizes = {"storage": "float32", "tf32": False, "B": 8, "M": 16, "Z": 4, "prior": False, "backward": False}
    assert refused(cuda_host.posterior_plan, **sizes, variant="sliced") == (
        "vssn_kernels._cuda.posterior_plan: variant must be one of choice, registers, shared, cluster, scatter, "
        "streamed, got 'sliced'"
    )


SOURCE = """
#include "common/arguments.h"
namespace vssn {{
struct Base {{ int64_t N; VSSN_FIELDS(N) }};
struct Rows {{ const float* data; int64_t stride; VSSN_TENSOR(data{stride}) }};
struct Problem : Base {{ Rows x; bool reverse; int last; VSSN_MORE_FIELDS(Base, x, reverse{last}) }};
void bind(pybind11::module_& module) {{ define<Problem>(module, "run", [](const Problem&) {{}}); }}
}}  // namespace vssn
"""


def compiler_says(folder: Path, **left: str) -> str:
    source = folder / "problem.cpp"
    source.write_text(SOURCE.format(**{"stride": ", stride", "last": ", last", **left}))
    includes = [f"-I{path}" for path in (ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"])]
    command = ["g++", "-std=c++17", "-fsyntax-only", "-fvisibility=hidden", "-Wall", "-Wextra", *includes, str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_a_field_that_is_not_named_does_not_compile(tmp_path: Path) -> None:
    assert compiler_says(tmp_path) == ""
    assert "VSSN_FIELDS must name every member" in compiler_says(tmp_path, last="")
    assert "VSSN_TENSOR must name every member" in compiler_says(tmp_path, stride="")
