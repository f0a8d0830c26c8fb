# pragma version 0.4.3
# pragma evm-version prague
"""
@title Hub
@notice Executes jobs: at most once for each firing, only as a dispatcher authorised and the job's owner pinned.
@dev Holds no ETH: fees are booked here and held by the TriggerGasRegistry. All links are immutable; an upgrade is a new set of contracts.
"""

import execution_record as record

interface JobRegistry:
    def job(jobId: uint256) -> Job: view

interface GasRegistry:
    def deductETHBalance(user: address, ethAmount: uint256): nonpayable
    def creditETHBalance(user: address, ethAmount: uint256): nonpayable
    def pay(to: address, ethAmount: uint256): nonpayable
    def balances(user: address) -> uint256: view

interface KeeperRegistry:
    def activeOperatorId(account: address) -> uint256: view
    def accountOf(operatorId: uint256) -> address: view
    def rewardsOf(operatorId: uint256) -> address: view

interface AttestationCenter:
    def takeAttestations(operatorId: uint256) -> uint256: nonpayable

struct Job:
    owner: address
    jobType: uint256
    createdAt: uint256
    timeFrame: uint256
    target: address
    word: uint256
    active: bool

struct Authorisation:
    jobId: uint256
    triggerId: uint256    # time jobs: the second that is due; otherwise the firing's identity
    attempt: uint256
    performer: address
    spec: bytes32         # sha2-256 inside the JobSpec's CID
    target: address       # zero when a script decides it: only for jobs without a target
    selector: bytes4
    callHash: bytes32     # keccak of the calldata; zero when a script decides it
    gasLimit: uint256     # what the inner call gets in full
    level: uint256
    maxFee: uint256       # wei
    notBefore: uint256    # seconds, inclusive
    deadline: uint256     # seconds, inclusive

struct Record:
    head: uint256         # see execution_record
    digest: bytes32
    jobId: uint256

struct Execution:
    taskNumber: uint256
    jobId: uint256
    owner: address
    performer: address
    performerId: uint256
    blockNumber: uint256
    timestamp: uint256
    level: uint256
    status: uint256           # 0 none, 1 pending, 2 certified, 3 rejected, 4 expired, 5 not executed (its event names job and fee)
    success: bool
    fee: uint256              # wei, escrowed here until refunded or claimed
    validationShare: uint256  # wei of it that go to the certificate's submitter
    digest: bytes32

struct RunCharge:
    jobId: uint256
    triggerId: uint256
    performerId: uint256
    fee: uint256          # wei

struct Policy:
    specHash: bytes32
    maxFee: uint256
    gasLimit: uint256
    securityLevel: uint256
    pinned: bool

event TaskExecuted:
    taskId: indexed(uint256)
    jobId: indexed(uint256)
    performerId: indexed(uint256)
    taskNumber: uint256
    triggerId: uint256
    attempt: uint256
    performer: address
    target: address
    callHash: bytes32
    success: bool
    fee: uint256
    digest: bytes32

event RunCharged:
    taskId: indexed(uint256)
    jobId: indexed(uint256)
    performerId: indexed(uint256)
    fee: uint256

event RunSkipped:
    taskId: indexed(uint256)
    jobId: indexed(uint256)
    reason: String[32]

event RunAllowanceSet:
    jobId: indexed(uint256)
    allowance: uint256

event JobPolicySet:
    jobId: indexed(uint256)
    specHash: bytes32
    maxFee: uint256
    gasLimit: uint256
    securityLevel: uint256

event DispatcherSet:
    dispatcher: indexed(address)
    listed: bool

event ServiceFeeSet:
    serviceFee: uint256

event OwnershipTransferStarted:
    previousOwner: indexed(address)
    newOwner: indexed(address)

event OwnershipTransferred:
    previousOwner: indexed(address)
    newOwner: indexed(address)

event Claimed:
    operatorId: indexed(uint256)
    rewards: indexed(address)
    amount: uint256

DOMAIN_TYPEHASH: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
AUTHORISATION_TYPEHASH: constant(bytes32) = keccak256("Authorisation(uint256 jobId,uint256 triggerId,uint256 attempt,address performer,bytes32 spec,address target,bytes4 selector,bytes32 callHash,uint256 gasLimit,uint256 level,uint256 maxFee,uint256 notBefore,uint256 deadline)")
EXECUTION_TYPEHASH: constant(bytes32) = keccak256("Execution(uint256 taskId,uint256 jobId,uint256 triggerId,uint256 attempt,address performer,bytes32 spec,address target,bytes32 callHash,bool success,uint256 fee,uint256 blockNumber,uint256 timestamp)")
# Half the order of secp256k1: a signature has one valid form (EIP-2).
HALF_ORDER: constant(bytes32) = 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0

# docs/contracts.md says where each comes from.
MAX_DATA: constant(uint256) = 16384
OVERHEAD_GAS: public(constant(uint256)) = 65_000
DATA_GAS: public(constant(uint256)) = 16
VALIDATION_GAS: public(constant(uint256)) = 222_000
VALIDATION_SEAT_GAS: public(constant(uint256)) = 3_500
PRIORITY_CAP: public(constant(uint256)) = 2 * 10**9
MAX_SERVICE_FEE: public(constant(uint256)) = 10**16
MAX_RUN_FEE: public(constant(uint256)) = 10**15
MAX_CHARGES: constant(uint256) = 64
CHARGE_LATE: constant(uint256) = 86_400
CALL_MARGIN: constant(uint256) = 30_000
LAST_PRECOMPILE: constant(uint256) = 65535

jobRegistry: public(immutable(address))
gasRegistry: public(immutable(address))
keeperRegistry: public(immutable(address))
attestationCenter: public(immutable(address))
UNIT: public(immutable(uint256))
CHAIN_ID: immutable(uint256)
DOMAIN: immutable(bytes32)

owner: public(address)
pendingOwner: public(address)
isDispatcher: public(HashMap[address, bool])
records: HashMap[uint256, Record]
ran: HashMap[uint256, bool]                  # non-recurring jobs
policies: public(HashMap[uint256, Policy])
runAllowance: public(HashMap[uint256, uint256])   # wei of runs without a transaction that a pinned job may still be charged
runEarnings: public(HashMap[uint256, uint256])    # wei that an operator earned by such runs and nobody claimed yet
counters: uint256                            # executed tasks 64 | service fee in wei 128
currentJobOwner: public(transient(address))  # during the inner call, the hub where the owner chose no target; also the lock


@deploy
def __init__(owner_: address, dispatchers: DynArray[address, 16], jobs: address, gas_: address, keepers: address, center: address, unit: uint256):
    """
    @param unit Wei that an attester earns by one attestation of a successful execution.
    """
    assert owner_ != empty(address), "ZeroOwner"
    assert unit < 2**64, "UnitTooLarge"
    self.owner = owner_
    jobRegistry = jobs
    gasRegistry = gas_
    keeperRegistry = keepers
    attestationCenter = center
    UNIT = unit
    CHAIN_ID = chain.id
    DOMAIN = keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("TriggerX Hub"), keccak256("1"), chain.id, self))
    log OwnershipTransferred(previousOwner=empty(address), newOwner=owner_)
    for dispatcher: address in dispatchers:
        assert dispatcher != empty(address), "ZeroDispatcher"
        self.isDispatcher[dispatcher] = True
        log DispatcherSet(dispatcher=dispatcher, listed=True)


@external
def execute(a: Authorisation, signature: Bytes[96], target: address, data: Bytes[16416], resourceFee: uint256) -> bool:
    """
    @notice Calls the job's target for one firing. Returns whether the inner call succeeded: a failed one is recorded and never tried again.
    @param target The authorisation's; any that is no protocol contract where both the authorisation's and the job's are zero: a script decides.
    @param data The calldata of the inner call, at most 16 KiB.
    @param resourceFee Wei that the performer asks for running the script; attesters check it, maxFee bounds it.
    """
    started: uint256 = msg.gas
    assert self.currentJobOwner == empty(address), "Reentered"
    assert msg.sender == a.performer, "NotPerformer"
    assert len(data) <= MAX_DATA, "DataTooLarge"
    assert block.timestamp >= a.notBefore, "TooEarly"
    assert block.timestamp <= a.deadline, "TooLate"
    assert a.level <= 4, "UnknownLevel"
    taskId: uint256 = convert(keccak256(abi_encode(a.jobId, a.triggerId)), uint256)
    assert self.records[taskId].head == 0, "TaskAlreadyExecuted"
    job: Job = staticcall JobRegistry(jobRegistry).job(a.jobId)
    self._check_job(job, a)
    callHash: bytes32 = keccak256(data)
    self._check_call(job.target, target, a, callHash, convert(slice(concat(slice(data, 0, min(len(data), 4)), x"00000000"), 0, 4), bytes4))
    self._check_policy(a)
    self._check_signature(a, signature)
    performerId: uint256 = staticcall KeeperRegistry(keeperRegistry).activeOperatorId(msg.sender)
    assert performerId != 0, "UnknownPerformer"

    assert a.maxFee <= record.MAX_FEE, "FeeTooLarge"
    price: uint256 = min(min(tx.gasprice, block.basefee + PRIORITY_CAP), record.PRICE)
    size: uint256 = record.size_of(a.level)
    share: uint256 = self._validation_share(price, size)
    cap: uint256 = a.maxFee // record.FEE_STEP
    assert cap * record.FEE_STEP >= share + UNIT * size, "InsufficientFeeCap"
    extcall GasRegistry(gasRegistry).deductETHBalance(job.owner, a.maxFee)

    counters: uint256 = self.counters + 1
    number: uint256 = counters & (2**64 - 1)
    assert number <= record.NUMBER, "TaskNumbersExhausted"
    self.counters = counters
    head: uint256 = (
        record.PENDING
        | (a.level << record.LEVEL_AT)
        | (performerId << record.PERFORMER_AT)
        | (number << record.NUMBER_AT)
        | (block.number << record.BLOCK_AT)
        | (block.timestamp << record.TIMESTAMP_AT)
        | (price << record.PRICE_AT)
    )
    self.records[taskId] = Record(head=head, digest=empty(bytes32), jobId=a.jobId)
    if job.word == 0 and job.jobType >= 3 and job.jobType <= 6:
        self.ran[a.jobId] = True

    # EIP-150 forwards at most 63/64: refuse unless the target gets its full limit.
    assert a.gasLimit < 2**64 and unsafe_sub(msg.gas, msg.gas // 64) >= a.gasLimit + CALL_MARGIN, "GasTooLow"
    # A target that the owner did not register is a dispatcher's or a script's: nothing happens there in the owner's name.
    self.currentJobOwner = job.owner if job.target != empty(address) else self
    success: bool = raw_call(target, data, gas=a.gasLimit, revert_on_failure=False)
    self.currentJobOwner = empty(address)

    fee: uint256 = (started - msg.gas + OVERHEAD_GAS + DATA_GAS * len(data)) * price + share
    if success:
        head |= record.SUCCESS
        fee += UNIT * size + (counters >> 64) + min(resourceFee, a.maxFee)
    fee = min((fee + record.FEE_STEP - 1) // record.FEE_STEP, cap)
    self.records[taskId].head = head | (fee << record.FEE_AT)
    fee *= record.FEE_STEP
    digest: bytes32 = keccak256(
        abi_encode(
            EXECUTION_TYPEHASH, taskId, a.jobId, a.triggerId, a.attempt, a.performer, a.spec, target, callHash, success, fee, block.number, block.timestamp
        )
    )
    self.records[taskId].digest = digest
    if fee < a.maxFee:
        extcall GasRegistry(gasRegistry).creditETHBalance(job.owner, unsafe_sub(a.maxFee, fee))
    log TaskExecuted(
        taskId=taskId,
        jobId=a.jobId,
        performerId=performerId,
        taskNumber=number,
        triggerId=a.triggerId,
        attempt=a.attempt,
        performer=a.performer,
        target=target,
        callHash=callHash,
        success=success,
        fee=fee,
        digest=digest,
    )
    return success


@external
def chargeRuns(charges: DynArray[RunCharge, MAX_CHARGES]) -> uint256:
    """
    @notice Only a dispatcher: charges owners of jobs for scripts that ran and asked for no transaction, in favour of who ran them.
            Returns how many were charged; a charge that cannot be is skipped with an event, and takes nothing.
    @dev A task is charged once ever and never one that executed; one that was charged can never execute. A pinned job is charged
         within what its owner allowed by `setRunAllowance`, which is nothing at first: no certificate of a run is checked here.
    """
    assert self.isDispatcher[msg.sender], "NotDispatcher"
    assert self.currentJobOwner == empty(address), "Reentered"
    charged: uint256 = 0
    for charge: RunCharge in charges:
        assert charge.fee > 0, "ZeroFee"
        assert charge.fee <= MAX_RUN_FEE, "RunFeeTooHigh"
        taskId: uint256 = convert(keccak256(abi_encode(charge.jobId, charge.triggerId)), uint256)
        job: Job = staticcall JobRegistry(jobRegistry).job(charge.jobId)
        reason: String[32] = self._not_charged(taskId, job, charge)
        if len(reason) > 0:
            log RunSkipped(taskId=taskId, jobId=charge.jobId, reason=reason)
            continue
        self.records[taskId].head = (
            record.NOT_EXECUTED
            | (charge.performerId << record.PERFORMER_AT)
            | (block.number << record.BLOCK_AT)
            | (block.timestamp << record.TIMESTAMP_AT)
        )
        if self.policies[charge.jobId].pinned:
            self.runAllowance[charge.jobId] -= charge.fee
        self.runEarnings[charge.performerId] += charge.fee
        extcall GasRegistry(gasRegistry).deductETHBalance(job.owner, charge.fee)
        log RunCharged(taskId=taskId, jobId=charge.jobId, performerId=charge.performerId, fee=charge.fee)
        charged += 1
    return charged


@external
def settle(taskId: uint256, outcome: uint256, submitterId: uint256, signers: uint256) -> (uint256, bytes32):
    """
    @notice Only the AttestationCenter: ends a pending record as certified, rejected or expired; the latter two refund the job's owner.
    @dev The center calls this first and verifies the certificate against what comes back: one call, and any refusal undoes it.
    @return The record's head before, and its digest.
    """
    assert msg.sender == attestationCenter, "NotAttestationCenter"
    assert self.currentJobOwner == empty(address), "Reentered"
    head: uint256 = self.records[taskId].head
    if head & record.STATUS != record.PENDING:
        assert head != 0, "UnknownExecution"
        raise "AlreadyCertified"
    settled: uint256 = outcome | (submitterId << record.SUBMITTER_AT) | (signers << record.SIGNERS_AT)
    self.records[taskId].head = (head ^ record.PENDING) | settled
    if outcome != record.CERTIFIED:
        fee: uint256 = (head >> record.FEE_AT) * record.FEE_STEP
        if fee > 0:
            job: Job = staticcall JobRegistry(jobRegistry).job(self.records[taskId].jobId)
            extcall GasRegistry(gasRegistry).creditETHBalance(job.owner, fee)
    return head, self.records[taskId].digest


@external
def claim(operatorId: uint256, taskIds: DynArray[uint256, 128]) -> uint256:
    """
    @notice Anyone: pays to an operator's rewards address what it earned by its attestations, by runs without a transaction and,
            of the certified executions named, what is still owed to it as performer and as submitter. Returns the wei paid.
    @dev What performers and submitters earn stays in the record until then: crediting both at the certificate would cost it 10,000 gas.
    """
    assert self.currentJobOwner == empty(address), "Reentered"
    rewards: address = staticcall KeeperRegistry(keeperRegistry).rewardsOf(operatorId)
    assert rewards != empty(address), "UnknownOperator"
    amount: uint256 = UNIT * extcall AttestationCenter(attestationCenter).takeAttestations(operatorId)
    runs: uint256 = self.runEarnings[operatorId]
    if runs > 0:
        self.runEarnings[operatorId] = 0
        amount += runs
    for taskId: uint256 in taskIds:
        head: uint256 = self.records[taskId].head
        owed: uint256 = 0
        paid: uint256 = 0
        owed, paid = self._owed(head, operatorId)
        self.records[taskId].head = head | paid
        amount += owed
    assert amount > 0, "NothingToClaim"
    extcall GasRegistry(gasRegistry).pay(rewards, amount)
    log Claimed(operatorId=operatorId, rewards=rewards, amount=amount)
    return amount


@external
def setJobPolicy(jobId: uint256, specHash: bytes32, maxFee: uint256, gasLimit: uint256, securityLevel: uint256):
    """
    @notice The job's owner pins what may be executed for it; a dispatcher can then authorise nothing else.
    @param specHash keccak(abi_encode(target, selector, callHash, spec)); zero leaves it open.
    @param maxFee Highest maxFee of an authorisation, wei; zero leaves it open.
    @param gasLimit The authorisation's gasLimit, exactly; zero leaves it open.
    @param securityLevel The authorisation's level, exactly; 0 is the default level, not "open".
    """
    job: Job = staticcall JobRegistry(jobRegistry).job(jobId)
    assert job.owner != empty(address), "UnknownJob"
    assert job.owner == msg.sender, "NotJobOwner"
    assert securityLevel <= 4, "UnknownLevel"
    self.policies[jobId] = Policy(specHash=specHash, maxFee=maxFee, gasLimit=gasLimit, securityLevel=securityLevel, pinned=True)
    log JobPolicySet(jobId=jobId, specHash=specHash, maxFee=maxFee, gasLimit=gasLimit, securityLevel=securityLevel)


@external
def setRunAllowance(jobId: uint256, allowance: uint256):
    """
    @notice The job's owner says how many wei a pinned job may still be charged, in all, for runs without a transaction.
            A job that is not pinned needs none.
    """
    job: Job = staticcall JobRegistry(jobRegistry).job(jobId)
    assert job.owner != empty(address), "UnknownJob"
    assert job.owner == msg.sender, "NotJobOwner"
    self.runAllowance[jobId] = allowance
    log RunAllowanceSet(jobId=jobId, allowance=allowance)


@external
def setDispatcher(dispatcher: address, listed: bool):
    assert msg.sender == self.owner, "NotOwner"
    assert dispatcher != empty(address), "ZeroDispatcher"
    self.isDispatcher[dispatcher] = listed
    log DispatcherSet(dispatcher=dispatcher, listed=listed)


@external
def setServiceFee(serviceFee_: uint256):
    """
    @notice Wei added to the fee of a successful execution, for its performer; at most MAX_SERVICE_FEE, and never beyond maxFee.
    """
    assert msg.sender == self.owner, "NotOwner"
    assert serviceFee_ <= MAX_SERVICE_FEE, "ServiceFeeTooHigh"
    self.counters = (self.counters & (2**64 - 1)) | (serviceFee_ << 64)
    log ServiceFeeSet(serviceFee=serviceFee_)


@external
def transferOwnership(newOwner: address):
    """
    @notice First of two steps; the new owner calls acceptOwnership. Zero takes an offer back.
    """
    assert msg.sender == self.owner, "NotOwner"
    self.pendingOwner = newOwner
    log OwnershipTransferStarted(previousOwner=msg.sender, newOwner=newOwner)


@external
def acceptOwnership():
    assert msg.sender == self.pendingOwner, "NotPendingOwner"
    log OwnershipTransferred(previousOwner=self.owner, newOwner=msg.sender)
    self.owner = msg.sender
    self.pendingOwner = empty(address)


@external
@view
def execution(taskId: uint256) -> Execution:
    """
    @notice The record of a task; all zero when it was never executed.
    """
    head: uint256 = self.records[taskId].head
    if head == 0:
        return empty(Execution)
    jobId: uint256 = self.records[taskId].jobId
    job: Job = staticcall JobRegistry(jobRegistry).job(jobId)
    performerId: uint256 = (head >> record.PERFORMER_AT) & record.ID
    level: uint256 = (head >> record.LEVEL_AT) & record.LEVEL
    return Execution(
        taskNumber=(head >> record.NUMBER_AT) & record.NUMBER,
        jobId=jobId,
        owner=job.owner,
        performer=staticcall KeeperRegistry(keeperRegistry).accountOf(performerId),
        performerId=performerId,
        blockNumber=(head >> record.BLOCK_AT) & record.BLOCK,
        timestamp=(head >> record.TIMESTAMP_AT) & record.TIMESTAMP,
        level=level,
        status=head & record.STATUS,
        success=head & record.SUCCESS != 0,
        fee=(head >> record.FEE_AT) * record.FEE_STEP,
        validationShare=self._validation_share((head >> record.PRICE_AT) & record.PRICE, record.size_of(level)),
        digest=self.records[taskId].digest,
    )


@external
@view
def owed(taskId: uint256, operatorId: uint256) -> uint256:
    """
    @notice Wei that an operator can still claim of a task as performer and as submitter.
    """
    return self._owed(self.records[taskId].head, operatorId)[0]


@external
@view
def recordOf(taskId: uint256) -> (uint256, bytes32):
    """
    @notice The packed head (see execution_record) and the digest.
    """
    return self.records[taskId].head, self.records[taskId].digest


@external
@view
def authorisationDigest(a: Authorisation) -> bytes32:
    return self._digest(a)


@external
@pure
def taskId(jobId: uint256, triggerId: uint256) -> uint256:
    return convert(keccak256(abi_encode(jobId, triggerId)), uint256)


@external
@view
def nextTaskNumber() -> uint256:
    return (self.counters & (2**64 - 1)) + 1


@external
@view
def serviceFee() -> uint256:
    return self.counters >> 64


@internal
@view
def _check_job(job: Job, a: Authorisation):
    reason: String[32] = self._not_fired(job, a.jobId, a.triggerId, 0)
    assert len(reason) == 0, reason


@internal
@view
def _not_fired(job: Job, jobId: uint256, triggerId: uint256, late: uint256) -> String[32]:
    """
    @param late Seconds after the end of an event's or condition's job that still count.
    @return Why this cannot be a firing of the job now; empty when it can.
    """
    if job.owner == empty(address):
        return "UnknownJob"
    if not job.active:
        return "JobInactive"
    end: uint256 = unsafe_add(job.createdAt, job.timeFrame)
    if job.jobType <= 2 or job.jobType == 7:
        if triggerId <= job.createdAt or triggerId > end:
            return "OffSchedule"
        if job.word != 0 and unsafe_sub(triggerId, job.createdAt) % job.word != 0:
            return "OffSchedule"
        if triggerId > block.timestamp:
            return "TooEarly"
    else:
        if block.timestamp > unsafe_add(end, late):
            return "JobExpired"
        if job.word == 0 and self.ran[jobId]:
            return "AlreadyRan"
    return ""


@internal
@view
def _not_charged(taskId: uint256, job: Job, charge: RunCharge) -> String[32]:
    """
    @return Why a run cannot be charged; empty when it can.
    """
    head: uint256 = self.records[taskId].head
    if head & record.STATUS == record.NOT_EXECUTED:
        return "AlreadyCharged"
    if head != 0:
        return "TaskAlreadyExecuted"
    reason: String[32] = self._not_fired(job, charge.jobId, charge.triggerId, CHARGE_LATE)
    if len(reason) > 0:
        return reason
    if job.jobType & 1 == 1 and job.jobType != 7:
        return "NoScript"
    if self.policies[charge.jobId].pinned:
        cap: uint256 = self.policies[charge.jobId].maxFee
        if cap != 0 and charge.fee > cap:
            return "PolicyFee"
        if charge.fee > self.runAllowance[charge.jobId]:
            return "RunAllowance"
    if charge.performerId > record.ID or staticcall KeeperRegistry(keeperRegistry).rewardsOf(charge.performerId) == empty(address):
        return "UnknownPerformer"
    if staticcall GasRegistry(gasRegistry).balances(job.owner) < charge.fee:
        return "InsufficientBalance"
    return ""


@internal
@view
def _check_call(registered: address, target: address, a: Authorisation, callHash: bytes32, selector: bytes4):
    assert a.target == registered or registered == empty(address), "WrongTarget"
    assert target == a.target or a.target == empty(address), "WrongTarget"
    assert (
        target != self
        and target != jobRegistry
        and target != gasRegistry
        and target != keeperRegistry
        and target != attestationCenter
        and convert(target, uint256) > LAST_PRECOMPILE
        and target.codesize > 0
    ), "ProtocolTarget"
    assert a.selector == selector or a.selector == empty(bytes4), "WrongSelector"
    assert a.callHash == callHash or a.callHash == empty(bytes32), "WrongCalldata"


@internal
@view
def _check_policy(a: Authorisation):
    if not self.policies[a.jobId].pinned:
        return
    policy: Policy = self.policies[a.jobId]
    if policy.specHash != empty(bytes32):
        assert keccak256(abi_encode(a.target, a.selector, a.callHash, a.spec)) == policy.specHash, "PolicySpec"
    assert policy.maxFee == 0 or a.maxFee <= policy.maxFee, "PolicyFee"
    assert policy.gasLimit == 0 or a.gasLimit == policy.gasLimit, "PolicyGas"
    assert a.level == policy.securityLevel, "PolicyLevel"


@internal
@view
def _check_signature(a: Authorisation, signature: Bytes[96]):
    assert len(signature) == 65, "BadAuthorisation"
    r: uint256 = convert(slice(signature, 0, 32), uint256)
    s: uint256 = convert(slice(signature, 32, 32), uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    assert s <= convert(HALF_ORDER, uint256) and (v == 27 or v == 28), "BadAuthorisation"
    signer: address = ecrecover(self._digest(a), v, r, s)
    assert signer != empty(address), "BadAuthorisation"
    assert self.isDispatcher[signer], "NotDispatcher"


@internal
@view
def _digest(a: Authorisation) -> bytes32:
    domain: bytes32 = DOMAIN
    if chain.id != CHAIN_ID:   # a fork of the chain is another chain
        domain = keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("TriggerX Hub"), keccak256("1"), chain.id, self))
    return keccak256(concat(0x1901, domain, keccak256(abi_encode(AUTHORISATION_TYPEHASH, a))))


@internal
@view
def _owed(head: uint256, operatorId: uint256) -> (uint256, uint256):
    """
    @return Wei still owed to the operator, and the flags to set when they are paid.
    """
    amount: uint256 = 0
    flags: uint256 = 0
    if head & record.STATUS != record.CERTIFIED:
        return 0, 0
    # execute made sure that the fee covers the share and, after success, N units; signers <= N.
    size: uint256 = record.size_of((head >> record.LEVEL_AT) & record.LEVEL)
    share: uint256 = self._validation_share((head >> record.PRICE_AT) & record.PRICE, size)
    if (head >> record.SUBMITTER_AT) & record.ID == operatorId and head & record.SUBMITTER_PAID == 0:
        amount += share
        flags |= record.SUBMITTER_PAID
    if (head >> record.PERFORMER_AT) & record.ID == operatorId and head & record.PERFORMER_PAID == 0:
        amount += (head >> record.FEE_AT) * record.FEE_STEP - share
        if head & record.SUCCESS != 0:
            amount -= UNIT * ((head >> record.SIGNERS_AT) & record.SIGNERS)
        flags |= record.PERFORMER_PAID
    return amount, flags


@internal
@pure
def _validation_share(price: uint256, size: uint256) -> uint256:
    return unsafe_mul(price, unsafe_add(VALIDATION_GAS, unsafe_mul(VALIDATION_SEAT_GAS, size)))
