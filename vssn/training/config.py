"""The typed configuration of a run: YAML in, checked settings out, and the data and the model that they describe.

A mistake anywhere in it is one `ConfigError` of one line: where it stands, what was expected, what came.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from vssn.data.splits import Splits
from vssn.errors import ConfigError
from vssn.likelihoods import LIKELIHOODS
from vssn.models.registry import MODELS
from vssn.nn.interface import SequenceModel
from vssn.training.config_errors import explain, first_line, quote
from vssn.training.objectives import check_initial_annealing, check_objective
from vssn.training.sections import (
    AnyDataSection,
    AnyModelSection,
    ConstraintSection,
    DataSection,
    GivenModelSection,
    Section,
    TrainingSection,
    data_section,
    model_section,
)
from vssn.utils.packages import needing
from vssn.utils.scaling import Scaling
from vssn.utils.values import REAL, Support
from vssn_kernels.arguments import shown

with needing("train"):
    import yaml
    from pydantic import ValidationError


class Config(Section):
    data: AnyDataSection
    model: AnyModelSection
    training: TrainingSection = TrainingSection()

    def load_data(self) -> Splits:
        """The training, validation and test sequences. Raises DataError."""
        return self.data.load(controls=self.model.takes_controls)

    def with_measured(self, splits: Splits) -> Config:
        """This configuration with what loading measured of the set, such as its scale: a run is scored in its units."""
        if self.data.row.measured is None:
            return self
        measured = dict(self.data.row.measured(splits))
        for key, came in measured.items():
            configured = getattr(self.data, key)
            if configured is not None and configured != came:
                raise ConfigError(f"data.{key}: {configured!r}, but the data has {came!r}; leave it out or change it")
        return self._with_data(self.data.model_copy(update=measured))._require_use_of_controls()

    def with_folder(self, folder: str | None) -> Config:
        """This configuration with the data in another folder, or file; None, or a simulated set: as it is."""
        for place in ("folder", "path"):
            if folder is not None and place in type(self.data).model_fields:
                return self._with_data(self.data.model_copy(update={place: folder}))
        return self

    def with_given_data(self, splits: Splits) -> Config:
        """This configuration with data from Python in the place of its set, and its sizes. Raises ConfigError."""
        return self._with_data(self.data.given()).with_measured(splits)

    def _require_use_of_controls(self) -> Config:
        """This configuration. Raises ConfigError where the model takes no controls, and the data that came has some."""
        if self.data.row.x_size is None and self.data.sizes[1] and not self.model.takes_controls:
            control = getattr(self.model, "control", None)
            if control is None:
                raise ConfigError(f"model.name: {self.model.name!r} takes no controls u; leave them out of the splits")
            raise ConfigError(
                f"model.control: expected {self.model.controls_to_take(True)} as the splits have controls u, got "
                f"{control!r}; change it or leave the controls out"
            )
        return self

    def _with_data(self, data: DataSection) -> Config:
        return self.model_copy(update={"data": data})

    def build_model(self, num_sequences: int | None = None, scaling: Scaling | None = None) -> SequenceModel:
        """A model with fresh weights. Raises ConfigError where its sizes are not possible.

        Args:
            num_sequences: training sequences, among which universal="gaussian" shares its KL.
            scaling: of the training data, with data.standardise; None: that which changes nothing, for weights that
                bring theirs.
        """
        x_size, control_size = self.data.sizes
        if x_size is None or control_size is None:
            raise ConfigError("data.x_size: not known before the data is there; train with vssn.fit")
        if self.model.takes_controls and not control_size:
            raise ConfigError(
                f"model.control: expected {self.model.controls_to_take(False)} with the set {self.data.set!r}, "
                f"which has no external control, got {self.model.control!r}; change it"
            )
        likelihood, holds = getattr(self.model, "likelihood", None), self.data.row.values
        if likelihood is not None and holds is not None and not _inside(holds, LIKELIHOODS[likelihood].support):
            raise ConfigError(
                f"model.likelihood: expected one for {_values(holds)} with the set {self.data.set!r}, got "
                f"{likelihood!r}, which takes {_values(LIKELIHOODS[likelihood].support)} alone; choose another"
            )
        control_size = control_size if self.model.takes_controls else 0
        if self.data.standardises and likelihood is not None and LIKELIHOODS[likelihood].support != REAL:
            raise ConfigError(
                f"data.standardise: expected false with model.likelihood {likelihood!r}, which takes "
                f"{_values(LIKELIHOODS[likelihood].support)}; leave it out, or take likelihood 'gaussian'"
            )
        if not self.data.standardises:
            scaling = None
        elif scaling is None:
            scaling = Scaling.identity(x_size, control_size)
        if self.training.coordinated_dropout:
            self._check_dropout()
        check_objective(self.training, getattr(self.model, "objective", "elbo"))
        try:
            model = self.model.build(x_size, control_size, num_sequences, scaling)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from None
        except (RuntimeError, TypeError, OverflowError):  # what torch raises where memory or integers do not suffice
            raise ConfigError("model: its sizes need more memory than there is; choose smaller sizes") from None
        check_initial_annealing(self.training, model)
        return model

    def _check_dropout(self) -> None:
        """Raises ConfigError where the model or its likelihood takes no part of a frame."""
        where = "training.coordinated_dropout: expected 0 with"
        if "coordinated_dropout" not in inspect.signature(MODELS[self.model.name].forward).parameters:
            raise ConfigError(f"{where} the model {self.model.name!r}, which does not take it; leave it out")
        if LIKELIHOODS[self.model.likelihood].whole_frames:
            raise ConfigError(
                f"{where} model.likelihood {self.model.likelihood!r}, which knows no part of a frame; leave it out"
            )

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _inside(values: Support, support: Support) -> bool:
    """Whether a likelihood of that support has a density for all of the values."""
    return support.low <= values.low and values.high <= support.high and (values.whole or not support.whole)


def _values(support: Support) -> str:
    ends = (support.low, support.high)
    if support.whole:
        if ends[1] == math.inf:
            return f"whole numbers from {ends[0]:g} on"
        return "0 and 1" if ends == (0, 1) else f"whole numbers in [{ends[0]:g}, {ends[1]:g}]"
    return "real values" if ends == (-math.inf, math.inf) else f"values in [{ends[0]:g}, {ends[1]:g}]"


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
    if not isinstance(path, str | Path):
        raise TypeError(f"path must be a str or a Path, got {type(path).__name__}")
    if not isinstance(overrides, list | tuple) or not all(isinstance(override, str) for override in overrides):
        raise TypeError(f'overrides must be a list of texts "section.key=value", got {shown(overrides)}')
    settings = _read_settings(path)
    for override in overrides:
        apply_override(override, settings)
    return check_config(settings, str(path), overrides)


def as_config(config: object, own_data: bool = False) -> Config:
    """The configuration that a `Config`, a dict of its sections, a path or a packaged name stands for.

    Args:
        own_data: the data comes from Python: the section data may be left out.

    Raises:
        TypeError: it is none of these.
        ConfigError: as `load_config`.
    """
    if isinstance(config, Config):
        return config
    if isinstance(config, str | Path):
        origin, settings = str(config), _read_settings(config)
    elif isinstance(config, Mapping):
        origin, settings = "config", dict(config)
    else:
        raise TypeError(
            f"config must be a Config, a dict of its sections, a path or a packaged name, got {type(config).__name__}"
        )
    data = settings.get("data", {})
    if own_data and isinstance(data, Mapping):
        settings["data"] = {"set": "given", **data}
    made = check_config(settings, origin)
    if own_data and not made.data.row.from_python:
        settings["data"] = made.data.given().model_dump()
        made = check_config(settings, origin)  # again, for the {set} in training.output
    return made


def config_of(model: SequenceModel, data: Mapping[str, Any], training: Mapping[str, Any], own_data: bool) -> Config:
    """The configuration of a run of a model that came from Python, which describes it as far as it can.

    Raises:
        ConfigError: as `load_config`.
    """
    scaled = getattr(model, "scaling", None) is not None
    if data.get("standardise") and not scaled:
        raise ConfigError(
            "data.standardise: expected false with a model that has no scaling, got true; make it with "
            "scaling=vssn.Scaling.of(the training sequences)"
        )
    data = {**data, **({"standardise": True} if scaled else {})}
    if own_data and "set" not in data:
        data = {"set": "given", **data}
    settings: dict[str, Any] = {"data": data, "training": dict(training)}
    control = "external" if model.control_size else "none"
    plain = check_config({**settings, "model": {"name": "given", "control": control}}, "fit")
    names = [name for name, cls in MODELS.items() if cls is type(model)]
    arguments = getattr(model, "config", None)
    if not names or not isinstance(arguments, Mapping):
        return plain
    keys = model_section({"name": names[0]}).model_fields
    section = {"name": names[0], **{key: value for key, value in arguments.items() if key in keys}}
    try:
        made = check_config({**settings, "model": section}, "fit")
        with torch.device("meta"):
            same = made.model.build(
                model.x_size, model.control_size, model.num_sequences, getattr(model, "scaling", None)
            )
    except (ConfigError, ValueError):
        return plain
    shapes = [{name: part.shape for name, part in one.state_dict().items()} for one in (same, model)]
    return made if shapes[0] == shapes[1] else plain


def check_config(settings: object, origin: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in plain types as a `Config`; `origin` names its source in errors."""
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(explain(error, origin, overrides, lambda path: _known_keys(path, settings))) from None
    output = config.training.output.replace("{set}", config.data.set)
    config = config.model_copy(update={"training": config.training.model_copy(update={"output": output})})
    if isinstance(config.model, GivenModelSection):
        return config
    try:
        with torch.device("meta"):  # sizes are checked, nothing is allocated
            _with_some_sizes(config).build_model(num_sequences=1)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    return config


def _with_some_sizes(config: Config) -> Config:
    """Small ones where only the data tells its sizes: all else is checked before it is there."""
    if None not in config.data.sizes:
        return config
    sizes = {"x_size": 1 + getattr(config.model, "held_out", 0), "control_size": 1}
    return config.model_copy(update={"data": config.data.model_copy(update=sizes)})


def _known_keys(path: Sequence[str], settings: Any) -> list[str]:
    """Those of a section, by its path in the settings."""
    if not path:
        return list(Config.model_fields)
    if path[0] == "data":
        return ["set", *(key for key in data_section(settings["data"]["set"]).model_fields if key != "set")]
    if path[0] == "model":
        return [*(key for key in model_section(settings["model"]).model_fields if key != "name"), "name"]
    return list((ConstraintSection if len(path) > 1 else TrainingSection).model_fields)


def _read_settings(path: str | Path) -> dict[Any, Any]:
    settings = _parse(_read(path), str(path))
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path}: expected a mapping with the sections {', '.join(Config.model_fields)}, got {quote(settings)}"
        )
    return settings


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
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:  # of tags, the middle two
        raise ConfigError(f"{origin}: invalid YAML: {first_line(error)}; correct the text") from None


def apply_override(override: str, settings: dict[Any, Any]) -> None:
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
