"""A step of a causal VSSN at the means of its latents as one call: the prediction of the frame to come, then inference
from the frame that came, over weights packed once.

    u part     what x_{t-1} and the external control add to the gates of d, once for both halves
    predict    d' = GRU(d_{t-1}, [u_t, 0]);  z' = the prior's mean;  the likelihood's parameters of (z', d')
    infer      w = the mean of q(w_t | x_t, u_t);  d_t;  a_t;  z_t = the mean of q(z_t | z_{t-1}, a_t)

For plain networks (`is_plain`) on the CPU and few rows; others take the steps of `SequenceModel` itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from vssn.nn.blocks import (
    MLP,
    Embedding,
    GaussianMLP,
    LatentNetwork,
    SplitLinear,
    is_plain,
    is_plain_latent,
    is_plain_linear,
    is_plain_recurrence,
)
from vssn.nn.layer import AnyState, VSSNLayer
from vssn_kernels.ops.program import make_program, takes

MOST_ROWS = 16  # more are worth a matrix product


class Means(NamedTuple):
    d: Tensor  # [B, D]
    z: Tensor  # [B, Z]
    parameters: Tensor  # [1, B, P] of the frame predicted


def make_filter_steps(model: Any, batch: int) -> FilterSteps | None:
    """Of a VSSN; None where its own steps must do."""
    scaled = getattr(model, "scaling", None) is not None
    other = model.decoder is not None or scaled or model.held_out  # frames of which the networks see something else
    if batch > MOST_ROWS or not model.causal or other:
        return None
    layer = model.layer
    plain = is_plain(model.emission, MLP) and model.emission._is_fused()
    for encoder in (model.encoder, model.control_encoder):
        plain &= encoder is None or (is_plain(encoder, Embedding) and is_plain_linear(cast(Embedding, encoder).linear))
    if layer.hidden_size:
        plain &= is_plain_recurrence(layer.duration)
    if layer.noise_size:
        plain &= is_plain(layer.noise_posterior, GaussianMLP) and layer.noise_posterior._is_fused()
    if layer.latent_size:
        plain &= is_plain_recurrence(layer.backward_recurrence)
        for network in (layer.posterior, layer.prior):
            plain &= is_plain_latent(network)
            plain &= network.context is None or is_plain(network.context, SplitLinear)
    like = model.a_parameter()
    if not plain or not takes(tuple(model.parameters())) or make_program(like) is None:
        return None
    return FilterSteps(model, batch)


class FilterSteps:
    """Steps of `batch` rows, their states in one memory.

    Args:
        model: a VSSN that `make_filter_steps` takes; its weights are copied.
    """

    def __init__(self, model: Any, batch: int) -> None:
        program = make_program(model.a_parameter())
        assert program is not None
        self.model, self.program, layer = model, program, model.layer
        support = model.likelihood.support
        self.support = float(support.low), float(support.high), bool(support.whole)
        sizes = (layer.hidden_size, layer.latent_size, model.likelihood.parameter_size)
        self.d, self.z, self.parameters = map(program.place, sizes)  # side by side: what comes back
        self.sizes, self.returned = sizes, sum(sizes)
        self.a = program.place(layer.backward_size) if layer.carries_a else -1
        self.x, self.x_last = program.place(model.frame_size), program.place(model.frame_size)
        self.u = program.place(model.control_size)
        embedded = model.encoder is not None
        self.e_last = program.place(layer.input_size) if embedded else self.x_last
        self._write(model, layer)
        program.finish()
        like = model.a_parameter()
        self.memory = torch.zeros(batch, program.size, dtype=like.dtype)
        if model.masked:
            self.memory[:, self.x + model.x_size : self.x + model.frame_size] = 1

    def _write(self, model: Any, layer: VSSNLayer) -> None:
        """The instructions."""
        program, d_size, z_size = self.program, layer.hidden_size, layer.latent_size
        external = self.u
        if model.control_encoder is not None:
            external = self._embed(model.control_encoder, self.u)
        controls = {"previous": [self.e_last], "external": [external], "both": [self.e_last, external], "none": []}
        control = controls[layer.control]
        gates_x = gates_h = -1
        predicted_d, predicted_z = program.place(d_size), program.place(z_size)
        if d_size:
            own, of_w = self._split(layer.duration.input)
            gates_x = program.linear(list(zip(control, own, strict=True)), layer.duration.input.bias)
            gates_h = program.linear([(self.d, layer.duration.weight_hh)], layer.duration.bias_hh)
            program.gru(predicted_d, gates_x, gates_h, self.d, d_size)
        parents_ahead = [predicted_d] if d_size else control if layer.control in ("external", "both") else []
        if z_size:
            self._latent(layer.prior, parents_ahead, predicted_z)
        emission = model.emission
        split = emission.hidden.weight.split(emission.hidden.in_sizes, 1)
        hidden = program.linear(list(zip((predicted_z, predicted_d), split, strict=True)), emission.hidden.bias)
        program.activate(hidden, len(emission.hidden.bias), emission.activation)
        out = program.linear([(hidden, emission.out.weight)], emission.out.bias)
        program.copy(self.parameters, out, self.sizes[2])
        self.ahead = len(program)

        e = self.x if model.encoder is None else self._embed(cast(Embedding, model.encoder), self.x)
        if d_size:
            if layer.noise_size:
                w = self._noise(layer.noise_posterior, [e, *control])
                gates_x = program.linear([(w, of_w)], None, gates_x)
            program.gru(self.d, gates_x, gates_h, self.d, d_size)
        parents = [self.d] if d_size else parents_ahead
        if z_size:
            recurrence = layer.backward_recurrence
            whole = recurrence.input.weight.split(recurrence.input.in_sizes, 1)
            a_x = program.linear(list(zip((*parents, e), whole, strict=True)), recurrence.input.bias)
            a_h = program.linear([(self.a, recurrence.weight_hh)], recurrence.bias_hh)
            program.gru(self.a, a_x, a_h, self.a, layer.backward_size)
            z, prior_mean = program.place(z_size), program.place(z_size)
            self._latent(layer.posterior, [self.a], z)
            if layer.residual_posterior:
                self._latent(layer.prior, parents, prior_mean)
                program.add(z, prior_mean, z_size)
            program.copy(self.z, z, z_size)
        if self.e_last != self.x_last:
            program.copy(self.e_last, e, layer.input_size)
        program.copy(self.x_last, self.x, model.frame_size)

    def _split(self, linear: SplitLinear) -> tuple[list[Tensor], Tensor]:
        """The weights of the controls, and that of w, which comes last."""
        *own, of_w = linear.weight.split(linear.in_sizes, 1)
        return own, of_w

    def _embed(self, network: Embedding, place: int) -> int:
        out = self.program.linear([(place, network.linear.weight)], network.linear.bias)
        self.program.activate(out, network.linear.out_features, network.activation)
        return out

    def _noise(self, network: GaussianMLP, inputs: list[int]) -> int:
        """The mean of w."""
        split = network.hidden.weight.split(network.hidden.in_sizes, 1)
        hidden = self.program.linear(list(zip(inputs, split, strict=True)), network.hidden.bias)
        self.program.activate(hidden, len(network.hidden.bias), network.activation)
        return self.program.linear([(hidden, network.out.weight.chunk(2)[0])], network.out.bias.chunk(2)[0])

    def _latent(self, network: LatentNetwork, inputs: list[int], out: int) -> None:
        """The mean of z."""
        weights, bias = [network.weight_z], network.bias
        if network.context is not None:
            weights += network.context.weight.split(network.context.in_sizes, 1)
            bias = network.context.bias
        hidden = self.program.linear(list(zip((self.z, *inputs), weights, strict=True)), bias)
        self.program.activate(hidden, len(network.weight_z), network.activation)
        mean = self.program.linear([(hidden, network.out.weight.chunk(2)[0])], network.out.bias.chunk(2)[0])
        self.program.copy(out, mean, network.latent_size)

    @property
    def state(self) -> AnyState:
        """[B, ·] each, copies."""
        layer, memory = self.model.layer, self.memory
        a = memory[:, self.a : self.a + layer.backward_size].clone() if layer.carries_a else None
        d = memory[:, self.d : self.d + layer.hidden_size].clone()
        z = memory[:, self.z : self.z + layer.latent_size].clone()
        return layer.make_state(d, z, memory[:, self.x_last : self.x_last + self.model.frame_size].clone(), a)

    @state.setter
    def state(self, state: AnyState) -> None:
        embedded = self.model._encode(state.x_last[None])[0]
        parts = [(self.d, state.d), (self.z, state.z), (self.x_last, state.x_last), (self.e_last, embedded)]
        a = self.model.layer.carried_a(state)
        for place, part in parts if a is None else [*parts, (self.a, a)]:
            self.memory[:, place : place + part.shape[1]] = part

    def step(self, x: Tensor, u: Tensor | None) -> Means | None:
        """Takes x [B, X] and u [B, U], of fitting shapes. None, and the state stays, where they are not finite or not
        in the likelihood's support, and where this is not the time to read them."""
        return self._run(x, u, 0, len(self.program))

    def predict(self, u: Tensor | None) -> Means | None:
        """The parameters alone are new. Arguments as in `step`."""
        return self._run(None, u, 0, self.ahead)

    def _run(self, x: Tensor | None, u: Tensor | None, first: int, last: int) -> Means | None:
        given = [part for part in (x, u) if part is not None]
        if not takes(tuple(given)) or any(part.stride(-1) != 1 or part.dtype != self.memory.dtype for part in given):
            return None
        if not self.program.run(self.memory, x, u, self.x, self.u, first, last, self.support):
            return None
        d, z, parameters = self.memory[:, : self.returned].clone().split(self.sizes, 1)
        return Means(d, z, parameters[None])
