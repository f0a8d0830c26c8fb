"""Certificates of runs without a transaction, as this process has checked them; no contract keeps them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import trio

from consensus import rules, runs
from consensus.errors import Ignore, Transient
from consensus.messages import RunCertificate
from node.infra.chain import Chain
from node.infra.clock import Clock
from node.infra.compute import Compute
from p2p.network import PeerId

_KEPT = 4096  # digests, of an hour of more than one a second
_VARIANTS = 4
"""Certificates of one run that are accepted: its aggregators may each make one before they hear of another's."""
_READ_S = 2.0  # of a rule's time, which the mesh bounds


class RunCertificates:
    """What has been certified, for those who wait for it; `check` is the rule of the topic, for keepers and coordinator."""

    def __init__(self, chains: Mapping[int, Chain], facts: rules.Facts, clock: Clock, compute: Compute) -> None:
        self._chains = chains
        self._facts = facts
        self._clock = clock
        self._compute = compute
        self._checked: OrderedDict[bytes, None] = OrderedDict()  # of whole certificates: one that comes again costs no pairing
        self._variants: OrderedDict[bytes, int] = OrderedDict()  # by digest: the performer's words and who signed are not in it
        self._certified: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: dict[bytes, trio.Event] = {}

    async def check(self, certificate: RunCertificate, source: PeerId) -> None:
        """Accepts what a quorum of the right committee signed. Raises `Reject`, or `Ignore` when this process cannot tell."""
        key, digest = hashlib.sha256(certificate.encode()).digest(), certificate.not_executed.digest()
        if key not in self._checked and self._variants.get(digest, 0) >= _VARIANTS:  # before anything that costs
            raise Ignore("KNOWN_RUN", "certified before, in as many ways as honest keepers do it")
        rules.check_run_certificate(certificate, source, self._facts, self._clock.now())
        if key in self._checked:
            return
        chain, task = self._chains[certificate.not_executed.task.chain_id], certificate.not_executed.task
        try:
            with trio.fail_after(_READ_S):
                epoch, block = await chain.epoch_at(task.pinned_block), await chain.block(task.pinned_block)
        except (Transient, trio.TooSlowError) as error:
            raise Ignore("RPC_UNREACHABLE", str(error)) from None
        if epoch is None or block is None:
            raise Ignore("UNKNOWN_BLOCK", f"pinned block {task.pinned_block} is not known here")
        await self._compute(runs.check_certificate, certificate, chain.domain, epoch, block.hash)
        self._checked[key] = None
        self._variants[digest] = self._variants.pop(digest, 0) + 1
        for kept in (self._checked, self._variants):
            while len(kept) > _KEPT:
                kept.popitem(last=False)

    def take(self, certificate: RunCertificate) -> None:
        """Notes a checked certificate and wakes whoever waits for it."""
        digest = certificate.not_executed.digest()
        self._certified[digest] = None
        while len(self._certified) > _KEPT:
            self._certified.popitem(last=False)
        if (waiting := self._waiting.pop(digest, None)) is not None:
            waiting.set()

    def certified(self, digest: bytes) -> bool:
        """Whether the `NotExecuted` with this digest is certified, as far as is known here."""
        return digest in self._certified

    async def wait(self, digest: bytes) -> None:
        """Returns once it is certified. The caller sets the deadline."""
        while not self.certified(digest):
            event = self._waiting.setdefault(digest, trio.Event())
            try:
                await event.wait()
            finally:
                if not event.is_set() and not event.statistics().tasks_waiting and self._waiting.get(digest) is event:
                    del self._waiting[digest]  # the last to lose patience
