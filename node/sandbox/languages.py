"""How each language's scripts are checked, built and run inside a sandbox: the command lines that both adapters use.

A script is one file in `FOLDER`. Go and TypeScript are built first, in a sandbox of their own; what is built is printed on stdout
and kept by the script's hash, and its cost is no part of the run's usage: a keeper that has it already must not be cheaper.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType
from typing import Final

from consensus.errors import Failed
from node.sandbox.port import Language, Limits

FOLDER: Final = "/script"
"""Where the script, or what was built of it, lies inside, read-only."""

BUILDING: Final = Limits(
    cpus=2.0, wall_s=60.0, memory=1024 * 1024 * 1024, pids=128, files=128 * 1024 * 1024, stdout=48 * 1024 * 1024, stderr=16 * 1024
)
"""What building or checking one script may take."""

ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "HOME": "/tmp",  # noqa: S108 - the sandbox's own, gone afterwards
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",  # sets iterate alike at every keeper
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUTF8": "1",
        "TMPDIR": "/tmp",  # noqa: S108
        "TZ": "UTC",
    }
)
"""The whole environment of a program, beside what it is given and what egress adds."""

_CHECK_PYTHON = """
import sys
try:
    compile(open(sys.argv[1], "rb").read(), "script", "exec", dont_inherit=True)
except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""

_BUILD_GO = """
"$1" -p main -complete -trimpath /script -importcfg "$3" -o /tmp/main.a /script/main.go >&2 || exit 1
"$2" -s -w -importcfg "$3.link" -o /tmp/main /tmp/main.a >&2 || exit 1
exec cat /tmp/main
"""


_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_MAX_VARIABLE = 120 * 1024  # the kernel takes 128 KiB, with the name


@dataclass(frozen=True, slots=True)
class Tools:
    """Where the programs lie inside the sandbox; None for what is missing."""

    python: str | None = None
    node: str | None = None
    esbuild: str | None = None
    go_compile: str | None = None
    """`go tool -n compile`."""
    go_link: str | None = None
    """`go tool -n link`."""
    go_importcfg: str | None = None
    """Lists the packages of Go's compiled standard library that may be imported: lines `packagefile PATH=FILE`. Beside it lies a
    file with `.link` to its name, which lists all."""

    def missing(self, language: Language) -> str:
        """What is missing for a language, in words; '' when nothing is."""
        match language:
            case Language.PYTHON:
                return "" if self.python else "python3 is not installed"
            case Language.JAVASCRIPT:
                return "" if self.node else "Node.js (20.19 or newer) is not installed"
            case Language.TYPESCRIPT:
                return self.missing(Language.JAVASCRIPT) or (
                    "" if self.esbuild else "esbuild is not installed: npm install -g esbuild"
                )
            case Language.GO:
                return "" if self.go_compile and self.go_link and self.go_importcfg else "Go is not installed"

    @property
    def languages(self) -> frozenset[Language]:
        return frozenset(language for language in Language if not self.missing(language))


def source_name(language: Language) -> str:
    """The script's file in `FOLDER`."""
    return f"main.{language.value}"


def built_name(language: Language) -> str | None:
    """The file in `FOLDER` that is run in place of the source; None where the source is run."""
    match language:
        case Language.GO:
            return "main"
        case Language.TYPESCRIPT:
            return "main.js"
        case Language.PYTHON | Language.JAVASCRIPT:
            return None


def run_command(language: Language, tools: Tools, limits: Limits) -> list[str]:
    """Runs the script, or what was built of it."""
    file = f"{FOLDER}/{built_name(language) or source_name(language)}"
    match language:
        case Language.PYTHON:
            return [_there(tools.python), "-s", "-B", file]
        case Language.JAVASCRIPT | Language.TYPESCRIPT:
            # V8 sizes its heap by the machine's memory unless told: three quarters are the heap, the rest is everything else.
            heap = max(16, limits.memory * 3 // 4 // 2**20)
            return [_there(tools.node), f"--max-old-space-size={heap}", file]
        case Language.GO:
            return [file]


def build_command(language: Language, tools: Tools) -> list[str]:
    """Prints on stdout what is run; exit code 1 and words on stderr where the script is wrong."""
    match language:
        case Language.TYPESCRIPT:
            command = [_there(tools.esbuild), f"{FOLDER}/{source_name(language)}", "--platform=node", "--target=node20"]
            return [*command, "--log-limit=3", "--color=false", "--tsconfig-raw={}"]
        case Language.GO:
            go = [_there(each) for each in (tools.go_compile, tools.go_link, tools.go_importcfg)]
            return ["/bin/sh", "-c", _BUILD_GO, "build", *go]
        case Language.PYTHON | Language.JAVASCRIPT:
            raise AssertionError(f"{language.name} is not built")


def check_command(language: Language, tools: Tools) -> list[str]:
    """Exit code 0 when the syntax is right, otherwise words on stderr. Go and TypeScript are checked by building them."""
    file = f"{FOLDER}/{source_name(language)}"
    match language:
        case Language.PYTHON:
            return [_there(tools.python), "-s", "-B", "-c", _CHECK_PYTHON, file]
        case Language.JAVASCRIPT:
            return [_there(tools.node), "--check", file]
        case Language.TYPESCRIPT | Language.GO:
            return build_command(language, tools)


def environment(limits: Limits, given: Mapping[str, str]) -> dict[str, str]:
    """All variables of a run without egress; what is given never hides the sandbox's own.

    Raises `Failed` SCRIPT_INVALID for what is given and cannot be a variable.
    """
    for name, value in given.items():
        text = value.encode("utf-8", "replace")
        if not _VARIABLE.fullmatch(name) or "\0" in value or len(text) > _MAX_VARIABLE or text.decode() != value:
            raise Failed(
                "SCRIPT_INVALID", f"the variable {name[:64]!r} is no text of at most {_MAX_VARIABLE} bytes without a NUL"
            )
    threads = str(max(1, ceil(limits.cpus)))
    return {**given, **ENVIRONMENT, "GOMAXPROCS": threads, "UV_THREADPOOL_SIZE": threads}


def out_of_heap(language: Language, exit_code: int, stderr: bytes) -> bool:
    """Whether a program ended because its language's run time found its heap full, before the kernel did."""
    if exit_code == 0:
        return False
    match language:
        case Language.JAVASCRIPT | Language.TYPESCRIPT:
            return b"JavaScript heap out of memory" in stderr
        case Language.PYTHON:
            return stderr.rstrip().rsplit(b"\n", 1)[-1].startswith(b"MemoryError")
        case Language.GO:
            return b"fatal error: runtime: out of memory" in stderr or b"runtime: cannot allocate memory" in stderr


class Built:
    """What was built, by language and source: at most `size` bytes, the least used forgotten first."""

    def __init__(self, size: int = 128 * 1024 * 1024) -> None:
        self._size = size
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0

    @staticmethod
    def key(language: Language, source: bytes) -> bytes:
        return hashlib.sha256(language.value.encode() + b"\0" + source).digest()

    def get(self, key: bytes) -> bytes | None:
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: bytes, built: bytes) -> None:
        if len(built) > self._size:
            return
        self._bytes += len(built) - len(self._held.pop(key, b""))
        self._held[key] = built
        while self._bytes > self._size:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= len(dropped)


def _there(tool: str | None) -> str:
    assert tool is not None, "asked only for languages that are there"
    return tool
