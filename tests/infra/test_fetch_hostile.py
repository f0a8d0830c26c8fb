"""No URL that a stranger names reaches into the network this runs in: at creation, at run time, by redirect, by rebinding."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import Failed, Transient
from node.infra.addresses import RefusedUrl, parse_url, refusal
from node.infra.fetch import Fetcher, open_fetcher
from node.infra.settings import FetchSettings
from tests.infra.hostile import HOSTILE, PRIVATE
from tests.infra.web import open_web, redirect, reply

PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00:1450:4001::1", "64:ff9b::808:808"]


async def names(host: str, port: int) -> Sequence[str]:
    """Every name there is has a public address."""
    return ["93.184.215.14"]


@pytest.fixture
async def fetcher():
    async with open_fetcher(FetchSettings(timeout_s=5), resolver=names) as opened:
        yield opened


@pytest.mark.parametrize("url", HOSTILE)
async def test_a_hostile_url_is_refused_at_creation_and_at_run_time(fetcher: Fetcher, url: str):
    for ask in (fetcher.check, fetcher.get):
        with pytest.raises(Failed) as refused:
            await ask(url)
        assert refused.value.code == "SOURCE_REFUSED"
    with pytest.raises(Failed):
        await fetcher.connect(url.replace("http", "ws", 1))


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_name_with_a_private_address_is_refused_even_beside_a_public_one(address: str):
    for addresses in ([address], ["93.184.215.14", address], [address, "93.184.215.14"]):

        async def resolve(host: str, port: int, found: Sequence[str] = tuple(addresses)) -> Sequence[str]:
            return found

        async with open_fetcher(FetchSettings(), resolver=resolve) as fetcher:
            for ask, url in ((fetcher.check, "https://a.example/"), (fetcher.get, "https://a.example/")):
                with pytest.raises(Failed) as refused:
                    await ask(url)
                assert refused.value.code == "SOURCE_REFUSED"
            with pytest.raises(Failed):
                await fetcher.connect("wss://a.example/")


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not_refused(address: str):
    assert refusal(ip_address(address)) is None


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authority"),
    [
        ("https://Example.ORG", "example.org", 443, "/", "example.org"),
        ("HTTP://example.org:8080/a?b=c#d", "example.org", 8080, "/a?b=c", "example.org:8080"),
        ("https://example.org?b", "example.org", 443, "/?b", "example.org"),
        ("http://xn--exmple-cua.org/", "xn--exmple-cua.org", 80, "/", "xn--exmple-cua.org"),
        ("http://8.8.8.8/", "8.8.8.8", 80, "/", "8.8.8.8"),
        ("http://[2606:4700:0:0::1111]:8080/x@y", "2606:4700::1111", 8080, "/x@y", "[2606:4700::1111]:8080"),
    ],
)
def test_a_proper_url_is_taken_apart(url: str, host: str, port: int, path: str, authority: str):
    target = parse_url(url, "http", "https")
    assert (target.host, target.port, target.path, target.authority) == (host, port, path, authority)


@given(st.text(max_size=40) | st.from_regex(r"https?://[\x20-\x7e]{0,30}", fullmatch=True))
def test_what_is_taken_apart_is_read_the_same_when_put_together(url: str):
    try:
        target = parse_url(url, "http", "https")
    except RefusedUrl:
        return
    assert parse_url(target.url, "http", "https") == target


async def test_a_name_that_turns_private_after_the_check_is_not_connected_to():
    answers = iter([["93.184.215.14"], ["127.0.0.1"], ["127.0.0.1"]])

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return next(answers)

    async with open_web() as web, open_fetcher(FetchSettings(), resolver=rebinding) as fetcher:
        await fetcher.check(f"http://a.example:{web.port}/")
        with pytest.raises(Failed) as refused:
            await fetcher.get(f"http://a.example:{web.port}/")
        assert refused.value.code == "SOURCE_REFUSED"
        with pytest.raises(Failed):
            await fetcher.connect(f"ws://a.example:{web.port}/")
        assert web.connections == 0


async def test_one_look_up_serves_check_and_connection():
    asked: list[str] = []

    async def once(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    async with open_web() as web:
        settings = FetchSettings(allow=(f"a.example:{web.port}",))
        async with open_fetcher(settings, resolver=once) as fetcher:
            web.replies["/"] = reply(b"1")
            assert await fetcher.get(f"http://a.example:{web.port}/") == b"1"
            assert asked == ["a.example"]
            assert b"Host: a.example:%d" % web.port in web.heads[0]


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:1/",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "//10.0.0.1/",
        "file:///etc/passwd",
        "http://user@a.example/",
        "http://[::1",
        "gopher://a.example/",
        "http://localhost/",
        "\\\\10.0.0.1\\",
        "http://intern.example/",
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_a_hostile_url_is_refused(location: str, status: int):
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["192.168.7.7"]

    async with open_web() as web, open_fetcher(FetchSettings(allow=(web.place,)), resolver=resolve) as fetcher:
        web.replies["/"] = redirect(location, status)
        web.replies["/twice"] = redirect("/", status)
        for path in ("/", "/twice"):
            with pytest.raises(Failed) as refused:
                await fetcher.get(web.url + path)
            assert refused.value.code == "SOURCE_REFUSED"


async def test_the_allow_list_of_one_port_does_not_open_another_to_redirects():
    async with open_web() as web, open_web() as other, open_fetcher(FetchSettings(allow=(web.place,))) as fetcher:
        web.replies["/"] = redirect(f"{other.url}/")
        other.replies["/"] = reply(b"1")
        with pytest.raises(Failed):
            await fetcher.get(f"{web.url}/")
        assert other.connections == 0


async def test_a_name_that_does_not_resolve_may_do_so_later():
    async def nothing(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    async with open_fetcher(FetchSettings(), resolver=nothing) as fetcher:
        with pytest.raises(Transient) as away:
            await fetcher.check("https://a.example/")
        assert away.value.code == "SOURCE_UNREACHABLE"
        with pytest.raises(Transient):
            await fetcher.get("https://a.example/")
        with pytest.raises(Transient):
            await fetcher.connect("wss://a.example/")


async def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch):
    async with open_web() as web, open_web() as proxy, open_fetcher(FetchSettings(allow=(web.place,))) as fetcher:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        web.replies["/"] = reply(b"1")
        assert await fetcher.get(f"{web.url}/") == b"1"
        assert proxy.connections == 0
