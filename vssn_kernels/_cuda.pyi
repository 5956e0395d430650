"""The extension module built from csrc/cuda: raw addresses, sizes, strides and a stream."""

from typing import Any

runtime: int
architectures: str

def capabilities() -> list[int]: ...
def set_device(device: int) -> None: ...
def __getattr__(name: str) -> Any: ...
