"""What strangers' servers may do to a request: nothing that lasts, grows, or is believed."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from consensus.errors import Failed, Transient, TriggerXError
from node.infra.fetch import Fetcher, Names, Rests, open_fetcher
from node.infra.settings import FetchSettings
from tests.infra.web import Web, open_web, redirect, reply

FAST = 0.3


@pytest.fixture
async def web():
    async with open_web() as opened:
        yield opened


@pytest.fixture
async def fetcher(web: Web):
    async with open_fetcher(FetchSettings(allow=(web.place,), timeout_s=5, max_bytes=1024)) as opened:
        yield opened


async def code_of(fetcher: Fetcher, url: str) -> tuple[type[TriggerXError], str]:
    with pytest.raises(TriggerXError) as raised:
        await fetcher.get(url)
    error = raised.value
    return (Transient if isinstance(error, Transient) else Failed), error.code


async def test_an_answer_comes_whole_and_over_one_connection(web: Web, fetcher: Fetcher):
    web.replies["/a?b=c"] = reply(b'{"x":1}')
    for _ in range(3):
        assert await fetcher.get(f"{web.url}/a?b=c#d") == b'{"x":1}'
    assert web.connections == 1
    assert b"accept-encoding: identity" in web.heads[0].lower()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(b"x" * 1024), None),
        (reply(b"x" * 1025), (Failed, "SOURCE_UNUSABLE")),
        (reply(b"", 204), None),
        (reply(b"x", 404), (Failed, "SOURCE_UNUSABLE")),
        (reply(b"x", 401), (Failed, "SOURCE_UNUSABLE")),
        (reply(b"x", 304), (Failed, "SOURCE_UNUSABLE")),
        (reply(b"x", 302), (Failed, "SOURCE_UNUSABLE")),
        (reply(b"x", 408), (Transient, "SOURCE_UNREACHABLE")),
        (reply(b"x", 429), (Transient, "SOURCE_UNREACHABLE")),
        (reply(b"x", 500), (Transient, "SOURCE_UNREACHABLE")),
        (reply(b"x", 503), (Transient, "SOURCE_UNREACHABLE")),
        (reply(b"\x1f\x8b", 200, "Content-Encoding: gzip"), (Failed, "SOURCE_UNUSABLE")),
        (reply(b"x", 200, "Content-Encoding: br"), (Failed, "SOURCE_UNUSABLE")),
        (reply(b"1", 200, "Content-Encoding: identity"), None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc", (Transient, "SOURCE_UNREACHABLE")),
        (b"SSH-2.0-OpenSSH_9.2\r\n", (Transient, "SOURCE_UNREACHABLE")),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000, (Transient, "SOURCE_UNREACHABLE")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1ff\r\n%b\r\n" % (b"x" * 511) * 4,
            (Failed, "SOURCE_UNUSABLE"),
        ),
    ],
)
async def test_what_a_server_answers_is_named(web: Web, fetcher: Fetcher, answer: bytes, expected: object):
    web.replies["/"] = answer
    if expected is None:
        await fetcher.get(f"{web.url}/")
    else:
        assert await code_of(fetcher, f"{web.url}/") == expected


async def test_half_an_answer_is_none(web: Web, fetcher: Fetcher):
    async def hangs_up(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc")
        await trio.aclose_forcefully(stream)

    web.replies["/"] = hangs_up
    assert await code_of(fetcher, f"{web.url}/") == (Transient, "SOURCE_UNREACHABLE")


async def test_a_kept_connection_that_the_server_has_closed_is_not_used(web: Web, fetcher: Fetcher):
    async def once(stream: trio.abc.Stream) -> None:
        await stream.send_all(reply(b"1"))
        await trio.aclose_forcefully(stream)

    web.replies["/"] = once
    for _ in range(3):
        assert await fetcher.get(f"{web.url}/") == b"1"
        await trio.testing.wait_all_tasks_blocked(0.01)  # the end of the connection has arrived
    assert web.connections == 3


async def test_a_connection_is_not_used_again_after_half_an_answer(web: Web, fetcher: Fetcher):
    web.replies |= {"/long": reply(b"x" * 5000), "/": reply(b"1")}
    assert await code_of(fetcher, f"{web.url}/long") == (Failed, "SOURCE_UNUSABLE")
    assert await fetcher.get(f"{web.url}/") == b"1"
    assert web.connections == 2


async def test_connections_that_are_kept_are_few_and_closed_at_the_end():
    async with contextlib.AsyncExitStack() as stack:
        webs = [await stack.enter_async_context(open_web()) for _ in range(80)]
        async with open_fetcher(FetchSettings(allow=tuple(web.place for web in webs))) as fetcher:
            for web in webs:
                web.replies["/"] = reply(b"1")
                assert await fetcher.get(f"{web.url}/") == b"1"
            kept = fetcher._connections._idle
            assert len(kept) == 64
            assert await fetcher.get(f"{webs[-1].url}/") == b"1"
            assert webs[-1].connections == 1
            assert await fetcher.get(f"{webs[0].url}/") == b"1"
            assert webs[0].connections == 2
        assert not kept


async def test_a_cancelled_request_leaves_its_connection_to_nobody(web: Web, fetcher: Fetcher):
    arrived = trio.Event()

    async def never(stream: trio.abc.Stream) -> None:
        arrived.set()
        await trio.sleep_forever()

    web.replies |= {"/never": never, "/": reply(b"1")}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetcher.get, f"{web.url}/never")
        await arrived.wait()
        nursery.cancel_scope.cancel()
    assert await fetcher.get(f"{web.url}/") == b"1"
    assert web.connections == 2


async def test_an_endless_answer_ends_at_the_limit_of_its_size(web: Web, fetcher: Fetcher):
    async def endless(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"64\r\n" + b"x" * 100 + b"\r\n")

    web.replies["/"] = endless
    assert await code_of(fetcher, f"{web.url}/") == (Failed, "SOURCE_UNUSABLE")


async def test_an_answer_in_crumbs_is_not_put_together(web: Web, fetcher: Fetcher):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    web.replies |= {
        "/few": head + b"1\r\nx\r\n" * 500 + b"0\r\n\r\n",
        "/many": head + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n",
    }
    assert await fetcher.get(f"{web.url}/few") == b"x" * 500
    assert await code_of(fetcher, f"{web.url}/many") == (Failed, "SOURCE_UNUSABLE")


async def test_interim_answers_without_end_are_given_up(web: Web, fetcher: Fetcher):
    web.replies |= {
        "/few": b"HTTP/1.1 103 x\r\n\r\n" * 10 + reply(b"1"),
        "/many": b"HTTP/1.1 103 x\r\n\r\n" * 50_000 + reply(b"1"),
    }
    assert await fetcher.get(f"{web.url}/few") == b"1"
    assert await code_of(fetcher, f"{web.url}/many") == (Transient, "SOURCE_UNREACHABLE")


async def test_a_server_that_dribbles_has_no_more_time_than_others(web: Web):
    async def dribbles(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(FAST / 10)

    web.replies["/"] = dribbles
    async with open_fetcher(FetchSettings(allow=(web.place,), timeout_s=FAST)) as fetcher:
        assert await code_of(fetcher, f"{web.url}/") == (Transient, "SOURCE_UNREACHABLE")


async def test_a_resolver_that_does_not_answer_has_no_more_time_than_servers():
    async def never(host: str, port: int) -> Sequence[str]:
        await trio.sleep_forever()
        return []

    async with open_fetcher(FetchSettings(timeout_s=FAST), resolver=never) as fetcher:
        for ask, url in (
            (fetcher.get, "http://a.example/"),
            (fetcher.check, "http://b.example/"),
            (fetcher.connect, "ws://c.example/"),
        ):
            with pytest.raises(Transient):
                await ask(url)


async def test_names_that_are_found_slowly_do_not_hold_up_those_that_were_found():
    """One user's names, at a name server that answers none of them."""
    answered, asked = threading.Event(), threading.Semaphore(0)

    def look_up(host: str, port: int) -> list[str]:
        if host.startswith("slow"):
            asked.release()
            answered.wait(30)
        return ["93.184.215.14"]

    names = Names(look_up)
    try:
        with trio.fail_after(20):
            assert await names("known.example", 443) == ["93.184.215.14"]
            async with trio.open_nursery() as nursery:
                for n in range(100):
                    nursery.start_soon(names, f"slow{n}.example", 443)
                for _ in range(16):
                    await trio.to_thread.run_sync(asked.acquire)
                for _ in range(3):
                    assert await names("known.example", 443) == ["93.184.215.14"]
                nursery.cancel_scope.cancel()
    finally:
        answered.set()


async def test_three_redirects_are_followed_and_a_fourth_is_not(web: Web, fetcher: Fetcher):
    web.replies |= {f"/{n}": redirect(f"/{n + 1}") for n in range(1, 5)}
    web.replies["/5"] = reply(b"there")
    assert await fetcher.get(f"{web.url}/2") == b"there"
    assert await code_of(fetcher, f"{web.url}/1") == (Failed, "SOURCE_UNUSABLE")
    web.replies["/round"] = redirect("/round")
    assert await code_of(fetcher, f"{web.url}/round") == (Failed, "SOURCE_UNUSABLE")
    assert web.asked["/round"] == 4


async def test_a_host_that_cannot_be_reached_is_left_alone_for_a_while():
    async with open_web() as web:
        place, url = web.place, web.url
    async with open_fetcher(FetchSettings(allow=(place,))) as fetcher:
        assert await code_of(fetcher, f"{url}/a") == (Transient, "SOURCE_UNREACHABLE")
        with pytest.raises(Transient, match="asked again in"):
            await fetcher.get(f"{url}/b")
        with pytest.raises(Transient, match="asked again in"):
            await fetcher.connect(f"ws://{place}/")


async def test_one_failing_url_does_not_stop_the_others_of_its_host(web: Web, fetcher: Fetcher):
    web.replies |= {"/bad": reply(b"", 500), "/good": reply(b"1")}
    assert await code_of(fetcher, f"{web.url}/bad") == (Transient, "SOURCE_UNREACHABLE")
    assert await fetcher.get(f"{web.url}/good") == b"1"
    with pytest.raises(Transient, match="asked again in"):
        await fetcher.get(f"{web.url}/bad")
    assert web.asked["/bad"] == 1


async def test_a_host_that_says_it_is_asked_too_much_is_asked_when_it_said(web: Web, fetcher: Fetcher):
    web.replies |= {"/a": reply(b"", 429, "Retry-After: 120"), "/b": reply(b"1")}
    assert await code_of(fetcher, f"{web.url}/a") == (Transient, "SOURCE_UNREACHABLE")
    with pytest.raises(Transient, match=r"asked again in 1(19|20) s"):
        await fetcher.get(f"{web.url}/b")


async def test_a_path_that_is_always_asked_too_much_does_not_stop_what_others_watch_there(web: Web, fetcher: Fetcher):
    web.replies |= {"/mine": reply(b"1"), "/trap": reply(b"", 503, "Retry-After: 300"), "/by": redirect("/trap")}
    assert await fetcher.get(f"{web.url}/mine") == b"1"
    assert await code_of(fetcher, f"{web.url}/trap") == (Transient, "SOURCE_UNREACHABLE")
    assert await fetcher.get(f"{web.url}/mine") == b"1"
    assert await code_of(fetcher, f"{web.url}/by") == (Transient, "SOURCE_UNREACHABLE")
    assert await fetcher.get(f"{web.url}/mine") == b"1"
    for trap in ("trap", "by"):
        with pytest.raises(Transient, match="asked again in"):
            await fetcher.get(f"{web.url}/{trap}")
    web.replies["/mine"] = reply(b"", 429)
    assert await code_of(fetcher, f"{web.url}/mine") == (Transient, "SOURCE_UNREACHABLE")
    with pytest.raises(Transient, match="asked again in"):
        await fetcher.get(f"{web.url}/mine")
    assert web.asked == {"/mine": 4, "/trap": 2, "/by": 1}


async def test_redirects_ask_no_host_for_more_at_a_time(web: Web):
    arrived, go = 0, trio.Event()

    async def waits(stream: trio.abc.Stream) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 4:
            go.set()
        await go.wait()
        await trio.testing.wait_all_tasks_blocked()
        most.append(arrived)
        await stream.send_all(reply(b"1"))

    most: list[int] = []
    async with contextlib.AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(open_web()) for _ in range(6)]
        fetcher = await stack.enter_async_context(open_fetcher(FetchSettings(allow=("127.0.0.1",))))
        nursery = await stack.enter_async_context(trio.open_nursery())
        for place, host in enumerate(hosts):
            host.replies["/"] = redirect(f"{web.url}/{place}")
            web.replies[f"/{place}"] = waits
            nursery.start_soon(fetcher.get, f"{host.url}/")
        with trio.fail_after(20):
            await go.wait()
    assert most[0] == 4
    assert arrived == 6


async def test_pauses_double_up_to_a_minute_and_end_with_a_success(autojump_clock):
    rests = Rests()
    waited = []
    for _ in range(10):
        rests.failed("a")
        began = trio.current_time()
        while True:
            try:
                rests.refuse("a")
                break
            except Transient:
                await trio.sleep(0.25)
        waited.append(trio.current_time() - began)
    assert all(later >= earlier or later > 28 for earlier, later in itertools.pairwise(waited))
    assert 0.5 <= waited[0] <= 1.25
    assert max(waited) <= 60.25
    rests.failed("a", at_least=300)
    rests.recovered("a")
    rests.refuse("a")


async def test_what_is_remembered_of_failures_is_bounded():
    rests = Rests(most=10)
    for each in range(1000):
        rests.failed(str(each))
    assert len(rests) == 10
    with pytest.raises(Transient):
        rests.refuse("999")
    rests.refuse("0")


async def test_a_slow_host_is_asked_four_things_at_a_time_and_another_is_not_delayed(web: Web):
    arrived, go = 0, trio.Event()

    async def waits(stream: trio.abc.Stream) -> None:
        nonlocal arrived
        arrived += 1
        await go.wait()
        await stream.send_all(reply(b"1"))

    async with open_web() as other, open_fetcher(FetchSettings(allow=(web.place, other.place))) as fetcher:
        other.replies["/"] = reply(b"2")
        web.replies |= {f"/{n}": waits for n in range(9)}
        async with trio.open_nursery() as nursery:
            for n in range(9):
                nursery.start_soon(fetcher.get, f"{web.url}/{n}")
            while arrived < 4:
                assert await fetcher.get(f"{other.url}/") == b"2"
            assert arrived == 4
            go.set()
        assert arrived == 9
        assert not fetcher._slots


# TLS


def authority(tmp_path: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for `name`, and a client's that trusts nobody else."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / f"{name}.pem"
    plain = serialization.NoEncryption()
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    client = ssl.create_default_context()
    client.load_verify_locations(pem)
    return server, client


async def here(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


async def test_the_certificate_must_be_the_names_though_the_connection_goes_to_an_address(tmp_path: Path):
    server, client = authority(tmp_path, "good.example")
    async with open_web(server) as web:
        web.replies["/"] = reply(b"1")
        settings = FetchSettings(allow=("good.example", "bad.example"))
        async with open_fetcher(settings, resolver=here, ssl_context=client) as fetcher:
            assert await fetcher.get(f"https://good.example:{web.port}/") == b"1"
            target, stream = await fetcher.connect(f"wss://good.example:{web.port}/x")
            assert target.path == "/x"
            await trio.aclose_forcefully(stream)
            assert await code_of(fetcher, f"https://bad.example:{web.port}/") == (Transient, "SOURCE_UNREACHABLE")
            with pytest.raises(Transient):
                await fetcher.connect(f"wss://bad.example:{web.port}/")


async def test_an_unknown_authority_is_not_trusted(tmp_path: Path):
    server, _ = authority(tmp_path, "good.example")
    async with open_web(server) as web, open_fetcher(FetchSettings(allow=("good.example",)), resolver=here) as fetcher:
        assert await code_of(fetcher, f"https://good.example:{web.port}/") == (Transient, "SOURCE_UNREACHABLE")


async def test_a_redirect_does_not_lead_out_of_encryption(tmp_path: Path):
    server, client = authority(tmp_path, "good.example")
    async with open_web(server) as web, open_web() as plain:
        settings = FetchSettings(allow=("good.example", plain.place))
        async with open_fetcher(settings, resolver=here, ssl_context=client) as fetcher:
            web.replies["/"] = redirect(f"{plain.url}/")
            assert await code_of(fetcher, f"https://good.example:{web.port}/") == (Failed, "SOURCE_REFUSED")
            assert plain.connections == 0
