# pragma version 0.4.3
# pragma evm-version prague
"""
@title SafeModule
@notice Lets the jobs of a Safe's owner act for that Safe, and nobody else's. The ABI of execJobFromHub is the public SDK's.
@dev A Safe's owners enable it (`enableModule`); the SafeFactory's Safes have it from the start. It holds nothing and has no owner.
"""

interface Hub:
    def currentJobOwner() -> address: view

interface Safe:
    def isOwner(owner: address) -> bool: view
    def getThreshold() -> uint256: view
    def isModuleEnabled(module: address) -> bool: view
    def enableModule(module: address): nonpayable
    def execTransactionFromModule(to: address, amount: uint256, data: Bytes[16384], operation: uint8) -> bool: nonpayable

CALL: constant(uint8) = 0
DELEGATECALL: constant(uint8) = 1

hub: public(immutable(address))
multisendCallOnly: public(immutable(address))
MODULE: immutable(address)


@deploy
def __init__(hub_: address, multisendCallOnly_: address):
    """
    @param multisendCallOnly_ Safe's contract for batches: the only code that a job may run in a Safe's own name.
    """
    hub = hub_
    multisendCallOnly = multisendCallOnly_
    MODULE = self


@external
def execJobFromHub(safeAddress: address, actionTarget: address, actionValue: uint256, actionData: Bytes[16384], operation: uint8, jobOwner: address) -> bool:
    """
    @notice Only the hub, while it executes a job of `jobOwner`, who has to own the Safe alone or be enough by himself to act for it.
    @param operation 0 calls the target; 1 runs a batch, and then the target is multisendCallOnly.
    """
    assert msg.sender == hub, "NotHub"
    # A contract is the origin of no transaction, only of a node's estimate: there the hub, which is not at work, names no owner.
    assert jobOwner == staticcall Hub(hub).currentJobOwner() or tx.origin == hub, "NotJobOwner"
    assert safeAddress.is_contract, "NotSafe"
    assert staticcall Safe(safeAddress).isOwner(jobOwner), "NotSafeOwner"
    assert staticcall Safe(safeAddress).getThreshold() == 1, "ThresholdAboveOne"
    assert staticcall Safe(safeAddress).isModuleEnabled(self), "ModuleNotEnabled"
    if operation != CALL:
        assert operation == DELEGATECALL, "UnknownOperation"
        assert actionTarget == multisendCallOnly, "DelegatecallRefused"
    assert extcall Safe(safeAddress).execTransactionFromModule(actionTarget, actionValue, actionData, operation), "SafeCallFailed"
    return True


@external
def enableFromSetup():
    """
    @notice For a Safe's `setup`, which delegatecalls it: the new Safe enables this module. Of no use otherwise.
    """
    extcall Safe(self).enableModule(MODULE)
