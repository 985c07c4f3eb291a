"""The models being served: their engines, their queues, whether each answers; and whether the server is stopping."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from digpt.engine import Engine
from digpt.errors import ConfigError, near_misses
from serve.admission import Admission
from serve.batcher import Batch, Batcher
from serve.body import Budget
from serve.classsets import ClassSets
from serve.errors import DrainingError, NotReadyError, UnknownModelError
from serve.fetch import Fetcher
from serve.metrics import Metrics
from serve.observe import observation
from serve.settings import Settings
from serve.watchdog import State, Watchdog

log = logging.getLogger("serve")

DRAIN_POLL_S = 0.01


class ServedModel:
    """One model under its public name: ``engine``, its queue (``admission``, ``batcher``), its ``watchdog``."""

    def __init__(self, name: str, engine: Engine, settings: Settings) -> None:
        self.name, self.engine = name, engine
        self.admission = Admission(settings.queue_pixels, settings.deadline_s)
        self.batcher = Batcher(name, engine, settings.max_batch)
        self.watchdog = Watchdog(name, engine, self.batcher, settings.stall_s)
        self.watching: asyncio.Task[None] | None = None

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

    async def close(self) -> None:
        """Finish what has begun, then release the thread and the engine."""
        if self.watching is not None:
            self.watching.cancel()
        if await asyncio.to_thread(self.batcher.close):
            await asyncio.to_thread(self.engine.close)
        else:
            log.error("model %s is left behind: its backend does not answer", self.name)


@dataclass
class AbsentModel:
    """A model that may be loaded and is not: why, or what is being done about it."""

    name: str
    state: Literal["unloaded", "loading", "unloading", "failed"]
    detail: str


class Service:
    """Everything the endpoints need: settings, models by name (the first is the default), what is held, decoders."""

    def __init__(self, engines: Mapping[str, Engine], settings: Settings) -> None:
        if not engines:
            raise ConfigError("There is no model to serve.")
        self.settings = settings
        self.models: dict[str, ServedModel] = {}
        for name, engine in engines.items():
            self._serve(name, engine)
        self.metrics = Metrics(self.models, settings.price_per_hour)
        self.class_sets = ClassSets(settings)
        self.fetcher = Fetcher(settings)
        self.absent: dict[str, AbsentModel] = {}  # see serve.registry
        self.bodies = Budget(settings.max_pending_bytes)
        self.decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self.draining = False
        self.active = 0
        """Requests for inference that were accepted and have not been answered. Touched on the event loop only."""

    def model(self, name: str | None = None) -> ServedModel:
        """Return the model of that name, or the default one.

        Raises:
            UnknownModelError: it is not served here; the message names those that are.
            NotReadyError: it may be loaded and is not.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name in self.absent:
            found = self.absent[name]
            raise NotReadyError(
                f"Model {name!r} is {found.state}: {found.detail}.",
                param="model",
                retry_after=1 if found.state == "loading" else None,
            )
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
        for model in self.models.values():
            model.watching = asyncio.create_task(model.watchdog.watch())

    async def stop(self) -> None:
        """Finish what has begun, then release threads and models."""
        self.draining = True
        for model in self.models.values():
            await model.close()
        self.decoders.shutdown(wait=True, cancel_futures=True)

    def add(self, name: str, engine: Engine, detail: str) -> None:
        """Serve one more model, which has proved itself; ``detail`` says how."""
        model = self._serve(name, engine)
        model.watchdog.proved(detail)
        model.watching = asyncio.create_task(model.watchdog.watch())

    async def release(self, model: ServedModel) -> None:
        """Release a model that is no longer among ``models``, when what it has begun is done. The others go on."""
        while model.admission.pixels:
            await asyncio.sleep(DRAIN_POLL_S)
        async with self.class_sets.building:
            await model.close()

    def _serve(self, name: str, engine: Engine) -> ServedModel:
        model = self.models[name] = ServedModel(name, engine, self.settings)
        model.batcher.on_batch.append(partial(self._computed, name))
        return model
