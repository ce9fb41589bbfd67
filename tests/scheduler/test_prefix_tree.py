"""The tree finds what comparing with every sequence finds, whatever was put in and taken out."""

from hypothesis import given
from hypothesis import strategies as st

from garzone.scheduler.prefix_tree import PrefixTree, common_prefix

TOKENS = st.lists(st.integers(0, 2), max_size=8)


@given(st.lists(st.tuples(st.integers(0, 5), TOKENS), max_size=30), st.lists(TOKENS, min_size=1, max_size=5))
def test_the_longest_shared_beginning_is_found(steps: list[tuple[int, list[int]]], wanted: list[list[int]]) -> None:
    tree: PrefixTree[int] = PrefixTree()
    there: dict[int, list[int]] = {}
    for key, tokens in steps:
        if key in there:
            tree.remove(key)
            del there[key]
        else:
            tree.insert(key, tokens)
            there[key] = tokens
        assert len(tree) == len(there)
        for prompt in wanted:
            shared = {other: common_prefix(prompt, there[other]) for other in there}
            longest = max(shared.values(), default=0)
            length, keys = tree.longest(prompt)
            assert length == longest
            assert set(keys) == ({key for key in shared if shared[key] == longest} if longest else set())


def test_a_tree_that_was_emptied_has_no_nodes_left() -> None:
    tree: PrefixTree[str] = PrefixTree()
    for key in ("abc", "abd", "ab", "x"):
        tree.insert(key, key.encode())
    for key in ("ab", "abc", "x", "abd"):
        tree.remove(key)
    assert tree.longest(b"abc") == (0, [])
    assert "ab" not in tree


@given(TOKENS, TOKENS)
def test_the_common_prefix_is_common_and_cannot_be_longer(left: list[int], right: list[int]) -> None:
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert left[length : length + 1] != right[length : length + 1] or not left[length:] or not right[length:]
