"""The devnet's folder: fresh at each start, locked against a second devnet, and never somebody else's."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from consensus.errors import Misconfigured

MARKER = ".triggerx-devnet"
"""A folder with this file in it belongs to a devnet, which may empty it."""

LOGS = "logs"

_MARK = "This folder belongs to `triggerx devnet`, which empties it at each start.\n"


@contextmanager
def open_folder(path: Path) -> Iterator[Path]:
    """A folder with nothing but `logs` in it, absolute, held until the context ends; what a former devnet left in it is removed.

    Raises `Misconfigured` (`--dir`) when another devnet is running in it, or when it holds files that no devnet made.
    """
    path = path.absolute()
    try:
        _claim(path)
        lock = os.open(path / MARKER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured("--dir", f"cannot use {path} ({error.strerror}): choose another folder") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Misconfigured("--dir", f"another devnet is running in {path}: stop it, or give another folder") from None
        os.pwrite(lock, _MARK.encode(), 0)
        _empty(path)
        (path / LOGS).mkdir()
        yield path
    finally:
        os.close(lock)


def _claim(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if (path / MARKER).is_file() or not any(path.iterdir()):
        return
    raise Misconfigured("--dir", f"{path} holds files that no devnet made: give an empty folder, or one that does not exist yet")


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name == MARKER:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def ready_file(path: Path) -> Iterator[ReadyFile]:
    """The file that says all is ready: absent until it is written, and gone when the context ends.

    Raises `Misconfigured` (`--ready-file`) when `path` holds something else than a devnet's ready file.
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _require_ours(path)
            path.unlink()
    except OSError as error:
        raise Misconfigured("--ready-file", f"cannot write {path} ({error.strerror}): choose another") from error
    file = ReadyFile(path)
    try:
        yield file
    finally:
        if file.written:
            path.unlink(missing_ok=True)


def _require_ours(path: Path) -> None:
    try:
        ours = "coordinator_url" in json.loads(path.read_text("utf-8"))
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise Misconfigured("--ready-file", f"{path} exists and was not written by a devnet: choose another name")


class ReadyFile:
    """Written once, whole or not at all; readable by its owner only, since it holds keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = False

    def write(self, content: Mapping[str, Any]) -> None:
        write_whole(self.path, json.dumps(content, indent=2) + "\n")
        self.written = True


def write_whole(path: Path, text: str) -> None:
    """Writes a private file so that nobody ever reads a part of it."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)
