"""A model of another class than VSSN, with no layer to reach into, for what takes any SequenceModel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vssn import VSSN, State
from vssn.nn.interface import EncodedBatch, Floats, Generation, ParticleHooks, SequenceModel, SequenceOutput
from vssn.utils.numbers import Count


class Foreign(SequenceModel):
    """Another model, which happens to compute what a VSSN does."""

    def __init__(self, hidden: VSSN) -> None:
        super().__init__()
        self.hidden, self.batch_first, self.likelihood = hidden, hidden.batch_first, hidden.likelihood
        self.initial_size = hidden.initial_size
        self.x_size, self.frame_size, self.control_size = hidden.x_size, hidden.frame_size, hidden.control_size

    def set_batch_first(self, batch_first: bool) -> None:
        super().set_batch_first(batch_first)
        self.hidden.set_batch_first(batch_first)

    @property
    def noise_sizes(self) -> tuple[int, int]:
        return self.hidden.noise_sizes

    def a_parameter(self) -> Tensor:
        return next(self.parameters())

    def forward(self, *given: Any, **more: Any) -> SequenceOutput:
        output: SequenceOutput = self.hidden(*given, **more)
        return output

    def prepare(self, *given: Any, **more: Any) -> EncodedBatch:
        return self.hidden.prepare(*given, **more)

    def infer(self, *given: Any) -> tuple[Tensor, Tensor, State]:
        return self.hidden.infer(*given)

    def infer_prefixes(self, *given: Any) -> tuple[Tensor, Tensor]:
        return self.hidden.infer_prefixes(*given)

    def step_from_prior(self, *given: Any) -> tuple[Tensor, Tensor]:
        return self.hidden.step_from_prior(*given)

    def control(self, *given: Any) -> tuple[Tensor, ...]:
        return self.hidden.control(*given)

    def frames(self, *given: Any) -> Tensor:
        return self.hidden.frames(*given)

    def decode(self, *given: Any) -> Tensor:
        return self.hidden.decode(*given)

    def generate(self, *given: Any, **more: Any) -> Generation:
        return self.hidden.generate(*given, **more)

    @property
    def causal(self) -> bool:
        return self.hidden.causal

    def infer_noise(self, *given: Any) -> Tensor:
        return self.hidden.infer_noise(*given)

    def particles(self, *given: Any) -> ParticleHooks:
        return self.hidden.particles(*given)

    def floats_per_frame(self, x: Tensor) -> Floats:
        return self.hidden.floats_per_frame(x)


class Twin(Foreign):
    """With arguments of its own, and without most of VSSN's."""

    def __init__(
        self, x_size: int, latent_size: int, width: Count = 5, *, likelihood: str = "bernoulli", **factory: Any
    ) -> None:
        super().__init__(VSSN(x_size, width, latent_size, 2, likelihood=likelihood, **factory))
