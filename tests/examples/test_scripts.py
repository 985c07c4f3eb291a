"""The examples in Python: what they find on small real input is what the model and the pictures say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from digpt.artifact import read_checkpoint, write_checkpoint
from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from digpt.errors import ConfigError, DataError
from digpt.testing import tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "examples" / "images"

Load = Callable[[str], ModuleType]


@pytest.fixture
def model(tmp_path: Path) -> str:
    write_checkpoint(tmp_path / "tiny.pt", tiny_checkpoint())
    return str(tmp_path / "tiny.pt")


def test_words_and_a_picture_find_what_they_name(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    search = load("knn_search").search
    for words in ("red apple", "dog face", "rocket"):
        found = search(IMAGES, words=words)
        assert len(found) == 3 and found[0][0] == f"{words.replace(' ', '-')}.png"
        assert found[0][1] > 2 * found[1][1]
    found = search(IMAGES, picture=IMAGES / "rocket.png", k=2)
    assert found[0] == ("rocket.png", pytest.approx(1.0, abs=1e-5))
    assert capsys.readouterr().out.splitlines()[-2:] == [f"{cosine:.4f}  {name}" for name, cosine in found]
    with pytest.raises(ConfigError, match="--words or --picture"):
        search(IMAGES)


def test_a_head_is_fitted_measured_and_can_be_used_again(
    load: Load, shades: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "head" / "ckpt.pt"
    assert load("linear_head").fit(shades, output, model) == 1.0
    assert "100.0% [100.0%, 100.0%] of 8 held-out pictures, chance 50.0%" in capsys.readouterr().out
    engine = Engine.load(str(output))
    assert engine.info.labels == ("dark", "light") and engine.info.head == "linear"
    for name in ("dark", "light"):
        crops = [engine.decode(path.read_bytes()) for path in (shades / name).iterdir()]
        assert {best[0].label for best in engine.classify(crops)} == {name}
    before, after = read_checkpoint(model).weights["encoder"], read_checkpoint(output).weights["encoder"]
    assert before.keys() == after.keys() and all(before[key].equal(after[key]) for key in before)
    with pytest.raises(DataError, match="no folders"):
        load("linear_head").fit(IMAGES, output, model)


def test_two_models_are_compared_on_the_same_pictures(
    load: Load, shades: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = load("compare_checkpoints").compare
    blind = tiny_checkpoint()
    blind.weights["head"]["weight"][:] = 0
    blind.weights["head"]["weight"][0, 0] = 1e-6  # one direction is left, and noise decides
    blind.weights["encoder"]["patch_embed.proj.weight"][:] = 0  # nothing of the picture is seen
    write_checkpoint(tmp_path / "blind.pt", blind)
    by, test = compare(shades, model, str(tmp_path / "blind.pt"), k=5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("100.0% of 20 right: ") and lines[1].startswith(" 50.0% of 20 right: ")
    assert (test.both, test.b, test.c) == (10, 10, 0) and by.value == 0.5
    assert test.p_value == pytest.approx(2 * 0.5**10)
    assert lines[2].startswith("+50.0 points [") and lines[2].endswith("p = 0.002 (McNemar, exact)")
    assert by.ci95[0] < 0.5 < by.ci95[1]
    by, test = compare(shades, model, model)
    assert by.value == 0 and test.p_value == 1


def test_the_drawings_are_those_of_the_set(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = load("drawings").write(tmp_path)
    emoji = EmojiSet.load()
    assert sum(counts.values()) == len(emoji.images("flat")) == len(list(tmp_path.glob("*/*.webp")))
    assert f"{counts['Food & Drink']:5}  Food & Drink" in capsys.readouterr().out.splitlines()
    rocket = next(image for image in emoji.images("flat") if emoji.concepts[image.concept].name == "rocket")
    assert (tmp_path / "Travel & Places" / "rocket.webp").read_bytes() == rocket.encoded
    assert np.unique(list(counts.values())).size > 1
