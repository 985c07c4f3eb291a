"""What the demo's tabs compute, without a browser."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import handlers, snippets
from app.examples import STYLES, write_examples
from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from digpt.errors import CapabilityError, InputError, UnsupportedFormatError
from digpt.runtime.fake import FakeRuntime


@pytest.fixture
def engine() -> Engine:
    return Engine(FakeRuntime(dim=8))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "a picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    """Three concepts in five made-up drawings each; the last one is a square with a transparent border."""

    def drawing(color: int) -> bytes:
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[16:48, 16:48] = (color, 0, 0, 255)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
        return buffer.getvalue()

    styles = ["noto", "twemoji", "fluent3d", "flat", "contrast"]
    samples = []
    for index in range(103):  # the hundred of the smallest hashes are held out as unseen
        meta = {"codepoint": f"{0x1F600 + index:X}", "name": f"concept {index}", "captions": [f"concept {index}"],
                "group": "g", "subgroup": "s", "styles": styles}  # fmt: skip
        samples.append((meta, {style: drawing(100 + index) for style in styles}))
    return EmojiSet(samples, "none")


def test_labels_by_line_and_comma() -> None:
    assert handlers.parse_labels(" cat,dog \n\n,red apple\ncat,") == ["cat", "dog", "red apple"]
    assert handlers.parse_labels(" \n, ") == []
    with pytest.raises(InputError, match="4097 labels are too many"):
        handlers.parse_labels(",".join(map(str, range(4097))))


def test_classify_is_the_engines(engine: Engine, picture: str) -> None:
    found = handlers.classify(engine, picture, "cat\ndog, owl", "a {}", 2)
    crop = engine.decode(Path(picture).read_bytes())
    expected = engine.classify([crop], ["cat", "dog", "owl"], ["a {}"], top_k=2)[0]
    assert list(found.items()) == [(best.label, best.score) for best in expected]
    assert found != handlers.classify(engine, picture, "cat\ndog, owl", "", 2)  # the template counts


def test_classify_without_labels(picture: str) -> None:
    own = Engine(FakeRuntime(labels=["x", "y"]))
    assert set(handlers.classify(own, picture, "", "a {}", 5)) == {"x", "y"}
    with pytest.raises(CapabilityError, match="no labels of its own"):
        handlers.classify(Engine(FakeRuntime()), picture, "", "", 5)


def test_what_is_missing_or_wrong_is_a_sentence(engine: Engine, picture: str, tmp_path: Path) -> None:
    text = tmp_path / "x.png"
    text.write_text("not an image")
    with pytest.raises(InputError, match="Give a picture first"):
        handlers.classify(engine, None, "cat", "", 5)
    with pytest.raises(UnsupportedFormatError):
        handlers.classify(engine, str(text), "cat", "", 5)
    with pytest.raises(InputError, match=r"no \{\}"):
        handlers.classify(engine, picture, "cat", "a photo", 5)
    with pytest.raises(InputError, match="second picture or a text"):
        handlers.similarity(engine, picture, None, "  ")


def test_similarity_of_every_pair(engine: Engine, picture: str, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 64), "red").save(other)
    pairs = dict(handlers.similarity(engine, picture, str(other), " dog "))
    a, b = engine.embed_images([engine.decode(Path(path).read_bytes()) for path in (picture, str(other))])
    t = engine.embed_texts(["dog"])[0]
    assert list(pairs) == ["first picture and second picture", "first picture and “dog”", "second picture and “dog”"]
    assert list(pairs.values()) == pytest.approx([a @ b, a @ t, b @ t], abs=1e-6)
    assert handlers.similarity(engine, picture, picture, "")[0][1] == pytest.approx(1)
    assert len(handlers.similarity(engine, picture, None, "dog")) == 1


def test_add_label() -> None:
    assert handlers.add_label("cat\n", "dog") == "cat\ndog"
    assert handlers.add_label("", "dog") == "dog"
    assert handlers.add_label("cat, dog", "dog") == "cat, dog"
    assert handlers.add_label("cat", None) == "cat"


def test_known_concepts(emoji: EmojiSet) -> None:
    assert handlers.known_concepts(Engine(FakeRuntime(labels=["b", "a"])), emoji) == ["a", "b"]
    assert len(handlers.known_concepts(Engine(FakeRuntime()), emoji)) == 103
    assert handlers.known_concepts(Engine(FakeRuntime()), None) == []
    assert handlers.known_concepts(Engine(FakeRuntime(text=False)), emoji) == []


def test_examples_are_over_white_and_of_styles_never_trained(emoji: EmojiSet, tmp_path: Path) -> None:
    examples = write_examples(emoji, tmp_path, per_style=2)
    shown = {style: [example.name for example in examples if example.style == style] for style in STYLES}
    assert set(shown) == {"flat", "contrast"}
    assert all(len(names) == 2 for names in shown.values())
    held_out = {emoji.concepts[image.concept].name for image in emoji.images("unseen")}
    assert not held_out & {example.name for example in examples}
    with Image.open(examples[0].path) as image:
        assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))
        number = int(examples[0].name.split()[1])
        assert image.getpixel((96, 96)) == (100 + number, 0, 0)


def test_curl_lines_survive_a_shell() -> None:
    line = snippets.curl_classify("http://h:1", "/tmp/x y/it's.png", ["a b", "@c", "d"], " a {} ", 3)
    assert shlex.split(line.replace("\\\n", "")) == [
        "curl", "-s", "http://h:1/classify", "-F", "files=@it's.png", "--form-string", "labels=a b",
        "--form-string", "labels=@c", "--form-string", "labels=d", "--form-string", "templates=a {}", "-F", "top_k=3",
    ]  # fmt: skip
    assert "templates" not in snippets.curl_classify("http://h:1", "x.png", [], "a {}", 3)
    embed = snippets.curl_embed("http://h:1", ["/a/1.png", None], " dog ")
    assert shlex.split(embed.replace("\\\n", "")) == [
        "curl", "-s", "http://h:1/embed", "-F", "files=@1.png", "--form-string", "texts=dog",
    ]  # fmt: skip
