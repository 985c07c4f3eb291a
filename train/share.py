"""Which rows of a global batch one process computes, and in how many micro-batches.

The global batch of a step is the same at any number of processes; a share only says who computes which rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from digpt.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """Process ``rank`` of ``world``, working through its part in ``accumulate`` micro-batches."""

    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def micro_batch(self, batch_size: int) -> int:
        """Rows per micro-batch of a global batch of ``batch_size``.

        Raises:
            ConfigError: the batch does not divide among processes and micro-batches.
        """
        parts = self.world * self.accumulate
        if batch_size % parts or batch_size < parts:
            low = max(batch_size // parts, 1) * parts
            raise ConfigError(
                f"batch_size={batch_size} is the whole batch and does not divide into {parts} parts "
                f"(processes {self.world} x accumulate {self.accumulate}): use {low} or {low + parts}."
            )
        return batch_size // parts

    def rows(self, batch_size: int) -> list[slice]:
        """The rows ``[start, stop)`` of the global batch, one slice per micro-batch of this process."""
        size = self.micro_batch(batch_size)
        first = self.rank * self.accumulate
        return [slice((first + part) * size, (first + part + 1) * size) for part in range(self.accumulate)]
