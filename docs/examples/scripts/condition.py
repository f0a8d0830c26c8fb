# Type 6: the arguments of ping(uint256) when a condition came true. Here: how often it has.
import os

print(f"[{os.environ['TRIGGERX_TRIGGER_ID']}]")
