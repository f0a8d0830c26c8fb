# pragma version 0.4.3
# pragma evm-version prague
"""
@title SafeFactory
@notice Makes Safes of one owner with the SafeModule enabled. The ABI is the public SDK's.
@dev The Safe is the real one: a proxy of Safe's own factory, which this contract only tells what to set up. It holds nothing and has no owner.
"""

interface SafeProxyFactory:
    def createProxyWithNonce(singleton_: address, initializer: Bytes[420], saltNonce: uint256) -> address: nonpayable
    def proxyCreationCode() -> Bytes[2048]: view

event SafeWalletCreated:
    user: indexed(address)
    safeWallet: indexed(address)
    saltNonce: uint256

MAX_LISTED: constant(uint256) = 100

safeProxyFactory: public(immutable(address))
safeSingleton: public(immutable(address))
safeFallbackHandler: public(immutable(address))
safeModule: public(immutable(address))
PROXY_HASH: immutable(bytes32)

latestSafeWallet: public(HashMap[address, address])
safeWalletCount: public(HashMap[address, uint256])
safeWalletAt: public(HashMap[address, HashMap[uint256, address]])   # user, number from 0


@deploy
def __init__(safeProxyFactory_: address, safeSingleton_: address, safeFallbackHandler_: address, safeModule_: address):
    assert safeSingleton_.is_contract and safeFallbackHandler_.is_contract and safeModule_.is_contract, "NotDeployed"
    safeProxyFactory = safeProxyFactory_
    safeSingleton = safeSingleton_
    safeFallbackHandler = safeFallbackHandler_
    safeModule = safeModule_
    creation: Bytes[2048] = staticcall SafeProxyFactory(safeProxyFactory_).proxyCreationCode()
    PROXY_HASH = keccak256(concat(creation, convert(safeSingleton_, bytes32)))


@external
def createSafeWallet(user: address) -> address:
    """
    @notice A new Safe that `user` alone owns. Anyone may pay for it.
    @dev Safe's factory is open: anyone can make the Safe that comes next, with the same owner and module since its address commits to
         them, to have this call refused. It is taken as it is then.
    """
    assert user != empty(address), "ZeroOwner"
    number: uint256 = self.safeWalletCount[user]
    initializer: Bytes[420] = self._initializer(user)
    wallet: address = self._address(initializer, number)
    if not wallet.is_contract:
        created: address = extcall SafeProxyFactory(safeProxyFactory).createProxyWithNonce(safeSingleton, initializer, number)
        assert created == wallet, "UnexpectedAddress"
    self.safeWalletCount[user] = number + 1
    self.safeWalletAt[user][number] = wallet
    self.latestSafeWallet[user] = wallet
    log SafeWalletCreated(user=user, safeWallet=wallet, saltNonce=number)
    return wallet


@external
@view
def predictSafeAddress(user: address) -> address:
    """
    @notice Where the user's next Safe will be.
    """
    return self._address(self._initializer(user), self.safeWalletCount[user])


@external
@view
def getSafeWallets(user: address) -> DynArray[address, MAX_LISTED]:
    """
    @notice The user's Safes, the last 100 of them, oldest first; safeWalletAt has them all.
    """
    count: uint256 = self.safeWalletCount[user]
    first: uint256 = count - min(count, MAX_LISTED)
    found: DynArray[address, MAX_LISTED] = []
    for number: uint256 in range(first, count, bound=MAX_LISTED):
        found.append(self.safeWalletAt[user][number])
    return found


@internal
@view
def _initializer(user: address) -> Bytes[420]:
    owners: DynArray[address, 1] = [user]
    return abi_encode(
        owners,
        convert(1, uint256),                       # threshold
        safeModule,                                # delegatecalled during setup
        method_id("enableFromSetup()"),
        safeFallbackHandler,
        empty(address), empty(uint256), empty(address),   # no payment for the setup
        method_id=method_id("setup(address[],uint256,address,bytes,address,address,uint256,address)"),
    )


@internal
@view
def _address(initializer: Bytes[420], number: uint256) -> address:
    salt: bytes32 = keccak256(concat(keccak256(initializer), convert(number, bytes32)))
    return convert(convert(keccak256(concat(0xff, convert(safeProxyFactory, bytes20), salt, PROXY_HASH)), uint256) & (2**160 - 1), address)
