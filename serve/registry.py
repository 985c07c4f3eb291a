"""Loading and unloading models while others answer: only those that the command line named, never a spec of a request.

available --load--> loading --it proved itself--> served --unload--> draining --> available
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import APIRouter, Depends

from digpt.engine import Engine
from digpt.errors import DigptError, near_misses
from serve.documents import errors
from serve.errors import ConflictError, UnknownModelError
from serve.keys import require_admin
from serve.process import settle
from serve.schemas import AbsentCard
from serve.service import AbsentModel, ServedModel, Service
from serve.watchdog import prove

log = logging.getLogger("serve")

Loader = Callable[[], Engine]
NOT_LOADED = "an administrator may load it"


class Registry:
    """The models that may be loaded, by name; a served one that is not among them cannot be unloaded."""

    def __init__(self, service: Service, available: Mapping[str, Loader]) -> None:
        self._service, self._available = service, dict(available)
        self._default = next(iter(service.models))
        self._turn = asyncio.Lock()  # one at a time: loading takes memory and processors
        self._tasks: set[asyncio.Task[None]] = set()
        for name in self._available:
            if name not in service.models:
                service.absent[name] = AbsentModel(name, "unloaded", NOT_LOADED)

    def load(self, name: str) -> AbsentCard:
        """Begin to load a model, if it is not loaded and not being loaded; return its state.

        Raises:
            UnknownModelError: it is not among those that may be.
            ConflictError: it is being unloaded.
        """
        if name in self._service.models:
            return self.card(name)
        self._check(name)
        self._service.require_open()
        absent = self._service.absent[name]
        if absent.state == "unloading":
            raise ConflictError(f"Model {name!r} is being unloaded; try again when it is.", param="name")
        if absent.state != "loading":
            absent.state, absent.detail = "loading", "it is being loaded and checked"
            self._begin(self._load(absent))
        return self.card(name)

    def unload(self, name: str) -> AbsentCard:
        """Stop asking a model at once, and release it when it has answered what it was asked; return its state.

        Raises:
            UnknownModelError: it is not among those that may be loaded.
            ConflictError: it is the default, or not ready yet.
        """
        self._check(name)
        if name == self._default:
            raise ConflictError(
                f"{name!r} is the default model, which cannot be unloaded; start the server with another one first.",
                param="name",
            )
        if name not in self._service.models:
            if self._service.absent[name].state == "loading":
                raise ConflictError(f"Model {name!r} is being loaded; try again when it is.", param="name")
            return self.card(name)
        if self._service.models[name].state == "starting":
            raise ConflictError(f"Model {name!r} is being checked; try again when it is.", param="name")
        self._service.absent[name] = AbsentModel(name, "unloading", "it finishes what it was asked")
        self._begin(self._unload(self._service.models.pop(name)))
        return self.card(name)

    def card(self, name: str) -> AbsentCard:
        """The state of a model, served or not."""
        found = self._service.absent.get(name) or self._service.models[name]
        if isinstance(found, AbsentModel):
            return AbsentCard(id=name, state=found.state, detail=found.detail)
        state = "loading" if found.state == "starting" else found.state
        return AbsentCard(id=name, state=state, detail=found.detail)

    async def stop(self) -> None:
        """Finish what has begun."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _load(self, absent: AbsentModel) -> None:
        async with self._turn:
            if self._service.draining:
                absent.state, absent.detail = "unloaded", NOT_LOADED
                return
            try:
                engine = await asyncio.to_thread(self._available[absent.name])
            except Exception as error:  # a library raises anything for a file that it cannot load
                log.exception("model %s was not loaded", absent.name)
                absent.state, absent.detail = "failed", reason(error)
                return
            try:
                detail = await asyncio.to_thread(prove, engine)
            except Exception as error:
                log.exception("model %s failed its check", absent.name)
                absent.state, absent.detail = "failed", f"its backend failed the check ({error})"
                await asyncio.to_thread(engine.close)
                return
        del self._service.absent[absent.name]
        self._service.add(absent.name, engine, detail)

    async def _unload(self, model: ServedModel) -> None:
        try:
            await self._service.release(model)
        except Exception:
            log.exception("model %s was not released cleanly", model.name)
        self._service.absent[model.name] = AbsentModel(model.name, "unloaded", NOT_LOADED)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: settle())  # not in the task itself, which still holds the model that goes

    def _check(self, name: str) -> None:
        if name not in self._available:
            raise UnknownModelError(
                f"No model {name[:80]!r} may be loaded here; the command line names those that may, with --available."
                f"{near_misses(name[:80], self._available)}",
                param="name",
            )


def reason(error: Exception) -> str:
    """Why a model could not be loaded: messages say where its files lie, so that only the log has them."""
    kind = type(error).__name__
    if isinstance(error, DigptError):
        return f"it cannot be loaded ({kind}); the server's log says why"
    return f"loading it failed unexpectedly ({kind}); the server's log has the details"


def admin_router(registry: Registry) -> APIRouter:
    """``POST /models/{name}/load`` and ``/unload``."""
    router = APIRouter(tags=["administration"], dependencies=[Depends(require_admin)])
    refused = errors(401, 403, 404, 409, 422)

    @router.post(
        "/models/{name}/load",
        summary="Load a model",
        status_code=202,
        response_model=AbsentCard,
        response_description="It is loaded, or being loaded; /models says how far that is.",
        responses=refused,
    )
    async def load(name: str) -> AbsentCard:
        return registry.load(name)

    @router.post(
        "/models/{name}/unload",
        summary="Unload a model",
        status_code=202,
        response_model=AbsentCard,
        response_description="It is unloaded, or will be once it has answered what it was asked.",
        responses=refused,
    )
    async def unload(name: str) -> AbsentCard:
        return registry.unload(name)

    return router
