"""What the server answers: three forms of a request, one answer, the engine's own numbers."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from digpt.abstain import AbstainRule
from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime

Image = Callable[..., bytes]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def rows(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]], np.float32)


def test_embed_gives_the_engines_numbers(client: httpx.Client, engine: Engine, image: Image) -> None:
    files = [image(0), image(1, "JPEG"), image(2, "WEBP")]
    crops = [engine.decode(data) for data in files]
    answer = client.post(
        "/embed",
        json={"images": [b64(files[0]), f"data:image/gif;base64,{b64(files[1])}", b64(files[2])], "texts": ["a cat"]},
    )
    expected = np.concatenate([engine.embed_images(crops), engine.embed_texts(["a cat"])])
    np.testing.assert_array_equal(rows(answer), expected)
    body = answer.json()
    assert [(item["index"], item["type"]) for item in body["data"]] == [
        (0, "image"),
        (1, "image"),
        (2, "image"),
        (3, "text"),
    ]
    assert (body["model"], body["fingerprint"], body["dim"]) == ("fake", engine.info.fingerprint, 8)
    assert body["usage"] == {"images": 3, "texts": 1}
    assert set(body["timings_ms"]) == {"decode", "queue", "inference", "total"}
    assert sum(body["timings_ms"][stage] for stage in ("decode", "queue", "inference")) <= body["timings_ms"]["total"]


def test_three_forms_give_one_answer(client: httpx.Client, image: Image) -> None:
    data = image(3, "JPEG")
    json = client.post("/embed", json={"images": [b64(data)]})
    multipart = client.post("/embed", files=[("files", ("x.png", data, "text/plain"))])
    raw = client.post("/embed", content=data, headers={"Content-Type": "image/png"})
    assert len(rows(json)) == 1
    np.testing.assert_array_equal(rows(json), rows(multipart))
    np.testing.assert_array_equal(rows(json), rows(raw))


def test_options_in_form_and_query(client: httpx.Client, engine: Engine, image: Image) -> None:
    data = image(4)
    plain = engine.embed_images([engine.decode(data)], normalize=False)
    raw = client.post("/embed?normalize=false", content=data, headers={"Content-Type": "image/*"})
    np.testing.assert_array_equal(rows(raw), plain)
    form = client.post("/embed?normalize=true", files={"files": data}, data={"normalize": "false", "texts": ["a", "b"]})
    np.testing.assert_array_equal(rows(form)[0], plain[0])
    assert form.json()["usage"] == {"images": 1, "texts": 2}


def test_base64_holds_the_same_floats(client: httpx.Client, image: Image) -> None:
    request = {"images": [b64(image(5)), b64(image(6))], "texts": ["dog"]}
    numbers = rows(client.post("/embed", json=request))
    coded = client.post("/embed", json={**request, "encoding_format": "base64"}).json()["data"]
    for number, item in zip(numbers, coded, strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), number)


def test_base64_may_be_wrapped(client: httpx.Client, image: Image) -> None:
    wrapped = base64.encodebytes(image(5)).decode()
    np.testing.assert_array_equal(
        rows(client.post("/embed", json={"images": [wrapped]})),
        rows(client.post("/embed", json={"images": [b64(image(5))]})),
    )


def test_preprocessed_crops_are_taken_as_they_are(client: httpx.Client, engine: Engine, image: Image) -> None:
    data = image(7, size=(64, 64))
    answer = client.post("/embed?preprocessed=true", content=data, headers={"Content-Type": "image/png"})
    np.testing.assert_array_equal(rows(answer), engine.embed_images([engine.decode(data)]))
    wrong = client.post("/embed", json={"images": [b64(image(7, size=(64, 63)))], "preprocessed": True})
    assert wrong.status_code == 422
    assert "64 x 64; this one is 64 x 63" in wrong.json()["error"]["message"]


def test_classify_gives_the_engines_scores(client: httpx.Client, engine: Engine, image: Image) -> None:
    files = [image(8), image(9)]
    labels, templates = ["red apple", "dog face", "rocket"], ["a {}", "the {} {}"]
    expected = engine.classify([engine.decode(data) for data in files], labels, templates, top_k=2)
    answers = [
        client.post(
            "/classify",
            json={"images": [b64(data) for data in files], "labels": labels, "templates": templates, "top_k": 2},
        ),
        client.post(
            "/classify",
            files=[("files", data) for data in files],
            data={"labels": labels, "templates": templates, "top_k": "2"},
        ),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert [
            [(prediction["label"], prediction["score"]) for prediction in item["predictions"]]
            for item in answer.json()["data"]
        ] == [[(prediction.label, prediction.score) for prediction in best] for best in expected]
        assert answer.json()["usage"] == {"images": 2, "texts": 3}
    raw = client.post(
        "/classify",
        params={"labels": labels, "templates": templates, "top_k": 2},
        content=files[0],
        headers={"Content-Type": "image/png"},
    )
    alone = engine.classify([engine.decode(files[0])], labels, templates, top_k=2)[
        0
    ]  # a batch of one may round elsewhere
    assert raw.json()["data"][0]["predictions"] == [{"label": best.label, "score": best.score} for best in alone]


def test_scores_sum_to_one_and_fall(client: httpx.Client, image: Image) -> None:
    answer = client.post("/classify", json={"images": [b64(image(1))], "labels": list("abcdefg"), "top_k": 100})
    scores = [prediction["score"] for prediction in answer.json()["data"][0]["predictions"]]
    assert len(scores) == 7
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_some_items_fail_and_the_others_are_answered(client: httpx.Client, engine: Engine, image: Image) -> None:
    good = image(10)
    request = {"images": ["!!!", b64(good), b64(good[:200]), b64(b"hello"), "https://example.com/x.png"]}
    data = client.post("/embed", json={**request, "texts": ["x"]}).json()["data"]
    assert [item.get("error", {}).get("code") for item in data] == [
        "invalid_input",
        None,
        "unreadable_image",
        "unsupported_image_format",
        "invalid_input",
        None,
    ]
    assert [item["error"]["index"] for item in data if "error" in item] == [0, 2, 3, 4]
    assert {item["error"]["param"] for item in data if "error" in item} == {"images"}
    expected = engine.embed_images([engine.decode(good)])
    np.testing.assert_array_equal(np.array(data[1]["embedding"], np.float32), expected[0])
    classified = client.post("/classify", json={**request, "labels": ["a", "b"]}).json()["data"]
    assert [sorted(item) for item in classified] == [["error", "index"], ["index", "predictions"]] + [
        ["error", "index"]
    ] * 3


def test_when_all_items_fail_the_first_error_is_the_answer(client: httpx.Client, image: Image) -> None:
    answer = client.post("/embed", json={"images": [b64(b"hello"), b64(image(1)[:200])]})
    assert answer.status_code == 415
    assert answer.json()["error"]["index"] == 0
    assert client.post("/embed", json={"images": [b64(image(1)[:200]), b64(b"hello")]}).status_code == 422


def test_model_without_text_tower(serving: Callable[..., httpx.Client], image: Image) -> None:
    client = serving(Engine(FakeRuntime(text=False)))
    answer = client.post("/embed", json={"images": [b64(image())], "texts": ["a"]})
    assert answer.status_code == 200
    assert "embedding" in answer.json()["data"][0]
    error = answer.json()["data"][1]["error"]
    assert (error["index"], error["param"], error["code"]) == (1, "texts", "not_supported_by_model")
    alone = client.post("/embed", json={"texts": ["a"]})
    assert alone.status_code == 422
    assert "no text tower" in alone.json()["error"]["message"]
    assert alone.json()["error"]["param"] == "texts"
    assert client.post("/classify", json={"images": [b64(image())], "labels": ["a"]}).status_code == 422
    assert client.post("/classify", json={"images": [b64(image())]}).status_code == 422


def test_own_labels_and_linear_head(serving: Callable[..., httpx.Client], image: Image) -> None:
    own = Engine(FakeRuntime(labels=["cat", "dog"]))
    head = Engine(FakeRuntime(text=False, labels=["x", "y", "z"], linear_head=True))
    client = serving({"own": own, "head": head})
    for name, engine, labels in (("own", own, {"cat", "dog"}), ("head", head, {"x", "y", "z"})):
        answer = client.post("/classify", json={"images": [b64(image())], "model": name}).json()
        best = answer["data"][0]["predictions"]
        assert {prediction["label"] for prediction in best} == labels
        expected = engine.classify([engine.decode(image())])[0]
        assert [prediction["score"] for prediction in best] == [prediction.score for prediction in expected]
        assert answer["model"] == name
    refused = client.post("/classify", json={"images": [b64(image())], "model": "head", "templates": ["a {}"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "templates")


def test_multi_label_needs_a_logit_bias(serving: Callable[..., httpx.Client], image: Image) -> None:
    client = serving({"clip": Engine(FakeRuntime()), "siglip": Engine(FakeRuntime(logit_bias=-1.0))})
    request = {"images": [b64(image())], "labels": ["a", "b", "c"], "multi_label": True}
    refused = client.post("/classify", json={**request, "model": "clip"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "not_supported_by_model")
    best = client.post("/classify", json={**request, "model": "siglip"}).json()["data"][0]["predictions"]
    engine = Engine(FakeRuntime(logit_bias=-1.0))
    cosine = engine.similarity(engine.embed_images([engine.decode(image())]), engine.class_matrix(["a", "b", "c"]))
    expected = 1 / (1 + np.exp(-(10 * cosine[0] - 1)))
    assert [prediction["score"] for prediction in best] == pytest.approx(sorted(expected, reverse=True), abs=1e-6)


def test_abstaining(serving: Callable[..., httpx.Client], image: Image) -> None:
    unsure = Engine(FakeRuntime(abstain=AbstainRule((1,), (0.999,))))
    client = serving({"plain": Engine(FakeRuntime()), "unsure": unsure})
    request = {"images": [b64(image())], "labels": ["a", "b", "c"], "abstain": True}
    refused = client.post("/classify", json={**request, "model": "plain"})
    assert refused.status_code == 422
    assert "no calibrated threshold" in refused.json()["error"]["message"]
    best = client.post("/classify", json={**request, "model": "unsure"}).json()["data"][0]["predictions"]
    assert [prediction["label"] for prediction in best].index("none of these") == 0
    assert best[0]["score"] == pytest.approx(1 - sum(prediction["score"] for prediction in best[1:]))
    card = client.get("/models/unsure").json()
    assert card["abstain"] == {"labels": [1], "cosine": [0.999]}
    assert client.get("/models/plain").json()["abstain"] is None


def test_a_real_model_answers_like_its_engine(
    serving: Callable[..., httpx.Client], tmp_path: Path, image: Image
) -> None:
    from digpt.artifact import write_checkpoint
    from digpt.testing import tiny_checkpoint

    path = tmp_path / "tiny.pt"
    write_checkpoint(path, tiny_checkpoint(labels=["cat", "dog", "house"]))
    engine, twin = Engine.load(str(path), threads=1), Engine.load(str(path), threads=1)
    client = serving({"tiny": engine})
    files = [image(1), image(2, "JPEG", (33, 47)), image(3, "BMP")]
    crops = [twin.decode(data) for data in files]
    texts = ["a cat"]  # "cat", a label, was embedded in a batch of three when the server warmed up: bits may differ
    answer = client.post("/embed", json={"images": [b64(data) for data in files], "texts": texts})
    np.testing.assert_array_equal(rows(answer), np.concatenate([twin.embed_images(crops), twin.embed_texts(texts)]))
    best = client.post("/classify", files=[("files", data) for data in files]).json()["data"]
    assert [[(p["label"], p["score"]) for p in item["predictions"]] for item in best] == [
        [(p.label, p.score) for p in item] for item in twin.classify(crops)
    ]
    assert client.get("/models/tiny").json()["fingerprint"] == answer.json()["fingerprint"] == twin.info.fingerprint


def test_a_segmenter_embeds_and_does_not_classify(serving: Callable[..., httpx.Client], image: Image) -> None:
    engine = Engine(FakeRuntime(dim=8, text=False, labels=["sky", "tree"], segment_crop=64))
    client = serving(engine)
    files = [("files", image(0))]
    np.testing.assert_array_equal(
        rows(client.post("/embed", files=files)), engine.embed_images([engine.decode(image(0))])
    )
    for form, sentence in (({}, "is a segmenter: it classifies pixels"), ({"labels": "sky"}, "no text tower")):
        refused = client.post("/classify", files=files, data=form)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "not_supported_by_model")
        assert sentence in refused.json()["error"]["message"]
    card = client.get("/models/fake").json()
    assert (card["has_head"], card["num_labels"], card["labels"]) == (False, 0, None)
