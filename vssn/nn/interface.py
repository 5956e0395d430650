"""What a model of sequences is to training, scores, bounds and filtering: they know this class, no model's weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vssn.errors import CheckpointError
from vssn.nn import hub, model_files
from vssn.nn.given import noise_shapes
from vssn.nn.states import AnyState
from vssn.utils.checks import require_flag
from vssn.utils.named_tuples import with_parts

DEFAULT_MEMORY = 2**30  # bytes, of the paths and particles that run at once
_Model = TypeVar("_Model", bound="SequenceModel")


class EncodedBatch(NamedTuple):
    """What the recurrences take, time-major, with zeros at padding and where x is not observed."""

    x: Tensor  # [T, B, X]
    observed: Tensor | None  # [T, B, X] bool
    valid: Tensor | None  # [T, B] bool
    frames: Tensor  # [1+T, B, F] what the networks see, behind the frame before the first
    embedded: Tensor  # [T, B, E] of x_t
    controls: tuple[Tensor, ...]  # u_t: each [T, B, ·]
    start: AnyState | None  # the one given; None: the model's own
    hidden: Tensor | None = None  # [T, B, X] bool: what coordinated dropout hides and the loss alone takes
    resets: Tensor | None = None  # [T, B] bool: where a sequence starts anew, of a model that takes them


class Hiding(NamedTuple):
    """For coordinated dropout of entries that are drawn already, in the place of the share alone."""

    share: float
    entries: Tensor  # [T, B, X] bool whatever batch_first says, True where hidden

    @classmethod
    def draw(cls, share: float, x: Tensor) -> Hiding:
        """For x [T, B, X], as a model draws it."""
        return cls(share, torch.rand_like(x, dtype=torch.float32) < share)


class SequenceOutput(NamedTuple):
    """What a call of a model returns; [B, T] in the place of [T, B] with batch_first."""

    loss: Tensor  # scalar, nats per frame
    elbo: Tensor  # [B] strict lower bound on log p(x_{1:T}), nats per sequence
    reconstruction: Tensor  # [T, B] log p(x_t | z_t, d_t)
    kl_z: Tensor  # [T, B]
    kl_w: Tensor  # [T, B]; at the first frame with that of what is inferred before it
    state: AnyState


class Generation(NamedTuple):
    x: Tensor  # [T, B, X] what was fed back: samples, or means
    mean: Tensor  # [T, B, X] E[x_t | z_t, d_t]
    state: AnyState


class Forecast(NamedTuple):
    """Frames to come; [B, T, X] in the place of [T, B, X] with batch_first, here and below."""

    mean: Tensor  # [T, B, X] over the samples, of E[x_t | z_t, d_t]
    samples: Tensor  # [S, T, B, X]
    quantiles: Tensor | None  # [Q, T, B, X] of the samples


class Imputation(NamedTuple):
    """A sequence with its missing entries filled in; what was observed stands in all three as it came."""

    mean: Tensor  # [T, B, X]
    samples: Tensor  # [S, T, B, X]
    quantiles: Tensor | None  # [Q, T, B, X]


class Latents(NamedTuple):
    """Of every frame, zeros at padding; behind a dimension of S with samples."""

    d: Tensor  # [T, B, D]
    z: Tensor  # [T, B, Z]
    w: Tensor  # [T, B, W]


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

    d and a stand for what is run along the frames in whole, forward and backward; z for what is drawn frame by frame,
    with what follows from it (`SequenceModel.decode_particles`).
    """

    def kinds(self, particles: int) -> int:
        """How many of the particles differ in d and a: all, or 1 where no noise enters them."""
        ...

    def edges(self, kinds: int, eps_0: Tensor | None = None) -> tuple[Tensor, ...]:
        """d before the first frame and a behind the last, each [kinds B, ·]. Of a model with an `initial_size` only:
        eps_0 [kinds, B, S] is given, and log p/q of what it draws, [kinds, B], comes third."""
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

    Noise is a pair (eps_w [T, B, W], eps_z [T, B, Z]) of standard normal numbers, whose sizes are `noise_sizes`, and
    with an `initial_size` S a third, eps_0 [B, S], for what is inferred before the first frame; what is given to a
    method beside `forward` and `prepare` is time-major whatever batch_first says. Noise may go on behind the frames.
    """

    x_size: int  # X
    frame_size: int  # F: what the networks see of a frame
    control_size: int  # U, 0 without an external control
    batch_first: bool
    likelihood: Any  # a vssn.likelihoods.Likelihood
    num_sequences: int | None = None  # training sequences that share a KL of the weights; None: no such KL
    causal: bool = False  # no state depends on frames to come: `infer` a frame at a time is `infer` of the whole
    initial_size: int = 0  # S: units that are inferred before the first frame, 0 where nothing is

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        state: AnyState | tuple[Tensor, ...] | None = None,
        noise: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        kl_weight: float | Tensor = 1.0,
    ) -> SequenceOutput:
        """One sample of the objective and of its parts, from the states before x (None: a start anew) and the noise
        (None: drawn here)."""

    def set_batch_first(self, batch_first: bool) -> None:
        """For a model whose parts have a layout of their own to set theirs too."""
        require_flag("batch_first", batch_first)
        self.batch_first = batch_first

    @property
    @abstractmethod
    def noise_sizes(self) -> tuple[int, int]:
        """W and Z."""

    def noise_shapes(self, steps: int, batch: int) -> tuple[tuple[int, ...], ...]:
        """Of the noise for [T, B, ·]: of eps_w, eps_z, and of eps_0 with an `initial_size`."""
        return noise_shapes(steps, batch, self.noise_sizes, self.initial_size)

    @property
    def infers_start(self) -> bool:
        """Whether a start of its own is inferred, whose KL may be annealed apart (`initial_kl_weight`)."""
        return bool(self.initial_size)

    @abstractmethod
    def a_parameter(self) -> Tensor:
        """One of the parameters, for the dtype and the device that all have."""

    @abstractmethod
    def prepare(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        state: AnyState | tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
    ) -> EncodedBatch:
        """What inference starts from: the arguments of `forward`, checked and encoded."""

    @abstractmethod
    def infer(
        self, given: EncodedBatch, noise: tuple[Tensor, ...], lengths: Tensor | None = None, stop: int | None = None
    ) -> tuple[Tensor, Tensor, AnyState]:
        """d [T, B, D] and z [T, B, Z] of the frames before `stop` given those alone, and the state behind them: with
        lengths, behind each sequence's own end."""

    @abstractmethod
    def infer_prefixes(self, given: EncodedBatch, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """d [T, B, D] and z [T, B, Z], each of the frames up to its own alone: filtering."""

    @abstractmethod
    def step_from_prior(
        self, controls: tuple[Tensor, ...], d: Tensor, z: Tensor, noise: tuple[Tensor, ...]
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
        state: AnyState | None = None,
        sample: bool = True,
    ) -> Generation:
        """`steps` frames from the priors, behind `state` (None: from the start); u [T, B, U], or as batch_first says.
        What is fed back is samples of x_t, or its means."""

    @abstractmethod
    def particles(self, given: EncodedBatch, lengths: Tensor) -> ParticleHooks:
        """What weighted particles are made of, for the sequences given; they start from `given.start` where there is
        one, and then infer nothing before the first frame: log p/q of that is 0."""

    @abstractmethod
    def floats_per_frame(self, x: Tensor) -> Floats:
        """What `particles` and the likelihood hold. Args: x: [S, B, X] frames that are run together."""

    def decode_particles(self, drawn: Tensor, d: Tensor) -> Tensor:
        """The likelihood's parameters [S, k B, P] from what `ParticleHooks.latents` draws and d of `states`: z and d,
        unless the model's d takes z and is drawn with it."""
        return self.decode(drawn, d)

    def infer_noise(
        self, given: EncodedBatch, noise: tuple[Tensor, ...], lengths: Tensor | None = None, prefixes: bool = False
    ) -> Tensor:
        """w [T, B, W] that `infer` draws, or with prefixes `infer_prefixes`."""
        if self.noise_sizes[0]:
            raise NotImplementedError(f"{type(self).__name__} must have infer_noise as it has process noise")
        return noise[0][: len(given.x)]

    def propose(self, given: EncodedBatch, state: AnyState, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """For a particle filter: d_t [B, D] and z_t [B, Z] behind a state, and log p/q [B] of what was drawn for them,
        which may have seen the frame given, [1, B, ·], and none behind it. Here from the priors."""
        d, z = self.step_from_prior(given.controls, state.d, state.z, noise)
        return d, z, d.new_zeros(len(d))

    def behind(self, state: AnyState, controls: tuple[Tensor, ...], d: Tensor, z: Tensor, frame: Tensor) -> AnyState:
        """The state behind a frame [1, B, F] that was generated of d and z, a step of the priors behind `state`: for
        inference to go on from."""
        return with_parts(state, d=d, z=z, x_last=frame[0])

    def filter_steps(self, batch: int) -> Any:
        """Steps of a filter at the means of the latents, prepared for `batch` streams as vssn/nn/filter_steps.py does,
        or None: those of `infer` and `step_from_prior` do."""
        return None

    # What follows from the methods above, for any model

    def forecast(
        self,
        x: Tensor,
        steps: int,
        samples: int | None = None,
        quantiles: Sequence[float] | None = None,
        *,
        u: Tensor | None = None,
        u_future: Tensor | None = None,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        sample: bool = True,
        seed: int | None = None,
        memory: int = DEFAULT_MEMORY,
    ) -> Any:
        """The `steps` frames behind x, behind each sequence's own end with lengths.

        Without samples: one path from one sample of the posterior's state, a Generation; modules as the model's mode
        has them. With samples=S, in evaluation mode: S paths, each from a state of its own, w, z and x drawn.

        Args:
            x, u, lengths, mask: as in `forward`.
            samples: S.
            quantiles: Q numbers in [0, 1] to take of the samples; None: none.
            u_future: [steps, B, U] external control of the frames to come ([B, steps, U] with batch_first).
            sample: feed samples of x_t back; False: its means given z_t and d_t, which `samples` then are.
            seed: of all draws, with the same batch, samples and memory: others draw in another order. None: they follow
                from PyTorch's own generator, and move it.
            memory: bytes for the paths that run at once, as one batch of rows; more samples take more runs. What comes
                back, S T B X numbers, is not counted.

        Returns:
            Generation(x, mean [T, B, X], state) without samples, else Forecast(mean [T, B, X], samples [S, T, B, X],
            quantiles [Q, T, B, X] or None).

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        from vssn.inference.forecasting import forecast

        return forecast(
            self, x, steps, samples, quantiles, u, u_future, lengths, mask, sample=sample, seed=seed, memory=memory
        )

    def impute(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        samples: int = 100,
        quantiles: Sequence[float] | None = None,
        *,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        seed: int | None = None,
        memory: int = DEFAULT_MEMORY,
    ) -> Imputation:
        """Fills in what is missing: d and z from the posterior given all that is observed, then x given these.

        Args:
            x, mask, u, lengths: as in `forward`.
            samples, quantiles, seed, memory: as in `forecast`.

        Returns:
            Imputation(mean [T, B, X], samples [S, T, B, X], quantiles [Q, T, B, X] or None): x itself where it is
            observed, zeros at padding.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came; so too where a frame is
                observed in part and the likelihood has no density of the rest (NADE, ar_gaussian).
        """
        from vssn.inference.imputation import impute

        return impute(self, x, mask, samples, quantiles, u, lengths, seed=seed, memory=memory)

    def latents(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        kind: str = "smooth",
        samples: int | None = None,
        noise: tuple[Tensor, ...] | None = None,
        seed: int | None = None,
        memory: int = DEFAULT_MEMORY,
    ) -> Latents:
        """d, z and w of every frame.

        Args:
            x, u, lengths, mask: as in `forward`.
            kind: "smooth", given the whole sequence, or "filter", each frame given those up to it: of a model that
                looks ahead a run for every frame.
            samples: S draws; None: one path, every latent at its mean given those before it.
            noise: (eps_w, eps_z) standard normal to make w and z with, of their shape as they come back; with
                initial_state="inferred" eps_0 behind them, [B, S] or [samples, B, S].
            seed, memory: as in `forecast`.

        Returns:
            Latents(d, z, w), each [T, B, ·], [S, T, B, ·] with samples.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        from vssn.inference.latents import latents

        return latents(self, x, u, lengths, mask, kind=kind, samples=samples, noise=noise, seed=seed, memory=memory)

    def score(
        self,
        x: Tensor,
        u: Tensor | None = None,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        kind: str = "elbo",
        samples: int = 1,
        seed: int | None = None,
        memory: int = DEFAULT_MEMORY,
    ) -> Tensor:
        """How well every frame fits the model, in nats [T, B], zeros at padding: low where something is out of place.

        Args:
            x, u, lengths, mask: as in `forward`; missing entries count for nothing.
            kind: "elbo": log p(x_t | z_t, d_t) - KL_w,t - KL_z,t, whose sum over t is a lower bound on log p(x_{1:T});
                one pass, and z_t has seen the frames behind t too (unless inference="causal").
                "predictive": log of the mean over the samples of p(x_t | z_t, d_t) one step of the prior behind the
                state filtered from x_{<t}: what is to come does not count. It takes many samples, the more the more
                features a frame has, and of a model that looks ahead a run for every frame.
            samples: draws that are averaged: of "elbo" the terms, of "predictive" the densities.
            seed, memory: as in `forecast`.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        from vssn.inference.frame_scores import frame_scores

        return frame_scores(self, x, u, lengths, mask, kind=kind, samples=samples, seed=seed, memory=memory)

    def filter(
        self,
        batch_size: int = 1,
        *,
        particles: int | None = None,
        samples: int | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
        seed: int | None = None,
    ) -> Any:
        """A `vssn.inference.streaming.Filter` of batch_size streams: `filter.step(x, u, mask)` takes a frame of
        each, [B, ·], and gives d, z and `predicted`, the mean of x_t from before it came; `filter.predict(u)`
        that of the frame to come; `filter.reset(which)` starts streams anew. A step takes constant time and memory.

        With inference="causal", or without a latent, a step is the model's own inference, and what comes is
        `latents(x, kind="filter")` frame by frame. A model that looks ahead has a particle filter of its generative
        part: means over weighted particles, to which z_t comes from the prior.

        Args:
            particles: K; given, a model that does not look ahead has a particle filter too (None: 100 where it must).
            samples: S paths of every stream of a model that does not look ahead; None: its means. d and z then are
                [S, B, ·].
            noise: (eps_w, eps_z) [T, B, ·], with samples [S, T, B, ·]: step t reads slice t.
            seed: of all draws; None: they follow from PyTorch's own generator.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        from vssn.inference.streaming import make_filter

        return make_filter(self, batch_size, particles=particles, samples=samples, noise=noise, seed=seed)

    # Files

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments in plain types, defaults included: `type(model)(**model.config)` is such a model
        with fresh weights. Without device and dtype, and without what is no plain type: modules, tensors."""
        arguments: dict[str, Any] = model_files.describe(self)["arguments"]
        return arguments

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model.safetensors, config.json and, where there is none, a README.md into the folder, which is made.

        Raises:
            ValueError: the model has other parameters than its constructor makes (a parametrization, a module in the
                place of another).
            TargetError: the folder cannot be written.
        """
        model_files.save(self, folder)

    @classmethod
    def from_pretrained(cls: type[_Model], source: str | Path, *, revision: str | None = None, **given: Any) -> _Model:
        """The model in a folder of `save_pretrained`, in a checkpoint of `vssn fit` or, with huggingface_hub installed,
        in a repository "user/name" of the Hub: on the CPU, in the dtype saved, in evaluation mode. Runs no code.

        Args:
            source: a path; where none is there, the name of a repository.
            revision: of the repository: a branch, a tag or a commit.
            given: the modules of your own that the model was made with: encoder, decoder, a likelihood.

        Raises:
            CheckpointError: missing, damaged, of another class, or not of this program.
            TypeError: a part is missing or too many in `given`.
        """
        description, weights = model_files.read(source, revision)
        name = description.get("class", cls.__name__)  # checkpoints up to 0.1.0 do not say it
        if name != cls.__name__:
            raise CheckpointError(
                f"{source}: expected a {cls.__name__}, got a {name}; load it with vssn.from_pretrained"
            )
        model: _Model = model_files.build(cls, description, weights, str(source), **given)
        return model

    def push_to_hub(
        self, repository: str, *, private: bool | None = None, message: str = "Save model", token: str | None = None
    ) -> str:
        """Saves the model to a repository "user/name" of the Hugging Face Hub, which is made where it is not there.

        Returns:
            The address of the commit.

        Raises:
            PackageError: huggingface_hub is not installed.
            TargetError: the Hub does not take it.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.upload(Path(folder), repository, private, message, token, keep=[model_files.CARD])


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor, which keeps what it was called with; of those below it, which it calls, the outermost does."""

    @wraps(init)
    def run(self: SequenceModel, *args: Any, **keywords: Any) -> None:
        self.__dict__.setdefault("_made_with", (args, keywords))
        init(self, *args, **keywords)

    return run


def require_model(model: object) -> None:
    """Raises TypeError unless it is a SequenceModel, or a compiled one."""
    if not isinstance(getattr(model, "_orig_mod", model), SequenceModel):
        raise TypeError(f"model must be a SequenceModel, a vssn.VSSN say, got {type(model).__name__}")
