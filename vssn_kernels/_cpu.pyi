"""The extension module built from csrc/cpu/bindings.cpp: raw addresses, sizes and strides, by name."""

from typing import Any

compiler: str
fields: dict[str, dict[str, str]]  # of each kernel: its arguments, and what is expected of them

def isa() -> str: ...
def __getattr__(name: str) -> Any: ...
