"""Types of numbers with bounds, for the keys of a configuration: to Python and mypy they are int and float.

pydantic asks a type for its schema; it is imported then, so that data sets can name these types without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Within:
    """Annotated[int, Within(ge=1)]: a whole number of at least 1."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """The type's own schema with the bounds, behind the check of `_number`."""
        from pydantic_core import core_schema

        bounds = {name: bound for name, bound in vars(self).items() if bound is not None}
        return core_schema.no_info_before_validator_function(_number, {**handler(source), **bounds})


def _number(value: Any) -> Any:
    """YAML reads yes and on as true, which would count as 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


LARGEST_SIZE = 2**31 - 1  # of a size, so that no product of two overflows

Count = Annotated[int, Within(ge=1, le=LARGEST_SIZE)]
Size = Annotated[int, Within(ge=0, le=LARGEST_SIZE)]
Seed = Annotated[int, Within(ge=0, lt=2**32)]
Real = Annotated[float, Within()]
Positive = Annotated[float, Within(gt=0)]
NotNegative = Annotated[float, Within(ge=0)]
Share = Annotated[float, Within(ge=0, le=1)]
