"""SequenceModel: a model of another class, with no layer to reach into, goes through bounds and filtering."""

from __future__ import annotations

import pytest
import torch
from foreign_model import Foreign
from small_models import LENGTHS, MODELS, batch, make

from vssn.inference.filtering import INFERENCES, latent_states, one_step_predictions, rollouts
from vssn.inference.importance import BOUNDS, sequence_bounds
from vssn.nn.interface import SequenceModel
from vssn_kernels.testing import assert_all_close


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
    with pytest.raises(TypeError, match=r"^model must be a SequenceModel, a vssn\.VSSN say, got GRU"):
        sequence_bounds(torch.nn.GRU(1, 1), torch.zeros(1, 1, 1))
