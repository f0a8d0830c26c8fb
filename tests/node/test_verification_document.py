"""docs/verification.md lists what attesters compare, how exactly, and which reason a difference has: as the code does.

`python -m tests.node.test_verification_document` writes it anew.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from consensus import committee, rules, runs
from consensus.lifecycle import REASONS, SCRIPT_FAULTS
from consensus.messages import Usage
from node.recheck import CONTRADICTIONS
from node.sandbox.port import Limits
from node.verification.tolerances import USAGE_FACTOR, USAGE_SLACK, most_stopped
from p2p.topics import MAX_INLINE_PACKAGE

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT = ROOT / "docs" / "verification.md"

Row = tuple[str, str, str, str, str]
"""What is compared; with what of this keeper's own; how exactly; `no`; `cannot_tell`."""

EXECUTIONS: tuple[Row, ...] = (
    ("digest of the execution", "the hub's record", "exact", "", "WRONG_RECORD"),
    ("committee's level", "the hub's record", "exact", "WRONG_RECORD", ""),
    ("trigger's kind", "the job's type", "exact", "NOT_DUE", ""),
    ("second of a schedule", "interval, cron or moments of the JobSpec", "exact", "NOT_DUE", ""),
    ("time of the block", "the due second, `not_before`", "not before; any later block of the deadline", "NOT_DUE", ""),
    ("script's inputs", "a pinned block with a script, none without", "exact", "WRONG_RECORD", ""),
    ("script's run", "there is one with a script, none without", "exact", "WRONG_SCRIPT", ""),
    ("resource fee", "the formula, on the usage in the package", "exact, to the wei", "WRONG_FEE", ""),
    ("calldata, given", "the JobSpec's function and arguments", "exact", "WRONG_CALL", ""),
    ("calldata, by script", "what the package's output means", "exact", "WRONG_CALL", ""),
    ("an output without a call", "what the package's output means", "exact", "WRONG_OUTPUT", ""),
    ("target", "authorisation, JobSpec, or the output's where both leave it open", "exact", "WRONG_TARGET", ""),
    ("selector, calldata's hash", "the authorisation", "exact where it names one", "WRONG_CALL", ""),
    ("owner, type, life of the job", "the JobRegistry", "exact", "WRONG_RECORD", "RECORD_NOT_FOUND"),
    ("target, interval of the job", "the JobRegistry", "exact", "WRONG_TARGET, NOT_DUE", ""),
    ("transaction: mined in the record's block", "this keeper's RPC", "exact", "", "TRANSACTION_NOT_FOUND"),
    ("transaction: sender, hub, success", "this keeper's RPC", "exact", "WRONG_RECORD", ""),
    (
        "transaction: what the hub was asked",
        "the authorisation: job, task, attempt, terms",
        "exact",
        "WRONG_RECORD, MALFORMED_CALL",
        "",
    ),
    ("transaction: calldata, target, fee", "the package", "exact", "WRONG_CALL, WRONG_TARGET, WRONG_FEE", ""),
    ("gas", "nothing: the hub measures it and caps its price", "whatever the record says", "", ""),
    (
        "log of an event",
        "receipt and block on the event's chain",
        "exact, as deep as its chain asks",
        "EVENT_MISMATCH",
        "EVENT_NOT_FOUND",
    ),
    (
        "condition",
        "its sources, read now",
        "the comparison holds now; `no` only of static values",
        "CONDITION_NOT_MET",
        "CONDITION_NOT_MET, SOURCE_UNREACHABLE, SOURCE_REFUSED, SOURCE_UNUSABLE",
    ),
    ("script", "sha2-256 of the bytes that the CID names", "exact", "WRONG_SCRIPT", "SCRIPT_UNREACHABLE, SCRIPT_MISMATCH"),
    (
        "output without network",
        "the script run again",
        "equal JSON; `metadata` aside; unsteady scripts prove nothing",
        "WRONG_OUTPUT",
        "OUTPUT_DIFFERS, SANDBOX_UNAVAILABLE",
    ),
    ("output with network", "the script run again", "numbers within the script's tolerance", "", "OUTPUT_DIFFERS"),
    (
        "usage of the run",
        "the script run again",
        f"at most {USAGE_FACTOR} times this keeper's, and the slack below",
        "WRONG_FEE",
        "",
    ),
)

RUNS: tuple[Row, ...] = (
    ("fee", "the formula, on the usage shown", "exact, to the wei", "WRONG_FEE", ""),
    ("the task", "the hub has no execution of it", "exact", "ALREADY_EXECUTED", ""),
    (
        "trigger and job",
        "as for executions",
        "as for executions",
        "NOT_DUE, WRONG_RECORD, WRONG_TARGET, EVENT_MISMATCH, CONDITION_NOT_MET",
        "as for executions",
    ),
    (
        "reason",
        "the script run again ends the same way",
        "exact; a limit that this keeper came near to cannot be told",
        "WRONG_OUTPUT",
        "OUTPUT_DIFFERS",
    ),
    (
        "script, output, usage",
        "as for executions",
        "as for executions",
        "WRONG_SCRIPT, WRONG_OUTPUT, WRONG_FEE",
        "OUTPUT_DIFFERS",
    ),
)

REFUSED: tuple[tuple[str, str], ...] = (
    ("SPEC_MISMATCH", "a JobSpec that is not the authorised one"),
    ("SPEC_CONTRADICTS", "job, chain or level differ between JobSpec and authorisation"),
    ("OBSERVATION_CONTRADICTS", "what was seen is of another firing"),
    ("NOT_DISPATCHER", "nobody the hub lists signed the authorisation, or pinned block and storage"),
    ("WRONG_PERFORMER", "published by another keeper than the authorised one"),
    ("WRONG_CALL", "calldata beside the authorised hash"),
    ("WRONG_TARGET", "a target beside the authorised one"),
    ("BAD_SIGNATURE", "a package changed after its performer signed it; a certificate that its committee did not sign"),
    ("WRONG_REASON", "a run ended by what is no script's own doing, or shown of a script that cannot be run"),
    ("INPUTS_CONTRADICT", "a script's task without its signed inputs, or another's with them"),
    ("DUPLICATE_SIGNER", "a certificate that counts somebody twice"),
    ("WRONG_EPOCH", "a certificate of another epoch than the pinned block's"),
    ("NOT_IN_COMMITTEE", "a certificate of signers who hold no seat, or not in draw order"),
    ("NO_QUORUM", "a certificate of too few"),
)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _coded(row: Row) -> Row:
    what, own, how, no, cannot_tell = row
    return what, own, how, _code(no), _code(cannot_tell)


def _code(text: str) -> str:
    return ", ".join(f"`{each}`" if each.isupper() else each for each in text.split(", ")) if text else ""


def document() -> str:
    head = ("what is compared", "with this keeper's own", "exactness", "`no`", "`cannot_tell`")
    slack = USAGE_SLACK
    limits = Limits()
    stopped = most_stopped(Usage(0, 0, 0, 0), limits)
    return f"""# Verification

What a keeper checks before it signs a vote: everything, by its own RPC, its own readings and its own sandbox. It believes
nothing because performer or task say it. `yes`: all of it holds. `no`: a positive contradiction, with its reason.
`cannot_tell`: not found yet, not reachable, or such a difference as honest keepers have; it binds nobody, and the keeper looks
again until the round ends. Cheap checks come first, the script last. Each row is tested in `tests/node`.

## Executions

{_table(head, map(_coded, EXECUTIONS))}
Beside these, `cannot_tell` with the code of whatever was out of reach (`RPC_UNREACHABLE`, `RPC_ERROR`), and `OTHER_OUTCOME` when
this keeper has said `yes` to a report that the task's script asked for no transaction: nobody says `yes` to both.
A package of another execution than the recorded one (`WRONG_RECORD`) says nothing about that one.

## Runs without a transaction

A script that declines or fails by its own doing ends in its performer's signed word, with one of these reasons:
{", ".join(f"`{each}`" for each in sorted(SCRIPT_FAULTS))}.
Its committee is drawn from the hash of the task's pinned block, which the dispatcher signed together
with the script's storage, so that the performer chooses neither. No block records such an end: the {
        runs.ROUNDS
    } rounds are counted from the
authorisation's `not_before`, {
        runs.ROUND_SECONDS
    } seconds each; the first is open earlier, since runs are made ahead of their time. The certificate
goes by gossip, from the first ranks of the committee. Votes here are evidence against nobody.

{_table(head, map(_coded, RUNS))}
## Tolerances

{
        _table(
            ("quantity", "another keeper may claim at most"),
            [
                ("CPU time", f"{USAGE_FACTOR} x own + {slack.cpu_ms} ms"),
                ("wall time", f"{USAGE_FACTOR} x own + {slack.wall_ms} ms"),
                ("peak memory", f"{USAGE_FACTOR} x own + {slack.peak_kib // 1024} MiB"),
                ("traffic", f"{USAGE_FACTOR} x own + {slack.transferred // 1024} KiB"),
                (
                    "any of these, of a run stopped by `SCRIPT_TIMEOUT` or `SCRIPT_MEMORY`",
                    f"or, if that is more, the limits and the slack: {stopped.cpu_ms} ms, {stopped.wall_ms} ms, "
                    f"{stopped.peak_kib // 1024} MiB, {stopped.transferred // 1024} KiB",
                ),
                ("numbers in the output of a script that reads the network", "what its `tolerance` line says, 10 % at most"),
                ("limit said to be broken", f"one that these bounds reach: {limits.wall_s:g} s, {limits.memory >> 20} MiB"),
                ("gas and its price", "any: measured and capped by the hub, never claimed"),
                ("block", "any from the due second to the deadline: the hub refuses others"),
            ],
        )
    }
A limit that the bounds do not reach from this keeper's own run was not broken: `WRONG_OUTPUT`.

## Refused before a vote

What these rules refuse never comes to a vote, and counts against the peer that published it. A package has at most
{
        MAX_INLINE_PACKAGE // 1024
    } KiB in gossip; a larger one is fetched by its CID once the hub's record names its publisher as the performer, and other
bytes than the CID's (`CONTENT_MISMATCH`) are no package.

{_table(("code", "what"), [(f"`{code}`", what) for code, what in REFUSED])}
Pinned blocks lie at most {rules.HISTORY_BLOCKS:,} blocks below the head. A committee of {committee.SIZE_BY_LEVEL[0]} needs {
        committee.yes_quorum(5)
    } `yes` or {committee.no_quorum(5)} `no`.
"""


def _said(folder: Iterable[Path], function: str) -> set[str]:
    """The constant first arguments of calls of `function` in these files."""
    return {
        call.args[0].value
        for path in folder
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == function
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }


def _returned(path: Path, function: str) -> set[str]:
    """The text constants in a function that could be a reason."""
    [body] = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef) and n.name == function]
    constants = {n.value for n in ast.walk(body) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return constants & set(REASONS)


def _listed(column: int) -> set[str]:
    cells = ", ".join(row[column] for row in (*EXECUTIONS, *RUNS))
    return {each for each in cells.split(", ") if each in REASONS}


def test_the_document_lists_what_the_code_has() -> None:
    assert DOCUMENT.read_text() == document(), "python -m tests.node.test_verification_document writes it anew"


def test_every_reason_of_a_no_has_its_row_and_every_row_its_reason() -> None:
    checks = sorted((ROOT / "node" / "verification").glob("*.py"))
    said = _said(checks, "no") | _returned(ROOT / "node" / "executor.py", "unauthorised") | set(CONTRADICTIONS)
    said |= _returned(ROOT / "node" / "scripts" / "comparison.py", "compare") - {"OUTPUT_DIFFERS", *SCRIPT_FAULTS}
    said |= _said([ROOT / "node" / "infra" / "contracts.py"], "Failed")  # of a transaction's input
    assert said == _listed(3)
    assert said <= set(REASONS)


def test_every_reason_why_nothing_can_be_told_has_its_row() -> None:
    checks = sorted((ROOT / "node" / "verification").glob("*.py"))
    assert _said(checks, "cannot_tell") <= _listed(4)


def test_every_refusal_has_its_row() -> None:
    wanted = {
        "check_execution",
        "check_not_executed",
        "check_run_certificate",
        "check_certificate",
        "_check_run",
        "_authorised",
        "job",
    }
    raised: set[str] = set()
    for name in ("rules.py", "runs.py", "messages.py"):
        for node in ast.walk(ast.parse((ROOT / "consensus" / name).read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in wanted:
                raised |= {
                    call.args[0].value
                    for call in ast.walk(node)
                    if isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)
                    and call.func.id == "Reject"
                    and isinstance(call.args[0], ast.Constant)
                }
    assert raised == {code for code, _ in REFUSED}


if __name__ == "__main__":
    DOCUMENT.write_text(document())
