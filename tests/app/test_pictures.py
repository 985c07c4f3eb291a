"""Patch colours and corrupted pictures, without a browser, and the Python lines that give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import snippets
from app.patches import RAMP, SHOWN, attention, attention_colors, patch_colors, patches
from app.playground import KEY, play
from digpt.artifact import write_checkpoint
from digpt.corruptions import corrupt
from digpt.engine import Engine
from digpt.errors import CapabilityError, InputError
from digpt.runtime.fake import FakeRuntime
from digpt.testing import tiny_checkpoint, tiny_segmenter_checkpoint


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "a picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_colours_are_the_principal_components() -> None:
    """Tokens along three orthogonal directions of falling strength: each gets a channel, stretched to 0..255."""
    axes = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0][:3]
    columns, rows = np.meshgrid([-3.0, -1, 1, 3], [-3.0, -1, 1, 3])
    parts = np.stack([4 * columns, 2 * rows, columns * rows / 9], -1).reshape(16, 3)
    colors, variance = patch_colors(parts @ axes + 7)
    assert colors.shape == (4, 4, 3) and variance == pytest.approx(1)
    ramp = np.array([0, 85, 170, 255])
    for channel, lines in ((0, colors), (1, colors.transpose(1, 0, 2))):
        assert all(line[:, channel].tolist() in (ramp.tolist(), ramp[::-1].tolist()) for line in lines)


def test_signs_mean_nothing_and_a_flat_picture_is_no_error() -> None:
    tokens = np.random.default_rng(2).standard_normal((9, 5)) ** 3
    np.testing.assert_array_equal(patch_colors(tokens)[0], patch_colors(-tokens)[0])
    colors, variance = patch_colors(np.ones((4, 2)))
    assert colors.shape == (2, 2, 3) and not colors.any() and variance == 0


def test_patches_of_a_picture(picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "m.pt", tiny_segmenter_checkpoint())
    engine = Engine.load(str(tmp_path / "m.pt"))
    seen = patches(engine, picture)
    tokens = engine.patch_tokens([engine.decode(Path(picture).read_bytes())])[0]
    colors, variance = patch_colors(tokens)
    assert len(tokens) == 16 and 0 < variance <= 1
    assert seen.sentence == f"4 x 4 patches; the colours hold {variance:.0%} of their variance."
    assert seen.picture.shape == seen.colors.shape == (SHOWN, SHOWN, 3)
    np.testing.assert_array_equal(seen.overlay(0), seen.picture)
    np.testing.assert_array_equal(seen.overlay(1), seen.colors)
    monkeypatch.chdir(tmp_path)
    exec(snippets.python_patches("Engine.load('m.pt')", picture), {})
    np.testing.assert_array_equal(np.asarray(Image.open("patches.png")), colors)
    with pytest.raises(CapabilityError):
        patches(Engine(FakeRuntime()), picture)


def test_attention_is_bright_where_there_is_most_of_it() -> None:
    maps = np.array([[[0.0, 0.1], [0.2, 0.4]], [[0.0, 0.1], [0.0, 0.0]]])  # of two heads; together 0, 0.1, 0.1, 0.2
    colors = attention_colors(maps)
    assert colors[0, 0].tolist() == RAMP[0].tolist() and colors[1, 1].tolist() == RAMP[2].tolist()
    assert colors[0, 1].tolist() == colors[1, 0].tolist() == RAMP[1].tolist()


def test_attention_of_a_picture(picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "m.pt", tiny_checkpoint())
    engine = Engine.load(str(tmp_path / "m.pt"))
    seen = attention(engine, picture)
    maps = engine.attention_maps([engine.decode(Path(picture).read_bytes())])[0]
    share = maps.mean(axis=0)
    assert seen.sentence == (
        f"4 x 4 patches; the mean of 3 heads. The brightest patch gets {share.max():.0%} of the attention, the darkest "
        f"{share.min():.0%}, tokens that are no patches {1 - share.sum():.0%}."
    )
    np.testing.assert_array_equal(seen.picture, patches(engine, picture).picture)
    monkeypatch.chdir(tmp_path)
    exec(snippets.python_attention("Engine.load('m.pt')", picture), {})
    np.testing.assert_array_equal(np.asarray(Image.open("attention.png")), attention_colors(maps))
    with pytest.raises(CapabilityError, match="shows no attention"):
        attention(Engine(FakeRuntime()), picture)


def test_a_corrupted_picture_is_what_the_model_is_asked(picture: str) -> None:
    engine = Engine(FakeRuntime(dim=8))
    crop = engine.decode(Path(picture).read_bytes())
    found = play(engine, picture, "cat, dog", "fog", 3)
    np.testing.assert_array_equal(found.picture, corrupt(crop, "fog", 3, key=KEY))
    best = engine.classify([found.picture], ["cat", "dog"])[0]
    assert found.scores == {each.label: each.score for each in best}
    assert found.shown().shape == (SHOWN, SHOWN, 3)
    clean = engine.classify([crop], ["cat", "dog"])[0][0]
    assert found.untouched == {clean.label: clean.score}
    untouched = play(engine, picture, "cat, dog", "fog", 0)
    np.testing.assert_array_equal(untouched.picture, crop)
    assert next(iter(untouched.scores.items())) == (clean.label, clean.score)
    with pytest.raises(InputError, match="Give a picture first"):
        play(engine, None, "cat", "fog", 3)


def test_whether_the_answer_held_is_a_sentence(picture: str) -> None:
    engine = Engine(FakeRuntime(dim=8))
    found = play(engine, picture, "a*b", "fog", 3)
    assert found.sentence() == r"Still **a\*b**: 100% for a\*b; untouched it was 100% for a\*b."
    object.__setattr__(found, "scores", {"c": 0.6, "a*b": 0.4})
    assert found.sentence().startswith(r"No longer **a\*b**: 60% for c; untouched")


def test_python_lines_do_what_is_on_screen(
    picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(FakeRuntime(dim=8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Engine, "load", lambda spec: engine)
    crop = engine.decode(Path(picture).read_bytes())

    def printed(code: str) -> str:
        exec(code, {})
        return capsys.readouterr().out.strip()

    load = "Engine.load('bundled')"
    line = snippets.python_classify(load, picture, ["it's", "dog"], " a {} ", 1)
    assert printed(line) == str(engine.classify([crop], ["it's", "dog"], ["a {}"], top_k=1)[0])
    line = snippets.python_corrupt(load, picture, ["cat", "dog"], "snow", 5, KEY)
    assert printed(line) == str(engine.classify([corrupt(crop, "snow", 5, key=KEY)], ["cat", "dog"])[0])
    assert "corrupt" not in snippets.python_corrupt(load, picture, [], "snow", 0, KEY)
    rows = engine.embed_images([crop, crop])
    assert printed(snippets.python_compare(load, [picture, picture], "")) == str(engine.similarity(rows, rows))
    found = printed(snippets.python_search(load, f"folder({str(tmp_path)!r})", picture, ""))
    assert found.startswith("a picture.png ") and float(found.split()[-1]) == pytest.approx(1)
    assert "class_matrix(['dog'])" in snippets.python_search(load, "bundled()", picture, " dog ")
