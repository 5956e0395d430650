"""TorchRL's RSSM: RSSMRollout over its prior and posterior networks, where torchrl is installed.

It has Dreamer's networks with a biased softplus, softplus(raw + b) + min_std where softplus(b) + min_std = 1: the raw
biases that it is given are shifted by -b, so that both sides have one model. Its batches are [B, T, ·].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks import rssm
from benchmarks.contestant import Absent, Bound, Tensors, differentiable
from benchmarks.problem import Problem

SHIFT = math.log(math.expm1(1 - rssm.MIN_STD))  # b


def bind(problem: Problem) -> Bound:
    """Raises Absent."""
    try:
        from tensordict import TensorDict
        from tensordict.nn import NormalParamExtractor, TensorDictModule
        from torchrl.data import Unbounded
        from torchrl.modules.models.model_based import RSSMPosterior, RSSMPrior, RSSMRollout
    except ImportError as error:
        raise Absent(f"{error}; install it with: pip install torchrl") from error
    size: rssm.RSSMSize = problem.settings["size"]
    if not size.H == size.E == size.M:
        raise Absent(f"its networks have one size, got {size}")
    p, (x, u, eps) = differentiable(problem), (problem.constants[name] for name in ("x", "u", "eps"))
    device = x.device
    prior = RSSMPrior(Unbounded(size.U), size.H, size.H, size.Z, action_dim=size.U, device=device)
    posterior = RSSMPosterior(size.H, size.Z, rnn_hidden_dim=size.H, obs_embed_dim=size.X, device=device)
    for projector in (prior.rnn_to_prior_projector, posterior.obs_rnn_to_post_projector):
        projector[-1] = NormalParamExtractor(scale_mapping=f"biased_softplus_1.0_{rssm.MIN_STD}", scale_lb=0.0)
    rollout = RSSMRollout(
        TensorDictModule(
            prior,
            in_keys=["state", "belief", "action", "prior_noise"],
            out_keys=[("next", "prior_mean"), ("next", "prior_std"), "_", ("next", "belief")],
        ),
        TensorDictModule(
            posterior,
            in_keys=[("next", "belief"), ("next", "encoded_latents"), "noise"],
            out_keys=[("next", "posterior_mean"), ("next", "posterior_std"), ("next", "state")],
        ),
    )
    frames, actions, noise = (part.transpose(0, 1) for part in (x, u, eps))
    given = {
        "action": actions,
        "noise": noise,
        "prior_noise": torch.zeros_like(noise),  # nobody takes that draw
        "state": torch.zeros_like(noise),
        "belief": noise.new_zeros(size.B, size.T, size.H),
        ("next", "encoded_latents"): frames,
    }

    def call() -> Tensors:
        batch = TensorDict(given, batch_size=[size.B, size.T], device=device)
        found: Any = torch.func.functional_call(rollout, weights(p), (batch,))["next"]
        h, z, *gaussians = (
            found[name].transpose(0, 1)
            for name in ("belief", "state", "posterior_mean", "posterior_std", "prior_mean", "prior_std")
        )
        return {"loss": rssm.loss(p, x, h, z, (gaussians[0], gaussians[1]), (gaussians[2], gaussians[3]))}

    return Bound(p, call)


def weights(p: Tensors) -> Tensors:
    """By TorchRL's names."""

    def shifted(bias: Tensor) -> Tensor:
        mean, raw = bias.chunk(2)
        return torch.cat((mean, raw - SHIFT))

    chain = {name.removeprefix("layer.chain."): value for name, value in p.items()}
    own = {
        "rssm_prior.module.rnn.weight_ih": chain["weight_zh"],
        "rssm_prior.module.rnn.weight_hh": chain["weight_hh"],
        "rssm_prior.module.rnn.bias_ih": p["layer.gates_bias"],
        "rssm_prior.module.rnn.bias_hh": chain["bias_hh"],
    }
    layers = (
        (
            "rssm_prior.module.action_state_projector.0",
            torch.cat((chain["weight_embed"], p["layer.action.weight"]), 1),
            p["layer.action.bias"],
        ),
        ("rssm_prior.module.rnn_to_prior_projector.0", p["layer.prior.hidden.weight"], p["layer.prior.hidden.bias"]),
        ("rssm_prior.module.rnn_to_prior_projector.2", p["layer.prior.out.weight"], shifted(p["layer.prior.out.bias"])),
        (
            "rssm_posterior.module.obs_rnn_to_post_projector.0",
            torch.cat((chain["weight_h"], p["layer.frame.weight"]), 1),
            p["layer.frame.bias"],
        ),
        (
            "rssm_posterior.module.obs_rnn_to_post_projector.2",
            chain["weight_out"],
            shifted(chain["bias_out"]),
        ),
    )
    for name, weight, bias in layers:
        own |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return own
