"""A model as a folder that loads without running code, and without what training needs:

    model.safetensors  its state_dict
    config.json        its class, the version that wrote it, the constructor's arguments, the data's scaling
    README.md          what is known of it, for people

A checkpoint of `vssn fit` has the same description inside, so that it loads by the same call.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vssn.errors import CheckpointError, TargetError
from vssn.nn import hub
from vssn.utils.checkpoint_file import is_plain, read_checkpoint, weights_of
from vssn.utils.command import replacing
from vssn_kernels.version import __version__

Model = Any  # a vssn.nn.interface.SequenceModel, which imports this file
FORMAT = 1  # of config.json
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_PLACES = ("device", "dtype")  # arguments that the loaded tensors decide


# ---- What a model is made of --------------------------------------------------------------------------


def describe(model: Model) -> dict[str, Any]:
    """Its class and the arguments of its constructor, in plain types; those that are none by their names alone."""
    cls = type(model)
    arguments: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    given = []
    for name, value in _arguments(model).items():
        if name in _PLACES:
            continue
        if is_plain(value):
            arguments[name] = value
        elif isinstance(value, tuple) and hasattr(value, "_asdict"):  # named tensors, such as the scaling
            tables[name] = {key: part if part is None else part.tolist() for key, part in value._asdict().items()}
        else:
            given.append(name)
    if "batch_first" in arguments:
        arguments["batch_first"] = model.batch_first  # may have been set since
    return {
        "format": FORMAT,
        "class": cls.__name__,
        "version": __version__,
        "arguments": arguments,
        **tables,
        "given": given,
    }


def _arguments(model: Model) -> dict[str, Any]:
    """All of the constructor's, with their defaults: a later version may have others."""
    given, keywords = model.__dict__.get("_made_with", ((), {}))
    signature = inspect.signature(type(model))
    bound = signature.bind(*given, **keywords)
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            arguments[name] = value
        elif value:
            arguments[f"*{name}"] = model  # no plain type: nobody can name them
    return arguments


def build(
    cls: type[Model], description: Mapping[str, Any], weights: Mapping[str, Any], origin: str, **given: Any
) -> Model:
    """The model that `describe` described, with the weights, in evaluation mode.

    Args:
        origin: of both, for messages.
        given: what is named in the description's "given".

    Raises:
        CheckpointError: they do not fit each other, or this version.
        TypeError: something else is given than the description names.
    """
    if not given:  # sizes that the weights do not have could ask for any memory, and for hours
        expected: Mapping[str, Tensor] = {}
        with contextlib.suppress(Exception), torch.device("meta"):
            expected = _made(cls, description, origin, given).state_dict()
        _require_like(expected, weights, origin)
    return fill(_made(cls, description, origin, given), weights, origin)


def _made(cls: type[Model], description: Mapping[str, Any], origin: str, given: Mapping[str, Any]) -> Model:
    named = description.get("given", [])
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise CheckpointError(f"{origin}: its description is damaged at 'given'; use an intact file")
    for name in named:
        if name not in given:
            raise TypeError(
                f"{name} must be given: {origin} is of a model with a part of your own in its place; "
                f"call from_pretrained(..., {name}=...)"
            )
    for name in given:
        if name not in named:
            raise TypeError(f"{name} must be left out: {origin} asks for {', '.join(named) or 'nothing'} alone")
    written = description.get("version", "0.1.0")
    try:
        arguments = dict(description["arguments"])
        for name, kind in _tables_of(cls).items():
            if description.get(name) is not None:
                arguments[name] = kind(**{key: _tensor(part) for key, part in description[name].items()})
        with torch.random.fork_rng([]):  # the weights are replaced: nobody shall see that they were drawn
            return cls(**arguments, **given)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{origin}: its arguments do not make a {cls.__name__} ({error}); use the vssn that wrote it, {written}"
        ) from None
    except (RuntimeError, OverflowError, MemoryError):
        raise CheckpointError(f"{origin}: its sizes need more memory than there is; use an intact file") from None


def _tensor(values: Any) -> Tensor | None:
    return None if values is None else torch.tensor(values)


def _tables_of(cls: type[Model]) -> dict[str, Callable[..., Any]]:
    """The arguments whose type is a named tuple (of tensors)."""
    found: dict[str, Callable[..., Any]] = {}
    for name, hint in typing.get_type_hints(cls.__init__).items():
        for kind in (hint, *typing.get_args(hint)):
            if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
                found[name] = kind
    return found


def fill(model: Model, weights: Mapping[str, Any], origin: str) -> Model:
    """The model with these weights, in their dtypes and in evaluation mode. Raises CheckpointError where they do not
    fit."""
    _require_like(model.state_dict(), weights, origin)
    try:
        missing, more = model.load_state_dict(dict(weights), strict=False, assign=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise _do_not_fit(origin, str(error)) from None
    if missing or more:
        what = f"{missing[0]} is missing" if missing else f"{more[0]} is none of the model's"
        raise _do_not_fit(origin, what)
    return model.eval()


def _require_like(expected: Mapping[str, Tensor], weights: Mapping[str, Any], origin: str) -> None:
    """Raises CheckpointError unless the weights have the shapes expected, and hold numbers of that kind."""
    if wrong := [name for name, weight in weights.items() if not isinstance(weight, Tensor)]:
        raise _do_not_fit(origin, f"{wrong[0]} is a {type(weights[wrong[0]]).__name__}")
    for name, own in expected.items():
        weight = weights.get(name)
        if weight is None:
            raise _do_not_fit(origin, f"{name} is missing")
        if weight.shape != own.shape:
            raise _do_not_fit(origin, f"{name} has shape {list(weight.shape)}, expected {list(own.shape)}")
        if weight.is_floating_point() != own.is_floating_point() or weight.layout != own.layout or weight.is_meta:
            kind = f"{weight.dtype}, {weight.layout} on {weight.device}".replace("torch.", "")
            raise _do_not_fit(origin, f"{name} is of {kind}, expected plain {str(own.dtype).removeprefix('torch.')}")


def _do_not_fit(origin: str, what: str) -> CheckpointError:
    return CheckpointError(f"{origin}: its weights do not fit its own configuration: {what}; use an intact file")


# ---- Folders ------------------------------------------------------------------------------------------


def save(model: Model, folder: str | Path) -> None:
    """As `SequenceModel.save_pretrained` says."""
    from safetensors.torch import save as to_bytes

    if not isinstance(folder, (str, Path)):
        raise TypeError(f"folder must be a str or a Path, got {type(folder).__name__}")
    description = describe(model)
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    given = {name: value for name, value in _arguments(model).items() if name in description["given"]}
    own = _made(type(model), description, "model", given).state_dict()
    if changed := sorted(own.keys() ^ weights.keys()):  # else it would be found out where it is loaded
        raise ValueError(
            f"model must have the parameters that its constructor makes, got a change at {changed[0]}; take "
            "parametrizations and replaced modules out, or save its state_dict and load it with your own code"
        )
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write(target / WEIGHTS, to_bytes(weights, {"format": "pt"}))
        _write(target / CONFIG, (json.dumps(description, indent=2) + "\n").encode())
        if not (target / CARD).exists():  # somebody may have written more there
            _write(target / CARD, card(model, description).encode())
    except (OSError, ValueError) as error:  # a ValueError: no file can have such a name
        why = getattr(error, "strerror", None) or error
        raise TargetError(f"folder: cannot write {folder} ({why}); name another place") from None


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    with replacing(path) as part:
        part.write_bytes(content)


def read(source: str | Path, revision: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description and the weights of a folder, a checkpoint of `vssn fit`, or a repository of the Hub.

    Raises:
        CheckpointError: missing, damaged, or not of this program.
        PackageError: huggingface_hub is needed and not installed.
    """
    if not isinstance(source, (str, Path)):
        raise TypeError(f"source must be a str or a Path, got {type(source).__name__}")
    folder = Path(source)
    if folder.is_file():
        content = read_checkpoint(source)
        return _of_checkpoint(content, str(source)), weights_of(content)
    if not folder.exists() and isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        folder = hub.downloaded(source, revision, [WEIGHTS, CONFIG])
    if not folder.is_dir():
        raise CheckpointError(
            f"{source}: expected a folder of save_pretrained or a checkpoint of vssn fit, but there is none; check the "
            "path"
        )
    try:
        description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        data = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{source}: expected the files {CONFIG} and {WEIGHTS} of save_pretrained, but "
            f"{Path(error.filename).name} is missing; save it again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{source}: {CONFIG} is truncated, damaged or no JSON; save it again") from None
    if not isinstance(description, dict) or not isinstance(description.get("arguments"), dict):
        raise CheckpointError(f"{source}: {CONFIG} is of another program; use a folder of save_pretrained")
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{source}: expected {CONFIG} of format {FORMAT}, got {description.get('format')!r}; use the vssn that "
            "wrote it"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return description, load(data)
    except (SafetensorError, ValueError, KeyError):
        raise CheckpointError(f"{source}: {WEIGHTS} is truncated or damaged; save it again") from None


def _of_checkpoint(content: dict[str, Any], origin: str) -> dict[str, Any]:
    """The description inside; up to 0.1.0 there was none, and the model's and the data's settings say the same."""
    own = content["vssn"]
    if isinstance(own.get("model"), dict):
        return dict(own["model"])
    from vssn.data.registry import data_sets  # imports every set

    try:
        settings, data = dict(own["config"]["model"]), own["config"]["data"]
        row = data_sets().get(data["set"])
        known = row is not None and row.x_size is not None
        sizes = (row.x_size, row.control_size) if row and known else (data["x_size"], data.get("control_size", 0))
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{origin}: its configuration does not say the sizes of its data; use an intact checkpoint"
        ) from None
    external = settings.get("control") in ("external", "both")
    shares = settings.get("universal") == "gaussian"
    arguments = {"x_size": sizes[0], "control_size": sizes[1] if external else 0}
    arguments["num_sequences"] = own.get("num_sequences") if shares else None
    return {"name": settings.pop("name", "vssn"), "arguments": settings | arguments}


# ---- The card -----------------------------------------------------------------------------------------


def card(model: Model, description: Mapping[str, Any]) -> str:
    """README.md: what the model is, takes and gives, and how it is loaded."""
    name, parts = description["class"], "".join(f", {part}=..." for part in description["given"])
    count = sum(parameter.numel() for parameter in model.parameters())
    rows = "\n".join(f"| `{key}` | `{value!r}` |" for key, value in description["arguments"].items())
    controls = f", with controls of {model.control_size}" if model.control_size else ""
    layout = "[B, T, X]" if model.batch_first else "[T, B, X]"
    return f"""---
library_name: vssn
tags:
- time-series
- variational-autoencoder
---

# {name}

A generative model of sequences, with its inference: {count:,} parameters, frames x {layout} of X = {model.x_size}
numbers{controls}, {model.likelihood.title}.

```python
import vssn

model = vssn.from_pretrained("THIS FOLDER"{parts})
```

`model.safetensors` holds its weights, `config.json` the arguments of its constructor; loading runs no code. Written by
vssn {description["version"]}.

| argument | value |
|---|---|
{rows}
"""
