# Type 2: the arguments of ping(uint256) at the second that is due. Here: that second with 18 decimals.
import json
import sys

task = json.load(sys.stdin)
print(json.dumps([task["time"] * 10**18]))
