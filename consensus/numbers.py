"""Numbers as users and sources write them, exact: text in, Decimal out, never a float between."""

from __future__ import annotations

import re
from decimal import Context, Decimal, Inexact

MAX_DIGITS = 100
"""Significant digits; a 256-bit integer has 78."""
MAX_MAGNITUDE = 100
"""Largest power of ten, either way, of the first digit: bounds what comparing two numbers costs."""
_MAX_TEXT = 128
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_EXACT = Context(prec=4 * MAX_DIGITS, traps=[Inexact])  # a sum of two numbers spans at most 10^101 to 10^-200


class NotANumber(ValueError):
    """What stands where a number should; the text says what it is."""


def number(value: object) -> Decimal:
    """The number that a JSON value (its numbers kept as text), an integer or a text is.

    Text is decimal, with an exponent if need be: `0`, `-0.5`, `1e30`. Not numbers: true and false (some services answer
    false for "no price"), null, empty text, NaN, infinities, hexadecimal, digits in groups, objects, arrays, and floats,
    which have lost digits before they come here. Raises `NotANumber`.
    """
    match value:
        case bool():
            raise NotANumber(f"{str(value).lower()} is no number")
        case None:
            raise NotANumber("null is no number")
        case str():
            return _bounded(_of_text(value))
        case Decimal() if value.is_finite():
            return _bounded(value)
        case Decimal():
            raise NotANumber(f"{value} is no number")
        case int():
            if abs(value) >= 10 ** (MAX_MAGNITUDE + 1):
                raise NotANumber("is out of range")
            return _bounded(Decimal(value))
        case float():
            raise NotANumber("a float has lost digits: keep the text")
        case dict() | list():
            raise NotANumber(f"an {'object' if isinstance(value, dict) else 'array'} is no number")
    raise NotANumber(f"a {type(value).__name__} is no number")


def total(*parts: Decimal) -> Decimal:
    """Their sum with every digit; the parts are in the bounds of `number`."""
    result = Decimal(0)
    for part in parts:
        result = _EXACT.add(result, part)
    return result


def scaled(value: int, decimals: int) -> Decimal:
    """`value` / 10^`decimals`, exact: how contracts write fractions. Raises `NotANumber` when out of bounds."""
    if not 0 <= decimals <= MAX_MAGNITUDE:
        raise NotANumber(f"{decimals} decimals are out of range")
    return _bounded(Decimal(value).scaleb(-decimals, _EXACT))


def _of_text(text: str) -> Decimal:
    if not text:
        raise NotANumber("empty text is no number")
    if len(text) > _MAX_TEXT:
        raise NotANumber(f"a text of {len(text)} characters is no number")
    if not _NUMBER.fullmatch(text):
        raise NotANumber(f"{text[:40]!r} is no number")
    return Decimal(text)


def _bounded(value: Decimal) -> Decimal:
    if not value:
        return Decimal(0)
    if len(value.as_tuple().digits) > MAX_DIGITS:
        raise NotANumber(f"has more than {MAX_DIGITS} digits")
    if not -MAX_MAGNITUDE <= value.adjusted() <= MAX_MAGNITUDE:
        raise NotANumber("is out of range")
    return value
