"""RFC 6962 trees against the definition itself, and proofs against the verifier of RFC 9162."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.merkle import Frontier, consistency_ranges, inclusion_ranges, leaf_hash, node_hash, root_of, roots_of_ranges


def mth(leaves: list[bytes]) -> bytes:
    """The definition, word for word (RFC 6962 §2.1)."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def data(count: int) -> list[bytes]:
    return [number.to_bytes(3, "big") for number in range(count)]


def included(leaf: bytes, index: int, size: int, path: list[bytes], root: bytes) -> bool:
    """RFC 9162 §2.1.3.2."""
    if index >= size:
        return False
    fn, sn, r = index, size - 1, leaf
    for p in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


# The certificate transparency project's published vectors: eight leaves and the roots of every prefix.
LEAVES = [bytes.fromhex(x) for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "60" * 0)]
LEAVES[7] = bytes.fromhex("606162636465666768696a6b6c6d6e6f")
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


@pytest.mark.parametrize("size", range(1, 9))
def test_published_vectors(size: int) -> None:
    assert root_of(LEAVES[:size]).hex() == ROOTS[size - 1]


def test_the_empty_tree() -> None:
    assert Frontier().root() == hashlib.sha256(b"").digest()


@given(st.integers(0, 1100), st.lists(st.integers(0, 600), max_size=4))
def test_a_frontier_grows_in_any_steps(first: int, steps: list[int]) -> None:
    leaves = data(first + sum(steps))
    frontier = Frontier()
    frontier.extend(leaves[:first])
    done = first
    for step in steps:
        frontier = Frontier.from_bytes(frontier.size, bytes(frontier))
        frontier.extend(leaves[done : done + step])
        done += step
    assert (frontier.size, frontier.root()) == (done, mth(leaves[:done]))


@given(st.integers(1, 300), st.data())
def test_inclusion(size: int, draw: st.DataObject) -> None:
    index = draw.draw(st.integers(0, size - 1))
    leaves = data(size)
    path = roots_of_ranges(leaves, inclusion_ranges(index, size))
    assert included(leaf_hash(leaves[index]), index, size, path, mth(leaves))
    assert not included(leaf_hash(b"other"), index, size, path, mth(leaves))
    if size > 1:
        assert not included(leaf_hash(leaves[index]), (index + 1) % size, size, path, mth(leaves))


@pytest.mark.parametrize(("old", "new", "lengths"), [(3, 7, 4), (4, 7, 1), (6, 7, 3), (7, 7, 0), (1, 8, 3)])
def test_consistency_paths_of_the_standards_example(old: int, new: int, lengths: int) -> None:
    assert len(consistency_ranges(old, new)) == lengths


@pytest.mark.parametrize("call", [lambda: inclusion_ranges(3, 3), lambda: inclusion_ranges(-1, 3)])
def test_a_leaf_that_is_not_there(call) -> None:
    with pytest.raises(ValueError, match="no such leaf"):
        call()


@pytest.mark.parametrize(("old", "new"), [(0, 3), (4, 3)])
def test_trees_that_cannot_be_consistent(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="two trees"):
        consistency_ranges(old, new)


def test_leaves_that_end_early() -> None:
    with pytest.raises(ValueError, match="fewer leaves"):
        roots_of_ranges(data(5), inclusion_ranges(2, 9))


@pytest.mark.parametrize(("size", "packed"), [(3, b""), (1, bytes(31)), (-1, b""), (2, bytes(64))])
def test_a_damaged_frontier_is_refused(size: int, packed: bytes) -> None:
    with pytest.raises(ValueError, match="peaks"):
        Frontier.from_bytes(size, packed)
