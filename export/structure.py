"""The nested inputs and outputs of a Keras model as flat lists, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def leaves(structure: Any) -> list[tuple[str, Any]]:
    """Each leaf of nested dictionaries, lists and tuples, with the keys and positions that lead to it.

    >>> leaves({"a": 1, "b": [2, 3]})
    [('a', 1), ('b_0', 2), ('b_1', 3)]
    >>> leaves(1)
    [('', 1)]
    """
    return list(_walk(structure, ""))


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list | tuple):
        children = [(str(i), child) for i, child in enumerate(value)]
    else:
        yield path, value
        return
    for key, child in children:
        yield from _walk(child, f"{path}_{key}" if path else key)


def rebuild(structure: Any, values: Iterator[Any]) -> Any:
    """The same nesting with other leaves, in the order of `leaves`.

    >>> rebuild({"a": 1, "b": [2, (3,)]}, iter("xyz"))
    {'a': 'x', 'b': ['y', ('z',)]}
    """
    if isinstance(structure, dict):
        return {key: rebuild(child, values) for key, child in structure.items()}
    if isinstance(structure, list | tuple):
        children = [rebuild(child, values) for child in structure]
        return tuple(children) if isinstance(structure, tuple) else children
    return next(values)
