# Type 4: the arguments of ping(uint256) for an event. Here: the first word of its data, in full.
import json
import sys

event = json.load(sys.stdin)["event"]
print(json.dumps([int(event["data"][2:66], 16)]))
