"""How an op and its backward are registered with torch.library: the schema, one kernel for every device (it looks
the backend up in the table), the fake, the autograd formula, and what holds under torch.func's transforms.

`Library.define` and `Library.impl` are used rather than `torch.library.custom_op`: a call costs a third. And where
nothing is there that looks at the calls of ops, the same functions are called without the dispatcher between them
(fast_path.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from vssn_kernels import arguments
from vssn_kernels.ops import fast_path, torch_internals

NAMESPACE = "vssn"
_library = torch.library.Library(NAMESPACE, "DEF")


# By name: the kernel as registered, the op without the dispatcher, and in PyTorch's own ops.
_kernels: dict[str, Callable] = {}
_direct: dict[str, Callable] = {}
_plain: dict[str, Callable] = {}


def define(schema: str, kernel: Callable, fake: Callable) -> None:
    """Registers `vssn::<schema>` with its kernel for every device, its fake, and torch.func.vmap as a loop."""
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _kernels[name] = _as_declared(name, kernel)
    _library.impl(name, _kernels[name], "CompositeExplicitAutograd")
    _library.impl(name, torch_internals.batched(overload(name)), "FuncTorchBatched")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def define_autograd(
    name: str, function: type[torch.autograd.Function], plain: Callable, flat: Callable[..., tuple] | None = None
) -> None:
    """Gives the op its autograd formula.

    Args:
        function: its forward is given what runs the op below autograd, then the op's arguments.
        plain: the op in PyTorch's own ops, differentiable any number of times and in forward mode.
        flat: the arguments for `function`, where they are not the op's own: autograd does not look into lists.
    """
    below = below_autograd(name)
    _plain[name] = _as_declared(name, plain)

    def autograd_kernel(*args):
        if torch_internals.beyond_the_kernels() or torch_internals.has_tangent(args):
            return _plain[name](*args)
        if torch.is_grad_enabled() and torch_internals.any_requires_grad(*args):
            return torch_internals.apply(function, below, *(args if flat is None else flat(*args)))
        return below(*args)

    _direct[name] = fast_path.direct(_kernels[name], function, flat)
    _library.impl(name, autograd_kernel, "Autograd")


def define_first_order(name: str, public: str) -> None:
    """Gives a backward op an autograd kernel that raises where its result is differentiated: without one its gradients
    would be silently wrong. The result itself is had with create_graph=True too."""
    below = below_autograd(name)

    def autograd_kernel(*args):
        if torch_internals.has_tangent(args):
            raise RuntimeError(f"{name} has no derivative in forward mode; {double_backward_hint(public)}")
        if torch.is_grad_enabled() and torch_internals.any_requires_grad(*args):
            leaves, tree = tree_flatten(args)
            result = torch_internals.apply(_FirstOrder, below, name, public, tree, *leaves)
            return list(result) if gives_list else result
        return below(*args)

    gives_list = overload(name)._schema.returns[0].type.kind() == "ListType"
    _direct[name] = fast_path.direct_or(_kernels[name], autograd_kernel)
    _library.impl(name, autograd_kernel, "Autograd")


def caller(
    name: str, public: Callable[[Sequence[Any]], str] | None = None, names: Mapping[str, str] | None = None
) -> Callable:
    """The op as a function.

    Args:
        public: of its arguments the public function that was called, where it has another name.
        names: of arguments in the schema, those of the public function, where they are others.
    """
    op = getattr(getattr(torch.ops, NAMESPACE), name)

    def call(*args):
        # Compiled code takes the first way: dynamo must find an op.
        if torch.compiler.is_compiling():
            return (inference_forms.get(name, op) if torch.onnx.is_in_onnx_export() else op)(*args)
        beyond = torch_internals.beyond_the_kernels()
        if not beyond and fast_path.is_open(args):
            return _direct[name](*args)
        _require_dense(name if public is None else public(args), name, names or {}, args)
        # A backward op has no other form: its autograd kernel decides.
        return (_plain.get(name, op) if beyond else op)(*args)

    return call


def _require_dense(public: str, name: str, names: Mapping[str, str], args: Sequence[Any]) -> None:
    """Raises TypeError for a tensor that no kernel reads, nested or distributed, among those that are no plain ones."""
    for argument, given in zip(overload(name)._schema.arguments, args, strict=True):
        for number, tensor in enumerate(given if isinstance(given, list | tuple) else (given,)):
            if isinstance(tensor, Tensor) and not arguments.is_dense(tensor):
                own = names.get(argument.name, argument.name) + (f"[{number}]" if given is not tensor else "")
                raise TypeError(f"{public}: {own} must be {arguments.dense_instead(tensor)}")


def below_autograd(name: str) -> Callable:
    """The op as a function that skips the autograd kernel."""
    op = overload(name)

    def call(*args):
        with torch_internals.AutoDispatchBelowAutograd():
            return op(*args)

    return call


def plain_forms() -> dict[str, Callable]:
    """By the names of the forward ops: the same op in PyTorch's own, differentiable."""
    return dict(_plain)


# By the names of the forward ops, from decompositions.py: what an export to ONNX gets, which knows PyTorch's ops alone.
inference_forms: dict[str, Callable] = {}


def overload(name: str) -> Any:
    """The op as graphs have it."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def takes_plain_backward(grads: Sequence[Tensor | None]) -> bool:
    """Whether a backward formula takes the plain reference, where it has it, rather than its op: for gradients that are
    to be differentiated again, or that the op cannot take."""
    return torch.is_grad_enabled() or torch_internals.forward_mode() or torch_internals.is_grads_batched(grads)


def double_backward_hint(op: str) -> str:
    return f'for a second derivative of {op}, run forward inside `with vssn_kernels.use_backend("reference"):`'


def differentiate_again(
    plain: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients by the plain reference, as a differentiable function of inputs and grad_outputs where gradients
    are enabled.

    Args:
        plain: the plain reference as a function of `inputs` alone.
    """
    wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need and tensor is not None]
    if torch_internals.in_transform() or torch_internals.of_ended_transform(wanted):
        return torch_internals.vjp(plain, inputs, grad_outputs, needs)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, so that the derivative by one input does not run through another one that depends on it.
        aliases = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        outputs = plain(*aliases)
        used = [
            (out, grad)
            for out, grad in zip(outputs, grad_outputs, strict=True)
            if grad is not None and out.requires_grad
        ]
        wanted = [alias for alias, need in zip(aliases, needs, strict=True) if need and alias is not None]
        grads = iter(
            torch.autograd.grad(
                [out for out, _ in used],
                wanted,
                [grad for _, grad in used],
                create_graph=create_graph,
                materialize_grads=True,
            )
            if used
            else [torch.zeros_like(alias) for alias in wanted]
        )
    return tuple(
        next(grads) if need and alias is not None else None for alias, need in zip(aliases, needs, strict=True)
    )


def where_readable(check: Callable[..., Tensor | None], values: Tensor | None, *others: object) -> Tensor | None:
    """check(values, *others); the values as they are where they cannot be read: in a transform, in tracing."""
    return check(values, *others) if values is not None and fast_path.is_plain(values) else values


def pack_grads(tensors: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """An op cannot return None: an empty tensor stands for a gradient that was not asked for."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


def unpack_grads(tensors: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The inverse of `pack_grads`."""
    return tuple(tensor if need else None for tensor, need in zip(tensors, needs, strict=True))


def empty_gradients(inputs: Sequence[Tensor | None], needs: Sequence[bool], like: Tensor) -> tuple[Tensor, ...]:
    """The fake of a backward op: contiguous tensors of the inputs' shapes where asked."""
    return tuple(
        tensor.new_empty(tensor.shape) if need and tensor is not None else like.new_empty(0)
        for tensor, need in zip(inputs, needs, strict=True)
    )


def autocast_is_on(device: torch.device) -> bool:
    if _any_autocast is not None and not torch.compiler.is_compiling() and not _any_autocast():
        return False  # without a text for the device, which takes longer
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


_any_autocast = torch_internals.find("torch._C._is_any_autocast_enabled")


def autocast_dtype(device: torch.device) -> torch.dtype:
    """The dtype that autocast gives a matrix op's inputs: float32 for float16 on the CPU, where no kernel takes it."""
    dtype = torch.get_autocast_dtype(device.type)
    return torch.float32 if device.type == "cpu" and dtype == torch.float16 else dtype


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast does it: float64 is left alone."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def cast_state(state: Tensor, dtype: torch.dtype) -> Tensor:
    """A state stays float32 beside half-precision inputs."""
    return state if state.dtype in (torch.float32, torch.float64) else state.to(dtype)


def _as_declared(name: str, kernel: Callable) -> Callable:
    """The kernel as its fake declares it: contiguous results (elementwise PyTorch keeps an input's strides), and no
    autocast inside (the inputs are cast before; the backend's own products must not be cast again). Where memory does
    not suffice it says for what."""

    def run(*args):
        first = args[0] if isinstance(args[0], Tensor) else next(arg for arg in args if isinstance(arg, Tensor))
        device = first.device
        try:
            if autocast_is_on(device):
                with torch.autocast(device.type, enabled=False):
                    result = kernel(*args)
            else:
                result = kernel(*args)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
                raise RuntimeError(_no_memory(name, args, error)) from None
            raise
        if isinstance(result, Tensor):
            return result.contiguous()
        return type(result)(part.contiguous() for part in result)

    return run


# What PyTorch says of memory on the CPU, and of sizes that no memory has.
_NO_MEMORY = re.compile(r"can't allocate memory|Storage size calculation overflowed|integer multiplication overflow")


def _no_memory(name: str, args: Sequence[Any], error: Exception) -> str:
    names = [argument.name for argument in overload(name)._schema.arguments]
    given = [f"{own} {list(arg.shape)}" for own, arg in zip(names, args, strict=True) if isinstance(arg, Tensor)]
    said = (str(error).splitlines() or ["no memory"])[0]
    return f"{name}: there is not memory enough for the results of {', '.join(given)}: {said}"


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, name, public, tree, *leaves):
        ctx.message = f"{name} is not differentiable; {double_backward_hint(public)}"
        ctx.save_for_backward(*(leaf if isinstance(leaf, Tensor) else None for leaf in leaves))
        result = run(*tree_unflatten(leaves, tree))
        return tuple(result) if isinstance(result, list) else result

    @staticmethod
    def backward(ctx, *grad_outputs):
        needs = ctx.needs_input_grad[4:]
        wanted = [leaf for leaf, need in zip(ctx.saved_tensors, needs, strict=True) if need]
        grads = iter(overload("first_order_only")(grad_outputs, wanted, ctx.message))
        return None, None, None, None, *(next(grads) if need else None for need in needs)


# An op, so that a compiler, which traces second derivatives that nobody may ask for, meets the error when they run; it
# takes the gradients that come in, so that it stays in their half of the graph.
_library.define("first_order_only(Tensor[] grads, Tensor[] inputs, str message) -> Tensor[]")


@torch.library.impl(_library, "first_order_only", "CompositeExplicitAutograd")
def _refuse(grads, inputs, message):
    raise RuntimeError(message)


@torch.library.register_fake(f"{NAMESPACE}::first_order_only", lib=_library)
def _refuse_fake(grads, inputs, message):
    return [tensor.new_empty(tensor.shape) for tensor in inputs]
