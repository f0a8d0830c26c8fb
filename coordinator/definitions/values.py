"""Values that several fields hold: addresses, hashes, chain ids."""

from __future__ import annotations

from eth_utils.address import is_checksum_address

from consensus.errors import Invalid

_HEX = frozenset("0123456789abcdefABCDEF")


def address(text: str, field: str) -> bytes:
    """20 bytes of 0x and 40 digits, with a right checksum where the case is mixed. Raises `Invalid` for `field`."""
    digits = text[2:] if text.startswith("0x") else ""
    if len(digits) != 40 or not _HEX.issuperset(digits):
        raise Invalid(field, "is no address", "send 0x and 40 hexadecimal digits")
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(text):
        raise Invalid(field, "has a wrong checksum", "copy the address again")
    return bytes.fromhex(digits)


def hash32(text: str, field: str) -> bytes:
    """32 bytes of 0x and 64 digits. Raises `Invalid` for `field`."""
    digits = text[2:] if text.startswith("0x") else ""
    if len(digits) != 64 or not _HEX.issuperset(digits):
        raise Invalid(field, "is no transaction hash", "send 0x and 64 hexadecimal digits")
    return bytes.fromhex(digits)


def chain_id(text: str, field: str) -> int:
    """A decimal chain id. Raises `Invalid` for `field`."""
    if not text.isascii() or not text.isdecimal() or len(text) > 18 or not int(text):
        raise Invalid(field, "names no chain id", "begin with a decimal number")
    return int(text)
