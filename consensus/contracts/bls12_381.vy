# pragma version 0.4.3
# pragma evm-version prague
"""
@title BLS12-381 signatures, keys in G1, signatures in G2, on the precompiles of EIP-2537
@notice Every precompile gets exactly its price: a malformed point burns all gas it is given.
@dev Hash to curve: RFC 9380, BLS12381G2_XMD:SHA-256_SSWU_RO_. Points are in EIP-2537 encoding.
"""

# -G1, so that e(-G1, signature) * e(key, H(message)) == 1
NEGATIVE_G1: constant(Bytes[128]) = x"0000000000000000000000000000000017f1d3a73197d7942695638c4fa9ac0fc3688c4f9774b905a14e3a3f171bac586c55e83ff97a1aeffb3af00adb22c6bb00000000000000000000000000000000114d1d6855d545a8aa7d76c8cf2e21f267816aef1db507c96655b9d5caac42364e6f38ba0ecb751bad54dcd6b939c2ca"

SHA256_BLOCK: constant(Bytes[64]) = x"00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
MODEXP_HEAD: constant(Bytes[96]) = x"000000000000000000000000000000000000000000000000000000000000004000000000000000000000000000000000000000000000000000000000000000010000000000000000000000000000000000000000000000000000000000000040"
MODEXP_TAIL: constant(Bytes[65]) = x"01000000000000000000000000000000001a0111ea397fe69a4b1ba7b6434bacd764774b84f38512bf6730d2a0f6b0f6241eabfffeb153ffffb9feffffffffaaab"

MODEXP: constant(address) = 0x0000000000000000000000000000000000000005
G1_ADD: constant(address) = 0x000000000000000000000000000000000000000b
G2_ADD: constant(address) = 0x000000000000000000000000000000000000000d
PAIRING: constant(address) = 0x000000000000000000000000000000000000000F
MAP_FP2_TO_G2: constant(address) = 0x0000000000000000000000000000000000000011


@internal
@view
def _mod_p(a: bytes32, b: bytes32) -> Bytes[64]:
    return raw_call(MODEXP, concat(MODEXP_HEAD, a, b, MODEXP_TAIL), max_outsize=64, is_static_call=True, gas=600)


@internal
@view
def hash_to_g2(message: bytes32, dst: Bytes[44]) -> Bytes[256]:
    """
    @param dst DST_prime of RFC 9380: the domain separation tag followed by its length in one byte.
    """
    b0: bytes32 = sha256(concat(SHA256_BLOCK, message, x"010000", dst))
    b1: bytes32 = sha256(concat(b0, 0x01, dst))
    b2: bytes32 = sha256(concat(convert(convert(b0, uint256) ^ convert(b1, uint256), bytes32), 0x02, dst))
    b3: bytes32 = sha256(concat(convert(convert(b0, uint256) ^ convert(b2, uint256), bytes32), 0x03, dst))
    b4: bytes32 = sha256(concat(convert(convert(b0, uint256) ^ convert(b3, uint256), bytes32), 0x04, dst))
    b5: bytes32 = sha256(concat(convert(convert(b0, uint256) ^ convert(b4, uint256), bytes32), 0x05, dst))
    b6: bytes32 = sha256(concat(convert(convert(b0, uint256) ^ convert(b5, uint256), bytes32), 0x06, dst))
    b7: bytes32 = sha256(concat(convert(convert(b0, uint256) ^ convert(b6, uint256), bytes32), 0x07, dst))
    b8: bytes32 = sha256(concat(convert(convert(b0, uint256) ^ convert(b7, uint256), bytes32), 0x08, dst))
    p: Bytes[256] = raw_call(MAP_FP2_TO_G2, concat(self._mod_p(b1, b2), self._mod_p(b3, b4)), max_outsize=256, is_static_call=True, gas=23800)
    q: Bytes[256] = raw_call(MAP_FP2_TO_G2, concat(self._mod_p(b5, b6), self._mod_p(b7, b8)), max_outsize=256, is_static_call=True, gas=23800)
    return raw_call(G2_ADD, concat(p, q), max_outsize=256, is_static_call=True, gas=600)


@internal
@view
def add_keys(a: Bytes[128], b: Bytes[128]) -> Bytes[128]:
    return raw_call(G1_ADD, concat(a, b), max_outsize=128, is_static_call=True, gas=375)


@internal
@view
def verify(key: Bytes[128], message: bytes32, signature: Bytes[256], dst: Bytes[44]) -> bool:
    """
    @notice Whether `signature` is the key's on `message`; false for any bad point. The caller refuses identities.
    """
    ok: bool = False
    answer: Bytes[32] = b""
    ok, answer = raw_call(
        PAIRING,
        concat(NEGATIVE_G1, signature, key, self.hash_to_g2(message, dst)),
        max_outsize=32,
        is_static_call=True,
        gas=102900,
        revert_on_failure=False,
    )
    return ok and convert(answer, uint256) == 1
