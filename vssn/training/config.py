"""The typed configuration of a run: YAML in, checked settings out, and the data and the model that they describe.

A mistake anywhere in it is one `ConfigError` of one line: where it stands, what was expected, what came.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vssn.data.balls import RESOLUTION, balls_splits
from vssn.data.batching import SequenceDataset
from vssn.data.music import NUM_NOTES, Transpose, load_music
from vssn.data.pendulum import IMAGE_SIZE, PendulumSplits, pendulum_splits
from vssn.data.speech import FRAME_SIZE, SPEECH_SETS, load_speech, scale_of
from vssn.errors import ConfigError
from vssn.models.vssn import VSSN

MUSIC_NAMES = {"jsb": "JSB_Chorales", "nottingham": "Nottingham", "musedata": "MuseData", "piano_midi": "Piano_midi"}
SIMULATED_NAMES = ("pendulum", "balls")


def _number(value: Any) -> Any:
    """YAML reads yes and on as true, which would count as 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Count = Annotated[Whole, Field(ge=1)]
Size = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Share = Annotated[Real, Field(ge=0, le=1)]


class Splits(NamedTuple):
    train: SequenceDataset
    valid: SequenceDataset
    test: SequenceDataset


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSection(Section):
    """What all sets share."""

    batch_size: Count = 16
    workers: Size = 0  # processes that prepare batches; 0: the training process itself
    seed: Seed = 0  # of a simulated set, of the order and the augmentation of every epoch


class MusicSection(DataSection):
    set: Literal["jsb", "nottingham", "musedata", "piano_midi"]
    folder: str | None = None  # None: the folder that VSSN_DATA names
    transpose: Size = 0  # augmentation: each sequence moves by up to so many semitones

    @property
    def sizes(self) -> tuple[int, int]:
        """X and U."""
        return NUM_NOTES, 0

    def load(self, controls: bool) -> Splits:
        """Reads the set. Raises DataError."""
        music = load_music(MUSIC_NAMES[self.set], self.folder)
        transform = Transpose(self.transpose) if self.transpose else None
        train = SequenceDataset(music.train, transform=transform, seed=self.seed)
        return Splits(train, SequenceDataset(music.valid), SequenceDataset(music.test))


class SimulatedSection(DataSection):
    set: Literal["pendulum", "balls"]
    num_train: Count | None = None  # sequences; None: as published, likewise below
    num_valid: Count | None = None
    num_test: Count | None = None
    num_frames: Count | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """X and U."""
        return (IMAGE_SIZE**2, 1) if self.set == "pendulum" else (RESOLUTION**2, 0)

    def load(self, controls: bool) -> Splits:
        """Simulates the set; `controls` says whether the pendulum's torque goes with it."""
        if self.set == "balls":
            videos = balls_splits(**self._given(num_frames="num_frames"), seed=self.seed)
            return Splits(*(SequenceDataset(part, lengths=part.lengths, seed=self.seed) for part in videos))
        return Splits(
            *(
                SequenceDataset(part.images, part.controls if controls else None, seed=self.seed)
                for part in self.swings()
            )
        )

    def swings(self) -> PendulumSplits:
        """The films of the pendulum with their torques and true states."""
        return pendulum_splits(**self._given(num_frames="num_steps"), seed=self.seed)

    def _given(self, **names: str) -> dict[str, int]:
        """The sizes that are not None, under the names that the simulator uses."""
        sizes = self.model_dump(include={"num_train", "num_valid", "num_test", "num_frames"}, exclude_none=True)
        return {names.get(name, name): size for name, size in sizes.items()}


class SpeechSection(DataSection):
    set: Literal["timit", "blizzard"]
    folder: str | None = None  # None: the folder that VSSN_DATA names
    mean: Real | None = None  # of the training samples, in steps of 16 bits; None: measured, and kept with the run
    std: Positive | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """X and U."""
        return FRAME_SIZE, 0

    def load(self, controls: bool) -> Splits:
        """Finds the recordings. Raises DataError."""
        parts = load_speech(self.set, self.folder, mean=self.mean, std=self.std)
        return Splits(*(SequenceDataset(part, lengths=part.lengths, seed=self.seed) for part in parts))

    @model_validator(mode="after")
    def _mean_and_std_go_together(self) -> SpeechSection:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both, or neither to have them measured")
        return self


DATA_SECTIONS: dict[str, type[DataSection]] = {
    **dict.fromkeys(MUSIC_NAMES, MusicSection),
    **dict.fromkeys(SIMULATED_NAMES, SimulatedSection),
    **dict.fromkeys(SPEECH_SETS, SpeechSection),
}


class ModelSection(Section):
    """The arguments of `vssn.VSSN`, except those that the data decides."""

    hidden_size: Size
    latent_size: Size
    noise_size: Size = 0
    likelihood: Literal["bernoulli", "gaussian", "mixture", "nade", "ar_gaussian"] = "bernoulli"
    mixture_size: Count = 20
    nade_size: Count = 128
    control: Literal["previous", "external", "both", "none"] = "previous"
    mlp_size: Count | None = None
    embed_size: Count | None = None
    backward_size: Count | None = None
    activation: Literal["tanh", "relu", "leaky_relu", "silu"] = "tanh"
    residual_posterior: bool = False
    universal: Literal["point", "gaussian"] = "point"
    prior_std: Positive = 0.1
    objective: Literal["elbo", "paper"] = "elbo"
    free_bits: NotNegative = 0.0
    min_logvar: Real = -12.0
    min_logvar_x: Real = -10.0
    learn_initial_state: bool = False
    noise_smoothing: bool = False
    masked: bool = False

    @property
    def takes_controls(self) -> bool:
        return self.control in ("external", "both")


class TrainingSection(Section):
    output: str = "runs/vssn"  # folder of the run; {set} in it stands for data.set
    seed: Seed = 0  # of the weights and of the noise
    max_epochs: Count = 50
    report_every: Count = 1  # epochs from one printed line to the next
    max_minutes: Annotated[Real, Field(ge=0.001, le=1e6)] | None = None  # of training, all resumed parts together
    early_stopping_patience: Count | None = None  # epochs without a better validation ELBO
    learning_rate: Annotated[Positive, Field(le=1000)] = 1e-3
    lr_decay: Annotated[Positive, Field(le=1)] = 1.0  # factor per epoch ...
    lr_decay_after: Size = 0  # ... after so many epochs
    weight_decay: NotNegative = 0.0
    gradient_clip_norm: Positive | None = 1.0
    kl_start: Share = 1.0  # KL weight of the first update
    kl_anneal_updates: Size = 0  # updates of one rise of the KL weight from kl_start to 1
    kl_cycles: Count = 1  # rises, each but the last followed by as many updates at 1; 1: linear
    chunk_length: Count | None = None  # frames of truncated back-propagation; None: whole sequences
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"

    @model_validator(mode="after")
    def _a_start_needs_a_rise(self) -> TrainingSection:
        if self.kl_start < 1 and self.kl_anneal_updates == 0:
            raise ValueError(
                f"kl_start {self.kl_start} has no effect without a rise: "
                "set kl_anneal_updates to 1 or more, or kl_start to 1"
            )
        return self


class Config(Section):
    data: Annotated[MusicSection | SimulatedSection | SpeechSection, Field(discriminator="set")]
    model: ModelSection
    training: TrainingSection = TrainingSection()

    def load_data(self) -> Splits:
        """The training, validation and test sequences. Raises DataError."""
        return self.data.load(controls=self.model.takes_controls)

    def with_scale(self, splits: Splits) -> Config:
        """This configuration with the normalisation that a speech set was loaded with: a run is scored in its units."""
        scale = scale_of(splits.train)
        if scale is None:
            return self
        return self.model_copy(update={"data": self.data.model_copy(update={"mean": scale.mean, "std": scale.std})})

    def with_folder(self, folder: str | None) -> Config:
        """This configuration with another folder of the data; None, or a simulated set: as it is."""
        if folder is None or "folder" not in type(self.data).model_fields:
            return self
        return self.model_copy(update={"data": self.data.model_copy(update={"folder": folder})})

    def build_model(self, num_sequences: int | None = None) -> VSSN:
        """A model with fresh weights. Raises ConfigError where its sizes are not possible.

        Args:
            num_sequences: training sequences, among which universal="gaussian" shares its KL.
        """
        x_size, control_size = self.data.sizes
        if self.model.takes_controls and not control_size:
            raise ConfigError(
                f"model.control: expected 'previous' or 'none' with the set {self.data.set!r}, which has no external "
                f"control, got {self.model.control!r}; change it"
            )
        takes = {"nade": (MusicSection,), "bernoulli": (MusicSection, SimulatedSection)}.get(self.model.likelihood)
        if takes is not None and not isinstance(self.data, takes):
            values = "0 and 1 alone" if self.model.likelihood == "nade" else "[0, 1] alone"
            raise ConfigError(
                f"model.likelihood: expected one for real values with the set {self.data.set!r}, got "
                f"{self.model.likelihood!r}, which takes {values}; choose another"
            )
        settings = self.model.model_dump()
        settings["control_size"] = control_size if self.model.takes_controls else 0
        settings["num_sequences"] = num_sequences if self.model.universal == "gaussian" else None
        try:
            return VSSN(x_size, **settings)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from None
        except (RuntimeError, TypeError, OverflowError):  # what torch raises where memory or integers do not suffice
            raise ConfigError("model: its sizes need more memory than there is; choose smaller sizes") from None

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def packaged_configs() -> list[str]:
    """Names that `load_config` finds without a path."""
    entries = resources.files("vssn.configs").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a configuration.

    Args:
        path: a YAML file, or the name of a packaged configuration such as "jsb".
        overrides: "section.key=value", the value in YAML; they win over the file.

    Raises:
        ConfigError: one line that says where the mistake is, what was expected, what came and what to do.
    """
    settings = _parse(_read(path), str(path))
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path}: expected a mapping with the sections {', '.join(Config.model_fields)}, got {_quote(settings)}"
        )
    for override in overrides:
        _apply(override, settings)
    return check_config(settings, str(path), overrides)


def check_config(settings: object, origin: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in plain types as a `Config`; `origin` names its source in errors."""
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin, overrides)) from None
    output = config.training.output.replace("{set}", config.data.set)
    config = config.model_copy(update={"training": config.training.model_copy(update={"output": output})})
    try:
        with torch.device("meta"):  # sizes are checked, nothing is allocated
            config.build_model(num_sequences=1)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    return config


def _read(path: str | Path) -> str:
    try:
        file = Path(path)
        if file.is_file():
            return file.read_text(encoding="utf-8")
        if str(path) in packaged_configs():
            return resources.files("vssn.configs").joinpath(f"{path}.yaml").read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected a YAML text in UTF-8, got other bytes; check the file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); check the file and its permissions") from None
    what = "it is a folder" if file.is_dir() else "there is no such file"
    raise ConfigError(
        f"{path}: expected a YAML file, but {what}; give its path or one of the names {', '.join(packaged_configs())}"
    )


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{origin}: {line}invalid YAML: {error.problem}; correct the line") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: invalid YAML: {_first_line(error)}; correct the text") from None


def _apply(override: str, settings: dict[Any, Any]) -> None:
    """Puts "a.b=value" into the nested settings."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {override}: expected section.key=value, for example training.max_epochs=3")
    here = settings
    for name in names[:-1]:
        if here.get(name) is None:
            here[name] = {}
        here = here[name]
        if not isinstance(here, dict):
            raise ConfigError(f"--set {override}: {name} is a value, not a section; expected section.key=value")
    here[names[-1]] = _parse(text, f"--set {override}")


def _explain(error: ValidationError, origin: str, overrides: Sequence[str]) -> str:
    """One of pydantic's errors as one line: an unknown key before the rest, since a misspelt key is missing as well."""
    details = error.errors(include_url=False)
    first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    location = [str(name) for name in first["loc"]]
    if first["type"].startswith("union_tag"):
        location.append("set")
    if len(location) > 1 and location[0] == "data" and location[1] in DATA_SECTIONS:
        del location[1]  # pydantic names the kind of set here
    key = ".".join(location)
    unknown = first["type"] == "extra_forbidden"  # then an override may also stand below the key
    given = [text for text in overrides if f"{text.partition('=')[0].strip()}.".startswith(f"{key}.")]
    given = [text for text in given if unknown or text.partition("=")[0].strip() == key]
    where = f"--set {given[-1]}" if given else origin
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}: {f'{key}: ' if key else ''}{_expectation(first, location)}{more}"


def _expectation(detail: Any, location: list[str]) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1], detail["loc"])
        close = difflib.get_close_matches(location[-1], known, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else "remove it."
        return f"unknown key; {hint} Known here: {', '.join(known)}"
    if kind == "missing":
        return "missing; this key must be given, add it"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        names = ", ".join(DATA_SECTIONS)
        came = f"got {_quote(context['tag'])}" if "tag" in context else "it is missing"
        return f"expected one of {names}, {came}; correct it"
    if kind == "value_error":
        reason = str(context["error"])
        return reason if isinstance(value, dict) else f"{reason}, got {_quote(value)}; correct it"
    if kind in ("model_type", "model_attributes_type"):
        return f"expected a section with keys of its own, got {_quote(value)}; write them indented below it"
    wanted = detail["msg"].removeprefix("Input should be ").split(", unable to")[0].split(", got")[0]
    if wanted.startswith(("greater", "less")):
        wanted = f"a number {wanted}"
    return f"expected {wanted}, got {_quote(value)}; correct it"


def _known_keys(section: list[str], location: tuple[Any, ...]) -> list[str]:
    if not section:
        return list(Config.model_fields)
    if section[0] == "data":
        known = DATA_SECTIONS[location[1]].model_fields
        return ["set", *(name for name in known if name != "set")]
    return list((ModelSection if section[0] == "model" else TrainingSection).model_fields)


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
