"""How deep foreign JSON may nest, checked before a parser sees it.

py_ecc and py-evm raise Python's recursion limit to 100,000 when they are imported; with that, a megabyte of `[`
overflows the C stack of CPython 3.11's json and of msgspec, and the process dies instead of raising.
"""

from __future__ import annotations

import re

MOST = 200
"""Levels: an ABI with nested tuples has a dozen, an RPC's block a handful."""

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_OTHERS = re.compile(rb"[^][{}]+")


def check_nesting(text: bytes | bytearray | str) -> None:
    """Raises `RecursionError`, as a parser would, for JSON text nested deeper than `MOST`. Linear, and cheap for flat text."""
    data = text.encode() if isinstance(text, str) else bytes(text)
    if data.count(b"[") + data.count(b"{") <= MOST:
        return
    depth = 0
    for bracket in _OTHERS.sub(b"", _STRINGS.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MOST:
            raise RecursionError(f"nested deeper than {MOST} levels")
