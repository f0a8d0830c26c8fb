"""Who is to blame: the exception type says it, the code names the reason in logs, metrics and the API."""

from __future__ import annotations


class TriggerXError(Exception):
    """Base of every error this project raises on purpose.

    `code` is UPPER_SNAKE: it is the metric's label, the API's `code` and a row in docs/reasons.md.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class Reject(TriggerXError):
    """The peer lied or broke the protocol: drop the message and count it against the peer."""


class Ignore(TriggerXError):
    """Nobody's fault (late, known, not for us): drop the message, count it against nobody."""


class Transient(TriggerXError):
    """It may work later: try again within the task's deadline."""


class Failed(TriggerXError):
    """It will not work, however often it is tried: the task ends with this reason."""


class Misconfigured(TriggerXError):
    """The operator's to mend. `key` is the configuration key, the detail says how."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__("MISCONFIGURED", f"{key}: {detail}")
        self.key = key


class Invalid(TriggerXError):
    """The user's to mend. `field` is the request's field, `remedy` what to send instead."""

    def __init__(self, field: str, problem: str, remedy: str = "", code: str = "INVALID_FIELD") -> None:
        super().__init__(code, f"{field}: {problem}")
        self.field = field
        self.problem = problem
        self.remedy = remedy


def first_of(error: BaseException) -> BaseException:
    """The first exception in (nested) groups: nurseries wrap what happened inside them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
