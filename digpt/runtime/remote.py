"""Asks a running server (``python -m serve``) instead of computing: a model behind HTTP is measured like a file.

    python -m evaluate.robustness http://127.0.0.1:8000
    python -m evaluate.robustness 'http://127.0.0.1:8000#emoji-tiny'

Crops travel as PNG, which loses nothing, and embeddings as float32, not normalised: the answers are the runtime's own.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import numpy as np
from PIL import Image

from digpt.abstain import AbstainRule
from digpt.errors import (
    BackendError,
    CapabilityError,
    ConfigError,
    DigptError,
    InputError,
    MissingDependencyError,
    SpecError,
)
from digpt.preprocess import Preprocess
from digpt.runtime.base import Golden, RuntimeInfo, check_images, no_logits, no_patch_tokens, no_text

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "DIGPT_API_KEY"
MAX_ITEMS = 64  # of one request, if the server takes as many: larger batches gain nothing and come near its deadline
SPARE_BYTES = 1 << 16  # of a request's limit, for what is not the images
PART_BYTES = 256  # what multipart adds to each
CONNECT_S = 5.0
ANSWER_S = 120.0  # above the server's own deadline, so that its 504 arrives
PATIENCE_S = 120.0  # how long a server that is busy, or not ready yet, is asked again
LONGEST_WAIT_S = 30.0  # between two attempts
IDLE_S = 2.0  # a server closes idle connections after 5: reusing one at that moment would fail
SHOWN = 200  # characters of an answer that a message repeats
BUSY, TOO_SLOW = (429, 503), 504
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def split_url(spec: str) -> tuple[str, str | None]:
    """``http://HOST:PORT[/PREFIX][#MODEL or ?model=MODEL]`` -> the server's address, and the model's name or None.

    Raises:
        SpecError: anything else; a password in it would end up in every results file.
    """
    try:
        parts = urlsplit(spec)
        query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        wrong = not parts.hostname or parts.port == 0 or bool(set(query) - {"model"})
    except ValueError:
        wrong = True
    if wrong or (parts.fragment and query):
        raise SpecError(f"{spec!r} is no server's address; it looks like http://HOST:PORT or http://HOST:PORT#MODEL.")
    if parts.username is not None or parts.password is not None:
        raise SpecError(f"Leave the password out of the address of {parts.hostname}: a key goes into {KEY_VARIABLE}.")
    address = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    return address, parts.fragment or query.get("model", [None])[0]


class RemoteRuntime:
    """One model of a running server.

    Args:
        spec: see ``split_url``; without a model's name the server's default.
        key: sent as a Bearer key; None reads the environment variable DIGPT_API_KEY, now and not again.
        threads: of the process that asks, for whoever decodes images; the server has its own.
        answer_s, patience_s: seconds to wait for one answer, and for a busy server to take a request.

    Raises:
        SpecError: no such address or model.
        BackendError: nobody answers there, or somebody who is no digpt server.
    """

    def __init__(
        self,
        spec: str,
        *,
        key: str | None = None,
        threads: int | None = None,
        answer_s: float = ANSWER_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._address, name = split_url(spec)
        self._patience_s, self._answer_s = patience_s, answer_s
        self._client: httpx.Client | None = http_client(self._address, key or os.environ.get(KEY_VARIABLE), answer_s)
        self.golden: Golden | None = None  # the server compares itself with its own before it is ready
        try:
            card = self._card(name)
            self.info = _info(spec, card, threads)
            limits = card["limits"]
            self._max_bytes = int(limits["max_request_bytes"]) - SPARE_BYTES
            self._max_items = min(int(limits["max_items"]), MAX_ITEMS)
            self._max_scores = int(limits["max_scores"])
        except (KeyError, TypeError, ValueError, ConfigError, IndexError) as error:
            self.close()
            reason = f"{type(error).__name__}: {error}"
            raise BackendError(
                f"{self._address} does not describe its models as a digpt server of this version does ({reason})."
            ) from None
        except DigptError:
            self.close()
            raise

    def embed(self, images: np.ndarray) -> np.ndarray:
        images = check_images(images, self.info.preprocess.size)
        fields = {"encoding_format": "base64", "normalize": "false"}
        return self._of_images("/embed", images, fields, "embedding", self._max_items, self.info.dim)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if not self.info.has_text:
            raise no_text(self.info)

        def ask(chunk: Sequence[str]) -> np.ndarray:
            body = {"texts": list(chunk), "encoding_format": "base64", "normalize": False, "model": self.info.name}
            return self._rows(self._ask("POST", "/embed", json=body), "embedding", len(chunk), self.info.dim)

        chunks = [list(texts[start : start + self._max_items]) for start in range(0, len(texts), self._max_items)]
        rows = [_halving(ask, chunk) for chunk in chunks]
        return np.concatenate(rows) if rows else np.zeros((0, self.info.dim), np.float32)

    def logits(self, images: np.ndarray) -> np.ndarray:
        if self.info.head != "linear":
            raise no_logits(self.info)
        images = check_images(images, self.info.preprocess.size)
        classes = len(self.info.labels) if self.info.labels else None
        most = max(1, min(self._max_items, self._max_scores // (classes or 1)))
        return self._of_images("/classify", images, {"logits": "base64"}, "logits", most, classes)

    def patch_tokens(self, images: np.ndarray) -> np.ndarray:
        raise no_patch_tokens(self.info)

    def pixel_logits(self, images: np.ndarray) -> np.ndarray:
        raise CapabilityError(
            f"{self.info.name} at {self._address} gives no logits of pixels: they do not travel over HTTP; "
            "use the checkpoint or the artifact directory itself."
        )

    def close(self) -> None:
        """Close the connections; a closed runtime cannot be used again."""
        if self._client is not None:
            self._client.close()
        self._client = None

    def _of_images(
        self, path: str, images: np.ndarray, fields: Mapping[str, str], key: str, most: int, width: int | None
    ) -> np.ndarray:
        form = {**fields, "preprocessed": "true", "model": self.info.name}

        def ask(chunk: Sequence[bytes]) -> np.ndarray:
            files = [("files", (f"{index}.png", data, "image/png")) for index, data in enumerate(chunk)]
            return self._rows(self._ask("POST", path, data=form, files=files), key, len(chunk), width)

        rows = [_halving(ask, chunk) for chunk in chunked(map(png, images), most, self._max_bytes)]
        return np.concatenate(rows) if rows else np.zeros((0, width or 0), np.float32)

    def _card(self, name: str | None) -> dict[str, Any]:
        """What the server says about the model, its labels included."""
        name = name if name is not None else self._ask("GET", "/models")["data"][0]["id"]
        card = self._ask("GET", f"/models/{quote(name, safe='')}")
        if card["state"] == "failed":
            raise BackendError(f"{self._address} cannot answer with {name!r}: {card['detail']}.")
        return card

    def _rows(self, answer: Mapping[str, Any], key: str, count: int, width: int | None) -> np.ndarray:
        """The vectors of an answer, float32 ``[count,width]``, if it is whole and of the model that was asked."""
        found = answer.get("fingerprint")
        if found != self.info.fingerprint:
            raise BackendError(
                f"{self._address} answers with other weights than before ({found}, not {self.info.fingerprint}): "
                "it was started anew with another model. Begin again."
            )
        items = answer.get("data") or []
        for item in items:
            if "error" in item:
                raise InputError(f"{self._address} refused an image or text: {item['error']['message']}")
        try:
            rows = [np.frombuffer(base64.b64decode(item[key], validate=True), "<f4") for item in items]
            stacked = np.stack(rows).astype(np.float32)
        except (KeyError, TypeError, ValueError, binascii.Error):
            stacked = np.zeros((0, 0), np.float32)
        if len(stacked) != count or stacked.shape[1] != (width or stacked.shape[1]):
            raise BackendError(f"{self._address} did not answer with {count} {key} vectors; is it another version?")
        return stacked

    def _ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        """One request, repeated while the server is busy.

        Raises:
            BackendError: no connection, no answer in time, or one that says no.
            SpecError, CapabilityError, InputError: the server's own sentence about what was asked.
        """
        until = time.monotonic() + self._patience_s
        while True:
            answer = self._send(method, self._address + path, content)
            if answer.status_code not in BUSY:
                return self._content(answer)
            wait = retry_after(answer)
            if time.monotonic() + wait > until:
                raise BackendError(
                    f"{self._address} took no request within {self._patience_s:g} s: {error_of(answer)['message']}"
                )
            time.sleep(wait)

    def _send(self, method: str, url: str, content: Mapping[str, Any]) -> httpx.Response:
        import httpx

        if self._client is None:
            raise BackendError(f"The connection to {self._address} was closed; load it again.")
        try:
            return self._client.request(method, url, **content)
        except httpx.ConnectTimeout:
            raise BackendError(f"{self._address} cannot be reached: no connection within {CONNECT_S:g} s.") from None
        except httpx.TimeoutException:
            raise BackendError(f"{self._address} did not answer within {self._answer_s:g} s.") from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise BackendError(
                f"{self._address} cannot be reached ({error or type(error).__name__}); start it with "
                "python -m serve --model SPEC, or correct the address."
            ) from None

    def _content(self, answer: httpx.Response) -> dict[str, Any]:
        """The JSON object of a good answer; else the exception that says what was wrong."""
        if answer.status_code == 200:
            try:
                found = answer.json()
            except ValueError:
                found = None
            if isinstance(found, dict):
                return found
            raise BackendError(f"{self._address} does not answer as a digpt server does; is the address right?")
        error = error_of(answer)
        said = f"{self._address} answers {answer.status_code}: {error['message']}"
        if answer.status_code == TOO_SLOW:
            raise _TooSlowError(said)
        if answer.status_code in (401, 403):
            raise BackendError(f"{said} Put a key that it takes into the environment variable {KEY_VARIABLE}.")
        if error["code"] == "model_not_found":
            raise SpecError(said)
        if error["code"] == "not_supported_by_model":
            raise CapabilityError(said)
        if answer.status_code in (413, 415, 422) and error["code"]:
            raise InputError(said)
        raise BackendError(said)


class _TooSlowError(BackendError):
    """The server's deadline passed."""


def _halving(ask: Callable[[Sequence[Any]], np.ndarray], items: Sequence[Any]) -> np.ndarray:
    """``ask(items)``; in halves where that takes the server too long."""
    try:
        return ask(items)
    except _TooSlowError:
        if len(items) == 1:
            raise
        middle = len(items) // 2
        return np.concatenate([_halving(ask, items[:middle]), _halving(ask, items[middle:])])


def chunked(files: Iterator[bytes], most: int, max_bytes: int) -> Iterator[list[bytes]]:
    """Requests' worth of ``files``: up to ``most`` each, and up to ``max_bytes`` (one file alone however large)."""
    chunk: list[bytes] = []
    held = 0
    for file in files:
        size = len(file) + PART_BYTES
        if chunk and (len(chunk) == most or held + size > max_bytes):
            yield chunk
            chunk, held = [], 0
        chunk.append(file)
        held += size
    if chunk:
        yield chunk


def png(crop: np.ndarray) -> bytes:
    """uint8 ``[H,W,3]`` -> a PNG file; lossless, and compressed no harder than is quick."""
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def http_client(address: str, key: str | None, answer_s: float) -> httpx.Client:
    """Connections to a server, which show it ``key``.

    Raises:
        BackendError: no header can hold that key.
        MissingDependencyError: httpx is not installed.
    """
    try:
        import httpx
    except ImportError as error:
        raise MissingDependencyError("Asking a server needs httpx: pip install httpx") from error
    if key and not (key.isascii() and key.isprintable()):
        raise BackendError(f"The key in {KEY_VARIABLE} holds characters that no key has.")
    return httpx.Client(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(answer_s, connect=CONNECT_S),
        limits=httpx.Limits(keepalive_expiry=IDLE_S),
        trust_env=urlsplit(address).hostname not in LOOPBACK,  # a proxy cannot reach this machine's own servers
    )


def _info(spec: str, card: Mapping[str, Any], threads: int | None) -> RuntimeInfo:
    """The server's description of a model; backend and precision are those that compute there."""
    labels = card["labels"]
    return RuntimeInfo(
        name=card["id"],
        spec=spec,
        backend=card["backend"],
        precision=card["precision"],
        fingerprint=card["fingerprint"],
        dim=int(card["dim"]),
        preprocess=Preprocess.from_dict(card["preprocess"]),
        has_text=card["has_text"],
        labels=tuple(labels) if labels else None,
        logit_scale=card["logit_scale"],
        logit_bias=card["logit_bias"],
        templates=tuple(card["templates"]),
        head=card["head"],
        segment_crop=card["segment_crop"],
        engine=card.get("engine"),  # servers before it was told say nothing
        abstain=AbstainRule.from_dict(abstain) if (abstain := card.get("abstain")) else None,
        threads=threads,
        providers=tuple(card["providers"]),
    )


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """``message`` and ``code`` of an answer that is an error, whoever wrote it, and what else it says."""
    try:
        error = answer.json()["error"]
        return {**error, "message": str(error["message"]), "code": error["code"]}
    except (ValueError, KeyError, TypeError):
        said = " ".join(answer.text[:SHOWN].split())  # a proxy's page, perhaps
        reason = answer.reason_phrase or "an error without a reason"
        return {"message": f"{reason} ({said})" if said else reason, "code": None}


def retry_after(answer: httpx.Response) -> float:
    """Seconds that the server asks to wait; 1 where it does not say, or says a date."""
    given = answer.headers.get("Retry-After", "")
    return min(float(given), LONGEST_WAIT_S) if given.isascii() and given.isdigit() else 1.0
