"""The models being served: their engines, their workers, and whether each has proved itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from digpt.engine import Engine
from digpt.errors import ConfigError, near_misses
from serve.body import Budget
from serve.classsets import ClassSets
from serve.errors import NotReadyError, UnknownModelError
from serve.fetch import Fetcher
from serve.settings import Settings
from serve.worker import Worker

log = logging.getLogger("serve")

DRAIN_POLL_S = 0.01


@dataclass
class ServedModel:
    """One model under its public name; ``detail`` says what it is waiting for, or why it never gets ready."""

    name: str
    engine: Engine
    worker: Worker
    state: Literal["starting", "ready", "failed"] = "starting"
    detail: str = "it has not been checked yet"
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def require_ready(self) -> None:
        """Raise NotReadyError unless the model has proved itself."""
        if self.state != "ready":
            raise NotReadyError(f"Model {self.name!r} is not ready: {self.detail}.", param="model", retry_after=1)


def prove(engine: Engine) -> str:
    """Let the live backend reproduce its golden embeddings, or warm it up where it has none; return what was found.

    Raises:
        BackendError: it did not reproduce them.
    """
    report = engine.verify_golden()
    report.raise_for_failure()
    info = engine.info
    if not report.checked:
        engine.embed_images(np.zeros((1, info.preprocess.size, info.preprocess.size, 3), np.uint8))
    if info.has_text and info.labels and info.head is None:
        engine.class_matrix(info.labels)  # a thousand labels take seconds: here, not in somebody's first request
    return report.message if report.checked else "it answers; it came without golden embeddings to compare with"


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
        self.models = {
            name: ServedModel(name, engine, Worker(name, settings.queue_pixels)) for name, engine in engines.items()
        }
        self.class_sets = ClassSets(settings)
        self.fetcher = Fetcher(settings)
        self.absent: dict[str, AbsentModel] = {}  # see serve.registry
        self.bodies = Budget(settings.max_pending_bytes)
        self.decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")

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

    def start(self) -> None:
        """Begin to prove every model, in the background."""
        for model in self.models.values():
            model.tasks.append(asyncio.create_task(self._prove(model)))

    async def _prove(self, model: ServedModel) -> None:
        model.detail = "its backend is being checked"
        try:
            ran = await model.worker.run(lambda: prove(model.engine))
        except Exception as error:
            log.exception("model %s failed its check", model.name)
            model.state, model.detail = "failed", f"its backend failed the check ({error})"
        else:
            model.state, model.detail = "ready", ran.value

    async def stop(self) -> None:
        """Finish what has begun, then release threads and models."""
        for model in self.models.values():
            for task in model.tasks:
                task.cancel()
            await asyncio.to_thread(model.worker.close)
            await asyncio.to_thread(model.engine.close)
        self.decoders.shutdown(wait=True, cancel_futures=True)

    def add(self, name: str, engine: Engine, detail: str) -> None:
        """Serve one more model, which has proved itself; ``detail`` says how."""
        self.models[name] = ServedModel(name, engine, Worker(name, self.settings.queue_pixels), "ready", detail)

    async def remove(self, name: str) -> None:
        """Stop serving a model at once, and release it when what it has begun is done. The others go on."""
        model = self.models.pop(name)
        while model.worker.admitted_pixels:
            await asyncio.sleep(DRAIN_POLL_S)
        async with self.class_sets.building:
            await asyncio.to_thread(model.worker.close)
            await asyncio.to_thread(model.engine.close)
