"""A process that shares the store's file with others: `python -m tests.coordinator.store_process FILE JOBS SECONDS`.

Fires each of the jobs 1..JOBS at each of SECONDS seconds, a transaction a second, and prints a line with the number of tasks
that were new after each that was acknowledged.
"""

from __future__ import annotations

import sys

import trio

from coordinator.store.records import Fired, Firing
from coordinator.store.sqlite import open_store
from tests.coordinator.factory import FENCES, START, make_job, make_task


async def main(path: str, jobs: int, seconds: int) -> None:
    async with open_store(path) as store:
        for second in range(START + 1, START + seconds + 1):
            firings = [Firing(i, make_task(make_job(i), second), second + 1) for i in range(1, jobs + 1)]
            answers = await store.fire(firings, START, FENCES)
            print(answers.count(Fired.NEW), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
