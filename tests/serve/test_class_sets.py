"""Class sets as resources: stored once, embedded once, and never believed when they do not fit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from digpt.text import class_set_hash
from serve import Settings
from serve.classsets import ClassSets, read

Serving = Callable[..., Any]
LABELS = ["red apple", "dog face", "rocket"]


def code(answer: httpx.Response) -> tuple[int, str, str | None]:
    return answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]


def predictions(client: httpx.Client, image: bytes, **fields: Any) -> Any:
    answer = client.post("/classify", files={"files": image}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_set_answers_as_its_labels_do(serving: Serving, image: Callable[..., bytes]) -> None:
    runtime = FakeRuntime(dim=8)
    client = serving(Engine(runtime))
    stored = client.put("/class-sets/fruit", json={"labels": LABELS, "templates": ["a {}", "the {}"]})
    assert stored.status_code == 201
    embedded = list(runtime.text_batches)
    by_name = predictions(client, image(), class_set="fruit")
    assert runtime.text_batches == embedded  # nothing is embedded again
    by_labels = predictions(client, image(), labels=LABELS, templates=["a {}", "the {}"])
    assert by_name["data"] == by_labels["data"]
    assert by_name["usage"] == {"images": 1, "texts": 3}
    other = client.put("/class-sets/fruit", json={"labels": LABELS[:2]})
    assert (other.status_code, other.json()["status"]) == (200, "replaced")
    assert len(predictions(client, image(), class_set="fruit")["data"][0]["predictions"]) == 2


def test_life_of_a_set(serving: Serving) -> None:
    engine = Engine(FakeRuntime(dim=8, templates=("a {}",)))
    client = serving(engine)
    first = client.put("/class-sets/x.1", json={"labels": LABELS})
    assert (first.status_code, first.json()["status"]) == (201, "created")
    again = client.put("/class-sets/x.1", json={"labels": LABELS, "templates": ["a {}"], "model": "fake"})
    assert (again.status_code, again.json()["status"]) == (200, "unchanged")
    expected = class_set_hash(LABELS, ["a {}"], engine.info.fingerprint)
    assert first.json()["content_hash"] == again.json()["content_hash"] == expected
    assert first.headers["etag"] == f'"{expected}"'
    shown = client.get("/class-sets/x.1")
    assert (shown.json()["labels"], shown.json()["templates"], shown.headers["etag"]) == (
        LABELS,
        ["a {}"],
        f'"{expected}"',
    )
    unchanged = client.get("/class-sets/x.1", headers={"If-None-Match": f'"other", "{expected}"'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert [card["id"] for card in client.get("/class-sets").json()["data"]] == ["x.1"]
    assert "labels" not in client.get("/class-sets").json()["data"][0]
    assert client.delete("/class-sets/x.1").json() == {"id": "x.1", "object": "class_set", "deleted": True}
    for answer in (client.get("/class-sets/x.1"), client.delete("/class-sets/x.1")):
        assert code(answer) == (404, "class_set_not_found", "class_set")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"labels": []}, 422, "labels"),
        ({"labels": ["a", ""]}, 422, "labels"),
        ({"labels": ["a"], "templates": ["none"]}, 422, "templates"),
        ({"labels": list("abcdefghijk")}, 422, "labels"),
        ({"labels": list("abcdef"), "templates": ["{} 1", "{} 2", "{} 3", "{} 4"]}, 422, "templates"),
        ({"labels": ["x" * 51]}, 422, "labels"),
        ({"labels": ["a"], "images": []}, 422, "images"),
        ({}, 422, "labels"),
        ([], 422, None),
        ({"labels": ["a"], "model": "nobody"}, 404, "model"),
    ],
)
def test_what_is_no_set(client: httpx.Client, body: Any, status: int, param: str | None) -> None:
    answer = client.put("/class-sets/x", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert client.get("/class-sets").json()["data"] == []


def test_bodies_and_names(client: httpx.Client) -> None:
    as_json = {"Content-Type": "application/json"}
    assert code(client.put("/class-sets/x", content=b"{", headers=as_json)) == (400, "unparsable_body", None)
    assert client.put("/class-sets/x", data={"labels": "a"}).status_code == 415
    for name in (".x", "-x", "x" * 65, "x%20y", "%C3%A4", "x%00"):
        assert code(client.put(f"/class-sets/{name}", json={"labels": ["a"]})) == (422, "invalid_request", "name")
    assert client.put("/class-sets/..%2Fx", json={"labels": ["a"]}).status_code == 404


def test_what_a_set_excludes(serving: Serving, image: Callable[..., bytes]) -> None:
    client = serving({"a": Engine(FakeRuntime(dim=8)), "b": Engine(FakeRuntime(dim=16, text=False))})
    assert client.put("/class-sets/mine", json={"labels": LABELS, "model": "a"}).status_code == 201
    for fields in ({"labels": "x"}, {"templates": "a {}"}, {"logits": "float"}, {"model": "b"}):
        answer = client.post("/classify", files={"files": image()}, data={"class_set": "mine", **fields})
        assert code(answer) == (422, "invalid_request", next(iter(fields)))
    answer = client.post("/classify", files={"files": image()}, data={"class_set": "mime"})
    assert code(answer) == (404, "class_set_not_found", "class_set")
    assert "'mine'" in answer.json()["error"]["message"]
    refused = client.put("/class-sets/other", json={"labels": LABELS, "model": "b"})
    assert code(refused) == (422, "not_supported_by_model", None)


def test_quotas(serving: Serving) -> None:
    client = serving(Engine(FakeRuntime(dim=8)), max_class_sets=2, max_class_set_rows=5)
    assert client.put("/class-sets/a", json={"labels": LABELS}).status_code == 201
    assert code(client.put("/class-sets/b", json={"labels": LABELS})) == (409, "conflict", "labels")
    assert client.put("/class-sets/b", json={"labels": LABELS[:2]}).status_code == 201
    assert code(client.put("/class-sets/c", json={"labels": LABELS[:1]})) == (409, "conflict", None)
    assert client.put("/class-sets/a", json={"labels": LABELS[1:]}).json()["status"] == "replaced"  # its own place
    client.delete("/class-sets/b")
    assert client.put("/class-sets/c", json={"labels": LABELS}).status_code == 201


def test_sets_outlive_the_server(serving: Serving, tmp_path: Path, image: Callable[..., bytes]) -> None:
    directory = tmp_path / "sets"
    before = serving(Engine(FakeRuntime(dim=8)), class_sets_dir=directory)
    before.put("/class-sets/kept", json={"labels": LABELS})
    before.put("/class-sets/gone", json={"labels": LABELS})
    before.delete("/class-sets/gone")
    expected = predictions(before, image(), class_set="kept")["data"]
    before.stop()
    runtime = FakeRuntime(dim=8)
    after = serving(Engine(runtime), class_sets_dir=directory)
    assert [card["id"] for card in after.get("/class-sets").json()["data"]] == ["kept"]
    assert predictions(after, image(), class_set="kept")["data"] == expected
    assert runtime.text_batches == []
    after.stop()
    others = serving(Engine(FakeRuntime(dim=8, fingerprint="sha256:" + "0" * 64)), class_sets_dir=directory)
    stale = others.post("/classify", files={"files": image()}, data={"class_set": "kept"})
    assert code(stale) == (409, "conflict", "class_set")
    assert others.put("/class-sets/kept", json={"labels": LABELS}).json()["status"] == "replaced"


def test_a_file_that_was_changed_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, serving: Serving
) -> None:
    client = serving(Engine(FakeRuntime(dim=8)), class_sets_dir=tmp_path)
    for name in ("good", "matrix", "labels", "cut", "renamed"):
        client.put(f"/class-sets/{name}", json={"labels": LABELS})
    archive = dict(np.load(tmp_path / "good.npz"))
    np.savez(tmp_path / "matrix.npz", matrix=archive["matrix"] + 1e-3, about=np.load(tmp_path / "matrix.npz")["about"])
    text = np.load(tmp_path / "labels.npz")["about"].tobytes().replace(b"rocket", b"racket")
    np.savez(tmp_path / "labels.npz", matrix=archive["matrix"], about=np.frombuffer(text, np.uint8))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:200])
    (tmp_path / "renamed.npz").rename(tmp_path / "another.npz")
    np.savez(tmp_path / "pickled.npz", matrix=np.array([{}], dtype=object), about=np.array([{}], dtype=object))
    with caplog.at_level(logging.WARNING, "serve"):
        found = ClassSets(Settings(class_sets_dir=tmp_path)).all()
    assert [stored.name for stored in found] == ["good"]
    assert len(caplog.records) == 5
    assert read(tmp_path / "good.npz").labels == tuple(LABELS)


def test_images_are_answered_while_a_set_is_embedded(serving: Serving, image: Callable[..., bytes]) -> None:
    runtime = FakeRuntime(dim=8, delay=0.15)
    client = serving(Engine(runtime))
    labels = [f"label {number}" for number in range(256 * 6)]
    started = time.perf_counter()
    with httpx.Client(base_url=client.base_url, timeout=20, trust_env=False) as other:
        thread = threading.Thread(target=lambda: other.put("/class-sets/many", json={"labels": labels}))
        thread.start()
        time.sleep(0.2)
        assert client.post("/embed", files={"files": image()}).status_code == 200
        waited = time.perf_counter() - started
        thread.join()
    assert waited < time.perf_counter() - started - 0.1  # it was answered before the set was done
    assert client.get("/class-sets").json()["data"][0]["num_labels"] == len(labels)


def test_a_set_and_those_that_wait_for_it_have_a_deadline(serving: Serving) -> None:
    runtime, entered, go_on = FakeRuntime(dim=8), threading.Event(), threading.Event()
    client = serving(Engine(runtime), deadline_s=1)
    compute = runtime.embed_texts

    def hanging(texts: Sequence[str]) -> np.ndarray:
        entered.set()
        assert go_on.wait(20)
        return compute(texts)

    runtime.embed_texts = hanging
    started = time.monotonic()
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(client.put, f"/class-sets/{name}", json={"labels": LABELS}) for name in ("a", "a", "b")]
        assert entered.wait(5)
        while 'digpt_queue_items{model="fake"} 9.0' not in client.get("/metrics").text:
            assert time.monotonic() < started + 1
            time.sleep(0.01)
        for answer in answers:
            assert code(answer.result()) == (504, "deadline_exceeded", None)
    assert time.monotonic() < started + 3
    seen = client.get("/metrics").text
    assert 'digpt_dropped_items_total{model="fake",reason="deadline"} 9.0' in seen
    assert 'digpt_queue_items{model="fake"} 0.0' in seen
    assert 'digpt_requests_total{endpoint="/class-sets/{name}",model="fake",status="504"} 3.0' in seen
    go_on.set()
    assert client.put("/class-sets/a", json={"labels": LABELS}).status_code == 201
