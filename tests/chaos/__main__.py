"""`python -m tests.chaos`: one storm, by seed; says what it killed, what was due, and what became of it."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

import trio

from cli.devnet.screen import quiet_logs
from tests.chaos.storm import Options, run


def main() -> int:
    """Exit code 0 when everything due executed once and nothing else did."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="decides jobs and kills (default: any)")
    parser.add_argument("--seconds", type=int, default=60, help="how long processes are killed")
    parser.add_argument("--jobs", type=int, default=40, help="how many jobs")
    parser.add_argument("--keepers", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="folder for logs and stores, kept; unset, a temporary one kept after a failure")
    arguments = parser.parse_args()
    quiet_logs()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="triggerx-chaos-"))
    options = Options(folder, arguments.seed, arguments.seconds, arguments.jobs, arguments.keepers)
    print(f"chaos with seed {options.seed}; files in {folder}", flush=True)
    result = trio.run(run, options, lambda text: print(text, flush=True))
    print("\n".join(result.lines(options)))
    if result.audit.clean and arguments.keep is None:
        shutil.rmtree(folder)
    return 0 if result.audit.clean else 1


if __name__ == "__main__":
    sys.exit(main())
