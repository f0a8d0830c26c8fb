"""Which content a script's URL names, what a script says of itself, and what it is given."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import Failed, Invalid, Transient
from consensus.messages import JobSpec
from node.sandbox.port import Language
from node.scripts.directives import Directives, directives
from node.scripts.inputs import inputs_of
from node.scripts.quoting import last_words, quoted
from node.scripts.source import FIELD, Source, language_of, parse_source
from tests.consensus import samples
from tests.node.script_world import LOG, job, task

V1 = samples.CID
V0 = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"


@pytest.mark.parametrize(
    ("url", "source"),
    [
        (f"ipfs://{V1}", Source(V1)),
        (f"ipfs://{V1}/", Source(V1)),
        (f"ipfs://{V0}", Source(V0)),
        (f"https://gateway.example.org/ipfs/{V1}", Source(V1, f"https://gateway.example.org/ipfs/{V1}")),
        (f"https://gateway.example.org/ipfs/{V0}/", Source(V0, f"https://gateway.example.org/ipfs/{V0}")),
        (f"http://127.0.0.1:8080/ipfs/{V1}", Source(V1, f"http://127.0.0.1:8080/ipfs/{V1}")),
        (f"https://g.example.org/ipfs/{V1}/price.go", Source(V1, f"https://g.example.org/ipfs/{V1}", "price.go")),
        (f"https://g.example.org/ipfs/{V1}?token=a%20b", Source(V1, f"https://g.example.org/ipfs/{V1}?token=a%20b")),
        (f"https://{V1}.ipfs.dweb.link/", Source(V1, f"https://{V1}.ipfs.dweb.link/")),
        (f"https://{V1}.ipfs.dweb.link", Source(V1, f"https://{V1}.ipfs.dweb.link/")),
        (f"https://{V1}.ipfs.dweb.link/a.ts", Source(V1, f"https://{V1}.ipfs.dweb.link/", "a.ts")),
    ],
)
def test_a_script_is_named_by_its_content(url: str, source: Source) -> None:
    assert parse_source(url) == source


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ipfs://",
        f"ipfs://{V1}/price.go",
        f"ipfs://ipfs/{V1}",
        "ipfs://bafybeinothing",
        f"ipfs://{V1.upper()}",
        f"ftp://gateway.example.org/ipfs/{V1}",
        f"https://gateway.example.org/ipns/{V1}",
        f"https://gateway.example.org/{V1}",
        f"https://gateway.example.org/ipfs/{V1}/folder/price.go",
        f"https://gateway.example.org/ipfs/{V1[:-1]}",
        f"https://user:password@gateway.example.org/ipfs/{V1}",
        f"https://gateway.example.org/ipfs/{V1}\n",
        f"https://gateway.example.org/x/../ipfs/{V1}",
        f"https://{V1}.ipfs/",
        "https://raw.example.org/scripts/price.go",
    ],
)
def test_a_url_that_names_no_content_is_refused_for_its_field(url: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_source(url)
    assert refused.value.field == FIELD == "dynamic_arguments_script_url"


@given(st.text(max_size=200) | st.text(alphabet="ipfs:/htb.aQm2?", max_size=80))
def test_any_url_is_understood_or_refused_and_nothing_else(url: str) -> None:
    with suppress(Invalid):
        parse_source(url)


def test_the_language_is_the_posted_one_or_that_of_the_files_name() -> None:
    assert language_of(Source(V1, name="a.go"), "py") is Language.PYTHON
    assert language_of(Source(V1, name="a.b.TS"), "") is Language.TYPESCRIPT
    for source, posted in ((Source(V1), ""), (Source(V1, name="go"), ""), (Source(V1, name="a.rb"), ""), (Source(V1), "rust")):
        with pytest.raises(Failed, match="go, py, js, ts") as refused:
            language_of(source, posted)
        assert refused.value.code == "SCRIPT_INVALID"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print(1)", Directives()),
        ("# triggerx: allow api.example.org", Directives(("api.example.org",))),
        ("// triggerx: allow API.Example.org:8443\n", Directives(("api.example.org:8443",))),
        ("x\n\t//triggerx:allow a.example.org\r\n", Directives(("a.example.org",))),
        ("# triggerx: allow 8.8.8.8\n# triggerx: allow [2606:4700::1111]:443", Directives(("8.8.8.8", "[2606:4700::1111]:443"))),
        ("# triggerx: allow a.example.org\n# triggerx: allow a.example.org", Directives(("a.example.org",))),
        ("# triggerx: allow a.example.org\n# triggerx: tolerance 0.5%", Directives(("a.example.org",), (1, 200))),
        ("# triggerx: tolerance 0.005\n# triggerx: allow a.example.org", Directives(("a.example.org",), (1, 200))),
        ("# triggerx: allow a.example.org\n# triggerx: tolerance 10 %", Directives(("a.example.org",), (1, 10))),
        ("# triggerx: allow a.example.org\n# triggerx: tolerance 0", Directives(("a.example.org",))),
        ('url = "// triggerx: allow a.example.org"', Directives()),
        ("\n" * 64 + "# triggerx: allow a.example.org", Directives()),
        ("\n" * 63 + "# triggerx: allow a.example.org", Directives(("a.example.org",))),
        ("# about triggerx: allow nothing", Directives()),
    ],
)
def test_a_script_declares_what_it_reads(source: str, expected: Directives) -> None:
    assert directives(source) == expected


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("allow", "line 1"),
        ("allow https://api.example.org/", "line 1"),
        ("allow a.example.org b.example.org", "line 1"),
        ("allow localhost", "localhost"),
        ("allow db.internal", "db.internal"),
        ("allow 127.0.0.1", "127.0.0.1"),
        ("allow 169.254.169.254", "169.254.169.254"),
        ("allow [::1]", "::1"),
        ("allow 0x7f.1", "line 1"),
        ("allow a.example.org:22", "port 22"),
        ("allow a.example.org:0", "port"),
        ("allow *.example.org", "line 1"),
        ("alow a.example.org", "'alow' is no directive"),
        ("", "no directive"),
        ("allow a.example.org\ntolerance 11%", "line 2"),
        ("allow a.example.org\ntolerance -1", "line 2"),
        ("allow a.example.org\ntolerance NaN", "line 2"),
        ("allow a.example.org\ntolerance 1%\ntolerance 2%", "line 3"),
        ("tolerance 1%", "allows no host"),
        ("\n".join(f"allow h{i}.example.org" for i in range(9)), "at most 8"),
    ],
)
def test_a_directive_that_cannot_be_kept_makes_the_script_invalid(lines: str, named: str) -> None:
    with pytest.raises(Failed) as refused:
        directives("\n".join(f"# triggerx: {line}" for line in lines.split("\n")))
    assert refused.value.code == "SCRIPT_INVALID"
    assert named in refused.value.detail


def test_a_devnet_may_let_scripts_name_its_own_hosts() -> None:
    assert directives("# triggerx: allow 127.0.0.1:8080", {"127.0.0.1:8080"}) == Directives(("127.0.0.1:8080",))
    with pytest.raises(Failed):
        directives("# triggerx: allow 127.0.0.1:8081", {"127.0.0.1:8080"})


def test_a_script_is_given_its_firing_on_stdin_and_in_the_environment() -> None:
    spec = job(7)
    stdin, environment = (
        (given := inputs_of(spec, task(spec, storage='{"b":1e400,"a":"\\u00e9"}'), None)).stdin,
        given.environment,
    )
    said = json.loads(stdin, parse_float=str)
    assert said == {
        "job_id": str(2**255 + 3),
        "trigger_id": str(samples.NOW),
        "time": samples.NOW,
        "chain_id": 31337,
        "block": 40,
        "storage": {"b": "1E+400", "a": "é"},
        "event": None,
    }
    assert environment == {
        "TRIGGERX_JOB_ID": said["job_id"],
        "TRIGGERX_TRIGGER_ID": said["trigger_id"],
        "TRIGGERX_TIME": str(samples.NOW),
        "TRIGGERX_CHAIN_ID": "31337",
        "TRIGGERX_BLOCK": "40",
        "TRIGGERX_STORAGE": '{"b":1E+400,"a":"\\u00e9"}',
    }


def test_an_events_script_is_given_the_log_that_this_keeper_read() -> None:
    spec = job(4)
    said = json.loads(inputs_of(spec, task(spec), LOG).stdin)
    assert said["event"] == {
        "address": "0x" + "66" * 20,
        "topics": ["0x" + "02" * 32],
        "data": "0x0304",
        "transaction_hash": "0x" + "ab" * 32,
        "position": 3,
    }
    assert said["time"] == task(spec).authorisation.not_before
    with pytest.raises(Transient, match="EVENT_NOT_FOUND"):
        inputs_of(spec, task(spec), None)


@pytest.mark.parametrize("definition", [2, 4, 6, 7])
def test_everybody_gives_a_script_the_same_bytes(definition: int) -> None:
    spec = job(definition)
    again = JobSpec.decode(spec.encode())
    assert inputs_of(spec, task(spec), LOG) == inputs_of(again, type(task(spec)).decode(task(spec).encode()), LOG)


@pytest.mark.parametrize("storage", ["[]", "{", '"x"'])
def test_storage_that_is_no_object_runs_nothing(storage: str) -> None:
    spec = job(7)
    with pytest.raises(Failed, match="WRONG_RECORD"):
        inputs_of(spec, task(spec, storage=storage), None)


@given(st.text() | st.binary())
def test_what_a_script_printed_is_quoted_in_one_short_printable_line(printed: str | bytes) -> None:
    text = quoted(printed, 40)
    assert len(text) <= 40
    assert text.isprintable()
    text.encode()


def test_quotes_keep_both_ends_and_errors_their_last_line() -> None:
    assert quoted("a" * 600 + "\x1b[31m\u202e\ud800end", 20) == "aaaaaaaa...[31m end"
    assert last_words(b"Traceback\n" + b"x" * 5000 + b"\nValueError: no price\n", 30).endswith("ValueError: no price")
