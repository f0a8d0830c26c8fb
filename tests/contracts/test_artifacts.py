"""The compiled contracts in the package: true to their sources, small enough, and what the public SDK calls."""

from __future__ import annotations

import pytest

from consensus.contracts import NAMES, artifact
from consensus.contracts.compile import ARTIFACTS, compiled
from tests.contracts.evm import canonical
from tests.contracts.world import World

# What npm sdk-triggerx 0.1.38 calls and reads (dist/contracts/abi): inputs, outputs, mutability; "*" marks an indexed parameter.
SDK_FUNCTIONS = {
    "JobRegistry": {
        "createJob(string,uint8,uint256,address,bytes)": (["uint256"], "nonpayable"),
        "deleteJob(uint256)": ([], "nonpayable"),
    },
    "TriggerGasRegistry": {
        "depositETH(uint256)": ([], "payable"),
        "withdrawETHBalance(uint256)": ([], "nonpayable"),
        "deductETHBalance(address,uint256)": ([], "nonpayable"),
        "getBalance(address)": (["uint256"], "view"),
        "balances(address)": (["uint256"], "view"),
    },
    "SafeFactory": {
        "createSafeWallet(address)": (["address"], "nonpayable"),
        "latestSafeWallet(address)": (["address"], "view"),
        "getSafeWallets(address)": (["address[]"], "view"),
        "predictSafeAddress(address)": (["address"], "view"),
    },
    "SafeModule": {"execJobFromHub(address,address,uint256,bytes,uint8,address)": (["bool"], "nonpayable")},
}
SDK_EVENTS = {
    "JobRegistry": {"JobCreated(uint256*,address*,bytes32,uint256)", "JobDeleted(uint256*,address*,uint256)"},
    "TriggerGasRegistry": {"ETHDeposited(address*,uint256)", "ETHBalanceDeducted(address*,uint256)"},
    "SafeFactory": {"SafeWalletCreated(address*,address*,uint256)"},
}


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_is_what_its_source_compiles_to(name):
    assert (ARTIFACTS / f"{name}.json").read_text("utf-8") == compiled(name), "run python -m consensus.contracts.compile"


def test_every_contract_keeps_below_the_code_limit(bare: World):
    ours = (bare.hub, bare.center, bare.registry, bare.jobs, bare.gas, bare.demo, bare.safe_factory, bare.safe_module)
    for contract in ours:
        assert 0 < len(bare.chain.code(contract.address)) <= 24_576  # EIP-170


def test_an_unknown_artifact_is_a_key_error():
    with pytest.raises(KeyError):
        artifact("../Hub")


@pytest.mark.parametrize("name", SDK_FUNCTIONS)
def test_the_sdk_finds_the_functions_it_calls(name):
    functions = [e for e in artifact(name).abi if e["type"] == "function"]
    ours = {
        f"{e['name']}({','.join(map(canonical, e['inputs']))})": (list(map(canonical, e["outputs"])), e["stateMutability"])
        for e in functions
    }
    assert SDK_FUNCTIONS[name].items() <= ours.items()


@pytest.mark.parametrize("name", SDK_EVENTS)
def test_the_sdk_finds_the_events_it_reads(name):
    ours = {
        f"{e['name']}({','.join(canonical(i) + '*' * i['indexed'] for i in e['inputs'])})"
        for e in artifact(name).abi
        if e["type"] == "event"
    }
    assert SDK_EVENTS[name] <= ours


def test_the_sdk_may_name_arguments_as_it_does():
    created = next(e for e in artifact("JobRegistry").abi if e.get("name") == "JobCreated")
    assert [i["name"] for i in created["inputs"]] == ["jobId", "jobOwner", "jobHash", "timestamp"]
