"""What PyTorch tells of its dispatcher and its transforms under private names, all in one place.

Here stands what right results need; the names that only speed rests on are in fast_path.py. A version of PyTorch that
lacks one of them is refused at import, in one line, but where its answer can be had, or done without, in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch._functorch.autograd_function
import torch._functorch.pyfunctorch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


def find(name: str) -> Any:
    """What stands under a dotted name of torch; None where this version has no such name."""
    thing: Any = torch
    for part in name.split(".")[1:]:
        thing = getattr(thing, part, None)
    return thing


# By all tests; 2.6 and 2.14 by those that make test-python runs.
ANOTHER_VERSION = "install another version: it is tested with torch 2.13"  # what errors advise

required: list[str] = []
optional: list[str] = []


def _require(name: str) -> Any:
    required.append(name)
    found = find(name)
    if found is None:
        raise ImportError(f"vssn_kernels needs {name}, which torch {torch.__version__} lacks; {ANOTHER_VERSION}")
    return found


def _find_or(name: str, instead: Callable) -> Any:
    optional.append(name)
    return find(name) or instead


AutoDispatchBelowAutograd = _require("torch._C._AutoDispatchBelowAutograd")
TransformType = _require("torch._C._functorch.TransformType")
_get_interpreter_stack = _require("torch._C._functorch.get_interpreter_stack")
_single_level_allowed = _require("torch._C._functorch.get_single_level_autograd_function_allowed")
_allow_single_level = _require("torch._C._functorch.set_single_level_autograd_function_allowed")
_SingleLevelFunction = _require("torch.autograd.function._SingleLevelFunction")
_is_batched = _require("torch._C._functorch.is_batchedtensor")
_is_legacy_batched = _require("torch._C._functorch.is_legacy_batchedtensor")
_is_dead = _require("torch._C._functorch.is_dead_tensor_wrapper")
_call_by_sample = _require("torch._functorch.autograd_function.custom_function_call_vmap_helper")
_current_interpreter = _require("torch._functorch.pyfunctorch.retrieve_current_functorch_interpreter")
_VmapInterpreter = _require("torch._functorch.pyfunctorch.VmapInterpreter")
_unpack_dual = _require("torch._unpack_dual")
_set_forward_mode = _require("torch.autograd.forward_ad._set_fwd_grad_enabled")
_require("torch.autograd.forward_ad._current_level")  # read anew each time


def _some_require_grad(*args: Any) -> bool:
    for arg in args:
        if (
            arg.requires_grad
            if isinstance(arg, Tensor)
            else isinstance(arg, (list, tuple)) and _some_require_grad(*arg)
        ):
            return True
    return False


def _top_of_the_stack() -> Any:
    return (_get_interpreter_stack() or [None])[-1]


def _perhaps(*_: Any) -> int:
    return 1  # of modes, tracers and hooks, and of a graph that is kept: where nobody tells, there may be one


any_requires_grad = _find_or("torch._C._any_requires_grad", _some_require_grad)
peek_interpreter_stack = _find_or("torch._C._functorch.peek_interpreter_stack", _top_of_the_stack)
_len_dispatch_stack = _find_or("torch._C._len_torch_dispatch_stack", _perhaps)
_tracing_state = _find_or("torch._C._get_tracing_state", _perhaps)
_saving_hooks = _find_or("torch._C._autograd._top_saved_tensors_default_hooks", _perhaps)
# Within a backward pass: whether its graph is kept for another one.
keeps_graph = _find_or("torch._C._autograd._get_current_graph_task_keep_graph", _perhaps)


def saving_hooks() -> bool:
    """Whether hooks see, or may see, what autograd saves (torch.autograd.graph.saved_tensors_hooks)."""
    return _saving_hooks(False) is not None


def is_plain_call() -> bool:
    """Whether nothing compiles, transforms, traces or watches a call, so that it may read data at once."""
    return not (
        torch.compiler.is_compiling() or _len_dispatch_stack() or in_transform() or _tracing_state() is not None
    )


# ---- Transforms --------------------------------------------------------------------------------------


def in_dual_level() -> bool:
    """Whether a level of torch.autograd.forward_ad is on."""
    return forward_ad._current_level >= 0


def forward_mode() -> bool:
    """Whether forward-mode AD is on: a dual level of torch.autograd.forward_ad, or torch.func.jvp at any depth."""
    if in_dual_level():
        return True
    return peek_interpreter_stack() is not None and TransformType.Jvp in _transforms()


def beyond_the_kernels() -> bool:
    """Whether a derivative is to come that no kernel has: one in forward mode, or one of a torch.func.grad in another.

    Ops then run as their plain reference, which every transform takes apart as far as it needs.
    """
    if in_dual_level():
        return True
    if peek_interpreter_stack() is None:
        return False
    transforms = _transforms()
    return TransformType.Jvp in transforms or transforms.count(TransformType.Grad) > 1


def has_tangent(args: Sequence[object]) -> bool:
    """Whether one of the tensors is dual at the level of forward-mode AD that is on. A batch of them counts as dual.

    A tracer may run through a dual level that only its graph has entered: `forward_mode` does not see that one.
    """
    on = forward_mode()
    if not on and _len_dispatch_stack() == 0:
        return False
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    return any((on and _is_batched(t)) or _tangent(t) is not None for t in tensors)


def _transforms() -> list[Any]:
    return [interpreter.key() for interpreter in _get_interpreter_stack() or ()]


def in_transform() -> bool:
    """Whether one of torch.func's transforms is on."""
    return peek_interpreter_stack() is not None


def of_ended_transform(tensors: Sequence[Tensor]) -> bool:
    """Whether a tensor was saved at a level that has ended since: what torch.func.vjp returns is called then, and a
    view of such a tensor needs no gradient."""
    return any(_is_dead(tensor) for tensor in tensors)


def vjp(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of `function` by the inputs that need one, by torch.func.vjp."""
    chosen = [number for number, need in enumerate(needs) if need and inputs[number] is not None]

    def of_chosen(*tensors: Tensor) -> tuple[Tensor, ...]:
        full = list(inputs)
        for number, tensor in zip(chosen, tensors, strict=True):
            full[number] = tensor
        return function(*full)

    outputs, backward = torch.func.vjp(of_chosen, *(inputs[number] for number in chosen))  # type: ignore[misc]
    given = zip(outputs, grad_outputs, strict=True)
    grads = dict(
        zip(chosen, backward(tuple(torch.zeros_like(out) if g is None else g for out, g in given)), strict=True)
    )
    return tuple(grads.get(number) for number in range(len(inputs)))


def _tangent(tensor: Tensor) -> Tensor | None:
    return _unpack_dual(tensor, level=max(forward_ad._current_level, 0))[1]


def is_grads_batched(grads: Sequence[Tensor | None]) -> bool:
    """Whether these came through torch.autograd.grad(is_grads_batched=True): batches of a kind of their own."""
    return any(grad is not None and _is_legacy_batched(grad) for grad in grads)


def apply(function: type[torch.autograd.Function], run: Callable[..., Any], *args: Any) -> Any:
    """function.apply(run, *args) as an autograd kernel calls it, with `run` the op below autograd.

    Inside a transform the dispatcher has chosen a level, and `run` goes on to the next one: the function is for this
    level alone, and needs no rule of its own for the others; but its forward must not keep them from seeing gradients.
    """
    if peek_interpreter_stack() is None:
        return function.apply(run, *args)

    def run_with_gradients(*args: Any) -> Any:
        with torch.enable_grad(), _set_forward_mode(True):
            return run(*args)

    allowed = _single_level_allowed()
    _allow_single_level(True)
    try:
        return _of_one_level(function).apply(run_with_gradients, *args)
    finally:
        _allow_single_level(allowed)


@cache
def _of_one_level(function: type[torch.autograd.Function]) -> Any:
    """The function as functorch makes its own for a level: the others' rules are not asked for, in any version."""
    parts = {name: staticmethod(getattr(function, name)) for name in ("forward", "backward")}
    return type(function.__name__, (_SingleLevelFunction,), parts)


def batched(op: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel of an op under torch.func.vmap: the op on each sample by itself."""

    def each(info: Any, dims: tuple, *args: Any) -> tuple[Any, Any]:
        if not info.batch_size:
            raise RuntimeError(
                f"{op.__name__.partition('.')[0]}: torch.func.vmap of a batch of 0 has no result; leave it out"
            )
        leaves, tree = tree_flatten(args)
        leaf_dims = tree_leaves(dims)
        results = []
        for number in range(info.batch_size):
            own = [x if dim is None else x.select(dim, number) for x, dim in zip(leaves, leaf_dims, strict=True)]
            results.append(op(*tree_unflatten(own, tree)))
        stacked = tree_map(lambda *parts: torch.stack(parts), results[0], *results[1:])
        return stacked, tree_map(lambda _: 0, stacked)

    def kernel(*args: Any) -> Any:
        interpreter = _current_interpreter()
        assert isinstance(interpreter, _VmapInterpreter)
        return _call_by_sample(interpreter, each, op, *args)

    return kernel
