"""The tree against published vectors, and against the RFC's definitions written down a second time."""

from hashlib import sha256

import pytest
from pymerkle import InmemoryTree

from common.audit import merkle

# The test inputs and roots of Certificate Transparency (RFC 6962; the hashing of RFC 9162 is the same).
INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
CONSISTENCY_OF_6_AND_8 = [
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]
MOST = 64


# The definitions of RFC 9162, sections 2.1.1 and 2.1.4.1, as they stand there.


def mth(data):
    if not data:
        return sha256().digest()
    if len(data) == 1:
        return sha256(b"\x00" + data[0]).digest()
    k = largest_power_below(len(data))
    return sha256(b"\x01" + mth(data[:k]) + mth(data[k:])).digest()


def subproof(m, data, complete):
    if m == len(data):
        return [] if complete else [mth(data)]
    k = largest_power_below(len(data))
    if m <= k:
        return [*subproof(m, data[:k], complete), mth(data[k:])]
    return [*subproof(m - k, data[k:], False), mth(data[:k])]


def largest_power_below(n):
    return max(2**e for e in range(n.bit_length()) if 2**e < n)


def tree(data):
    nodes = merkle.perfect_subtrees(merkle.leaf_hash(one) for one in data)
    return lambda level, index: nodes[level, index]


DATA = [str(number).encode() for number in range(MOST)]
TREE = tree(DATA)


@pytest.mark.parametrize("size", range(len(INPUTS) + 1))
def test_roots_are_the_published_ones(size):
    assert merkle.root(size, tree(INPUTS)).hex() == ROOTS[size]


def test_proofs_are_the_published_ones():
    perfect = tree(INPUTS)
    assert [node.hex() for node in merkle.consistency_proof(6, 8, perfect)] == CONSISTENCY_OF_6_AND_8


def test_roots_and_proofs_are_those_of_the_definitions():
    for size in range(1, MOST + 1):
        assert merkle.root(size, TREE) == mth(DATA[:size])
        for old in range(1, size + 1):
            assert merkle.consistency_proof(old, size, TREE) == subproof(old, DATA[:size], True)


def test_every_proof_of_consistency_is_accepted():
    for new in range(MOST + 1):
        for old in range(new + 1):
            proof = merkle.consistency_proof(old, new, TREE)
            assert merkle.is_consistent(old, merkle.root(old, TREE), new, merkle.root(new, TREE), proof)


def test_a_changed_byte_longer_or_shorter_proof_or_other_size_is_not_consistent():
    for old, new in [(1, 2), (1, 3), (2, 3), (3, 4), (3, 7), (4, 7), (6, 8), (7, 8), (8, 13), (13, 33), (32, 33)]:
        first, second = merkle.root(old, TREE), merkle.root(new, TREE)
        proof = merkle.consistency_proof(old, new, TREE)
        assert not merkle.is_consistent(old, flipped(first), new, second, proof)
        assert not merkle.is_consistent(old, first, new, flipped(second), proof)
        assert not merkle.is_consistent(old, first, new, second, [])
        assert not merkle.is_consistent(old, first, new, second, [*proof, second])
        assert not merkle.is_consistent(new, second, old, first, proof)
        for place in range(len(proof)):
            assert not merkle.is_consistent(old, first, new, second, changed(proof, place))
            assert not merkle.is_consistent(old, first, new, second, proof[:place] + proof[place + 1 :])


def test_no_proof_makes_two_histories_one():
    other = tree([*DATA[:5], b"another", *DATA[6:]])
    for new in range(7, 20):
        proof = merkle.consistency_proof(6, new, other)
        assert not merkle.is_consistent(6, merkle.root(6, TREE), new, merkle.root(new, other), proof)


def test_equal_sizes_need_equal_roots_and_no_proof():
    root = merkle.root(5, TREE)
    assert merkle.is_consistent(5, root, 5, root, [])
    assert not merkle.is_consistent(5, root, 5, flipped(root), [])
    assert not merkle.is_consistent(5, root, 5, root, [root])


def test_everything_continues_the_empty_list_and_only_that():
    assert merkle.is_consistent(0, merkle.root(0, TREE), 9, merkle.root(9, TREE), [])
    assert not merkle.is_consistent(0, merkle.root(1, TREE), 9, merkle.root(9, TREE), [])


def test_a_list_does_not_shrink():
    with pytest.raises(ValueError, match="cannot grow"):
        merkle.consistency_proof(5, 4, TREE)


def flipped(data):
    return data[:7] + bytes([data[7] ^ 1]) + data[8:]


def changed(proof, place):
    return [flipped(node) if index == place else node for index, node in enumerate(proof)]


def test_roots_equal_those_of_an_independent_library():
    theirs, entries = InmemoryTree(algorithm="sha256"), []
    for size in range(1, 301):
        entry = f"entry {size}".encode() * (size % 5)
        theirs.append_entry(entry)
        entries.append(entry)
        assert merkle.root(size, tree(entries)) == theirs.get_root()
