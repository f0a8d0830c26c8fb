"""`triggerx policy`: an owner pins what the coordinator shows of his job, once it agrees with the chain, and the job goes on."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from cli.devnet.embedded.accounts import DevAccount
from cli.policy import ANSWER_BYTES, check_expected, check_registered, pin_of, shown_by
from consensus.codec import keccak, pin_hash
from consensus.errors import Failed, Misconfigured, Transient
from consensus.messages import Uint256, spec_digest
from node.infra.contracts import POLICY, RUN_ALLOWANCE
from tests.consensus import samples
from tests.devnet.fixtures import on_anvil
from tests.devnet.running import Network, RunningDevnet, connected
from tests.devnet.test_operator_commands import keys_of, triggerx

values = itertools.count(78_001)
JOB = int(samples.SPEC.job_id)


class Owner:
    """The command line of the owner of account 0's jobs."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.ready = network.ready
        self.folder = folder
        (folder / "api-key").write_text(self.ready["api_key"] + "\n")
        self.api = ("--api", self.ready["coordinator_url"], "--api-key-file", str(folder / "api-key"))
        self.chain = ("--rpc", self.ready["rpc_url"], "--hub", self.ready["contracts"]["hub"])

    async def policy(self, command: str, job_id: int, *more: str) -> subprocess.CompletedProcess[str]:
        return await triggerx("policy", command, "--job", str(job_id), *more)

    async def keys(self, account: int = 0) -> tuple[str, ...]:
        return await keys_of(self.folder, DevAccount(**self.ready["accounts"][account]))


@on_anvil
async def test_a_pinned_job_goes_on_and_shows_its_pin(devnet: RunningDevnet, tmp_path: Path) -> None:
    async with connected(devnet) as network:
        job_id = await network.post(next(values), interval=20)
        owner = Owner(network, tmp_path)
        assert "not pinned" in (await owner.policy("show", job_id, *owner.chain)).stdout
        told = await owner.policy("hash", job_id, *owner.api)
        assert told.returncode == 0, told.stderr
        said = dict(line.split(": ", 1) for line in told.stdout.splitlines())
        assert said["function"] == "ping(uint256)"

        limits = ("--max-fee", str(10**17), "--run-allowance", "5")
        foreign = await owner.policy("set", job_id, *owner.api, *owner.chain, *await owner.keys(1), *limits)
        assert (foreign.returncode, "NotJobOwner" in foreign.stderr) == (1, True)
        limits += ("--spec-hash", said["spec_hash"])
        done = await owner.policy("set", job_id, *owner.api, *owner.chain, *await owner.keys(), *limits)
        assert done.returncode == 0, done.stderr
        pinned = await network.view("hub", POLICY, job_id)
        assert ("0x" + pinned[0].hex(), pinned[1], str(pinned[2]), pinned[4]) == (
            said["spec_hash"],
            10**17,
            said["gas_limit"],
            True,
        )
        assert await network.view("hub", RUN_ALLOWANCE, job_id) == 5
        shown = await owner.policy("show", job_id, *owner.chain)
        assert said["spec_hash"] in shown.stdout
        assert "run_allowance: 5" in shown.stdout
        assert (await network.ended(await network.only_task(job_id)))["task_status"] == "completed"


@on_anvil
async def test_what_is_wrong_with_a_pin_is_said_in_a_line(devnet: RunningDevnet, tmp_path: Path) -> None:
    async with connected(devnet) as network:
        owner = Owner(network, tmp_path)
        keys = await owner.keys()
        unknown = await owner.policy("hash", 7, *owner.api)
        nothing = await owner.policy("show", 7, "--rpc", owner.ready["rpc_url"], "--hub", "0x" + "11" * 20)
        no_wei = await owner.policy("set", 7, *owner.api, *owner.chain, *keys, "--max-fee", "1e18")
        (tmp_path / "api-key").unlink()
        no_key = await owner.policy("hash", 7, *owner.api)
    for done, words in ((unknown, "--job"), (nothing, "--hub"), (no_wei, "--max-fee"), (no_key, "--api-key-file")):
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr


# --- a coordinator that lies -------------------------------------------------------------------------------------------


def told(spec: bytes = samples.SPEC.encode(), status: int = 200, gas_limit: object = 123_456) -> httpx.MockTransport:
    body = json.dumps({"spec": "0x" + spec.hex(), "gas_limit": gas_limit}).encode()
    return httpx.MockTransport(lambda _: httpx.Response(status, content=body))


async def test_the_pin_is_worked_out_from_the_spec_alone() -> None:
    pin = await shown_by("http://coordinator.example.org", "key", JOB, told())
    call = samples.CALL
    digest = spec_digest(samples.SPEC.encode())
    assert pin == pin_of(samples.SPEC.encode(), 123_456)
    assert (pin.digest, pin.selector, pin.call_hash) == (digest, call[:4], keccak(call))
    assert pin.hash == pin_hash(samples.SPEC.target, call[:4], keccak(call), digest)


async def test_of_a_script_jobs_call_only_the_function_is_pinned() -> None:
    dynamic = replace(samples.SPEC, definition=2, script_url="ipfs://" + "b" * 59, arguments="")
    pin = pin_of(dynamic.encode(), 1)
    assert (pin.selector, pin.call_hash) == (samples.CALL[:4], bytes(32))
    custom = replace(dynamic, definition=7, function="", target=bytes(20))
    pin = pin_of(custom.encode(), 1)
    assert (pin.selector, pin.call_hash) == (bytes(4), bytes(32))
    assert "target: the script's choice" in pin.lines()


async def test_what_is_shown_is_read_as_text_and_nothing_else() -> None:
    """The coordinator's words go to the terminal of somebody who decides by them."""
    url = "ipfs://" + "b" * 59
    bent = replace(
        samples.SPEC, definition=2, script_url=url, arguments="null\nscript: ipfs://another\x1b[1A\x9b2K\u202e", language="go"
    )
    lines = pin_of(bent.encode(), 1).lines()
    assert f"script: {url} go" in lines
    assert all(line.isprintable() for line in lines)
    assert "arguments: the script's null\\u000ascript: ipfs://another\\u001b[1A\\u009b2K\\u202e" in lines


def test_what_the_coordinator_shows_later_is_not_what_was_read() -> None:
    pin = pin_of(samples.SPEC.encode(), 1)
    check_expected(pin, "0x" + pin.hash.hex())
    other = pin_of(replace(samples.SPEC, level=1).encode(), 1)
    for text in ("0x" + other.hash.hex(), pin.hash.hex(), "", "0x"):
        with pytest.raises(Failed, match="--spec-hash") as refused:
            check_expected(pin, text)
        assert refused.value.code == "WRONG_SPEC"


@pytest.mark.parametrize(
    "transport",
    [
        told(replace(samples.SPEC, job_id=Uint256(8)).encode()),
        told(replace(samples.SPEC, arguments="[1, 2]").encode()),
        told(b"nonsense"),
        told(b""),
        told(gas_limit="much"),
        told(gas_limit=None),
        told(gas_limit=-1),
        told(gas_limit=2**256),
        httpx.MockTransport(lambda _: httpx.Response(200, content=b"[]")),
        httpx.MockTransport(lambda _: httpx.Response(200, content=b'{"spec": 7}')),
        httpx.MockTransport(lambda _: httpx.Response(200, content=b"[" * 100_000)),
        httpx.MockTransport(lambda _: httpx.Response(200, content=b" " * (ANSWER_BYTES + 1))),
    ],
)
async def test_what_is_not_the_jobs_spec_is_not_pinned(transport: httpx.MockTransport) -> None:
    with pytest.raises(Failed) as refused:
        await shown_by("http://coordinator.example.org", "key", JOB, transport)
    assert refused.value.code == "WRONG_SPEC"


@pytest.mark.parametrize(("status", "error"), [(404, Misconfigured), (403, Misconfigured), (500, Transient), (302, Transient)])
async def test_a_coordinator_that_refuses_is_told_from_one_that_fails(status: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        await shown_by("http://coordinator.example.org", "key", JOB, told(status=status))


class Registry:
    """A chain that answers for one registered job."""

    def __init__(self, **changes: object) -> None:
        self.spec = replace(samples.SPEC, **changes)

    async def call(self, method: str, params: object = ()) -> object:
        if method == "eth_getCode":
            return "0x00"
        [request, _] = params  # type: ignore[misc]
        if len(request["data"]) == 10:  # the hub's registry
            return "0x" + "22".rjust(64, "0")
        spec = self.spec
        words = (spec.definition, spec.created_at, spec.time_frame)
        row = [spec.owner.rjust(32, b"\0"), *(n.to_bytes(32, "big") for n in words), spec.target.rjust(32, b"\0")]
        return "0x" + b"".join([*row, bytes(32), b"\1".rjust(32, b"\0")]).hex()

    async def batch(self, calls: object) -> list[object]:
        raise NotImplementedError


async def test_a_spec_that_contradicts_the_registered_job_is_not_pinned() -> None:
    pin, hub = pin_of(samples.SPEC.encode(), 1), "0x" + "11" * 20
    await check_registered(Registry(), hub, pin)  # type: ignore[arg-type]
    for changes in ({"owner": b"\x45" * 20}, {"definition": 2}, {"created_at": 1}, {"time_frame": 1}, {"target": b"\x56" * 20}):
        with pytest.raises(Failed, match="contradicts"):
            await check_registered(Registry(**changes), hub, pin)  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="no such job"):
        await check_registered(Registry(owner=bytes(20)), hub, pin)  # type: ignore[arg-type]
