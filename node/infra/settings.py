"""What an operator configures: the tables of `triggerx-node`'s TOML file, and those that the coordinator's has too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from eth_utils.address import is_checksum_address, to_canonical_address, to_checksum_address
from multiaddr import Multiaddr  # type: ignore[import-untyped]
from multiaddr.exceptions import Error as MultiaddrError  # type: ignore[import-untyped]
from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, model_validator

from node.infra.toml_settings import (
    SECRET,
    FilePath,
    OptionRow,
    Settings,
    load,
    option_rows,
    overrides_from,
    refuse,
    render_example,
    validated,
)

__all__ = [
    "Address",
    "AggregatorSettings",
    "ChainSettings",
    "ContentSettings",
    "ContractSettings",
    "FeeSettings",
    "FetchSettings",
    "KeySettings",
    "LogSettings",
    "MeshSettings",
    "NodeSettings",
    "OptionRow",
    "SandboxSettings",
    "Settings",
    "StatusSettings",
    "load",
    "option_rows",
    "overrides_from",
    "refuse_twice_the_same",
    "render_example",
    "validated",
]


def _address(value: object) -> bytes:
    if isinstance(value, bytes) and len(value) == 20:
        return value
    text = value if isinstance(value, str) else ""
    digits = text.removeprefix("0x")
    if len(text) != 42 or len(digits) != 40 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise ValueError("must be an address: 0x and 40 hexadecimal digits")
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(text):
        raise ValueError("has a wrong checksum: a digit or its case is mistyped; copy it again")
    address: bytes = to_canonical_address(text)
    if address == bytes(20):
        raise ValueError("must not be the zero address")
    return address


def url_of(*schemes: str) -> AfterValidator:
    """A validator: the text is a URL of one of these schemes."""

    def check(url: str) -> str:
        try:
            parts = urlsplit(url)
            _ = parts.port  # raises when it is no number
        except ValueError:
            raise ValueError("must be a URL") from None
        if parts.scheme not in schemes or not (parts.hostname or parts.scheme == "unix"):
            raise ValueError(f"must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return url

    return AfterValidator(check)


def _multiaddr(text: str) -> str:
    try:
        parts = {protocol.name for protocol in Multiaddr(text).protocols()}
    except (MultiaddrError, ValueError):
        raise ValueError("must be a multiaddr") from None
    if not parts & {"ip4", "ip6", "dns", "dns4", "dns6"} or "tcp" not in parts:
        raise ValueError("must be a TCP multiaddr")
    return text


def _peer_multiaddr(text: str) -> str:
    if "/p2p/" not in text:
        raise ValueError("must end in /p2p/<peer id>: without it nobody knows who answers there")
    return _multiaddr(text)


Address = Annotated[bytes, PlainValidator(_address), PlainSerializer(lambda value: to_checksum_address(value))]
"""20 bytes; in the file 0x and 40 digits, all of one case or with a right checksum."""

HttpUrl = Annotated[str, url_of("http", "https")]
WebSocketUrl = Annotated[str, url_of("ws", "wss")]
EngineUrl = Annotated[str, url_of("unix", "tcp", "http", "https")]
ListenAddress = Annotated[str, AfterValidator(_multiaddr)]
PeerAddress = Annotated[str, AfterValidator(_peer_multiaddr)]
Port = Annotated[int, Field(ge=0, le=65535)]

_EXAMPLE_PEER = "/dns4/boot.example.org/tcp/4001/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"


def _example_address(number: int) -> str:
    return str(to_checksum_address(number.to_bytes(20, "big")))


class ContractSettings(Settings):
    hub: Address = Field(description="Address of the Hub, which executes tasks.", examples=[_example_address(0xA1)])
    attestation_center: Address = Field(description="Address of the AttestationCenter.", examples=[_example_address(0xA2)])
    keeper_registry: Address = Field(description="Address of the KeeperRegistry.", examples=[_example_address(0xA3)])
    job_registry: Address = Field(description="Address of the JobRegistry.", examples=[_example_address(0xA4)])
    gas_registry: Address = Field(description="Address of the TriggerGasRegistry.", examples=[_example_address(0xA5)])
    since_block: int = Field(0, ge=0, description="Block of their deployment: older ones are not searched for events.")


class FeeSettings(Settings):
    max_fee_gwei: float = Field(
        default=500.0,
        gt=0,
        le=1_000_000,
        description="Most that is paid for a unit of gas, base fee and tip together; while it costs more nothing is sent.",
    )
    max_tip_gwei: float = Field(
        default=50.0,
        gt=0,
        le=1_000_000,
        description="Most of a tip that an endpoint suggests; unlike the base fee's limit, it is paid in full.",
    )
    bump_after_s: float = Field(
        default=15.0,
        ge=1,
        le=3600,
        description="Seconds until a transaction that waits, and offers less than the chain asks for by now, is replaced.",
    )


class ChainSettings(Settings):
    id: int = Field(ge=1, description="Chain id (EIP-155); an endpoint that serves another chain is refused.", examples=[84532])
    name: str = Field(min_length=1, description="Name in logs and on pages.", examples=["base-sepolia"])
    rpc: tuple[HttpUrl, ...] = Field(
        min_length=1,
        description="HTTP JSON-RPC endpoints in order of preference; the next is asked when one does not answer.",
        examples=[["https://sepolia.base.org"]],
        json_schema_extra=SECRET,
    )
    ws: WebSocketUrl | None = Field(
        default=None,
        description="WebSocket endpoint for new heads; without it the head is polled.",
        examples=["wss://base-sepolia.example.org"],
        json_schema_extra=SECRET,
    )
    confirmations: int = Field(default=0, ge=0, le=10_000, description="Blocks on top of an event's before it is acted on.")
    poll_interval_ms: int = Field(
        default=1000, ge=10, le=600_000, description="Milliseconds between looks at the head and at receipts."
    )
    contracts: ContractSettings = Field(description="The protocol's contracts on this chain.")
    fees: FeeSettings = Field(default=FeeSettings(), description="What transactions may cost.")
    explorer: HttpUrl | None = Field(
        default=None, description="Block explorer, for links to transactions.", examples=["https://sepolia.basescan.org"]
    )


class MeshSettings(Settings):
    listen: ListenAddress = Field(
        default="/ip4/0.0.0.0/tcp/4001", description="Multiaddr to listen on; TCP port 0 takes a free one."
    )
    bootstrap: tuple[PeerAddress, ...] = Field(
        default=(),
        description="Multiaddrs of peers to join the mesh through, each ending in /p2p/<peer id>.",
        examples=[[_EXAMPLE_PEER]],
    )
    identity: FilePath = Field(default=Path("identity.key"), description="File of the peer's ed25519 key; made when missing.")
    announce: tuple[ListenAddress, ...] = Field(
        default=(),
        description="Multiaddrs told to others instead of the ones listened on.",
        examples=[["/ip4/203.0.113.7/tcp/4001"]],
    )


class KeySettings(Settings):
    operator: FilePath = Field(
        description="Keystore of the operator's ECDSA key (Web3 Secret Storage).", examples=["keys/operator.json"]
    )
    bls: FilePath = Field(description="Keystore of the BLS key (EIP-2335).", examples=["keys/bls.json"])
    password_file: FilePath = Field(
        description="File with the password of both, readable by its owner only.", examples=["keys/password"]
    )


class StatusSettings(Settings):
    host: str = Field(default="127.0.0.1", min_length=1, description="Address that /livez, /readyz and /metrics listen on.")
    port: Port = Field(default=9100, description="Their port; 0 takes a free one.")


class FetchSettings(Settings):
    allow: tuple[str, ...] = Field(
        default=(),
        description="Hosts (`host` or `host:port`) that users' URLs may name though they are private; for tests and devnets.",
        examples=[["127.0.0.1:8080"]],
    )
    timeout_s: float = Field(default=10.0, gt=0, le=60, description="Seconds that one request to a user's URL may take.")
    max_bytes: int = Field(default=262_144, ge=1024, le=16_777_216, description="Largest answer that is read from one.")


class LogSettings(Settings):
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severe level that is written.")
    format: Literal["json", "text"] = Field(default="json", description="One JSON object a line, or text for people.")


class SandboxSettings(Settings):
    kind: Literal["auto", "docker", "embedded", "none"] = Field(
        default="auto",
        description="Where scripts run: a Docker engine, bubblewrap (embedded), whichever is there (auto), or nowhere.",
    )
    docker: EngineUrl = Field(
        default="unix:///var/run/docker.sock", description="The Docker engine, on this machine: unix://, tcp:// or http(s)://."
    )
    image: str = Field(
        default="triggerx-sandbox",
        min_length=1,
        description="The engine's image that scripts run in: built from deploy/sandbox.",
    )
    concurrency: int = Field(default=2, ge=1, le=64, description="Scripts that run at once; others wait their turn.")
    warm: int = Field(default=1, ge=0, le=16, description="Containers that wait for a script, started already.")
    esbuild: FilePath | None = Field(
        default=None,
        description="The program `esbuild`, for TypeScript without a Docker engine; unset looks where npm puts it.",
        examples=["/usr/local/bin/esbuild"],
    )
    cache: FilePath | None = Field(
        default=None,
        description="Folder of Go's compiled library; unset: below /var/cache/triggerx for root, else below ~/.cache/triggerx.",
        examples=["/var/cache/triggerx/sandbox"],
    )
    cgroup: FilePath | None = Field(
        default=None,
        description="A cgroup (version 2) delegated to this node, with no process in it; unset looks for one of its own.",
        examples=["/sys/fs/cgroup/triggerx"],
    )
    gateways: tuple[HttpUrl, ...] = Field(
        default=(),
        description="IPFS gateways asked for a script that neither peers nor its own URL gave; the CID is added to `/ipfs/`.",
        examples=[["https://ipfs.io"]],
    )


class ContentSettings(Settings):
    store_bytes: int = Field(
        default=268_435_456,
        ge=16_777_216,
        description="Bytes on disk for scripts and packages; the least recently used are thrown out.",
    )
    ipfs_api: HttpUrl | None = Field(
        default=None,
        description="HTTP API of an IPFS daemon of your own: asked for what no peer has, and given what this program publishes.",
        examples=["http://127.0.0.1:5001"],
        json_schema_extra=SECRET,
    )
    ipfs_timeout_s: float = Field(default=20.0, gt=0, le=120, description="Seconds that one request to it may take.")


class AggregatorSettings(Settings):
    rank_interval_s: float = Field(
        default=2.0,
        gt=0,
        le=600,
        description="Seconds until the next-ranked aggregator steps in: more than the chain takes to confirm a block.",
    )


class NodeSettings(Settings):
    """`triggerx-node`."""

    role: Literal["keeper", "bootstrap"] = Field(
        default="keeper", description="A keeper executes and attests; a bootstrap peer only connects."
    )
    data_dir: FilePath = Field(default=Path("data"), description="Folder of the journal and everything else the node keeps.")
    checkin_interval_s: float = Field(default=60.0, gt=0, le=3600, description="Seconds between check-ins with the coordinator.")
    mesh: MeshSettings = Field(default=MeshSettings(), description="The peer-to-peer mesh.")
    chains: tuple[ChainSettings, ...] = Field(default=(), description="The chains to work on, one table each.")
    keys: KeySettings | None = Field(default=None, description="The keeper's keys; a bootstrap peer has none.")
    health_url: HttpUrl | None = Field(
        default=None,
        description="The coordinator's base URL: check-ins are posted there too, beside the mesh.",
        examples=["https://coordinator.example.org"],
    )
    fetch: FetchSettings = Field(default=FetchSettings(), description="Requests to the URLs that users' conditions name.")
    content: ContentSettings = Field(default=ContentSettings(), description="Scripts and packages by CID.")
    sandbox: SandboxSettings = Field(default=SandboxSettings(), description="Running jobs' scripts.")
    aggregator: AggregatorSettings = Field(default=AggregatorSettings(), description="Aggregation of votes.")
    status: StatusSettings = Field(default=StatusSettings(), description="Health and metrics.")
    log: LogSettings = Field(default=LogSettings(), description="Logging.")

    @model_validator(mode="after")
    def _keeper_is_equipped(self) -> Self:
        if self.role == "keeper" and self.keys is None:
            raise refuse("keys", 'missing: a keeper signs; add the table [keys], or set role = "bootstrap"')
        if self.role == "keeper" and not self.chains:
            raise refuse("chains", 'missing: a keeper works on a chain; add a table [[chains]], or set role = "bootstrap"')
        refuse_twice_the_same(self.chains)
        return self


def refuse_twice_the_same(chains: tuple[ChainSettings, ...]) -> None:
    ids = [chain.id for chain in chains]
    for index, chain_id in enumerate(ids):
        if chain_id in ids[:index]:
            raise refuse("chains", f"chain {chain_id} is configured twice: join its endpoints in one table's `rpc`")
