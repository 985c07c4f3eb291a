"""Models come and go while others answer; only those that the command line named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

import serve.cli
from digpt.engine import Engine
from digpt.errors import CheckpointError, ConfigError
from digpt.runtime.base import Golden
from digpt.runtime.fake import FakeRuntime
from serve.cli import ServeConfig, loaders
from serve.keys import Keys

ADMIN = {"Authorization": "Bearer admin-key-0123456789"}
KEYS = Keys(admin=["admin-key-0123456789"])
Serving = Callable[..., Any]


def states(client: httpx.Client) -> dict[str, str]:
    found = client.get("/models").json()
    return {model["id"]: model["state"] for model in found["data"] + found["available"]}


def until(client: httpx.Client, name: str, state: str) -> None:
    started = time.monotonic()
    while states(client)[name] != state:
        assert time.monotonic() - started < 10, states(client)
        time.sleep(0.005)


def change(client: httpx.Client, name: str, what: str) -> httpx.Response:
    return client.post(f"/models/{name}/{what}", headers=ADMIN)


def embed(client: httpx.Client, model: str | None = None) -> httpx.Response:
    return client.post("/embed", json={"texts": ["x"], "model": model})


def test_a_model_is_loaded_used_and_unloaded(serving: Serving) -> None:
    runtimes: list[FakeRuntime] = []
    go = threading.Event()

    def load() -> Engine:
        assert go.wait(10)
        runtimes.append(FakeRuntime(dim=4))
        return Engine(runtimes[-1])

    client = serving({"first": Engine(FakeRuntime(dim=8))}, keys=KEYS, available={"later": load})
    assert states(client) == {"first": "ready", "later": "unloaded"}
    refused = embed(client, "later")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert "retry-after" not in refused.headers  # waiting would not help
    begun = change(client, "later", "load")
    assert (begun.status_code, begun.json()["state"]) == (202, "loading")
    assert change(client, "later", "load").json()["state"] == "loading"  # once is enough
    assert change(client, "later", "unload").status_code == 409
    assert embed(client, "later").headers["retry-after"] == "1"
    assert embed(client).json()["dim"] == 8  # the other answers
    assert client.get("/health/ready").status_code == 200
    go.set()
    until(client, "later", "ready")
    assert len(runtimes) == 1
    assert embed(client, "later").json()["dim"] == 4
    assert change(client, "later", "load").json()["state"] == "ready"
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["first", "later"]
    assert change(client, "later", "unload").json()["state"] in ("unloading", "unloaded")
    until(client, "later", "unloaded")
    assert runtimes[0].closed
    assert change(client, "later", "unload").json()["state"] == "unloaded"
    assert client.get("/v1/models/later").status_code == 503
    assert embed(client).status_code == 200


def test_what_it_was_asked_is_answered_before_it_goes(serving: Serving, image: Callable[..., bytes]) -> None:
    slow = FakeRuntime(dim=4)
    client = serving(
        {"first": Engine(FakeRuntime(dim=8)), "slow": Engine(slow)},
        keys=KEYS,
        available={"slow": lambda: Engine(FakeRuntime(dim=4))},
    )
    slow.delay = 0.5
    answers: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, timeout=20, trust_env=False) as other:
            answers.append(other.post("/embed?model=slow", files={"files": image()}))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not slow.batches[1:]:
        time.sleep(0.005)
    assert change(client, "slow", "unload").json()["state"] == "unloading"
    assert not slow.closed
    assert embed(client, "slow").status_code == 503
    assert embed(client).status_code == 200
    assert change(client, "slow", "load").status_code == 409
    for thread in threads:
        thread.join()
    until(client, "slow", "unloaded")
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert 200 in {answer.status_code for answer in answers}
    assert slow.closed
    change(client, "slow", "load")
    until(client, "slow", "ready")
    assert embed(client, "slow").status_code == 200


def test_what_fails_says_so_and_may_be_tried_again(serving: Serving) -> None:
    attempts: list[int] = []

    def load() -> Engine:
        attempts.append(1)
        if len(attempts) == 1:
            raise CheckpointError("/secret/place/ckpt.pt is damaged.")
        if len(attempts) == 2:
            raise RuntimeError("/secret/place")
        runtime = FakeRuntime(dim=4)
        if len(attempts) == 3:
            crops = np.zeros((2, 64, 64, 3), np.uint8)
            runtime.golden = Golden(crops, runtime.embed(crops) * 1.5, cosine=0.999, relative_error=1e-3)
        return Engine(runtime)

    client = serving({"first": Engine(FakeRuntime(dim=8))}, keys=KEYS, available={"later": load})
    for said in ("CheckpointError", "RuntimeError", "golden"):
        change(client, "later", "load")
        until(client, "later", "failed")
        detail = client.get("/models").json()["available"][0]["detail"]
        assert said in detail
        assert "secret" not in detail
        assert said in embed(client, "later").json()["error"]["message"]
        assert client.get("/health/ready").status_code == 200
    change(client, "later", "load")
    until(client, "later", "ready")


def test_what_may_not_be_loaded_or_unloaded(serving: Serving) -> None:
    client = serving(
        {"first": Engine(FakeRuntime(dim=8)), "fixed": Engine(FakeRuntime(dim=8))},
        keys=KEYS,
        available={"first": lambda: Engine(FakeRuntime())},
    )
    for name in ("nobody", "bundled", "timm:vit_tiny", "..%2F..%2Fckpt.pt"):
        assert change(client, name, "load").status_code == 404
    assert change(client, "fixed", "unload").status_code == 404  # nothing could bring it back
    default = change(client, "first", "unload")
    assert (default.status_code, default.json()["error"]["code"]) == (409, "conflict")
    assert embed(client).status_code == 200


def test_a_class_set_waits_for_its_model(serving: Serving, image: Callable[..., bytes]) -> None:
    client = serving(
        {"first": Engine(FakeRuntime(dim=8)), "b": Engine(FakeRuntime(dim=4))},
        keys=KEYS,
        available={"b": lambda: Engine(FakeRuntime(dim=4, fingerprint="sha256:" + "0" * 64))},
    )
    assert client.put("/class-sets/x", json={"labels": ["a", "b"], "model": "b"}, headers=ADMIN).status_code == 201
    ask = {"files": {"files": image()}, "data": {"class_set": "x"}}
    assert client.post("/classify", **ask).status_code == 200
    change(client, "b", "unload")
    until(client, "b", "unloaded")
    assert client.post("/classify", **ask).status_code == 503
    change(client, "b", "load")
    until(client, "b", "ready")
    assert client.post("/classify", **ask).status_code == 409  # other weights


def test_models_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    specs: list[str] = []
    monkeypatch.setattr(serve.cli.Engine, "load", lambda spec, *_, **__: specs.append(spec) or Engine(FakeRuntime()))
    found = loaders(ServeConfig(model=("bundled", "a=b"), available=("c=timm:d",)))
    assert (list(found), specs) == (["a", "c"], [])  # nothing is loaded before it is asked for
    found["c"]()
    assert specs == ["timm:d"]
    with pytest.raises(ConfigError, match="needs a name: --available NAME=timm:d"):
        loaders(ServeConfig(available=("timm:d",)))
    with pytest.raises(ConfigError, match="Two models are named 'a'"):
        loaders(ServeConfig(model=("a=b",), available=("a=c",)))
