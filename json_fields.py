"""Reading JSON objects of a schema: a field at a time, with errors that name the place, and nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .errors import StoreError

_T = TypeVar("_T")


class Fields:
    """Takes fields out of a JSON object one by one; what is left at the end, in ``rest``, was unknown.

    Everything raises `StoreError`, with ``where`` before it, for a value of another kind.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise StoreError(f"{where}: expected an object, got {type(value).__name__}")
        self.rest: dict[str, Any] = dict(value)
        self.where = where

    def take(self, key: str, kind: type[_T] | tuple[type[_T], ...], default: Any = ...) -> _T:
        """A field of this kind; without a default, one that has to be there."""
        if key not in self.rest:
            if default is ...:
                raise StoreError(f"{self.where}: the field {key!r} is missing")
            return default  # type: ignore[no-any-return]  # the caller's own default
        value: Any = self.rest.pop(key)
        if default is None and value is None:
            return default  # type: ignore[return-value]  # an optional field, written as null
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(k.__name__ for k in kinds)
            raise StoreError(f"{self.where}: {key!r} must be {names}, got {value!r}")
        return value

    def strings(self, key: str, default: Any = ...) -> tuple[str, ...]:
        """A list of strings."""
        raw: list[Any] = self.take(key, list, default)
        if not all(isinstance(item, str) for item in raw):
            raise StoreError(f"{self.where}: {key!r} must hold strings, got {raw!r}")
        return tuple(raw)

    def mapping(self, key: str, parse_one: Callable[[Any, str], _T], default: Any = ...) -> dict[str, _T]:
        """An object whose values are all of one kind."""
        raw: dict[str, Any] = self.take(key, dict, default)
        return {name: parse_one(value, f"{self.where}: {key}.{name}") for name, value in raw.items()}


def present(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """The pairs without those that are None."""
    return {key: value for key, value in pairs.items() if value is not None}
