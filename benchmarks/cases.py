"""What is measured: inputs and weights of each family of problems, drawn alike each time."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

import vssn
from benchmarks.counts import (
    bernoulli_bytes,
    gaussian_bytes,
    gru_entries,
    interleaved_entries,
    layer_entries,
    posterior_entries,
    train_step_entries,
)
from benchmarks.problem import Problem, Size

MIN_LOGVAR = -12.0


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator)


def _uniform(fan: int, *shape: int) -> Tensor:
    return (torch.rand(shape, generator=_generator) * 2 - 1) / math.sqrt(fan)


_generator = torch.Generator()


def _seed() -> None:
    """Every problem draws the same numbers whatever was made before it."""
    _generator.manual_seed(0)


# The letters of a case's sizes, in the order of the arguments; a problem of the whole model is named by its Size.
LETTERS = {
    "gru": "T B H X",
    "gru_step": "H X",
    "gru_sequence": "T B H",
    "gru_packed": "T B H",
    "posterior_sequence": "T B M Z",
    "interleaved_sequence": "T B H E M Z",
    "gaussian_rsample_kl": "T B Z",
    "gaussian_kl": "T B Z",
    "mlp": "T B Z D X",
    "gaussian_mlp": "T B X M W",
    "split_linear": "T B D X",
    "bernoulli_log_prob": "T B X",
}


def case_name(family: str, *sizes: object) -> str:
    """Such as "T=64 B=32 H=256"."""
    if family not in LETTERS:
        return str(sizes[0])
    # a GRU's X is its H unless it is given
    return " ".join(f"{k}={v}" for k, v in zip(LETTERS[family].split(), (*sizes, sizes[-1]), strict=False))


def gru(steps: int, batch: int, hidden: int, inputs: int | None = None) -> Problem:
    """A GRU with its input projection, as torch.nn.GRU is: x [T, B, X], X = H unless given."""
    _seed()
    inputs = hidden if inputs is None else inputs
    return Problem(
        "gru",
        case_name("gru", steps, batch, hidden, inputs),
        steps,
        steps * batch,
        {
            "x": _normal(steps, batch, inputs),
            "h0": _normal(batch, hidden),
            "weight_ih": _uniform(hidden, 3 * hidden, inputs),
            "weight_hh": _uniform(hidden, 3 * hidden, hidden),
            "bias_ih": _uniform(hidden, 3 * hidden),
            "bias_hh": _uniform(hidden, 3 * hidden),
        },
        {},
        {"output": _normal(steps, batch, hidden), "h_n": _normal(batch, hidden)},
        gru_entries(hidden, inputs),
    )


def gru_step(hidden: int) -> Problem:
    """One step of one sequence, as a stream comes in: x [1, 1, X], X = H, after the state h0 [1, H], to the output."""
    problem = gru(1, 1, hidden)
    given = ("x", "h0")
    return dataclasses.replace(
        problem,
        family="gru_step",
        case=case_name("gru_step", hidden),
        tensors={name: tensor for name, tensor in problem.tensors.items() if name not in given},
        constants={name: problem.tensors[name] for name in given},
        cotangents={"output": problem.cotangents["output"]},
    )


def gru_sequence(steps: int, batch: int, hidden: int) -> Problem:
    """The recurrence alone, the input projections given."""
    _seed()
    return Problem(
        "gru_sequence",
        case_name("gru_sequence", steps, batch, hidden),
        steps,
        steps * batch,
        {
            "gates_x": _normal(steps, batch, 3 * hidden),
            "h0": _normal(batch, hidden),
            "weight_hh": _uniform(hidden, 3 * hidden, hidden),
            "bias_hh": _uniform(hidden, 3 * hidden),
        },
        {},
        {"output": _normal(steps, batch, hidden), "h_n": _normal(batch, hidden)},
        gru_entries(hidden),
    )


def gru_packed(steps: int, batch: int, hidden: int) -> Problem:
    """The recurrence alone on a packed batch: lengths fall evenly from T to T / B, so about half of T B is valid."""
    _seed()
    lengths = [-(-steps * (batch - row) // batch) for row in range(batch)]
    batch_sizes = torch.tensor([sum(length > step for length in lengths) for step in range(steps)])
    rows = sum(lengths)
    return Problem(
        "gru_packed",
        case_name("gru_packed", steps, batch, hidden),
        steps,
        rows,
        {
            "gates_x": _normal(rows, 3 * hidden),
            "h0": _normal(batch, hidden),
            "weight_hh": _uniform(hidden, 3 * hidden, hidden),
            "bias_hh": _uniform(hidden, 3 * hidden),
        },
        {"batch_sizes": batch_sizes},
        {"output": _normal(rows, hidden), "h_n": _normal(batch, hidden)},
        gru_entries(hidden),
    )


def posterior_sequence(steps: int, batch: int, hidden: int, latent: int) -> Problem:
    """The sampled chain of latents alone, tanh, without the prior's mean."""
    _seed()
    return Problem(
        "posterior_sequence",
        case_name("posterior_sequence", steps, batch, hidden, latent),
        steps,
        steps * batch,
        {
            "context": _normal(steps, batch, hidden),
            "z0": _normal(batch, latent),
            "weight_z": _uniform(hidden, hidden, latent),
            "weight_out": _uniform(hidden, 2 * latent, hidden),
            "bias_out": _uniform(hidden, 2 * latent),
        },
        {"eps": _normal(steps, batch, latent)},
        {name: _normal(steps, batch, latent) for name in ("z", "mu", "logvar")},
        posterior_entries(hidden, latent),
    )


def interleaved_sequence(steps: int, batch: int, state: int, embed: int, hidden: int, latent: int) -> Problem:
    """The recurrence of a VRNN alone: what depends on x is given."""
    _seed()
    return Problem(
        "interleaved_sequence",
        case_name("interleaved_sequence", steps, batch, state, embed, hidden, latent),
        steps,
        steps * batch,
        {
            "gates_x": _normal(steps, batch, 3 * state),
            "embed_context": _normal(steps, batch, embed),
            "context": _normal(steps, batch, hidden),
            "h0": _normal(batch, state),
            "z0": _normal(batch, latent),
            "weight_embed": _uniform(latent, embed, latent),
            "weight_zh": _uniform(state, 3 * state, embed),
            "weight_hh": _uniform(state, 3 * state, state),
            "bias_hh": _uniform(state, 3 * state),
            "weight_h": _uniform(state, hidden, state),
            "weight_out": _uniform(hidden, 2 * latent, hidden),
            "bias_out": _uniform(hidden, 2 * latent),
        },
        {"eps": _normal(steps, batch, latent)},
        {
            "h": _normal(steps, batch, state),
            **{name: _normal(steps, batch, latent) for name in ("z", "mu", "logvar")},
        },
        interleaved_entries(state, embed, hidden, latent),
    )


def gaussian_rsample_kl(steps: int, batch: int, latent: int) -> Problem:
    """A reparameterised sample with its divergence from N(0, I)."""
    _seed()
    shape = (steps, batch, latent)
    return Problem(
        "gaussian_rsample_kl",
        case_name("gaussian_rsample_kl", steps, batch, latent),
        steps,
        steps * batch,
        {"mu": _normal(*shape), "logvar": _normal(*shape), "eps": _normal(*shape)},
        {},
        {"z": _normal(*shape), "kl": _normal(steps, batch)},
        bytes_moved=gaussian_bytes(steps * batch * latent, steps * batch, prior=False, sample=True),
    )


def gaussian_kl(steps: int, batch: int, latent: int) -> Problem:
    """The divergence between two diagonal Gaussians."""
    _seed()
    names = ("mu", "logvar", "prior_mu", "prior_logvar")
    return Problem(
        "gaussian_kl",
        case_name("gaussian_kl", steps, batch, latent),
        steps,
        steps * batch,
        {name: _normal(steps, batch, latent) for name in names},
        {},
        {"kl": _normal(steps, batch)},
        bytes_moved=gaussian_bytes(steps * batch * latent, steps * batch, prior=True, sample=False),
    )


def mlp(steps: int, batch: int, latent: int, state: int, outputs: int) -> Problem:
    """An emission network of (z, d): one hidden layer of D units, tanh, X outputs."""
    return _linear_layers("mlp", steps, batch, (latent, state), (state, outputs), latent, state, outputs)


def gaussian_mlp(steps: int, batch: int, inputs: int, hidden: int, noise: int) -> Problem:
    """The posterior of the noise w from (x, previous x): one hidden layer, mean and floored log-variance."""
    widths = (hidden, 2 * noise)
    return _linear_layers("gaussian_mlp", steps, batch, (inputs, inputs), widths, inputs, hidden, noise)


def split_linear(steps: int, batch: int, state: int, inputs: int) -> Problem:
    """The gates of the backward recurrence from (d, x): one linear layer of 3 D outputs."""
    return _linear_layers("split_linear", steps, batch, (state, inputs), (3 * state,), state, inputs)


def _linear_layers(
    family: str, steps: int, batch: int, inputs: tuple[int, ...], widths: tuple[int, ...], *sizes: int
) -> Problem:
    """One or two layers of those widths over several inputs, whose weights stand side by side in one matrix."""
    _seed()
    sequence, fan, width = (steps, batch), sum(inputs), widths[0]
    tensors = {f"input {i}": _normal(*sequence, size) for i, size in enumerate(inputs)}
    tensors |= {"weight": _uniform(fan, width, fan), "bias": _uniform(fan, width)}
    if len(widths) == 2:
        tensors |= {"weight_out": _uniform(width, widths[1], width), "bias_out": _uniform(width, widths[1])}
    names = {"gaussian_mlp": ("mu", "logvar")}.get(family, ("out",))
    return Problem(
        family,
        case_name(family, *sequence, *sizes),
        steps,
        steps * batch,
        tensors,
        {},
        {name: _normal(*sequence, widths[-1] // len(names)) for name in names},
        sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("weight")),
    )


def bernoulli_log_prob(steps: int, batch: int, outputs: int) -> Problem:
    """The log-density of binary frames, whose gradient nobody asks for."""
    _seed()
    shape = (steps, batch, outputs)
    return Problem(
        "bernoulli_log_prob",
        case_name("bernoulli_log_prob", *shape),
        steps,
        steps * batch,
        {"logits": _normal(*shape)},
        {"x": (torch.rand(shape, generator=_generator) < 0.1).float()},
        {"log_prob": _normal(steps, batch)},
        bytes_moved=bernoulli_bytes(steps * batch * outputs, steps * batch),
    )


def layer(size: Size) -> Problem:
    """VSSNLayer: its output and its divergence."""
    return _model("layer", size)


def train_step(size: Size) -> Problem:
    """VSSN with a Bernoulli decoder, control="previous", no embedding: its loss."""
    return _model("train_step", size)


def make_layer(size: Size) -> vssn.VSSNLayer:
    return vssn.VSSNLayer(size.X, size.D, size.Z, size.W, min_logvar=MIN_LOGVAR)


def make_model(size: Size) -> vssn.VSSN:
    return vssn.VSSN(size.X, size.D, size.Z, size.W, min_logvar=MIN_LOGVAR)


def _model(family: str, size: Size) -> Problem:
    _seed()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = make_layer(size) if family == "layer" else make_model(size)
    rows = size.T * size.B
    sequence = (size.T, size.B)
    whole = family == "train_step"
    return Problem(
        family,
        str(size),
        size.T,
        rows,
        {name.removeprefix("layer."): value.detach().clone() for name, value in module.named_parameters()},
        {
            "x": (torch.rand(*sequence, size.X, generator=_generator) < 0.1).float(),
            "eps_w": _normal(*sequence, size.W),
            "eps_z": _normal(*sequence, size.Z),
        },
        {"loss": torch.ones(())}
        if whole
        else {"output": _normal(*sequence, size.D + size.Z), "kl": _normal(*sequence)},
        train_step_entries(size) if whole else layer_entries(size),
        settings={"size": size},
    )
