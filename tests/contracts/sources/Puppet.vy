# pragma version 0.4.3
# pragma evm-version prague
"""
@title Puppet
@notice Does one call that a test armed it with: when it is poked, and again whenever ETH reaches it. Remembers the answer.
"""

to: address
data: Bytes[2048]
calls: public(uint256)
ok: public(bool)
answer: public(Bytes[512])


@external
@payable
def __default__():
    self._act()


@external
def arm(to: address, data: Bytes[2048]):
    self.to = to
    self.data = data


@external
def poke():
    self._act()


@external
@payable
def do(to: address, data: Bytes[2048]):
    """
    @notice A call in the puppet's own name, with the ETH sent along.
    """
    raw_call(to, data, value=msg.value)


@internal
def _act():
    self.calls += 1
    if self.to == empty(address):
        return
    ok: bool = False
    answer: Bytes[512] = b""
    ok, answer = raw_call(self.to, self.data, max_outsize=512, revert_on_failure=False)
    self.ok = ok
    self.answer = answer
