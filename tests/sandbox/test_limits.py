"""What a script may take: bombs end with the reason named, the node goes on, and the next run is unaffected (see the fixture)."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import pytest
import trio

from node.sandbox.port import Language, Limits, Program, Sandbox, Stopped
from tests.sandbox.conftest import Open
from tests.sandbox.programs import LIMITS, gone, printed, program, run, stopped

MIB = 2**20


async def ended(sandbox: Sandbox, program: Program, limits: Limits) -> tuple[str, bytes]:
    """The code of the limit that it broke, or '' and what it printed."""
    try:
        return "", (await sandbox.run(program, limits)).stdout
    except Stopped as error:
        return error.code, b""


async def test_a_memory_bomb_is_stopped(sandbox: Sandbox) -> None:
    bomb = await stopped(sandbox, "held = []\nwhile True: held.append(bytearray(b'x') * (8 << 20))", memory=128 * MIB)
    assert bomb.code == "SCRIPT_MEMORY"
    assert "128 MiB" in bomb.detail
    assert 96 * 1024 < bomb.usage.peak_kib < 400 * 1024


async def test_memory_is_counted_over_all_processes(sandbox: Sandbox) -> None:
    bomb = await stopped(
        sandbox,
        """
        import os, time
        for _ in range(8):
            if os.fork() == 0:
                held = bytearray(b"x") * (32 << 20)
                time.sleep(60)
        for _ in range(8):
            os.wait()
        time.sleep(60)
        """,
        memory=128 * MIB,
    )
    assert bomb.code == "SCRIPT_MEMORY"


HIDDEN = {
    "shared": "import mmap\ndef take(): return mmap.mmap(-1, 15 << 20)",
    "device": "import mmap, os\ndef take(): return mmap.mmap(os.open('/dev/zero', os.O_RDWR), 15 << 20)",
    "file": "import os\ndef take():\n  fd = os.memfd_create('x')\n  os.ftruncate(fd, 15 << 20)\n  return os.fdopen(fd, 'r+b')",
}


@pytest.mark.parametrize("way", sorted(HIDDEN))
async def test_memory_that_is_in_no_process_is_counted_or_refused(sandbox: Sandbox, way: str) -> None:
    source = f"""{HIDDEN[way]}
held = []
try:
    while len(held) < 40:
        held.append(take())
        held[-1].write(b"x" * (15 << 20))
        held[-1].flush()
except OSError:
    pass
print(len(held))
"""
    code, number = await ended(sandbox, program(source), replace(LIMITS, memory=128 * MIB))
    assert code == "SCRIPT_MEMORY" or int(number) <= 1


async def test_page_tables_are_memory(sandbox: Sandbox) -> None:
    bomb = await stopped(
        sandbox,
        """
        import mmap, time
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
        room = mmap.mmap(-1, 256 << 30, flags=flags, prot=mmap.PROT_READ)
        for at in range(0, len(room), 2 << 20):
            room[at]
        time.sleep(60)
        """,
        memory=128 * MIB,
    )
    assert bomb.code == "SCRIPT_MEMORY"


async def test_memory_is_not_hidden_behind_files_that_are_read_last(sandbox: Sandbox) -> None:
    finished = await run(
        sandbox,
        """
        import os, time
        held = bytearray(b"x") * (200 << 20)
        time.sleep(0.3)
        del held
        read = 0
        for folder, _, names in os.walk("/usr"):
            for name in names:
                place = os.path.join(folder, name)
                if read < 300 << 20 and os.path.isfile(place) and os.access(place, os.R_OK) and not os.path.islink(place):
                    with open(place, "rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                        read += len(file.read(64 << 20))
        print(read >> 20)
        """,
        memory=512 * MIB,
    )
    assert finished.usage.peak_kib >= 190 * 1024


@pytest.mark.parametrize("language", [Language.JAVASCRIPT, Language.GO])
async def test_a_memory_bomb_is_stopped_in_languages_that_collect_garbage(sandbox: Sandbox, language: Language) -> None:
    bombs = {
        Language.JAVASCRIPT: "const held = []; for (;;) held.push(new Array(1e5).fill(held.length + 0.5));",
        Language.GO: "package main\nvar held [][]byte\nfunc main() { for { b := make([]byte, 1<<23); "
        "for i := range b { b[i] = 1 }; held = append(held, b) } }",
    }
    assert (await stopped(sandbox, bombs[language], language, memory=192 * MIB)).code == "SCRIPT_MEMORY"


async def test_a_fork_bomb_has_so_many_processes_and_no_more(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        """
        import os, signal, time
        children = []
        try:
            for _ in range(5000):
                child = os.fork()
                if child == 0:
                    time.sleep(60)
                    os._exit(0)
                children.append(child)
        except OSError:
            pass
        print(len(children))
        """,
        pids=32,
    )
    assert 8 <= int(said) <= 33


async def test_a_fork_bomb_that_never_gives_up_ends_in_time(sandbox: Sandbox) -> None:
    bomb = await stopped(
        sandbox,
        """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """,
        wall_s=2.0,
        pids=32,
    )
    assert bomb.code in {"SCRIPT_TIMEOUT", "SCRIPT_MEMORY"}


async def test_threads_count_as_processes(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        """
        import _thread, time
        started = 0
        try:
            while started < 5000:
                _thread.start_new_thread(time.sleep, (60,))
                started += 1
        except RuntimeError:
            pass
        print(started)
        """,
        pids=24,
    )
    assert 4 <= int(said) <= 25


async def test_a_full_disk_is_the_scripts_own(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        """
        import errno, os, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        written = 0
        for number in range(64):
            try:
                with open(f"/tmp/{number}", "wb", buffering=0) as file:
                    while True:
                        written += file.write(b"x" * 65536)
            except OSError as error:
                last = error.errno
        print(written, last in (errno.ENOSPC, errno.EFBIG))
        """,
        files=8 * MIB,
    )
    written, named = said.split()
    assert 7 * MIB <= int(written) <= 8 * MIB
    assert named == "True"


async def test_files_without_number_end_the_run_or_the_room(sandbox: Sandbox) -> None:
    made = """
        import os
        number = 0
        try:
            while number < 3_000_000:
                os.close(os.open(f"/tmp/{number}", os.O_CREAT))
                number += 1
        except OSError:
            pass
        print(number)
        """
    code, number = await ended(sandbox, program(made), replace(LIMITS, wall_s=5.0, memory=96 * MIB))
    assert code in {"SCRIPT_MEMORY", "SCRIPT_TIMEOUT"} or int(number) < 1_000_000


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(3600)",
        "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, 1)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
    ],
    ids=["busy", "asleep", "deaf to signals"],
)
async def test_an_endless_run_is_stopped(sandbox: Sandbox, source: str) -> None:
    loop = await stopped(sandbox, f"print('so far', flush=True)\n{source}", wall_s=1.0)
    assert loop.code == "SCRIPT_TIMEOUT"
    assert "1 s" in loop.detail
    assert "so far" in loop.detail
    assert loop.usage.wall_ms >= 950


async def test_endless_output_is_stopped_and_quoted(sandbox: Sandbox) -> None:
    loop = await stopped(sandbox, "while True: print('all work and no play')")
    assert loop.code == "SCRIPT_OUTPUT"
    assert "no play" in loop.detail
    assert len(loop.detail) < 2000


async def test_output_of_just_the_limit_is_taken(sandbox: Sandbox) -> None:
    assert len(await printed(sandbox, "print('x' * 4096, end='')", stdout=4096)) == 4096
    assert (await stopped(sandbox, "print('x' * 4096)", stdout=4096)).code == "SCRIPT_OUTPUT"


async def test_endless_complaints_are_cut_off_and_the_run_goes_on(sandbox: Sandbox) -> None:
    finished = await run(
        sandbox, "import sys\nfor _ in range(100_000): sys.stderr.write('all work and no play\\n')\nprint('done')", stderr=1000
    )
    assert (finished.exit_code, finished.stdout) == (0, b"done\n")
    assert finished.stderr[:8] in (b"all work", b"no play\n"[:8]) or b"no play" in finished.stderr
    assert len(finished.stderr) <= 1000


async def test_complaining_for_ever_ends_in_time(sandbox: Sandbox) -> None:
    assert (await stopped(sandbox, "import sys\nwhile True: sys.stderr.write('x' * 65536)", wall_s=1.0)).code == "SCRIPT_TIMEOUT"


async def test_a_zip_bomb_as_a_script_ends_with_a_reason(sandbox: Sandbox) -> None:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("__main__.py", "w") as file,  # what Python runs when it is given an archive
    ):
        for _ in range(1000):
            file.write(b" " * MIB)
        file.write(b"\nprint('unpacked')")
    bomb = packed.getvalue()
    assert len(bomb) < MIB
    assert await sandbox.check(Language.PYTHON, bomb) != ""
    code, said = await ended(sandbox, Program(Language.PYTHON, bomb), replace(LIMITS, memory=256 * MIB))
    assert code in {"SCRIPT_MEMORY", ""}
    assert said == b""


async def test_the_largest_source_runs(sandbox: Sandbox) -> None:
    source = b"#" * (MIB - 9) + b"\nprint(1)"
    assert len(source) == MIB
    assert await sandbox.check(Language.PYTHON, source) == ""
    assert (await sandbox.run(Program(Language.PYTHON, source), LIMITS)).stdout == b"1\n"


@pytest.mark.parametrize("language", list(Language))
async def test_a_source_that_breaks_parsers_is_refused_in_words(sandbox: Sandbox, language: Language) -> None:
    nested = {
        Language.PYTHON: b"x = " + b"(" * 200_000,
        Language.JAVASCRIPT: b"x = " + b"[" * 200_000,
        Language.TYPESCRIPT: b"const x = " + b"[" * 200_000,
        Language.GO: b"package main\nvar x = " + b"(" * 200_000,
    }[language]
    for source in (nested, b"\0" * 1000, b"\xff\xfe\xfd"):
        words = await sandbox.check(language, source)
        assert words or (language in (Language.TYPESCRIPT, Language.JAVASCRIPT) and source != nested)
        assert len(words) < 2000


async def test_a_child_does_not_outlive_its_run(sandbox: Sandbox) -> None:
    mark = "suite-outliver-7731"
    with trio.fail_after(60):
        finished = await sandbox.run(
            program(
                """
                import os, time
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        print("the child holds stdout", flush=True)
                        time.sleep(3600)
                    os._exit(0)
                os.wait()
                print("the parent ends")
                """,
                environment={"TRIGGERX_MARK": mark},
            ),
            replace(LIMITS, wall_s=50.0),
        )
    assert b"the parent ends\n" in finished.stdout
    assert finished.exit_code == 0
    assert gone(mark)


async def test_cancelling_kills_everything_whenever_it_comes(open_sandbox: Open) -> None:
    mark = "suite-cancelled-7732"
    source = program(
        """
        import os, time
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
        time.sleep(3600)
        """,
        environment={"TRIGGERX_MARK": mark},
    )
    async with open_sandbox() as sandbox:
        for milliseconds in (0, 1, 3, 10, 20, 30, 45, 70, 110, 200, 400):
            with trio.move_on_after(milliseconds / 1000) as scope:
                await sandbox.run(source, LIMITS)
            assert scope.cancelled_caught
        assert (await sandbox.run(program("print('still here')"), LIMITS)).stdout == b"still here\n"
    assert gone(mark)


async def test_what_a_run_used_is_told(sandbox: Sandbox) -> None:
    finished = await run(
        sandbox,
        """
        import os, time
        held = bytearray(b"x") * (100 << 20)
        if os.fork() == 0:
            until = time.process_time() + 0.4
            while time.process_time() < until:
                pass
            os._exit(0)
        os.wait()
        time.sleep(0.2)
        """,
    )
    usage = finished.usage
    assert 380 <= usage.cpu_ms < 3000
    assert usage.wall_ms >= 550
    assert 100 * 1024 <= usage.peak_kib < 200 * 1024
    assert usage.transferred == 0


async def test_more_runs_than_places_wait_their_turn(sandbox: Sandbox) -> None:
    said: list[bytes] = []

    async def one(number: int) -> None:
        said.append((await sandbox.run(program(f"print({number})"), LIMITS)).stdout)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(one, number)
    assert sorted(said) == [b"%d\n" % number for number in range(6)]


async def test_the_machine_goes_on_while_scripts_do_their_worst(sandbox: Sandbox) -> None:
    """The loop is never held up for long."""
    longest = 0.0
    stop = trio.CancelScope()

    async def listen() -> None:
        nonlocal longest
        with stop:
            while True:
                before = trio.current_time()
                await trio.sleep(0.01)
                longest = max(longest, trio.current_time() - before)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        for source in ("while True: print('x' * 1000)", "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"):
            try:
                await sandbox.run(program(source), Limits(wall_s=1.0))
            except Stopped:
                continue
        stop.cancel()
    assert longest < 2.0
