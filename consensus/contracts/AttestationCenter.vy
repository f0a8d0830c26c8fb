# pragma version 0.4.3
# pragma evm-version prague
"""
@title AttestationCenter
@notice Verifies certificates: that a quorum of the committee drawn by the execution's block signed the root of a tree of verdicts.
@dev No owner, no ETH. `aggregatedSignature`, big-endian, exact length: version u8 = 1 | verdict u8 (1 yes, 2 no) | round u8 | leaf index u8 |
     depth u8 | submitter's position in the epoch's operators u8 | epoch u64 | block u64 | G2 signature 256 | depth siblings of 32 bytes.
"""

import bls12_381
import execution_record as record

interface Hub:
    def settle(taskId: uint256, outcome: uint256, submitterId: uint256, signers: uint256) -> (uint256, bytes32): nonpayable
    def recordOf(taskId: uint256) -> (uint256, bytes32): view

interface KeeperRegistry:
    def epochInfo(epoch: uint256) -> (address, uint256, uint256, uint256): view
    def epochAt(blockNumber: uint256) -> uint256: view

event TaskValidated:
    taskId: indexed(uint256)
    taskNumber: indexed(uint256)
    performerId: indexed(uint256)
    submitterId: uint256
    attesterIds: DynArray[uint256, 16]
    proofOfTask: bytes32
    accepted: bool
    round: uint256

event TaskExpired:
    taskId: indexed(uint256)
    taskNumber: indexed(uint256)

VERSION: constant(uint256) = 1
YES: constant(uint256) = 1
NO: constant(uint256) = 2
ROUNDS: public(constant(uint256)) = 3
MAX_DEPTH: constant(uint256) = 5
MAX_DRAWN: constant(uint256) = 16
MAX_SEATS: constant(uint256) = 192
HEADER: constant(uint256) = 22
OPERATORS_AT: constant(uint256) = 193    # in an epoch's set: STOP byte and seat table before
OPERATOR_BYTES: constant(uint256) = 152  # id 4 | address 20 | key 128
LOW_8: constant(uint256) = 2**8 - 1
LOW_64: constant(uint256) = 2**64 - 1
LOW_40: constant(uint256) = 2**40 - 1
LOW_160: constant(uint256) = 2**160 - 1
# EIP-2935: the last 8,191 block hashes, for what BLOCKHASH (256) has forgotten
HISTORY: constant(address) = 0x0000F90827F1C53a10cb7A02335B175320002935

DOMAIN_TYPEHASH: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
ATTESTATION_TYPEHASH: constant(bytes32) = keccak256("Attestation(bytes32 root,uint256 blockNumber,uint256 epoch,uint256 round)")
# The first 31 bytes of "BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"; bls12_381 has the rest.
SIGNATURE_DST: constant(uint256) = 117138686712232504667990837061769646304618205534334125783764558902027695711

hub: public(immutable(address))
keeperRegistry: public(immutable(address))
ROUND_SECONDS: public(immutable(uint256))
CHAIN_ID: immutable(uint256)
DOMAIN: immutable(bytes32)

# Sets as the registry packs them: data contract 160 | fromBlock 40 | number 40 | operators 8 | seats 8
current: uint256
previous: uint256
# Attestations of successful executions not yet claimed: a byte an operator, 32 operators a word, so that one certificate
# writes few words; full bytes carry into `carried`.
counts: HashMap[uint256, uint256]
carried: HashMap[uint256, uint256]


@deploy
def __init__(hub_: address, keepers: address, roundSeconds: uint256):
    assert roundSeconds > 0, "ZeroRound"
    hub = hub_
    keeperRegistry = keepers
    ROUND_SECONDS = roundSeconds
    CHAIN_ID = chain.id
    DOMAIN = keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("TriggerX AttestationCenter"), keccak256("1"), chain.id, self))


@external
def submitTaskValidation(taskId: uint256, proofOfTask: bytes32, aggregatedSignature: Bytes[448], attesters: DynArray[address, 16]):
    """
    @notice Certifies or rejects an execution by the signatures of its committee.
    @param proofOfTask Merkle root over 1..32 verdicts of one block's committee.
    @param aggregatedSignature See the contract's notes.
    @param attesters The signers, in draw order.
    """
    size: uint256 = len(aggregatedSignature)
    assert size >= 278, "BadEncoding"
    header: uint256 = convert(slice(aggregatedSignature, 0, 32), uint256)
    verdict: uint256 = (header >> 240) & LOW_8
    round: uint256 = (header >> 232) & LOW_8
    depth: uint256 = (header >> 216) & LOW_8
    epoch: uint256 = (header >> 144) & LOW_64
    blockNumber: uint256 = (header >> 80) & LOW_64
    assert header >> 248 == VERSION and unsafe_sub(verdict, YES) <= 1 and depth <= MAX_DEPTH, "BadEncoding"
    assert size == unsafe_add(278, unsafe_mul(32, depth)) and ((header >> 224) & LOW_8) >> depth == 0, "BadEncoding"
    signature: Bytes[256] = slice(aggregatedSignature, 22, 256)

    epochSet: uint256 = self.current
    if epoch != (epochSet >> 200) & LOW_40:
        assert blockNumber < (epochSet >> 160) & LOW_40, "WrongEpoch"
        epochSet = self.previous
        assert epoch == (epochSet >> 200) & LOW_40, "WrongEpoch"
    assert blockNumber >= (epochSet >> 160) & LOW_40 and epochSet != 0, "WrongEpoch"
    blob: address = convert(convert(epochSet & LOW_160, uint160), address)
    operators: uint256 = (epochSet >> 240) & LOW_8
    position: uint256 = (header >> 208) & LOW_8
    assert position < operators, "NotActiveOperator"
    submitter: uint256 = self._operator(blob, position)
    assert (submitter >> 64) & LOW_160 == convert(msg.sender, uint256), "NotActiveOperator"

    # Booked first, checked after: a refusal below undoes it.
    signers: uint256 = len(attesters)
    head: uint256 = 0
    digest: bytes32 = empty(bytes32)
    outcome: uint256 = record.CERTIFIED
    if verdict == NO:
        outcome = record.REJECTED
    head, digest = extcall Hub(hub).settle(taskId, outcome, submitter >> 224, signers)
    assert blockNumber == (head >> record.BLOCK_AT) & record.BLOCK, "WrongBlock"
    executed: uint256 = (head >> record.TIMESTAMP_AT) & record.TIMESTAMP
    assert round < ROUNDS and unsafe_mul(round, ROUND_SECONDS) <= unsafe_sub(block.timestamp, executed), "RoundNotOpen"

    node: bytes32 = keccak256(concat(0x00, convert(taskId, bytes32), digest, convert(verdict, bytes32)))
    if depth > 0:
        index: uint256 = (header >> 224) & LOW_8
        for i: uint256 in range(depth, bound=MAX_DEPTH):
            sibling: bytes32 = convert(slice(aggregatedSignature, 278 + 32 * i, 32), bytes32)
            if index & 1 == 0:
                node = keccak256(concat(0x01, node, sibling))
            else:
                node = keccak256(concat(0x01, sibling, node))
            index >>= 1
    assert node == proofOfTask, "WrongRoot"

    members: uint256 = self._size((head >> record.LEVEL_AT) & record.LEVEL, operators)
    if verdict == YES:
        assert signers >= self._quorum(members), "TooFewSigners"
    else:
        assert signers >= self._rejection(members), "TooFewSigners"

    performerId: uint256 = (head >> record.PERFORMER_AT) & record.ID
    key: Bytes[128] = b""
    ids: DynArray[uint256, 16] = []
    seed: bytes32 = self._seed(blockNumber, round)
    key, ids = self._aggregate(seed, epochSet, members, performerId, attesters)
    if len(ids) == 0:
        self._refuse(seed, epochSet, members, performerId, attesters)
    # The identity, all words zero, would verify for keys whose sum is the identity. No other point has a zero there but by a 2**-256 chance.
    assert extract32(signature, 32, output_type=uint256) != 0, "InvalidSignature"
    assert bls12_381.verify(key, self._digest(proofOfTask, blockNumber, epoch, round), signature, SIGNATURE_DST), "InvalidSignature"

    if verdict == YES and head & record.SUCCESS != 0:
        self._count(ids)
    log TaskValidated(
        taskId=taskId,
        taskNumber=(head >> record.NUMBER_AT) & record.NUMBER,
        performerId=performerId,
        submitterId=submitter >> 224,
        attesterIds=ids,
        proofOfTask=proofOfTask,
        accepted=verdict == YES,
        round=round,
    )


@external
def expire(taskId: uint256):
    """
    @notice Anyone: refunds an execution that no round certified, one round's time after the last has ended.
    """
    head: uint256 = 0
    digest: bytes32 = empty(bytes32)
    head, digest = extcall Hub(hub).settle(taskId, record.EXPIRED, 0, 0)
    assert block.timestamp >= ((head >> record.TIMESTAMP_AT) & record.TIMESTAMP) + (ROUNDS + 1) * ROUND_SECONDS, "RoundsOpen"
    log TaskExpired(taskId=taskId, taskNumber=(head >> record.NUMBER_AT) & record.NUMBER)


@external
def seatEpoch(packed: uint256):
    """
    @notice Only the registry: the set that the next blocks' committees are drawn from.
    """
    assert msg.sender == keeperRegistry, "NotKeeperRegistry"
    self.previous = self.current
    self.current = packed


@external
def takeAttestations(operatorId: uint256) -> uint256:
    """
    @notice Only the hub: how many attestations an operator is to be paid for; they are then forgotten here.
    """
    assert msg.sender == hub, "NotHub"
    count: uint256 = self._attestations(operatorId)
    if count > 0:
        index: uint256 = operatorId - 1
        self.counts[index >> 5] &= ~(LOW_8 << (8 * (index & 31)))
        self.carried[operatorId] = 0
    return count


@external
@view
def attestations(operatorId: uint256) -> uint256:
    """
    @notice Attestations of successful executions that the operator has not claimed yet.
    """
    return self._attestations(operatorId)


@external
@view
def attestationDigest(root: bytes32, blockNumber: uint256, epoch: uint256, round: uint256) -> bytes32:
    """
    @notice The 32 bytes that a committee member signs.
    """
    return self._digest(root, blockNumber, epoch, round)


@external
@view
def committee(taskId: uint256, round: uint256) -> DynArray[address, MAX_DRAWN]:
    """
    @notice The committee of an executed task in draw order, as long as its block's hash is known.
    """
    head: uint256 = 0
    digest: bytes32 = empty(bytes32)
    head, digest = staticcall Hub(hub).recordOf(taskId)
    assert head != 0, "UnknownExecution"
    assert round < ROUNDS, "RoundNotOpen"
    blockNumber: uint256 = (head >> record.BLOCK_AT) & record.BLOCK
    epochSet: uint256 = self._epoch(staticcall KeeperRegistry(keeperRegistry).epochAt(blockNumber))
    size: uint256 = self._size((head >> record.LEVEL_AT) & record.LEVEL, (epochSet >> 240) & LOW_8)
    performerId: uint256 = (head >> record.PERFORMER_AT) & record.ID
    seated: DynArray[uint256, MAX_DRAWN] = self._committee(self._seed(blockNumber, round), epochSet, size, performerId)
    accounts: DynArray[address, MAX_DRAWN] = []
    for operator: uint256 in seated:
        accounts.append(convert(convert((operator >> 64) & LOW_160, uint160), address))
    return accounts


@external
@view
def draw(seed: bytes32, epoch: uint256, n: uint256) -> DynArray[address, MAX_DRAWN]:
    """
    @notice The first n + 1 distinct operators drawn from an epoch's seats; fewer when the epoch has fewer.
    """
    assert n < MAX_DRAWN, "TooMany"
    epochSet: uint256 = self._epoch(epoch)
    drawn: DynArray[address, MAX_DRAWN] = []
    positions: DynArray[uint256, MAX_DRAWN] = self._draw(seed, epochSet, n + 1)
    for position: uint256 in positions:
        operator: uint256 = self._operator(convert(convert(epochSet & LOW_160, uint160), address), position)
        drawn.append(convert(convert((operator >> 64) & LOW_160, uint160), address))
    return drawn


@external
@pure
def quorum(n: uint256) -> uint256:
    """
    @notice Signers that certify: ceil(2n / 3).
    """
    return self._quorum(n)


@external
@pure
def rejection(n: uint256) -> uint256:
    """
    @notice Signers that reject: more than n / 3.
    """
    return self._rejection(n)


@internal
@pure
def _quorum(n: uint256) -> uint256:
    return unsafe_div(unsafe_add(unsafe_mul(2, n), 2), 3)


@internal
@pure
def _rejection(n: uint256) -> uint256:
    return unsafe_add(unsafe_div(n, 3), 1)


@internal
@pure
def _size(level: uint256, operators: uint256) -> uint256:
    assert operators > 1, "NoCommittee"
    return min(record.size_of(level), unsafe_sub(operators, 1))


@internal
@view
def _epoch(epoch: uint256) -> uint256:
    blob: address = empty(address)
    operators: uint256 = 0
    seats: uint256 = 0
    fromBlock: uint256 = 0
    blob, operators, seats, fromBlock = staticcall KeeperRegistry(keeperRegistry).epochInfo(epoch)
    assert fromBlock != 0, "WrongEpoch"
    return convert(blob, uint256) | (operators << 240) | (seats << 248)


@internal
@view
def _digest(root: bytes32, blockNumber: uint256, epoch: uint256, round: uint256) -> bytes32:
    domain: bytes32 = DOMAIN
    if chain.id != CHAIN_ID:   # a fork of the chain is another chain
        domain = keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("TriggerX AttestationCenter"), keccak256("1"), chain.id, self))
    return keccak256(concat(0x1901, domain, keccak256(abi_encode(ATTESTATION_TYPEHASH, root, blockNumber, epoch, round))))


@internal
@view
def _seed(blockNumber: uint256, round: uint256) -> bytes32:
    hash: bytes32 = empty(bytes32)
    if blockNumber < block.number:
        if unsafe_sub(block.number, blockNumber) <= 256:
            hash = blockhash(blockNumber)
        else:
            ok: bool = False
            answer: Bytes[32] = b""
            ok, answer = raw_call(HISTORY, abi_encode(blockNumber), max_outsize=32, is_static_call=True, revert_on_failure=False)
            if ok and len(answer) == 32:
                hash = convert(answer, bytes32)
    assert hash != empty(bytes32), "BlockHashUnknown"
    if round == 0:
        return hash
    return keccak256(concat(hash, convert(round, bytes32)))


@internal
@view
def _operator(blob: address, position: uint256) -> uint256:
    """
    @return id 32 | address 160 | 64 bits of no use
    """
    return convert(slice(blob.code, unsafe_add(OPERATORS_AT, unsafe_mul(OPERATOR_BYTES, position)), 32), uint256)


@internal
@view
def _table(blob: address, seats: uint256) -> uint256[6]:
    """
    @return The seat table; of up to 32 seats only its first word is read.
    """
    table: uint256[6] = empty(uint256[6])
    table[0] = convert(slice(blob.code, 1, 32), uint256)
    if seats > 32:
        for i: uint256 in range(1, 6):
            table[i] = convert(slice(blob.code, unsafe_add(1, unsafe_mul(32, i)), 32), uint256)
    return table


@internal
@view
def _draw(seed: bytes32, epochSet: uint256, count: uint256) -> DynArray[uint256, MAX_DRAWN]:
    """
    @notice Positions of the first `count` distinct operators: Fisher-Yates over the seat table, in words of 32 seats.
    """
    drawn: DynArray[uint256, MAX_DRAWN] = []
    seats: uint256 = epochSet >> 248
    table: uint256[6] = self._table(convert(convert(epochSet & LOW_160, uint160), address), seats)
    seen: uint256 = 0
    for i: uint256 in range(seats, bound=MAX_SEATS):
        j: uint256 = unsafe_add(i, convert(keccak256(abi_encode(seed, i)), uint256) % unsafe_sub(seats, i))
        here: uint256 = (table[i >> 5] >> unsafe_sub(248, unsafe_mul(8, i & 31))) & LOW_8
        offset: uint256 = unsafe_sub(248, unsafe_mul(8, j & 31))
        position: uint256 = (table[j >> 5] >> offset) & LOW_8
        # Seat i is never looked at again: only its holder moves.
        table[j >> 5] ^= (position ^ here) << offset
        if seen & (1 << position) == 0:
            seen |= 1 << position
            drawn.append(position)
            if len(drawn) == count:
                break
    return drawn


@internal
@view
def _aggregate(
    seed: bytes32, epochSet: uint256, members: uint256, performerId: uint256, attesters: DynArray[address, 16]
) -> (Bytes[128], DynArray[uint256, 16]):
    """
    @notice `_draw` and `_committee` again, in one pass that ends at the last signer.
    @return The sum of the signers' keys, and their operator ids; none when they are not members in draw order.
    """
    blob: address = convert(convert(epochSet & LOW_160, uint160), address)
    seats: uint256 = epochSet >> 248
    table: uint256[6] = self._table(blob, seats)
    key: Bytes[128] = b""
    ids: DynArray[uint256, 16] = []
    next: uint256 = convert(attesters[0], uint256)
    count: uint256 = len(attesters)
    found: uint256 = 0
    left: uint256 = members
    seen: uint256 = 0
    for i: uint256 in range(seats, bound=MAX_SEATS):
        j: uint256 = unsafe_add(i, convert(keccak256(abi_encode(seed, i)), uint256) % unsafe_sub(seats, i))
        offset: uint256 = unsafe_sub(248, unsafe_mul(8, j & 31))
        position: uint256 = (table[j >> 5] >> offset) & LOW_8
        table[j >> 5] ^= (position ^ ((table[i >> 5] >> unsafe_sub(248, unsafe_mul(8, i & 31))) & LOW_8)) << offset
        if (seen >> position) & 1 != 0:
            continue
        seen |= 1 << position
        entry: Bytes[152] = slice(blob.code, unsafe_add(OPERATORS_AT, unsafe_mul(OPERATOR_BYTES, position)), 152)
        operator: uint256 = extract32(entry, 0, output_type=uint256)
        if operator >> 224 == performerId:
            continue
        if (operator >> 64) & LOW_160 == next:
            if found == 0:
                key = slice(entry, 24, 128)
            else:
                key = raw_call(bls12_381.G1_ADD, concat(key, slice(entry, 24, 128)), max_outsize=128, is_static_call=True, gas=375)
            ids.append(operator >> 224)
            found = unsafe_add(found, 1)
            if found == count:
                return key, ids
            next = convert(attesters[found], uint256)
        left = unsafe_sub(left, 1)
        if left == 0:
            break
    return key, []


@internal
@view
def _committee(seed: bytes32, epochSet: uint256, members: uint256, performerId: uint256) -> DynArray[uint256, MAX_DRAWN]:
    """
    @return The first `members` drawn who are not the performer, as `_operator` gives them.
    """
    blob: address = convert(convert(epochSet & LOW_160, uint160), address)
    seated: DynArray[uint256, MAX_DRAWN] = []
    drawn: DynArray[uint256, MAX_DRAWN] = self._draw(seed, epochSet, members + 1)
    for position: uint256 in drawn:
        operator: uint256 = self._operator(blob, position)
        if operator >> 224 != performerId and len(seated) < members:
            seated.append(operator)
    return seated


@internal
@view
def _refuse(seed: bytes32, epochSet: uint256, members: uint256, performerId: uint256, attesters: DynArray[address, 16]):
    """
    @notice Says why the signers are not members in draw order. Dear, but only who submits such a list pays.
    """
    blob: address = convert(convert(epochSet & LOW_160, uint160), address)
    operators: uint256 = (epochSet >> 240) & LOW_8
    committee: DynArray[uint256, MAX_DRAWN] = self._committee(seed, epochSet, members, performerId)
    for i: uint256 in range(len(attesters), bound=16):
        for j: uint256 in range(i, bound=16):
            assert attesters[i] != attesters[j], "DuplicateSigner"
    for attester: address in attesters:
        seated: bool = False
        for operator: uint256 in committee:
            if (operator >> 64) & LOW_160 == convert(attester, uint256):
                seated = True
                break
        if seated:
            continue
        for position: uint256 in range(operators, bound=MAX_SEATS):
            assert (self._operator(blob, position) >> 64) & LOW_160 != convert(attester, uint256), "NotInCommittee"
        raise "NotRegistered"
    raise "OutOfOrder"


@internal
def _count(ids: DynArray[uint256, 16]):
    page: uint256 = max_value(uint256)
    word: uint256 = 0
    for id: uint256 in ids:
        slot: uint256 = unsafe_sub(id, 1) >> 5
        if slot != page:
            if page != max_value(uint256):
                self.counts[page] = word
            page = slot
            word = self.counts[slot]
        offset: uint256 = unsafe_mul(8, unsafe_sub(id, 1) & 31)
        if (word >> offset) & LOW_8 == LOW_8:
            self.carried[id] += 256
            word ^= LOW_8 << offset
        else:
            word = unsafe_add(word, 1 << offset)
    self.counts[page] = word


@internal
@view
def _attestations(operatorId: uint256) -> uint256:
    index: uint256 = operatorId - 1
    return ((self.counts[index >> 5] >> (8 * (index & 31))) & LOW_8) + self.carried[operatorId]
