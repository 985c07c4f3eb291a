"""A bounded cache that counts its hits, shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class LruCache(Generic[V]):
    """A thread-safe least-recently-used cache bounded by the sum of its entries' weights, counting hits and misses."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._weight = 0
        self._entries: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, *, ahead: bool = False) -> V | None:
        """The value, or None: a miss, unless it is ``ahead`` of another look at the same key."""
        with self._lock:
            if key not in self._entries:
                self.misses += not ahead
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: str, value: V, weight: int = 1) -> None:
        """Store ``value`` and drop the oldest entries; one heavier than the whole cache is not stored."""
        with self._lock:
            if key in self._entries:
                self._weight -= self._entries.pop(key)[1]
            if weight > self.capacity:
                return
            self._entries[key] = (value, weight)
            self._weight += weight
            while self._weight > self.capacity:
                self._weight -= self._entries.popitem(last=False)[1][1]

    def stats(self) -> dict[str, int]:
        with self._lock:
            return {
                "hits": self.hits,
                "misses": self.misses,
                "entries": len(self._entries),
                "weight": self._weight,
                "capacity": self.capacity,
            }
