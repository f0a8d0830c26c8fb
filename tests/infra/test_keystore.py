"""Keystores: the standards' own vectors open, wrong passwords and bombs do not, and nothing secret is shown."""

from __future__ import annotations

import copy
import json
import os
import pickle
import time
import traceback
from pathlib import Path

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.errors import Misconfigured
from node.infra import keystore
from node.infra.secret import Secret

# The two test vectors of EIP-2335.
VECTOR_PASSWORD = "𝔱𝔢𝔰𝔱𝔭𝔞𝔰𝔰𝔴𝔬𝔯𝔡🔑"
VECTOR_SECRET = 0x000000000019D6689C085AE165831E934FF763AE46A2A6C172B3F1B60A8CE26F
SALT = "d4e56740f876aef8c010b86a40d5f56745a118d0906a34e69aec8c0db1cb8fa3"
PUBKEY = "9612d7a727c9d0a22e185a1c768478dfe919cada9266988cb32359c11f2b7b27f4ae4040902382ae2910c15e2b420d07"
IV = "264daa3f303d7259501c93d997d84fe6"


def vector(kdf: dict, checksum: str, message: str) -> dict:
    return {
        "crypto": {
            "kdf": kdf | {"message": ""},
            "checksum": {"function": "sha256", "params": {}, "message": checksum},
            "cipher": {"function": "aes-128-ctr", "params": {"iv": IV}, "message": message},
        },
        "description": "This is a test keystore.",
        "pubkey": PUBKEY,
        "path": "m/12381/60/3141592653/589793238",
        "uuid": "1d85ae20-35c5-4611-98e8-aa14a633906f",
        "version": 4,
    }


SCRYPT = vector(
    {"function": "scrypt", "params": {"dklen": 32, "n": 262144, "p": 1, "r": 8, "salt": SALT}},
    "d2217fe5f3e9a1e34581ef8a78f7c9928e436d36dacc5e846690a5581e8ea484",
    "06ae90d55fe0a6e9c5c3bc5b170827b2e5cce3929ed3f116c2811e6366dfe20f",
)
PBKDF2 = vector(
    {"function": "pbkdf2", "params": {"dklen": 32, "c": 262144, "prf": "hmac-sha256", "salt": SALT}},
    "8a9f5d9912ed7e75ea794bc5a89bca5f193721d30868ade6f73043c6ea6febf1",
    "cee03fde2af33149775b7223e7845e4fb2c8ae1792e5f99fe9ecf474cc8c16ad",
)
# The two test vectors of the Web3 Secret Storage definition; cheap enough: c = 262144 and n = 262144.
WEB3_KEY = bytes.fromhex("7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d")
WEB3_PASSWORD = Secret("testpassword")
WEB3_PBKDF2 = {
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
        "kdf": "pbkdf2",
        "kdfparams": {
            "c": 262144,
            "dklen": 32,
            "prf": "hmac-sha256",
            "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
        },
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}
PASSWORD = Secret("correct horse")
BLS_SECRET = 0x1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF
OPERATOR_KEY = bytes(range(1, 33))


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("document", [SCRYPT, PBKDF2])
async def test_the_vectors_of_eip_2335_open(tmp_path, document):
    secret = await keystore.load_bls(write(tmp_path / "bls.json", document), Secret(VECTOR_PASSWORD))
    assert secret.reveal() == VECTOR_SECRET
    decomposed = Secret("testpassword\x7f\x00🔑")  # the same after NFKD and without control codes
    assert (await keystore.load_bls(tmp_path / "bls.json", decomposed)).reveal() == VECTOR_SECRET


async def test_the_vector_of_web3_secret_storage_opens(tmp_path):
    old_style = {name.upper() if name == "crypto" else name: value for name, value in WEB3_PBKDF2.items()}
    for document in (WEB3_PBKDF2, old_style):
        assert (await keystore.load_operator(write(tmp_path / "op.json", document), WEB3_PASSWORD)).reveal() == WEB3_KEY


async def test_a_bls_secret_comes_back_and_others_can_read_the_file(tmp_path):
    path = tmp_path / "keys" / "bls.json"
    await keystore.create_bls(path, BLS_SECRET, PASSWORD, public_key=b"\x07" * 48, n=2)
    assert (await keystore.load_bls(path, PASSWORD)).reveal() == BLS_SECRET
    document = json.loads(path.read_text())
    assert document["pubkey"] == "07" * 48
    from eth_keyfile.keyfile import decode_keyfile_json

    assert decode_keyfile_json(document, b"correct horse") == BLS_SECRET.to_bytes(32, "big")


async def test_an_operator_key_comes_back_and_others_can_read_the_file(tmp_path):
    path = tmp_path / "keys" / "operator.json"
    await keystore.create_operator(path, OPERATOR_KEY, PASSWORD, n=2)
    assert (await keystore.load_operator(path, PASSWORD)).reveal() == OPERATOR_KEY
    document = json.loads(path.read_text())
    assert Account.decrypt(document, "correct horse") == OPERATOR_KEY
    assert document["address"].lower() == Account.from_key(OPERATOR_KEY).address[2:].lower()


async def test_the_default_cost_is_the_standards(tmp_path):
    await keystore.create_bls(tmp_path / "bls.json", BLS_SECRET, PASSWORD, public_key=bytes(48))
    params = json.loads((tmp_path / "bls.json").read_text())["crypto"]["kdf"]["params"]
    assert (params["n"], params["r"], params["p"], params["dklen"]) == (262144, 8, 1, 32)


async def create(kind: str, path: Path) -> None:
    if kind == "bls":
        await keystore.create_bls(path, BLS_SECRET, PASSWORD, public_key=bytes(48), n=2)
    else:
        await keystore.create_operator(path, OPERATOR_KEY, PASSWORD, n=2)


@pytest.mark.parametrize("kind", ["bls", "operator"])
async def test_a_keystore_is_its_owners_and_is_never_overwritten(tmp_path, kind):
    path = tmp_path / "keys" / "a.json"
    await create(kind, path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with pytest.raises(Misconfigured, match="never overwritten") as caught:
        await create(kind, path)
    assert caught.value.key == f"keys.{kind}"
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("kind", "load"), [("bls", keystore.load_bls), ("operator", keystore.load_operator)])
async def test_a_wrong_password_names_the_key_and_the_remedy(tmp_path, kind, load):
    await create(kind, tmp_path / "a.json")
    with pytest.raises(Misconfigured, match="check that the password file belongs") as caught:
        await load(tmp_path / "a.json", Secret("wrong horse"))
    assert caught.value.key == f"keys.{kind}"
    with pytest.raises(Misconfigured) as caught:
        await load(tmp_path / "a.json", Secret("wrong horse"), key="dispatcher.keystore")
    assert caught.value.key == "dispatcher.keystore"


@pytest.mark.parametrize("load", [keystore.load_bls, keystore.load_operator])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{", b"{}", b'{"version": 3}', b"[" * 60_000, b" " * 70_000])
async def test_a_file_that_is_no_keystore_is_refused(tmp_path, load, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Misconfigured):
        await load(tmp_path / "a.json", PASSWORD)
    with pytest.raises(Misconfigured, match="cannot read"):
        await load(tmp_path / "absent.json", PASSWORD)


@pytest.mark.parametrize(
    "bomb",
    [
        {"n": 1 << 40},
        {"n": 262144, "r": 1 << 20},
        {"p": 1 << 30},
        {"n": 1000},
        {"n": 0},
        {"n": -8},
        {"n": "262144"},
        {"n": True},
        {"r": 1.5},
        {"dklen": 1 << 33},
        {"salt": "00" * 5000},
    ],
)
async def test_absurd_scrypt_parameters_cost_nothing(tmp_path, bomb):
    four, three = copy.deepcopy(SCRYPT), copy.deepcopy(WEB3_PBKDF2)
    four["crypto"]["kdf"]["params"] |= bomb
    three["crypto"] |= {"kdf": "scrypt", "kdfparams": SCRYPT["crypto"]["kdf"]["params"] | bomb}
    begin = time.monotonic()
    with pytest.raises(Misconfigured):
        await keystore.load_bls(write(tmp_path / "a.json", four), PASSWORD)
    with pytest.raises(Misconfigured):
        await keystore.load_operator(write(tmp_path / "b.json", three), PASSWORD)
    assert time.monotonic() - begin < 0.5


async def test_absurd_pbkdf2_rounds_cost_nothing(tmp_path):
    four, three = copy.deepcopy(PBKDF2), copy.deepcopy(WEB3_PBKDF2)
    four["crypto"]["kdf"]["params"]["c"] = three["crypto"]["kdfparams"]["c"] = 1 << 40
    with pytest.raises(Misconfigured, match="more time than is sane"):
        await keystore.load_bls(write(tmp_path / "a.json", four), PASSWORD)
    with pytest.raises(Misconfigured, match="more time than is sane"):
        await keystore.load_operator(write(tmp_path / "b.json", three), PASSWORD)


@pytest.mark.parametrize("secret", [0, -1, 1 << 255])
async def test_a_number_that_is_no_secret_is_not_written(tmp_path, secret):
    with pytest.raises(ValueError, match="not a BLS12-381 secret"):
        await keystore.create_bls(tmp_path / "a.json", secret, PASSWORD, public_key=bytes(48), n=2)


def test_a_password_file_is_read_without_its_line_break(tmp_path):
    path = tmp_path / "password"
    for content, expected in [(b"abc\n", "abc"), (b"abc\r\n", "abc"), (b" a b ", " a b "), (b"a\n\n", "a\n")]:
        path.write_bytes(content)
        path.chmod(0o600)
        assert keystore.read_password(path).reveal() == expected


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o666, 0o602])
def test_a_password_file_open_to_everybody_is_refused_with_the_remedy(tmp_path, mode):
    path = tmp_path / "password"
    path.write_text("abc")
    path.chmod(mode)
    with pytest.raises(Misconfigured, match=f"mode {mode:o}.*chmod 600") as caught:
        keystore.read_password(path, key="dispatcher.password_file")
    assert caught.value.key == "dispatcher.password_file"


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
def test_an_unusable_password_file_is_refused(tmp_path, content):
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Misconfigured):
        keystore.read_password(path)
    with pytest.raises(Misconfigured, match="cannot read"):
        keystore.read_password(tmp_path / "absent")


async def test_nothing_secret_is_shown(tmp_path):
    await create("bls", tmp_path / "bls.json")
    secret = await keystore.load_bls(tmp_path / "bls.json", PASSWORD)
    texts = [repr(secret), str(secret), f"{secret}", f"{PASSWORD:>20}", repr([secret]), repr({"a": PASSWORD})]
    wrong = " ".join(["wrong", "horse"])  # in two pieces: a traceback shows this source
    try:
        await keystore.load_bls(tmp_path / "bls.json", Secret(wrong))
    except Misconfigured as error:
        texts += traceback.format_exception(error)
    shown = " ".join(texts)
    for hidden in ("correct horse", wrong, str(BLS_SECRET), f"{BLS_SECRET:x}"):
        assert hidden not in shown
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)


values = st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.lists(st.integers(), max_size=2) | st.just({})


@settings(max_examples=80, deadline=None)
@given(
    place=st.sampled_from(["crypto", "kdf", "params", "checksum", "cipher", "n", "r", "iv", "message", "version"]), value=values
)
async def test_any_damage_is_misconfigured_or_harmless(tmp_path_factory, place, value):
    document = copy.deepcopy(SCRYPT)
    document["crypto"]["kdf"]["params"]["n"] = 2

    def damage(table: dict) -> None:
        for name in table:
            if name == place:
                table[name] = value
            elif isinstance(table[name], dict):
                damage(table[name])

    damage(document)
    path = write(tmp_path_factory.mktemp("damage") / "a.json", document)
    for load in (keystore.load_bls, keystore.load_operator):
        with pytest.raises(Misconfigured):
            await load(path, PASSWORD)
