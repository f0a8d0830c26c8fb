"""The funded accounts of a devnet: the well-known test mnemonic, the same keys on anvil and on the embedded chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MNEMONIC: Final = "test test test test test test test test test test test junk"
DERIVATION_PATH: Final = "m/44'/60'/0'/0"


@dataclass(frozen=True, slots=True)
class DevAccount:
    """A funded account; the key is public knowledge and worth nothing outside a devnet."""

    address: str
    """0x checksum address."""
    private_key: str
    """0x and 64 hex digits."""


def dev_accounts(count: int) -> tuple[DevAccount, ...]:
    """The first `count` accounts of the test mnemonic, in anvil's and hardhat's order."""
    # Imported here: with all it brings eth-account takes most of a second, and not every user of this module derives keys.
    from eth_account.hdaccount import seed_from_mnemonic
    from eth_account.hdaccount.deterministic import HDPath
    from eth_keys.datatypes import PrivateKey

    seed = seed_from_mnemonic(MNEMONIC, "")
    keys = (HDPath(f"{DERIVATION_PATH}/{index}").derive(seed) for index in range(count))
    return tuple(DevAccount(PrivateKey(key).public_key.to_checksum_address(), "0x" + key.hex()) for key in keys)
