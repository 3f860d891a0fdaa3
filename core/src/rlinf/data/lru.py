"""A cache of costly things that are worth keeping open or in memory, up to a total cost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Lru(Generic[V]):
    """Keeps what was used last, up to `limit` in the unit of `cost`; `close` is called on what it drops."""

    def __init__(
        self,
        limit: float,
        cost: Callable[[V], float] = lambda value: 1,
        close: Callable[[V], object] = lambda value: None,
    ) -> None:
        self._limit, self._cost, self._close = limit, cost, close
        self._held: OrderedDict[Hashable, V] = OrderedDict()
        self._total = 0.0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of `key`, made if it is not held."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        value = self._held[key] = make()
        self._total += self._cost(value)
        while self._total > self._limit and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._total -= self._cost(dropped)
            self._close(dropped)
        return value

    def drop(self, key: Hashable) -> None:
        """Forget one value, if it is held."""
        if key in self._held:
            value = self._held.pop(key)
            self._total -= self._cost(value)
            self._close(value)
