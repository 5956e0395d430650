"""Modules inside a model as PyTorch's tools change them: hooks, parametrizations, pruning, adapters, FSDP."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_models import LENGTHS, MODELS, B, T, X, batch, flat, make, parameter_gradients
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_map

from vssn import VSSN, LayerOutput
from vssn.inference.filtering import latent_states, one_step_predictions
from vssn.inference.importance import sequence_bounds
from vssn.nn.blocks import SplitLinear, is_plain, is_plain_linear
from vssn.nn.states import Inference
from vssn_kernels.testing import assert_all_close, assert_close

AR = ("vssn", {"likelihood": "ar_gaussian"})
HOOKED = (
    *(("vssn", {}), ("embedded_both", {}), ("srnn_residual", {}), ("srnn_none", {}), ("dkf_both_residual", {})),
    *(("smoothing", {}), ("nade", {}), AR, ("universal", {}), ("initial_state", {})),
)
each_hooked = pytest.mark.parametrize(("name", "more"), HOOKED, ids=[name + "".join(m.values()) for name, m in HOOKED])


def submodules(model: VSSN) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name}


def scaled(value: Any) -> Any:
    return tree_map(lambda part: part * 1.25 if isinstance(part, Tensor) else part, value)


def results(model: VSSN, given: dict[str, Any]) -> dict[str, Tensor]:
    """Whatever runs a model, at evaluation: objective, bounds, states, predictions, generation."""
    x, u = given["x"], given["u"]
    future = None if u is None else u[:2]
    with torch.no_grad():
        found = flat(model(**given, lengths=LENGTHS))
        for bound in ("iwae", "fivo"):
            found[bound] = sequence_bounds(model, x, u, LENGTHS, bound=bound, particles=3).total
        for inference in ("filtering", "smoothing"):
            states = latent_states(model, x, u, LENGTHS, inference=inference, samples=2)
            found |= {f"{inference} {part}": value for part, value in states._asdict().items()}
        found["predictions"] = one_step_predictions(model, x, u, LENGTHS)
        torch.manual_seed(5)
        found["generated"] = model.generate(2, B, u=future).x
        torch.manual_seed(5)
        found["forecast"] = model.forecast(x, 2, u=u, u_future=future).mean
    return found


# ---- Hooks ---------------------------------------------------------------------------------------


@each_hooked
def test_what_a_hook_returns_is_used(name: str, more: dict[str, Any]) -> None:
    """One submodule after the other; the model that nobody hooked is not touched by what was there before."""
    model = make(name, **more)
    given = batch(model)
    plain = model(**given, lengths=LENGTHS).loss
    for path, module in submodules(model).items():
        calls: list[str] = []
        handle = module.register_forward_hook(lambda m, args, out, calls=calls: calls.append("") or scaled(out))
        assert not is_plain(module, type(module))
        changed = model(**given, lengths=LENGTHS).loss
        assert calls, f"the hook on {path} did not fire"
        assert (changed - plain).abs() > 1e-9, f"what the hook on {path} returned was not used"
        handle.remove()
        assert is_plain(module, type(module))
    assert torch.equal(model(**given, lengths=LENGTHS).loss, plain)


@each_hooked
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre", "global"])
def test_hooks_that_only_look_change_nothing(kind: str, name: str, more: dict[str, Any]) -> None:
    """Every submodule with a hook at once: outputs and gradients of the plain model, and each has fired."""
    model = make(name, **more)
    given = batch(model)
    want = model(**given, lengths=LENGTHS)
    want_grads = parameter_gradients(model, want.loss)
    paths = {module: path for path, module in submodules(model).items()}
    fired: set[str] = set()

    def look(module: nn.Module, *_: Any) -> None:
        fired.update([paths[module]] if module in paths else [])

    if kind == "global":
        handles = [register_module_forward_hook(look)]
    else:
        name_of = {"forward": "register_forward_hook", "forward_pre": "register_forward_pre_hook"}
        register = name_of.get(kind, f"register_{kind}_hook")
        handles = [getattr(module, register)(look) for module in paths]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # full_backward hooks of modules whose inputs need no gradient
            out = model(**given, lengths=LENGTHS)
            grads = dict.fromkeys(want_grads)
            out.loss.backward()
            grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    finally:
        for handle in handles:
            handle.remove()
    assert fired == set(paths.values())
    assert_all_close(flat(out), flat(want), 1e-11)
    assert_all_close(grads, want_grads, 1e-10, "grad of")


def test_hooks_on_the_networks_of_a_layer_alone() -> None:
    layer = make("srnn_residual").layer
    x = batch(make("srnn_residual"))["x"]
    seen: dict[str, int] = {}
    for path, module in layer.named_modules():
        module.register_forward_hook(lambda m, args, out, path=path: seen.update({path: seen.get(path, 0) + 1}))
    out = layer(x)
    assert isinstance(out, LayerOutput)
    assert set(seen) == {path for path, _ in layer.named_modules()}
    assert seen["posterior"] == seen["prior"] == T, "one call a step, and no prior twice"
    assert seen[""] == 1


def test_the_layer_of_a_model_is_called_once_and_may_be_replaced_in_part() -> None:
    model = make()
    given = batch(model)
    outputs: list[Any] = []
    model.layer.register_forward_hook(lambda m, args, out: outputs.append(out))
    want = model(**given, lengths=LENGTHS)
    assert [type(out) for out in outputs] == [Inference]
    assert_close("kl_z", outputs[0].kl_z, want.kl_z, 1e-13)
    model.layer.register_forward_hook(lambda m, args, out: out._replace(kl_w=out.kl_w + 1))
    assert_close("kl_w", model(**given).kl_w, make()(**given).kl_w + 1, 1e-12)


def test_an_embedding_leaves_what_a_hook_kept() -> None:
    """Its activation works in place where nobody looks."""
    model = make("embedded")
    kept: list[Tensor] = []
    model.encoder.linear.register_forward_hook(lambda m, args, out: kept.append(out))
    given = batch(model)
    model(**given)
    rows = torch.cat((torch.zeros(1, B, X, dtype=torch.float64), given["x"])).flatten(0, 1)
    linear = model.encoder.linear
    assert_close("what the linear layer returned", kept[0], rows @ linear.weight.T + linear.bias, 1e-12)


def test_a_forward_that_was_replaced_runs() -> None:
    """As accelerate and others do: an attribute of the instance."""
    model = make()
    given = batch(model)
    want = make()
    with torch.no_grad():
        want.emission.out.bias += 0.5
    own = model.emission.out.forward
    model.emission.out.forward = lambda x: own(x) + 0.5
    assert_close("loss", model(**given).loss, want(**given).loss, 1e-12)


@pytest.mark.parametrize("name", ["vssn", "srnn_residual"])
def test_the_step_loop_under_autocast_and_without_steps(name: str) -> None:
    model, plain = make(name, torch.float32), make(name, torch.float32)
    given = batch(model)
    model.layer.posterior.register_forward_hook(lambda m, args, out: None)
    with torch.autocast("cpu", torch.bfloat16):
        out, want = (m(**given, lengths=LENGTHS) for m in (model, plain))
    assert [part.dtype for part in out.state] == [part.dtype for part in want.state]
    assert_close("elbo", out.elbo.float(), want.elbo.float(), 2e-2)
    assert_all_close(parameter_gradients(model, out.loss), parameter_gradients(plain, want.loss), 0.1, "grad of")
    nothing = {"x": given["x"][:0], "noise": tuple(eps[:0] for eps in given["noise"])}
    assert_all_close(flat(model(**nothing)), flat(plain(**nothing)), 0.0)


def test_hooks_under_torch_compile() -> None:
    """fullgraph, the step loop included."""
    model = make("srnn_residual")
    given = batch(model)
    for path in ("layer.posterior.out", "layer.prior", "emission.out"):
        model.get_submodule(path).register_forward_hook(lambda m, args, out: scaled(out))
    want = model(**given, lengths=LENGTHS)
    assert (want.loss - make("srnn_residual")(**given, lengths=LENGTHS).loss).abs() > 1e-6
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(**given, lengths=LENGTHS)
    assert_all_close(flat(out), flat(want), 1e-11)
    assert_all_close(parameter_gradients(model, out.loss), parameter_gradients(model, want.loss), 1e-10, "grad of")


@pytest.mark.parametrize("name", ["vssn", "initial_state"])
def test_a_compiled_layer_inside_a_model(name: str) -> None:
    """torch.compile(model.layer), and model.layer.compile(): what is compiled runs."""
    model = make(name)
    given = batch(model)
    want = model(**given, lengths=LENGTHS)
    runs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        return lambda *inputs: runs.append("") or graph(*inputs)

    wrapped, in_place = copy.deepcopy(model), copy.deepcopy(model)
    wrapped.layer = torch.compile(wrapped.layer, fullgraph=True, backend=backend)
    in_place.layer.compile(fullgraph=True, backend=backend)
    for number, other in enumerate((wrapped, in_place)):
        assert_all_close(flat(other(**given, lengths=LENGTHS)), flat(want), 1e-11)
        assert len(runs) == number + 1
        other.generate(2)


# ---- Weights that are computed -------------------------------------------------------------------


CHANGES: dict[str, Callable[[nn.Module, str], Any]] = {
    "old spectral_norm": lambda module, name: nn.utils.spectral_norm(module, name),
    "spectral_norm": lambda module, name: parametrizations.spectral_norm(module, name),
    "old weight_norm": lambda module, name: nn.utils.weight_norm(module, name),
    "weight_norm": lambda module, name: parametrizations.weight_norm(module, name),
    "prune": lambda module, name: prune.l1_unstructured(module, name, amount=0.4),
}
PLACES = (
    "vssn emission.out.weight",
    "vssn emission.hidden.weight",
    "embedded encoder.linear.weight",
    "vssn layer.noise_posterior.out.weight",
    "vssn layer.prior.out.weight",
    "vssn layer.posterior.out.weight",
    "srnn_residual layer.prior.out.weight",
    "srnn_residual layer.prior.weight_z",
    "vssn layer.posterior.weight_z",
    "srnn_residual layer.posterior.context.weight",
    "dkf_both_residual layer.prior.context.weight",
    "vssn layer.duration.input.weight",
    "both layer.duration.weight_hh",
    "universal layer.duration.weight_hh",
    "vssn layer.backward_recurrence.weight_hh",
    "dkf_external layer.backward_recurrence.input.weight",
    "smoothing layer.noise_backward.weight_hh",
    "nade likelihood.weight_in",
    "nade likelihood.weight_out",
)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the old styles warn, and are used
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", PLACES)
def test_a_computed_weight_is_used_and_trained(place: str, change: str) -> None:
    kind, whole = place.split()
    path, _, name = whole.rpartition(".")
    torch.manual_seed(0)
    model = make(kind)
    given = batch(model)
    before = model(**given, lengths=LENGTHS).loss
    CHANGES[change](model.get_submodule(path), name)
    model.train()
    for _ in range(2):  # a second backward must not meet the first one's graph
        model.zero_grad()
        model(**given, lengths=LENGTHS).loss.backward()
    own = [p for n, p in model.get_submodule(path).named_parameters() if name in n]
    assert own
    assert all(p.grad is not None and p.grad.any() for p in own)
    with torch.no_grad():
        for p in own:  # away from where a norm's scale is that of the weight
            p.mul_(1.5)
    model.eval()
    found = results(model, given)
    plain = make(kind)
    with torch.no_grad():
        plain.get_submodule(path).get_parameter(name).copy_(getattr(model.get_submodule(path), name))
    assert_all_close(found, results(plain, given), 1e-10)
    assert (found["loss"] - before).abs() > 1e-6


@pytest.mark.parametrize("path", ["emission.out", "layer.posterior.out", "layer.prior.out"])
def test_a_pruned_state_dict_gives_the_same_loss(path: str) -> None:
    """Into a model that another mask has pruned, and that has run with it."""
    models = []
    for seed in (0, 1):
        model = make("srnn_residual")
        torch.manual_seed(seed)
        prune.random_unstructured(model.get_submodule(path), "weight", amount=0.5)
        models.append(model)
    given = batch(models[0])
    first, second = (model(**given).loss for model in models)
    assert (first - second).abs() > 1e-6
    models[1].load_state_dict(models[0].state_dict())
    assert_close("loss", models[1](**given).loss, first, 1e-12)


# ---- Children of another class -------------------------------------------------------------------


class Adapter(nn.Module):
    """A low-rank adapter beside a linear layer that stays as it is."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.up = nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("kind", ["vssn", "srnn_residual", "dkf_both_residual", "embedded"])
def test_adapters_act_and_learn(kind: str) -> None:
    """In place of every `out`, as peft's target_modules=["out"] does."""
    torch.manual_seed(0)
    model, plain = make(kind), make(kind)
    given = batch(model)
    for path, module in list(model.named_modules()):
        if path.endswith(".out"):
            adapter = Adapter(module, 2)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, adapter)
            with torch.no_grad():
                plain.get_submodule(path).weight += adapter.up.weight @ adapter.down.weight
    found = results(model, given)
    assert_all_close(found, results(plain, given), 1e-10)
    assert (found["loss"] - make(kind)(**given, lengths=LENGTHS).loss).abs() > 1e-6
    model(**given).loss.backward()
    for name, parameter in model.named_parameters():
        if ".up." in name or ".down." in name:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_a_linear_layer_without_a_bias() -> None:
    model, plain = make(), make()
    for path in ("emission.out", "layer.posterior.out", "layer.prior.out"):
        bare = model.get_submodule(path)
        bare.bias = None
        with torch.no_grad():
            plain.get_submodule(path).bias.zero_()
    given = batch(model)
    assert_all_close(results(model, given), results(plain, given), 1e-11)


def test_a_subclass_runs_its_own_forward() -> None:
    class Louder(SplitLinear):
        def forward(self, *inputs: Tensor) -> Tensor:
            return 2 * super().forward(*inputs)

    model, plain = make("srnn_residual"), make("srnn_residual")
    for path in ("emission.hidden", "layer.prior.context", "layer.posterior.context", "layer.duration.input"):
        module = model.get_submodule(path)
        module.__class__ = Louder
        with torch.no_grad():
            for parameter in plain.get_submodule(path).parameters():
                parameter.mul_(2)
    given = batch(model)
    assert_all_close(results(model, given), results(plain, given), 1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["vssn", "srnn_residual", "embedded"])
def test_dynamic_quantisation(kind: str) -> None:
    """torch.ao's replacement of every nn.Linear: the model with its rounded weights and inputs, to their accuracy."""
    if torch.backends.quantized.engine == "none":
        pytest.skip("this PyTorch has no quantisation engine")
    model = make(kind, torch.float32)
    given = batch(model)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert "quantized" in type(quantised.emission.out).__module__
    found, want = results(quantised, given), results(model, given)
    assert (found["loss"] - want["loss"]).abs() > 0
    for name in ("elbo", "iwae", "reconstruction", "kl_z"):
        assert_close(name, found[name], want[name], 0.05)


class Quantised(Tensor):
    """A weight that wraps another and knows F.linear alone, as those of torchao's `quantize_` do."""

    @staticmethod
    def __new__(cls, weight: Tensor) -> Quantised:
        return Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype, device=weight.device)

    def __init__(self, weight: Tensor) -> None:
        self.wrapped = (weight.detach() * 64).round() / 64

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["wrapped"], None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            return func(args[0], args[1].wrapped, *args[2:])
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].wrapped)
        raise NotImplementedError(f"{func} of a quantised weight")


@pytest.mark.parametrize("kind", ["vssn", "srnn_residual", "dkf_both_residual", "embedded_both", "nade"])
def test_weights_that_wrap_others(kind: str) -> None:
    """In place of the weight of every nn.Linear, which stays an nn.Linear."""
    model, plain = make(kind), make(kind)
    given = batch(model)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            wrapping = Quantised(module.weight)
            module.weight = nn.Parameter(wrapping, requires_grad=False)
            with torch.no_grad():
                plain.get_submodule(path).weight.copy_(wrapping.wrapped)
    assert_all_close(results(model, given), results(plain, given), 1e-11)


def replica_of(module: nn.Module) -> Any:
    """As nn.DataParallel makes one for each device: tensors that are no parameters, set as attributes."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter.view_as(parameter))
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replica_of(child)
    return replica


@pytest.mark.parametrize("kind", MODELS)
def test_a_replica_is_as_plain_as_its_source(kind: str) -> None:
    """The fused ops run in it, rather than a step at a time."""
    model = make(kind)
    given = batch(model)
    replica = replica_of(model)
    assert all(is_plain_linear(child) for child in replica.modules() if isinstance(child, nn.Linear))
    want = model(**given, lengths=LENGTHS)
    out = replica(**given, lengths=LENGTHS)
    assert_all_close(flat(out), flat(want), 1e-11)
    assert_all_close(parameter_gradients(model, out.loss), parameter_gradients(model, want.loss), 1e-10, "grad of")


# ---- FSDP ----------------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    distributed = pytest.importorskip("torch.distributed")
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this PyTorch has no gloo")
    os.environ.setdefault("MASTER_ADDR", "localhost")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"),
    reason=f"fully_shard of torch {torch.__version__} asks streams for events, which its CPU streams do not have",
)
@pytest.mark.parametrize("kind", ["vssn", "initial_state", "universal"])
@pytest.mark.parametrize("whole", [False, True])
def test_fully_shard(one_process: None, kind: str, whole: bool) -> None:
    """The layer alone, and inside a model that is sharded too: loss and gradients of the plain model."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    plain, model = make(kind, torch.float32), make(kind, torch.float32)
    given = batch(plain)
    fsdp.fully_shard(model.layer, mesh=mesh)
    if whole:
        fsdp.fully_shard(model, mesh=mesh)
    out, want = (m(**given, lengths=LENGTHS) for m in (model, plain))
    assert_all_close(flat(out), flat(want), 1e-5)
    for loss in (out.loss, want.loss):
        loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        grad = parameter.grad
        if other.grad is None:
            assert grad is None or not grad.full_tensor().any(), name
            continue
        grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        assert_close(f"grad of {name}", grad, other.grad, 1e-4)


@pytest.mark.parametrize("sizes", [(5, 0, 2), (0, 3, 0)])
def test_distributed_data_parallel_with_a_learned_state_of_size_0(one_process: None, sizes: tuple[int, ...]) -> None:
    """DDP stops on a parameter that has no numbers."""
    model = VSSN(X, *sizes, learn_initial_state=True, mlp_size=6, backward_size=7)
    assert all(parameter.numel() for parameter in model.parameters())
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
    x = torch.rand(T, B, X).round()
    torch.manual_seed(0)
    parallel(x).loss.backward()
    torch.manual_seed(0)
    model(x).loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), parallel.module.parameters(), strict=True):
        assert_close(f"grad of {name}", other.grad, parameter.grad, 1e-6)
