# pragma version 0.4.3
# pragma evm-version prague
"""
@title TriggerGasRegistry
@notice Holds all the ETH of users and of executions: what users deposited, what the hub locked or escrowed, what operators earned.
@dev Only balances are booked here; escrow and credits are booked by the hub. Nobody, the owner of the hub included, can take ETH
     out except a user his own balance, or the hub what it deducted before.
"""

event ETHDeposited:
    user: indexed(address)
    ethAmount: uint256

event ETHWithdrawn:
    user: indexed(address)
    ethAmount: uint256

event ETHBalanceDeducted:
    user: indexed(address)
    amount: uint256

event ETHBalanceCredited:
    user: indexed(address)
    amount: uint256

balances: public(HashMap[address, uint256])
hub: public(immutable(address))


@deploy
def __init__(hub_: address):
    hub = hub_


@external
@payable
def depositETH(ethAmount: uint256):
    """
    @notice Adds wei to the caller's balance; the value sent must equal `ethAmount`.
    """
    assert ethAmount > 0, "ZeroAmount"
    assert msg.value == ethAmount, "WrongAmount"
    self.balances[msg.sender] += ethAmount
    log ETHDeposited(user=msg.sender, ethAmount=ethAmount)


@external
def withdrawETHBalance(ethAmount: uint256):
    """
    @notice Pays wei of the caller's own balance back to him. What the hub has locked is not in the balance.
    """
    assert ethAmount > 0, "ZeroAmount"
    balance: uint256 = self.balances[msg.sender]
    assert balance >= ethAmount, "InsufficientBalance"
    self.balances[msg.sender] = unsafe_sub(balance, ethAmount)
    log ETHWithdrawn(user=msg.sender, ethAmount=ethAmount)
    self._pay(msg.sender, ethAmount)


@external
def deductETHBalance(user: address, ethAmount: uint256):
    """
    @notice Only the hub: takes wei out of a user's balance, into what the hub books.
    """
    assert msg.sender == hub, "NotHub"
    balance: uint256 = self.balances[user]
    assert balance >= ethAmount, "InsufficientBalance"
    self.balances[user] = unsafe_sub(balance, ethAmount)
    log ETHBalanceDeducted(user=user, amount=ethAmount)


@external
def creditETHBalance(user: address, ethAmount: uint256):
    """
    @notice Only the hub: gives back wei that it had deducted.
    """
    assert msg.sender == hub, "NotHub"
    self.balances[user] += ethAmount
    log ETHBalanceCredited(user=user, amount=ethAmount)


@external
def pay(to: address, ethAmount: uint256):
    """
    @notice Only the hub: pays out wei that operators earned.
    """
    assert msg.sender == hub, "NotHub"
    self._pay(to, ethAmount)


@external
@view
def getBalance(user: address) -> uint256:
    return self.balances[user]


@internal
def _pay(to: address, amount: uint256):
    assert raw_call(to, b"", value=amount, revert_on_failure=False), "TransferFailed"
