"""A configuration proposed for data: a likelihood that its values have, sizes and a schedule, and why each was taken.

A start, no optimum: `vssn init DATA > config.yaml` writes it with the reasons, to be read and changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vssn.data.files import MANY, settings_of, without_future
from vssn.data.formats import Source
from vssn.errors import DataError

UPDATES = 4000  # of a whole training, about
_WINDOW = 100  # frames
STANDARDISED_FLOOR = -6.0  # of the log-variance of standardised values: std 0.05
_LONG = 400  # frames, from which on gradients are cut
_FEW = 1e4  # up to which whole numbers are taken for counts: of larger ones float32 makes more and more whole
_DEFAULTS = {"format"}  # keys of reading that a proposal leaves to be found again


class Proposal(NamedTuple):
    settings: dict[str, dict[str, Any]]  # data, model, training
    reasons: dict[str, str]  # by "section.key"
    head: list[str]  # what was found, in a few lines

    def to_yaml(self) -> str:
        """The settings as YAML, each reason in a comment above its key."""
        lines = [f"# {line}" for line in self.head]
        for section, keys in self.settings.items():
            lines.append(f"{section}:")
            for key, value in keys.items():
                if reason := self.reasons.get(f"{section}.{key}"):
                    lines.append(f"  # {reason}")
                lines.append(f"  {key}: {json.dumps(value, ensure_ascii=False)}")  # which is YAML
        return "\n".join(lines) + "\n"


class Values(NamedTuple):
    """What stands in the sequences."""

    low: float
    high: float
    whole: bool
    mean: float
    variance: float
    missing: float  # share of the entries
    partly: bool  # whether a frame is missing in part

    @classmethod
    def of(cls, sequences: list[Tensor]) -> Values:
        known = [x[~x.isnan()] for x in sequences]
        numbers = torch.cat(known).double() if known else torch.empty(0)
        entries = sum(x.numel() for x in sequences)
        if not len(numbers):
            return cls(0.0, 0.0, False, 0.0, 0.0, 1.0, False)
        partly = any(bool((gaps.any(1) & ~gaps.all(1)).any()) for gaps in (x.isnan() for x in sequences))
        return cls(
            low=float(numbers.min()),
            high=float(numbers.max()),
            whole=bool((numbers == numbers.round()).all()),
            mean=float(numbers.mean()),
            variance=float(numbers.var(unbiased=False)),
            missing=1 - len(numbers) / entries,
            partly=partly,
        )


def propose(source: Source, path: str, output: str, likelihoods: Collection[str]) -> Proposal:
    """Settings for the set `files`, by the frames up to the last observation: behind it stand rows of the future, to
    forecast, none to train on.

    Args:
        path: from which the source was read.
        output: folder of the run.
        likelihoods: names that may be proposed, those of the registry.

    Raises:
        DataError: there is too little of it to train on and to score.
    """
    whole, source = source, without_future(source)
    values = Values.of(source.x)
    to_come = sum(whole.lengths) - sum(source.lengths)
    if values.missing == 1.0:
        raise DataError(f"{path}: expected values to learn from, got none: all are missing")
    reasons: dict[str, str] = {}
    data: dict[str, Any] = {"set": "files", "path": path}
    data |= {name: value for name, value in settings_of(source).items() if name not in _DEFAULTS}
    model: dict[str, Any] = {}
    training: dict[str, Any] = {"output": output}

    model["likelihood"], reasons["model.likelihood"] = _likelihood(source, values, likelihoods)
    if model["likelihood"] == "gaussian":
        data["standardise"] = True
        reasons["data.standardise"] = (
            "the model keeps mean and std of the training data; what goes in and comes out is in the unit of the data"
        )
        model["min_logvar_x"] = STANDARDISED_FLOOR
        reasons["model.min_logvar_x"] = "floor of the log-variance of standardised values: std 0.05"
    if values.missing:
        model["masked"] = True
        reasons["model.masked"] = f"{values.missing:.1%} of the values are missing: the networks see which"
    elif to_come:
        model["masked"] = True
        reasons["model.masked"] = (
            "the rows of the future have no values: the networks see that, where they get them too"
        )
    if source.control_size:
        model["control"] = "both"
        reasons["model.control"] = f"u_t is the frame before and the controls {', '.join(source.controls[:6])}"
    _split(source, data, reasons)
    _require_enough(source, data["split"], path)
    length = _lengths(source, data, training, reasons)
    _sizes(source, model, reasons)
    _schedule(source, length, data, training, reasons)
    if source.kind == "midi":
        data["transpose"] = 5
        reasons["data.transpose"] = "each training piece moves by up to so many semitones: more music of the same kind"
    order = ("hidden_size", "latent_size", "noise_size", "likelihood")
    model = {name: model[name] for name in (*order, *(name for name in model if name not in order))}
    return Proposal({"data": data, "model": model, "training": training}, reasons, _head(source, path, to_come))


def _head(source: Source, path: str, to_come: int) -> list[str]:
    lengths = sorted(source.lengths)
    unit = "" if source.step is None else f", a step of {source.step}"
    one = "1 sequence" if len(lengths) == 1 else f"{len(lengths)} sequences"
    features = "1 feature" if source.x_size == 1 else f"{source.x_size} features"
    span = f"{lengths[0]}" if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]}"
    lines = [
        f"Proposed by vssn init for {path}: {one} of {span} frames, {features} ({source.kind}{unit}).",
        "Train with: vssn fit --config THIS-FILE",
    ]
    rows = "1 row" if to_come == 1 else f"{to_come} rows"
    ahead = [f"{rows} behind the last observation, of the future, not counted"] if to_come else []
    return [*lines, *(f"Note: {remark}" for remark in [*source.remarks, *_without_values(source), *ahead])]


def _without_values(source: Source) -> list[str]:
    """Of features that nothing can be learnt of."""
    known = torch.stack([(~x.isnan()).any(0) for x in source.x]).any(0).tolist()
    names = [name for name, has_some in zip(source.channels, known, strict=True) if not has_some]
    return [f"no value at all in {', '.join(names[:6])}; leave out what is never observed"] if names else []


def _likelihood(source: Source, values: Values, likelihoods: Collection[str]) -> tuple[str, str]:
    if values.whole and values.low >= 0 and values.high <= 1:
        if source.x_size == 1 or values.partly or source.x_size > 200 or "nade" not in likelihoods:
            return "bernoulli", "all values are 0 or 1"
        return "nade", "all values are 0 or 1: entries of a frame, each given those before it; bernoulli is quicker"
    if values.low >= 0 and values.high <= 1 and source.kind == "film":
        return "bernoulli", "the shades of a film, in [0, 1]"
    if values.whole and values.low >= 0 and values.high <= _FEW and source.kind in ("table", "arrays", "trials"):
        spread = values.variance / max(values.mean, 1e-9)
        counts = f"whole numbers from {values.low:g} to {values.high:g}, counts it seems"
        if spread <= 1.5 and "poisson" in likelihoods:
            return "poisson", f"{counts}; their variance is {spread:.1f} times their mean"
        if values.mean <= 100 and "negative_binomial" in likelihoods:
            return "negative_binomial", f"{counts}; their variance is {spread:.1f} times their mean"
        if values.mean <= 100 and "poisson" in likelihoods:
            return "poisson", counts
    return "gaussian", f"real numbers from {values.low:g} to {values.high:g}"


def _split(source: Source, data: dict[str, Any], reasons: dict[str, str]) -> None:
    if source.parts is not None:
        data["split"], reasons["data.split"] = "given", "as the data says"
    elif len(source.x) >= MANY:
        data["split"], reasons["data.split"] = "ratio", f"{len(source.x)} sequences: whole ones validate and test"
    else:
        data["split"] = "time"
        reasons["data.split"] = "few sequences: the last tenth of each tests, the tenth before validates"


def _require_enough(source: Source, split: str, path: str) -> None:
    """Raises DataError where no sequence has a frame for each part, or one to follow another."""
    least, longest = 3 if split == "time" else 2, max(source.lengths)
    if longest < least:
        one = "1 sequence" if len(source.x) == 1 else f"{len(source.x)} sequences"
        frames = "1 frame" if longest == 1 else f"at most {longest} frames"
        then = "; a row is a frame: check the columns of times and ids" if source.kind == "table" else ""
        raise DataError(
            f"{path}: expected sequences of {least} frames at least to learn from, got {one} of {frames}{then}"
        )


def _training_lengths(source: Source, data: Mapping[str, Any]) -> list[int]:
    """About."""
    if source.parts is not None:
        return [length for length, part in zip(source.lengths, source.parts, strict=True) if part == "train"] or [1]
    if data["split"] == "time":
        return [max(1, round(0.8 * length)) for length in source.lengths]
    return source.lengths[: max(1, round(0.8 * len(source.x)))]


def _lengths(source: Source, data: dict[str, Any], training: dict[str, Any], reasons: dict[str, str]) -> list[int]:
    """The lengths of what is trained on: few long sequences are cut into windows, gradients of long ones."""
    lengths = _training_lengths(source, data)
    longest = max(lengths)
    if len(lengths) < 16 and sum(lengths) > 2 * _WINDOW and longest > _WINDOW:
        data["window"] = _WINDOW
        reasons["data.window"] = "few training sequences, and long: pieces of so many frames fill a batch"
        return [min(_WINDOW, length - start) for length in lengths for start in range(0, length, _WINDOW)]
    if longest > _LONG:
        training["chunk_length"] = _LONG // 4
        reasons["training.chunk_length"] = f"sequences of up to {longest} frames: gradients go back so many"
    return lengths


def _sizes(source: Source, model: dict[str, Any], reasons: dict[str, str]) -> None:
    numbers = sum(x.numel() for x in source.x)
    hidden = next(size for size, most in ((32, 5e3), (64, 1e5), (128, 2e6), (256, math.inf)) if numbers <= most)
    latent = max(4, min(hidden // 4, 2 ** math.ceil(math.log2(2 * math.sqrt(source.x_size)))))
    model |= {"hidden_size": hidden, "latent_size": latent, "noise_size": max(2, latent // 4)}
    reasons["model.hidden_size"] = f"for {numbers:,} numbers"
    reasons["model.latent_size"] = f"for {source.x_size} features in a frame"
    if source.x_size > 2 * hidden:
        model["embed_size"] = hidden
        reasons["model.embed_size"] = "frames are wide: a network makes them smaller first"


def _schedule(
    source: Source, lengths: list[int], data: dict[str, Any], training: dict[str, Any], reasons: dict[str, str]
) -> None:
    batch = next(size for size in (16, 8, 4, 2, 1) if len(lengths) >= 4 * size or size == 1)
    data["batch_size"] = batch
    reasons["data.batch_size"] = (
        "1 sequence to train on" if len(lengths) == 1 else f"{len(lengths)} sequences to train on"
    )
    chunk = training.get("chunk_length")
    chunks = sum(math.ceil(length / chunk) for length in lengths) if chunk else len(lengths)
    updates = max(1, chunks // batch)
    epochs = max(20, min(500, round(UPDATES / updates)))
    training |= {
        "max_epochs": epochs,
        "early_stopping_patience": max(10, epochs // 5),
        "learning_rate": 0.003 if source.x_size <= 256 else 0.001,
        "kl_start": 0.1,
        "kl_anneal_updates": max(1, epochs * updates // 10),
    }
    reasons["training.max_epochs"] = f"updates in an epoch: about {updates}"
    reasons["training.early_stopping_patience"] = "epochs without a better validation score"
    reasons["training.kl_start"] = "the KL's weight rises over the first tenth, so that the latents come into use"
