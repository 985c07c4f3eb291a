"""A small client of a running server (``python -m serve``). Imports without torch.

>>> with Client("http://127.0.0.1:8000") as client:
...     client.embed(images=["cat.png"], texts=["a cat"]).shape
(2, 192)

A server that is busy or not ready yet (429 or 503 with ``Retry-After``) is asked again when it says, for up to a
minute; every other no, and a connection that breaks, is raised at once: nothing is computed twice.

For evaluating a server like a file, its address is a model spec: ``Engine.load("http://127.0.0.1:8000")``.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digpt.engine import Prediction
from digpt.errors import BackendError, InputError
from digpt.runtime.remote import BUSY, KEY_VARIABLE, SHOWN, error_of, http_client, retry_after, split_url

if TYPE_CHECKING:
    import httpx

ANSWER_S = 120.0
PATIENCE_S = 60.0


class ServerError(BackendError):
    """A server's no. ``status`` is HTTP's; ``code``, ``param`` and ``index`` are those of its error."""

    def __init__(self, message: str, status: int, code: str | None, param: str | None, index: int | None) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.index = status, code, param, index


class Client:
    """One server's endpoints as methods.

    Args:
        address: ``http://HOST:PORT``.
        key: sent as a Bearer key; None reads the environment variable DIGPT_API_KEY, now and not again.
        patience_s: how long a server that is busy, or not ready yet, is asked again.
    """

    def __init__(
        self, address: str = "http://127.0.0.1:8000", *, key: str | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        self._address, _ = split_url(address)
        self._patience_s = patience_s
        self._http = http_client(self._address, key or os.environ.get(KEY_VARIABLE), ANSWER_S)

    def models(self) -> list[dict[str, Any]]:
        """What the server says about its models; the first is the default."""
        found: list[dict[str, Any]] = self._ask("GET", "/models")["data"]
        return found

    def embed(
        self,
        images: Sequence[str | Path | bytes] = (),
        texts: Sequence[str] = (),
        *,
        model: str | None = None,
        normalize: bool = True,
    ) -> NDArray[np.float32]:
        """Image files (paths or their bytes) and texts -> float32 ``[N,D]``, images first.

        Raises:
            InputError: one of them cannot be embedded; the message names it.
            ServerError: the server said no.
        """
        body = {"images": _coded(images), "texts": list(texts), "model": model, "normalize": normalize}
        answer = self._ask("POST", "/embed", {**body, "encoding_format": "base64"})
        rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in _whole(answer)]
        return np.stack(rows).astype(np.float32)

    def classify(
        self,
        images: Sequence[str | Path | bytes],
        labels: Sequence[str] | None = None,
        *,
        class_set: str | None = None,
        templates: Sequence[str] | None = None,
        top_k: int = 5,
        model: str | None = None,
    ) -> list[list[Prediction]]:
        """Image files -> for each the ``top_k`` best of ``labels``, of a stored class set, or of the model's own.

        Raises:
            InputError: one of them cannot be classified; the message names it.
            ServerError: the server said no.
        """
        body = {"images": _coded(images), "labels": labels and list(labels), "class_set": class_set}
        options = {"templates": templates and list(templates), "top_k": top_k, "model": model}
        answer = self._ask("POST", "/classify", {**body, **options})
        return [[Prediction(best["label"], best["score"]) for best in item["predictions"]] for item in _whole(answer)]

    def put_class_set(
        self, name: str, labels: Sequence[str], templates: Sequence[str] | None = None, *, model: str | None = None
    ) -> dict[str, Any]:
        """Store a class set; return what the server says about it (``status``: created, replaced or unchanged)."""
        body = {"labels": list(labels), "templates": templates and list(templates), "model": model}
        return self._ask("PUT", f"/class-sets/{name}", body)

    def close(self) -> None:
        """Close the connections; a closed client cannot be used again."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request, repeated while the server is busy; ServerError for any answer but a good one."""
        import httpx

        until = time.monotonic() + self._patience_s
        while True:
            try:
                answer = self._http.request(method, self._address + path, json=body)
            except httpx.RequestError as error:
                raise BackendError(f"{self._address} cannot be reached ({error or type(error).__name__}).") from None
            wait = retry_after(answer)
            asked_to_wait = answer.status_code in BUSY and "Retry-After" in answer.headers
            if not asked_to_wait or time.monotonic() + wait > until:
                break
            time.sleep(wait)
        if answer.is_success:
            return self._content(answer)
        no = error_of(answer)
        said = f"{self._address} answers {answer.status_code}: {no['message']}"
        raise ServerError(said, answer.status_code, no["code"], no.get("param"), no.get("index"))

    def _content(self, answer: httpx.Response) -> dict[str, Any]:
        """The JSON object of a good answer; ServerError where it is something else, such as a proxy's page."""
        try:
            found = answer.json()
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        said = " ".join(answer.text[:SHOWN].split())
        raise ServerError(
            f"{self._address} answers {answer.status_code} without JSON, so it is no digpt server: {said!r}.",
            answer.status_code,
            None,
            None,
            None,
        )


def _coded(images: Sequence[str | Path | bytes]) -> list[str]:
    files = [image if isinstance(image, bytes) else Path(image).read_bytes() for image in images]
    return [base64.b64encode(data).decode() for data in files]


def _whole(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of an answer; InputError if one of them failed."""
    for item in answer["data"]:
        if "error" in item:
            raise InputError(f"Input {item['index']}: {item['error']['message']}")
    items: list[dict[str, Any]] = answer["data"]
    return items
