"""Damage to what stands in files: bytes, the words and lines of texts, the files of archives, the entries of trees."""

from __future__ import annotations

import io
import math
import random
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

LONGEST = 1 << 16  # bytes
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
TOKENS = [
    *(b"0 -1 1e999 nan inf -inf 9999999999999999999999 0x1 1_0 .5 true null ~ [] {} '' &a *a !!python/tuple".split()),
    *(b'<<: ? | > % @ ` : - , ; \t \n \r \x00 \xff \xfe\xff \xef\xbb\xbf "'.split(b" ")),
    *(b"2024-02-30 9999-99-99 1700-01-01 3000-01-01 12:61 NaT model data training set jsb files given".split()),
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**63), 2**64, 10**400),
    *(0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "1", "nan", "a\nb", "\x00", "\u00e9" * 40, "x" * 3000),
    *([], {}, [[]], [1, "a", None], {"": None}, {"a": {"b": []}}),
]
DTYPES = (
    "f2",
    "f4",
    "f8",
    "g",
    "i1",
    "u1",
    "i8",
    "u8",
    "?",
    "c8",
    "M8[s]",
    "m8[h]",
    "U3",
    "S3",
    "O",
    "V4",
    ">f4",
    ">i2",
)
GONE = object()


def changed(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """One to eight changes of bytes."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        at = draw.randrange(len(data) + 1) if draw.random() < 0.5 else draw.randrange(min(len(data), 200) + 1)
        kind = draw.randrange(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + draw.choice((1, 2, 4, 8, 64))]
        elif kind == 4:
            form = draw.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
            size = struct.calcsize(form)
            data[at : at + size] = struct.pack(form, draw.choice(NUMBERS) & (2 ** (8 * size) - 1))
        elif kind == 5:
            data[at:at] = draw.choice(TOKENS)
        elif kind == 6:
            length = draw.randrange(1, 64)
            start = draw.randrange(len(data) + 1)
            data[at:at] = data[start : start + length]
        elif kind == 7:
            other = draw.choice(others)
            start = draw.randrange(len(other) + 1)
            data[at : at + draw.choice((0, 4, 16))] = other[start : start + draw.randrange(1, 200)]
        else:
            data[at:at] = draw.randbytes(draw.randrange(1, 9))
        del data[LONGEST:]
    return bytes(data)


def changed_text(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """One to four changes of words or lines; now and then of bytes."""
    if draw.random() < 0.25:
        return changed(content, draw, others)
    for _ in range(draw.choice((1, 1, 2, 4))):
        kind = draw.randrange(8)
        words = list(re.finditer(rb"[\w.+-]+", content)) if kind < 4 else []
        if words:
            word = draw.choice(words)
            new = draw.choice(TOKENS) if draw.random() < 0.7 else draw.choice(words)[0]
            content = content[: word.start()] + new + content[word.end() :]
            continue
        lines = content.splitlines(keepends=True) or [b""]
        at = draw.randrange(len(lines))
        if kind == 4:
            del lines[at]
        elif kind == 5:
            lines.insert(at, draw.choice(draw.choice(others).splitlines(keepends=True) or [b"\n"]))
        elif kind == 6:
            lines[at] = b" " * draw.randrange(4) + lines[at].lstrip(b" ")
        else:
            lines.insert(draw.randrange(len(lines)), lines.pop(at))
        content = b"".join(lines)
    return content[:LONGEST]


def changed_inside(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Of an archive: one of its files is changed, with a right checksum; or the archive."""
    if draw.random() < 0.4:
        return changed(content, draw, others)
    result = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
            names = old.namelist()
            picked = draw.choice([name for name in names if "pkl" in name or "npy" in name] or names)
            for name in names:
                part = old.read(name)
                new.writestr(name, changed(part, draw, others) if name == picked else part)
    except Exception:  # it is damaged already
        return changed(content, draw, others)
    return result.getvalue()


def changed_tree(tree: Any, draw: random.Random) -> Any:
    """One to three entries of its dicts and lists are others, or gone; of arrays shape, type or numbers."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        nodes = list(_nodes(tree))
        path, value = draw.choice(nodes)
        tree = _with(tree, path, _other(value, draw, nodes))
    return tree


def _nodes(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield path, tree
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in entries:
        yield from _nodes(value, (*path, key))


def _with(tree: Any, path: Sequence[Any], new: Any) -> Any:
    if not path:
        return new
    key, *rest = path
    inner = _with(tree[key], rest, new)
    if isinstance(tree, dict):
        return {name: value for name, value in (tree | {key: inner}).items() if value is not GONE}
    return type(tree)(value for value in (*tree[:key], inner, *tree[key + 1 :]) if value is not GONE)


def _other(value: Any, draw: random.Random, nodes: Sequence[Any]) -> Any:
    chance = draw.random()
    if isinstance(value, np.ndarray) and chance < 0.8:
        return _other_array(value, draw)
    if isinstance(value, torch.Tensor) and chance < 0.8:
        return _other_tensor(value, draw)
    if chance < 0.15:
        return GONE
    if chance < 0.3:
        return draw.choice(nodes)[1]
    if isinstance(value, str) and chance < 0.5:
        return changed_text(value.encode(), draw, TOKENS).decode(errors="replace")
    return draw.choice(VALUES)


def _other_array(array: np.ndarray[Any, Any], draw: random.Random) -> Any:
    kind = draw.randrange(4)
    if kind == 0:
        shapes = (array.reshape(-1), array[None], array[..., None], array.T, array[:0], array[:1], array.reshape(-1)[0])
        return np.asarray(draw.choice(shapes))
    if kind == 1:
        return array.astype(draw.choice(DTYPES))
    array = array.astype(draw.choice(("f8", "f4", array.dtype.str)))
    if kind == 2:
        array.reshape(-1)[draw.randrange(array.size)] = draw.choice((math.nan, math.inf, -1, 2, 0.5, 1e300, 2**62))
        return array
    return array * draw.choice((0, -1, 1e30, math.nan, 2, 100)) + draw.choice((0, 1, -1))


def _other_tensor(tensor: torch.Tensor, draw: random.Random) -> torch.Tensor:
    kinds = (torch.float16, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)
    others = (
        lambda: tensor.to(draw.choice(kinds)),
        lambda: draw.choice((tensor[None], tensor[..., None], tensor.reshape(-1), tensor[:0], tensor.mT)),
        lambda: draw.choice((tensor.to_sparse(), tensor.to("meta"), tensor.reshape(-1)[:1].expand(tensor.shape))),
        lambda: tensor * draw.choice((0, math.nan, math.inf, 1e30)),
    )
    return draw.choice(others)()
