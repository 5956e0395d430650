"""What a model of sequences is to training, scores, bounds and filtering: they know this class, no model's weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from vssn.nn.layer import State


class EncodedBatch(NamedTuple):
    """What the recurrences take, time-major, with zeros at padding and where x is not observed."""

    x: Tensor  # [T, B, X]
    observed: Tensor | None  # [T, B, X] bool
    valid: Tensor | None  # [T, B] bool
    frames: Tensor  # [1+T, B, F] what the networks see, behind the frame before the first
    embedded: Tensor  # [T, B, E] of x_t
    controls: tuple[Tensor, ...]  # u_t: each [T, B, ·]
    start: State | None  # the one given; None: the model's own


class SequenceOutput(NamedTuple):
    """What a call of a model returns; [B, T] in the place of [T, B] with batch_first."""

    loss: Tensor  # scalar, nats per frame
    elbo: Tensor  # [B] strict lower bound on log p(x_{1:T}), nats per sequence
    reconstruction: Tensor  # [T, B] log p(x_t | z_t, d_t)
    kl_z: Tensor  # [T, B]
    kl_w: Tensor  # [T, B]
    state: State


class Generation(NamedTuple):
    x: Tensor  # [T, B, X] what was fed back: samples, or means
    mean: Tensor  # [T, B, X] E[x_t | z_t, d_t]
    state: State


class PriorSteps(NamedTuple):
    """A model's own functions of these names, prepared."""

    step: Callable[..., tuple[Tensor, Tensor]]  # (controls, d, z, noise) -> (d, z)
    decode: Callable[[Tensor, Tensor], Tensor]  # (z, d) -> parameters


class Floats(NamedTuple):
    """Numbers that a bound holds, for its plan of memory."""

    shared: int  # for a frame of a sequence
    states: int  # for a frame of a particle, up to its hidden inputs
    emission: int  # and from there on
    between: int  # for a particle between two parts of the frames


class ParticleHooks(Protocol):
    """What a model computes for weighted particles of a batch; particle k of sequence b is row k B + b.

    d and a stand for what is run along the frames in whole, forward and backward; z for what is drawn frame by frame.
    """

    def kinds(self, particles: int) -> int:
        """How many of the particles differ in d and a: all, or 1 where no noise enters them."""
        ...

    def edges(self, kinds: int) -> tuple[Tensor, Tensor]:
        """d before the first frame and a behind the last, each [kinds B, ·]."""
        ...

    def first_z(self, particles: int) -> Tensor:
        """z before the first frame, [k B, Z]."""
        ...

    def states(
        self, eps_w: Tensor, start: int, stop: int, d_before: Tensor, a_after: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Of the frames start..stop-1: log p(w)/q(w) [S, k, B], d [S, kinds B, D], the last d, a and the first a.

        a_after: a_{stop} [kinds B, A]; None: d alone is wanted.
        """
        ...

    def hidden_inputs(self, d: Tensor, a: Tensor | None, start: int, stop: int) -> tuple[Tensor, ...] | None:
        """What `latents` takes of d and a, each [S, kinds B, ·]; None without a latent."""
        ...

    def latents(
        self, hidden_inputs: tuple[Tensor, ...] | None, z_before: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """z [S, k B, Z] and log p(z)/q(z) [S, k B], from z_before [k B, Z] and eps [S, k B, Z]."""
        ...


class SequenceModel(nn.Module, ABC):
    """A generative model p(x_{1:T} | u_{1:T}) of states d_t and z_t, with its inference.

    Noise is a pair (eps_w [T, B, W], eps_z [T, B, Z]) of standard normal numbers, whose sizes are `noise_sizes`; what
    is given to a method beside `forward` and `prepare` is time-major whatever batch_first says.
    """

    x_size: int  # X
    frame_size: int  # F: what the networks see of a frame
    control_size: int  # U, 0 without an external control
    batch_first: bool
    likelihood: Any  # a vssn.likelihoods.Likelihood
    num_sequences: int | None = None  # training sequences that share a KL of the weights; None: no such KL

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        state: State | tuple[Tensor, Tensor, Tensor] | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        kl_weight: float | Tensor = 1.0,
    ) -> SequenceOutput:
        """One sample of the objective and of its parts, from the states before x (None: a start anew) and the noise
        (None: drawn here)."""

    def set_batch_first(self, batch_first: bool) -> None:
        """For a model whose parts have a layout of their own to set theirs too."""
        self.batch_first = batch_first

    @property
    @abstractmethod
    def noise_sizes(self) -> tuple[int, int]:
        """W and Z."""

    @abstractmethod
    def a_parameter(self) -> Tensor:
        """One of the parameters, for the dtype and the device that all have."""

    @abstractmethod
    def prepare(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        state: State | tuple[Tensor, Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> EncodedBatch:
        """What inference starts from: the arguments of `forward`, checked and encoded."""

    @abstractmethod
    def infer(
        self, given: EncodedBatch, noise: tuple[Tensor, Tensor], lengths: Tensor | None = None, stop: int | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """d [T, B, D] and z [T, B, Z] of the frames before `stop` given those alone, and the state behind them."""

    @abstractmethod
    def infer_prefixes(self, given: EncodedBatch, noise: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """d [T, B, D] and z [T, B, Z], each of the frames up to its own alone: filtering."""

    @abstractmethod
    def step_from_prior(
        self, controls: tuple[Tensor, ...], d: Tensor, z: Tensor, noise: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """d_t [B, D] and z_t [B, Z] from those before them, one step; controls and noise [1, B, ·]."""

    def prior_steps(self) -> PriorSteps:
        """`step_from_prior` and `decode` for a loop of many steps, in which no weight changes."""
        return PriorSteps(self.step_from_prior, self.decode)

    @abstractmethod
    def control(self, x_last: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
        """The controls of one step, each [1, B, ·], from the frame before it [B, F] and the external [1, B, U]."""

    @abstractmethod
    def frames(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """What the networks see: [T, B, F] of x [T, B, X]."""

    @abstractmethod
    def decode(self, z: Tensor, d: Tensor) -> Tensor:
        """The likelihood's parameters [T, B, P] from z [T, B, Z], d [T, B, D]."""

    @abstractmethod
    def generate(
        self,
        steps: int,
        batch_size: int = 1,
        *,
        u: Tensor | None = None,
        state: State | None = None,
        sample: bool = True,
    ) -> Generation:
        """`steps` frames from the priors, behind `state` (None: from the start); u [T, B, U], or as batch_first says.
        What is fed back is samples of x_t, or its means."""

    @abstractmethod
    def forecast(
        self,
        x: Tensor,
        steps: int,
        *,
        u: Tensor | None = None,
        u_future: Tensor | None = None,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        sample: bool = True,
    ) -> Generation:
        """The `steps` frames behind x, from one sample of the state that x leads to."""

    @abstractmethod
    def particles(self, given: EncodedBatch, lengths: Tensor) -> ParticleHooks:
        """What weighted particles are made of, for the sequences given."""

    @abstractmethod
    def floats_per_frame(self, x: Tensor) -> Floats:
        """What `particles` and the likelihood hold. Args: x: [S, B, X] frames that are run together."""


def require_model(model: object) -> None:
    """Raises TypeError unless it is a SequenceModel, or a compiled one."""
    if not isinstance(getattr(model, "_orig_mod", model), SequenceModel):
        raise TypeError(f"model must be a SequenceModel, a vssn.VSSN say, got {type(model).__name__}")
