"""`vssn info CHECKPOINT`: what a checkpoint is."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vssn.training.checkpoints import load_model, read_checkpoint


def describe(path: str) -> str:
    """The model, the data, the training and the scores, a few lines each. Raises CheckpointError."""
    own = read_checkpoint(path)["vssn"]
    model, config = load_model(path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = {"X": model.x_size, "U": model.control_size, "parameters": f"{parameters:,}"}
    x, u = config.data.sizes
    known = ("set", "x_size", "control_size")
    sections = [
        (f"model  {type(model).__name__}", sizes | _changed(config.model, ("name",))),
        (
            f"data  {config.data.set}",
            {"features": x, "controls": u} | _changed(config.data, known),
        ),
        ("training", _training(Path(path), own) | _changed(config.training, ("output",))),
    ]
    if scores := _scores(Path(path), own):
        sections.append(("scores", scores))
    return "\n".join((path, *(line for title, rows in sections for line in _section(title, rows))))


def _section(title: str, rows: Mapping[str, Any]) -> Iterable[str]:
    yield f"\n{title}"
    for name, value in rows.items():
        yield f"  {name:<24}{_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _changed(section: Any, without: Iterable[str]) -> dict[str, Any]:
    """The settings of a section that have no default, or another value."""
    fields = type(section).model_fields
    return {
        name: value
        for name, value in section.model_dump(mode="json").items()
        if name not in without and (fields[name].is_required() or value != fields[name].default)
    }


def _training(path: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    """Of the checkpoint, and of the log beside it."""
    done: dict[str, Any] = {"epoch": own["epoch"]}
    log = path.parent / "metrics.csv"
    try:
        with open(log, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        done |= {
            "epochs of the run": int(rows[-1]["epoch"]),
            "minutes of the run": f"{float(rows[-1]['seconds']) / 60:.1f}",
        }
    except (OSError, ValueError, OverflowError, KeyError, IndexError, TypeError, csv.Error):
        pass  # a checkpoint may stand alone
    return done


def _scores(path: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (valid := own.get("valid_elbo_per_frame")) is not None:
        found["best validation ELBO"] = f"{valid:.4f} nats per frame"
    score = path.parent / "score.json"
    if score.is_file():
        try:
            metrics = json.loads(score.read_text(encoding="utf-8"))["metrics"]
            found |= {f"test {name}": value for name, value in metrics.items() if not isinstance(value, list)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            found["score.json"] = "not readable"
    return found
