"""Named tuples in code that may be compiled."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T", bound=tuple[Any, ...])


def with_parts(named: T, **parts: Any) -> T:
    """`named._replace(**parts)`, which Dynamo of PyTorch 2.6 does not follow."""
    kind: Any = type(named)
    unknown = [name for name in parts if name not in kind._fields]
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}")
    return kind(*[parts.get(name, part) for name, part in zip(kind._fields, named, strict=True)])
