"""What is signed reads back as it was, and an offer that replaces another is one that nodes accept."""

from __future__ import annotations

import pytest
import rlp
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.errors import Transient
from node.infra.gas_price import Price
from node.infra.secret import Secret
from node.infra.transaction_bytes import Offer, Payload, read, sign
from tests.infra.fake_node import nonce_of

KEY = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
ADDRESS = Account.from_key(KEY).address

wei = st.integers(0, 2**96)
payloads = st.builds(
    Payload,
    to=st.none() | st.binary(min_size=20, max_size=20).filter(any),
    value=wei,
    data=st.binary(max_size=70) | st.binary(min_size=250, max_size=300),
    gas=st.integers(21_000, 2**40),
)
offers = st.builds(lambda tip, more, legacy: Offer(tip + more, None if legacy else tip), wei, wei, st.booleans())


@settings(max_examples=80, deadline=None)
@given(payloads, offers, st.integers(0, 2**40), st.integers(1, 2**32))
def test_what_is_signed_reads_back_and_is_ours(payload, offer, nonce, chain_id):
    signed = sign(Secret(KEY), chain_id, nonce, payload, offer)
    assert read(signed.raw) == (payload, offer)
    assert nonce_of(signed.raw) == nonce
    assert Account.recover_transaction(signed.raw) == ADDRESS
    assert sign(Secret(KEY), chain_id, nonce, payload, offer) == signed


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\x02" + tail) | st.lists(st.binary()).map(rlp.encode))
def test_other_bytes_are_refused(raw):
    try:
        read(raw)
    except ValueError:
        return
    assert len(rlp.decode(raw[1:] if raw[:1] == b"\x02" else raw, strict=False)) >= 6


@given(offers, st.none() | wei, wei, wei)
def test_a_raised_offer_is_an_eighth_more_of_everything_and_within_the_limit(offer, base, tip, most):
    raised = Price(base, tip, 0.0).raised(offer, most)
    if raised is None:
        assert most < max(-(-offer.most * 9 // 8), offer.most + 1)
        return
    assert raised.most <= most
    assert raised.most * 8 >= offer.most * 9
    assert raised.most > offer.most
    assert (raised.tip is None) == (offer.tip is None)
    if raised.tip is not None and offer.tip is not None:
        assert offer.tip < raised.tip <= raised.most
        assert raised.tip * 8 >= offer.tip * 9


@given(st.none() | wei, wei, wei)
def test_a_new_offer_is_within_the_limit_and_not_stuck_at_once(base, tip, most):
    price = Price(base, tip, 0.0)
    try:
        offer = price.offer(most)
    except Transient as refusal:
        assert refusal.code == "GAS_TOO_DEAR"  # noqa: PT017  (an offer is an outcome too)
        return
    assert offer.most <= most
    assert offer.tip is None or offer.tip <= offer.most
    if most >= 2 * ((base or 0) + tip):
        assert not price.exceeds(offer)


def test_bytes_that_end_too_early_are_refused():
    raw = sign(Secret(KEY), 1, 0, Payload(None, 0, b"\x01" * 80, 50_000), Offer(1, 1)).raw
    for end in range(len(raw)):
        with pytest.raises(ValueError, match=r"RLP|unpack"):
            read(raw[:end])
