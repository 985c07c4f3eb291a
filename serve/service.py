"""The models being served: their engines, their queues, whether each answers; and whether the server is stopping."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from digpt.engine import Engine
from digpt.errors import ConfigError, near_misses
from serve.admission import Admission
from serve.batcher import Batch, Batcher
from serve.body import Budget
from serve.errors import DrainingError, NotReadyError, UnknownModelError
from serve.metrics import Metrics
from serve.observe import observation
from serve.settings import Settings
from serve.watchdog import State, Watchdog

log = logging.getLogger("serve")


class ServedModel:
    """One model under its public name: ``engine``, its queue (``admission``, ``batcher``), its ``watchdog``."""

    def __init__(self, name: str, engine: Engine, settings: Settings) -> None:
        self.name, self.engine = name, engine
        self.admission = Admission(settings.queue_pixels, settings.deadline_s)
        self.batcher = Batcher(name, engine, settings.max_batch)
        self.watchdog = Watchdog(name, engine, self.batcher, settings.stall_s)

    @property
    def item_pixels(self) -> int:
        """What an image or a text counts in the queue."""
        return self.engine.info.preprocess.size**2

    @property
    def state(self) -> State:
        return self.watchdog.state

    @property
    def detail(self) -> str:
        """What it is waiting for, why it is not ready, or how it proved itself."""
        return self.watchdog.detail

    def require_ready(self) -> None:
        """Raise NotReadyError unless the model has proved itself and answers."""
        if self.state != "ready":
            raise NotReadyError(f"Model {self.name!r} is not ready: {self.detail}.", param="model", retry_after=1)


class Service:
    """Everything the endpoints need: settings, models by name (the first is the default), what is held, decoders."""

    def __init__(self, engines: Mapping[str, Engine], settings: Settings) -> None:
        if not engines:
            raise ConfigError("There is no model to serve.")
        self.settings = settings
        self.models = {name: ServedModel(name, engine, settings) for name, engine in engines.items()}
        self.metrics = Metrics(self.models, settings.price_per_hour)
        for served in self.models.values():
            served.batcher.on_batch.append(partial(self._computed, served.name))
        self.bodies = Budget(settings.max_pending_bytes)
        self.decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self.draining = False
        self.active = 0
        """Requests for inference that were accepted and have not been answered. Touched on the event loop only."""
        self._watching: list[asyncio.Task[None]] = []

    def model(self, name: str | None = None) -> ServedModel:
        """Return the model of that name, or the default one.

        Raises:
            UnknownModelError: it is not served here; the message names those that are.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModelError(
                f"There is no model {name!r} here; there is {', '.join(self.models)}.{near_misses(name, self.models)}",
                param="model",
            )
        return self.models[name]

    def require_open(self) -> None:
        """Raise DrainingError once the server is stopping."""
        if self.draining:
            raise DrainingError("The server is stopping; send this to another one, or try later.", retry_after=1)

    def require_room(self) -> None:
        """Refuse a request before its body is looked at, where it is certain to be refused after.

        Raises:
            DrainingError: the server is stopping.
            QueueFullError: no model has room for one more image.
        """
        self.require_open()
        if not any(model.admission.room(model.item_pixels) for model in self.models.values()):
            observation().about(self.model().name, images=0, texts=0)
            raise self.model().admission.refusal()

    @contextmanager
    def accepted(self) -> Iterator[None]:
        """Count a request as accepted until it is answered; a server that drains waits for it."""
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    def _computed(self, name: str, batch: Batch) -> None:
        """Count a batch of the model ``name``; called on its inference thread. Checks of a backend are no work."""
        done = batch.size - batch.failed
        if batch.kind == "call" or not done:
            return
        images = done if batch.kind in ("embed", "logits") else 0
        self.metrics.batch_computed(name, images=images, texts=done - images, seconds=batch.seconds)

    def drain(self) -> None:
        """From now on refuse requests and be unready; what was accepted is answered. May be called by a signal."""
        self.draining = True

    def start(self) -> None:
        """Begin to prove every model, and to watch it, in the background."""
        self._watching = [asyncio.create_task(model.watchdog.watch()) for model in self.models.values()]

    async def stop(self) -> None:
        """Finish what has begun, then release threads and models."""
        self.draining = True
        for task in self._watching:
            task.cancel()
        for model in self.models.values():
            if await asyncio.to_thread(model.batcher.close):
                await asyncio.to_thread(model.engine.close)
            else:
                log.error("model %s is left behind: its backend does not answer", model.name)
        self.decoders.shutdown(wait=True, cancel_futures=True)
