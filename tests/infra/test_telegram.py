"""The Bot API as a local server plays it: what is sent, what each refusal means, and that the token is shown nowhere."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from consensus.errors import Failed, Misconfigured, Transient, TriggerXError
from coordinator.alerts import Alerts, Notice, Recipient
from coordinator.store.memory import MemoryStore
from node.infra.clock import SystemClock
from node.infra.retry import RetryAfter
from node.infra.secret import Secret
from node.infra.telegram import open_telegram
from tests.infra.http_peer import Answer, Peer, open_peer

TOKEN = "123456:AAF-secret_token"
OK = Answer(b'{"ok":true,"result":{"message_id":1}}')


def failing(status: int, description: str, **more: Any) -> Answer:
    return Answer(json.dumps({"ok": False, "error_code": status, "description": description, **more}).encode(), status)


async def send(answer: Callable[[Any], Answer | Awaitable[Answer]], text: str = "since noon") -> Peer:
    """Sends one message; what that raises, it raises bare."""
    failed: TriggerXError | None = None
    async with open_peer(answer) as peer, open_telegram(Secret(TOKEN), peer.url) as telegram:
        try:
            await telegram.send("-10042", "TriggerX: mesh is away", text)
        except TriggerXError as error:
            failed = error
    if failed is not None:
        raise failed
    return peer


async def test_a_message_is_sent_to_the_chat_by_the_bots_api() -> None:
    peer = await send(lambda _: OK)
    [request] = peer.requests
    assert request["chat_id"] == "-10042"
    assert request["text"] == "TriggerX: mesh is away\n\nsince noon"
    assert "parse_mode" not in request  # what users named is text, not markup


async def test_a_long_text_is_cut_to_what_the_api_takes() -> None:
    peer = await send(lambda _: OK, "x" * 10_000)
    assert len(peer.requests[0]["text"]) == 4096


async def test_too_many_messages_are_answered_with_when_to_go_on() -> None:
    with pytest.raises(RetryAfter) as raised:
        await send(lambda _: failing(429, "Too Many Requests: retry after 17", parameters={"retry_after": 17}))
    assert raised.value.seconds == 17


@pytest.mark.parametrize("parameters", [{}, {"retry_after": "soon"}, {"retry_after": -5}, {"retry_after": 10**12}, None])
async def test_a_silly_time_to_wait_is_not_believed(parameters: Any) -> None:
    with pytest.raises(RetryAfter) as raised:
        await send(lambda _: failing(429, "Too Many Requests", parameters=parameters))
    assert 0 < raised.value.seconds <= 3600


@pytest.mark.parametrize(
    ("status", "said"), [(400, "Bad Request: chat not found"), (403, "Forbidden: bot was blocked by the user")]
)
async def test_a_chat_that_cannot_be_written_to_is_given_up(status: int, said: str) -> None:
    with pytest.raises(Failed, match="TELEGRAM_REFUSED") as raised:
        await send(lambda _: failing(status, said))
    assert said in raised.value.detail


@pytest.mark.parametrize(
    "answer",
    [
        failing(401, "Unauthorized"),
        failing(404, "Not Found"),
        failing(502, "Bad Gateway"),
        Answer(b"<html>proxy</html>", 503),
        Answer(b"not json", 200),
        Answer(b"[]", 200),
        Answer(b'{"ok":false}', 200),
        Answer(b"x" * 100_000, 200),
        Answer(b"", hang_up=True),
    ],
)
async def test_all_else_is_tried_again_later(answer: Answer) -> None:
    with pytest.raises(Transient, match="TELEGRAM_UNREACHABLE"):
        await send(lambda _: answer)


async def test_a_server_that_does_not_answer_is_left() -> None:
    async def never(_: Any) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    async with open_peer(never) as peer, open_telegram(Secret(TOKEN), peer.url) as telegram:
        telegram._timeout = 0.2
        with pytest.raises(Transient, match="no answer"):
            await telegram.send("42", "subject", "text")


async def test_the_token_is_shown_nowhere() -> None:
    structlog.configure()
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]
    await listener[0].aclose()  # nobody listens there
    with capture_logs() as logs:
        async with open_telegram(Secret(TOKEN), f"http://127.0.0.1:{port}") as telegram, trio.open_nursery() as nursery:
            with pytest.raises(Transient) as raised:
                await telegram.send("42", "subject", "text")
            tried = trio.Event()

            class Watched:
                async def send(self, to: str, subject: str, text: str) -> None:
                    try:
                        await telegram.send(to, subject, text)
                    finally:
                        tried.set()

            alerts = Alerts(MemoryStore(), SystemClock(), telegram=Watched())
            await nursery.start(alerts.run)
            await alerts.begin("part:mesh", Notice("away", "text"), [Recipient("42")])
            await tried.wait()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            assert TOKEN not in repr(telegram)
    assert logs
    assert TOKEN not in repr(raised.value) + repr(logs)


@pytest.mark.parametrize("token", ["a b", "../../etc", "1:a\r\nHost: x", "schlüssel"])
async def test_what_cannot_be_a_token_is_refused(token: str) -> None:
    with pytest.raises(Misconfigured, match="token_file"):
        async with open_telegram(Secret(token), "https://api.telegram.org"):
            pass
