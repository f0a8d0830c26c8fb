"""The typed calls and events against the compiled contracts, and the bytes they make."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import bls, codec
from consensus.codec import Domain
from consensus.contracts import artifact
from consensus.errors import Failed, Transient
from consensus.messages import Authorisation, Uint256, Verdict
from node.infra import contracts, evm_events
from node.infra.chain import Certificate, TaskExecuted
from node.infra.contracts import decode_execute, encode_certificate, encode_execute

DOMAIN = Domain(1, b"h" * 20, b"c" * 20, b"k" * 20)

addresses = st.binary(min_size=20, max_size=20)
hashes = st.binary(min_size=32, max_size=32)
words = st.integers(0, codec.UINT256_MAX).map(Uint256)
authorisations = st.builds(
    Authorisation,
    job_id=words,
    trigger_id=words,
    attempt=st.integers(1, 255),
    performer=addresses,
    spec=hashes,
    target=addresses,
    selector=st.binary(min_size=4, max_size=4),
    call_hash=hashes,
    gas_limit=st.integers(1, 30_000_000),
    level=st.integers(0, 4),
    max_fee=words,
    not_before=st.just(0),
    deadline=st.integers(0, 2**63 - 1),
)


def kind(entry: dict[str, Any]) -> str:
    if entry["type"].startswith("tuple"):
        return f"({','.join(map(kind, entry['components']))}){entry['type'][5:]}"
    return str(entry["type"])


@pytest.mark.parametrize("name", list(contracts.FUNCTIONS))
def test_every_call_is_the_contracts_own(name: str) -> None:
    abi = {e["name"]: e for e in artifact(name).abi if e["type"] == "function"}
    for function in contracts.FUNCTIONS[name]:
        entry = abi[function.name]
        assert function.inputs == tuple(map(kind, entry["inputs"]))
        assert function.outputs == tuple(map(kind, entry["outputs"]))


@pytest.mark.parametrize("name", list(evm_events.EVENTS))
def test_every_event_is_the_contracts_own(name: str) -> None:
    abi = {e["name"]: e for e in artifact(name).abi if e["type"] == "event"}
    for event in evm_events.EVENTS[name]:
        fields = abi[event.name]["inputs"]
        assert [f["indexed"] for f in fields] == [True] * len(event.indexed) + [False] * len(event.plain)
        assert event.indexed + event.plain == tuple(map(kind, fields))


def test_no_change_of_the_keeper_registry_goes_unheard() -> None:
    declared = {e["name"] for e in artifact("KeeperRegistry").abi if e["type"] == "event"}
    # A withdrawal comes long after its exit and changes neither seats nor keys.
    assert declared - {e.name for e in evm_events.EVENTS["KeeperRegistry"]} == {"StakeWithdrawn"}


@given(authorisations, st.binary(min_size=65, max_size=65), addresses, st.binary(max_size=300), words)
def test_an_execution_is_decoded_as_it_was_encoded(
    a: Authorisation, signature: bytes, target: bytes, call: bytes, fee: int
) -> None:
    decoded = decode_execute(encode_execute(a, signature, target, call, fee))
    assert decoded == contracts.ExecuteCall(a, signature, target, call, fee)
    assert decoded.authorisation.struct_hash() == a.struct_hash()


@given(st.binary(max_size=700))
def test_other_bytes_are_no_execution(data: bytes) -> None:
    for tried in (data, contracts.EXECUTE.selector + data):
        with pytest.raises(Failed) as refused:
            decode_execute(tried)
        assert refused.value.code == "MALFORMED_CALL"


def test_a_certificate_is_packed_as_the_center_reads_it() -> None:
    signature = bls.sign(7, b"root")
    certificate = Certificate(
        task_id=3,
        execution=b"e" * 32,
        verdict=Verdict.NO,
        block_number=0x0102,
        epoch=9,
        round=2,
        signers=(b"a" * 20, b"b" * 20),
        signature=signature,
    )
    task, root, packed, signers = contracts.SUBMIT_VALIDATION.decode_input(encode_certificate(certificate, 5))
    assert (task, root, signers) == (3, contracts.certificate_root(certificate), (b"a" * 20, b"b" * 20))
    assert packed[:6] == bytes([1, 2, 2, 0, 0, 5])
    assert (packed[6:14], packed[14:22]) == ((9).to_bytes(8, "big"), (0x0102).to_bytes(8, "big"))
    assert packed[22:] == bls.signature_to_evm(signature)


def log_of(event: evm_events.Event, contract: bytes, topics: int, data: bytes) -> dict[str, Any]:
    return {
        "address": "0x" + contract.hex(),
        "topics": ["0x" + event.topic.hex(), *["0x" + (i + 1).to_bytes(32, "big").hex() for i in range(topics)]],
        "data": "0x" + data.hex(),
        "blockNumber": "0x7",
        "blockHash": "0x" + "11" * 32,
        "transactionHash": "0x" + "22" * 32,
        "logIndex": "0x3",
    }


def test_logs_of_others_and_of_other_kinds_are_passed_over() -> None:
    decoder = evm_events.EventDecoder(DOMAIN, b"j" * 20)
    executed = log_of(evm_events.TASK_EXECUTED, DOMAIN.hub, 3, bytes(32 * 9))
    assert isinstance(decoder.decode(executed), TaskExecuted)
    assert decoder.decode(executed | {"address": "0x" + "99" * 20}) is None
    assert decoder.decode(executed | {"topics": ["0x" + "99" * 32]}) is None
    assert decoder.decode(executed | {"topics": []}) is None
    assert decoder.decode(executed | {"removed": True}) is None


@given(st.integers(0, 4), st.binary(max_size=400))
def test_a_malformed_log_is_the_nodes_fault(topics: int, data: bytes) -> None:
    decoder = evm_events.EventDecoder(DOMAIN, b"j" * 20)
    log = log_of(evm_events.TASK_VALIDATED, DOMAIN.attestation_center, topics, data)
    with contextlib.suppress(Transient):
        assert decoder.decode(log) is not None
