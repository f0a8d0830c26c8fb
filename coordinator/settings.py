"""What the platform's operator configures: the tables of `triggerx-coordinator`'s TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from node.infra.settings import (
    Address,
    ChainSettings,
    ContentSettings,
    FetchSettings,
    HttpUrl,
    LogSettings,
    MeshSettings,
    Port,
    refuse_twice_the_same,
    url_of,
)
from node.infra.toml_settings import SECRET, FilePath, Settings

RedisUrl = Annotated[str, url_of("redis", "rediss", "unix")]


class DispatcherKeySettings(Settings):
    keystore: FilePath = Field(description="Keystore of the key that signs authorisations.", examples=["keys/dispatcher.json"])
    password_file: FilePath = Field(description="File with its password, readable by its owner only.", examples=["keys/password"])


class ApiSettings(Settings):
    host: str = Field(default="127.0.0.1", min_length=1, description="Address that the job API listens on.")
    port: Port = Field(default=9002, description="Its port; 0 takes a free one.")
    body_limit: int = Field(default=1_048_576, ge=1024, le=67_108_864, description="Largest request body in bytes.")


class SchedulerSettings(Settings):
    lookahead_s: float = Field(
        default=5.0, ge=0, le=300, description="Seconds before its due second that a time task is sent out."
    )
    script_lead_s: float = Field(
        default=5.0, ge=0, le=300, description="Seconds more for one with a script, which runs before its second."
    )


class ConditionSettings(Settings):
    poll_interval_s: float = Field(default=5.0, ge=0.1, le=3600, description="Seconds between two looks at one source.")


class RedisSettings(Settings):
    url: RedisUrl | None = Field(
        default=None,
        description="Redis server, shared by several coordinators; without it this one starts an embedded server of its own.",
        examples=["redis://localhost:6379/0"],
        json_schema_extra=SECRET,
    )
    prefix: str = Field(default="triggerx", min_length=1, max_length=64, description="What all keys in it begin with.")


class ShardSettings(Settings):
    lease_s: float = Field(
        default=4.0, ge=1, le=60, description="Seconds after its last sign of life that a coordinator's jobs are taken over."
    )


class TelegramSettings(Settings):
    token_file: FilePath = Field(description="File with the bot's token, readable by its owner only.", examples=["keys/telegram"])
    api: HttpUrl = Field(default="https://api.telegram.org", description="Base URL of the Bot API.")


class MailSettings(Settings):
    host: str = Field(min_length=1, description="SMTP server.", examples=["smtp.example.org"])
    port: Port = Field(default=587, description="Its port.")
    security: Literal["starttls", "tls", "none"] = Field(default="starttls", description="How the connection is encrypted.")
    user: str | None = Field(default=None, description="Account to log in with.", examples=["alerts@example.org"])
    password_file: FilePath | None = Field(
        default=None, description="File with its password, readable by its owner only.", examples=["keys/smtp"]
    )
    sender: str = Field(min_length=3, description="Address that mails come from.", examples=["alerts@example.org"])


class AlertSettings(Settings):
    telegram: TelegramSettings | None = Field(default=None, description="Telegram bot; without it nothing is sent there.")
    mail: MailSettings | None = Field(default=None, description="SMTP; without it no mail is sent.")
    platform_chat: str = Field(default="", description="Telegram chat that hears of the platform's own outages.")
    platform_email: str = Field(default="", description="Mail address that hears of them.")
    keeper_offline_s: float = Field(
        default=600.0, ge=1, le=86_400, description="Seconds without a check-in after which a keeper is offline."
    )
    part_down_s: float = Field(
        default=30.0, ge=1, le=86_400, description="Seconds that a part of the platform must be away before it is an outage."
    )
    low_balance_executions: int = Field(
        default=3, ge=0, le=1000, description="A user's deposit is low when it covers fewer executions than this."
    )


class KeeperPolicySettings(Settings):
    min_version: str = Field(default="0.0.0", description="Oldest version of the keeper's software that is given tasks.")
    whitelist: tuple[Address, ...] = Field(default=(), description="Operators that are given tasks; all when empty.")
    tasks_each: int = Field(default=64, ge=1, le=4096, description="Open attempts that one keeper is given at a time.")


class DispatchSettings(Settings):
    ack_timeout_s: float = Field(
        default=30.0, gt=0, le=600, description="Seconds for a keeper's acknowledgement before another is asked."
    )
    retries: tuple[float, ...] = Field(default=(1.0, 2.0, 4.0), max_length=10, description="Seconds before each further attempt.")
    attempt_window_s: float = Field(default=60.0, gt=0, le=3600, description="Seconds an attempt's authorisation is valid.")


class ChargeSettings(Settings):
    batch: int = Field(default=32, ge=1, le=64, description="Runs without a transaction that are charged in one transaction.")
    interval_s: float = Field(default=600.0, ge=1, le=86_400, description="Seconds that one waits for others at most.")
    least_funds_wei: int = Field(
        default=10**16, ge=0, lt=2**63, description="The dispatcher's account is low when it holds less; 0 for never."
    )


class CoordinatorSettings(Settings):
    """`triggerx-coordinator`."""

    data_dir: FilePath = Field(default=Path("data"), description="Folder of the store.")
    mesh: MeshSettings = Field(default=MeshSettings(), description="The peer-to-peer mesh.")
    chains: tuple[ChainSettings, ...] = Field(min_length=1, description="The chains to work on, one table each.")
    dispatcher: DispatcherKeySettings = Field(description="The dispatcher's key.")
    api: ApiSettings = Field(default=ApiSettings(), description="The job API; health and metrics are served beside it.")
    scheduler: SchedulerSettings = Field(default=SchedulerSettings(), description="The time scheduler.")
    dispatch: DispatchSettings = Field(default=DispatchSettings(), description="Hand-out of tasks to keepers.")
    charges: ChargeSettings = Field(default=ChargeSettings(), description="Charging of runs without a transaction.")
    conditions: ConditionSettings = Field(default=ConditionSettings(), description="The condition scheduler.")
    fetch: FetchSettings = Field(default=FetchSettings(), description="Requests to the URLs that users' conditions name.")
    content: ContentSettings = Field(default=ContentSettings(), description="Scripts and packages by CID.")
    redis: RedisSettings = Field(default=RedisSettings(), description="Dispatch queue, leases and task streams.")
    shards: ShardSettings = Field(default=ShardSettings(), description="Division of the jobs among several coordinators.")
    keepers: KeeperPolicySettings = Field(default=KeeperPolicySettings(), description="Which keepers are given tasks.")
    alerts: AlertSettings = Field(default=AlertSettings(), description="Telegram and e-mail alerts.")
    log: LogSettings = Field(default=LogSettings(), description="Logging.")

    @model_validator(mode="after")
    def _chains_differ(self) -> Self:
        refuse_twice_the_same(self.chains)
        return self
