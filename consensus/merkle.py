"""The Merkle tree of 1..32 verdicts that one certificate covers; a single task is a tree of one.

Leaves and nodes are hashed with different prefixes (RFC 6962 section 2.1), so a node can never pass for a leaf.
Leaves are padded to a power of two with zero words.
"""

from __future__ import annotations

from collections.abc import Sequence

from consensus.codec import keccak, words

MAX_LEAVES = 32
_PADDING = bytes(32)


def leaf(task_id: int, execution_digest: bytes, verdict: int) -> bytes:
    """One verdict on one execution, 32 bytes."""
    return keccak(b"\x00" + words(task_id, execution_digest, verdict))


def _node(left: bytes, right: bytes) -> bytes:
    return keccak(b"\x01" + left + right)


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    if not 1 <= len(leaves) <= MAX_LEAVES:
        raise ValueError(f"a tree has 1 to {MAX_LEAVES} leaves, not {len(leaves)}")
    width = 1 << (len(leaves) - 1).bit_length()
    levels = [[*leaves, *[_PADDING] * (width - len(leaves))]]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([_node(below[i], below[i + 1]) for i in range(0, len(below), 2)])
    return levels


def root(leaves: Sequence[bytes]) -> bytes:
    """Root of the tree over `leaves`, in order. Raises ValueError for none or more than 32."""
    return _levels(leaves)[-1][0]


def path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Siblings from the leaf at `index` up to the root, at most five."""
    if not 0 <= index < len(leaves):
        raise ValueError(f"no leaf {index} among {len(leaves)}")
    siblings = []
    for level in _levels(leaves)[:-1]:
        siblings.append(level[index ^ 1])
        index >>= 1
    return tuple(siblings)


def fold(leaf_hash: bytes, index: int, siblings: Sequence[bytes]) -> bytes:
    """The root that `siblings` lead to from a leaf at `index`."""
    node = leaf_hash
    for sibling in siblings:
        node = _node(sibling, node) if index & 1 else _node(node, sibling)
        index >>= 1
    return node
