"""Imports flow one way, importing is light, and what is public is documented."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vssn
import vssn_kernels
from vssn_kernels.testing import OPS

ROOT = Path(__file__).resolve().parent.parent
# From the bottom up: one row a package; a module imports from lower rows, or from its own.
LAYERS = (
    ("vssn_kernels.activations", "vssn_kernels.arguments", "vssn_kernels.version"),
    ("vssn_kernels.reference",),
    ("vssn_kernels.backend",),
    ("vssn_kernels.ops",),
    ("vssn_kernels",),
    ("vssn.errors", "vssn.utils"),
    ("vssn.data",),
    ("vssn.nn",),
    ("vssn.likelihoods",),
    ("vssn.models",),
    ("vssn.inference",),
    ("vssn.export", "vssn.output"),
    ("vssn.training", "vssn.configs"),
    ("vssn.demo", "vssn.estimator"),
    ("vssn.experiments",),
    ("vssn.cli", "vssn.__main__"),
    ("vssn",),
)
# What any model does by its other methods stands further up: a method imports it where it is called, and hands over.
HANDED_OVER = {
    "vssn.nn.interface": {
        f"vssn.inference.{name}" for name in ("forecasting", "frame_scores", "imputation", "latents", "streaming")
    }
}
EXTENSIONS = ("vssn_kernels._cpu", "vssn_kernels._cuda")
TRAINING_ONLY = ("triton", "lightning", "pytorch_lightning", "scipy", "matplotlib", "pydantic", "yaml", "tensorboard")


def modules(*packages: str) -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    found = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules("vssn_kernels", "vssn")
BENCHMARKS = modules("benchmarks")
EVERYWHERE = MODULES | BENCHMARKS


DOCUMENTS = ("README.md", "CONTRIBUTING.md", "vssn_kernels/README.md", "benchmarks/README.md")
FOLDERS = ("benchmarks", "csrc", "tests", "vssn", "vssn_kernels")
SOURCES = ("py", "pyi", "h", "cpp", "cu", "cuh", "md", "yaml", "toml", "txt")
SUFFIXES = "|".join(SOURCES)


def layer_of(module: str) -> int:
    """The layer with the longest prefix of the module's name."""
    best = (0, len(LAYERS))
    for number, names in enumerate(LAYERS):
        for name in names:
            exact_only = name in ("vssn", "vssn_kernels") and module not in (name, "vssn_kernels.testing")
            if not exact_only and (module == name or module.startswith(f"{name}.")):
                best = max(best, (len(name), number))
    return best[1]


def imports(module: str) -> Iterator[str]:
    """The project's modules that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(EVERYWHERE[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in set(names).difference(EXTENSIONS):
            while name and name not in EVERYWHERE:
                name = name.rpartition(".")[0]
            if name:
                yield name


def test_every_module_is_found_and_stands_under_a_rule() -> None:
    assert {"vssn_kernels", "vssn_kernels.ops.gru", "vssn_kernels.backend.cpu", "vssn.nn.layer"} <= set(MODULES)
    assert [layer_of(name) for name in ("vssn_kernels.ops.gru", "vssn_kernels", "vssn.nn.layer", "vssn")] == [
        3,
        4,
        7,
        16,
    ]
    assert [name for name in MODULES if layer_of(name) == len(LAYERS)] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_flow_one_way(module: str) -> None:
    for imported in set(imports(module)) - HANDED_OVER.get(module, set()):
        assert layer_of(imported) <= layer_of(module), f"{module} imports {imported} from a higher layer"


@pytest.mark.parametrize("module", HANDED_OVER)
def test_what_is_handed_over_is_imported_where_it_is_called(module: str) -> None:
    found = []
    for method in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(method, ast.FunctionDef):
            inside = [node.module for node in ast.walk(method) if isinstance(node, ast.ImportFrom)]
            found += inside
            assert len(inside) <= 1, method.name
    above = [name for name in imports(module) if layer_of(name) > layer_of(module)]
    assert sorted(found) == sorted(above) == sorted(HANDED_OVER[module])


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: set(imports(module)) - {module} - HANDED_OVER.get(module, set()) for module in EVERYWHERE}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle of imports: {' -> '.join((*path, module))}"
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", BENCHMARKS)
def test_benchmarks_import_each_other_by_name(module: str) -> None:
    """Where the test above sees it: a circle could hide behind importlib."""
    for node in ast.walk(ast.parse(BENCHMARKS[module].read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            assert not ast.unparse(node.args[0]).strip("'").startswith("benchmarks")


def test_kernels_know_nothing_of_the_model() -> None:
    for module in MODULES:
        if module.startswith("vssn_kernels"):
            assert not [name for name in imports(module) if name == "vssn" or name.startswith("vssn.")]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("vssn.inference.")])
def test_inference_knows_no_models_layers_or_weights(module: str) -> None:
    named = {node.attr for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Attribute)}
    assert not [name for name in named if name in ("layer", "bias") or name.startswith("weight_") or name == "weight"]


@pytest.mark.parametrize("package", ["vssn.inference", "vssn.training", "vssn.experiments", "vssn.demo", "vssn.cli"])
def test_models_are_known_by_their_registry_alone(package: str) -> None:
    """One place knows a class: the keys of VSSN are typed by hand in a configuration."""
    for module in MODULES:
        if f"{module}.".startswith(f"{package}.") and module != "vssn.training.sections":
            models = [name for name in imports(module) if name.startswith("vssn.models.")]
            assert set(models) <= {"vssn.models.registry"}, module


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_what_is_there(document: str) -> None:
    """Links and `paths` (from the top, the document or a package), python -m modules, make targets."""
    text = (ROOT / document).read_text(encoding="utf-8")
    folder = (ROOT / document).parent
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [path for path in linked if not (folder / path).exists()] == []
    named = set(re.findall(rf"`((?:[\w.-]+/)*[\w.-]+\.(?:{SUFFIXES})|(?:[\w.-]+/)+)`", text))
    bases = (folder, *(ROOT / base for base in ("", "csrc", "vssn", "vssn_kernels")))
    assert [path for path in named if not any((base / path).exists() for base in bases)] == []
    called = re.findall(r"python -m ((?:benchmarks|vssn)[\w.]*)", text)
    assert set(called) - set(EVERYWHERE) == set()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) - set(targets) == set()


def test_the_packages_stand_in_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (ROOT / "vssn").glob("*/__init__.py")}
    assert [name for name in sorted(packages) if f"`{name}/`" not in text] == []


def test_sources_name_files_that_are_there() -> None:
    """By their paths from the top, in comments, docstrings and messages."""
    named = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\.(?:{SUFFIXES})\b")
    made_up = ("tests/test_install.py", "tests/benchmarks/test_gru_grid.py")  # they make projects of their own
    missing = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix.removeprefix(".") in SOURCES and os.fspath(path.relative_to(ROOT)) not in made_up:
                found = named.findall(path.read_text(encoding="utf-8"))
                missing += [f"{path.relative_to(ROOT)}: {name}" for name in found if not (ROOT / name).exists()]
    assert missing == []


def test_importing_needs_core_requirements_only() -> None:
    """Neither package imports what only training, or a machine with a GPU, has; nor the tests' helpers."""
    unwanted = (*TRAINING_ONLY, "pytest", "vssn_kernels.testing")
    code = f"""
import sys
before = set(sys.modules)
import torch
by_torch = set(sys.modules)
import vssn_kernels, vssn
print([name for name in {unwanted!r} if name in sys.modules and name not in by_torch])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree) or not tree.body, f"{module} has no docstring"


@pytest.mark.parametrize("package", [vssn_kernels, vssn], ids=lambda package: package.__name__)
def test_what_is_public_is_documented(package: object) -> None:
    assert package.__all__
    for name in package.__all__:
        thing = getattr(package, name)
        if not callable(thing):
            continue
        assert inspect.getdoc(thing), f"{name} has no docstring"
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                inherited = any(hasattr(base, method) for base in thing.__mro__[1:])
                if inspect.isfunction(function) and not method.startswith("_") and not inherited:
                    trivial = method in ("extra_repr", "reset_parameters")
                    assert function.__doc__ or trivial, f"{name}.{method} has no docstring"
            if hasattr(thing, "forward"):
                assert thing.forward.__doc__, f"{name}.forward has no docstring"


@pytest.mark.parametrize("name", OPS)
def test_every_op_names_its_arguments_and_is_typed(name: str) -> None:
    function = getattr(vssn_kernels, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    documentation = inspect.getdoc(function)
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name
        assert parameter.name in documentation or "Arguments and errors as in" in documentation, parameter.name


def test_the_signatures_are_those_of_the_contract() -> None:
    want = {
        "gru_sequence": "gates_x h0 weight_hh bias_hh * lengths reverse backend",
        "posterior_sequence": "context z0 eps weight_z weight_out bias_out "
        "* activation min_logvar prior lengths backend",
        "gaussian_rsample_kl": "mu logvar eps prior_mu prior_logvar * backend",
        "gaussian_kl": "mu logvar prior_mu prior_logvar * backend",
    }
    for name, text in want.items():
        parameters = inspect.signature(getattr(vssn_kernels, name)).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        assert " ".join((*positional, "*", *keyword)) == text
    assert vssn_kernels.PriorMean._fields == ("context", "weight_z", "weight_mu", "bias_mu")
    defaults = {p.name: p.default for p in inspect.signature(vssn_kernels.posterior_sequence).parameters.values()}
    assert (defaults["activation"], defaults["min_logvar"], defaults["prior"]) == ("tanh", -12.0, None)


def test_the_model_is_made_as_documented() -> None:
    positional = ("x_size", "hidden_size", "latent_size", "noise_size")
    named = {
        "likelihood": "bernoulli",
        "control": "previous",
        "control_size": 0,
        "mlp_size": None,
        "embed_size": None,
        "backward_size": None,
        "activation": "tanh",
        "residual_posterior": False,
        "universal": "point",
        "num_sequences": None,
        "objective": "elbo",
        "free_bits": 0.0,
        "min_logvar": -12.0,
        "initial_state": None,
        "initial_size": None,
        "learn_initial_state": False,
        "masked": False,
        "held_out": 0,
        "encoder": None,
        "decoder": None,
        "batch_first": False,
    }
    parameters = inspect.signature(vssn.VSSN).parameters
    assert tuple(parameters)[:4] == positional
    assert {name: parameters[name].default for name in named} == named
    assert {"mixture_size", "prior_std", "min_logvar_x"} <= set(parameters)
    call = inspect.signature(vssn.VSSN.forward).parameters
    behind = ("coordinated_dropout", "initial_kl_weight")
    assert list(call)[1:] == ["x", "u", "lengths", "state", "noise", "mask", "kl_weight", *behind]
    layer_call = inspect.signature(vssn.VSSNLayer.forward).parameters
    assert list(layer_call)[1:4] == ["x", "state", "lengths"]
    assert vssn.LayerOutput._fields == ("output", "state", "kl")
    assert vssn.VSSNOutput._fields == ("loss", "elbo", "reconstruction", "kl_z", "kl_w", "state")
    assert vssn.State._fields == ("d", "z", "x_last")
