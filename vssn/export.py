"""Models outside of PyTorch: one step of a model as a module of tensors, and a module as an ONNX file.

    step = vssn.export.FilterStep(model)
    vssn.export.to_onnx(step, "filter.onnx")

torch.export.export takes VSSN, VSSNLayer and GRU as they are, T and B dynamic; `vssn_kernels.decompositions()` takes
their ops apart. torch.onnx.export takes them too; `to_onnx` adds names, dynamic sizes and a look at the result.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vssn.errors import TargetError
from vssn.nn.interface import SequenceModel, require_model
from vssn.nn.layer import State
from vssn.utils.evaluation_mode import evaluating, time_major
from vssn.utils.packages import needing


class Step(nn.Module):
    """What the steps share: a model, and the tensors that it carries from one to the next.

    A step starts from zeros, or from what `model.layer.initial_state` says, and x_last of zeros. Noise of zeros gives
    means; drawn from a standard normal distribution, samples.
    """

    outputs: tuple[str, ...]

    def __init__(self, model: SequenceModel) -> None:
        require_model(model)
        super().__init__()
        self.model = model

    def example(self, batch_size: int = 2) -> dict[str, Tensor]:
        """Arguments of `forward` by their names, zeros."""
        like = self.model.a_parameter()
        sizes = dict(zip(("eps_w", "eps_z"), self.model.noise_sizes, strict=True))
        given = self.model.prepare(*self._no_frames(batch_size))
        d, z, _ = self.model.infer(given, self._no_noise(batch_size))
        sizes |= {"d": d.shape[-1], "z": z.shape[-1], "x_last": self.model.frame_size, "u": self.model.control_size}
        names = ("d", "z", "x_last", "eps_w", "eps_z", *(("u",) if self.model.control_size else ()))
        return {name: like.new_zeros(batch_size, sizes[name]) for name in names}

    def _no_frames(self, batch: int) -> tuple[Tensor, Tensor | None]:
        like, u_size = self.model.a_parameter(), self.model.control_size
        leading = (batch, 1) if self.model.batch_first else (1, batch)
        return like.new_zeros(*leading, self.model.x_size), like.new_zeros(*leading, u_size) if u_size else None

    def _no_noise(self, batch: int) -> tuple[Tensor, Tensor]:
        like, (w_size, z_size) = self.model.a_parameter(), self.model.noise_sizes
        return like.new_zeros(1, batch, w_size), like.new_zeros(1, batch, z_size)

    def _generate(
        self, d: Tensor, z: Tensor, x_last: Tensor, noise: tuple[Tensor, Tensor], u: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """E[x_t | z_t, d_t] [B, X], d_t and z_t."""
        controls = self.model.control(x_last, None if u is None else u[None])
        d, z = self.model.step_from_prior(controls, d, z, noise)
        mean: Tensor = self.model.likelihood.mean(self.model.decode(z[None], d[None]))[0]
        return mean, d, z


class GenerationStep(Step):
    """One frame of the generative model from the state behind the frame before, w and z from their priors."""

    outputs = ("mean", "next_d", "next_z", "next_x_last")

    def forward(
        self, d: Tensor, z: Tensor, x_last: Tensor, eps_w: Tensor, eps_z: Tensor, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The frame's mean [B, X], and d, z and x_last of the next step where that mean is what is fed back.

        Args:
            d, z: [B, D], [B, Z].
            x_last: [B, F] the frame before, as `model.frames` gives it.
            eps_w, eps_z: [B, W], [B, Z] standard normal, or zeros.
            u: [B, U] external control of the frame.
        """
        mean, d, z = self._generate(d, z, x_last, (eps_w[None], eps_z[None]), u)
        return mean, d, z, self.model.frames(mean[None], None)[0]


class FilterStep(Step):
    """One frame of filtering: what was expected, then the state that has seen the frame.

    The posterior is that of a chunk of one frame, q(w_t | x_t, u_t) and q(z_t | z_{t-1}, a_t) with a_{t+1} = 0: of
    x_{<=t} alone, whatever the model looks at in a whole sequence.
    """

    outputs = ("predicted", "next_d", "next_z", "next_x_last")

    def example(self, batch_size: int = 2) -> dict[str, Tensor]:
        """Arguments of `forward` by their names, zeros."""
        x = self.model.a_parameter().new_zeros(batch_size, self.model.x_size)
        return {"x": x, **super().example(batch_size)}

    def forward(
        self, x: Tensor, d: Tensor, z: Tensor, x_last: Tensor, eps_w: Tensor, eps_z: Tensor, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mean of x_t by the priors' means before x_t is seen [B, X], then d, z and x_last behind it.

        Args:
            x: [B, X] the frame.
            d, z, x_last: [B, D], [B, Z], [B, F] behind the frame before.
            eps_w, eps_z: [B, W], [B, Z] standard normal, or zeros.
            u: [B, U] external control of the frame.
        """
        noise = (eps_w[None], eps_z[None])
        none = (torch.zeros_like(noise[0]), torch.zeros_like(noise[1]))
        predicted, _, _ = self._generate(d, z, x_last, none, u)
        with time_major(self.model):
            given = self.model.prepare(x[None], None if u is None else u[None], state=State(d, z, x_last))
        _, _, state = self.model.infer(given, noise)
        return predicted, state.d, state.z, state.x_last


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
        PackageError: the extra onnx is not installed.
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
        dynamic_shapes = dynamic_shapes or {name: {0: batch} for name in example}
        input_names, output_names = input_names or list(example), output_names or module.outputs
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
