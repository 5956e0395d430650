"""How an op and its backward are registered with torch.library: the schema, one kernel for every device (it looks
the backend up in the table), the fake, and the autograd formula.

`Library.define` and `Library.impl` are used rather than `torch.library.custom_op`: a call costs a third. And where
nothing is there that looks at the calls of ops (`_unobserved`), the same functions are called without the dispatcher
between them, which would cost more than a small op itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NAMESPACE = "vssn"
_library = torch.library.Library(NAMESPACE, "DEF")


# By name: the kernel as registered, and what its autograd kernel does.
_kernels: dict[str, Callable] = {}
_autograd: dict[str, Callable] = {}


def define(schema: str, kernel: Callable, fake: Callable) -> None:
    """Registers `vssn::<schema>` with its kernel for every device and its fake."""
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _kernels[name] = _as_declared(kernel)
    _library.impl(name, _kernels[name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def define_autograd(name: str, apply: Callable) -> None:
    """Gives the op its autograd formula: `apply` of an autograd.Function that calls the op through `below_autograd`."""
    plain_call = below_autograd(name)

    def autograd_kernel(*args):
        if torch.is_grad_enabled() and _any_requires_grad(args):
            return apply(*args)
        return plain_call(*args)

    _autograd[name] = autograd_kernel
    _library.impl(name, autograd_kernel, "Autograd")


def define_not_differentiable(name: str, public: str) -> None:
    """Gives a backward op an autograd kernel that raises: without one its gradients would be silently wrong."""
    plain_call = below_autograd(name)

    def autograd_kernel(*args):
        if torch.is_grad_enabled() and _any_requires_grad(args):
            raise RuntimeError(f"{name} is not differentiable; {double_backward_hint(public)}")
        return plain_call(*args)

    _autograd[name] = autograd_kernel
    _library.impl(name, autograd_kernel, "Autograd")


def caller(name: str) -> Callable:
    """The op as a function."""
    op = getattr(getattr(torch.ops, NAMESPACE), name)

    def call(*args):
        # Compiled code takes the first way: dynamo must find an op.
        if torch.compiler.is_compiling() or not _unobserved(args):
            return op(*args)
        return _autograd[name](*args)

    return call


def below_autograd(name: str) -> Callable:
    """The op as a function that skips the autograd kernel."""
    op = getattr(getattr(torch.ops, NAMESPACE), name).default

    def call(*args):
        if _unobserved(args):
            return _kernels[name](*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return call


def _unobserved(args: Sequence[object]) -> bool:
    """Whether the dispatcher would do no more with the op than call the kernels above: plain tensors with data, and no
    mode, transform, tracer or profiler that is to see the op."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and not torch.autograd._profiler_enabled()
        and _all_plain(args)
    )


def _all_plain(args: Sequence[object]) -> bool:
    for arg in args:
        if isinstance(arg, Tensor):
            if type(arg) not in _PLAIN or arg.is_meta:
                return False
        elif isinstance(arg, list | tuple) and not _all_plain(arg):
            return False
    return True


_PLAIN = (Tensor, torch.nn.Parameter)


def double_backward_hint(op: str) -> str:
    return f"for a second derivative of {op}, call it with backend='reference'"


def require_double_backward(op: str, backend: str) -> None:
    """Raises RuntimeError for a backend that does not keep what a second derivative needs."""
    if backend != "reference":
        raise RuntimeError(f"{op}: backend {backend!r} has no double backward; {double_backward_hint(op)}")


def differentiate_again(
    plain: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients as a differentiable function of inputs and grad_outputs: backward with create_graph=True.

    Args:
        plain: the plain reference as a function of `inputs` alone.
    """
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
                create_graph=True,
                materialize_grads=True,
            )
            if used
            else [torch.zeros_like(alias) for alias in wanted]
        )
    return tuple(
        next(grads) if need and alias is not None else None for alias, need in zip(aliases, needs, strict=True)
    )


def present(tensors: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """An op cannot return None: an empty tensor stands for a gradient that was not asked for."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


def asked(tensors: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The inverse of `present`."""
    return tuple(tensor if need else None for tensor, need in zip(tensors, needs, strict=True))


def empty_gradients(inputs: Sequence[Tensor | None], needs: Sequence[bool], like: Tensor) -> tuple[Tensor, ...]:
    """The fake of a backward op: contiguous tensors of the inputs' shapes where asked."""
    return tuple(
        tensor.new_empty(tensor.shape) if need and tensor is not None else like.new_empty(0)
        for tensor, need in zip(inputs, needs, strict=True)
    )


def autocast_is_on(device: torch.device) -> bool:
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def autocast_dtype(device: torch.device) -> torch.dtype:
    """The dtype that autocast gives a matrix op's inputs: on the CPU float32."""
    return torch.float32 if device.type == "cpu" else torch.get_autocast_dtype(device.type)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast does it: float64 is left alone."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def cast_state(state: Tensor, dtype: torch.dtype) -> Tensor:
    """A state stays float32 beside half-precision inputs."""
    return state if state.dtype in (torch.float32, torch.float64) else state.to(dtype)


def _any_requires_grad(args: Sequence[object]) -> bool:
    for arg in args:
        if isinstance(arg, Tensor):
            if arg.requires_grad:
                return True
        elif isinstance(arg, list | tuple) and _any_requires_grad(arg):
            return True
    return False


def _as_declared(kernel: Callable) -> Callable:
    """The kernel as its fake declares it: contiguous results (elementwise PyTorch keeps an input's strides), and no
    autocast inside (the inputs are cast before; the backend's own products must not be cast again)."""

    def run(*args):
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        if autocast_is_on(device):
            with torch.autocast(device.type, enabled=False):
                result = kernel(*args)
        else:
            result = kernel(*args)
        if isinstance(result, Tensor):
            return result.contiguous()
        return type(result)(part.contiguous() for part in result)

    return run
