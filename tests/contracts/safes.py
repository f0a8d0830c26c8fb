"""Real Safes for the tests: made by our factory or by hand, used by their owners and by the hub's jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from consensus.codec import word
from tests.contracts.evm import Contract, Receipt, abi_of, reason_of, text
from tests.contracts.world import USER, Task, World

CALL, DELEGATECALL = 0, 1
GAS_LIMIT = 600_000
NOBODY = bytes(20)


def safe_at(world: World, address: bytes) -> Contract:
    return Contract(world.chain, address, abi_of("Safe"))


def make_safe(world: World, user: bytes = USER) -> Contract:
    """The user's next Safe, as the factory makes it."""
    receipt = world.safe_factory.send("createSafeWallet", user, sender=world.chain.fund(user))
    return safe_at(world, world.safe_factory.events(receipt, "SafeWalletCreated")[0]["safeWallet"])


def proxy_factory(world: World) -> Contract:
    return Contract(world.chain, world.safe_factory.view("safeProxyFactory"), abi_of("SafeProxyFactory"))


def setup_call(world: World, owners: Sequence[bytes], threshold: int = 1, *, module: bool = True) -> bytes:
    """What a new Safe is told, as our factory does it; `module` says whether the SafeModule is enabled."""
    at, data = (world.safe_module.address, world.safe_module.encode("enableFromSetup")) if module else (NOBODY, b"")
    handler = world.safe_factory.view("safeFallbackHandler")
    return safe_at(world, NOBODY).encode("setup", owners, threshold, at, data, handler, NOBODY, 0, NOBODY)


def make_by_hand(
    world: World, owners: Sequence[bytes], threshold: int = 1, *, module: bool = True, salt: int = 10**9
) -> Contract:
    """A Safe from Safe's own factory."""
    singleton = world.safe_factory.view("safeSingleton")
    initializer = setup_call(world, owners, threshold, module=module)
    receipt = proxy_factory(world).send("createProxyWithNonce", singleton, initializer, salt, sender=world.chain.fund(owners[0]))
    return safe_at(world, proxy_factory(world).events(receipt, "ProxyCreation")[0]["proxy"])


def as_owner(safe: Contract, owner: bytes, function: str, *args: Any) -> Receipt:
    """The Safe changes itself, as its owner (who sends the transaction, which is signature enough) decides."""
    signature = word(int.from_bytes(owner, "big")) + bytes(32) + b"\x01"
    data = safe.encode(function, *args)
    return safe.send("execTransaction", safe.address, 0, data, CALL, 0, 0, 0, NOBODY, NOBODY, signature, sender=owner)


def batch(*calls: tuple[bytes, int, bytes]) -> bytes:
    """`multiSend` of (target, wei, calldata), packed as the SDK packs it."""
    packed = b"".join(b"\0" + to + word(value) + word(len(data)) + data for to, value, data in calls)
    padding = bytes(-len(packed) % 32)
    return bytes.fromhex("8d80ff0a") + word(32) + word(len(packed)) + packed + padding


def job_call(
    world: World, safe: bytes, to: bytes, data: bytes, *, value: int = 0, operation: int = CALL, owner: bytes = USER
) -> bytes:
    return world.safe_module.encode("execJobFromHub", safe, to, value, data, operation, owner)


def run(world: World, call: bytes, *, job_owner: bytes = USER) -> Task:
    """One execution of a job of `job_owner` whose target is the module."""
    if world.gas.view("getBalance", job_owner) < 10**17:
        world.deposit(10**18, job_owner)
    job = world.create_job(target=world.safe_module.address, owner=job_owner)
    return world.execute(job, call=call, target=world.safe_module.address, gas_limit=GAS_LIMIT)


def inner_refusal(world: World, task: Task) -> str:
    """The reason with which the hub's call of its target failed."""
    assert task.success is False
    tx_hash = world.chain.rpc("eth_getBlockByNumber", hex(task.block), False)["transactions"][0]
    trace = world.chain.rpc("debug_traceTransaction", tx_hash, {"tracer": "callTracer"})
    [call] = [c for c in _calls(trace) if c["to"] == text(task.authorisation.target) and c["from"] == text(world.hub.address)]
    return reason_of(call.get("output"))


def _calls(trace: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield trace
    for inner in trace.get("calls", ()):
        yield from _calls(inner)
