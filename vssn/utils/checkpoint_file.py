"""The checkpoints that `vssn fit` writes, read as tensors and plain types: nothing in them is executed."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from vssn.errors import CheckpointError

FORMAT = 1  # of what a checkpoint holds under "vssn"
_OWN: dict[str, Any] = {  # what else stands there, where it does; the first two always
    "config": dict,
    "epoch": int,
    "model": dict,
    "valid_elbo_per_frame": int | float,
    "num_sequences": int | None,
    "skipped_updates": int,
    "constraint": dict,
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint that `vssn fit` wrote: tensors and plain types, nothing is executed.

    Raises:
        CheckpointError: missing, damaged, or not of this program.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be a str or a Path, got {type(path).__name__}")
    file = Path(path)
    if not file.is_file():
        what = "it is a folder" if file.is_dir() else "there is no such file"
        raise CheckpointError(
            f"{path}: expected a checkpoint file, but {what}; give the path of a best.ckpt or last.ckpt"
        )
    try:
        data = io.BytesIO(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the reader thinks of a foreign file is said below, in one line
            content = torch.load(data, map_location="cpu", weights_only=True)
    except Exception:  # the reader raises whatever the damaged bytes lead it to
        raise CheckpointError(
            f"{path}: expected a checkpoint of vssn fit, but it is truncated, damaged or of another kind; "
            "use an intact best.ckpt or last.ckpt"
        ) from None
    own = content.get("vssn") if isinstance(content, dict) else None
    if not isinstance(own, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(
            f"{path}: expected a checkpoint of vssn fit, got another program's; use best.ckpt or last.ckpt"
        )
    if not isinstance(own.get("format"), int) or own["format"] != FORMAT:  # a tensor is compared number by number
        raise CheckpointError(
            f"{path}: expected a checkpoint of format {FORMAT}, got {own.get('format')!r}; use the vssn that wrote it"
        )
    if wrong := _wrong(content["state_dict"], own):
        raise CheckpointError(
            f"{path}: expected a checkpoint of vssn fit, but its {wrong} is damaged or missing; use an intact "
            "best.ckpt or last.ckpt"
        )
    return content


def is_plain(value: object) -> bool:
    """Whether it is made of numbers, texts, lists, tuples and dicts by texts alone."""
    if value is None or isinstance(value, bool | int | float | str):
        return True
    if isinstance(value, list) or type(value) is tuple:
        return all(is_plain(part) for part in value)
    return isinstance(value, dict) and all(isinstance(key, str) and is_plain(part) for key, part in value.items())


def _wrong(weights: dict[Any, Any], own: dict[Any, Any]) -> str | None:
    """What others would stumble over, by its name; None: nothing."""
    if not all(isinstance(name, str) for name in weights):
        return "state_dict"
    for name, kind in _OWN.items():
        if name in own or name in ("config", "epoch"):
            value = own.get(name)
            if not isinstance(value, kind) or not is_plain(value):
                return name
    if not all(isinstance(section, dict) for section in own["config"].values()):
        return "config"
    return None


def weights_of(content: dict[str, Any]) -> dict[str, Any]:
    """The model's own, by its own names."""
    return {name.removeprefix("model."): weight for name, weight in content["state_dict"].items()}
