"""Puts the files of a request's URLs where the URLs stand, before it is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from digpt.errors import InputError
from serve.errors import BodyTooLargeError, DeadlineError
from serve.fetch import SCHEMES
from serve.images import Image
from serve.inputs import Inputs
from serve.schemas import InferenceRequest
from serve.service import Service

R = TypeVar("R", bound=InferenceRequest)


AT_ONCE = 2  # URLs of one request under way: many of one do not hold up a single one of another


def fetched(
    answer: Callable[[Service, Inputs[R]], Awaitable[dict[str, Any]]],
) -> Callable[[Service, Inputs[R]], Awaitable[dict[str, Any]]]:
    """Let ``answer`` see files, or the error of each, instead of URLs."""

    async def answered(service: Service, inputs: Inputs[R]) -> dict[str, Any]:
        if not any(is_url(image) for image in inputs.images):
            return await answer(service, inputs)
        model = service.model(inputs.request.model)
        model.require_ready()  # nothing is fetched for what would be refused
        held = Held(service, model.engine.limits.max_bytes)
        try:
            images = await held.files(inputs.images, inputs.deadline)

            def release() -> None:
                inputs.drop()  # not before: among the files stand images that came in the body
                held.release()

            return await answer(service, replace(inputs, images=images, release=release))
        finally:
            held.release()

    return answered


class Held:
    """The files fetched for one request, which count in the budget of what the server holds, and its own limit."""

    def __init__(self, service: Service, max_bytes: int) -> None:
        self._service, self._max_bytes = service, max_bytes
        self._held = 0
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def files(self, images: Sequence[Image], deadline: float) -> list[Image]:
        """The file of each URL, or its error; what is no URL as it is.

        Raises:
            DeadlineError: all of them together took until ``deadline`` of ``time.monotonic``.
            ExceptionGroup: what nobody foresaw, when the others have been given up.
        """
        try:
            async with asyncio.timeout(deadline - time.monotonic()), asyncio.TaskGroup() as group:
                files = [group.create_task(self._file(image)) for image in images]
        except TimeoutError:
            limit = self._service.settings.deadline_s
            raise DeadlineError(
                f"The images did not arrive within {limit:g} seconds; send fewer URLs at a time."
            ) from None
        return [file.result() for file in files]

    async def _file(self, image: Image) -> Image:
        if not isinstance(image, str) or not is_url(image):
            return image
        most = self._service.settings.max_request_bytes
        try:
            async with self._turns:
                data = await self._service.fetcher.fetch(image, self._max_bytes)
            if self._held + len(data) > most:
                raise BodyTooLargeError(f"The images by URL have more than the {most} bytes allowed for one request.")
            self._service.bodies.take(len(data), self._held)
        except InputError as error:
            return error
        self._held += len(data)
        return data

    def release(self) -> None:
        """Say that the files are no longer held in memory."""
        self._service.bodies.held -= self._held
        self._held = 0


def is_url(image: Image) -> bool:
    return isinstance(image, str) and image[:8].lower().startswith(SCHEMES)
