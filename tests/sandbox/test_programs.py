"""What programs print is what comes out, in every language, whatever it is."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import trio

from consensus.errors import Failed
from node.sandbox.port import Language, Limits, Program, Sandbox
from tests.infra.web import open_web, reply
from tests.sandbox.programs import LIMITS, printed, program, run

BIG = 2**256 - 1
PRINTING = {
    Language.PYTHON: "import json, os, sys\ngiven = json.load(sys.stdin)\n"
    "print(json.dumps([2**256 - 1, given['storage']['n'], os.environ['TRIGGERX_JOB_ID']]))",
    Language.JAVASCRIPT: "const given = JSON.parse(require('fs').readFileSync(0));\n"
    "console.log(`[${2n ** 256n - 1n}, ${JSON.stringify(given.storage.n)}, ${JSON.stringify(process.env.TRIGGERX_JOB_ID)}]`);",
    Language.TYPESCRIPT: "import { readFileSync } from 'node:fs';\nenum Base { Two = 2 }\n"
    "interface Given { storage: { n: number } }\n"
    "const given: Given = JSON.parse(readFileSync(0, 'utf8'));\n"
    "console.log(`[${BigInt(Base.Two) ** 256n - 1n}, ${given.storage.n}, ${JSON.stringify(process.env.TRIGGERX_JOB_ID)}]`);",
    Language.GO: 'package main\nimport ("encoding/json"; "fmt"; "math/big"; "os")\nfunc main() {\n'
    "var given struct{ Storage struct{ N int } }\nif err := json.NewDecoder(os.Stdin).Decode(&given); err != nil { panic(err) }\n"
    "one := big.NewInt(1)\nbig := new(big.Int).Sub(new(big.Int).Lsh(one, 256), one)\n"
    'fmt.Printf("[%s, %d, %q]\\n", big, given.Storage.N, os.Getenv("TRIGGERX_JOB_ID"))\n}',
}


@pytest.mark.parametrize("language", list(Language))
async def test_each_language_reads_its_input_and_prints_large_numbers_whole(sandbox: Sandbox, language: Language) -> None:
    assert language in sandbox.languages
    source = PRINTING[language]
    assert await sandbox.check(language, source.encode()) == ""
    for _ in range(2):  # built anew, and what was built
        finished = await sandbox.run(
            program(source, language, stdin=b'{"storage": {"n": 41}}', environment={"TRIGGERX_JOB_ID": "12"}), LIMITS
        )
        assert (finished.exit_code, finished.stdout) == (0, f'[{BIG}, 41, "12"]\n'.encode()), finished.stderr
        assert finished.usage.cpu_ms > 0
        assert finished.usage.peak_kib > 0


@pytest.mark.parametrize(
    ("language", "source"),
    [
        (Language.PYTHON, "def f(:\n  pass"),
        (Language.JAVASCRIPT, "function ( {"),
        (Language.TYPESCRIPT, "let x: = 3"),
        (Language.GO, "package main\nfunc main() { x }"),
        (Language.GO, 'package main\nimport "github.com/somebody/something"\nfunc main() { something.Do() }'),
        (Language.GO, 'package main\nimport "C"\nfunc main() {}'),
        (Language.GO, "package other\nfunc main() {}"),
    ],
)
async def test_wrong_syntax_is_told_without_running_anything(sandbox: Sandbox, language: Language, source: str) -> None:
    assert len(await sandbox.check(language, source.encode())) > 8


@pytest.mark.parametrize(
    ("language", "source"),
    [
        (Language.PYTHON, "import time\nwhile True: time.sleep(1)"),
        (Language.JAVASCRIPT, "import fs from 'node:fs'; await new Promise(() => setInterval(() => {}, 1000))"),
        (Language.JAVASCRIPT, "const fs = require('fs'); while (true) {}"),
        (Language.TYPESCRIPT, "while (true) {}"),
        (Language.GO, "package main\nfunc init() { for {} }\nfunc main() {}"),
    ],
)
async def test_checking_runs_nothing(sandbox: Sandbox, language: Language, source: str) -> None:
    with trio.fail_after(60):
        assert await sandbox.check(language, source.encode()) == ""


async def test_a_script_that_cannot_be_built_fails_in_words(sandbox: Sandbox) -> None:
    finished = await run(sandbox, "package main\nfunc main() { x }", Language.GO)
    assert finished.exit_code != 0
    assert b"undefined: x" in finished.stderr


@pytest.mark.parametrize("code", [0, 1, 3, 100, 255])
async def test_exit_codes_come_out(sandbox: Sandbox, code: int) -> None:
    finished = await run(sandbox, f"import sys; print('said'); sys.exit({code})")
    assert (finished.exit_code, finished.stdout) == (code, b"said\n")


@pytest.mark.parametrize("signal", [6, 9, 11, 15])
async def test_a_signal_is_a_negative_exit_code(sandbox: Sandbox, signal: int) -> None:
    finished = await run(sandbox, f"import os; print('said', flush=True); os.kill(os.getpid(), {signal})")
    assert (finished.exit_code, finished.stdout, finished.stderr) == (-signal, b"said\n", b"")


async def test_a_traceback_is_on_stderr(sandbox: Sandbox) -> None:
    finished = await run(sandbox, "print('so far'); 1 / 0")
    assert (finished.exit_code, finished.stdout) == (1, b"so far\n")
    assert b"ZeroDivisionError" in finished.stderr


async def test_output_is_bytes(sandbox: Sandbox) -> None:
    finished = await run(
        sandbox, "import sys; sys.stdout.buffer.write(bytes(range(256)) * 16); sys.stderr.buffer.write(b'\\xff\\0')"
    )
    assert (finished.stdout, finished.stderr) == (bytes(range(256)) * 16, b"\xff\0")


async def test_a_large_input_is_read_whole(sandbox: Sandbox) -> None:
    given = bytes(range(256)) * (8 * 4096)
    finished = await sandbox.run(
        program(
            "import hashlib, sys; given = sys.stdin.buffer.read(); print(len(given), hashlib.sha256(given).hexdigest())",
            stdin=given,
        ),
        LIMITS,
    )
    assert finished.stdout.decode().split() == [str(8 * 2**20), hashlib.sha256(given).hexdigest()]


async def test_an_input_that_nobody_reads_holds_nothing_up(sandbox: Sandbox) -> None:
    for source in ("print('done')", "import sys; sys.stdin.close(); print('done')"):
        finished = await sandbox.run(program(source, stdin=b"x" * (8 * 2**20)), LIMITS)
        assert finished.stdout == b"done\n"


async def test_a_script_that_closes_its_output_ends_well(sandbox: Sandbox) -> None:
    finished = await run(sandbox, "import os, time; print('said', flush=True); os.close(1); os.close(2); time.sleep(0.2)")
    assert (finished.exit_code, finished.stdout) == (0, b"said\n")


async def test_sets_have_the_same_order_at_every_keeper(sandbox: Sandbox) -> None:
    source = "print(*{str(number) for number in range(40)})"
    assert await printed(sandbox, source) == await printed(sandbox, source)


async def test_scripts_have_the_standard_library_alone(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        """
        import os, sys
        from importlib.util import find_spec
        print([name for name in ("pip", "setuptools", "yaml", "trio") if find_spec(name)], "" in sys.path, os.getcwd())
        """,
    )
    assert said == "[] False /tmp\n"


async def test_time_is_utc_and_text_is_utf8(sandbox: Sandbox) -> None:
    said = await printed(sandbox, "import sys, time; print(time.tzname[0], time.timezone, sys.stdout.encoding, 'ß', end='')")
    assert said == "UTC 0 utf-8 ß"


FETCHING = {
    Language.PYTHON: "import sys, urllib.request\n"
    "def get(url):\n  try:\n    return urllib.request.urlopen(url, timeout=10).read().decode()\n"
    "  except OSError: return 'refused'\n"
    "print(get('http://api.example.com:PORT/price'), get('http://other.example.com:PORT/price'), get('http://127.0.0.1:PORT/price'))",
    Language.JAVASCRIPT: "const get = (url) => fetch(url).then((r) => r.ok ? r.text() : 'refused', () => 'refused');\n"
    "Promise.all(['api.example.com', 'other.example.com', '127.0.0.1'].map((h) => get(`http://${h}:PORT/price`)))"
    ".then((all) => console.log(all.join(' ')));",
    Language.GO: 'package main\nimport ("fmt"; "io"; "net/http")\nfunc get(host string) string {\n'
    'answer, err := http.Get("http://" + host + ":PORT/price")\nif err != nil || answer.StatusCode != 200 { return "refused" }\n'
    "defer answer.Body.Close()\nbody, _ := io.ReadAll(answer.Body)\nreturn string(body)\n}\n"
    'func main() { fmt.Println(get("api.example.com"), get("other.example.com"), get("127.0.0.1")) }',
}


@pytest.mark.parametrize("language", list(FETCHING))
async def test_declared_hosts_are_reached_and_no_others(sandbox: Sandbox, language: Language) -> None:
    async with open_web() as web:
        web.replies["/price"] = reply(b"42")
        source = FETCHING[language].replace("PORT", str(web.port))
        finished = await sandbox.run(program(source, language, hosts=(f"api.example.com:{web.port}",)), LIMITS)
    assert (finished.exit_code, finished.stdout) == (0, b"42 refused refused\n"), finished.stderr
    assert 100 < finished.usage.transferred < 4096


async def test_a_host_that_is_none_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(Failed) as refused:
        await sandbox.run(program("print(1)", hosts=("no host/at all",)), LIMITS)
    assert refused.value.code == "SCRIPT_INVALID"


async def test_a_language_that_is_not_there_is_a_reason_to_ask_another_keeper(sandbox: Sandbox) -> None:
    assert sandbox.languages <= set(Language)
    assert sandbox.name in {"embedded", "docker"}
    finished = await sandbox.run(Program(Language.PYTHON, b""), replace(Limits(), wall_s=30.0))
    assert finished.exit_code == 0


@pytest.mark.parametrize(
    "given", [{"A": "x\0--bind\0/\0/tmp/host"}, {"A\0B": "x"}, {"A=B": "x"}, {"": "x"}, {"A": "\ud800"}, {"A": "x" * 130_000}]
)
async def test_a_variable_that_is_none_is_refused(sandbox: Sandbox, given: dict[str, str]) -> None:
    with pytest.raises(Failed) as refused:
        await sandbox.run(program("print(1)", environment=given), LIMITS)
    assert refused.value.code == "SCRIPT_INVALID"


async def test_a_variable_may_be_long_and_of_any_text(sandbox: Sandbox) -> None:
    given = {"TRIGGERX_STORAGE": "ß" + "x" * 100_000}
    finished = await sandbox.run(program("import os; print(len(os.environb[b'TRIGGERX_STORAGE']))", environment=given), LIMITS)
    assert finished.stdout == b"100002\n"
