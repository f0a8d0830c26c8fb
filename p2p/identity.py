"""A peer's ed25519 identity on disk, in the encoding every libp2p implementation reads."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from contextlib import suppress
from pathlib import Path

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID

from consensus.errors import Misconfigured
from p2p.network import PeerId

# protobuf PrivateKey {Type: Ed25519, Data: 64 bytes}; Data is seed + public key
# (https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md).
_HEADER = bytes((0x08, 0x01, 0x12, 0x40))
_KEY = "mesh.identity"


def load_identity(path: Path) -> KeyPair:
    """Reads the key file, or creates it (mode 0600) when it is absent.

    The file holds one line of base64. Raises `Misconfigured` naming the key `identity` when it cannot be read,
    written or understood, or when others may read it.
    """
    try:
        with suppress(FileExistsError):
            _create(path)
        mode = path.stat().st_mode
        text = path.read_bytes()
    except OSError as error:
        raise Misconfigured(_KEY, f"cannot use the key file {path}: {error.strerror or error}") from error
    if mode & 0o077:
        raise Misconfigured(_KEY, f"others may read the key file {path}: chmod 600 it")
    return _parse(path, text)


def peer_id_of(path: Path) -> PeerId:
    """The peer id that `load_identity` gives the owner of this file, which is created when absent."""
    return ID.from_pubkey(load_identity(path).public_key).to_base58()


def _create(path: Path) -> None:
    """Creates the file with its whole content or not at all; raises FileExistsError when it is there."""
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pair = create_new_key_pair()
    line = base64.b64encode(_HEADER + pair.private_key.to_bytes() + pair.public_key.to_bytes()) + b"\n"
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike rename, never replaces a key that another process wrote meanwhile
    finally:
        draft.unlink()


def _parse(path: Path, text: bytes) -> KeyPair:
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise Misconfigured(_KEY, f"{path} is not a key file: {error}") from error
    seed, public = raw[4:36], raw[36:]
    if len(raw) != len(_HEADER) + 64 or raw[:4] != _HEADER:
        raise Misconfigured(_KEY, f"{path} does not hold an ed25519 key")
    pair = create_new_key_pair(seed)
    if pair.public_key.to_bytes() != public:
        raise Misconfigured(_KEY, f"{path} is damaged: its two halves do not match")
    return pair
