"""What PyTorch tells of its dispatcher and its transforms under private names, all in one place.

Three kinds of things stand between a call and its kernel: modes and tracers, which see every op; transforms
(torch.func), which are levels on a stack; and tensors whose key set asks the dispatcher for more than a call (a sign
bit, a batch, a subclass). `unobserved` says that there is none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_single_level_autograd_function_allowed,
    is_legacy_batchedtensor,
    peek_interpreter_stack,
    set_single_level_autograd_function_allowed,
)
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

_len_dispatch_stack, _len_function_stack = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_dispatch_keys, _tracing_state = torch._C._dispatch_keys, torch._C._get_tracing_state
_profiler_enabled = torch.autograd._profiler_enabled


# ---- The way past the dispatcher ---------------------------------------------------------------------


def unobserved(args: Sequence[object]) -> bool:
    """Whether the dispatcher would do no more with an op than call its kernels: plain tensors with data, and no mode,
    transform, tracer or profiler that is to see the op."""
    return (
        _len_dispatch_stack() == 0
        and _len_function_stack() == 0
        and peek_interpreter_stack() is None
        and _tracing_state() is None
        and not _profiler_enabled()
        and _all_plain(args)
    )


def _all_plain(args: Sequence[Any]) -> bool:
    for arg in args:
        kind = type(arg)
        if kind in _TENSORS:
            raw = _dispatch_keys(arg).raw_repr()
            if not (_known[raw] if raw in _known else _learn(arg, raw)):
                return False
        elif kind in _LISTS:
            if not _all_plain(arg):
                return False
        elif kind not in _NO_TENSORS and isinstance(arg, Tensor):
            return False
    return True


_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_LISTS = frozenset((list, tuple))
_NO_TENSORS = frozenset((type(None), bool, int, float, str))


# By the bits of a key set: whether it has these keys alone, which any dense tensor on a device has. Those are named,
# for of the others (Negative, ZeroTensor, Batched, Functionalize, Python, Sparse, ...) there may be new ones.
_PLAIN_KEYS = re.compile(r"(CPU|CUDA|XPU)|ADInplaceOrView|Autograd\w+|Autocast\w+")
_known: dict[int, bool] = {}


def _learn(tensor: Tensor, raw: int) -> bool:
    names = str(_dispatch_keys(tensor)).removeprefix("DispatchKeySet(").removesuffix(")").split(", ")
    _known[raw] = all(_PLAIN_KEYS.fullmatch(name) for name in names)
    return _known[raw]


def is_plain(tensor: Tensor) -> bool:
    """Whether the values of the tensor are there to be read: no wrapper, no fake."""
    return _all_plain((tensor,))


def is_plain_call() -> bool:
    """Whether nothing compiles, transforms, traces or watches a call, so that it may read data at once."""
    return not (
        torch.compiler.is_compiling() or _len_dispatch_stack() or in_transform() or _tracing_state() is not None
    )


# ---- Transforms --------------------------------------------------------------------------------------


def forward_mode() -> bool:
    """Whether forward-mode AD is on: a dual level of torch.autograd.forward_ad, or torch.func.jvp at any depth."""
    if forward_ad._current_level >= 0:
        return True
    return peek_interpreter_stack() is not None and TransformType.Jvp in _transforms()


def beyond_the_kernels() -> bool:
    """Whether a derivative is to come that no kernel has: one in forward mode, or one of a torch.func.grad in another.

    Ops then run as their plain reference, which every transform takes apart as far as it needs.
    """
    if forward_ad._current_level >= 0:
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
    return any((on and torch._C._functorch.is_batchedtensor(t)) or _tangent(t) is not None for t in tensors)


def _transforms() -> list[TransformType]:
    return [interpreter.key() for interpreter in get_interpreter_stack() or ()]


def in_transform() -> bool:
    """Whether one of torch.func's transforms is on."""
    return peek_interpreter_stack() is not None


def of_ended_transform(tensors: Sequence[Tensor]) -> bool:
    """Whether a tensor was saved at a level that has ended since: what torch.func.vjp returns is called then, and a
    view of such a tensor needs no gradient."""
    return any(torch._C._functorch.is_dead_tensor_wrapper(tensor) for tensor in tensors)  # type: ignore[attr-defined]


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
    return torch._VF._unpack_dual(tensor, level=max(forward_ad._current_level, 0))[1]


def is_grads_batched(grads: Sequence[Tensor | None]) -> bool:
    """Whether these came through torch.autograd.grad(is_grads_batched=True): batches of a kind of their own."""
    return any(grad is not None and is_legacy_batchedtensor(grad) for grad in grads)


def apply(function: type[torch.autograd.Function], run: Callable[..., Any], *args: Any) -> Any:
    """function.apply(run, *args) as an autograd kernel calls it, with `run` the op below autograd.

    Inside a transform the dispatcher has chosen a level, and `run` goes on to the next one: the function is for this
    level alone, and needs no rule of its own for the others; but its forward must not keep them from seeing gradients.
    """
    if peek_interpreter_stack() is None:
        return function.apply(run, *args)

    def run_with_gradients(*args: Any) -> Any:
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return run(*args)

    allowed = get_single_level_autograd_function_allowed()
    set_single_level_autograd_function_allowed(True)
    try:
        return super(torch.autograd.Function, function).apply(run_with_gradients, *args)  # type: ignore[misc]
    finally:
        set_single_level_autograd_function_allowed(allowed)


def batched(op: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel of an op under torch.func.vmap: the op on each sample by itself."""

    def each(info: Any, dims: tuple, *args: Any) -> tuple[Any, Any]:
        leaves, tree = tree_flatten(args)
        leaf_dims = tree_leaves(dims)
        results = []
        for number in range(info.batch_size):
            own = [x if dim is None else x.select(dim, number) for x, dim in zip(leaves, leaf_dims, strict=True)]
            results.append(op(*tree_unflatten(own, tree)))
        stacked = tree_map(lambda *parts: torch.stack(parts), results[0], *results[1:])
        return stacked, tree_map(lambda _: 0, stacked)

    def kernel(*args: Any) -> Any:
        from torch._functorch.autograd_function import custom_function_call_vmap_helper
        from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_current_functorch_interpreter

        interpreter = retrieve_current_functorch_interpreter()
        assert isinstance(interpreter, VmapInterpreter)
        return custom_function_call_vmap_helper(interpreter, each, op, *args)

    return kernel
