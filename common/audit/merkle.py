"""The Merkle tree of RFC 9162, section 2.1: one hash that stands for a list, and short proofs about it.

A leaf is hashed as SHA-256(0x00 || data), an inner node as SHA-256(0x01 || left || right); the list is split at the
largest power of two below its length. So the tree of a longer list contains the perfect subtrees of the shorter one:
they never change, and `Perfect` hands them out. With all of them stored, appending, the root and a proof cost
O(log n).

    perfect(level, index)    hash of the leaves index * 2**level up to (index + 1) * 2**level
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import TypeAlias

HASH_BYTES = 32

Perfect: TypeAlias = Callable[[int, int], bytes]


def leaf_hash(data: bytes) -> bytes:
    """Hash of an entry."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of two subtrees side by side."""
    return sha256(b"\1" + left + right).digest()


def grow(leaf: bytes, index: int, perfect: Perfect) -> Iterator[tuple[int, int, bytes]]:
    """The perfect subtrees that come to be when a leaf is appended, as (level, index, hash); the leaf is the first.

    Args:
        leaf: its hash.
        index: of the leaf, from 0: the size of the tree before.
        perfect: the subtrees there are so far.
    """
    level, node = 0, leaf
    yield level, index, node
    while index & 1:
        node = node_hash(perfect(level, index - 1), node)
        level, index = level + 1, index >> 1
        yield level, index, node


def perfect_subtrees(leaves: Iterable[bytes]) -> dict[tuple[int, int], bytes]:
    """All perfect subtrees over these leaf hashes, by level and index."""
    nodes: dict[tuple[int, int], bytes] = {}
    for index, leaf in enumerate(leaves):
        for level, position, node in grow(leaf, index, lambda *place: nodes[place]):
            nodes[level, position] = node
    return nodes


def root(size: int, perfect: Perfect) -> bytes:
    """The hash of the first `size` leaves."""
    return _subtree(0, size, perfect) if size else sha256(b"").digest()


def consistency_proof(old: int, new: int, perfect: Perfect) -> list[bytes]:
    """Why the first `new` leaves begin with the first `old` ones (RFC 9162, 2.1.4.1); empty for 0 or equal sizes."""
    if not 0 <= old <= new:
        raise ValueError(f"{old} leaves cannot grow to {new}")
    if old in (0, new):
        return []
    proof: list[bytes] = []
    start, stop = 0, new
    while old != stop:
        middle = start + _split(stop - start)
        if old <= middle:
            proof.append(_subtree(middle, stop, perfect))
            stop = middle
        else:
            proof.append(_subtree(start, middle, perfect))
            start = middle
    if start:  # otherwise the verifier has this hash: it is the old root
        proof.append(_subtree(start, stop, perfect))
    return proof[::-1]


def is_consistent(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Check a consistency proof (RFC 9162, 2.1.4.2): the new tree is the old one with leaves appended."""
    if not 0 <= old <= new or not _are_hashes(proof):
        return False
    if old == 0:
        return not proof and old_root == root(0, _nothing)
    if old == new:
        return not proof and old_root == new_root
    path = list(proof) if old & (old - 1) else [old_root, *proof]  # a power of two is one perfect subtree
    if not path:
        return False
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    before = after = path[0]
    for hash_ in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            before, after = node_hash(hash_, before), node_hash(hash_, after)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            after = node_hash(after, hash_)
        position, last = position >> 1, last >> 1
    return last == 0 and before == old_root and after == new_root


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _subtree(start: int, stop: int, perfect: Perfect) -> bytes:
    """Hash of the leaves from start up to stop; start is a multiple of a power of two that reaches stop."""
    size = stop - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return perfect(level, start >> level)
    middle = start + _split(size)
    return node_hash(_subtree(start, middle, perfect), _subtree(middle, stop, perfect))


def _are_hashes(proof: Sequence[bytes]) -> bool:
    return all(len(hash_) == HASH_BYTES for hash_ in proof)


def _nothing(level: int, index: int) -> bytes:
    raise LookupError(f"an empty tree has no subtree {level}, {index}")
