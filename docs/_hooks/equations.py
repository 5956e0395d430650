"""Equations become MathML when the site is built: no script, and nothing fetched by the reader."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """Of MkDocs, for every page."""
    return _EQUATION.sub(_as_mathml, content)


def _as_mathml(found: re.Match[str]) -> str:
    inline, display = found[2], found[3]
    return convert(html.unescape(inline or display).strip(), display="inline" if display is None else "block")
