"""Cgroups of both versions, as files in a folder: what is written for a run, and what is read of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from consensus.errors import Misconfigured
from node.sandbox.cgroups import find_cgroups
from node.sandbox.port import Limits

LIMITS = replace(Limits(), cpus=0.5, memory=1 << 20, pids=9)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def process(folder: Path, groups: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cgroup").write_text(groups)
    return folder


def version_2(root: Path, procs: str = "") -> Path:
    own = "system.slice/keeper.service"
    files = {f"{own}/cgroup.procs": procs, f"{own}/cgroup.controllers": "cpu memory pids", f"{own}/cgroup.subtree_control": ""}
    return tree(root, {"cgroup.controllers": "cpu io memory pids", **files})


def test_a_service_with_a_delegated_group_makes_groups_in_it(tmp_path: Path) -> None:
    root = version_2(tmp_path / "fs", f"{os.getpid()}\n")
    cgroups = find_cgroups(root=root, process=process(tmp_path / "self", "0::/system.slice/keeper.service\n"))
    assert cgroups is not None
    assert cgroups.controllers == {"memory", "pids", "cpu", "cpuacct"}
    own = root / "system.slice/keeper.service"
    assert (own / "node/cgroup.procs").read_text() == str(os.getpid())  # a group with processes can be no parent
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    group = cgroups.make(LIMITS)
    (made,) = own.glob("triggerx-sandbox-*")
    written = {
        name: (made / name).read_text() for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    }
    assert written == {
        "memory.max": str(1 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "10",
        "cpu.max": "50000 100000",
    }
    group.add(4711)
    assert (made / "cgroup.procs").read_text() == "4711"
    tree(
        made,
        {
            "memory.peak": "900000\n",
            "memory.stat": "anon 5\nfile 300000\nshmem 100000\n",
            "memory.events": "low 0\noom 1\noom_kill 2\n",
            "cpu.stat": "usage_usec 1234\nuser_usec 1000\n",
        },
    )
    accounts = group.accounts()
    assert (accounts.cpu_us, accounts.peak, accounts.killed) == (1234, 700_000, True)


def test_version_1_has_a_group_for_each_controller_that_can_be_written_to(tmp_path: Path) -> None:
    files = {f"{each}/cgroup.procs": "" for each in ("memory", "pids", "cpuacct")}
    root = tree(tmp_path / "fs", files)
    groups = "4:memory:/somewhere/of/the/host\n3:pids:/\n2:cpu,cpuacct:/\n"
    cgroups = find_cgroups(root=root, process=process(tmp_path / "self", groups))
    assert cgroups is not None
    assert cgroups.controllers == {"memory", "pids", "cpuacct"}
    group = cgroups.make(LIMITS)
    (memory,) = (root / "memory").glob("triggerx-sandbox-*")
    assert (memory / "memory.limit_in_bytes").read_text() == str(1 << 20)
    assert (next((root / "pids").glob("triggerx-sandbox-*")) / "pids.max").read_text() == "10"
    tree(
        memory,
        {
            "memory.max_usage_in_bytes": "800",
            "memory.stat": "cache 9\ntotal_cache 300\ntotal_shmem 100\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
        },
    )
    tree(next((root / "cpuacct").glob("triggerx-sandbox-*")), {"cpuacct.usage": "5000000\n"})
    accounts = group.accounts()
    assert (accounts.cpu_us, accounts.peak, accounts.killed) == (5000, 600, False)


@pytest.mark.parametrize("procs", ["1\n2\n", f"{os.getpid()}\n1\n"], ids=["only others", "others beside us"])
def test_a_group_that_others_are_in_is_left_alone(tmp_path: Path, procs: str) -> None:
    root = version_2(tmp_path / "fs", procs)
    assert find_cgroups(root=root, process=process(tmp_path / "self", "0::/system.slice/keeper.service\n")) is None
    assert (root / "system.slice/keeper.service/cgroup.subtree_control").read_text() == ""


def test_without_cgroups_there_are_none(tmp_path: Path) -> None:
    assert find_cgroups(root=tmp_path, process=tmp_path / "no such process") is None


def test_a_group_of_the_operators_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured) as refused:
        find_cgroups(tmp_path / "missing")
    assert refused.value.key == "sandbox.cgroup"
    own = tree(tmp_path / "own", {"cgroup.controllers": "memory pids", "cgroup.subtree_control": ""})
    cgroups = find_cgroups(own)
    assert cgroups is not None
    assert cgroups.controllers == {"memory", "pids", "cpuacct"}


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path / "fs", {"memory/cgroup.procs": "", "pids/cgroup.procs": ""})
    cgroups = find_cgroups(root=root, process=process(tmp_path / "self", "4:memory:/\n3:pids:/\n"))
    assert cgroups is not None
    (root / "pids").rename(root / "gone")
    with pytest.raises(FileNotFoundError):
        cgroups.make(LIMITS)
    assert list((root / "memory").glob("triggerx-sandbox-*")) == []


def test_sandboxes_of_one_process_share_no_group(tmp_path: Path) -> None:
    own = tree(tmp_path / "own", {"cgroup.controllers": "memory", "cgroup.subtree_control": ""})
    for _ in range(2):
        cgroups = find_cgroups(own)
        assert cgroups is not None
        cgroups.make(LIMITS)
    assert len(list(own.glob("triggerx-sandbox-*"))) == 2
