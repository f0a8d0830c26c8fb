"""Keys at rest: EIP-2335 keystores for BLS secrets, Web3 Secret Storage for ECDSA keys, and the file with their password."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import tempfile
import unicodedata
import uuid
from pathlib import Path
from typing import Any

import trio
from Crypto.Cipher import AES
from eth_account import Account

from consensus.bls import ORDER
from consensus.errors import Misconfigured
from node.infra.nesting import check_nesting
from node.infra.secret import Secret

SCRYPT_N = 262_144
"""EIP-2335's and geth's cost: 256 MiB and about a second. Tests and the devnet pass a smaller one."""

_R, _P = 8, 1
_MAX_MEMORY = 512 * 1024 * 1024  # bytes; a keystore that asks for more would take the process down with it
_MAX_WORK = 1 << 24  # n * r * p: eight times the standard
_MAX_ROUNDS = 10_000_000  # of pbkdf2: a few seconds
_MAX_FILE = 64 * 1024
_SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def read_password(path: Path, *, key: str = "keys.password_file") -> Secret[str]:
    """The password in a file, without its final line break. Refuses a file that others than owner and group can read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_FILE)
    except OSError as error:
        raise Misconfigured(key, f"cannot read {path} ({error.strerror}): create it with the keystores' password") from error
    if mode & stat.S_IRWXO:
        raise Misconfigured(key, f"{path} is open to every user of the machine (mode {mode & 0o777:o}): chmod 600 {path}")
    try:
        password = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise Misconfigured(key, f"{path} is not text: write the password in UTF-8") from None
    if not password:
        raise Misconfigured(key, f"{path} is empty: write the keystores' password to it")
    return Secret(password)


async def create_bls(
    path: Path, secret: int, password: Secret[str], *, public_key: bytes, n: int = SCRYPT_N, key: str = "keys.bls"
) -> None:
    """Writes an EIP-2335 keystore, mode 0600; refuses to replace a file. `public_key` is the 48 bytes that belong to `secret`."""
    if not 0 < secret < ORDER:
        raise ValueError("not a BLS12-381 secret")
    held = Secret(secret.to_bytes(32, "big"))
    document = await trio.to_thread.run_sync(_encrypt_bls, held, password, public_key, n)
    await trio.to_thread.run_sync(_write_new, path, document, key)


async def load_bls(path: Path, password: Secret[str], *, key: str = "keys.bls") -> Secret[int]:
    """The secret in an EIP-2335 keystore (scrypt or pbkdf2). Raises `Misconfigured` naming `key`."""
    document = _read(path, key)
    try:
        secret = await trio.to_thread.run_sync(_decrypt_bls, document, password)
    except _WrongPasswordError:
        raise _wrong_password(path, key) from None
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, key, "an EIP-2335 keystore", error) from None
    if not 0 < secret.reveal() < ORDER:
        raise Misconfigured(key, f"{path} holds no BLS12-381 secret: create the key again")
    return secret


async def create_operator(
    path: Path, private_key: bytes, password: Secret[str], *, n: int = SCRYPT_N, key: str = "keys.operator"
) -> None:
    """Writes a Web3 Secret Storage keystore of a 32-byte secp256k1 key, mode 0600; refuses to replace a file."""
    held = Secret(private_key)
    document = await trio.to_thread.run_sync(
        lambda: Account.encrypt(held.reveal(), password.reveal(), kdf="scrypt", iterations=n)
    )
    await trio.to_thread.run_sync(_write_new, path, document, key)


async def load_operator(path: Path, password: Secret[str], *, key: str = "keys.operator") -> Secret[bytes]:
    """The 32-byte key in a Web3 Secret Storage keystore (scrypt or pbkdf2). Raises `Misconfigured` naming `key`."""
    document = _read(path, key)
    try:
        secret = await trio.to_thread.run_sync(_decrypt_operator, document, password)
    except _WrongPasswordError:
        raise _wrong_password(path, key) from None
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, key, "a Web3 Secret Storage keystore", error) from None
    if len(secret.reveal()) != 32 or not 0 < int.from_bytes(secret.reveal(), "big") < _SECP256K1_ORDER:
        raise Misconfigured(key, f"{path} holds no secp256k1 key: create the key again")
    return secret


class _WrongPasswordError(Exception):
    pass


def _wrong_password(path: Path, key: str) -> Misconfigured:
    return Misconfigured(key, f"the password does not open {path}: check that the password file belongs to this keystore")


def _unreadable(path: Path, key: str, what: str, error: Exception) -> Misconfigured:
    why = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
    return Misconfigured(key, f"{path} is not {what} ({why}): check the path")


def _encrypt_bls(secret: Secret[bytes], password: Secret[str], public_key: bytes, n: int) -> dict[str, Any]:
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    derived = _scrypt(_normalised(password), salt, n, _R, _P)
    message = _aes_ctr(derived[:16], iv, secret.reveal())
    return {
        "crypto": {
            "kdf": {
                "function": "scrypt",
                "params": {"dklen": 32, "n": n, "r": _R, "p": _P, "salt": salt.hex()},
                "message": "",
            },
            "checksum": {"function": "sha256", "params": {}, "message": hashlib.sha256(derived[16:32] + message).hexdigest()},
            "cipher": {"function": "aes-128-ctr", "params": {"iv": iv.hex()}, "message": message.hex()},
        },
        "description": "TriggerX keeper",
        "pubkey": public_key.hex(),
        "path": "",
        "uuid": str(uuid.uuid4()),
        "version": 4,
    }


def _decrypt_bls(document: dict[str, Any], password: Secret[str]) -> Secret[int]:
    if document["version"] != 4:
        raise ValueError(f"version {document['version']}, not 4")
    crypto = document["crypto"]
    kdf, checksum, cipher = crypto["kdf"], crypto["checksum"], crypto["cipher"]
    if checksum["function"] != "sha256" or cipher["function"] != "aes-128-ctr":
        raise ValueError("unknown checksum or cipher")
    derived = _derive(kdf["function"], kdf["params"], _normalised(password))
    message = bytes.fromhex(cipher["message"])
    if not hmac.compare_digest(hashlib.sha256(derived[16:32] + message).digest(), bytes.fromhex(checksum["message"])):
        raise _WrongPasswordError
    return Secret(int.from_bytes(_aes_ctr(derived[:16], bytes.fromhex(cipher["params"]["iv"]), message), "big"))


def _decrypt_operator(document: dict[str, Any], password: Secret[str]) -> Secret[bytes]:
    folded = _lower_keys(document)
    if folded["version"] != 3:
        raise ValueError(f"version {folded['version']}, not 3")
    _check_cost(folded["crypto"]["kdf"], folded["crypto"]["kdfparams"])
    try:
        return Secret(bytes(Account.decrypt(folded, password.reveal())))
    except ValueError as error:
        if "MAC mismatch" in str(error):
            raise _WrongPasswordError from None
        raise


def _normalised(password: Secret[str]) -> bytes:
    """EIP-2335, "Password requirements": NFKD, without control codes, UTF-8."""
    text = unicodedata.normalize("NFKD", password.reveal())
    return "".join(c for c in text if not (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0)).encode("utf-8")


def _derive(function: str, params: dict[str, Any], password: bytes) -> bytes:
    _check_cost(function, params)
    salt = bytes.fromhex(params["salt"])
    if function == "scrypt":
        return _scrypt(password, salt, params["n"], params["r"], params["p"])
    return hashlib.pbkdf2_hmac("sha256", password, salt, params["c"], 32)


def _check_cost(function: str, params: dict[str, Any]) -> None:
    """Refuses what would exhaust memory or time, before a byte of it is spent. Raises `ValueError`."""
    names = {"scrypt": ("n", "r", "p", "dklen"), "pbkdf2": ("c", "dklen")}.get(function)
    if names is None:
        raise ValueError(f"unknown key derivation {str(function)[:20]!r}")
    if any(type(params[name]) is not int or params[name] < 1 for name in names) or params["dklen"] != 32:
        raise ValueError(f"unusable {function} parameters")
    if len(params["salt"]) > 1024:
        raise ValueError("a salt of over 512 bytes")
    if function == "scrypt":
        n, r, p = params["n"], params["r"], params["p"]
        if n < 2 or n & (n - 1):
            raise ValueError("scrypt's n must be a power of two")
        if 128 * n * r > _MAX_MEMORY or n * r * p > _MAX_WORK:
            raise ValueError(f"scrypt with n={n}, r={r}, p={p} asks for more memory or time than is sane")
    elif params["c"] > _MAX_ROUNDS:
        raise ValueError(f"pbkdf2 with c={params['c']} asks for more time than is sane")
    elif params.get("prf") != "hmac-sha256":
        raise ValueError("pbkdf2 with another function than hmac-sha256")


def _scrypt(password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    # OpenSSL counts its working buffers against maxmem: 128 * r * (n + p + 2) bytes.
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=128 * r * (n + p + 2) + 1024, dklen=32)


def _aes_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-128-CTR both ways; `iv` is the whole initial counter block."""
    if len(iv) != AES.block_size:
        raise ValueError("an iv of other than 16 bytes")
    return AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=iv).encrypt(data)


def _lower_keys(value: Any) -> Any:
    """Old clients wrote `Crypto`."""
    return {str(name).lower(): _lower_keys(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def _read(path: Path, key: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise Misconfigured(key, f"cannot read {path} ({error.strerror}): `triggerx-node keys create` makes one") from error
    try:
        check_nesting(content)
        document = json.loads(content) if len(content) <= _MAX_FILE else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Misconfigured(key, f"{path} is not a keystore: it holds no JSON object")
    return document


def _write_new(path: Path, document: dict[str, Any], key: str) -> None:
    """Whole or not at all, on disk when it returns, never over another file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, half = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(json.dumps(document, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(half, path)
        finally:
            os.unlink(half)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise Misconfigured(key, f"{path} exists and is never overwritten: move it away first") from None
    except OSError as error:
        raise Misconfigured(key, f"cannot write {path} ({error.strerror}): check the folder's owner and rights") from error
