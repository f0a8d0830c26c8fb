"""Wire bytes and signed digests as the golden file holds them: a change here breaks keepers that run an older version.

`python -m tests.consensus.test_golden` rewrites the file; do so only together with a new wire version.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consensus import committee, merkle
from consensus.codec import keccak, pin_hash, task_id
from consensus.events import firing_id
from consensus.messages import (
    Acknowledgement,
    CheckIn,
    Execution,
    JobSpec,
    NotExecuted,
    PackageReference,
    Refusal,
    RunCertificate,
    Task,
    Vote,
    Wire,
    spec_cid,
    spec_digest,
)
from tests.consensus import samples

_FILE = Path(__file__).parent.parent / "golden" / "consensus.json"

WIRE: dict[str, tuple[type[Wire], Wire]] = {
    "JobSpec": (JobSpec, samples.SPEC),
    "JobSpec of an event": (JobSpec, samples.EVENT_SPEC),
    "JobSpec of a condition": (JobSpec, samples.CONDITION_SPEC),
    "Task": (Task, samples.task()),
    "Task of an event": (Task, samples.event_task()),
    "Task of a condition": (Task, samples.condition_task()),
    "JobSpec of a script": (JobSpec, samples.CUSTOM_SPEC),
    "Task of a script": (Task, samples.script_task()),
    "Execution": (Execution, samples.execution()),
    "Execution of a script": (Execution, samples.execution(samples.script_task(), target=b"\x66" * 20, run=samples.RUN)),
    "PackageReference": (PackageReference, samples.PACKAGE_REFERENCE),
    "NotExecuted": (NotExecuted, samples.not_executed()),
    "NotExecuted without a run": (NotExecuted, samples.not_executed(code="SCRIPT_INVALID", run=None)),
    "RunCertificate": (RunCertificate, samples.run_certificate()),
    "Acknowledgement": (Acknowledgement, samples.acknowledgement()),
    "CheckIn": (CheckIn, samples.check_in()),
    "Vote": (Vote, samples.VOTE),
    "Refusal": (Refusal, samples.REFUSAL),
}


def digests() -> dict[str, str]:
    auth, domain = samples.authorisation(), samples.DOMAIN
    leaves = [merkle.leaf(i, keccak(bytes([i])), 1) for i in range(5)]
    block_hash = keccak(b"block")
    return {
        "task_id": hex(task_id(auth.job_id, auth.trigger_id)),
        "firing_of_a_log": hex(firing_id(1, samples.LOG.transaction, samples.LOG.position)),
        "authorisation": domain.hub_digest(auth.struct_hash()).hex(),
        "acknowledgement": domain.hub_digest(Acknowledgement.struct_hash(auth, samples.NOW)).hex(),
        "package": domain.hub_digest(Execution.struct_hash(auth, b"\x77" * 32, auth.target, samples.CALL, 9, None)).hex(),
        "package_of_a_script": domain.hub_digest(
            Execution.struct_hash(auth, b"\x77" * 32, auth.target, samples.CALL, 9, samples.RUN)
        ).hex(),
        "run": samples.RUN.digest().hex(),
        "inputs": domain.hub_digest(Task.inputs_hash(auth, samples.PINNED, '{"n": 1}')).hex(),
        "not_executed": samples.not_executed().digest().hex(),
        "check_in": domain.hub_digest(CheckIn.struct_hash(samples.PEER, "0.1.0", "embedded", samples.NOW)).hex(),
        "attestation": domain.attestation_digest(b"\xaa" * 32, 1234, 5, 2).hex(),
        "possession": domain.possession_digest(b"\xbb" * 128, b"\xcc" * 20).hex(),
        "pin": pin_hash(auth.target, auth.selector, auth.call_hash, auth.spec).hex(),
        "leaf": leaves[0].hex(),
        "root_of_5": merkle.root(leaves).hex(),
        "spec_cid": spec_cid(spec_digest(samples.SPEC.encode())),
        "draw": " ".join(map(str, committee.draw(committee.seed(block_hash, 0), [0, 1, 1, 2, 3, 4, 5, 5, 6], 5))),
        "redraw": " ".join(map(str, committee.draw(committee.seed(block_hash, 2), [0, 1, 1, 2, 3, 4, 5, 5, 6], 5))),
    }


def current() -> dict[str, dict[str, str]]:
    return {"wire": {name: message.encode().hex() for name, (_, message) in WIRE.items()}, "digests": digests()}


@pytest.mark.parametrize("name", WIRE)
def test_a_message_has_the_bytes_of_the_golden_file(name: str) -> None:
    kind, message = WIRE[name]
    golden = json.loads(_FILE.read_text())["wire"][name]
    assert message.encode().hex() == golden
    assert kind.decode(bytes.fromhex(golden)) == message


def test_digests_are_those_of_the_golden_file() -> None:
    assert digests() == json.loads(_FILE.read_text())["digests"]


if __name__ == "__main__":
    _FILE.write_text(json.dumps(current(), indent=1) + "\n")
