"""What the store keeps of the platform itself, as frozen values: API keys, keepers, and times in which nobody looked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key by the sha-256 of its text; `masked` shows first and last four characters.

    `owner` is an address in checksum case, or a name. `rate_limit` is requests a minute.
    """

    digest: bytes
    masked: str
    owner: str
    role: str
    active: bool
    rate_limit: int
    created_at: int


@dataclass(frozen=True, slots=True)
class KeeperSeen:
    """A keeper by its check-ins. `uptime_s` grows while it is online; times are UTC seconds."""

    chain_id: int
    address: bytes
    peer_id: str
    version: str
    first_seen: int
    last_seen: int
    uptime_s: int
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class KeeperRecord:
    """What a keeper has done on one chain, counted in the transaction that settled each task.

    `points` are in units of 10^-15 (`coordinator.points`); `executed` and `attested` count accepted tasks, `rejected` those
    of its executions that a committee refused, `failed` the attempts it was given and did not execute by its own fault,
    `by_definition` accepted executions by job type. `booster` multiplies points. `rewards` are wei.
    """

    chain_id: int
    address: bytes
    points: int = 0
    rewards: int = 0
    executed: int = 0
    attested: int = 0
    rejected: int = 0
    failed: int = 0
    by_definition: Mapping[int, int] = field(default_factory=dict)
    booster: int = 1
    whitelisted: bool = False
    name: str = ""
    email: str = ""
    chat_id: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which conditions went unobserved: `scope` is `shard:<n>` or `source:<key>`. UTC seconds, `ended` exclusive."""

    scope: str
    began: int
    ended: int
