"""The list of system calls: the kernel's filter and Docker's profile say the same, on both architectures."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import Misconfigured
from node.sandbox.seccomp import ALLOW, ARCHITECTURES, ENOSYS, EPERM, KILL, NEW_NAMESPACES, bpf, docker_profile, numbers

PROFILE = Path(__file__).parents[2] / "deploy/sandbox/seccomp.json"
MACHINES = sorted(ARCHITECTURES)


def verdict(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the filter returns: classic BPF, the instructions that it uses."""
    data = struct.pack("=IIQ", number, audit or ARCHITECTURES[machine].audit, 0)
    data += b"".join(struct.pack("=Q", each) for each in (*arguments, *(0,) * (6 - len(arguments))))
    code = [struct.unpack_from("=HBBI", bpf(machine), at) for at in range(0, len(bpf(machine)), 8)]
    at, word = 0, 0
    while True:
        what, yes, no, value = code[at]
        at += 1
        match what:
            case 0x20:
                (word,) = struct.unpack_from("=I", data, value)
            case 0x54:
                word &= value
            case 0x15:
                at += yes if word == value else no
            case 0x35:
                at += yes if word >= value else no
            case 0x25:
                at += yes if word > value else no
            case 0x45:
                at += yes if word & value else no
            case 0x06:
                return value
            case _:
                raise AssertionError(f"unknown instruction {what:#x}")


def by_profile(name: str, arguments: tuple[int, ...]) -> str:
    """What Docker's profile says, as libseccomp reads it."""

    def holds(check: dict[str, Any]) -> bool:
        given = arguments[check["index"]] if check["index"] < len(arguments) else 0
        return given == check["value"] if check["op"] == "SCMP_CMP_EQ" else given & check["value"] == check["valueTwo"]

    profile = docker_profile()
    for rule in profile["syscalls"]:
        if name in rule["names"] and all(holds(check) for check in rule.get("args", [])):
            return str(rule["action"])
    return str(profile["defaultAction"])


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_and_profile_agree_on_every_call(machine: str) -> None:
    table = numbers(machine)
    names = {number: name for name, number in table.items()}
    assert len(names) == len(table), "two names have one number"
    for number in range(600):
        name = names.get(number, "clone3" if number == ARCHITECTURES[machine].clone3 else "")
        allowed = verdict(machine, number, 1, 1) == ALLOW
        assert allowed == (by_profile(name, (1, 1)) == "SCMP_ACT_ALLOW"), (number, name)


@given(
    machine=st.sampled_from(MACHINES),
    family=st.integers(0, 60),
    kind=st.integers(0, 2**12),
    protocol=st.integers(0, 300),
)
def test_filter_and_profile_agree_on_sockets(machine: str, family: int, kind: int, protocol: int) -> None:
    for name in ("socket", "socketpair"):
        allowed = verdict(machine, numbers(machine)[name], family, kind, protocol) == ALLOW
        assert allowed == (by_profile(name, (family, kind, protocol)) == "SCMP_ACT_ALLOW")
        assert not (allowed and (family not in (1, 2, 10) or kind & 0xF not in (1, 2) or protocol not in (0, 6, 17)))


@given(machine=st.sampled_from(MACHINES), flags=st.integers(0, 2**32 - 1))
def test_no_memory_is_shared_that_lies_in_no_file(machine: str, flags: int) -> None:
    answer = verdict(machine, numbers(machine)["mmap"], 0, 4096, 3, flags)
    assert answer == (EPERM if flags & 1 and flags & 0x20 else ALLOW)
    assert (by_profile("mmap", (0, 4096, 3, flags)) == "SCMP_ACT_ALLOW") == (answer == ALLOW)


@given(machine=st.sampled_from(MACHINES), flags=st.integers(0, 2**32 - 1))
def test_processes_are_made_in_no_new_namespace(machine: str, flags: int) -> None:
    answer = verdict(machine, numbers(machine)["clone"], flags)
    assert answer == (EPERM if flags & NEW_NAMESPACES else ALLOW)
    assert (by_profile("clone", (flags,)) == "SCMP_ACT_ALLOW") == (answer == ALLOW)


def test_other_architectures_calls_are_deadly_and_unknown_ones_missing() -> None:
    for machine in MACHINES:
        other = next(each.audit for name, each in ARCHITECTURES.items() if name != machine)
        assert verdict(machine, 0, audit=other) == KILL
        assert verdict(machine, ARCHITECTURES[machine].clone3) == ENOSYS
        assert verdict(machine, 5000) == ENOSYS
    assert verdict("x86_64", 0x4000_0000 + 1) == KILL  # x32
    with pytest.raises(Misconfigured, match="riscv64"):
        bpf("riscv64")


def test_what_escapes_are_made_of_is_not_on_the_list() -> None:
    for machine in MACHINES:
        dangerous = {"mount", "unshare", "setns", "ptrace", "bpf", "keyctl", "io_uring_setup", "perf_event_open", "userfaultfd"}
        dangerous |= {
            "process_vm_writev",
            "open_by_handle_at",
            "pivot_root",
            "chroot",
            "kexec_load",
            "init_module",
            "vmsplice",
            "memfd_create",
        }
        assert not dangerous & set(numbers(machine))


def test_the_profile_that_ships_is_that_of_the_code() -> None:
    assert json.loads(PROFILE.read_text()) == docker_profile(), "python -m node.sandbox.seccomp > deploy/sandbox/seccomp.json"
