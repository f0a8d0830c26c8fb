"""CIDs and layouts against known ones, and files from blocks that lie."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.cid import DAG_PB, MAX_BLOCK_BYTES, RAW, Cid, Layout, blocks, cid_of, layout_of, matches, raw_cid, sha2_256
from consensus.errors import Failed, Reject
from consensus.messages import spec_cid, spec_digest
from consensus.unixfs import MAX_DEPTH, SPARE_BLOCKS, Assembly, decode_node

KIB = 1024
MIB = 1024 * KIB

V0, V1 = Layout(0, raw_leaves=False), Layout(1, raw_leaves=True)
KNOWN = [
    # What an IPFS daemon says; tests/infra/test_ipfs.py asks one.
    (b"", V0, "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"),
    (b"", V1, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"),
    (b"hello world\n", V0, "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o"),
    (b"hello world", V1, "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"),
]

LAYOUTS = [Layout(version, raw, chunk) for version in (0, 1) for raw in (False, True) for chunk in (256 * KIB, MIB)]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize(("data", "layout", "cid"), KNOWN)
def test_known_files_have_their_known_cids(data: bytes, layout: Layout, cid: str) -> None:
    assert str(cid_of(data, layout)) == cid
    assert matches(cid, data)
    assert not matches(cid, data + b"!")


def test_a_jobs_spec_is_named_as_ipfs_names_it() -> None:
    assert spec_cid(spec_digest(b"hello world")) == KNOWN[3][2] == str(raw_cid(b"hello world"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [0, 1, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, MIB, MIB + 1, 3 * MIB + 7])
def test_a_file_in_any_layout_matches_its_cid_and_comes_back_from_its_blocks(size: int, layout: Layout) -> None:
    data = noise(size)
    laid = {block.cid.digest: block.data for block in blocks(data, layout)}
    cid = cid_of(data, layout)
    assert matches(str(cid), data)
    found = layout_of(cid, data)
    assert found is not None
    assert list(blocks(data, found))[-1].cid == cid
    assert all(len(block) <= MAX_BLOCK_BYTES for block in laid.values())
    assert assembled(cid, laid.__getitem__, max_bytes=size) == data
    if size:
        assert not matches(cid, bytes([data[0] ^ 1]) + data[1:])


def test_a_file_of_two_levels_comes_back_too() -> None:
    data = bytes(256 * KIB * 175)  # of equal chunks: one leaf is linked 175 times
    laid = {block.cid.digest: block.data for block in blocks(data)}
    assert len(laid) == 4
    assert assembled(cid_of(data), laid.__getitem__, max_bytes=len(data)) == data


def assembled(cid: Cid, block: Callable[[bytes], bytes], *, max_bytes: int) -> bytes:
    file = Assembly(cid, max_bytes=max_bytes)
    while file.wanted is not None:
        file.take(block(file.wanted.digest))
    return file.content


# text


@given(st.binary(min_size=32, max_size=32), st.sampled_from([(0, DAG_PB), (1, DAG_PB), (1, RAW)]))
def test_every_cid_is_read_from_its_text_and_its_bytes(digest: bytes, kind: tuple[int, int]) -> None:
    cid = Cid(*kind, digest)
    assert Cid.parse(str(cid)) == cid
    assert Cid.decode(cid.encode()) == cid


@given(st.text(max_size=64) | st.sampled_from([cid for *_, cid in KNOWN]).flatmap(lambda cid: mutated(cid)))
def test_a_text_is_a_cid_in_one_way_only_or_none(text: str) -> None:
    cid: Cid | None = None
    with suppress(Failed):
        cid = Cid.parse(text)
    assert cid is None or str(cid) == text


def mutated(text: str) -> st.SearchStrategy[str]:
    alphabet = st.characters(codec="utf-8") | st.sampled_from("Qmbafkreizdj234567=lIO0")
    return st.tuples(st.integers(0, len(text) - 1), alphabet).map(lambda at: text[: at[0]] + at[1] + text[at[0] + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        "",
        KNOWN[3][2].upper(),
        "f" + Cid.parse(KNOWN[3][2]).encode().hex(),
        KNOWN[3][2] + "=",
        KNOWN[3][2][:-1] + "f",  # the last digit's two spare bits
        "Qm" + "1" * 44,
        "b" + base64.b32encode(b"\x01\x71\x12\x20" + bytes(32)).decode().lower().rstrip("="),  # dag-cbor
        "b" + base64.b32encode(b"\x01\x55\x1b\x20" + bytes(32)).decode().lower().rstrip("="),  # keccak-256
        "b" + base64.b32encode(b"\x01\x55\x12\x20" + bytes(31)).decode().lower().rstrip("="),
    ],
)
def test_other_texts_and_other_kinds_are_refused(text: str) -> None:
    with pytest.raises(Failed, match="CONTENT_INVALID"):
        Cid.parse(text)
    assert not matches(text, b"")


# hostile blocks


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(*children: tuple[Cid, int], data: bytes = b"", size: int | None = None, kind: int = 2) -> bytes:
    """A UnixFS node that says what the test says."""
    said = field(1, kind) + (field(2, data) if data else b"")
    said += field(3, len(data) + sum(each for _, each in children) if size is None else size)
    said += b"".join(field(4, each) for _, each in children)
    links = b"".join(field(2, field(1, cid.encode()) + field(2, b"") + field(3, 99)) for cid, _ in children)
    return links + field(1, said)


def named(block: bytes, codec: int = DAG_PB) -> Cid:
    return Cid(1, codec, sha2_256(block))


def test_a_node_whose_own_bytes_come_before_its_children_is_a_file() -> None:
    tail = b"tail"
    root = node((raw_cid(tail), 4), data=b"head")
    laid = {sha2_256(block): block for block in (tail, root)}
    assert assembled(named(root), laid.__getitem__, max_bytes=8) == b"headtail"


LEAF = b"x" * 100
WRONG = {
    "a directory": node(kind=1),
    "a symlink": node(kind=4, data=b"/etc/passwd"),
    "a shard": node(kind=5),
    "no UnixFS": field(2, field(1, raw_cid(LEAF).encode())),
    "nothing": b"",
    "two data": node() + node(),
    "an unknown field": node() + field(3, 1),
    "a size that is not its parts'": node((raw_cid(LEAF), 100), size=99),
    "a size beyond its parts": node(size=10),
    "a link to nothing": node((raw_cid(b""), 0)),
    "more links than sizes": field(2, field(1, raw_cid(LEAF).encode())) + node((raw_cid(LEAF), 100)),
    "a link without a CID": field(2, field(2, b"")) + field(1, field(1, 2) + field(4, 1)),
    "a link of another kind": field(2, field(1, b"\x01\x71\x12\x20" + bytes(32))) + field(1, field(1, 2) + field(4, 1)),
    "a varint without an end": field(1, field(1, 2)) + b"\xff" * 12,
    "a varint too long": b"\x8a\x80\x00" + node()[1:],
    "a length beyond the block": b"\x0a\x7f\x08\x02",
    "a fixed64": b"\x09" + bytes(8),
    "a group": b"\x0b\x0c",
}


@pytest.mark.parametrize("block", WRONG.values(), ids=WRONG.keys())
def test_a_node_that_is_no_file_is_refused(block: bytes) -> None:
    file = Assembly(named(block), max_bytes=MIB)
    with pytest.raises(Failed, match="CONTENT_INVALID"):
        file.take(block)


def test_other_bytes_than_named_are_a_lie_and_the_right_ones_still_wanted() -> None:
    file = Assembly(raw_cid(b"right"), max_bytes=MIB)
    with pytest.raises(Reject, match="WRONG_BYTES"):
        file.take(b"wrong")
    file.take(b"right")
    assert file.wanted is None
    assert file.content == b"right"


@pytest.mark.parametrize("block", [bytes(1001), node((raw_cid(LEAF), 10**12)), node(data=bytes(1001))])
def test_a_file_over_the_limit_is_refused_at_its_root(block: bytes) -> None:
    file = Assembly(named(block, RAW if not any(block) else DAG_PB), max_bytes=1000)
    with pytest.raises(Failed, match="CONTENT_TOO_LARGE"):
        file.take(block)


def test_a_child_of_another_size_than_announced_ends_the_file() -> None:
    for child, codec in ((bytes(99), RAW), (bytes(101), RAW), (node(data=bytes(99)), DAG_PB)):
        root = node((named(child, codec), 100))
        file = Assembly(named(root), max_bytes=MIB)
        file.take(root)
        with pytest.raises(Failed, match="CONTENT_INVALID"):
            file.take(child)


def test_a_block_over_the_largest_is_refused_unread() -> None:
    with pytest.raises(Failed, match="CONTENT_TOO_LARGE"):
        Assembly(raw_cid(b""), max_bytes=10 * MIB).take(bytes(MAX_BLOCK_BYTES + 1))


def test_a_tree_too_deep_is_refused() -> None:
    laid, below = {}, (raw_cid(LEAF), 100)
    laid[raw_cid(LEAF).digest] = LEAF
    for _ in range(MAX_DEPTH):
        block = node(below)
        laid[sha2_256(block)] = block
        below = (named(block), 100)
    with pytest.raises(Failed, match=f"more than {MAX_DEPTH} levels"):
        assembled(below[0], laid.__getitem__, max_bytes=MIB)
    one_less = decode_node(laid[below[0].digest]).links[0].cid
    assert assembled(one_less, laid.__getitem__, max_bytes=MIB) == LEAF


def test_a_file_in_crumbs_is_refused_before_they_are_fetched() -> None:
    crumbs = node(*((raw_cid(bytes([n % 256])), 1) for n in range(SPARE_BLOCKS + 2)))
    file = Assembly(named(crumbs), max_bytes=4096)
    with pytest.raises(Failed, match="too many blocks"):
        file.take(crumbs)


def test_crumbs_shared_out_over_many_nodes_are_refused_all_the_same() -> None:
    twig = node(*((raw_cid(b"x"), 1) for _ in range(8)))
    laid = {sha2_256(twig): twig, raw_cid(b"x").digest: b"x"}
    root = node(*((named(twig), 8) for _ in range(SPARE_BLOCKS)))
    laid[sha2_256(root)] = root
    fetched = 0

    def block(digest: bytes) -> bytes:
        nonlocal fetched
        fetched += 1
        return laid[digest]

    with pytest.raises(Failed, match="too many blocks"):
        assembled(named(root), block, max_bytes=4096)
    assert fetched <= SPARE_BLOCKS + 1


FLOODS = {
    "links": field(2, field(1, raw_cid(LEAF).encode()) + field(3, 1)) * 24_000,
    "block sizes": field(1, field(1, 2) + field(4, 1) * 500_000),
    "modes": field(1, field(1, 2) + field(7, 1) * 500_000),
    "fields of a link": field(2, field(1, raw_cid(LEAF).encode()) + field(3, 1) * 500_000),
}


@pytest.mark.parametrize("block", FLOODS.values(), ids=FLOODS.keys())
def test_a_block_that_is_all_fields_is_not_read_to_its_end(block: bytes) -> None:
    """A program reads strangers' blocks between its other work, and this one would hold it up for most of a second."""
    assert len(block) <= MAX_BLOCK_BYTES
    with pytest.raises(Failed, match=r"more than [0-9]+ fields") as refused:
        decode_node(block)
    assert refused.value.code == "CONTENT_INVALID"


@given(st.binary(max_size=300) | st.sampled_from(sorted(WRONG.values())).flatmap(lambda b: st.binary(max_size=20).map(b.__add__)))
@settings(max_examples=300)
def test_no_block_makes_anything_but_a_file_or_a_named_refusal(block: bytes) -> None:
    with suppress(Failed):
        found = decode_node(block)
        assert found.size >= len(found.data)


@given(data=st.data())
@settings(max_examples=150)
def test_a_damaged_tree_is_never_taken_for_the_file(data: st.DataObject) -> None:
    """Each block is replaced by one that hashes as named but says something else: only sizes and structure can tell."""
    content = data.draw(st.binary(min_size=1, max_size=400))
    layout = Layout(1, data.draw(st.booleans()), chunk=data.draw(st.integers(20, 200)), width=data.draw(st.integers(2, 5)))
    laid = {block.cid.digest: block.data for block in blocks(content, layout)}
    victim = data.draw(st.sampled_from(sorted(laid)))
    at = data.draw(st.integers(0, max(0, len(laid[victim]) - 1)))
    laid[victim] = laid[victim][:at] + data.draw(st.binary(max_size=3)) + laid[victim][at + 1 :]
    try:
        found = assembled(cid_of(content, layout), laid.__getitem__, max_bytes=MIB)
    except (Failed, Reject):
        return
    assert found == content
