"""Finds the longest beginning that a token sequence shares with any of a set of others: a radix tree. Pure.

Does not know where the sequences' rows are, nor which of them to forget.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the beginning are the same in both."""
    length = min(len(one), len(other))
    if list(one[:length]) == list(other[:length]):  # the usual case of a conversation that goes on
        return length
    return next(index for index in range(length) if one[index] != other[index])


class _Node(Generic[Key]):
    """`edge` leads here from the parent; `keys` are the sequences that end here."""

    __slots__ = ("children", "edge", "keys", "parent")

    def __init__(self, edge: tuple[int, ...] = (), parent: _Node[Key] | None = None) -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[int, _Node[Key]] = {}
        self.keys: list[Key] = []

    def below(self) -> Iterator[Key]:
        """Keys of all sequences that pass through or end here."""
        stack: list[_Node[Key]] = [self]
        while stack:
            node = stack.pop()
            yield from node.keys
            stack.extend(node.children.values())


class PrefixTree(Generic[Key]):
    """Sequences by key. Looking one up costs time in proportion to its length, not to the number of others."""

    def __init__(self) -> None:
        self._root: _Node[Key] = _Node()
        self._ends: dict[Key, _Node[Key]] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._ends

    def __len__(self) -> int:
        return len(self._ends)

    def insert(self, key: Key, tokens: Sequence[int]) -> None:
        """Add a sequence under a key that is not in use."""
        if key in self._ends:
            raise ValueError(f"{key!r} is in the tree already")
        node, rest = self._root, tuple(tokens)
        while rest:
            child = node.children.get(rest[0])
            if child is None:
                child = node.children[rest[0]] = _Node(rest, node)
                node, rest = child, ()
                break
            shared = common_prefix(child.edge, rest)
            if shared < len(child.edge):
                child = self._split(child, shared)
            node, rest = child, rest[shared:]
        node.keys.append(key)
        self._ends[key] = node

    def remove(self, key: Key) -> None:
        """Forget a sequence. Raises KeyError if there is none under that key."""
        node = self._ends.pop(key)
        node.keys.remove(key)
        while node.parent is not None and not node.keys and len(node.children) < 2:
            parent = node.parent
            if node.children:  # one child: it takes this node's place
                (child,) = node.children.values()
                child.edge, child.parent = node.edge + child.edge, parent
                parent.children[node.edge[0]] = child
                return
            del parent.children[node.edge[0]]
            node = parent

    def longest(self, tokens: Sequence[int]) -> tuple[int, list[Key]]:
        """The length of the longest shared beginning, and the keys of all that share it (none if the length is 0)."""
        node, length, wanted = self._root, 0, tuple(tokens)
        while length < len(wanted):
            child = node.children.get(wanted[length])
            if child is None:
                break
            shared = common_prefix(child.edge, wanted[length : length + len(child.edge)])
            node, length = child, length + shared
            if shared < len(child.edge):
                break
        return length, list(node.below()) if length else []

    def _split(self, node: _Node[Key], length: int) -> _Node[Key]:
        """Put a node into the edge that leads to `node`, after `length` tokens of it."""
        parent = node.parent
        assert parent is not None
        middle: _Node[Key] = _Node(node.edge[:length], parent)
        parent.children[node.edge[0]] = middle
        node.edge, node.parent = node.edge[length:], middle
        middle.children[node.edge[0]] = node
        return middle
