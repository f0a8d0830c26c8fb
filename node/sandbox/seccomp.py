"""Which system calls sandboxed programs may make: one list, written as a BPF program for bubblewrap and as a profile for Docker.

`python -m node.sandbox.seccomp` prints the profile.
"""

from __future__ import annotations

import errno
import json
import platform
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from consensus.errors import Misconfigured
from node.sandbox.syscalls import ALLOWED

FAMILIES: Final = (1, 2, 10)
"""Sockets may be of AF_UNIX, AF_INET and AF_INET6: no namespace holds AF_VSOCK, and the rest is attack surface."""
TYPES: Final = (1, 2)
"""SOCK_STREAM and SOCK_DGRAM: nothing raw."""
PROTOCOLS: Final = (0, 6, 17)
"""The type's own, TCP and UDP: others of the internet (SCTP, L2TP, MPTCP, ping) load modules of the kernel."""
NOBODYS: Final = 0x21
"""MAP_SHARED with MAP_ANONYMOUS: memory that stays when nobody whom it is counted for maps it, as memfd_create's does."""
NEW_NAMESPACES: Final = 0x7E02_0080
"""All CLONE_NEW* flags, the one for time among them."""

_CHECKED = ("clone", "mmap", "socket", "socketpair")
_LAST_KNOWN = 470  # a number beyond is answered as by a kernel that does not have the call yet
_TYPE_MASK = 0xF  # beside the type stand SOCK_CLOEXEC and SOCK_NONBLOCK
_X32 = 0x4000_0000

_LOAD, _AND, _EQUAL, _AT_LEAST, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; an argument has 8 bytes, its low word first

ALLOW: Final = 0x7FFF_0000
KILL: Final = 0x8000_0000
EPERM: Final = 0x0005_0000 | errno.EPERM
ENOSYS: Final = 0x0005_0000 | errno.ENOSYS


@dataclass(frozen=True, slots=True)
class Architecture:
    audit: int
    """AUDIT_ARCH_*, of linux/audit.h."""
    column: int
    clone3: int = 435


ARCHITECTURES: Final = MappingProxyType({"x86_64": Architecture(0xC000_003E, 0), "aarch64": Architecture(0xC000_00B7, 1)})


def numbers(machine: str) -> dict[str, int]:
    """The allowed calls that this kind of machine has, and their numbers."""
    column = ARCHITECTURES[machine].column
    found = ((name, each[column]) for name, each in ALLOWED.items())
    return {name: number for name, number in found if number is not None}


def bpf(machine: str | None = None) -> bytes:
    """The filter as the kernel takes it, for this machine unless named. Raises `Misconfigured` for other kinds of machines."""
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise Misconfigured("sandbox.kind", f'no filter of system calls is made for {machine}: use "docker"')
    mine = ARCHITECTURES[machine]
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, mine.audit), (_RETURN, 0, 0, KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, KILL)]
    table = numbers(machine)
    plain = [number for name, number in table.items() if name not in _CHECKED]
    for first, last in _ranges(plain):
        code += [(_AT_LEAST, 0, 2, first), (_ABOVE, 1, 0, last), (_RETURN, 0, 0, ALLOW)]
    # A new process or thread, in no new namespace.
    code += [
        (_EQUAL, 0, 4, table["clone"]),
        (_LOAD, 0, 0, _ARGUMENTS),
        (_ANY_BIT, 0, 1, NEW_NAMESPACES),
        (_RETURN, 0, 0, EPERM),
        (_RETURN, 0, 0, ALLOW),
    ]
    code += [
        (_EQUAL, 0, 5, table["mmap"]),
        (_LOAD, 0, 0, _ARGUMENTS + 3 * 8),
        (_AND, 0, 0, NOBODYS),
        (_EQUAL, 0, 1, NOBODYS),
        (_RETURN, 0, 0, EPERM),
        (_RETURN, 0, 0, ALLOW),
    ]
    for name, families in (("socket", FAMILIES), ("socketpair", FAMILIES[:1])):
        checks = [
            (_LOAD, 0, 0, _ARGUMENTS),
            *_one_of(families),
            (_LOAD, 0, 0, _ARGUMENTS + 8),
            (_AND, 0, 0, _TYPE_MASK),
            *_one_of(TYPES),
            (_LOAD, 0, 0, _ARGUMENTS + 2 * 8),
            *_one_of(PROTOCOLS),
            (_RETURN, 0, 0, ALLOW),
        ]
        code += [(_EQUAL, 0, len(checks), table[name]), *checks]
    # C libraries try clone3 first, whose flags no filter can read, and fall back to clone where it is missing.
    code += [(_EQUAL, 0, 1, mine.clone3), (_RETURN, 0, 0, ENOSYS), (_ABOVE, 0, 1, _LAST_KNOWN), (_RETURN, 0, 0, ENOSYS)]
    code += [(_RETURN, 0, 0, EPERM)]
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def _one_of(values: tuple[int, ...]) -> Iterator[tuple[int, int, int, int]]:
    """Goes on behind its last instruction when the word loaded is one of them, and refuses otherwise."""
    for position, value in enumerate(values):
        yield _EQUAL, len(values) - position, 0, value
    yield _RETURN, 0, 0, EPERM


def _ranges(values: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for value in sorted(values):
        if found and value == found[-1][1] + 1:
            found[-1] = (found[-1][0], value)
        else:
            found.append((value, value))
    return found


def docker_profile() -> dict[str, Any]:
    """The same for a Docker engine: `--security-opt seccomp=FILE` and the API's `SecurityOpt`."""
    allow = "SCMP_ACT_ALLOW"

    def equal(index: int, value: int) -> dict[str, Any]:
        return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}

    def masked(index: int, mask: int, value: int) -> dict[str, Any]:
        return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}

    rules: list[dict[str, Any]] = [{"names": sorted(set(ALLOWED) - set(_CHECKED)), "action": allow}]
    rules += [{"names": ["clone"], "action": allow, "args": [masked(0, NEW_NAMESPACES, 0)]}]
    rules += [{"names": ["mmap"], "action": allow, "args": [masked(3, bit, 0)]} for bit in (0x01, 0x20)]  # not both of `NOBODYS`
    for name, families in (("socket", FAMILIES), ("socketpair", FAMILIES[:1])):
        rules += [
            {"names": [name], "action": allow, "args": [equal(0, family), masked(1, _TYPE_MASK, kind), equal(2, protocol)]}
            for family in families
            for kind in TYPES
            for protocol in PROTOCOLS
        ]
    rules += [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "archMap": [{"architecture": f"SCMP_ARCH_{each.upper()}", "subArchitectures": []} for each in ARCHITECTURES],
        "syscalls": rules,
    }


if __name__ == "__main__":
    print(json.dumps(docker_profile(), indent=2))  # noqa: T201
