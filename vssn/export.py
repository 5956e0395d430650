"""Models outside of PyTorch: one step of a model as a module of tensors, and a module as an ONNX file.

    step = vssn.export.FilterStep(model)
    vssn.export.to_onnx(step, "filter.onnx")

torch.export.export takes VSSN, VSSNLayer and GRU as they are, T and B dynamic; `vssn_kernels.decompositions()` takes
their ops apart. torch.onnx.export takes them too; `to_onnx` adds names, dynamic sizes and a look at the result.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vssn.errors import PackageError, TargetError
from vssn.nn.interface import SequenceModel, require_model
from vssn.utils.evaluation_mode import evaluating, time_major
from vssn.utils.packages import needing
from vssn_kernels.ops.torch_internals import ANOTHER_VERSION


class Step(nn.Module):
    """What the steps share: a model, and the state that it carries from one to the next. Noise of zeros gives means;
    drawn from a standard normal distribution, samples."""

    result: str  # what is returned before the state

    def __init__(self, model: SequenceModel) -> None:
        require_model(model)
        super().__init__()
        self.model = model
        self.kind = type(self.start(1))

    def start(self, batch_size: int) -> Any:
        """The state before the first frame: a named tuple of d [B, D], z [B, Z], x_last [B, F] and, of a causal model,
        a [B, A]."""
        size = self.model.control_size
        leading = (batch_size, 0) if self.model.batch_first else (0, batch_size)
        u = self.model.a_parameter().new_zeros(*leading, size) if size else None
        return self.model.generate(0, batch_size, u=u).state

    def example(self, batch_size: int = 2) -> dict[str, Any]:
        """Arguments of `forward` by their names: the state to start from, else zeros."""
        like, (w_size, z_size) = self.model.a_parameter(), self.model.noise_sizes
        sizes = {"eps_w": w_size, "eps_z": z_size} | ({"u": self.model.control_size} if self.model.control_size else {})
        rows = {name: like.new_zeros(batch_size, size) for name, size in sizes.items()}
        return {"state": tuple(part.detach() for part in self.start(batch_size))} | rows

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        return (self.result, *(f"next_{name}" for name in self.kind._fields))

    def _generate(
        self, state: tuple[Tensor, ...], noise: tuple[Tensor, Tensor], u: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """E[x_t | z_t, d_t] [B, X], d_t, z_t and the controls."""
        d, z, x_last, *_ = state
        controls = self.model.control(x_last, None if u is None else u[None])
        d, z = self.model.step_from_prior(controls, d, z, noise)
        mean: Tensor = self.model.likelihood.mean(self.model.decode(z[None], d[None]))[0]
        return mean, d, z, controls


class GenerationStep(Step):
    """One frame of the generative model from the state behind the frame before, w and z from their priors."""

    result = "mean"

    def forward(
        self, state: tuple[Tensor, ...], eps_w: Tensor, eps_z: Tensor, u: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The frame's mean [B, X], then the state of the next step where that mean is what is fed back.

        Args:
            state: as `start` gives it, or a step.
            eps_w, eps_z: [B, W], [B, Z] standard normal, or zeros.
            u: [B, U] external control of the frame.
        """
        mean, d, z, controls = self._generate(state, (eps_w[None], eps_z[None]), u)
        return mean, *self.model.behind(self.kind(*state), controls, d, z, self.model.frames(mean[None], None))


class FilterStep(Step):
    """One frame of filtering: what was expected, then the state that has seen the frame.

    Of a causal model this is its own inference, as `model.filter` makes it. Of another, the posterior of a chunk of
    one frame, q(w_t | x_t, u_t) and q(z_t | z_{t-1}, a_t) with a_{t+1} = 0: of x_{<=t} alone too.
    """

    result = "predicted"

    def example(self, batch_size: int = 2) -> dict[str, Any]:
        """Arguments of `forward` by their names: the state to start from, else zeros."""
        x = self.model.a_parameter().new_zeros(batch_size, self.model.x_size)
        return {"x": x, **super().example(batch_size)}

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...], eps_w: Tensor, eps_z: Tensor, u: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The mean of x_t by the priors' means before x_t is seen [B, X], then the state behind x_t.

        Args:
            x: [B, X] the frame.
            state: as `start` gives it, or a step.
            eps_w, eps_z: [B, W], [B, Z] standard normal, or zeros.
            u: [B, U] external control of the frame.
        """
        noise = (eps_w[None], eps_z[None])
        predicted, *_ = self._generate(state, (torch.zeros_like(noise[0]), torch.zeros_like(noise[1])), u)
        with time_major(self.model):
            given = self.model.prepare(x[None], None if u is None else u[None], state=self.kind(*state))
        return predicted, *self.model.infer(given, noise)[2]


def to_onnx(
    module: nn.Module,
    file: str | Path,
    args: Sequence[Any] | None = None,
    *,
    dynamic_shapes: tuple[Any, ...] | dict[str, Any] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Any:
    """Writes a module in evaluation mode as an ONNX file, which is checked.

    `vssn.GRU` becomes the node GRU, as torch.nn.GRU does, without lengths; another recurrence over a fixed number of
    steps so many steps, over a dynamic one the node Scan. Checks of values (a likelihood's support, NaN) are left out.

    Args:
        module: of tensors to tensors: a step of this file, a layer, a module of your own with models in it.
        file: to write.
        args: example tensors; None for a step of this file, whose batch is then dynamic.
        dynamic_shapes, input_names, output_names: as torch.onnx.export takes them.

    Returns:
        torch.onnx.ONNXProgram

    Raises:
        PackageError: the extra onnx is not installed, or this PyTorch is too old for it.
        TargetError: the file cannot be written.
    """
    with needing("onnx"):
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx.export writes with it
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if args is None:
        if not isinstance(module, Step):
            raise TypeError("args must be given: example tensors for a call of the module")
        example = module.example()
        args = tuple(example.values())
        batch = torch.export.Dim("B")
        dynamic_shapes = dynamic_shapes or {
            name: tuple({0: batch} for _ in part) if isinstance(part, tuple) else {0: batch}
            for name, part in example.items()
        }
        names = [own for name in example for own in (module.kind._fields if name == "state" else (name,))]
        input_names, output_names = input_names or names, output_names or module.outputs
    if not traced_code_is_told():
        raise PackageError(
            f"an export to ONNX needs a newer torch.onnx.is_in_onnx_export than torch {torch.__version__} has; "
            f"{ANOTHER_VERSION}"
        )
    with evaluating(module), _quiet():
        program = torch.onnx.export(
            module,
            tuple(args),
            dynamic_shapes=dynamic_shapes,
            input_names=input_names,
            output_names=output_names,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    onnx.checker.check_model(program.model_proto, full_check=True)
    try:
        program.save(str(file))
    except OSError as error:
        raise TargetError(f"file: cannot write {file} ({error.strerror}); name another place") from None
    return program


def traced_code_is_told() -> bool:
    """That it is for ONNX, by torch.onnx.is_in_onnx_export(): our ops choose by it the forms that ONNX has. In PyTorch
    2.6 it is not."""
    return importlib.util.find_spec("torch.onnx._internal.exporter._flags") is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's advice is to those who write it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
