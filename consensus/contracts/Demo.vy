# pragma version 0.4.3
# pragma evm-version prague
"""
@title Demo
@notice A target to try a job on: counts its calls and remembers the last.
"""

event Pinged:
    value: uint256
    count: uint256

count: public(uint256)
lastValue: public(uint256)
lastCaller: public(address)
countOf: public(HashMap[uint256, uint256])


@external
def ping(value_: uint256):
    self.count += 1
    self.lastValue = value_
    self.lastCaller = msg.sender
    self.countOf[value_] += 1
    log Pinged(value=value_, count=self.count)


@external
def fail():
    """
    @notice Always reverts: an execution that is recorded as a failure.
    """
    raise "DemoFailed"
