"""The extension module built from csrc/cuda: raw addresses, sizes, strides and a stream, by name."""

from typing import Any

runtime: int
architectures: str
fields: dict[str, dict[str, str]]  # of each kernel: its arguments, and what is expected of them

def capabilities() -> list[int]: ...
def set_device(device: int) -> None: ...
def __getattr__(name: str) -> Any: ...
