# pragma version 0.4.3
# pragma evm-version prague
"""
@title BLS12-381 signatures, keys in G1, signatures in G2, on the precompiles of EIP-2537
@notice Every precompile gets exactly its price: a malformed point burns all gas it is given.
@dev Hash to curve: RFC 9380, BLS12381G2_XMD:SHA-256_SSWU_RO_. Points are in EIP-2537 encoding.
"""

# -G1, so that e(-G1, signature) * e(key, H(message)) == 1
NEGATIVE_G1: constant(Bytes[128]) = x"0000000000000000000000000000000017f1d3a73197d7942695638c4fa9ac0fc3688c4f9774b905a14e3a3f171bac586c55e83ff97a1aeffb3af00adb22c6bb00000000000000000000000000000000114d1d6855d545a8aa7d76c8cf2e21f267816aef1db507c96655b9d5caac42364e6f38ba0ecb751bad54dcd6b939c2ca"

# DST_prime (the domain separation tag and its length in one byte, 44 bytes) differs between our two suites only in its first
# 29 bytes: callers pass those 31 that follow a counter byte, as the low end of a word; the rest is the same.
DST_LAST_13: constant(bytes13) = 0x535357555f524f5f504f505f2b
DST_LAST_15: constant(bytes15) = 0x365f535357555f524f5f504f505f2b

# The field's modulus p = P_HIGH * 2**256 + P_LOW, and floor(2**636 / p)
P_HIGH: constant(uint256) = 34565483545414906068789196026815425751
P_LOW: constant(uint256) = 45442060874369865957053122457065728162598490762543039060009208264153100167851
P_INVERSE: constant(uint256) = 71245217328988327269339739668557783721885440373816207775696739463428519131037

G1_ADD: constant(address) = 0x000000000000000000000000000000000000000b
G2_ADD: constant(address) = 0x000000000000000000000000000000000000000d
PAIRING: constant(address) = 0x000000000000000000000000000000000000000F
MAP_FP2_TO_G2: constant(address) = 0x0000000000000000000000000000000000000011


@internal
@pure
def mod_p(high: uint256, low: uint256) -> (uint256, uint256):
    """
    @notice (high * 2**256 + low) modulo p, by Barrett's reduction; cheaper than a call of the modexp precompile.
    @dev The upper word of a * b is a * b modulo 2**256 - 1, less the lower word and the borrow. q = floor(high * P_INVERSE / 2**380)
         is the quotient or one less, so that the remainder is below 2p, which two words hold.
    """
    m: uint256 = uint256_mulmod(high, P_INVERSE, max_value(uint256))
    n: uint256 = unsafe_mul(high, P_INVERSE)
    q: uint256 = unsafe_sub(unsafe_sub(m, n), convert(m < n, uint256)) >> 124
    m = uint256_mulmod(q, P_LOW, max_value(uint256))
    n = unsafe_mul(q, P_LOW)
    m = unsafe_add(unsafe_add(unsafe_sub(unsafe_sub(m, n), convert(m < n, uint256)), unsafe_mul(q, P_HIGH)), convert(low < n, uint256))
    m = unsafe_sub(high, m)
    n = unsafe_sub(low, n)
    if m < P_HIGH:
        return m, n
    if m == P_HIGH and n < P_LOW:
        return m, n
    return unsafe_sub(unsafe_sub(m, P_HIGH), convert(n < P_LOW, uint256)), unsafe_sub(n, P_LOW)


@internal
@view
def _map_to_g2(a: bytes32, b: bytes32, c: bytes32, d: bytes32) -> Bytes[256]:
    e: uint256 = 0
    f: uint256 = 0
    g: uint256 = 0
    h: uint256 = 0
    e, f = self.mod_p(convert(a, uint256), convert(b, uint256))
    g, h = self.mod_p(convert(c, uint256), convert(d, uint256))
    return raw_call(MAP_FP2_TO_G2, abi_encode(e, f, g, h), max_outsize=256, is_static_call=True, gas=23800)


@internal
@view
def hash_to_g2(message: bytes32, dst: uint256) -> Bytes[256]:
    """
    @param dst The first 31 bytes of DST_prime, in the low end of a word.
    """
    first: bytes32 = convert((65536 << 232) | (dst >> 16), bytes32)   # 0x0100 for 256 bytes of output, 0x00, DST_prime
    b0: bytes32 = sha256(concat(empty(bytes32), empty(bytes32), message, first, DST_LAST_15))
    x: uint256 = convert(b0, uint256)
    b1: bytes32 = sha256(concat(b0, convert(dst | (1 << 248), bytes32), DST_LAST_13))
    b2: bytes32 = sha256(concat(convert(x ^ convert(b1, uint256), bytes32), convert(dst | (2 << 248), bytes32), DST_LAST_13))
    b3: bytes32 = sha256(concat(convert(x ^ convert(b2, uint256), bytes32), convert(dst | (3 << 248), bytes32), DST_LAST_13))
    b4: bytes32 = sha256(concat(convert(x ^ convert(b3, uint256), bytes32), convert(dst | (4 << 248), bytes32), DST_LAST_13))
    b5: bytes32 = sha256(concat(convert(x ^ convert(b4, uint256), bytes32), convert(dst | (5 << 248), bytes32), DST_LAST_13))
    b6: bytes32 = sha256(concat(convert(x ^ convert(b5, uint256), bytes32), convert(dst | (6 << 248), bytes32), DST_LAST_13))
    b7: bytes32 = sha256(concat(convert(x ^ convert(b6, uint256), bytes32), convert(dst | (7 << 248), bytes32), DST_LAST_13))
    b8: bytes32 = sha256(concat(convert(x ^ convert(b7, uint256), bytes32), convert(dst | (8 << 248), bytes32), DST_LAST_13))
    p: Bytes[256] = self._map_to_g2(b1, b2, b3, b4)
    q: Bytes[256] = self._map_to_g2(b5, b6, b7, b8)
    return raw_call(G2_ADD, concat(p, q), max_outsize=256, is_static_call=True, gas=600)


@internal
@view
def verify(key: Bytes[128], message: bytes32, signature: Bytes[256], dst: uint256) -> bool:
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
