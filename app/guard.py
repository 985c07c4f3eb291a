"""What stands between a server and the page mounted in it: readiness, size, and no fetching of addresses.

Gradio downloads a file that a client names by URL; here nothing is fetched, as behind every other door.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from digpt.errors import ImageTooLargeError, InputError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

JSON_BYTES = 1 << 20  # what a page says about its components; pictures are uploaded
OWN_FILES = "/gradio_api/file="
WEB = re.compile(r"https?:/", re.IGNORECASE)
NOT_FETCHED = "Pictures by URL are not fetched here; upload the picture itself."
TOO_LARGE = "The request has more than the {} bytes allowed here."


class Guard:
    """Pass on to ``app`` what it may see; refusals are DigptErrors, for the server to answer in its own words.

    Args:
        app: the mounted page.
        ready: raises a DigptError while the page's model must not answer.
        max_bytes: of one request.
    """

    def __init__(self, app: App, ready: Callable[[], object] | None, max_bytes: int) -> None:
        self.app, self.ready, self.max_bytes = app, ready, max_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self.ready is not None:
                self.ready()
            if WEB.search(scope["path"]):  # /gradio_api/file=http://... makes Gradio fetch it
                raise InputError(NOT_FETCHED)
            if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                checked = await self._check(scope, receive)
                if checked is None:
                    return
                receive = checked
        await self.app(scope, receive, send)

    async def _check(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive | None:
        """Return where to read the request from; None if the client has left.

        Raises:
            ImageTooLargeError: more than ``max_bytes``, or more JSON than a page sends.
            InputError: an upload of unknown size, or an address to fetch.
        """
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        length = int(headers.get(b"content-length", "-1"))
        if length > self.max_bytes:
            raise ImageTooLargeError(TOO_LARGE.format(self.max_bytes))
        if headers.get(b"content-type", "").lower().startswith("multipart/"):
            if length < 0:
                raise InputError("An upload must say its Content-Length.")
            return receive
        body = await _read(receive, min(self.max_bytes, JSON_BYTES))
        if body is None:
            return None
        hosts = {headers.get(b"host"), headers.get(b"x-forwarded-host")}
        try:
            addresses = list(_addresses(json.loads(body or b"null"), hosts))
        except (ValueError, RecursionError):
            raise InputError("The body is not JSON.") from None
        if addresses:
            raise InputError(NOT_FETCHED)
        return _replay(body, receive)


async def _read(receive: Receive, max_bytes: int) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise ImageTooLargeError(TOO_LARGE.format(max_bytes))
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def _addresses(value: Any, hosts: set[str | None]) -> Iterator[str]:
    """Find what a file of the page may not be: any web address as its ``path``, a foreign one as its ``url``."""
    if isinstance(value, list):
        for item in value:
            yield from _addresses(item, hosts)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in ("path", "url") and isinstance(item, str):
                if WEB.match(item.strip()) and not (name == "url" and _is_own(item, hosts)):
                    yield item
            else:
                yield from _addresses(item, hosts)


def _is_own(address: str, hosts: set[str | None]) -> bool:
    """Whether it is an uploaded file's address on this server, which Gradio's page sends back with the file."""
    parts = urlsplit(address)
    return parts.netloc in hosts and OWN_FILES in parts.path
