"""Messages to Telegram chats by the Bot API (https://core.telegram.org/bots/api#sendmessage)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpcore
import msgspec
import trio

from consensus.errors import Failed, Misconfigured, Transient
from node.infra.retry import RetryAfter
from node.infra.secret import Secret

UNREACHABLE = "TELEGRAM_UNREACHABLE"
REFUSED = "TELEGRAM_REFUSED"
BUSY = "TELEGRAM_BUSY"

_TEXT_CHARS = 4096  # the API's limit of one message
_TIMEOUT_S = 10.0
_MAX_ANSWER = 64 * 1024
_LONGEST_SILENCE_S = 3600.0  # a longer `retry_after` is not believed
_RECIPIENTS_FAULT = frozenset({400, 403})  # chat not found, bot blocked by the user: no use to try again


class Telegram:
    """A bot. Its token is part of every URL: neither it nor an error that may hold it is ever shown."""

    def __init__(self, token: Secret[str], api: str, pool: httpcore.AsyncConnectionPool, timeout: float = _TIMEOUT_S) -> None:
        self._token = token
        self._api = api.rstrip("/")
        self._pool = pool
        self._timeout = timeout

    def __repr__(self) -> str:
        return "Telegram(***)"

    async def send(self, to: str, subject: str, text: str) -> None:
        """Subject and text as one message to the chat `to`, without markup.

        Raises `RetryAfter` when the bot sends too much, `Failed` when this chat cannot be written to, `Transient` otherwise.
        """
        message = f"{subject}\n\n{text}"
        body = {"chat_id": to, "text": message[:_TEXT_CHARS], "disable_web_page_preview": True}
        status, answer = await self._post(msgspec.json.encode(body))
        if status == 200 and answer.get("ok") is True:
            return
        why = f"{status}: {str(answer.get('description', ''))[:200]}"
        if status == 429:
            asked = answer.get("parameters")
            seconds = asked.get("retry_after") if isinstance(asked, dict) else None
            wait = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else 1.0
            raise RetryAfter(BUSY, why, min(wait, _LONGEST_SILENCE_S))
        if status in _RECIPIENTS_FAULT:
            raise Failed(REFUSED, why)
        raise Transient(UNREACHABLE, why)

    async def _post(self, body: bytes) -> tuple[int, dict[str, Any]]:
        headers = [("Content-Type", "application/json"), ("Accept", "application/json")]
        url = f"{self._api}/bot{self._token.reveal()}/sendMessage"
        try:
            with trio.fail_after(self._timeout):
                async with self._pool.stream("POST", url, headers=headers, content=body) as response:
                    content = b""
                    async for chunk in response.aiter_stream():
                        content += chunk
                        if len(content) > _MAX_ANSWER:
                            raise Transient(UNREACHABLE, "the answer is too long")
                    return response.status, _answer(content)
        except trio.TooSlowError:
            raise Transient(UNREACHABLE, f"no answer in {self._timeout:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.ProxyError, OSError) as error:
            raise Transient(UNREACHABLE, type(error).__name__) from None  # its text may name the URL


def _answer(content: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


@asynccontextmanager
async def open_telegram(token: Secret[str], api: str) -> AsyncIterator[Telegram]:
    """A bot; dials nothing until the first message. Raises `Misconfigured` when the token cannot be one."""
    text = token.reveal()
    if not text.isascii() or not all(c.isalnum() or c in ":_-" for c in text):
        raise Misconfigured("alerts.telegram.token_file", "holds no bot token: write what @BotFather gave, and nothing else")
    async with httpcore.AsyncConnectionPool(ssl_context=httpcore.default_ssl_context(), max_connections=4) as pool:
        yield Telegram(token, api, pool)
