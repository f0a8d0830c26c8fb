"""Runs inside a sandbox, as a program of the standard library alone: carries connections to 127.0.0.1 to the proxy's socket.

`python3 -I -S relay.py SOCKET PORT COMMAND...` listens, leaves the carrying to a child, and becomes COMMAND.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys

_MOST = 32  # connections at once; the proxy carries fewer
_PIECE = 65_536


class _End:
    """One side of a connection: what it is read into and written from. `other` is set at once after birth."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.other: _End = self
        self.waiting = b""  # for this side, at most one piece: more is not read before it is gone
        self.ended = False  # nothing more comes from this side
        self.shut = False  # nothing more goes to it

    def watched(self) -> int:
        """What to wait for."""
        reading = 0 if self.ended or self.other.waiting or self.other.shut else selectors.EVENT_READ
        return reading | (selectors.EVENT_WRITE if self.waiting else 0)


def carry(listener: socket.socket, path: str) -> None:
    """Carries until killed."""
    with selectors.DefaultSelector() as selector:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        ends: set[_End] = set()
        while True:
            for key, ready in selector.select():
                if key.fileobj is listener:
                    _accept(listener, path, selector, ends)
                elif key.data in ends:
                    _move(key.data, ready, selector, ends)
            _watch(listener, selector, len(ends) < 2 * _MOST)


def _watch(listener: socket.socket, selector: selectors.BaseSelector, wanted: bool) -> None:
    if wanted and listener not in selector.get_map():
        selector.register(listener, selectors.EVENT_READ)
    elif not wanted and listener in selector.get_map():
        selector.unregister(listener)


def _accept(listener: socket.socket, path: str, selector: selectors.BaseSelector, ends: set[_End]) -> None:
    try:
        inside, _ = listener.accept()
    except OSError:
        return
    outside = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        outside.connect(path)  # at once, or never
    except OSError:
        inside.close()
        outside.close()
        return
    pair = _End(inside), _End(outside)
    for end, other in (pair, pair[::-1]):
        end.sock.setblocking(False)
        end.other = other
        ends.add(end)
        selector.register(end.sock, selectors.EVENT_READ, end)


def _move(end: _End, ready: int, selector: selectors.BaseSelector, ends: set[_End]) -> None:
    try:
        if ready & selectors.EVENT_READ and not end.ended and not end.other.waiting:
            end.other.waiting = end.sock.recv(_PIECE)
            end.ended = not end.other.waiting
        for each in (end, end.other):
            if each.waiting:
                with contextlib.suppress(BlockingIOError):
                    each.waiting = each.waiting[each.sock.send(each.waiting) :]
            if each.other.ended and not each.waiting and not each.shut:
                each.sock.shutdown(socket.SHUT_WR)
                each.shut = True
        done = end.shut and end.other.shut
    except BlockingIOError:
        return
    except OSError:
        done = True
    for each in (end, end.other):
        watched = 0 if done else each.watched()
        if each.sock in selector.get_map():
            selector.unregister(each.sock)
        if done:
            ends.discard(each)
            each.sock.close()
        elif watched:
            selector.register(each.sock, watched, each)


def main(path: str, port: str, *command: str) -> None:
    listener = socket.create_server(("127.0.0.1", int(port)))
    if os.fork() == 0:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for each in range(3):  # the command's ends of its pipes must be the only ones
            os.dup2(nowhere, each)
        try:
            carry(listener, path)
        finally:
            os._exit(1)
    listener.close()
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(*sys.argv[1:])
