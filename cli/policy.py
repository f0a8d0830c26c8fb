"""What a job's owner pins on chain: the JobSpec that the coordinator shows, held against the registry, and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
from eth_utils.address import to_checksum_address

from cli.account import Sender
from consensus.codec import keccak, pin_hash
from consensus.errors import Failed, Invalid, Misconfigured, Reject, Transient
from consensus.messages import JobSpec, spec_cid, spec_digest
from node.arguments import encode_call, parse_json, selector
from node.infra.contracts import HUB_LINKS, JOB, POLICY, RUN_ALLOWANCE, SET_POLICY, SET_RUN_ALLOWANCE, Function
from node.infra.rpc import Rpc

ANSWER_BYTES = 2**20
"""A JobSpec has some kilobytes; a coordinator that sends more is not read to the end."""
_CONNECT_S = 10.0
_JOB_REGISTRY = HUB_LINKS["job_registry"]


@dataclass(frozen=True, slots=True)
class Pin:
    """What authorisations of a job are bound to by its JobSpec, and their gas limit."""

    spec: JobSpec
    digest: bytes
    selector: bytes
    call_hash: bytes
    gas_limit: int

    @property
    def hash(self) -> bytes:
        """`specHash` of `Hub.setJobPolicy`."""
        return pin_hash(self.spec.target, self.selector, self.call_hash, self.digest)

    def lines(self) -> list[str]:
        """For people: what is pinned, so that they see whether it is what they posted."""
        spec = self.spec
        said = {
            "spec_hash": "0x" + self.hash.hex(),
            "job_spec": spec_cid(self.digest),
            "owner": to_checksum_address(spec.owner),
            "trigger": repr(spec.trigger),
            "target": to_checksum_address(spec.target) if any(spec.target) else "the script's choice",
            "function": spec.function or "the script's choice",
            "arguments": f"the script's {spec.arguments}".rstrip() if spec.script_url else spec.arguments,
            "script": f"{spec.script_url} {spec.language}".rstrip() or "none",
            "priority": str(spec.priority),
            "security_level": str(spec.level),
            "gas_limit": str(self.gas_limit),
        }
        return [f"{name}: {_plain(value)}" for name, value in said.items()]


def pin_of(spec: bytes, gas_limit: int) -> Pin:
    """The pin of a JobSpec's bytes; the call is worked out here, from its function and arguments.

    Raises `Reject` for bytes that are no JobSpec, `Invalid` for arguments that are none of its function.
    """
    job = JobSpec.decode(spec)
    digest = spec_digest(spec)
    if job.script_url:
        return Pin(job, digest, selector(job.function) if job.function else bytes(4), bytes(32), gas_limit)
    call = encode_call(job.function, job.arguments)
    return Pin(job, digest, call[:4], keccak(call), gas_limit)


async def shown_by(api: str, api_key: str, job_id: int, transport: httpx.AsyncBaseTransport | None = None) -> Pin:
    """The pin of the job as the coordinator at `api` holds it. `transport` is httpx's own unless told.

    Raises `Misconfigured` when it knows no such job of this key, `Failed` (`WRONG_SPEC`) when what it shows is of another job
    or malformed, `Transient` when it does not answer.
    """
    url = f"{api.rstrip('/')}/api/jobs/spec/{job_id}"
    try:
        async with httpx.AsyncClient(timeout=_CONNECT_S, transport=transport) as client:
            async with client.stream("GET", url, headers={"X-API-KEY": api_key}) as answer:
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > ANSWER_BYTES:
                        raise Failed("WRONG_SPEC", "the coordinator answers with more than a JobSpec")
            if answer.status_code in (401, 403, 404):
                raise Misconfigured("--job", f"the coordinator says {answer.status_code}: check the job, --api and the API key")
            if answer.status_code != 200:
                raise Transient("COORDINATOR_UNREACHABLE", f"the coordinator answers {answer.status_code}")
        told: dict[str, Any] = parse_json(body.decode(), "spec")
        gas_limit = int(told["gas_limit"])
        if not 0 < gas_limit < 2**64:
            raise ValueError("its gas limit is out of range")
        pin = pin_of(bytes.fromhex(str(told["spec"]).removeprefix("0x")), gas_limit)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Transient("COORDINATOR_UNREACHABLE", f"--api does not answer: {error!r}") from None
    except (Reject, Invalid, ValueError, KeyError, TypeError) as error:
        raise Failed("WRONG_SPEC", f"the coordinator shows no JobSpec: {error}") from None
    if pin.spec.job_id != job_id:
        raise Failed("WRONG_SPEC", f"the coordinator shows job {pin.spec.job_id}")
    return pin


def check_expected(pin: Pin, spec_hash: str) -> None:
    """Raises `Failed` (`WRONG_SPEC`) when this is not the pin whose hash was read before."""
    if "0x" + pin.hash.hex() != spec_hash.lower():
        raise Failed("WRONG_SPEC", "--spec-hash is not the hash of what the coordinator shows now: read `policy hash` again")


async def check_registered(rpc: Rpc, hub: str, pin: Pin) -> None:
    """Raises `Failed` (`WRONG_SPEC`) unless the registry has the job as the JobSpec says, `Misconfigured` without a hub."""
    await _check_hub(rpc, hub)
    [registry] = await _view(rpc, hub, _JOB_REGISTRY)
    [row] = await _view(rpc, to_checksum_address(registry), JOB, int(pin.spec.job_id))
    owner, definition, created_at, time_frame, target, _, _ = row
    spec = pin.spec
    if not any(owner):
        raise Misconfigured("--job", "the registry of this hub has no such job")
    said = (spec.owner, spec.definition, spec.created_at, spec.time_frame, spec.target)
    if said != (owner, definition, created_at, time_frame, target):
        raise Failed("WRONG_SPEC", "the coordinator's JobSpec contradicts the registered job: pin nothing of it")


async def set_policy(sender: Sender, hub: str, pin: Pin, *, max_fee: int, gas_limit: int, allowance: int | None) -> list[str]:
    """Pins the job, and sets what runs without a transaction may cost it when told; the transactions' hashes.

    Raises `Failed` with the hub's reason: `NotJobOwner` for everybody else's account.
    """
    job_id = int(pin.spec.job_id)
    calls = [SET_POLICY.encode(job_id, pin.hash, max_fee, gas_limit, pin.spec.level)]
    if allowance is not None:
        calls.append(SET_RUN_ALLOWANCE.encode(job_id, allowance))
    return [str((await sender.send(hub, call))["transactionHash"]) for call in calls]


async def policy_lines(rpc: Rpc, hub: str, job_id: int) -> list[str]:
    """What the hub holds of a job's policy, for people."""
    await _check_hub(rpc, hub)
    [(spec_hash, max_fee, gas_limit, level, pinned)] = await _view(rpc, hub, POLICY, job_id)
    if not pinned:
        return ["not pinned: the coordinator says which call the job means"]
    [allowance] = await _view(rpc, hub, RUN_ALLOWANCE, job_id)
    said = {
        "spec_hash": "0x" + spec_hash.hex() if any(spec_hash) else "open",
        "max_fee": str(max_fee) if max_fee else "open",
        "gas_limit": str(gas_limit) if gas_limit else "open",
        "security_level": str(level),
        "run_allowance": str(allowance),
    }
    return [f"{name}: {value}" for name, value in said.items()]


def _plain(text: str) -> str:
    """A stranger's text for a terminal: it starts no line of its own and moves no cursor."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)


async def _check_hub(rpc: Rpc, hub: str) -> None:
    """A transaction to an address without code succeeds, and pins nothing."""
    if await rpc.call("eth_getCode", [hub, "latest"]) in ("0x", None):
        raise Misconfigured("--hub", f"no contract is at {hub} on this chain: copy the address of its Hub")


async def _view(rpc: Rpc, to: str, function: Function, *arguments: Any) -> tuple[Any, ...]:
    data = await rpc.call("eth_call", [{"to": to, "data": "0x" + function.encode(*arguments).hex()}, "latest"])
    return function.decode_output(bytes.fromhex(data[2:]))
