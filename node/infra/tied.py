"""Child processes that do not outlive us, however we end."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Runs between fork and the program: the kernel kills it when the thread that started it ends, however that happens
# (prctl(PR_SET_PDEATHSIG) outlives exec). A program instead of preexec_fn, which may deadlock in a threaded process.
_TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def tied_to_this_process(command: Sequence[str]) -> list[str]:
    """A command that runs `command` and gets SIGKILL when the calling thread ends: start it from a thread that stays."""
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]
