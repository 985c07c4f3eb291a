"""A running server as a model spec: the same numbers as the runtime behind it, and a sentence for every failure."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from digpt.artifact import write_checkpoint
from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from digpt.errors import BackendError, CapabilityError, DigptError, InputError, SpecError
from digpt.results import read_results
from digpt.runtime import load_runtime
from digpt.runtime.fake import FakeRuntime
from digpt.runtime.remote import RemoteRuntime, chunked, split_url
from digpt.testing import tiny_checkpoint
from evaluate.robustness import main as robustness
from serve import Settings, create_app

Serving = Callable[..., Any]
ServingApp = Callable[[FastAPI], AbstractContextManager[Any]]
At = Callable[..., Any]
EXACT = 1e-6  # what may differ: the last bit, where a batch is of another size


def url(client: Any) -> str:
    return str(client.base_url).rstrip("/")


def crops(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture
def at() -> Iterator[Callable[..., Any]]:
    """``at(spec, **options)``: the runtime of a server, closed when the test ends."""
    with ExitStack() as stack:

        def load(spec: str, **options: Any) -> Any:
            remote = RemoteRuntime(spec, **options) if options else load_runtime(spec)
            stack.callback(remote.close)
            return remote

        yield load


@pytest.fixture(scope="module")
def bundled() -> Engine:
    return Engine.load("bundled", threads=1)


def test_bundled_model_over_http_equals_the_direct_runtime(at: At, bundled: Engine, serving: Serving) -> None:
    remote = at(url(serving({"emoji": bundled})), threads=1)
    emoji = EmojiSet.load().images("flat")[:40]
    images = np.stack([bundled.decode(image.encoded) for image in emoji])
    texts = ["red apple", "caf\u00e9, 100 %", *EmojiSet.load().five_style_names()[:3]]
    np.testing.assert_allclose(remote.embed(images), bundled.embed_images(images, normalize=False), atol=EXACT)
    np.testing.assert_allclose(remote.embed_texts(texts), bundled.embed_texts(texts, normalize=False), atol=EXACT)
    assert remote.info == replace(
        bundled.info, name="emoji", spec=remote.info.spec, threads=1, versions={}, patch_tokens=False
    )


def test_linear_head_over_http_equals_the_direct_runtime(at: At, serving: Serving, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny.pt", tiny_checkpoint(text=False, head="linear"))
    direct = Engine.load(str(tmp_path / "tiny.pt"), threads=1)
    client = serving(direct, max_scores=12)  # 3 images of 4 labels at a time
    remote, images = Engine(at(url(client))), crops(7, 32)
    np.testing.assert_allclose(remote.logits(images), direct.logits(images), atol=EXACT)
    assert remote.classify(images)[0][0].label == direct.classify(images)[0][0].label
    with pytest.raises(CapabilityError, match="no text tower"):
        remote.embed_texts(["a"])


PNG = {"Content-Type": "image/png"}


def test_logits_are_refused_where_they_mean_nothing(serving: Serving, image: Callable[..., bytes]) -> None:
    client = serving({"text": Engine(FakeRuntime(dim=8)), "head": Engine(FakeRuntime(labels="abc", linear_head=True))})
    ask = {"content": image(), "headers": PNG}
    refused = client.post("/classify", params={"logits": "float"}, **ask).json()["error"]
    assert refused["code"] == "not_supported_by_model"
    mixed = client.post("/classify", params={"logits": "float", "labels": ["a"], "model": "head"}, **ask).json()
    assert (mixed["error"]["code"], mixed["error"]["param"]) == ("invalid_request", "logits")
    answer = client.post("/classify", params={"logits": "float", "model": "head"}, **ask).json()["data"][0]
    assert len(answer["logits"]) == 3 and "predictions" not in answer


def test_preprocessed_images_must_have_the_size_exactly(serving: Serving, image: Callable[..., bytes]) -> None:
    client = serving(Engine(FakeRuntime(size=64)))
    for size, status in (((64, 64), 200), ((64, 63), 422), ((128, 128), 422)):
        answer = client.post("/embed", params={"preprocessed": True}, content=image(0, "PNG", size), headers=PNG)
        assert answer.status_code == status
    assert "must be 64 x 64; this one is 128 x 128" in answer.json()["error"]["message"]


def test_requests_keep_within_the_servers_limits(at: At, serving: Serving) -> None:
    runtime = FakeRuntime(dim=8)
    client = serving(Engine(runtime), max_items=5, max_request_bytes=120_000)  # a crop of noise is a PNG of 12 KB
    runtime.batches.clear()
    remote, images = at(url(client)), crops(9)
    np.testing.assert_array_equal(remote.embed(images), FakeRuntime(dim=8).embed(images))
    assert runtime.batches == [4, 4, 1]  # 65,536 bytes are spared for the rest
    np.testing.assert_array_equal(remote.embed_texts(list("abcdefg")), FakeRuntime(dim=8).embed_texts("abcdefg"))
    assert runtime.text_batches == [5, 2]
    assert remote.embed(images[:0]).shape == remote.embed_texts([]).shape == (0, 8)


def test_chunks_take_one_file_however_large() -> None:
    assert [len(chunk) for chunk in chunked(iter([b"x" * 900, b"x" * 10, b"x" * 10]), 8, 600)] == [1, 2]


def test_a_batch_too_slow_for_the_servers_deadline_is_halved(at: At, serving: Serving) -> None:
    runtime = FakeRuntime(dim=8)
    client = serving(Engine(runtime), deadline_s=0.4)
    embed = runtime.embed

    def slow(images: np.ndarray) -> np.ndarray:
        time.sleep(0.6 if len(images) > 2 else 0)
        return embed(images)

    runtime.embed = slow  # type: ignore[method-assign]
    images = crops(4)
    np.testing.assert_array_equal(at(url(client)).embed(images), FakeRuntime(dim=8).embed(images))
    assert runtime.batches[-2:] == [2, 2]


def test_model_is_named_by_fragment_or_query(at: At, serving: Serving) -> None:
    client = serving({"a": Engine(FakeRuntime(dim=8)), "b": Engine(FakeRuntime(dim=12))})
    assert [at(url(client) + end).info.dim for end in ("", "/", "#b", "?model=b")] == [8, 8, 12, 12]
    with pytest.raises(SpecError, match="There is no model 'c' here; there is a, b"):
        at(url(client) + "#c")


@pytest.mark.parametrize(
    "spec", ["http://", "http://h:0", "http://h:port", "http://h?other=x", "http://h?model", "http://h?model=a#b"]
)
def test_addresses_that_are_none(spec: str) -> None:
    with pytest.raises(SpecError, match="is no server's address"):
        split_url(spec)


def test_addresses_with_a_prefix_and_without_passwords() -> None:
    assert split_url("https://h:1/a/b/#m") == ("https://h:1/a/b", "m")
    with pytest.raises(SpecError, match="goes into DIGPT_API_KEY") as refused:
        split_url("http://user:secret@h:1")
    assert "secret" not in str(refused.value)


def test_key_of_the_environment_at_loading(at: At, serving_app: ServingApp, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app({"fake": Engine(FakeRuntime(dim=8))}, Settings())

    @app.middleware("http")
    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path.startswith("/health") or request.headers.get("authorization") == "Bearer open":
            return await call(request)
        return JSONResponse({"error": {"message": "No valid key.", "code": "unauthorized"}}, 401)

    with serving_app(app) as client:
        with pytest.raises(BackendError, match=r"401: No valid key\. Put a key .* DIGPT_API_KEY"):
            at(url(client))
        monkeypatch.setenv("DIGPT_API_KEY", "open")
        remote = at(url(client))
        monkeypatch.delenv("DIGPT_API_KEY")
        assert remote.embed(crops(1)).shape == (1, 8)


def test_a_busy_server_is_asked_again_when_it_says(at: At, serving_app: ServingApp) -> None:
    app, told = create_app({"fake": Engine(FakeRuntime(dim=8))}, Settings()), [429, 503]

    @app.middleware("http")
    async def busy(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path == "/embed" and told:
            return PlainTextResponse("busy", told.pop(0), {"Retry-After": "0"})
        return await call(request)

    with serving_app(app) as client:
        remote = at(url(client), patience_s=0.5)
        assert remote.embed(crops(1)).shape == (1, 8) and told == []
        told += [429] * 1000
        app.middleware_stack = None
        with pytest.raises(BackendError, match="took no request within 0 s: Too Many Requests"):
            at(url(client), patience_s=0).embed(crops(1))


def test_a_server_that_is_starting_is_waited_for(at: At, serving: Serving) -> None:
    client = serving(Engine(FakeRuntime(dim=8, delay=0.2)), wait=False)
    remote = at(url(client))
    assert remote.embed(crops(2)).shape == (2, 8)


def test_a_server_whose_model_failed_its_check(at: At, serving: Serving) -> None:
    client = serving(Engine(FakeRuntime(dim=8, fail_if=lambda image: True)), wait=False)
    while client.get("/models/fake").json()["state"] == "starting":
        time.sleep(0.005)
    with pytest.raises(BackendError, match="cannot answer with 'fake': its backend failed the check"):
        at(url(client))


def test_other_weights_between_two_calls(at: At, serving: Serving) -> None:
    runtime = FakeRuntime(dim=8)
    remote = at(url(serving(Engine(runtime))))
    remote.embed(crops(1))
    runtime.info = replace(runtime.info, fingerprint="sha256:" + "0" * 64)
    for ask in (lambda: remote.embed(crops(1)), lambda: remote.embed_texts(["a"])):
        with pytest.raises(BackendError, match="answers with other weights than before"):
            ask()


def test_what_the_server_refuses_is_said(at: At, serving: Serving) -> None:
    remote = at(url(serving(Engine(FakeRuntime(dim=8)), max_text_chars=5)))
    with pytest.raises(InputError, match=r"422: texts\[1\] has 6 characters"):
        remote.embed_texts(["short", "longer"])
    with pytest.raises(CapabilityError, match="no linear head"):
        remote.logits(crops(1))
    with pytest.raises(CapabilityError, match="gives no logits of pixels"):
        remote.pixel_logits(crops(1))
    remote.close()
    with pytest.raises(BackendError, match="was closed"):
        remote.embed(crops(1))


def test_nobody_there_and_somebody_else(at: At, serving_app: ServingApp, serving: Serving) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(BackendError, match="cannot be reached"):
            at(nobody)
    client = serving(Engine(FakeRuntime(dim=8)))
    with pytest.raises(BackendError, match="404"):
        at(url(client) + "/prefix")
    for content, said in (("<html>", "as a digpt server does"), ({"data": []}, "describe its models")):
        app = FastAPI()
        app.state.service = None
        response: Response = PlainTextResponse(content) if isinstance(content, str) else JSONResponse(content)
        app.add_api_route("/models", lambda response=response: response)
        with serving_app(app) as other, pytest.raises(BackendError, match=said):
            at(url(other))


@pytest.mark.parametrize("options", [{"backend": "torch"}, {"device": "cuda"}])
def test_the_server_chose_its_backend(options: dict[str, str]) -> None:
    with pytest.raises(DigptError, match="chose its backend and device itself; leave out --(backend|device)"):
        load_runtime("http://127.0.0.1:9", **options)  # type: ignore[arg-type]


def test_evaluation_of_a_server_equals_that_of_the_model(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(tmp_path / "tiny.pt")
    write_checkpoint(path, tiny_checkpoint())
    options = ["--limit", "20", "--corruptions", "none", "--threads", "1", "--batch-size", "16", "--seed", "3"]
    spec = url(serving({"tiny": Engine.load(path, threads=1)}))
    assert robustness([spec, *options, "--output", str(tmp_path / "remote")]) == 0
    assert list((tmp_path / "cache").rglob("*.npz")) == []  # the server's texts are the server's alone
    assert robustness([path, *options, "--output", str(tmp_path / "direct")]) == 0
    remote, direct = (read_results(tmp_path / name) for name in ("remote", "direct"))
    assert remote.model == replace(direct.model, spec=spec)
    assert remote.protocol == direct.protocol
    for one, other in zip(remote.results, direct.results, strict=True):
        assert (one.dataset, one.split, one.metric) == (other.dataset, other.split, other.metric)
        assert one.value == pytest.approx(other.value, abs=1e-5)
