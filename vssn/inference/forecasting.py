"""Frames to come: from the state that the frames seen lead to, the generative model runs on alone.

A sample of a forecast has a state of its own, a draw of the posterior, then w, z and x drawn step by step, x fed back:
together the samples are the predictive distribution p(x_{T+1:T+n} | x_{1:T}), as far as the posterior is right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn.inference.draws import by_path, check_quantiles, drawing, noise_of_one, of_layout, take_quantiles
from vssn.nn.given import require_converged
from vssn.nn.interface import Forecast, Generation, SequenceModel, require_model
from vssn.utils.checks import require_flag, require_size
from vssn.utils.sequences import check_control, check_sequences
from vssn.utils.values import NO_NAN_IN_U, require_finite


@torch.no_grad()
def forecast(
    model: SequenceModel,
    x: Tensor,
    steps: int,
    samples: int | None,
    quantiles: Sequence[float] | None,
    u: Tensor | None,
    u_future: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    *,
    sample: bool,
    seed: int | None,
    memory: int,
) -> Generation | Forecast:
    """`SequenceModel.forecast`."""
    require_model(model)
    require_size("steps", steps, 0)
    require_flag("sample", sample)
    check_quantiles(quantiles, samples)
    seen, _ = check_sequences(x, u, model.x_size, model.control_size, model.batch_first, model.a_parameter())
    to_come = seen.new_empty(steps, seen.shape[1], 0)
    ahead = check_control("u_future", u_future, to_come, model.control_size, model.batch_first, "steps")
    require_finite("u_future", ahead, NO_NAN_IN_U)
    if samples is None:
        if seed is not None:
            raise ValueError("samples must be given with seed; a single path follows from torch.manual_seed")
        state = model(x, u, lengths=lengths, noise=noise_of_one(model, x, u), mask=mask).state
        require_converged(state)
        return model.generate(steps, u=u_future, state=state, sample=sample)
    paths, mean = [], seen.new_zeros(steps, seen.shape[1], model.x_size)
    with drawing(model, x, u, lengths, mask, samples, seed, memory) as draws:
        for count, rows, row_lengths in draws.groups(samples):
            state = model.infer(rows, draws.noise(rows), row_lengths)[2]
            require_converged(state)
            controls = None if ahead is None else ahead.repeat(1, count, 1)
            run = model.generate(steps, u=controls, state=state, sample=sample)
            paths.append(by_path(run.x, count))
            mean += by_path(run.mean, count).sum(0)
    drawn = torch.cat(paths)
    levels = take_quantiles(drawn, quantiles)
    return Forecast(
        of_layout(mean / samples, model.batch_first),
        of_layout(drawn, model.batch_first),
        None if levels is None else of_layout(levels, model.batch_first),
    )
