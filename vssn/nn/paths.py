"""What VSSNLayer computes beyond one pass over a sequence.

Filtering: the states of every prefix. Weighted particles: d and a of whole w paths, z step by step, and log p/q of
both; particle k of sequence b is row k B + b. What no w and no inferred d_0 enters is the same for every particle and
computed once: `kinds` is then 1, else the number of particles. Of plain networks also the part of a product that no w
enters; others are called with all of their inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vssn.nn.blocks import Recurrence, is_plain, is_plain_latent, is_plain_recurrence
from vssn.nn.latent_chain import fuses_latents, infer_latent, infer_latents_by_steps
from vssn.nn.layer import VSSNLayer
from vssn.nn.layer_densities import layer_densities
from vssn.nn.log_ratio import log_ratio
from vssn.nn.particles import Frame
from vssn.nn.states import AnyState, Inference
from vssn.utils.sequences import with_first


def infer_prefixes(
    layer: VSSNLayer,
    x: Tensor,
    controls: tuple[Tensor, ...],
    start: tuple[Tensor | None, Tensor],
    noise: tuple[Tensor, ...],
    a_0: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """d [T, B, D] and z [T, B, Z] of the last frame of every prefix x_{1:t}. Arguments as in `VSSNLayer.infer`; noise
    may go on behind the frames. A d_0 that is inferred is inferred anew from every prefix, with the same noise."""

    def infer(stop: int) -> Inference:
        before = tuple(part[:stop] for part in controls)
        return layer.infer(x[:stop], before, *start, (noise[0][:stop], noise[1][:stop], *noise[2:]), None, a_0)

    if layer.carries_a or not len(x):
        whole = infer(len(x))
        return whole.d, whole.z
    if layer.noise_smoothing or start[0] is None:
        last = [infer(stop) for stop in range(1, len(x) + 1)]
        return torch.stack([one.d_last for one in last]), torch.stack([one.z_last for one in last])
    # q(w_t | x_t, u_t) does not look ahead, so d_t is the same in every prefix: only a and z are not.
    d = infer(len(x)).d
    if not layer.latent_size:
        return d, d.new_zeros(*d.shape[:2], 0)
    return d, _filter_latents(layer, x, controls, start[1], d, noise[1])


def _filter_latents(
    layer: VSSNLayer, x: Tensor, controls: tuple[Tensor, ...], z_0: Tensor, d: Tensor, eps_z: Tensor
) -> Tensor:
    """z_t [T, B, Z] of every prefix's end, from d [T, B, D]."""
    parents = layer.parents(d, controls)
    recurrence, inputs = layer.backward_recurrence, (*parents, x)
    fused = fuses_latents(layer)
    # What plain networks share among the prefixes is computed once.
    gates = recurrence.input(*inputs) if is_plain(recurrence, Recurrence) else None
    prior = layer.prior.hidden_inputs(parents, x) if fused and layer.residual_posterior else None
    a_end, zs = d.new_zeros(d.shape[1], layer.backward_size), []
    for stop in range(1, len(d) + 1):
        if gates is None:
            a, _ = recurrence(tuple(part[:stop] for part in inputs), a_end, reverse=True)
        else:
            a, _ = recurrence.run(gates[:stop], a_end, reverse=True)
        if fused:
            hidden_inputs = layer.posterior.hidden_inputs((a,), a)
            own_prior = None if prior is None else prior[:stop]
            z, *_ = infer_latent(layer, hidden_inputs, own_prior, z_0, eps_z[:stop])
        else:
            before = tuple(part[:stop] for part in parents)
            z, *_ = infer_latents_by_steps(layer, a, before, z_0, eps_z[:stop])
        zs.append(z[-1])
    return torch.stack(zs)


def infer_noise(
    layer: VSSNLayer, x: Tensor, controls: tuple[Tensor, ...], eps_w: Tensor, lengths: Tensor | None, prefixes: bool
) -> Tensor:
    """w [T, B, W] as `VSSNLayer.infer` draws it, or `infer_prefixes`; eps_w may go on behind the frames."""
    eps_w = eps_w[: len(x)]
    if not layer.noise_size:
        return eps_w
    if not (prefixes and layer.noise_smoothing):
        mu, logvar = layer.infer_noise(x, controls, lengths)
        return mu + torch.exp(logvar / 2) * eps_w
    last = []
    for stop in range(1, len(x) + 1):
        mu, logvar = layer.infer_noise(x[:stop], tuple(part[:stop] for part in controls), None)
        last.append(mu[-1] + torch.exp(logvar[-1] / 2) * eps_w[stop - 1])
    return torch.stack(last) if last else eps_w


def floats_of_particles(layer: VSSNLayer) -> tuple[int, int, int, int]:
    """Numbers that `LayerParticles` holds for a frame of a sequence, for a frame of a particle up to its hidden inputs
    and from there on, and for a particle between two parts."""
    d, a, z, w, m = layer.hidden_size, layer.backward_size, layer.latent_size, layer.noise_size, layer.mlp_size
    shared = 4 * layer.input_size + 7 * d + 7 * a + 2 * m + 6 * w
    if layer.initial_size:  # all inputs of the backward recurrence, its gates, and b while q(w) is computed
        shared += layer.input_size + 4 * a
    states = 4 * w + 5 * d + (5 * a + 2 * m + 3 * z if z else 0)
    recurrences = ([layer.duration] if d else []) + ([layer.backward_recurrence] if z else [])
    if not all(is_plain_recurrence(recurrence) for recurrence in recurrences):
        states += 2 * layer.input_size + layer.control_size  # whole inputs for every particle
    return shared, states, d + 9 * z + 4 * m, d + a


class LayerParticles:
    """`vssn.nn.interface.ParticleHooks` of a layer.

    Args:
        x: [T, B, X] what the layer takes of every frame.
        controls: those that make u_t, each [T, B, ·].
        lengths: [B] int64.
        like: gives the dtype and the device of the states.
        state: of each sequence before its first frame; None: a start anew.
    """

    def __init__(
        self,
        layer: VSSNLayer,
        x: Tensor,
        controls: tuple[Tensor, ...],
        lengths: Tensor,
        like: Tensor,
        state: AnyState | None = None,
    ) -> None:
        self.layer, self.x, self.controls, self.lengths = layer, x, controls, lengths
        steps, self.batch = x.shape[:2]
        nothing = x.new_zeros(steps, self.batch, 0)
        self.start = layer.initial_state(self.batch, like) if state is None else (state.d, state.z)  # d_0, z_0
        self.a_0 = layer.carried_a(state)
        self.weight_noise = layer.weight_noise()  # one draw for all particles; None at evaluation
        self.duration_gates = self.backward_gates = None
        if layer.hidden_size and is_plain_recurrence(layer.duration):
            no_noise = x.new_zeros(steps, self.batch, layer.noise_size)
            self.duration_gates = layer.duration.input(*controls, no_noise)  # [T, B, 3D]
        self.mu_w, self.logvar_w = nothing, nothing
        ahead = layer.look_ahead(x, controls, lengths) if self.start[0] is None else None
        if ahead is not None:
            self.initial = layer.infer_initial(x, controls, lengths, ahead)  # of s, each [B, S]
        if layer.noise_size:
            self.mu_w, self.logvar_w = layer.infer_noise(x, controls, lengths, ahead)
        self.fused = bool(layer.latent_size) and fuses_latents(layer) and is_plain_latent(layer.prior)
        if layer.latent_size and is_plain_recurrence(layer.backward_recurrence):
            no_d = x.new_zeros(steps, self.batch, layer.hidden_size)
            self.backward_gates = layer.backward_recurrence.input(*layer.parents(no_d, controls), x)  # [T, B, 3A]

    def kinds(self, particles: int) -> int:
        return particles if self.layer.noise_size or self.layer.initial_size else 1

    def edges(self, kinds: int, eps_0: Tensor | None = None) -> tuple[Tensor, ...]:
        """d_0 [kinds B, D] and a_{T+1} [kinds B, A]; of an inferred d_0, from eps_0 [kinds, B, S], log p(s)/q(s)
        [kinds, B] too."""
        more: tuple[Tensor, ...] = ()
        if self.start[0] is not None:
            d = self.start[0].repeat(kinds, 1)
            more = () if eps_0 is None else (eps_0.new_zeros(eps_0.shape[:2]),)  # nothing is left to infer
        else:
            assert eps_0 is not None
            layer, (mu, logvar) = self.layer, self.initial
            s = mu + torch.exp(logvar / 2) * eps_0
            terms = (s - layer.initial_mu).square() * torch.exp(-layer.initial_logvar) + layer.initial_logvar
            more = ((eps_0.square() + logvar - terms).sum(-1) / 2,)
            d = layer.map_initial(s.flatten(0, 1))
        a = d.new_zeros(kinds * self.batch, self.layer.backward_size)
        if self.a_0 is not None:
            a = self.a_0.repeat(kinds, 1)
        if self.layer.carries_a:  # both run forward, side by side
            return torch.cat((d, a), -1), a[:, :0]
        return d, a, *more

    def first_z(self, particles: int) -> Tensor:
        """[k B, Z]."""
        return self.start[1].repeat(particles, 1)

    def states(
        self, eps_w: Tensor, start: int, stop: int, d_before: Tensor, a_after: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Of the frames start..stop-1: log p(w)/q(w) [S, k, B], d [S, kinds B, D], the last d, a and the first a.

        d_before: [kinds B, D], with a before the frames behind it where a runs forward.
        a_after: a_{stop} [kinds B, A]; None: d alone is wanted, and no a that runs backward is computed.
        """
        layer, frames = self.layer, slice(start, stop)
        if layer.carries_a:
            d_before, a_after = d_before.split((layer.hidden_size, layer.backward_size), -1)
        kinds = self.kinds(eps_w.shape[1])
        lengths = (self.lengths - start).clamp(0, stop - start).repeat(kinds)
        ratio = eps_w.new_zeros(eps_w.shape[:3])
        d, d_last = eps_w.new_zeros(stop - start, kinds * self.batch, 0), d_before
        if layer.hidden_size:
            w = eps_w[:, :kinds]  # of size 0 without noise
            if layer.noise_size:
                logvar = self.logvar_w[frames, None]
                w = self.mu_w[frames, None] + torch.exp(logvar / 2) * eps_w
                ratio = log_ratio(w, eps_w, logvar)
            if self.duration_gates is None:
                inputs = (*(self._of_kinds(part[frames], kinds) for part in self.controls), w.flatten(1, 2))
                d, d_last = layer.duration(inputs, d_before, lengths=lengths, weight_noise=self.weight_noise)
            else:
                gates = self.duration_gates[frames, None].expand(-1, kinds, -1, -1)
                if layer.noise_size:
                    gates = layer.duration.input.product(len(self.controls), w).add_(gates)
                d, d_last = layer.duration.run(
                    gates.flatten(1, 2), d_before, lengths=lengths, weight_noise=self.weight_noise
                )
                del gates
        if a_after is None or not layer.latent_size:
            return ratio, d, d_last, None, d_before.new_zeros(len(d_before), layer.backward_size)
        recurrence, reverse = layer.backward_recurrence, not layer.carries_a
        if self.backward_gates is None:
            parents = layer.parents(d, tuple(part[frames] for part in self.controls))
            inputs = (*parents, self._of_kinds(self.x[frames], kinds))
            a, a_edge = recurrence(inputs, a_after, lengths=lengths, reverse=reverse)
        else:
            gates = self.backward_gates[frames, None]
            if layer.hidden_size:
                own = recurrence.input.product(0, d)
                gates = own.view(stop - start, kinds, self.batch, -1).add_(gates)
            a, a_edge = recurrence.run(gates.flatten(1, 2), a_after, lengths=lengths, reverse=reverse)
        if layer.carries_a:
            return ratio, d, torch.cat((d_last, a_edge), -1), a, a_edge[:, :0]
        return ratio, d, d_last, a, a_edge

    def hidden_inputs(self, d: Tensor, a: Tensor | None, start: int, stop: int) -> tuple[Tensor, ...] | None:
        """What stands beside z in the posterior and in the prior: the hidden inputs of plain networks [S, kinds B, M],
        else a and the prior's parents, each [S, kinds B, ·]."""
        if a is None:
            return None
        parents = self.layer.parents(d, tuple(part[start:stop] for part in self.controls))
        if not self.fused:
            return a, *parents
        return self.layer.posterior.hidden_inputs((a,), a), self.layer.prior.hidden_inputs(parents, a)

    def latents(
        self, hidden_inputs: tuple[Tensor, ...] | None, z_before: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """z [S, k B, Z] and log p(z)/q(z) [S, k B] of a stretch of frames; None without a latent.

        Args:
            hidden_inputs: as `hidden_inputs` says, of every particle.
            z_before: [k B, Z].
            eps: [S, k B, Z].
        """
        layer = self.layer
        if hidden_inputs is None:
            return eps, None
        if self.fused:
            z, _, logvar = infer_latent(layer, hidden_inputs[0], hidden_inputs[1], z_before, eps)
            prior_mu, prior_logvar = layer.prior.from_hidden_inputs(with_first(z_before, z[:-1]), hidden_inputs[1])
        else:
            a, *parents = hidden_inputs
            z, _, logvar, prior_mu, prior_logvar = infer_latents_by_steps(layer, a, tuple(parents), z_before, eps)
        return z, log_ratio(z, eps, logvar, prior_mu, prior_logvar)

    def behind(self, d: Tensor, z: Tensor, x_last: Tensor) -> AnyState:
        if not self.layer.carries_a:
            return self.layer.make_state(d, z, x_last)
        d, a = d.split((self.layer.hidden_size, self.layer.backward_size), -1)
        return self.layer.make_state(d, z, x_last, a)

    def densities(self, eps_w: Tensor, eps_0: Tensor | None, frames: list[Frame]) -> tuple[Tensor, Tensor, Tensor]:
        return layer_densities(self, eps_w, eps_0, frames)

    def _of_kinds(self, rows: Tensor, kinds: int) -> Tensor:
        """[S, B, ·] to [S, kinds B, ·]."""
        return rows.repeat(1, kinds, 1)
