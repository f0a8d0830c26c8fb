# pragma version 0.4.3
# pragma evm-version prague
"""
@title JobRegistry
@notice Which function to call, for whom, and until when. The ABI of createJob, deleteJob and JobCreated is the public SDK's.
"""

struct Job:
    owner: address
    jobType: uint256     # 1, 2 time; 3, 4 event; 5, 6 condition; 7 custom script
    createdAt: uint256   # seconds
    timeFrame: uint256   # seconds
    target: address      # zero only for type 7: the script decides
    word: uint256        # data's first word: the interval in seconds (1, 2, 7; 0 for cron and specific), or 1 when recurring (3..6)
    active: bool

event JobCreated:
    jobId: indexed(uint256)
    jobOwner: indexed(address)
    jobHash: bytes32
    timestamp: uint256

event JobDeleted:
    jobId: indexed(uint256)
    jobOwner: indexed(address)
    timestamp: uint256

# heads: owner 160 | createdAt 40 | timeFrame 40 | jobType 8 | active 8; tails: target 160 | word 64
heads: HashMap[uint256, uint256]
tails: HashMap[uint256, uint256]
jobCount: public(uint256)

LOW_8: constant(uint256) = 2**8 - 1
LOW_40: constant(uint256) = 2**40 - 1
LOW_160: constant(uint256) = 2**160 - 1


@external
def createJob(jobName: String[512], jobType: uint8, timeFrame: uint256, targetContract: address, data: Bytes[2048]) -> uint256:
    """
    @notice Registers a job of the caller's.
    @dev The id is keccak(chain id, this registry, sequence number): unique across chains.
    @param timeFrame Seconds for which the job lives.
    @param data ABI-encoded by type: (uint256 interval, ...) for 1, 2 and 7, (bool recurring, ...) for 3 to 6.
    """
    assert jobType >= 1 and jobType <= 7, "InvalidJobType"
    assert timeFrame > 0 and timeFrame <= LOW_40, "InvalidTimeFrame"
    assert targetContract != empty(address) or jobType == 7, "InvalidTarget"
    assert len(data) >= 32, "InvalidJobData"
    word: uint256 = convert(slice(data, 0, 32), uint256)
    if jobType >= 3 and jobType <= 6:
        assert word <= 1, "InvalidJobData"
    else:
        assert word <= LOW_40, "InvalidJobData"
    self.jobCount += 1
    jobId: uint256 = convert(keccak256(abi_encode(chain.id, self, self.jobCount)), uint256)
    self.heads[jobId] = (
        convert(msg.sender, uint256) | (block.timestamp << 160) | (timeFrame << 200) | (convert(jobType, uint256) << 240) | (1 << 248)
    )
    self.tails[jobId] = convert(targetContract, uint256) | (word << 160)
    jobHash: bytes32 = keccak256(abi_encode(jobName, jobType, timeFrame, targetContract, data))
    log JobCreated(jobId=jobId, jobOwner=msg.sender, jobHash=jobHash, timestamp=block.timestamp)
    return jobId


@external
def deleteJob(jobId: uint256):
    """
    @notice Stops a job for good. Executions already recorded are still certified and paid.
    """
    head: uint256 = self.heads[jobId]
    assert head != 0, "UnknownJob"
    assert convert(msg.sender, uint256) == head & LOW_160, "NotJobOwner"
    assert head >> 248 == 1, "JobInactive"
    self.heads[jobId] = head ^ (1 << 248)
    log JobDeleted(jobId=jobId, jobOwner=msg.sender, timestamp=block.timestamp)


@external
@view
def job(jobId: uint256) -> Job:
    """
    @notice The job, or all zero when there is none.
    """
    head: uint256 = self.heads[jobId]
    tail: uint256 = self.tails[jobId]
    return Job(
        owner=convert(convert(head & LOW_160, uint160), address),
        jobType=(head >> 240) & LOW_8,
        createdAt=(head >> 160) & LOW_40,
        timeFrame=(head >> 200) & LOW_40,
        target=convert(convert(tail & LOW_160, uint160), address),
        word=tail >> 160,
        active=head >> 248 == 1,
    )
