"""What is wrong with a configuration, in one line: where it stands, what was expected, what came, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from vssn.utils.packages import needing

with needing("train"):
    from pydantic import ValidationError


Known = Callable[[Sequence[str]], Sequence[str]]  # the keys below a section, by its path


def explain(error: ValidationError, origin: str, overrides: Sequence[str], known: Known) -> str:
    """One of pydantic's errors as one line: an unknown key before the rest, since a misspelt key is missing as well."""
    details = error.errors(include_url=False)
    first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    location = [str(name) for name in first["loc"]]
    if first["type"] in ("set_missing", "set_unknown"):  # of vssn.training.sections
        location.append("set")
    key = ".".join(location)
    unknown = first["type"] == "extra_forbidden"  # then an override may also stand below the key
    given = [text for text in overrides if f"{text.partition('=')[0].strip()}.".startswith(f"{key}.")]
    given = [text for text in given if unknown or text.partition("=")[0].strip() == key]
    where = f"--set {given[-1]}" if given else origin
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}: {f'{key}: ' if key else ''}{_expectation(first, location, known)}{more}"


def _expectation(detail: Any, location: list[str], known: Known) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        keys = known(location[:-1])
        close = difflib.get_close_matches(location[-1], keys, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else "remove it."
        return f"unknown key; {hint} Known here: {', '.join(keys)}"
    if kind == "missing":
        return "missing; this key must be given, add it"
    if kind in ("set_missing", "set_unknown"):
        came = f"got {quote(context['set'])}" if "set" in context else "it is missing"
        return f"expected one of {context['names']}, {came}; correct it"
    if kind == "value_error":
        reason = str(context["error"])
        return reason if isinstance(value, dict) else f"{reason}, got {quote(value)}; correct it"
    if kind in ("model_type", "model_attributes_type"):
        return f"expected a section with keys of its own, got {quote(value)}; write them indented below it"
    wanted = detail["msg"].removeprefix("Input should be ").split(", unable to")[0].split(", got")[0]
    if wanted.startswith(("greater", "less")):
        wanted = f"a number {wanted}"
    return f"expected {wanted}, got {quote(value)}; correct it"


def quote(value: object) -> str:
    if not _is_short(value):  # aliases make a text of a few lines stand for more than there is memory
        return f"a {type(value).__name__} of many entries"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_short(value: object) -> bool:
    """Whether it has a thousand entries at most, those of its entries counted."""
    left, parts = 1000, [value]
    while parts and left > 0:
        part = parts.pop()
        left -= 1
        if isinstance(part, dict):
            parts += [*part, *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            parts += part
    return not parts


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
