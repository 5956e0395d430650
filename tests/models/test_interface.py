"""SequenceModel: a model of another class, with no layer to reach into, goes through bounds and filtering."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import LENGTHS, MODELS, batch, make
from torch import Tensor

from vssn import VSSN, State
from vssn.inference.filtering import INFERENCES, latent_states, one_step_predictions, rollouts
from vssn.inference.importance import BOUNDS, sequence_bounds
from vssn.nn.interface import EncodedBatch, Floats, ParticleHooks, SequenceModel
from vssn_kernels.testing import assert_all_close


class Foreign(SequenceModel):
    """Another model, which happens to compute what a VSSN does."""

    def __init__(self, hidden: VSSN) -> None:
        super().__init__()
        self.hidden, self.batch_first, self.likelihood = hidden, hidden.batch_first, hidden.likelihood
        self.x_size, self.frame_size, self.control_size = hidden.x_size, hidden.frame_size, hidden.control_size

    def set_batch_first(self, batch_first: bool) -> None:
        super().set_batch_first(batch_first)
        self.hidden.set_batch_first(batch_first)

    @property
    def noise_sizes(self) -> tuple[int, int]:
        return self.hidden.noise_sizes

    def a_parameter(self) -> Tensor:
        return next(self.parameters())

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

    def particles(self, *given: Any) -> ParticleHooks:
        return self.hidden.particles(*given)

    def floats_per_frame(self, x: Tensor) -> Floats:
        return self.hidden.floats_per_frame(x)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_bounds_and_filtering_take_any_sequence_model(name: str, batch_first: bool) -> None:
    model = make(name)
    given = batch(model)
    x, u = given["x"], given["u"]
    if batch_first:
        model.set_batch_first(True)
        x, u = x.transpose(0, 1), None if u is None else u.transpose(0, 1)
    foreign = Foreign(model)
    for bound in BOUNDS:
        want, got = (
            sequence_bounds(one, x, u, LENGTHS, bound=bound, particles=3)._asdict() for one in (model, foreign)
        )
        assert_all_close(got, want, 1e-12, bound)
    for inference in INFERENCES:
        want, got = (latent_states(one, x, u, LENGTHS, inference=inference)._asdict() for one in (model, foreign))
        assert_all_close(got, want, 1e-12, inference)
    ahead = None if u is None else (u[:, :2] if batch_first else u[:2])
    for call in (one_step_predictions, lambda one, x, u, **more: rollouts(one, x, 2, u, ahead, **more)):
        want, got = ({"x": call(one, x, u, samples=2)} for one in (model, foreign))
        assert_all_close(got, want, 1e-12)
    assert foreign.batch_first == model.batch_first == model.layer.batch_first == batch_first


def test_what_is_missing_is_named() -> None:
    class Half(SequenceModel):
        """Without most of it."""

    with pytest.raises(TypeError, match="infer_prefixes"):
        Half()
    with pytest.raises(TypeError, match=r"^model must be a vssn\.VSSN, got GRU"):
        sequence_bounds(torch.nn.GRU(1, 1), torch.zeros(1, 1, 1))
