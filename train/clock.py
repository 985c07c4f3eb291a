"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Clock:
    """Seconds per part of a step. Parts nest: time inside an inner part counts for the inner part alone.

    On a GPU, work is only queued: there the loop measures one in ``stride`` steps (``active``), waiting for the device
    (``synchronise``) at the borders of each part, and counts it for all of them.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    active: bool = True
    stride: int = 1
    synchronise: Callable[[], None] | None = None
    _inner: list[float] = field(default_factory=list)

    def now(self) -> float:
        """Seconds, once the device has done what was asked of it."""
        if self.synchronise is not None:
            self.synchronise()
        return time.perf_counter()

    @contextmanager
    def part(self, name: str, every: bool = False) -> Iterator[None]:
        """Add the time spent inside to ``name``; ``every``: it is measured every time, not in one step of a stride."""
        if not self.active:
            yield
            return
        start = self.now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = self.now() - start
            self.add(name, elapsed - self._inner.pop(), 1 if every else self.stride)
            if self._inner:
                self._inner[-1] += elapsed

    def add(self, name: str, seconds: float, times: int) -> None:
        """Book ``seconds`` on ``name``, for ``times`` steps."""
        if self.active:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds * times

    def move(self, source: str, target: str, seconds: float) -> None:
        """Rebook ``seconds`` of a step from one part to another."""
        self.add(source, -seconds, self.stride)
        self.add(target, seconds, self.stride)


class BackwardMark:
    """Books the time of ``parts``, which read another module's output, inside a forward and a backward pass.

    Forward by hooks around the parts, backward by the moment the gradient leaves them.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self.clock: Clock | None = None
        self._reached: float | None = None
        self._started = 0.0
        for part in parts:
            part.register_forward_pre_hook(self._start)
            part.register_forward_hook(self._stop)

    def backward(self, loss: Tensor, clock: Clock, before: str, after: str) -> None:
        """Run the backward pass; book it on ``before`` until the gradient has left the parts, then on ``after``."""
        if not clock.active:
            loss.backward()
            return
        start = clock.now()
        self._reached = None
        loss.backward()
        end = clock.now()
        reached = self._reached or start
        clock.add(before, reached - start, clock.stride)
        clock.add(after, end - reached, clock.stride)

    def _start(self, module: nn.Module, arguments: Any) -> None:
        if self.clock is None or not self.clock.active:
            return
        self._started = self.clock.now()
        given = arguments[0][-1] if isinstance(arguments[0], (list, tuple)) else arguments[0]
        if given.requires_grad:
            given.register_hook(self._reach)

    def _stop(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self.clock is not None and self.clock.active:
            self.clock.move("encoder", "decoders", self.clock.now() - self._started)

    def _reach(self, gradient: Tensor) -> None:
        if self.clock is not None:
            self._reached = self.clock.now()
