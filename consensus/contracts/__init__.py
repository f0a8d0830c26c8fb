"""The on-chain half of the agreement: Vyper contracts, and their compiled ABI and bytecode as the package carries them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

NAMES = (
    *("JobRegistry", "TriggerGasRegistry", "KeeperRegistry", "Hub", "AttestationCenter"),
    *("SafeModule", "SafeFactory", "Demo"),
)
"""Every contract of ours with an artifact, in the order of deployment."""
SAFE_NAMES = ("Safe", "SafeProxyFactory", "CompatibilityFallbackHandler", "MultiSendCallOnly")
"""Safe's own contracts (release 1.4.1) that ours work with; artifacts/safe/README.md says where they come from."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled contract: its JSON ABI, and the creation bytecode to which ABI-encoded constructor arguments are appended."""

    name: str
    abi: tuple[dict[str, Any], ...]
    bytecode: bytes


@cache
def artifact(name: str) -> Artifact:
    """The artifact of one of `NAMES` or `SAFE_NAMES`; KeyError for any other name."""
    if name not in NAMES + SAFE_NAMES:
        raise KeyError(name)
    folder = ("artifacts", "safe") if name in SAFE_NAMES else ("artifacts",)
    loaded = json.loads(files(__name__).joinpath(*folder, f"{name}.json").read_text("utf-8"))
    return Artifact(name, tuple(loaded["abi"]), bytes.fromhex(loaded["bytecode"].removeprefix("0x")))
