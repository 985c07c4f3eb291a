"""The limits of a server. What one image may be (bytes, pixels) is the engine's ``DecodeLimits``."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import tyro

from digpt.errors import ConfigError

MIB = 1024 * 1024


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """What one request may ask for, and how much may wait; every value must be above zero."""

    max_request_bytes: int = 64 * MIB
    """Bytes of a request body; more is answered 413."""
    max_pending_bytes: int = 512 * MIB
    """Bytes of all request bodies being received or waiting to be decoded; more is answered 429."""
    body_timeout_s: float = 30.0
    """Seconds within which a request body must arrive; later is answered 400."""
    max_connections: int = 1000
    """Open connections; one more is answered 503."""
    max_items: int = 256
    """Images and texts of one request."""
    max_labels: int = 4096
    """Labels of one classify request."""
    max_prompts: int = 16_384
    """Labels times templates of one classify request."""
    max_scores: int = 1 << 16
    """Images times labels in the answer to one classify request."""
    max_text_chars: int = 2000
    """Characters of one text, label or template."""
    max_class_sets: int = 100
    """Class sets kept; one more is answered 409."""
    max_class_set_rows: int = 1 << 16
    """Labels of all class sets together; more is answered 409."""
    class_sets_dir: Path | None = None
    """Directory to keep class sets in, so that they outlive the server; by default they do not."""
    queue_pixels: int = 1 << 24
    """Pixels waiting for one model, counted at its input size (a text counts as one image); more is answered 429."""
    deadline_s: float = 30.0
    """Seconds from a request's last byte to its answer; later is answered 504."""
    stall_s: float = 60.0
    """Seconds after which a computation under way counts as stalled: its model is not ready until it answers again."""
    max_batch: int = 64
    """Images or texts computed together at most; where they would take more than half a second, 8."""
    decode_threads: int = field(default_factory=cores)
    """Threads that decode images; by default one for each core that the process may use."""
    price_per_hour: float | None = None
    """What an hour of this machine costs, in any currency; /metrics then says what a million images cost."""
    allow_url_host: Annotated[tuple[str, ...], tyro.conf.arg(metavar="HOST"), tyro.conf.UseAppendAction] = ()
    """A host whose https URLs may stand for images, repeatable. Without one no URL is fetched."""
    allow_http: bool = False
    """Whether those hosts' http URLs are fetched as well; anybody on the way can change what they answer."""
    url_timeout_s: float = 10.0
    """Seconds for one image by URL."""
    cors_origin: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ORIGIN"), tyro.conf.UseAppendAction] = ()
    """An origin, such as https://example.org, whose pages may use the API from a browser; repeatable."""
    open_metrics: bool = False
    """Whether /metrics is answered without a key where keys are set."""

    def __post_init__(self) -> None:
        for each in fields(self):  # those of a subclass as well
            value = getattr(self, each.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                if not value > 0:
                    raise ConfigError(f"{each.name}={value} must be above zero.")
                if not math.isfinite(value):
                    raise ConfigError(f"{each.name}={value} must be finite.")
