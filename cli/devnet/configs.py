"""The configuration files of a devnet's programs: what an operator would write, with short times and free ports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.devnet.folder import write_whole
from coordinator.settings import CoordinatorSettings
from node.infra.deploy import Deployment
from node.infra.settings import NodeSettings, Settings, validated

LOCAL = "127.0.0.1"
ANY_PORT = f"/ip4/{LOCAL}/tcp/0"
STATUS = {"host": LOCAL, "port": 0}

POLL_MS = 100  # at 50, half of what an idle keeper computes is looking at the head
CHECKIN_S = 2.0
RANK_INTERVAL_S = 2.0
"""And a block time more for each confirmation: the next rank must not step in before a certificate can be seen."""
LOOKAHEAD_S = 5.0
ACK_TIMEOUT_S = 3.0
RETRIES_S = (1.0, 2.0, 4.0)
ATTEMPT_WINDOW_S = 10.0


def chain_table(
    deployment: Deployment, name: str, rpc_url: str, ws_url: str | None, *, poll_ms: int, confirmations: int = 0
) -> dict[str, Any]:
    """The `[[chains]]` table that both programs take."""
    return {
        "id": deployment.chain_id,
        "name": name,
        "rpc": [rpc_url],
        **({"ws": ws_url} if ws_url else {}),
        "confirmations": confirmations,
        "poll_interval_ms": poll_ms,
        "contracts": {
            "hub": deployment.hub,
            "attestation_center": deployment.attestation_center,
            "keeper_registry": deployment.keeper_registry,
            "job_registry": deployment.job_registry,
            "gas_registry": deployment.gas_registry,
            "since_block": deployment.block,
        },
    }


def sdk_addresses(deployment: Deployment, rpc_url: str) -> dict[str, str]:
    """A chain's entry in `CONTRACT_ADDRESSES_BY_CHAIN` of npm's sdk-triggerx."""
    return {
        "gasRegistry": deployment.gas_registry,
        "jobRegistry": deployment.job_registry,
        "safeFactory": deployment.safe_factory,
        "safeModule": deployment.safe_module,
        "multisendCallOnly": deployment.multisend_call_only,
        "rpcUrl": rpc_url,
    }


def _common(bootstrap: str | None) -> dict[str, Any]:
    return {
        "data_dir": "data",
        "mesh": {"listen": ANY_PORT, "identity": "identity.key", **({"bootstrap": [bootstrap]} if bootstrap else {})},
        "log": {"level": "info", "format": "json"},
    }


def bootstrap_config() -> dict[str, Any]:
    """A peer that others meet through: no keys, no chain."""
    return {"role": "bootstrap", "status": STATUS, **_common(None)}


def keeper_config(chain: Mapping[str, Any], bootstrap: str) -> dict[str, Any]:
    """A keeper whose keys lie beside the file, as `keystores` writes them."""
    return {
        "role": "keeper",
        "status": STATUS,
        "checkin_interval_s": CHECKIN_S,
        **_common(bootstrap),
        "keys": {"operator": "operator.json", "bls": "bls.json", "password_file": "password"},
        "aggregator": {"rank_interval_s": RANK_INTERVAL_S + chain.get("confirmations", 0)},
        "chains": [chain],
    }


def coordinator_config(
    chain: Mapping[str, Any], bootstrap: str, *, keys: str = ".", store: str = "data", redis_url: str | None = None
) -> dict[str, Any]:
    """A coordinator. `keys` and `store` are folders, relative to the file's: several coordinators share both, and a Redis."""
    return {
        **_common(bootstrap),
        "data_dir": store,
        "dispatcher": {"keystore": f"{keys}/dispatcher.json", "password_file": f"{keys}/password"},
        "redis": {"url": redis_url} if redis_url else {},
        "api": {"host": LOCAL, "port": 0},
        "scheduler": {"lookahead_s": LOOKAHEAD_S},
        "dispatch": {
            "ack_timeout_s": ACK_TIMEOUT_S,
            "retries": list(RETRIES_S),
            "attempt_window_s": ATTEMPT_WINDOW_S,
        },
        "chains": [chain],
    }


def write(path: Path, document: Mapping[str, Any], model: type[NodeSettings] | type[CoordinatorSettings]) -> None:
    """Writes a file that the program is going to accept. Raises `Misconfigured` for one that it would refuse."""
    _check(document, model, path.parent)
    write_whole(path, toml_text(document))


def pinned(document: Mapping[str, Any], ready: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the ports that the program took, so that it takes the same ones when it is started again."""
    listen = str(ready["addresses"][0]).partition("/p2p/")[0]
    fixed = {**document, "mesh": {**document["mesh"], "listen": listen}}
    if "api_url" in ready:  # the coordinator answers for its health where its API is
        return {**fixed, "api": {**document["api"], "port": port_of(ready["api_url"])}}
    return {**fixed, "status": {**document["status"], "port": port_of(ready["status_url"])}}


def port_of(url: str) -> int:
    """The port at the end of `http://host:port`."""
    return int(url.rstrip("/").rpartition(":")[2])


def _check(document: Mapping[str, Any], model: type[Settings], folder: Path) -> None:
    validated(json.loads(json.dumps(document)), model, folder)  # a copy: validation fills it in


def toml_text(document: Mapping[str, Any], prefix: str = "") -> str:
    """TOML of tables, lists of tables, and plain values; a key with the value None does not exist in TOML."""
    plain = [f"{key} = {_value(value)}" for key, value in document.items() if not _is_table(value)]
    parts = ["\n".join(plain)] if plain else []
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            parts.append(f"[{name}]\n{toml_text(value, name + '.')}".rstrip())
        elif _is_table(value):
            parts += [f"[[{name}]]\n{toml_text(each, name + '.')}".rstrip() for each in value]
    return "\n\n".join(parts) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _value(value: Any) -> str:
    # Strings, numbers, booleans and their lists read the same in JSON and TOML, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
