"""Whatever a client sends gets a clear 4xx, and the server answers the next request."""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image as Pillow

Image = Callable[..., bytes]
LABELS = ["cat", "dog"]

# starlette leaves the file of a part that never ends to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture(autouse=True)
def still_answers(client: httpx.Client, image: Image) -> Iterator[None]:
    yield
    answer = client.post("/classify", json={"images": [b64(image())], "labels": LABELS})
    assert answer.status_code == 200, answer.text


def check(answer: httpx.Response, status: int, code: str, param: str | None = None, index: int | None = None) -> str:
    """Hold an answer against the error schema; return its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "index"}
    assert (error["code"], error["param"], error["index"]) == (code, param, index)
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith((".", "?")), error["message"]
    return str(error["message"])


IMAGES: list[tuple[str, Callable[[Image], bytes], int, str]] = [
    ("truncated JPEG", lambda image: image(0, "JPEG")[:1500], 422, "unreadable_image"),
    ("truncated PNG", lambda image: image(0)[:1500], 422, "unreadable_image"),
    ("empty", lambda image: b"", 422, "unreadable_image"),
    ("text", lambda image: b"this is no image", 415, "unsupported_image_format"),
    ("SVG", lambda image: b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_image_format"),
    ("PostScript", lambda image: b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "unsupported_image_format"),
    ("bomb", lambda image: png_header(50_000, 50_000), 413, "image_too_large"),
    ("no pixels", lambda image: png_header(0, 10), 422, "unreadable_image"),
    ("many bytes", lambda image: image(0, "BMP", (300, 250)), 413, "image_too_large"),
]


@pytest.mark.parametrize(("make", "status", "code"), [case[1:] for case in IMAGES], ids=[case[0] for case in IMAGES])
def test_bad_images(client: httpx.Client, image: Image, make: Callable[[Image], bytes], status: int, code: str) -> None:
    data = make(image)
    check(client.post("/embed", json={"images": [b64(data)]}), status, code, "images", 0)
    check(client.post("/embed", files=[("files", ("x.png", data, "image/png"))]), status, code, "files", 0)
    check(client.post("/embed", content=data, headers={"Content-Type": "image/jpeg"}), status, code, "body", 0)
    answer = client.post("/classify", json={"images": [b64(image()), b64(data)], "labels": LABELS})
    assert answer.status_code == 200
    assert answer.json()["data"][1]["error"]["code"] == code


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("a", "not valid base64"),
        ("iVBORw0KGgo=*", "not valid base64"),
        ("é", "not valid base64"),
        ("data:image/png,xyz", "must look like"),
        ("data:image/png;base64", "must look like"),
        ("https://example.com/cat.png", "by URL are not fetched"),
        ("file:///etc/passwd", "not valid base64"),
    ],
)
def test_bad_base64(client: httpx.Client, value: str, sentence: str) -> None:
    assert sentence in check(client.post("/embed", json={"images": [value]}), 422, "invalid_input", "images", 0)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{'a': 1}", b"\xff\xfe", b'{"images": ["' + b"\xc3" + b'"]}', b"nan", b"[" * 100_000,
     b'{"top_k": NaN}', b'{"images": ["\\ud800"]}'],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_unparsable_json(client: httpx.Client, body: bytes) -> None:
    for path in ("/embed", "/classify"):
        check(client.post(path, content=body, headers={"Content-Type": "application/json"}), 400, "unparsable_body")
    check(client.post("/embed", content=body), 400, "unparsable_body")


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\nv\r\n--x--\r\n"]
)
@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_unparsable_multipart(client: httpx.Client, body: bytes, kind: str) -> None:
    answer = client.post("/embed", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 422)
    check(answer, answer.status_code, "unparsable_body" if answer.status_code == 400 else "invalid_request",
          None if answer.status_code == 400 else "images")  # fmt: skip


@pytest.mark.parametrize(
    ("charset", "name", "value"),
    [("undefined", b"texts", b"a"), ("utf-7", b"+2AA-", b"a"), ("utf-7", b"texts", b"+2AA-"), ("idna", b"\xff", b"a")],
)
def test_odd_charsets(client: httpx.Client, charset: str, name: bytes, value: bytes) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value + b"\r\n--x--\r\n"
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    answer = client.post("/embed", content=body, headers={"Content-Type": kind})
    if charset == "idna":  # starlette falls back to latin-1
        assert "no field 'ÿ'" in check(answer, 422, "invalid_request", "ÿ")
    else:
        assert "charset" in check(answer, 400, "unparsable_body")


@pytest.mark.parametrize(
    ("body", "param", "index", "sentence"),
    [
        ([], None, None, "must be a JSON object"),
        ("images", None, None, "must be a JSON object"),
        ({}, "images", None, "at least one"),
        ({"images": []}, "images", None, "at least one"),
        ({"images": None}, "images", None, "at least one"),
        ({"images": [], "texts": []}, "images", None, "at least one"),
        ({"images": "abc"}, "images", None, "list"),
        ({"images": ["x", 1]}, "images", 1, "string"),
        ({"image": ["x"]}, "image", None, "Did you mean 'images'"),
        ({"texts": ["a", ""]}, "texts", 1, "at least 1 character"),
        ({"texts": ["a" * 51]}, "texts", 0, "at most 50"),
        ({"texts": ["a"] * 9}, None, None, "at most 8"),
        ({"texts": ["a"], "normalize": "yes"}, "normalize", None, "boolean"),
        ({"texts": ["a"], "encoding_format": "int4"}, "encoding_format", None, "base64"),
        ({"texts": ["a"], "model": 3}, "model", None, "string"),
    ],
)
def test_embed_schema(client: httpx.Client, body: Any, param: str | None, index: int | None, sentence: str) -> None:
    assert sentence in check(client.post("/embed", json=body), 422, "invalid_request", param, index)


@pytest.mark.parametrize(
    ("fields", "param", "index", "sentence"),
    [
        ({"labels": []}, "labels", None, "at least 1"),
        ({"labels": ["a", 2]}, "labels", 1, "string"),
        ({"labels": ["a"] * 11}, "labels", None, "at most 10"),
        ({"labels": ["a" * 51]}, "labels", 0, "at most 50"),
        ({"labels": LABELS, "templates": []}, "templates", None, "at least 1"),
        ({"labels": LABELS, "templates": ["a photo"]}, "templates", None, "no {} to put"),
        ({"labels": LABELS, "templates": ["{}"] * 11}, "templates", None, "20 prompts"),
        ({"labels": LABELS, "top_k": 0}, "top_k", None, "greater than or equal to 1"),
        ({"labels": LABELS, "top_k": "5"}, "top_k", None, "integer"),
        ({"labels": LABELS, "top_k": 1.5}, "top_k", None, "integer"),
        ({"labels": LABELS, "class_sets": "mine"}, "class_sets", None, "no field 'class_sets'"),
        ({"labels": LABELS, "images": []}, "images", None, "at least one"),
    ],
)
def test_classify_schema(
    client: httpx.Client, image: Image, fields: dict[str, Any], param: str, index: int | None, sentence: str
) -> None:
    answer = client.post("/classify", json={"images": [b64(image())], **fields})
    assert sentence in check(answer, 422, "invalid_request", param, index)


@pytest.mark.parametrize("top_k", [10**30, 2**63, 7])
def test_any_top_k_will_do(client: httpx.Client, image: Image, top_k: int) -> None:
    answer = client.post("/classify", json={"images": [b64(image())], "labels": LABELS, "top_k": top_k})
    assert len(answer.json()["data"][0]["predictions"]) == 2


@pytest.mark.parametrize("template", ["{} {0}", "{}{", "{} {a.b}", "{} %s {!r}"])
def test_braces_in_templates_are_text(client: httpx.Client, image: Image, template: str) -> None:
    body = {"images": [b64(image())], "labels": ["{}", "{x}"], "templates": [template]}
    assert client.post("/classify", json=body).status_code == 200


def test_forms(client: httpx.Client, image: Image) -> None:
    data = image()
    text = client.post("/embed", data={"files": "text"}, files={"files": data})
    assert "text, not an uploaded file" in check(text, 422, "invalid_request", "files")
    elsewhere = client.post("/embed", files={"file": data})
    assert "the field 'files'" in check(elsewhere, 422, "invalid_request", "file")
    twice = client.post("/embed?normalize=true&normalize=false", files={"files": data})
    check(twice, 422, "invalid_request", "normalize")
    check(client.post("/embed", files=[("files", data)] * 9), 422, "invalid_request")
    check(client.post("/classify", files={"files": data}, data={"top_k": "many"}), 422, "invalid_request", "top_k")


def test_refusals_reach_a_client_that_is_still_sending(client: httpx.Client) -> None:
    content = (b"x" * 100_000 for _ in range(300))
    check(
        client.post("/embed", content=content, headers={"Content-Type": "video/mp4"}), 415, "unsupported_content_type"
    )


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "video/mp4", "nonsense", ""])
def test_other_content_types(client: httpx.Client, image: Image, kind: str) -> None:
    answer = client.post("/embed", content=image(), headers={"Content-Type": kind})
    assert "multipart/form-data" in check(answer, 415, "unsupported_content_type")


def test_unknown_model_path_and_method(client: httpx.Client, image: Image) -> None:
    unknown = client.post("/embed", json={"images": [b64(image())], "model": "fakes"})
    assert "Did you mean 'fake'" in check(unknown, 404, "model_not_found", "model")
    check(client.get("/models/other"), 404, "model_not_found", "model")
    check(client.get("/nowhere"), 404, "not_found")
    check(client.get("/embed"), 405, "method_not_allowed")
    assert client.get("/embed").headers["allow"] == "POST"


@pytest.mark.parametrize("kind", ["application/json", "image/png", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("streamed", [False, True])
def test_too_large_a_body(client: httpx.Client, kind: str, streamed: bool) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b"x" * 4_000_000
    content = (body[start : start + 100_000] for start in range(0, len(body), 100_000)) if streamed else body
    answer = client.post("/embed", content=content, headers={"Content-Type": kind})
    assert "1000000 bytes" in check(answer, 413, "request_too_large")


def test_a_client_that_asks_first_need_not_send_its_body(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=5) as connection:
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("seed", range(4))
def test_random_bodies_are_never_the_servers_fault(client: httpx.Client, image: Image, seed: int) -> None:
    random_ = random.Random(seed)
    valid = json.dumps({"images": [b64(image(0, size=(8, 8)))], "labels": LABELS, "top_k": 1}).encode()
    form = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + image(0, size=(8, 8)) +
        b'\r\n--x\r\nContent-Disposition: form-data; name="labels"\r\n\r\ncat\r\n--x--\r\n'
    )  # fmt: skip
    sources = [
        ("application/json", valid),
        ("multipart/form-data; boundary=x", form),
        *[(f"image/{kind}", image(0, kind, (8, 8))) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")],
    ]
    statuses = set()
    for _ in range(60):
        kind, source = random_.choice(sources)
        answer = client.post("/classify?labels=a", content=mutate(random_, source), headers={"Content-Type": kind})
        statuses.add(answer.status_code)
        if answer.status_code != 200:
            check(answer, answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"],
                  answer.json()["error"]["index"])  # fmt: skip
    assert statuses <= {200, 400, 413, 415, 422}
    assert len(statuses) > 2


def mutate(random_: random.Random, data: bytes) -> bytes:
    """Flip, cut, double or replace some bytes."""
    changed = bytearray(data)
    for _ in range(random_.choice([1, 2, 5, 20])):
        at = random_.randrange(len(changed) or 1)
        how = random_.randrange(4)
        if how == 0 and changed:
            changed[at % len(changed)] ^= 1 << random_.randrange(8)
        elif how == 1:
            changed[at : at + random_.randrange(8)] = random_.randbytes(random_.randrange(8))
        elif how == 2:
            changed[at:at] = changed[at : at + random_.randrange(30)]
        else:
            del changed[random_.randrange(len(changed) // 2 + 1, len(changed) + 1) :]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(3))
def test_random_json_is_never_the_servers_fault(client: httpx.Client, image: Image, seed: int) -> None:
    random_ = random.Random(seed)
    good = b64(image(0, size=(8, 8)))
    names = ["images", "texts", "labels", "templates", "top_k", "model", "normalize", "preprocessed",
             "multi_label", "abstain", "encoding_format", "x"]  # fmt: skip

    def value(depth: int = 0) -> Any:
        simple = [None, True, -1, 0, 3, 10**40, 1e308, "", "a {}", "é\u0000🍎", good, "fake", "base64"]
        if depth > 2 or random_.random() < 0.5:
            return random_.choice(simple)
        if random_.random() < 0.9:
            return [value(depth + 1) for _ in range(random_.randrange(4))]
        return {random_.choice(names): value(depth + 1)}

    for _ in range(80):
        body = {name: value() for name in random_.sample(names, random_.randrange(5))}
        body.update({"images": [good], "labels": ["a"]} if random_.random() < 0.3 else {})
        answer = client.post(random_.choice(["/embed", "/classify"]), json=body)
        assert answer.status_code in (200, 404, 413, 415, 422), (body, answer.text)


def test_animated_and_odd_images_are_read(client: httpx.Client) -> None:
    frames = [Pillow.new("P", (20, 30), color) for color in (0, 1)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        odd = io.BytesIO()
        Pillow.new(mode, (7, 300)).save(odd, "TIFF")
        answer = client.post("/embed", files=[("files", odd.getvalue()), ("files", buffer.getvalue())])
        assert ["embedding" in item for item in answer.json()["data"]] == [True, True], (mode, answer.text)
