"""What `triggerx deploy` is told: the constants of a set of contracts, from a TOML file, with defaults that suit a testnet."""

from __future__ import annotations

from typing import Annotated

from eth_utils.address import to_checksum_address
from pydantic import Field

from node.infra.deploy import DeploySettings
from node.infra.settings import Address, Settings

Seconds = Annotated[int, Field(ge=1, le=365 * 86_400)]
Wei = Annotated[int, Field(ge=0, lt=2**63)]  # TOML's integers end there: nine ether


class DeploymentSettings(Settings):
    """The file of `triggerx deploy --settings`."""

    owner: Address | None = Field(default=None, description="Who may list dispatchers; unset, the deploying account.")
    dispatchers: tuple[Address, ...] = Field(
        default=(), description="Keys whose authorisations the hub takes; further ones by Hub.setDispatcher."
    )
    epoch_seconds: Seconds = Field(default=3600, description="Seconds that an epoch's keepers stay seated at least.")
    round_seconds: Seconds = Field(default=60, description="Seconds that a committee has before its seats are drawn again.")
    min_stake: Wei = Field(default=10**17, description="Least stake of a keeper, wei.")
    seat_stake: Wei = Field(default=10**17, description="Stake that buys one seat in the draw, wei.")
    unbonding_seconds: Seconds = Field(default=7 * 86_400, description="Seconds a stake is held after its keeper has left.")
    unit: Wei = Field(default=10**13, description="What one attestation earns, wei.")
    demo: bool = Field(default=False, description="Whether to deploy the Demo contract too.")

    def for_deployer(self, deployer: str) -> DeploySettings:
        """The constants, with `deployer` as the owner when none is named."""
        return DeploySettings(
            owner=to_checksum_address(self.owner) if self.owner else deployer,
            dispatchers=tuple(to_checksum_address(each) for each in self.dispatchers),
            epoch_seconds=self.epoch_seconds,
            round_seconds=self.round_seconds,
            min_stake=self.min_stake,
            seat_stake=self.seat_stake,
            unbonding_seconds=self.unbonding_seconds,
            unit=self.unit,
            demo=self.demo,
        )
