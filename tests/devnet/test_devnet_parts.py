"""The devnet's parts, without starting one: folder, configuration files, what is shown."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.task_stages import quantile
from cli.devnet import configs
from cli.devnet.folder import MARKER, open_folder, ready_file
from cli.devnet.processes import open_processes
from cli.devnet.view import Heading, PlainLines, render
from cli.devnet.watch import KEPT_TASKS, Place, Watch
from consensus.errors import Failed, Misconfigured
from coordinator.settings import CoordinatorSettings
from node.infra.deploy import Deployment
from node.infra.settings import NodeSettings, load
from tests.devnet.running import alive, eventually

DEPLOYMENT = Deployment(31337, *(f"0x{n:040x}" for n in range(1, 10)), block=1)
BOOTSTRAP = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"


# folder


def test_a_folder_is_emptied_of_what_a_former_devnet_left(tmp_path):
    folder = tmp_path / "net"
    with open_folder(folder):
        (folder / "keeper-1").mkdir()
        (folder / "keeper-1" / "journal.sqlite").write_text("old")
        (folder / "link").symlink_to(tmp_path)
    with open_folder(folder):
        assert sorted(path.name for path in folder.iterdir()) == [MARKER, "logs"]
    assert tmp_path.exists()


def test_a_folder_without_the_marker_is_refused_unless_it_is_empty(tmp_path):
    (tmp_path / "mine").mkdir()
    with open_folder(tmp_path / "mine"):
        pass
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(Misconfigured, match="no devnet made"), open_folder(tmp_path / "letters"):
        pass
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


def test_a_folder_is_locked_while_a_devnet_runs_in_it(tmp_path):
    with open_folder(tmp_path / "net"), pytest.raises(Misconfigured, match="another devnet"), open_folder(tmp_path / "net"):
        pass


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "net").write_text("")
    with pytest.raises(Misconfigured, match="choose another folder"), open_folder(tmp_path / "net"):
        pass


def test_the_ready_file_is_gone_before_the_start_and_after_the_end(tmp_path):
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"coordinator_url": "of the last run"}))
    with ready_file(path) as file:
        assert not path.exists()
        file.write({"coordinator_url": "http://127.0.0.1:1"})
        assert json.loads(path.read_text()) == {"coordinator_url": "http://127.0.0.1:1"}
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


@pytest.mark.parametrize("content", ['{"name": "my package"}', "[]", "7", "not json"])
def test_a_ready_file_never_replaces_another_kind_of_file(tmp_path, content):
    path = tmp_path / "package.json"
    path.write_text(content)
    with pytest.raises(Misconfigured, match="not written by a devnet"), ready_file(path):
        pass
    assert path.read_text() == content


# configuration files


def documents(tmp_path):
    chain = configs.chain_table(DEPLOYMENT, "devnet", "http://127.0.0.1:8545", "ws://127.0.0.1:8545", poll_ms=50)
    return [
        (configs.bootstrap_config(), NodeSettings),
        (configs.keeper_config(chain, BOOTSTRAP), NodeSettings),
        (configs.coordinator_config(chain, BOOTSTRAP), CoordinatorSettings),
    ]


def test_every_program_accepts_its_configuration(tmp_path):
    for number, (document, model) in enumerate(documents(tmp_path)):
        path = tmp_path / f"{number}.toml"
        configs.write(path, document, model)
        load(path, model)
        assert tomllib.loads(path.read_text()) == document


def test_a_pinned_configuration_names_the_ports_that_were_taken(tmp_path):
    ready = {
        "addresses": ["/ip4/127.0.0.1/tcp/39001/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"],
        "status_url": "http://127.0.0.1:39002",
    }
    _, (keeper, of_node), (coordinator, of_coordinator) = documents(tmp_path)
    configs.write(tmp_path / "keeper.toml", configs.pinned(keeper, ready), of_node)
    settings = load(tmp_path / "keeper.toml", of_node)
    assert (settings.mesh.listen, settings.status.port) == ("/ip4/127.0.0.1/tcp/39001", 39002)
    configs.write(
        tmp_path / "coordinator.toml", configs.pinned(coordinator, {**ready, "api_url": "http://127.0.0.1:39003"}), of_coordinator
    )
    settings = load(tmp_path / "coordinator.toml", of_coordinator)
    assert (settings.mesh.listen, settings.api.port) == ("/ip4/127.0.0.1/tcp/39001", 39003)


names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)
plain = st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.lists(st.text() | st.integers(0, 9), max_size=3)
tables = st.dictionaries(
    names, st.recursive(plain, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8), max_size=4
)


@given(tables, st.lists(tables.filter(bool), min_size=1, max_size=3))
def test_toml_says_what_the_document_says(document, many):
    whole = {**document, "many-of": many}
    assert tomllib.loads(configs.toml_text(whole)) == whole


# processes


async def test_a_child_is_ready_when_its_file_is_there_and_gone_with_the_context(tmp_path):
    script = "import json, sys, time; open(sys.argv[1], 'w').write(json.dumps({'hello': 1})); time.sleep(600)"
    async with open_processes(tmp_path) as processes:
        child = processes.start("child", (sys.executable, "-c", script, str(tmp_path / "ready.json")))
        assert await processes.ready(child, tmp_path / "ready.json", 30) == {"hello": 1}
        assert alive(child.pid)
    assert not alive(child.pid)


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("cli.devnet.processes.TERM_S", 0.3)
    deaf = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    script = f"{deaf}; open(sys.argv[1], 'w').write('{{}}'); time.sleep(600)"
    async with open_processes(tmp_path) as processes:
        child = processes.start("deaf", (sys.executable, "-c", script, str(tmp_path / "ready.json")))
        await processes.ready(child, tmp_path / "ready.json", 30)
    assert not alive(child.pid)


async def test_children_end_also_when_everything_is_cancelled(tmp_path):
    with trio.fail_after(30):
        with trio.CancelScope() as scope:
            async with open_processes(tmp_path) as processes:
                child = processes.start("child", (sys.executable, "-c", "import time; time.sleep(600)"))
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
    assert not alive(child.pid)


async def test_a_child_that_ends_before_it_is_ready_is_reported_with_its_last_words(tmp_path):
    async with open_processes(tmp_path) as processes:
        child = processes.start("short", (sys.executable, "-c", "print('no disk left'); raise SystemExit(3)"))
        with pytest.raises(Failed, match="short ended with code 3") as caught:
            await processes.ready(child, tmp_path / "never.json", 30)
    assert "no disk left" in str(caught.value)


async def test_the_end_of_a_child_is_an_event(tmp_path):
    async with open_processes(tmp_path) as processes:
        child = processes.start("brief", (sys.executable, "-c", "raise SystemExit(0)"))
        with trio.fail_after(30):
            assert await processes.ended.receive() is child
        assert child.ending() == "ended with code 0"


def test_children_die_with_a_parent_that_is_killed(tmp_path):
    script = f"""
import sys, trio
from pathlib import Path
from cli.devnet.processes import open_processes
async def main():
    async with open_processes(Path({str(tmp_path)!r})) as processes:
        child = processes.start("child", (sys.executable, "-c", "import time; time.sleep(600)"))
        print(child.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not alive(pid), 10, "the child's end")


# what is shown

DUE = 1_700_000_000
TRAIL = {"task_id": "77", "trace_id": "t", "outcome": ""}
PERFORMER = {
    **TRAIL,
    "facts": {"role": "performer", "due": DUE, "execution_tx": "0x" + "ab" * 32},
    "stages": {"received": DUE * 1000 - 4000, "sent": DUE * 1000 + 4, "mined": DUE * 1000 + 60},
}
ATTESTER = {
    **TRAIL,
    "facts": {"role": "attester", "due": DUE, "verdict": "yes", "rank": 0, "validation_tx": "0x" + "cd" * 32},
    "stages": {
        "recorded": DUE * 1000 + 70,
        "voted": DUE * 1000 + 90,
        "aggregated": DUE * 1000 + 110,
        "certified_sent": DUE * 1000 + 120,
        "certified": DUE * 1000 + 180,
    },
}
RECORD = {
    "task_id": "77",
    "task_number": 5,
    "task_status": "completed",
    "task_error": "",
    "is_accepted": True,
    "execution_tx_hash": "0x" + "ab" * 32,
    "submission_tx_hash": "0x" + "cd" * 32,
    "stages": {"dispatched": DUE * 1000 - 4100},
}
HEADING = Heading("anvil 1.7.1", "http://127.0.0.1:1", "http://127.0.0.1:2", "/net/devnet.json", "none")


class Answers:
    """Keepers and coordinator as canned answers, which a test changes."""

    def __init__(self) -> None:
        self.by_url = {
            "http://k1/status": {"peer_id": "12D3KooWone", "peers": ["a", "b"], "trails": [PERFORMER]},
            "http://k2/status": {"peer_id": "12D3KooWtwo", "peers": ["a"], "trails": [ATTESTER]},
            "http://c/api/tasks/id/77": RECORD,
        }

    def __call__(self, request: httpx.Request) -> httpx.Response:
        found = self.by_url.get(str(request.url))
        return httpx.Response(404) if found is None else httpx.Response(200, json=found)


@pytest.fixture
def answers():
    return Answers()


def watching(answers):
    client = httpx.AsyncClient(transport=httpx.MockTransport(answers))
    return Watch(
        client,
        "http://c",
        "key",
        [Place("keeper-1", "0x" + "11" * 20, "http://k1"), Place("keeper-2", "0x" + "22" * 20, "http://k2")],
    )


async def test_a_task_is_put_together_from_everybodys_trails(answers):
    watch = watching(answers)
    await watch.look()
    task = watch.tasks["77"]
    assert [task.after_due(stage) for stage in ("sent", "mined", "recorded", "aggregated", "certified_sent", "certified")] == [
        4,
        60,
        70,
        110,
        120,
        180,
    ]
    assert (task.performer, task.votes, task.verdict, task.number) == ("keeper-1", {"keeper-2": "yes"}, "accepted", "5")
    assert [len(keeper.performed) for keeper in watch.keepers] == [1, 0]
    assert [len(keeper.attested) for keeper in watch.keepers] == [0, 1]


async def test_the_screen_shows_keepers_and_stages(answers):
    watch = watching(answers)
    await watch.look()
    del answers.by_url["http://k2/status"]
    await watch.look()
    console = Console(file=io.StringIO(), width=220)
    console.print(render(HEADING, watch, ["keeper-2 was killed"], width=220, height=50))
    text = console.file.getvalue()
    for word in (
        "anvil 1.7.1",
        "/net/devnet.json",
        "keeper-1",
        "yes",
        "no",
        "completed",
        "110",
        "1 yes",
        "0xabab…abab",
        "accepted",
        "was killed",
    ):
        assert word in text


async def test_plain_lines_tell_each_event_once_and_in_order(answers):
    lines: list[str] = []
    plain_lines = PlainLines(lines.append)
    watch = watching(answers)
    for _ in range(3):
        await watch.look()
        plain_lines.update(watch)
    assert lines == [
        "task 5: given to keeper-1, due at second 1700000000",
        f"task 5: sent 4 ms after its second 0x{'ab' * 32}",
        "task 5: mined 60 ms after its second",
        "task 5: seen 70 ms after its second",
        "task 5: attested 110 ms after its second, votes 1 yes",
        f"task 5: certified 120 ms after its second 0x{'cd' * 32}",
        "task 5: verified 180 ms after its second",
        "task 5: certificate verified on chain: accepted",
    ]
    lines.clear()
    del answers.by_url["http://k2/status"]
    await watch.look()
    plain_lines.update(watch)
    assert lines == ["keeper-2 is offline"]


async def test_a_failed_task_shows_its_reason(answers):
    lines: list[str] = []
    answers.by_url["http://c/api/tasks/id/77"] = {
        **RECORD,
        "task_status": "failed",
        "task_error": "NO_KEEPER",
        "is_accepted": None,
    }
    watch = watching(answers)
    await watch.look()
    PlainLines(lines.append).update(watch)
    assert lines[-1] == "task 5: failed: NO_KEEPER"


async def test_the_watch_forgets_old_tasks(answers):
    watch = watching(answers)
    for number in range(KEPT_TASKS + 50):
        answers.by_url["http://k1/status"]["trails"] = [{**PERFORMER, "task_id": str(number)}]
        answers.by_url["http://k2/status"]["trails"] = []
        await watch.look()
    assert len(watch.tasks) == KEPT_TASKS


@pytest.mark.parametrize(("q", "value"), [(0.5, 25), (0.99, 50), (0.0, 1), (1.0, 50)])
def test_quantiles_are_by_nearest_rank(q, value):
    assert quantile(list(range(1, 51)), q) == value
