"""A recurrent state-space model written step by step with torch.nn, of the weights of an RSSMLayer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssn.nn.rssm_layer import RSSMLayer

T, B, X, U, H, Z, M, E = 7, 4, 6, 2, 5, 3, 8, 4
ACTS = {"elu": F.elu, "relu": F.relu, "tanh": torch.tanh, "silu": F.silu}


def episodes(steps: int = T, batch: int = B) -> Tensor:
    """Starts at the head, in the middle, at two steps in a row and at the end."""
    is_first = torch.zeros(steps, batch, dtype=torch.bool)
    for t, b in ((0, 0), (3, 0), (2, 1), (3, 1), (6, 2)):
        is_first[t, b] = True
    return is_first


class StepByStep(nn.Module):
    """As the papers write it: concatenations, nn.Linear, nn.GRUCell, one step after the other."""

    def __init__(self, layer: RSSMLayer, options: dict[str, Any]) -> None:
        super().__init__()
        m, e = layer.mlp_size, layer.joint_size
        self.act = ACTS[options.get("activation", "elu")]
        self.scale, self.floor = options.get("scale", "softplus"), options.get("min_std", 0.1)
        self.min_logvar = options.get("min_logvar", -12.0)
        self.joint = nn.Linear(Z + layer.action_size, e)
        self.cell = nn.GRUCell(e, H)
        self.prior_hidden, self.prior_out = nn.Linear(H, m), nn.Linear(m, 2 * Z)
        self.post_hidden, self.post_out = nn.Linear(H + X, m), nn.Linear(m, 2 * Z)
        self.h_0, self.z_0 = nn.Parameter(torch.zeros(H)), nn.Parameter(torch.zeros(Z))
        self.double()
        for parameter, value in zip(self.parameters_in_order(), weights_of(layer), strict=True):
            parameter.data.copy_(value.detach())

    def parameters_in_order(self) -> list[Tensor]:
        linear = (self.joint, self.prior_hidden, self.prior_out, self.post_hidden, self.post_out)
        cell = self.cell
        return [
            *(part for one in linear for part in (one.weight, one.bias)),
            *(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh),
            *(self.h_0, self.z_0),
        ]

    def gaussian(self, out: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = out.chunk(2, -1)
        if self.scale == "softplus":
            return mean, F.softplus(raw) + self.floor
        return mean, torch.exp((self.min_logvar + F.softplus(raw - self.min_logvar)) / 2)

    def imagine_step(self, h: Tensor, z: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.cell(self.act(self.joint(torch.cat((z, action), -1))), h)
        return (h, *self.gaussian(self.prior_out(self.act(self.prior_hidden(h)))))

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.h_0.expand(batch, H), self.z_0.expand(batch, Z)

    def observe(
        self, embed: Tensor, action: Tensor, noise: Tensor, is_first: Tensor | None, state: tuple[Tensor, ...] | None
    ) -> dict[str, Tensor]:
        h, z = self.start(embed.shape[1]) if state is None else state
        h_0, z_0 = self.start(embed.shape[1])
        found: dict[str, list[Tensor]] = {}
        for t in range(len(embed)):
            a = action[t]
            if is_first is not None:
                go_on = 1.0 - is_first[t, :, None].double()
                h, z, a = go_on * h + (1 - go_on) * h_0, go_on * z + (1 - go_on) * z_0, go_on * a
            h, prior_mean, prior_std = self.imagine_step(h, z, a)
            mean, std = self.gaussian(self.post_out(self.act(self.post_hidden(torch.cat((h, embed[t]), -1)))))
            z = mean + std * noise[t]
            parts = {"mean": mean, "std": std, "stoch": z, "deter": h, "prior_mean": prior_mean, "prior_std": prior_std}
            for name, part in parts.items():
                found.setdefault(name, []).append(part)
        return {name: torch.stack(parts) for name, parts in found.items()}


def weights_of(layer: RSSMLayer) -> list[Tensor]:
    """In the order of `StepByStep.parameters_in_order`."""
    chain, z = layer.chain, layer.latent_size
    action = layer.action.weight if layer.action.weight is not None else torch.empty(layer.joint_size, 0).double()
    h_0, z_0 = (torch.zeros(H), torch.zeros(z)) if layer.h_0 is None or layer.z_0 is None else (layer.h_0, layer.z_0)
    return [
        *(torch.cat((chain.weight_embed, action), 1), layer.action.bias),
        *(layer.prior.hidden.weight, layer.prior.hidden.bias, layer.prior.out.weight, layer.prior.out.bias),
        *(torch.cat((chain.weight_h, layer.frame.weight), 1), layer.frame.bias, chain.weight_out, chain.bias_out),
        *(chain.weight_zh, chain.weight_hh, layer.gates_bias, chain.bias_hh),
        *(h_0, z_0),
    ]


def of_layer(layer: RSSMLayer, peer: StepByStep) -> dict[str, Tensor]:
    """The gradients that stand in the peer's parameters, by the layer's names."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in peer.parameters_in_order()]
    u, z = layer.action_size, layer.latent_size
    names = [
        *("joint", "action.bias", "prior.hidden.weight", "prior.hidden.bias", "prior.out.weight", "prior.out.bias"),
        *("post", "frame.bias", "chain.weight_out", "chain.bias_out"),
        *("chain.weight_zh", "chain.weight_hh", "gates_bias", "chain.bias_hh", "h_0", "z_0"),
    ]
    found = dict(zip(names, grads, strict=True))
    joint, post = found.pop("joint"), found.pop("post")
    found |= {"chain.weight_embed": joint[:, :z], "chain.weight_h": post[:, :H], "frame.weight": post[:, H:]}
    if u:
        found["action.weight"] = joint[:, z:]
    if layer.h_0 is None:
        del found["h_0"], found["z_0"]
    return found
