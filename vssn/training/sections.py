"""The sections of a configuration, as pydantic models: data, one for each set of the registry; model; training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from vssn.data.registry import DataSet, data_sets, names_to_list
from vssn.data.splits import Splits
from vssn.likelihoods import LIKELIHOODS
from vssn.models.registry import MODELS
from vssn.models.vssn import VSSN
from vssn.nn.interface import SequenceModel
from vssn.utils.numbers import LARGEST_SIZE, Count, NotNegative, Positive, Real, Seed, Share, Size, Within
from vssn.utils.packages import needing
from vssn.utils.scaling import Scaling

with needing("train"):
    from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, create_model, model_validator
    from pydantic_core import PydanticCustomError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSection(Section):
    """What all sets share; `data_section` adds the keys of one."""

    batch_size: Count = 16  # sequences in an update
    workers: Size = 0  # processes that prepare batches; 0: the training process itself
    seed: Seed = 0  # of a simulated set, of the order and the augmentation of every epoch
    set: str  # files (one's own), or one of those below

    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any: ...  # of the set

    @property
    def row(self) -> DataSet:
        """Of the registry."""
        return data_sets()[self.set]

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """X and U; None where only the data tells."""
        row = self.row
        return (self.x_size, self.control_size) if row.x_size is None else (row.x_size, row.control_size)

    @property
    def free(self) -> frozenset[str]:
        """Keys that may differ between two runs of one experiment."""
        return self.row.free | {"workers"}

    @property
    def standardises(self) -> bool:
        """Whether the model keeps the scale of the training data."""
        return bool(self.own.get("standardise", False))

    @property
    def own(self) -> dict[str, Any]:
        """The keys of the set itself."""
        return {name: getattr(self, name) for name in self.row.own_keys()}

    def given(self) -> DataSection:
        """This section for data from Python: what all sets share of it."""
        if self.row.from_python:
            return self
        names = [name for name in DataSection.model_fields if name != "set"]
        names += [name for name in ("standardise",) if name in type(self).model_fields]
        return data_section("given")(set="given", **{name: getattr(self, name) for name in names})

    def load(self, controls: bool) -> Splits:
        """Reads or simulates the set; `controls`: the model takes them. Raises DataError."""
        return self.row.load_splits(self.model_dump(), controls)

    @model_validator(mode="after")
    def _keys_go_together(self) -> DataSection:
        if self.row.check is not None:
            self.row.check(self.own)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return read_data_section, (self.model_dump(),)  # pickle does not find a class that is made


def data_section(name: str) -> type[DataSection]:
    """The section of a set of the registry."""
    return _made(name, data_sets()[name])


@cache
def _made(name: str, row: DataSet) -> type[DataSection]:
    keys: dict[str, Any] = dict(row.own_keys())
    if taken := [key for key in keys if hasattr(DataSection, key)]:
        raise TypeError(f"{row.load.__qualname__}: {taken[0]} must have another name, sections have that attribute")
    return create_model(f"{name}_DataSection", __base__=DataSection, **keys)


def read_data_section(settings: object) -> object:
    """The section of the set that a mapping names; what is no mapping is left to pydantic."""
    if not isinstance(settings, Mapping):
        return settings
    if "set" not in settings:
        raise PydanticCustomError("set_missing", "{names}", {"names": ", ".join(names_to_list())})
    name = settings["set"]
    if not isinstance(name, str) or name not in data_sets():
        raise PydanticCustomError("set_unknown", "{names}", {"names": ", ".join(names_to_list()), "set": name})
    return data_section(name).model_validate(settings)


AnyDataSection = Annotated[SerializeAsAny[DataSection], BeforeValidator(read_data_section)]


def _in(registry: Mapping[str, object]) -> BeforeValidator:
    """A name of that registry."""

    def check(name: object) -> object:
        if not isinstance(name, str) or name not in registry:
            known = [repr(known) for known in registry]
            text = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
            raise PydanticCustomError("literal_error", f"Input should be {text}")
        return name

    return BeforeValidator(check)


class ModelSection(Section):
    """What all models share; `model_section` has the keys of one."""

    name: Annotated[str, _in(MODELS)] = "vssn"  # which model; its keys are below

    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any: ...  # of the model

    @property
    def takes_controls(self) -> bool:
        return getattr(self, "control", "none") in ("external", "both")

    def controls_to_take(self, external: bool) -> str:
        """Values of `control` with an external control or without one, for messages."""
        values = get_args(type(self).model_fields["control"].annotation)
        return " or ".join(repr(value) for value in values if (value in ("external", "both")) == external)

    def build(
        self, x_size: int, control_size: int, num_sequences: int | None, scaling: Scaling | None = None
    ) -> SequenceModel:
        """The model with fresh weights, of what it takes. Raises ValueError where its sizes are not possible."""
        cls = MODELS[self.name]
        shares = getattr(self, "universal", "point") == "gaussian"
        decided = {
            "x_size": x_size,
            "control_size": control_size,
            "num_sequences": num_sequences if shares else None,
            "scaling": scaling,
        }
        takes = inspect.signature(cls).parameters
        if scaling is not None and "scaling" not in takes:
            raise ValueError(f"{self.name!r} has no argument scaling; set data.standardise to false")
        return cls(**self.model_dump(exclude={"name"}), **{name: decided[name] for name in decided if name in takes})

    def __reduce__(self) -> tuple[Any, ...]:
        return read_model_section, (self.model_dump(),)


class VSSNSection(ModelSection):
    """The arguments of `vssn.VSSN`, except those of NO_KEYS."""

    hidden_size: Size
    latent_size: Size
    noise_size: Size = 0
    likelihood: Annotated[str, _in(LIKELIHOODS)] = "bernoulli"
    mixture_size: Count = 20
    nade_size: Count = 128
    num_classes: Annotated[int, Within(ge=2, le=LARGEST_SIZE)] = 2
    control: Literal["previous", "external", "both", "none"] = "previous"
    mlp_size: Count | None = None
    embed_size: Count | None = None
    backward_size: Count | None = None
    activation: Literal["tanh", "relu", "leaky_relu", "silu"] = "tanh"
    residual_posterior: bool = False
    universal: Literal["point", "gaussian"] = "point"
    prior_std: Positive = 0.1
    objective: Literal["elbo", "paper", "iwae", "fivo", "nasmc"] = "elbo"
    particles: Count | None = None
    free_bits: NotNegative = 0.0
    min_logvar: Real = -12.0
    min_logvar_x: Real = -10.0
    initial_state: Literal["zeros", "learned", "inferred"] | None = None
    initial_size: Count | None = None
    learn_initial_state: bool = False
    noise_smoothing: bool = False
    inference: Literal["smoothing", "causal"] = "smoothing"
    masked: bool = False
    held_out: Size = 0


class GivenModelSection(ModelSection):
    """A model that came from Python and that no configuration describes: one with a module of the caller's, say."""

    name: Literal["given"] = "given"
    control: Literal["external", "none"] = "none"

    def build(self, *_: Any, **__: Any) -> SequenceModel:
        raise ValueError(
            "'given' is a model that came from Python, with parts that a configuration cannot describe; make it again, "
            "and load the weights: model.load_state_dict(vssn.training.checkpoints.read_weights(path))"
        )


# Arguments of a model that the data decides, or that no configuration can write.
NO_KEYS = ("x_size", "control_size", "num_sequences", "encoder", "decoder", "scaling", "batch_first", "device", "dtype")


def model_section(settings: Mapping[str, Any]) -> type[ModelSection]:
    """The section of the model that a mapping names: VSSN's without a name, and with one that the section refuses."""
    name = settings.get("name")
    if name == "given":
        return GivenModelSection
    return _of_class(MODELS[name]) if isinstance(name, str) and name in MODELS else VSSNSection


@cache
def _of_class(cls: type[SequenceModel]) -> type[ModelSection]:
    """Its arguments are the keys, typed as the class says where that names the values, as VSSN's of the same name are,
    or else as the class says."""
    if cls is VSSN:
        return VSSNSection
    own, shared = (get_type_hints(of, include_extras=True) for of in (cls.__init__, VSSNSection))
    types = own | {key: kind for key, kind in shared.items() if get_origin(own.get(key)) not in (Literal, Annotated)}
    keys: dict[str, Any] = {}
    for key, argument in inspect.signature(cls).parameters.items():
        if key in NO_KEYS or argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            continue
        if key not in types:
            raise TypeError(f"{cls.__name__}: {key} must have a type, as it is a key of a configuration")
        keys[key] = (types[key], ... if argument.default is argument.empty else argument.default)
    return create_model(f"{cls.__name__}Section", __base__=ModelSection, **keys)


def read_model_section(settings: object) -> object:
    """The section of the model; what is no mapping is left to pydantic."""
    return model_section(settings).model_validate(settings) if isinstance(settings, Mapping) else settings


AnyModelSection = Annotated[SerializeAsAny[ModelSection], BeforeValidator(read_model_section)]


class ConstraintSection(Section):
    """A reconstruction that a multiplier holds at a target: vssn/training/constraint.py."""

    target: Real  # of the mean of log p(x_t | z_t, d_t), in nats
    per: Literal["frame", "entry"] = "frame"  # that mean is over frames, or over the (observed) entries of frames
    rate: Positive = 0.01  # of the multiplier's logarithm, for a nat that is missing, in an update
    average: Annotated[float, Within(ge=0, lt=1)] = 0.99  # weight of the past in the moving average of what is missing
    start: Positive = 1.0  # the first multiplier


class TrainingSection(Section):
    output: str = "runs/vssn"  # folder of the run; {set} in it stands for data.set
    seed: Seed = 0  # of the weights and of the noise
    max_epochs: Count = 50  # passes over the training part
    report_every: Count = 1  # epochs from one printed line to the next
    max_minutes: Annotated[float, Within(ge=0.001, le=1e6)] | None = None  # of training, all resumed parts together
    early_stopping_patience: Count | None = None  # epochs without a better validation ELBO
    learning_rate: Annotated[float, Within(gt=0, le=1000)] = 1e-3  # of AdamW
    lr_decay: Annotated[float, Within(gt=0, le=1)] = 1.0  # factor of the learning rate, an epoch ...
    lr_decay_after: Size = 0  # ... behind the first so many epochs
    weight_decay: NotNegative = 0.0  # of AdamW
    gradient_clip_norm: Positive | None = 1.0  # longest gradient of an update; None: not clipped
    on_nan: Literal["stop", "skip"] = (
        "stop"  # an update whose loss or gradient is not finite: ends the run, is left out
    )
    kl_start: Share = 1.0  # KL weight of the first update
    kl_anneal_updates: Size = 0  # updates of one rise of the KL weight from kl_start to 1
    kl_cycles: Count = 1  # rises, each but the last followed by as many updates at 1; 1: linear
    # updates of the rise of the KL weight of an inferred start, from kl_start to 1, once; None: that of the others
    initial_kl_anneal_updates: Count | None = None
    initial_kl_anneal_after: Size = 0  # updates before that rise, at kl_start
    # share of the entries of x that is hidden from the networks in an update, and alone in its loss
    coordinated_dropout: Annotated[float, Within(ge=0, lt=1)] = 0.0
    constraint: ConstraintSection | None = None  # of objective "elbo"
    chunk_length: Count | None = None  # frames of truncated back-propagation; None: whole sequences
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    # of numbers: float32, float64, or products in bfloat16
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    devices: Count = 1  # of each machine, one process each; they share the batches of data.batch_size
    nodes: Count = 1  # machines

    @model_validator(mode="after")
    def _none_is_without_effect(self) -> TrainingSection:
        """Of keys that were given: a run's config.yaml holds them all, and may have both at what changes nothing."""
        for key, other, what in (
            ("kl_anneal_updates", "kl_start", "a start below 1: set kl_start to 0 as well"),
            ("kl_cycles", "kl_anneal_updates", "a rise: set kl_anneal_updates and kl_start as well"),
            ("initial_kl_anneal_updates", "kl_start", "a start below 1: set kl_start to 0 as well"),
            ("initial_kl_anneal_after", "initial_kl_anneal_updates", "a rise: set initial_kl_anneal_updates as well"),
            ("lr_decay_after", "lr_decay", "a decay: set lr_decay below 1 as well"),
        ):
            given = key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].default
            if given and other not in self.model_fields_set:
                raise ValueError(f"{key} {getattr(self, key)} has no effect without {what}, or leave it out")
        return self

    @model_validator(mode="after")
    def _a_start_needs_a_rise(self) -> TrainingSection:
        if self.kl_start < 1 and self.kl_anneal_updates == 0 and self.initial_kl_anneal_updates is None:
            raise ValueError(
                f"kl_start {self.kl_start} has no effect without a rise: "
                "set kl_anneal_updates to 1 or more, or kl_start to 1"
            )
        return self
