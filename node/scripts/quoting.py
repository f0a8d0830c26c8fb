"""What strangers' programs print, fit for logs, messages and people: short, and without characters that do something."""

from __future__ import annotations

MOST = 512
"""Characters of a reason's words."""


def quoted(printed: bytes | str, most: int = MOST) -> str:
    """The beginning and the end of it in at most `most` characters (at least 8): each run of blanks and of characters that are
    not printable (controls, line ends, halves of surrogate pairs, changes of the writing's direction) is one space."""
    if isinstance(printed, bytes):
        printed = printed[: 8 * most].decode("utf-8", "replace") + printed[max(8 * most, len(printed) - 8 * most) :].decode(
            "utf-8", "replace"
        )
    elif len(printed) > 16 * most:
        printed = printed[: 8 * most] + printed[-8 * most :]
    words = "".join(each if each.isprintable() else " " for each in printed).split()
    text = " ".join(words)
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]}...{text[len(text) - half :]}"


def last_words(printed: bytes, most: int = MOST) -> str:
    """The end of it, where programs say what went wrong."""
    text = quoted(printed[-4 * most :], 5 * most)
    return text if len(text) <= most else f"...{text[3 - most :]}"
