# pragma version 0.4.3
# pragma evm-version prague
"""
@title Probe
@notice The insides of bls12_381, for comparison with the reference.
"""

import bls12_381


@external
@view
def hash_to_g2(message: bytes32, dst: uint256) -> Bytes[256]:
    return bls12_381.hash_to_g2(message, dst)


@external
@view
def mod_p(high: uint256, low: uint256) -> (uint256, uint256):
    return bls12_381.mod_p(high, low)
