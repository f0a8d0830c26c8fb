"""The condition scheduler with a real web server and a real WebSocket: what it asks, and how soon it fires."""

from __future__ import annotations

from functools import partial

import trio
from trio_websocket import WebSocketConnection, WebSocketRequest, serve_websocket

from consensus.conditions import AllOf, ApiSource, WebSocketSource
from coordinator.scheduler.condition import ConditionScheduler
from node.arguments import encode_call
from node.infra.fetch import open_fetcher
from node.infra.settings import FetchSettings
from node.infra.sources import Sources
from tests.coordinator.condition_world import World, above
from tests.coordinator.factory import claim_all
from tests.infra.web import open_web, reply

INTERVAL = 0.2


class Served(World):
    """A world whose sources are read over sockets; `fired` wakes when something was written."""

    def __init__(self, sources: Sources) -> None:
        super().__init__()
        self.scheduler = ConditionScheduler(sources, self.clock, self.fire, self.add_gap, interval=INTERVAL)

    async def until_fired(self, count: int) -> None:
        with trio.fail_after(30):
            while self.scheduler.fired < count:
                await trio.lowlevel.checkpoint()


async def test_a_thousand_jobs_on_one_served_url_make_one_request_an_interval():
    async with open_web() as web, open_fetcher(FetchSettings(allow=(web.place,))) as fetcher:
        web.replies["/p"] = reply(b'{"price":"0.4"}')
        world = Served(Sources(fetcher, {}, encode_call))
        await claim_all(world.store)
        for n in range(1000):
            await world.post(above(ApiSource(f"{web.url}/p", "price"), "0.5"), job_id=n)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            await nursery.start(world.scheduler.run)
            while web.asked["/p"] < 3:
                await trio.lowlevel.checkpoint()
            web.replies["/p"] = reply(b'{"price":"0.50000000000000000001"}')
            await world.until_fired(1000)
            nursery.cancel_scope.cancel()
        assert web.asked["/p"] <= (trio.current_time() - began) / INTERVAL + 1
        assert web.connections == 1
        assert await world.seen(999) == [("0.50000000000000000001",)]


async def test_a_served_websocket_and_url_fire_together():
    connections: list[WebSocketConnection] = []

    async def serve(request: WebSocketRequest) -> None:
        connection = await request.accept()
        connections.append(connection)
        await connection.send_message('{"hello":"there"}')
        await connection.send_message('{"p":1}')
        await trio.sleep_forever()

    async with open_web() as web, trio.open_nursery() as nursery:
        feed = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, ssl_context=None))
        place = f"127.0.0.1:{feed.port}"
        async with open_fetcher(FetchSettings(allow=(web.place, place))) as fetcher:
            web.replies["/p"] = reply(b"[2]")
            world = Served(Sources(fetcher, {}, encode_call))
            await claim_all(world.store)
            both = AllOf((above(WebSocketSource(f"ws://{place}/", "p"), "2"), above(ApiSource(f"{web.url}/p", "[0]"), "1")))
            await world.post(both)
            await nursery.start(world.scheduler.run)
            while not connections or not web.asked["/p"]:
                await trio.lowlevel.checkpoint()
            assert world.scheduler.fired == 0
            await connections[0].send_message('{"p":3}')
            await world.until_fired(1)
            assert await world.seen() == [("3", "2")]
        nursery.cancel_scope.cancel()
