# pragma version 0.4.3
# pragma evm-version prague
"""
@title KeeperRegistry
@notice Who may execute and attest: operators, their stake, and the BLS keys of each epoch.
@dev An epoch's set lies in the code of a data contract: 0x00 | seat table 192 | operators, 152 bytes each: id 4, address 20, key 128.
     Byte i of the seat table is the position of the operator who holds seat i; unused seats are 0xff.
     There is no owner. Slashing comes with a later set of contracts: key slots are append-only, so that old keys can be held to account.
"""

import bls12_381

interface AttestationCenter:
    def seatEpoch(packed: uint256): nonpayable

struct Operator:
    account: address
    rewards: address
    stake: uint256
    registeredAt: uint256
    exitedAt: uint256     # 0 while active
    untilEpoch: uint256   # the last epoch that may seat it, set by exit
    member: uint256       # index in members + 1; 0 once exited
    keySlot: uint256

struct OperatorView:
    id: uint256
    account: address
    rewards: address
    stake: uint256
    seats: uint256
    peerId: Bytes[64]
    key: Bytes[128]
    registeredAt: uint256
    fromEpoch: uint256    # the first epoch in which the present key may be seated
    exitedAt: uint256
    untilEpoch: uint256

struct KeySlot:
    operatorId: uint256
    keyHash: bytes32
    holder: address       # data contract: id 4 | address 20 | key 128
    fromEpoch: uint256
    untilEpoch: uint256   # last epoch in which the key may be seated; the largest uint256 while it is the present one

event KeeperRegistered:
    operatorId: indexed(uint256)
    operator: indexed(address)
    key: Bytes[128]
    peerId: Bytes[64]
    rewards: address
    stake: uint256

event KeeperExited:
    operatorId: indexed(uint256)
    operator: indexed(address)
    untilEpoch: uint256

event StakeAdded:
    operatorId: indexed(uint256)
    stake: uint256

event StakeWithdrawn:
    operatorId: indexed(uint256)
    amount: uint256

event KeyRotated:
    operatorId: indexed(uint256)
    key: Bytes[128]
    fromEpoch: uint256

event PeerIdSet:
    operatorId: indexed(uint256)
    peerId: Bytes[64]

event RewardsSet:
    operatorId: indexed(uint256)
    rewards: address

event EpochAdvanced:
    epoch: indexed(uint256)
    blob: address
    operators: uint256
    seats: uint256
    fromBlock: uint256

MAX_SEATS: constant(uint256) = 192        # six words of seat table
MAX_OPERATORS: constant(uint256) = 150    # 193 + 150 * 152 = 22,993 bytes of code; EIP-170 allows 24,576
MAX_SEATS_PER_OPERATOR: constant(uint256) = 8
MAX_ID: constant(uint256) = 2**24 - 1     # the first byte of a key's data contract stays 0x00 (STOP)
LOW_8: constant(uint256) = 2**8 - 1
LOW_40: constant(uint256) = 2**40 - 1
LOW_160: constant(uint256) = 2**160 - 1
FULL: constant(uint256) = max_value(uint256)

DOMAIN_TYPEHASH: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
POSSESSION_TYPEHASH: constant(bytes32) = keccak256("Possession(bytes key,address operator)")
# The first 31 bytes of "BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"; bls12_381 has the rest.
POSSESSION_DST: constant(uint256) = 117138686711008074372181104951933545712359048500209952023701070937838663263
IDENTITY: constant(Bytes[128]) = x"0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
# PUSH1 152 DUP1 PUSH1 9 RETURNDATASIZE CODECOPY RETURNDATASIZE RETURN: returns the 152 bytes behind itself
HOLDER_INIT: constant(Bytes[9]) = x"60988060093d393df3"
# PUSH2 (size) DUP1 PUSH1 31 RETURNDATASIZE CODECOPY RETURNDATASIZE RETURN, 21 bytes that never run, and the STOP byte of the set
SET_INIT: constant(bytes32) = 0x61000080601f3d393df300000000000000000000000000000000000000000000

attestationCenter: public(immutable(address))
MIN_STAKE: public(immutable(uint256))
SEAT_STAKE: public(immutable(uint256))
EPOCH_SECONDS: public(immutable(uint256))
UNBONDING_SECONDS: public(immutable(uint256))

operators: HashMap[uint256, Operator]
peerIds: HashMap[uint256, Bytes[64]]
peerHolder: HashMap[bytes32, address]          # by keccak of the peer id: the one account that may use it
operatorIdOf: public(HashMap[address, uint256])
operatorCount: public(uint256)
keySlots: public(HashMap[uint256, KeySlot])
keySlotOf: public(HashMap[bytes32, uint256])   # by keccak of the key's 128 bytes
keySlotCount: public(uint256)
members: DynArray[uint256, MAX_OPERATORS]      # of the next epoch: holder 160 | id 32 | seats 8
seatCount: public(uint256)                     # of the next epoch
changed: public(bool)                          # whether the next epoch would differ from the current one
current: uint256                               # holder of the set 160 | fromBlock 40 | number 40 | operators 8 | seats 8
epochs: HashMap[uint256, uint256]              # set 160 | fromBlock 40 | time it was advanced to 40 | operators 8 | seats 8


@deploy
def __init__(center: address, minStake: uint256, seatStake: uint256, epochSeconds: uint256, unbondingSeconds: uint256):
    # Without stake nothing would keep an operator that left from coming back while it is still seated.
    assert minStake > 0, "ZeroMinStake"
    assert seatStake > 0, "ZeroSeatStake"
    assert epochSeconds > 0, "ZeroEpoch"
    attestationCenter = center
    MIN_STAKE = minStake
    SEAT_STAKE = seatStake
    EPOCH_SECONDS = epochSeconds
    UNBONDING_SECONDS = unbondingSeconds


@external
@payable
def register(key: Bytes[160], possession: Bytes[288], peerId: Bytes[64], rewards: address):
    """
    @notice Makes the caller an operator from the next epoch on. The value sent is its stake; stake beyond the minimum buys seats.
    @param key BLS public key, EIP-2537 encoding of a G1 point, 128 bytes.
    @param possession The key's signature on this operator's Possession, EIP-2537 encoding of a G2 point, 256 bytes.
    """
    former: uint256 = self.operatorIdOf[msg.sender]
    assert former == 0 or (self.operators[former].member == 0 and self.operators[former].stake == 0), "AlreadyRegistered"
    assert msg.value >= MIN_STAKE, "StakeTooLow"
    assert len(peerId) > 0, "BadPeerId"
    assert rewards != empty(address), "ZeroRewards"
    assert len(self.members) < MAX_OPERATORS, "TooManyOperators"
    id: uint256 = self.operatorCount + 1
    assert id <= MAX_ID, "TooManyOperators"
    self.operatorCount = id
    seats: uint256 = self._seats(msg.value)
    self._seat(seats, 0)
    point: Bytes[128] = self._proven(key, possession)
    holder: address = self._add_key(id, point)
    self.members.append(convert(holder, uint256) | (id << 160) | (seats << 192))
    self.operators[id] = Operator(
        account=msg.sender,
        rewards=rewards,
        stake=msg.value,
        registeredAt=block.timestamp,
        exitedAt=0,
        untilEpoch=0,
        member=len(self.members),
        keySlot=self.keySlotCount,
    )
    self._take_peer_id(id, peerId)
    self.operatorIdOf[msg.sender] = id
    log KeeperRegistered(operatorId=id, operator=msg.sender, key=point, peerId=peerId, rewards=rewards, stake=msg.value)


@external
@payable
def addStake():
    """
    @notice Adds the value sent to the caller's stake; new seats count from the next epoch on.
    """
    id: uint256 = self._active(msg.sender)
    assert msg.value > 0, "ZeroAmount"
    stake: uint256 = self.operators[id].stake + msg.value
    self.operators[id].stake = stake
    index: uint256 = self.operators[id].member - 1
    member: uint256 = self.members[index]
    seats: uint256 = self._seats(stake)
    if seats != member >> 192:
        self._seat(seats, member >> 192)
        self.members[index] = (member & (2**192 - 1)) | (seats << 192)
    log StakeAdded(operatorId=id, stake=stake)


@external
def rotateKey(key: Bytes[160], possession: Bytes[288]):
    """
    @notice Replaces the caller's key from the next epoch on; the old one stays answerable for what it signed.
    """
    id: uint256 = self._active(msg.sender)
    point: Bytes[128] = self._proven(key, possession)
    self.keySlots[self.operators[id].keySlot].untilEpoch = self._number()
    index: uint256 = self.operators[id].member - 1
    member: uint256 = self.members[index]
    self.members[index] = (member & ~LOW_160) | convert(self._add_key(id, point), uint256)
    self.operators[id].keySlot = self.keySlotCount
    self.changed = True
    log KeyRotated(operatorId=id, key=point, fromEpoch=self._number() + 1)


@external
def setPeerId(peerId: Bytes[64]):
    id: uint256 = self._active(msg.sender)
    assert len(peerId) > 0, "BadPeerId"
    self.peerHolder[keccak256(self.peerIds[id])] = empty(address)
    self._take_peer_id(id, peerId)
    log PeerIdSet(operatorId=id, peerId=peerId)


@external
def setRewards(rewards: address):
    """
    @notice Where the hub pays what the caller earns; may still be set after exit.
    """
    id: uint256 = self.operatorIdOf[msg.sender]
    assert id != 0, "UnknownOperator"
    assert rewards != empty(address), "ZeroRewards"
    self.operators[id].rewards = rewards
    log RewardsSet(operatorId=id, rewards=rewards)


@external
def exit():
    """
    @notice Leaves from the next epoch on. Executing ends at once; the stake is held until withdraw.
    """
    id: uint256 = self._active(msg.sender)
    index: uint256 = self.operators[id].member - 1
    self.seatCount -= self.members[index] >> 192
    last: uint256 = self.members.pop()
    if index < len(self.members):
        self.members[index] = last
        self.operators[(last >> 160) & (2**32 - 1)].member = index + 1
    number: uint256 = self._number()
    self.operators[id].member = 0
    self.operators[id].exitedAt = block.timestamp
    self.operators[id].untilEpoch = number
    self.keySlots[self.operators[id].keySlot].untilEpoch = number
    self.changed = True
    log KeeperExited(operatorId=id, operator=msg.sender, untilEpoch=number)


@external
def withdraw():
    """
    @notice Pays the stake back, UNBONDING_SECONDS after the first epoch without the operator began.
    """
    id: uint256 = self.operatorIdOf[msg.sender]
    assert id != 0, "UnknownOperator"
    assert self.operators[id].member == 0, "NotExited"
    stake: uint256 = self.operators[id].stake
    assert stake > 0, "NothingToWithdraw"
    without: uint256 = self.operators[id].untilEpoch + 1
    assert without <= self._number(), "StillSeated"
    assert block.timestamp >= ((self.epochs[without] >> 200) & LOW_40) + UNBONDING_SECONDS, "Unbonding"
    self.operators[id].stake = 0
    log StakeWithdrawn(operatorId=id, amount=stake)
    assert raw_call(msg.sender, b"", value=stake, revert_on_failure=False), "TransferFailed"


@external
def advanceEpoch():
    """
    @notice Anyone: seats the present members from the next block on. Refused when nothing changed, and before EPOCH_SECONDS are over.
    """
    assert self.changed, "NothingChanged"
    number: uint256 = self._number()
    assert number == 0 or block.timestamp >= ((self.epochs[number] >> 200) & LOW_40) + EPOCH_SECONDS, "TooEarly"
    number += 1
    self.changed = False
    # 31 bytes of init code, the STOP byte, the seat table in six words, then operators of 4.75 words each.
    code: uint256[720] = empty(uint256[720])
    for i: uint256 in range(1, 7):
        code[i] = FULL
    seats: uint256 = 0
    k: uint256 = 7       # word being filled
    fill: uint256 = 0    # bits of it that are filled already: 0, 64, 128 or 192
    position: uint256 = 0
    for member: uint256 in self.members:
        for i: uint256 in range(member >> 192, bound=MAX_SEATS_PER_OPERATOR):
            code[1 + seats // 32] ^= (position ^ LOW_8) << (248 - 8 * (seats % 32))
            seats += 1
        holder: Bytes[152] = slice(convert(convert(member & LOW_160, uint160), address).code, 0, 152)
        for j: uint256 in range(4):
            word: uint256 = extract32(holder, 32 * j, output_type=uint256)
            code[k] |= word >> fill
            k += 1
            code[k] = word << (256 - fill)
        tail: uint256 = extract32(holder, 120, output_type=uint256) << 64   # the last 24 bytes
        code[k] |= tail >> fill
        fill += 192
        if fill >= 256:
            fill -= 256
            k += 1
            if fill > 0:
                code[k] = tail << (192 - fill)
        position += 1
    size: uint256 = 193 + 152 * position
    code[0] = convert(SET_INIT, uint256) | (size << 232)
    blob: address = raw_create(slice(abi_encode(code), 0, 31 + size))
    fromBlock: uint256 = block.number + 1
    packed: uint256 = convert(blob, uint256) | (fromBlock << 160) | (position << 240) | (seats << 248)
    self.current = packed | (number << 200)
    self.epochs[number] = packed | (block.timestamp << 200)
    extcall AttestationCenter(attestationCenter).seatEpoch(packed | (number << 200))
    log EpochAdvanced(epoch=number, blob=blob, operators=position, seats=seats, fromBlock=fromBlock)


@external
@view
def currentEpoch() -> uint256:
    """
    @notice Number of the newest epoch, from 1; 0 before the first. It covers blocks from its fromBlock on.
    """
    return self._number()


@external
@view
def epochAt(blockNumber: uint256) -> uint256:
    """
    @notice The epoch that covers a block, 0 when none does.
    """
    low: uint256 = 0
    high: uint256 = self._number()
    for i: uint256 in range(40):
        if low == high:
            break
        middle: uint256 = (low + high + 1) // 2
        if (self.epochs[middle] >> 160) & LOW_40 <= blockNumber:
            low = middle
        else:
            high = middle - 1
    return low


@external
@view
def epochInfo(epoch: uint256) -> (address, uint256, uint256, uint256):
    """
    @return The set's data contract, its operators, its seats, and the first block it covers; all zero when there is no such epoch.
    """
    packed: uint256 = self.epochs[epoch]
    return self._address(packed), (packed >> 240) & LOW_8, packed >> 248, (packed >> 160) & LOW_40


@external
@view
def activeOperatorId(account: address) -> uint256:
    """
    @notice Id of a registered operator that has not exited, otherwise 0.
    """
    id: uint256 = self.operatorIdOf[account]
    if id != 0 and self.operators[id].member == 0:
        return 0
    return id


@external
@view
def accountOf(operatorId: uint256) -> address:
    return self.operators[operatorId].account


@external
@view
def rewardsOf(operatorId: uint256) -> address:
    return self.operators[operatorId].rewards


@external
@view
def operator(operatorId: uint256) -> OperatorView:
    """
    @notice An operator as it is now, exited ones included; all zero when the id is not given out.
    """
    if self.operators[operatorId].account == empty(address):
        return empty(OperatorView)
    o: Operator = self.operators[operatorId]
    seats: uint256 = 0
    if o.member != 0:
        seats = self.members[o.member - 1] >> 192
    return OperatorView(
        id=operatorId,
        account=o.account,
        rewards=o.rewards,
        stake=o.stake,
        seats=seats,
        peerId=self.peerIds[operatorId],
        key=slice(self.keySlots[o.keySlot].holder.code, 24, 128),
        registeredAt=o.registeredAt,
        fromEpoch=self.keySlots[o.keySlot].fromEpoch,
        exitedAt=o.exitedAt,
        untilEpoch=o.untilEpoch,
    )


@external
@view
def possessionDigest(key: Bytes[128], account: address) -> bytes32:
    """
    @notice What a key signs to prove that `account` holds it.
    """
    return self._possession_digest(key, account)


@internal
@view
def _possession_digest(key: Bytes[128], account: address) -> bytes32:
    domain: bytes32 = keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("TriggerX KeeperRegistry"), keccak256("1"), chain.id, self))
    return keccak256(concat(0x1901, domain, keccak256(abi_encode(POSSESSION_TYPEHASH, keccak256(key), account))))


@internal
@view
def _proven(key: Bytes[160], possession: Bytes[288]) -> Bytes[128]:
    """
    @notice The key, proven to be the caller's. The pairing refuses points off the curve or outside the subgroup.
    """
    assert len(key) == 128, "BadKeyLength"
    assert len(possession) == 256, "BadPossessionLength"
    point: Bytes[128] = slice(key, 0, 128)
    proof: Bytes[256] = slice(possession, 0, 256)
    assert point != IDENTITY, "IdentityKey"
    assert self.keySlotOf[keccak256(point)] == 0, "KeyReused"
    assert bls12_381.verify(point, self._possession_digest(point, msg.sender), proof, POSSESSION_DST), "InvalidPossession"
    return point


@internal
def _add_key(id: uint256, key: Bytes[128]) -> address:
    head: uint256 = (id << 224) | (convert(msg.sender, uint256) << 64)
    holder: address = raw_create(concat(HOLDER_INIT, slice(convert(head, bytes32), 0, 24), key))
    slot: uint256 = self.keySlotCount + 1
    self.keySlotCount = slot
    self.keySlotOf[keccak256(key)] = slot
    self.keySlots[slot] = KeySlot(
        operatorId=id, keyHash=keccak256(key), holder=holder, fromEpoch=self._number() + 1, untilEpoch=max_value(uint256)
    )
    return holder


@internal
def _take_peer_id(id: uint256, peerId: Bytes[64]):
    """
    @notice Keepers know who speaks by its peer id, so no two accounts may have the same. It stays with an account that has left.
    """
    name: bytes32 = keccak256(peerId)
    holder: address = self.peerHolder[name]
    assert holder == empty(address) or holder == msg.sender, "PeerIdTaken"
    self.peerHolder[name] = msg.sender
    self.peerIds[id] = peerId


@internal
def _seat(seats: uint256, before: uint256):
    total: uint256 = self.seatCount + seats - before
    assert total <= MAX_SEATS, "NoSeatsLeft"
    self.seatCount = total
    self.changed = True


@internal
@view
def _seats(stake: uint256) -> uint256:
    return min(max(stake // SEAT_STAKE, 1), MAX_SEATS_PER_OPERATOR)


@internal
@view
def _active(account: address) -> uint256:
    id: uint256 = self.operatorIdOf[account]
    assert id != 0, "UnknownOperator"
    assert self.operators[id].member != 0, "Exited"
    return id


@internal
@view
def _number() -> uint256:
    return (self.current >> 200) & LOW_40


@internal
@pure
def _address(packed: uint256) -> address:
    return convert(convert(packed & LOW_160, uint160), address)
