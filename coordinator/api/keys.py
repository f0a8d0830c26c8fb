"""API keys: made here, shown once, kept as a hash."""

from __future__ import annotations

import hashlib
import secrets
from enum import StrEnum

from coordinator.store.records import ApiKey


class Role(StrEnum):
    """What a key's owner may do; `keeper` comes with the routes that are a keeper's."""

    USER = "user"
    ADMIN = "admin"


RATE_LIMIT = 6000
"""Requests a minute of a key for which nothing else was said: a dashboard that looks ten times a second takes a tenth."""
_BYTES = 24  # 192 bits: not to be guessed, whatever the hash


def digest_of(key: str) -> bytes:
    """What the store knows of a key. A plain hash is enough for a secret that nobody chose."""
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).digest()


def new_key(owner: str, *, role: str = "user", rate_limit: int = RATE_LIMIT, now: int) -> tuple[str, ApiKey]:
    """A fresh key, `TGRX-...`, and its record. The text is not to be had again."""
    key = f"TGRX-{secrets.token_hex(_BYTES)}"
    return key, ApiKey(digest_of(key), f"{key[:4]}...{key[-4:]}", owner, role, True, rate_limit, now)
