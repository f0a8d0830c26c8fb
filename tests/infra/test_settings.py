"""Configuration: samples load, every mistake names its key and a remedy, and nothing secret is printed."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import Misconfigured
from coordinator.settings import CoordinatorSettings
from node.infra.settings import NodeSettings, load, option_rows, overrides_from, render_example, validated

MODELS = [NodeSettings, CoordinatorSettings]


@pytest.fixture
def node(tmp_path):
    """Writes a keeper's file, edited by replacements, and loads it."""

    def write(*edits: tuple[str, str], overrides: dict[str, str] | None = None) -> NodeSettings:
        text = render_example(NodeSettings)
        for old, new in edits:
            assert old in text, old
            text = text.replace(old, new)
        (tmp_path / "node.toml").write_text(text)
        return load(tmp_path / "node.toml", NodeSettings, overrides)

    return write


@pytest.mark.parametrize("model", MODELS)
def test_the_rendered_example_loads_and_shows_every_option(model, tmp_path):
    text = render_example(model)
    (tmp_path / "a.toml").write_text(text)
    load(tmp_path / "a.toml", model)
    for row in option_rows(model):
        name = row.key.rpartition(".")[2]
        assert f"\n{name} = " in "\n" + text or f"\n# {name} = " in text, row.key
        assert row.meaning.endswith(".")
        assert row.type


@pytest.mark.parametrize("model", MODELS)
def test_defaults_in_the_docs_are_the_defaults_in_the_code(model):
    for row in option_rows(model):
        if row.default not in ("", "unset"):
            tomllib.loads(f"value = {row.default}")


def test_loading_dials_nothing(node, monkeypatch):
    def refuse(*_args: object) -> None:
        raise AssertionError("a socket was made")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    node()


def test_relative_paths_start_at_the_files_folder(node, tmp_path):
    settings = node(('identity = "identity.key"', ""), ('bls = "keys/bls.json"', 'bls = "/etc/triggerx/bls.json"'))
    assert settings.data_dir == tmp_path / "data"
    assert settings.mesh.identity == tmp_path / "identity.key"
    assert settings.keys is not None
    assert settings.keys.bls == Path("/etc/triggerx/bls.json")
    assert settings.keys.operator == tmp_path / "keys" / "operator.json"


def test_default_paths_of_a_table_left_out_start_there_too(tmp_path):
    (tmp_path / "boot.toml").write_text('role = "bootstrap"\n')
    assert load(tmp_path / "boot.toml", NodeSettings).mesh.identity == tmp_path / "identity.key"


def test_a_bootstrap_peer_needs_neither_keys_nor_chain(tmp_path):
    (tmp_path / "boot.toml").write_text('role = "bootstrap"\n')
    settings = load(tmp_path / "boot.toml", NodeSettings)
    assert (settings.keys, settings.chains) == (None, ())


def test_settings_are_frozen(node):
    with pytest.raises(ValueError, match="frozen"):
        node().role = "bootstrap"


def test_addresses_are_bytes_and_may_be_written_in_one_case(node):
    checksummed = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"  # from EIP-55
    for text in (checksummed, checksummed.lower(), "0x" + checksummed[2:].upper()):
        chain = node(("0x00000000000000000000000000000000000000A1", text)).chains[0]
        assert chain.contracts.hub == bytes.fromhex(checksummed[2:])
    assert chain.contracts.model_dump()["hub"] == checksummed


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ("confirmations = 0", "confirmation = 0", "chains.0.confirmation", "did you mean `confirmations`?"),
        ("[aggregator]", "[agregator]", "agregator", "did you mean `aggregator`?"),
        ("[chains.contracts]", "[chains.contract]", "chains.0.contracts", "missing"),
        ("confirmations = 0", "confirmations = -1", "chains.0.confirmations", "greater than or equal to 0, found -1"),
        ("confirmations = 0", 'confirmations = "0"', "chains.0.confirmations", "valid integer"),
        ("confirmations = 0", "confirmations = true", "chains.0.confirmations", "valid integer"),
        ("id = 84532", "", "chains.0.id", "missing; it is: Chain id"),
        ("id = 84532", "", "chains.0.id", "for example id = 84532"),
        ("id = 84532", "id = 1979-05-27", "chains.0.id", "valid integer"),
        ('rpc = ["https://sepolia.base.org"]', "rpc = []", "chains.0.rpc", "at least 1 item"),
        ('rpc = ["https://sepolia.base.org"]', 'rpc = ["sepolia.base.org"]', "chains.0.rpc.0", "begins with http:// or https://"),
        ('# ws = "wss', 'ws = "http', "chains.0.ws", "begins with ws:// or wss://"),
        ("00A1", "00A", "chains.0.contracts.hub", "0x and 40 hexadecimal digits"),
        ("000000A1", "00000000", "chains.0.contracts.hub", "zero address"),
        (
            "0x00000000000000000000000000000000000000A1",
            "0x5aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "chains.0.contracts.hub",
            "wrong checksum",
        ),
        ('listen = "/ip4/0.0.0.0/tcp/4001"', 'listen = "0.0.0.0:4001"', "mesh.listen", "must be a multiaddr, found"),
        ('listen = "/ip4/0.0.0.0/tcp/4001"', 'listen = "/ip4/0.0.0.0/udp/4001"', "mesh.listen", "TCP multiaddr"),
        ("/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA", "", "mesh.bootstrap.0", "must end in /p2p/<peer id>"),
        ("port = 9100", "port = 70000", "status.port", "less than or equal to 65535"),
        ('level = "info"', 'level = "loud"', "log.level", "'debug', 'info', 'warning' or 'error', found \"loud\""),
        ("rank_interval_s = 2.0", "rank_interval_s = nan", "aggregator.rank_interval_s", "finite"),
        ('role = "keeper"', 'role = "king"', "role", "'keeper' or 'bootstrap'"),
        ("[keys]", "[[keys]]", "keys", "object"),
    ],
)
def test_each_mistake_names_its_key_and_what_is_wrong(node, old, new, key, says):
    with pytest.raises(Misconfigured) as caught:
        node((old, new))
    assert caught.value.key == key
    assert says in caught.value.detail.splitlines()[0]


def test_a_keeper_without_keys_or_chain_is_told_which_table_to_add(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("")
    with pytest.raises(Misconfigured, match=r"add the table \[keys\]") as caught:
        load(path, NodeSettings)
    assert caught.value.key == "keys"


def test_one_chain_twice_is_refused(tmp_path):
    text = render_example(NodeSettings)
    head, begin, rest = text.partition("# The chains to work on")
    chain, middle, tail = rest.partition("# The keeper's keys")
    (tmp_path / "a.toml").write_text(head + begin + chain + begin + chain + middle + tail)
    with pytest.raises(Misconfigured, match="84532 is configured twice") as caught:
        load(tmp_path / "a.toml", NodeSettings)
    assert caught.value.key == "chains"


def test_all_mistakes_are_told_at_once(node):
    with pytest.raises(Misconfigured) as caught:
        node(("confirmations = 0", "confirmations = -1"), ("port = 9100", 'port = "x"'))
    first, second = caught.value.detail.splitlines()
    assert first.startswith("chains.0.confirmations: must be greater")
    assert second.startswith("status.port: must be a valid integer")


def test_urls_with_credentials_are_never_printed(node):
    settings = node(("https://sepolia.base.org", "https://me:hunter2@base.example/v2/hunter3"))
    assert settings.chains[0].rpc == ("https://me:hunter2@base.example/v2/hunter3",)
    assert "hunter" not in f"{settings} {settings!r} {settings.chains!r}"
    assert "rpc=***" in repr(settings.chains[0]).replace("'", "")
    with pytest.raises(Misconfigured) as caught:
        node(("https://sepolia.base.org", "htps://me:hunter2@base.example"))
    assert "hunter" not in str(caught.value)


def test_overrides_replace_what_the_file_says(node):
    settings = node(
        overrides={
            "log.level": "debug",
            "chains.0.rpc": '["http://127.0.0.1:8545"]',
            "status.port": "0",
            "mesh.announce.1": "/ip4/203.0.113.9/tcp/4001",
        }
    )
    assert settings.log.level == "debug"
    assert settings.chains[0].rpc == ("http://127.0.0.1:8545",)
    assert settings.status.port == 0
    assert settings.mesh.announce == ("/ip4/203.0.113.7/tcp/4001", "/ip4/203.0.113.9/tcp/4001")


def test_overrides_alone_can_make_tables(tmp_path):
    (tmp_path / "a.toml").write_text('role = "bootstrap"')
    settings = load(tmp_path / "a.toml", NodeSettings, {"mesh.listen": "/ip4/127.0.0.1/tcp/0", "log.format": "text"})
    assert (settings.mesh.listen, settings.log.format) == ("/ip4/127.0.0.1/tcp/0", "text")


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("log.levle", "did you mean `level`?"),
        ("role.name", "is a value, not a table"),
        ("chains.7.id", "no place in a list of 1"),
    ],
)
def test_a_mistaken_override_names_its_key(node, key, says):
    with pytest.raises(Misconfigured) as caught:
        node(overrides={key: "x"})
    assert caught.value.key == key
    assert says in caught.value.detail


def test_the_environment_maps_to_dotted_keys():
    environment = {"TRIGGERX_CHAINS__0__RPC": "a", "TRIGGERX_DATA_DIR": "b", "HOME": "c"}
    assert overrides_from(environment) == {"chains.0.rpc": "a", "data_dir": "b"}


def test_a_file_that_is_missing_or_no_toml_says_so(tmp_path):
    with pytest.raises(Misconfigured, match=r"config: cannot read .*absent\.toml"):
        load(tmp_path / "absent.toml", NodeSettings)
    (tmp_path / "a.toml").write_text("role = \n")
    with pytest.raises(Misconfigured, match=r"not TOML.*line 1"):
        load(tmp_path / "a.toml", NodeSettings)
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(Misconfigured, match="not TOML"):
        load(tmp_path / "a.toml", NodeSettings)


tables = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "mesh", "chains", "id", "rpc", "keys", "log", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["role", "mesh", "chains", "keys", "log", "status", "y"]), tables, max_size=5))
def test_any_document_loads_or_is_misconfigured(document):
    try:
        result: NodeSettings | Misconfigured = validated(document, NodeSettings, Path("/"))
    except Misconfigured as error:
        result = error
    assert isinstance(result, NodeSettings) or (result.key and result.detail)


def test_an_override_of_a_top_level_key_takes_its_place(tmp_path):
    (tmp_path / "a.toml").write_text('role = "keeper"\n')
    assert load(tmp_path / "a.toml", NodeSettings, {"role": "bootstrap"}).role == "bootstrap"
