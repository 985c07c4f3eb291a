"""Images by URL: off unless hosts are named, and never from where only this machine can reach."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve import Settings
from serve.errors import RequestError
from serve.fetch import Fetcher, UrlError, public
from serve.fetched import Held

HOST, URL, PUBLIC = "images.example", "https://images.example/a.png", "93.184.216.34"
PRIVATE = [
    *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:0:0:0:0:0:1", "240.0.0.1", "255.255.255.255", "no address"),
]


def resolver(*found: str) -> Callable[[str, int], Awaitable[list[str]]]:
    async def resolve(host: str, port: int) -> list[str]:
        resolve.asked.append((host, port))  # type: ignore[attr-defined]
        return list(found)

    resolve.asked = []  # type: ignore[attr-defined]
    return resolve


def fetch(url: str, answer: Any = None, addresses: tuple[str, ...] = (PUBLIC,), **settings: Any) -> bytes:
    """What a fetcher gives that sees ``answer`` instead of the network."""
    handler = answer if callable(answer) else lambda request: answer
    options = {"allow_url_host": (HOST,), **settings}

    async def run() -> bytes:
        fetcher = Fetcher(Settings(**options), resolve=resolver(*addresses), transport=httpx.MockTransport(handler))
        try:
            return await fetcher.fetch(url, 1000)
        finally:
            await fetcher.close()

    return asyncio.run(run())


def test_the_connection_goes_to_the_checked_address() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=b"file")

    assert fetch(f"{URL}?x=1", answer, (PUBLIC, "2606:2800:220:1::1")) == b"file"
    (request,) = seen
    assert str(request.url) == f"https://{PUBLIC}/a.png?x=1"
    assert request.headers["host"] == HOST
    assert request.extensions["sni_hostname"] == HOST  # the certificate must be that of the name
    assert "authorization" not in request.headers and "cookie" not in request.headers
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not public(address)
    for found in ((address,), (PUBLIC, address)):  # one is enough
        with pytest.raises(UrlError, match="not public"):
            fetch(URL, pytest.fail, found)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert public(address)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://images.example/a.png", "must be https://"),
        ("https://images.example:8443/a.png", "without port"),
        ("https://me:pass@images.example/a.png", "without port and password"),
        ("https://images.example@evil.example/a.png", "password"),
        ("https://evil.example/a.png", "not fetched from that host"),
        ("https://sub.images.example/a.png", "not fetched from that host"),
        ("https://images.example.evil.example/a.png", "not fetched from that host"),
        ("https://images.example./a.png", "not fetched from that host"),
        ("https://127.0.0.1/a.png", "not fetched from that host"),
        ("https://[::1]/a.png", "not fetched from that host"),
        ("https://2130706433/a.png", "not fetched from that host"),
        ("https:///a.png", "not fetched from that host"),
        ("https://images.example/" + "a" * 2000, "at most 2000"),
        ("https://[::1/a.png", "must be https://"),
    ],
)
def test_urls_that_nobody_is_asked_for(url: str, said: str) -> None:
    with pytest.raises(UrlError, match=said):
        fetch(url, pytest.fail)


def test_http_only_where_it_is_asked_for() -> None:
    assert fetch("http://images.example/", httpx.Response(200, content=b"x"), allow_http=True) == b"x"
    with pytest.raises(UrlError, match="not fetched here"):
        fetch(URL, pytest.fail, allow_url_host=())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(302, headers={"Location": "https://127.0.0.1/"}), "answers 302"),
        (httpx.Response(404), "answers 404"),
        (httpx.Response(200, content=b"x" * 1001), "more than the 1,000 bytes"),
        (httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"x")), "compressed"),
    ],
)
def test_answers_that_are_no_file(answer: httpx.Response, said: str) -> None:
    with pytest.raises(UrlError, match=said):
        fetch(URL, answer)


def test_hosts_that_cannot_be_asked() -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("secret", request=request)

    class Slow(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await asyncio.sleep(0.05)

    with pytest.raises(UrlError, match="cannot be asked") as raised:
        fetch(URL, broken)
    assert "secret" not in str(raised.value)
    with pytest.raises(UrlError, match="address of images.example cannot be found"):
        fetch(URL, pytest.fail, ())
    with pytest.raises(UrlError, match="within 0.2 seconds"):
        fetch(URL, httpx.Response(200, stream=Slow()), url_timeout_s=0.2)


def test_certificates_are_those_of_the_name() -> None:
    client = Fetcher(Settings(allow_url_host=(HOST,)))._http()
    context = client._transport._pool._ssl_context  # type: ignore[attr-defined]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert not client.follow_redirects
    assert not client._mounts  # no proxy of the environment


def test_errors_are_the_items(serving: Callable[..., Any], image: Callable[..., bytes]) -> None:
    engine = Engine(FakeRuntime(dim=8))
    client = serving(engine, allow_url_host=(HOST,))

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=image(0)) if request.url.path == "/a.png" else httpx.Response(404)

    client.service.fetcher = Fetcher(
        client.service.settings, resolve=resolver(PUBLIC), transport=httpx.MockTransport(answer)
    )
    images = [URL, "https://images.example/b.png", "https://evil.example/a.png"]
    found = client.post("/embed", json={"images": images}).json()["data"]
    expected = engine.embed_images([engine.decode(image(0))])[0]
    np.testing.assert_array_equal(np.array(found[0]["embedding"], np.float32), expected)
    assert [item["error"]["index"] for item in found[1:]] == [1, 2]
    assert "answers 404" in found[1]["error"]["message"]
    alone = client.post("/classify", json={"images": images[1:], "labels": ["a"]})
    assert (alone.status_code, alone.json()["error"]["param"], alone.json()["error"]["index"]) == (422, "images", 0)
    body = {"model": "fake", "input": [URL], "modality": "image"}
    assert client.post("/v1/embeddings", json=body).status_code == 200
    assert client.service.bodies.held == 0


def test_off_by_default(client: httpx.Client) -> None:
    answer = client.post("/embed", json={"images": ["https://images.example/a.png"]})
    assert answer.status_code == 422
    assert "not fetched here" in answer.json()["error"]["message"]


def test_a_request_has_room_for_so_much(serving: Callable[..., Any]) -> None:
    client = serving(Engine(FakeRuntime(dim=8)), allow_url_host=(HOST,), max_request_bytes=1500)
    client.service.fetcher = Fetcher(
        client.service.settings,
        resolve=resolver(PUBLIC),
        transport=httpx.MockTransport(lambda request: httpx.Response(200, content=b"x" * 1000)),
    )
    answer = client.post("/embed", json={"images": [URL, URL], "texts": ["a"]}).json()["data"]
    assert sorted(item["error"]["code"] for item in answer[:2]) == ["request_too_large", "unsupported_image_format"]
    assert client.service.bodies.held == 0


def test_over_a_socket(serving: Callable[..., Any], serving_app: Any, image: Callable[..., bytes]) -> None:
    """The real transport: the address checked is the one connected to, and a redirect is not followed."""
    asked: list[str] = []
    other = FastAPI()

    @other.get("/a.png")
    async def file(request: Request) -> Response:
        asked.append(request.headers["host"])
        return Response(image(0))

    @other.get("/away")
    async def away() -> Response:
        return RedirectResponse("/a.png")

    other.state.service = None
    engine = Engine(FakeRuntime(dim=8))
    client = serving(engine, allow_url_host=(HOST,), allow_http=True)
    with serving_app(other) as target, pytest.MonkeyPatch.context() as patch:
        port = target.base_url.port
        pinned = httpx.URL.copy_with
        patch.setattr(
            httpx.URL,
            "copy_with",
            lambda self, **new: pinned(self, **new, port=port) if "host" in new else pinned(self, **new),
        )
        fetcher = Fetcher(client.service.settings, resolve=resolver("127.0.0.1"), is_public=lambda address: True)
        client.service.fetcher = fetcher
        found = client.post("/embed", json={"images": [f"http://{HOST}/a.png", f"http://{HOST}/away"]}).json()["data"]
        strict = Fetcher(client.service.settings, resolve=resolver("127.0.0.1"))
        with pytest.raises(RequestError, match="not public"):
            asyncio.run(strict.fetch(f"http://{HOST}/a.png", 1000))
    assert asked == [HOST]
    assert "embedding" in found[0]
    assert "answers 307" in found[1]["error"]["message"]


def test_fetching_and_computing_have_one_deadline(serving: Callable[..., Any], image: Callable[..., bytes]) -> None:
    runtime, go_on = FakeRuntime(dim=8), threading.Event()
    compute = runtime.embed

    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.8)
        return httpx.Response(200, content=image(0))

    client = serving(Engine(runtime), allow_url_host=(HOST,), deadline_s=1)
    client.service.fetcher = Fetcher(
        client.service.settings, resolve=resolver(PUBLIC), transport=httpx.MockTransport(slow)
    )
    assert client.post("/embed", json={"images": [URL]}).status_code == 200
    runtime.embed = lambda images: (go_on.wait(20), compute(images))[1]
    for path, body in (("/embed", {"images": [URL]}), ("/v1/embeddings", {"input": URL, "modality": "image"})):
        started = time.monotonic()
        answer = client.post(path, json={"model": "fake", **body})
        taken = time.monotonic() - started
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert 0.9 < taken < 1.6  # 0.8 for the file, and what is left
    go_on.set()


def test_an_unforeseen_error_leaves_no_other_fetch_behind() -> None:
    ended: list[str] = []

    class Broken:
        async def fetch(self, url: str, max_bytes: int) -> bytes:
            if url == URL:
                await asyncio.sleep(0.01)
                raise RuntimeError("nobody foresaw this")
            try:
                await asyncio.sleep(20)
            finally:
                ended.append(url)
            return b""

    async def run() -> None:
        held = Held(SimpleNamespace(fetcher=Broken(), settings=Settings()), 1000)  # type: ignore[arg-type]
        with pytest.raises(ExceptionGroup) as raised:
            await held.files([URL, f"{URL}?other"], time.monotonic() + 10)
        assert [str(error) for error in raised.value.exceptions] == ["nobody foresaw this"]
        assert ended == [f"{URL}?other"]

    asyncio.run(run())
