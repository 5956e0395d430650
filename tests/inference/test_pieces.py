"""Pieces of longer sequences: the model sees the frames before them, the scores are of the piece alone."""

from __future__ import annotations

from typing import Any

import pytest
import small_models
import small_vrnns
import torch
from small_models import U, X
from torch import Tensor

from vssn.data.batching import SequenceDataset, collate_sequences, sequence_loader
from vssn.inference.importance import sequence_bounds
from vssn.inference.scoring import draw_noise, evaluate, evaluate_bound
from vssn_kernels.testing import assert_close

BEFORE, PIECES = (4, 2, 5, 1), (3, 4, 1, 2)
Sequences = tuple[list[Tensor], list[Tensor]]


def whole() -> Sequences:
    """x and u of sequences with the frames before."""
    source = torch.Generator().manual_seed(2)
    lengths = [before + piece for before, piece in zip(BEFORE, PIECES, strict=True)]
    x = [(torch.rand(length, X, generator=source) < 0.4).float() for length in lengths]
    return x, [torch.randn(length, U, generator=source) for length in lengths]


def pieces(sequences: Sequences, controls: bool) -> SequenceDataset:
    def cut(parts: list[Tensor], ahead: bool) -> list[Tensor]:
        return [part[before:] if ahead else part[:before] for part, before in zip(parts, BEFORE, strict=True)]

    x, u = sequences
    before = SequenceDataset(cut(x, False), cut(u, False) if controls else None)
    return SequenceDataset(cut(x, True), cut(u, True) if controls else None, before=before)


def test_a_batch_holds_what_comes_before() -> None:
    dataset = pieces(whole(), controls=True)
    seen = []
    for batch in sequence_loader(dataset, 3, num_workers=0):
        assert batch.before is not None
        assert batch.before.u is not None
        for b, length in enumerate(batch.before.lengths.tolist()):
            seen.append(torch.cat((batch.before.x[:length, b], batch.x[: batch.lengths[b], b])))
    assert sorted(map(len, seen)) == sorted(map(len, whole()[0]))
    assert all(any(torch.equal(one, x) for x in whole()[0] if len(x) == len(one)) for one in seen)
    assert next(iter(sequence_loader(SequenceDataset(whole()[0]), 4))).before is None
    with pytest.raises(TypeError, match=r"items\[1\] must be a tuple \(x, u\)"):
        collate_sequences([(torch.ones(1, 1), None), (torch.ones(1, 1), None, (torch.ones(1, 1), None))])
    with pytest.raises(ValueError, match=r"^before must be a SequenceDataset of 4 sequences, got 1 sequences"):
        SequenceDataset(whole()[0], before=SequenceDataset(whole()[0][:1]))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["rnn", "external"])
def test_without_noise_the_score_is_that_of_these_frames_in_the_whole(name: str, batch_size: int) -> None:
    """Exact: a model that draws nothing has one state behind the frames before."""
    more = {"noise_size": 0, "latent_size": 0}
    options = small_models.MODELS[name][1]
    torch.manual_seed(0)
    model = small_models.VSSN(X, 5, **more, **options).double().eval()
    sequences = whole()
    terms = []
    for x, u, before in zip(*sequences, BEFORE, strict=True):
        control = u[:, None].double() if model.control_size else None
        terms.append(model(x[:, None].double(), control).reconstruction[before:, 0].detach())
    loader = sequence_loader(pieces(sequences, model.control_size > 0), batch_size)
    scores = evaluate(model, loader)
    assert scores.micro == pytest.approx(float(torch.cat(terms).mean()), rel=1e-12)
    assert scores.macro_without_first == pytest.approx(
        float(torch.stack([each[1:].mean() for each in terms if len(each) > 1]).mean()), rel=1e-12
    )
    assert scores.frames == sum(PIECES)
    for bound in ("iwae", "fivo"):
        found = evaluate_bound(model, loader, bound=bound, particles=3)
        assert found.micro == pytest.approx(scores.micro, rel=1e-9)
        assert found.frames == sum(PIECES)
    dataset = pieces(sequences, model.control_size > 0)
    anew = evaluate(model, sequence_loader(SequenceDataset(dataset.sequences, dataset.controls), batch_size))
    assert anew.micro != pytest.approx(scores.micro, rel=1e-4)


@pytest.mark.parametrize("name", ["causal", "causal_both_residual"])
def test_a_causal_model_scores_a_piece_as_it_does_in_the_whole(name: str) -> None:
    """With the noise that the score draws: for the frames before, then for the piece."""
    model = small_models.make(name)
    sequences = whole()
    total = 0.0
    generator = torch.Generator().manual_seed(0)
    loader = sequence_loader(pieces(sequences, model.control_size > 0), 1)
    for batch in loader:
        assert batch.before is not None
        noise = [draw_noise(model, part.x.double(), generator) for part in (batch.before, batch)]
        x = torch.cat((batch.before.x, batch.x)).double()
        u = None if batch.u is None else torch.cat((batch.before.u, batch.u)).double()
        out = model(x, u, noise=tuple(torch.cat(part) for part in zip(*noise, strict=True)))
        terms = (out.reconstruction - out.kl_z - out.kl_w)[len(batch.before.x) :]
        total += float(terms.detach().sum())
    assert evaluate(model, loader).micro == pytest.approx(total / sum(PIECES), rel=1e-11)


@pytest.mark.parametrize(
    "name", ["vssn", "srnn_residual", "smoothing", "causal", "causal_masked", "inferred", "inferred_smoothing", "vrnn"]
)
def test_particles_start_from_a_state(name: str) -> None:
    """In expectation the elbo of one particle is that of a call with the state."""
    kind: Any = small_vrnns if name == "vrnn" else small_models
    model = kind.make("both" if name == "vrnn" else name)
    given, count = kind.batch(model, steps=6, rows=1), 3000
    u = given["u"]
    noise = tuple(part[:3] if part.dim() == 3 else part for part in given["noise"])
    state = model(given["x"][:3], None if u is None else u[:3], noise=noise).state
    x = given["x"][3:].expand(-1, count, -1).contiguous()
    u = None if u is None else u[3:].expand(-1, count, -1).contiguous()
    far = [part.detach() if name == "x_last" else 8 - 5 * part.detach() for name, part in state._asdict().items()]
    states = type(state)(*(part.expand(count, -1).contiguous() for part in far))
    torch.manual_seed(0)
    with torch.no_grad():
        want = model(x, u, state=states).elbo
        anew = model(x, u).elbo
    got = sequence_bounds(model, x, u, bound="elbo", particles=1, state=states).total
    error = float((want.var() / count + got.var() / count).sqrt())
    assert abs(float(got.mean() - want.mean())) < 4.5 * error
    assert abs(float(anew.mean() - want.mean())) > 6 * error, "a start anew is told apart"
    few = (x[:, :50], u if u is None else u[:, :50])
    tight = sequence_bounds(model, *few, particles=50, state=states_of(states, 50))
    assert float(tight.total.mean()) > float(want.mean())


def states_of(states: Any, rows: int) -> Any:
    return type(states)(*(part[:rows] for part in states))


def test_a_batch_in_another_order_keeps_its_states() -> None:
    """Bounds run the longest sequences first."""
    model = small_models.make("rnn")
    given = small_models.batch(model)
    state = model(given["x"], noise=given["noise"]).state
    lengths = torch.tensor([1, 5, 2, 4])
    got = sequence_bounds(model, given["x"], lengths=lengths, particles=1, state=state).total
    want = model(given["x"], lengths=lengths, state=state).elbo
    assert_close("total", got, want.double(), 1e-11)
    with pytest.raises(ValueError, match=r"^state's d must have shape \[B, D\]"):
        sequence_bounds(model, given["x"], state=states_of(state, 2))
