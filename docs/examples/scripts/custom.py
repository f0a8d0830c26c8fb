# Type 7: decides itself. Counts its runs in the job's storage, and calls ping(runs) every second time.
import json
import sys

TARGET = "0x7777777777777777777777777777777777777777"
PING = "0x773acdef"  # the selector of ping(uint256)

task = json.load(sys.stdin)
runs = int(task["storage"].get("runs", 0)) + 1
due = runs % 2 == 0
print(f"run {runs}", file=sys.stderr)  # for people: only stdout is the result
print(
    json.dumps(
        {
            "shouldExecute": due,
            "targetContract": TARGET,
            "calldata": PING + f"{runs:064x}",
            "metadata": {"timestamp": task["time"], "reason": f"run {runs} is {'even' if due else 'odd'}"},
            "storageUpdates": {"runs": runs},
        }
    )
)
