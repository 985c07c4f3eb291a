"""Template sets, ImageNet's names, and class matrices on disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from digpt.classsets import ClassMatrixCache, default_cache_dir, restricted
from digpt.engine import Engine
from digpt.errors import CapabilityError, ConfigError, InputError, MissingDependencyError
from digpt.runtime.fake import FakeRuntime
from digpt.text import TEMPLATE_SETS, TEMPLATES, imagenet_names, template_set

LABELS = ["missile", "apple", "missile", "house"]
PROMPTS = ["a {}.", "the {}."]


def fake(**info: object) -> tuple[Engine, FakeRuntime]:
    runtime = FakeRuntime(**info)  # type: ignore[arg-type]
    return Engine(runtime), runtime


# ------------------------------------------------------------------------------------------------ templates, names


def test_template_sets() -> None:
    assert TEMPLATE_SETS == ("plain", "photo", "openai", "simple")
    openai, simple = template_set("openai"), template_set("simple")
    assert len(openai) == len(set(openai)) == 80 and len(simple) == 7
    assert set(simple) < set(openai)
    assert all(template.count("{}") == 1 for template in openai)
    assert openai[0] == "a bad photo of a {}." and simple[0] == "itap of a {}."
    assert template_set("plain") == TEMPLATES["plain"] == ("{}",)
    assert template_set("photo") == ("a photo of a {}.",)


def test_templates_fill_as_open_clips_own_functions_do() -> None:
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    name = "kite (bird of prey)"
    ours = [template.replace("{}", name) for template in template_set("openai")]
    assert ours == [template(name) for template in OPENAI_IMAGENET_TEMPLATES]


def test_unknown_template_set_names_the_near_miss() -> None:
    with pytest.raises(ConfigError, match=r"valid: plain, photo, openai, simple\. Did you mean 'openai'"):
        template_set("opnai")


def test_imagenet_names() -> None:
    names = imagenet_names()
    assert len(names) == 1000 and len(set(names)) == 998
    twice = {name: [index for index, other in enumerate(names) if other == name] for name in ("missile", "sunglasses")}
    assert twice == {"missile": [657, 744], "sunglasses": [836, 837]}
    assert (names[0], names[999]) == ("tench", "toilet paper")


def test_without_open_clip_only_its_own_sets_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert template_set("photo") == ("a photo of a {}.",)
    for wanted in (lambda: template_set("openai"), imagenet_names):
        with pytest.raises(MissingDependencyError, match="pip install open_clip_torch"):
            wanted()


def test_modules_import_without_torch() -> None:
    block = "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'open_clip']))"
    code = f"{block}; import digpt.text, digpt.classsets; digpt.text.template_set('photo')"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# ------------------------------------------------------------------------------------------------------------ cache


def test_matrix_is_the_engines_own_and_a_second_engine_reads_it(tmp_path: Path) -> None:
    engine, first = fake()
    cache = ClassMatrixCache(tmp_path / "new")
    matrix = cache.matrix(engine, LABELS, PROMPTS)
    expected = Engine(FakeRuntime()).class_matrix(LABELS, PROMPTS)
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-6)
    assert matrix.dtype == np.float32 and matrix.shape == (4, 16)
    assert sum(first.text_batches) == 6  # three names, not four, in two templates
    np.testing.assert_array_equal(matrix[0], matrix[2])
    again, second = fake()
    np.testing.assert_array_equal(ClassMatrixCache(tmp_path / "new").matrix(again, LABELS, PROMPTS), matrix)
    assert second.text_batches == []
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".npz"]


def test_the_order_of_the_labels_is_kept(tmp_path: Path) -> None:
    engine, _ = fake()
    cache = ClassMatrixCache(tmp_path)
    forward, backward = cache.matrix(engine, LABELS, PROMPTS), cache.matrix(engine, LABELS[::-1], PROMPTS)
    np.testing.assert_allclose(forward, backward[::-1], rtol=0, atol=1e-6)
    assert np.abs(forward[0] - forward[1]).max() > 0.1


@pytest.mark.parametrize(
    ("info", "labels", "templates"),
    [
        ({"fingerprint": "sha256:other"}, LABELS, PROMPTS),
        ({"backend": "onnx"}, LABELS, PROMPTS),
        ({"engine": "sha256:built"}, LABELS, PROMPTS),
        ({"precision": "fp16"}, LABELS, PROMPTS),
        ({}, [*LABELS, "cat"], PROMPTS),
        ({}, LABELS, PROMPTS[:1]),
        ({}, LABELS, PROMPTS[::-1]),
    ],
)
def test_what_decides_the_matrix_decides_the_file(
    info: dict[str, object], labels: Sequence[str], templates: Sequence[str], tmp_path: Path
) -> None:
    cache = ClassMatrixCache(tmp_path)
    cache.matrix(fake()[0], LABELS, PROMPTS)
    same, unasked = fake()
    cache.matrix(same, LABELS, PROMPTS)
    engine, asked = fake(**info)
    cache.matrix(engine, labels, templates)
    assert unasked.text_batches == [] and asked.text_batches != []
    assert len(list(tmp_path.iterdir())) == 2


def damages() -> dict[str, Callable[[Path], object]]:
    def flipped(path: Path) -> None:
        content = bytearray(path.read_bytes())
        place = content.index(b"NUMPY") + 200  # within the matrix: a bit flip that only a checksum can find
        content[place] ^= 0x10
        path.write_bytes(bytes(content))

    def foreign(path: Path) -> None:
        np.savez(path, matrix=np.ones((3, 16), np.float32), key=np.array("of another file"))

    def other_shape(path: Path) -> None:
        np.savez(path, matrix=np.ones((2, 16), np.float32), key=np.array(path.stem))

    def not_finite(path: Path) -> None:
        np.savez(path, matrix=np.full((3, 16), np.nan, np.float32), key=np.array(path.stem))

    def pickled(path: Path) -> None:
        np.savez(path, matrix=np.array([{}, 1], dtype=object), key=np.array(path.stem))

    return {
        "flipped": flipped,
        "foreign": foreign,
        "other_shape": other_shape,
        "not_finite": not_finite,
        "pickled": pickled,
        "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_bytes(b"not an archive"),
        "an array": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + b"v\x00" + b"{}" * 59),
    }


@pytest.mark.parametrize("damage", list(damages()))
def test_a_damaged_or_foreign_file_is_computed_anew(damage: str, tmp_path: Path) -> None:
    cache = ClassMatrixCache(tmp_path)
    matrix = cache.matrix(fake()[0], LABELS, PROMPTS)
    (path,) = tmp_path.iterdir()
    damages()[damage](path)
    engine, asked = fake()
    np.testing.assert_array_equal(cache.matrix(engine, LABELS, PROMPTS), matrix)
    assert asked.text_batches != []
    again, unasked = fake()
    np.testing.assert_array_equal(cache.matrix(again, LABELS, PROMPTS), matrix)
    assert unasked.text_batches == []  # the file was replaced


def test_where_nothing_can_be_written_the_matrix_is_computed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    engine, _ = fake()
    matrix = ClassMatrixCache(tmp_path / "file").matrix(engine, LABELS, PROMPTS)
    assert matrix.shape == (4, 16) and "could not be kept" in caplog.text


def test_errors_are_the_engines(tmp_path: Path) -> None:
    cache = ClassMatrixCache(tmp_path)
    with pytest.raises(CapabilityError, match="no text tower"):
        cache.matrix(Engine(FakeRuntime(text=False)), LABELS, PROMPTS)
    engine, _ = fake()
    for labels, templates in (([], PROMPTS), (LABELS, ["no place"]), ("missile", PROMPTS), (LABELS, "{}")):
        with pytest.raises(InputError):
            cache.matrix(engine, labels, templates)
    assert list(tmp_path.iterdir()) == []


def test_default_directory_is_read_when_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "digpt" / "class_sets" == ClassMatrixCache().directory
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_cache_dir() == tmp_path / "home" / ".cache" / "digpt" / "class_sets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "digpt" / "class_sets"


# ----------------------------------------------------------------------------------------------------------- subset


def test_restricted_rows_change_the_answer() -> None:
    """An image nearest to a class outside the subset gets the nearest of the subset, not a miss."""
    matrix = np.eye(4, dtype=np.float32)
    image = np.array([[0.1, 0.9, 0.0, 0.4]], np.float32)
    scores = image @ restricted(matrix, [0, 3, 2]).T
    assert (image @ matrix.T).argmax() == 1 and scores.argmax() == 1 and scores.shape == (1, 3)
    np.testing.assert_array_equal(restricted(matrix, [3, 0]), matrix[[3, 0]])


@pytest.mark.parametrize("classes", [[], [0, 0], [4], [-1], [[0, 1]]])
def test_restricted_refuses_what_is_no_subset(classes: list[int]) -> None:
    with pytest.raises(ValueError, match="Classes must"):
        restricted(np.eye(4, dtype=np.float32), classes)


def test_fake_engines_of_this_file_differ_by_their_info_only() -> None:
    """The control of the key's test: another backend's embeddings would have been taken for these."""
    one, other = fake()[0], fake(backend="onnx")[0]
    np.testing.assert_array_equal(one.class_matrix(LABELS, PROMPTS), other.class_matrix(LABELS, PROMPTS))
    assert replace(one.info, backend="onnx") == other.info
