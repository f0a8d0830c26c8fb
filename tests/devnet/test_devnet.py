"""`triggerx devnet` as people use it: what the ready file holds, what a pipe is shown, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from contextlib import suppress

import httpx

from node.infra.chain import TaskExecuted, TaskValidated
from tests.devnet.running import (
    GONE_S,
    ROOT,
    START_S,
    RunningDevnet,
    alive,
    connected,
    eventually,
    processes_naming,
    program,
    start_devnet,
)

ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
PEER = re.compile(r"12D3Koo\w{45}")


def test_the_ready_file_holds_what_a_client_needs(devnet: RunningDevnet):
    r = devnet.ready
    ours = {"job_registry", "gas_registry", "hub", "attestation_center", "keeper_registry", "demo"}
    assert set(r["contracts"]) == ours | {"safe_factory", "safe_module", "multisend_call_only"}
    assert all(ADDRESS.fullmatch(address) for address in r["contracts"].values())
    assert set(r["sdk"]) == {"gasRegistry", "jobRegistry", "safeFactory", "safeModule", "multisendCallOnly", "rpcUrl"}
    assert set(r["sdk"].values()) <= {*r["contracts"].values(), r["rpc_url"]}
    assert r["chain_id"] == 31337
    assert r["rpc_url"].startswith("http://")
    assert r["ws_url"] is None or r["ws_url"].startswith("ws://")
    assert re.fullmatch(rf"/ip4/127\.0\.0\.1/tcp/\d+/p2p/{PEER.pattern}", r["bootstrap"])
    assert len(r["accounts"]) >= 5
    assert all(ADDRESS.fullmatch(a["address"]) and re.fullmatch(r"0x[0-9a-f]{64}", a["private_key"]) for a in r["accounts"])
    assert (
        len({k["address"] for k in r["keepers"]})
        == len({k["peer_id"] for k in r["keepers"]})
        == len({k["pid"] for k in r["keepers"]})
        == 5
    )
    for keeper in r["keepers"]:
        assert keeper["multiaddr"].endswith(f"/p2p/{keeper['peer_id']}")
    assert stat.S_IMODE((devnet.folder / "devnet.json").stat().st_mode) == 0o600


def test_every_program_runs_as_a_process_of_its_own(devnet: RunningDevnet):
    assert len(set(devnet.pids)) == 8
    assert all(alive(pid) for pid in devnet.pids)


def test_the_ready_file_appears_when_the_mesh_is_whole(devnet: RunningDevnet):
    peers = {keeper["peer_id"] for keeper in devnet.ready["keepers"]}
    for keeper in devnet.ready["keepers"]:
        assert httpx.get(f"{keeper['status_url']}/readyz").status_code == 200
        assert peers - {keeper["peer_id"]} <= set(httpx.get(f"{keeper['status_url']}/status").json()["peers"])


def test_accounts_are_funded(devnet: RunningDevnet):
    for account in devnet.ready["accounts"]:
        body = {"jsonrpc": "2.0", "id": 1, "method": "eth_getBalance", "params": [account["address"], "latest"]}
        assert int(httpx.post(devnet.ready["rpc_url"], json=body).json()["result"], 16) >= 10**20


async def test_a_job_is_executed_certified_and_verified_on_chain(devnet: RunningDevnet):
    async with connected(devnet) as network:
        job_id = await network.post(7_001, interval=8)
        task_id = await network.only_task(job_id)
        record = await network.ended(task_id)
        assert record["task_status"] == "completed"
        assert record["is_accepted"] is True
        [executed] = await network.events(TaskExecuted, task_id)
        [validated] = await network.events(TaskValidated, task_id)
        assert validated.accepted
        assert record["execution_tx_hash"] == "0x" + executed.place.tx_hash.hex()
        assert record["submission_tx_hash"] == "0x" + validated.place.tx_hash.hex()
        assert await network.pings(7_001) == 1


def test_a_second_devnet_in_the_same_folder_is_refused(devnet: RunningDevnet):
    command = program("cli.triggerx", "devnet", "--dir", str(devnet.folder))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2
    assert "another devnet is running" in done.stderr
    assert "Traceback" not in done.stderr
    assert all(alive(pid) for pid in devnet.pids)


def test_a_folder_with_somebody_elses_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    command = program("cli.triggerx", "devnet", "--dir", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2
    assert "no devnet made" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_ctrl_c_leaves_nothing_and_a_second_start_works_and_a_killed_devnet_leaves_nothing_either(tmp_path):
    folder = tmp_path / "net"
    first = start_devnet(folder, "--keepers", "3", "--chain", "embedded")
    try:
        first.wait_ready()
        eventually(lambda: "certificate verified on chain: accepted" in first.said(), START_S, "a certified demo task")
        assert first.end(signal.SIGINT) == 0
        assert [pid for pid in first.pids if alive(pid)] == []
        assert processes_naming(folder) == []
        assert not (folder / "devnet.json").exists()
    finally:
        first.close()
    said = first.said()
    assert "\x1b" not in said
    assert "\r" not in said
    assert "embedded py-evm" in said
    assert "Traceback" not in said
    for word in ("sent", "mined", "seen", "attested", "certified", "verified"):
        assert re.search(rf"^task \S+: {word} -?\d+ ms after its second", said, re.MULTILINE), word

    second = start_devnet(folder, "--keepers", "2", "--no-demo", "--chain", "embedded")
    try:
        second.wait_ready()
        assert len(second.ready["keepers"]) == 2
        second.end(signal.SIGKILL)
        eventually(lambda: not any(alive(pid) for pid in second.pids), GONE_S, "every child gone with its parent")
        assert processes_naming(folder) == []
    finally:
        second.close()


def test_ctrl_c_while_it_starts_leaves_nothing_either(tmp_path):
    folder = tmp_path / "net"
    devnet = start_devnet(folder, "--keepers", "2", "--chain", "embedded")
    try:
        eventually(lambda: "starting 2 keepers" in devnet.said(), START_S, "half a start")
        assert devnet.end(signal.SIGINT) == 0
        assert processes_naming(folder) == []
        assert "Traceback" not in devnet.said()
    finally:
        devnet.close()


def test_a_terminal_shows_tables_of_keepers_and_tasks(tmp_path):
    folder = tmp_path / "net"
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "60", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cli.triggerx", "devnet", "--dir", str(folder), "--keepers", "2", "--chain", "embedded"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=ROOT, start_new_session=True
    )
    os.close(theirs)
    shown = bytearray()
    os.set_blocking(ours, False)

    def look() -> bool:
        with suppress(OSError):  # nothing to read now, or nobody writes any more
            shown.extend(os.read(ours, 65536))
        return b"accepted" in shown

    try:
        eventually(look, START_S, "a certified task on the terminal")
        pid = json.loads((folder / "devnet.json").read_text())["coordinator_pid"]
        process.send_signal(signal.SIGTERM)
        eventually(lambda: look() and process.poll() is not None, GONE_S, "the end")
        assert process.returncode == 0
        assert not alive(pid)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    text = shown.decode(errors="replace")
    for word in ("keeper-1", "performed", "milliseconds after the due second", "certificate"):
        assert word in text
