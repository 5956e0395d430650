"""Arithmetic and traffic of the problems, by formula."""

from __future__ import annotations

from benchmarks.problem import BACKWARD, FLOAT32_BYTES, FORWARD, Size


def gru_entries(hidden: int, inputs: int = 0) -> int:
    """Entries of W_hh [3H, H] and W_ih [3H, X]."""
    return 3 * hidden * (hidden + inputs)


def posterior_entries(hidden: int, latent: int) -> int:
    """Entries of weight_z [M, Z] and weight_out [2Z, M]."""
    return 3 * hidden * latent


def interleaved_entries(state: int, embed: int, hidden: int, latent: int) -> int:
    """Entries of weight_hh [3H, H], weight_zh [3H, E], weight_embed [E, Z], weight_h [M, H] and weight_out [2Z, M]."""
    return gru_entries(state, embed) + embed * latent + hidden * state + 2 * latent * hidden


def layer_entries(size: Size) -> int:
    """Entries of every weight matrix of the layer of this size."""
    _, _, _, x, d, z, w = size
    duration, backward = gru_entries(d, x + w), gru_entries(d, d + x)
    noise = d * 2 * x + 2 * w * d
    latent = d * d + posterior_entries(d, z)  # of the prior, and of the posterior alike
    return duration + backward + noise + 2 * latent


def train_step_entries(size: Size) -> int:
    """Entries of every weight matrix of the whole model: the layer's and the Bernoulli decoder's."""
    return layer_entries(size) + size.D * (size.Z + size.D) + size.X * size.D


def gaussian_bytes(numbers: int, rows: int, prior: bool, sample: bool) -> dict[str, int]:
    """Bytes read and written by the KL divergence (with its sample) of `rows` vectors of `numbers / rows` entries."""
    inputs = 2 + sample + 2 * prior  # mu, logvar, eps, the prior's two
    forward = (inputs + sample) * numbers + rows  # writes z and kl
    backward = (2 * inputs + sample) * numbers + rows  # reads the inputs and grad_z, grad_kl; writes each gradient
    return {FORWARD: FLOAT32_BYTES * forward, BACKWARD: FLOAT32_BYTES * (forward + backward)}


def bernoulli_bytes(numbers: int, rows: int) -> dict[str, int]:
    """Bytes read and written by the log-density of `rows` vectors of `numbers / rows` entries; x needs no gradient."""
    forward = 2 * numbers + rows  # reads logits and x, writes the sums
    backward = 3 * numbers + rows  # reads them and grad, writes the gradient of the logits
    return {FORWARD: FLOAT32_BYTES * forward, BACKWARD: FLOAT32_BYTES * (forward + backward)}
