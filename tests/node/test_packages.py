"""Packages by content: small by gossip, large by CID, and right bytes or none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from consensus.errors import Failed, Reject, Transient
from consensus.messages import (
    MAX_CALL_BYTES,
    MAX_OUTPUT_BYTES,
    Execution,
    PackageReference,
    Run,
    RunCertificate,
    Uint256,
    spec_cid,
)
from node.packages import NoContent, Packages
from p2p.content import Content
from p2p.network import Network, Topic
from p2p.topics import EXECUTIONS, MAX_INLINE_PACKAGE, MAX_PACKAGE_BYTES, NOT_EXECUTED, PACKAGES, RUN_CERTIFICATES, TASKS
from tests.consensus import samples
from tests.node.attester import TARGET

SMALL = samples.execution()
LARGE = samples.execution(
    samples.script_task(storage='{"kept": "%s"}' % ("x" * 16_000)),
    target=TARGET,
    call=bytes(MAX_CALL_BYTES),
    run=Run(bytes(32), bytes(MAX_OUTPUT_BYTES), samples.USAGE),
)
LARGEST_SPEC = msgspec.structs.replace(samples.CUSTOM_SPEC, arguments="x" * 64_000)


class Heard:
    """A network that only listens."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    async def publish(self, topic: Topic[Any], message: Any) -> None:
        assert len(topic.encode(message)) <= topic.max_bytes
        self.said.append((topic.name, message))


class Kept:
    """Content that may be somebody else's: `forged` is what comes instead."""

    def __init__(self, forged: bytes | None = None) -> None:
        self.blocks: dict[str, bytes] = {}
        self.asked: list[Sequence[str]] = []
        self.forged = forged

    async def put(self, data: bytes) -> str:
        cid = spec_cid(hashlib.sha256(data).digest())
        self.blocks[cid] = data
        return cid

    async def get(self, cid: str, *, max_bytes: int, peers: Sequence[str] = ()) -> bytes:
        self.asked.append(peers)
        data = self.blocks.get(cid, b"") if self.forged is None else self.forged
        if len(data) > max_bytes:
            raise Failed("CONTENT_TOO_LARGE", cid)
        if spec_cid(hashlib.sha256(data).digest()) != cid:
            raise Transient("CONTENT_MISMATCH", cid)
        return data


def packages(content: Content) -> tuple[Packages, Heard]:
    heard = Heard()
    return Packages(cast(Network, heard), content), heard


def reference(cid: str, of: Execution = LARGE) -> PackageReference:
    return PackageReference(31337, Uint256(of.task.task_id), of.task.authorisation.attempt, cid)


async def test_a_small_package_goes_by_gossip_and_is_kept() -> None:
    content = Kept()
    parts, heard = packages(content)
    cid = await parts.publish(SMALL)
    assert heard.said == [(EXECUTIONS.name, SMALL)]
    assert Execution.decode(content.blocks[cid]) == SMALL


async def test_a_large_package_goes_by_its_cid() -> None:
    content = Kept()
    parts, heard = packages(content)
    assert len(LARGE.encode()) > MAX_INLINE_PACKAGE
    cid = await parts.publish(LARGE)
    assert heard.said == [(PACKAGES.name, reference(cid))]
    assert await parts.fetch(reference(cid), "performer") == LARGE
    assert content.asked == [("performer",)]


async def test_a_package_that_is_published_again_is_kept_once() -> None:
    class Once(Kept):
        async def put(self, data: bytes) -> str:
            assert not self.blocks
            return await super().put(data)

    for package in (SMALL, LARGE):
        parts, heard = packages(Once())
        cid = await parts.publish(package)
        assert await parts.publish(package, cid) == cid
        assert len(heard.said) == 2


async def test_without_a_block_store_small_packages_still_go_out() -> None:
    parts, heard = packages(NoContent())
    assert await parts.publish(SMALL) == ""
    assert heard.said == [(EXECUTIONS.name, SMALL)]
    with pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
        await parts.publish(LARGE)


async def test_the_largest_package_that_can_exist_may_be_fetched() -> None:
    task = samples.script_task(LARGEST_SPEC, storage='{"kept": "%s"}' % ("x" * 16_000))
    largest = samples.execution(task, target=TARGET, call=bytes(MAX_CALL_BYTES), run=LARGE.run)
    assert len(largest.encode()) <= MAX_PACKAGE_BYTES
    parts, _ = packages(Kept())
    cid = await parts.publish(largest)
    assert await parts.fetch(reference(cid, largest), "performer") == largest


async def test_the_right_cid_with_wrong_bytes_is_no_package() -> None:
    honest, _ = packages(Kept())
    cid = await honest.publish(LARGE)
    forged = msgspec.structs.replace(LARGE, call=bytes(8)).encode()
    parts, _ = packages(Kept(forged))
    with pytest.raises(Transient, match="CONTENT_MISMATCH"):
        await parts.fetch(reference(cid), "performer")


@pytest.mark.parametrize("data", [b"", b"\x01rubbish", b"\x02", bytes(MAX_PACKAGE_BYTES)])
async def test_the_right_bytes_of_no_package_are_rejected(data: bytes) -> None:
    content = Kept()
    parts, _ = packages(content)
    with pytest.raises(Reject):
        await parts.fetch(reference(await content.put(data)), "performer")


async def test_more_bytes_than_a_package_has_are_not_fetched() -> None:
    content = Kept()
    parts, _ = packages(content)
    with pytest.raises(Failed, match="CONTENT_TOO_LARGE"):
        await parts.fetch(reference(await content.put(bytes(MAX_PACKAGE_BYTES + 1))), "performer")


async def test_another_tasks_package_is_rejected() -> None:
    parts, _ = packages(Kept())
    cid = await parts.publish(LARGE)
    with pytest.raises(Reject, match="WRONG_PACKAGE"):
        await parts.fetch(msgspec.structs.replace(reference(cid), attempt=3), "performer")


async def test_content_that_never_comes_costs_no_more_than_its_time(autojump_clock: MockClock) -> None:
    class Silent(Kept):
        async def get(self, cid: str, *, max_bytes: int, peers: Sequence[str] = ()) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

    parts, _ = packages(Silent())
    with pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
        await parts.fetch(reference("bafk"), "performer")


def test_every_message_has_room_on_its_topic() -> None:
    task = samples.script_task(LARGEST_SPEC, storage='{"kept": "%s"}' % ("x" * 16_000))
    said = samples.not_executed(task, run=LARGE.run)
    members = tuple(bytes([i]) * 20 for i in range(16))
    certificate = RunCertificate(said, 7, 1, members, bytes(96))
    for topic, message in (
        (TASKS, task),
        (PACKAGES, reference("b" * 128)),
        (NOT_EXECUTED, said),
        (RUN_CERTIFICATES, certificate),
    ):
        assert len(topic.encode(message)) <= topic.max_bytes
