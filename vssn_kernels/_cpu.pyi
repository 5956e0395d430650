"""The extension module built from csrc/cpu/bindings.cpp: raw addresses, sizes and strides."""

from typing import Any

compiler: str

def isa() -> str: ...
def __getattr__(name: str) -> Any: ...
