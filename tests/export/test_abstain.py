"""At which cosine a model answers "none of these": a model whose cosines are known, and what the manifest records."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digpt.abstain import AbstainRule
from digpt.engine import Engine
from digpt.errors import InputError
from digpt.runtime.base import check_images
from digpt.runtime.fake import FakeRuntime, hashed_vector
from export.abstain import COUNTS, LEAST, best_of, calibrate, equal_error
from export.tables import abstain_line

LABELS = [f"thing {number:02d}" for number in range(40)]


class Knowing(FakeRuntime):
    """A picture's red names its label: its embedding is the text's, turned by noise of the strength ``noise``."""

    def __init__(self, noise: float, **info: object) -> None:
        super().__init__(dim=32, **info)
        self.noise = noise

    def embed(self, images: np.ndarray) -> np.ndarray:
        images = check_images(images, self.info.preprocess.size)
        texts = [hashed_vector(LABELS[image[0, 0, 0]].encode(), 32) for image in images]
        return np.stack(
            [text + self.noise * hashed_vector(image.tobytes(), 32) for text, image in zip(texts, images, strict=True)]
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of each label, in a folder of its name, and one that lies in none."""
    root = tmp_path_factory.mktemp("pictures")
    for red, label in enumerate(LABELS):
        (root / label.replace(" ", "_")).mkdir()
        for blue in range(4):
            Image.new("RGB", (64, 64), (red, 0, blue)).save(root / label.replace(" ", "_") / f"{blue}.png")
    Image.new("RGB", (64, 64), (255, 0, 0)).save(root / "stray.png")
    return root


def test_equal_error_by_hand() -> None:
    with_own = np.array([0.2, 0.5, 0.6, 0.7], np.float32)
    without = np.array([0.1, 0.15, 0.3, 0.55], np.float32)
    assert equal_error(with_own, without) == pytest.approx(0.5)  # one of four below, one of four not


def test_lists_of_labels_hold_the_right_one_or_do_not() -> None:
    cosine = np.tile(np.array([0.9, 0.1, 0.2, 0.3], np.float32), (3, 1))
    own = np.zeros(3, np.int64)
    with_own, without = best_of(cosine, own, [1, 3], np.random.default_rng(0), np.arange(4))
    assert np.allclose(with_own, 0.9) and np.allclose(without[1], 0.3)
    assert without[0].min() > 0.05 and without[0].max() < 0.35  # never the image's own
    drawn_from_two = best_of(cosine, own, [1, 2], np.random.default_rng(0), np.array([0, 1, 2]))[1]
    assert np.allclose(drawn_from_two[1], 0.2)  # a column that is no candidate is never drawn


def test_a_model_that_knows_gets_thresholds_that_grow(folder: Path) -> None:
    sure = calibrate(Engine(Knowing(0.2)), folder)
    assert sure.rule is not None and sure.of == folder.name and sure.images == 160
    assert sure.rule.labels == tuple(count for count in COUNTS if count < 40)
    assert list(sure.rule.cosine) == sorted(sure.rule.cosine)
    assert all(error.false_reject < 0.1 and error.false_accept < 0.1 for error in sure.errors)
    less = calibrate(Engine(Knowing(1.0)), folder)
    assert less.rule is not None and less.rule.cosine[0] < sure.rule.cosine[0]
    assert sum(e.false_accept for e in less.errors) > sum(e.false_accept for e in sure.errors)
    recorded = sure.to_dict()
    assert recorded is not None and AbstainRule.from_dict(recorded) == sure.rule
    assert recorded["engine"] == "fake fp32" and recorded["templates"] == list(Knowing(0.2).info.templates)
    assert recorded["errors"][0]["labels"] == 1 and recorded["images"] == 160


def test_the_rates_are_those_of_images_that_did_not_choose(folder: Path) -> None:
    """Pictures of every other label are turned away from it: those that chose the threshold are not."""

    class Half(Knowing):
        def embed(self, images: np.ndarray) -> np.ndarray:
            odd = images[:, 0, 0, 0] % 2 == 1
            return np.where(odd[:, None], -1, 1) * super().embed(images)

    found = calibrate(Engine(Half(0.2)), folder)
    assert found.rule is None and "do not tell" in found.reason  # the others' rates are those that count


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Engine(FakeRuntime(text=False)), "no text tower"),
        (Engine(FakeRuntime(dim=32)), "do not tell a right label from a wrong one"),
        (Engine(Knowing(0.2, labels=LABELS[:3])), f"holds 12 pictures of its labels, and {LEAST} are needed"),
    ],
)
def test_what_cannot_be_calibrated_says_why(engine: Engine, reason: str, folder: Path) -> None:
    found = calibrate(engine, folder)
    assert found.rule is None and reason in found.reason and found.to_dict() is None
    assert reason in abstain_line(found)


def test_labels_that_the_model_brings_are_the_ones_asked_about(folder: Path) -> None:
    found = calibrate(Engine(Knowing(0.2, labels=LABELS[:20])), folder)
    assert found.rule is not None and found.images == 80 and max(found.rule.labels) < 20


def test_a_picture_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    for number in range(LEAST):
        (tmp_path / f"thing_0{number % 2}").mkdir(exist_ok=True)
        (tmp_path / f"thing_0{number % 2}" / f"{number}.png").write_bytes(
            buffer.getvalue()[: 30 if number == 5 else None]
        )
    with pytest.raises(InputError, match="A picture of 'thing 01'"):
        calibrate(Engine(Knowing(0.2)), tmp_path)


def test_the_bundled_model_is_calibrated_on_the_bundled_set() -> None:
    found = calibrate(Engine.load("bundled", threads=1), None)
    assert found.rule is not None and found.rule.labels == (1, 3, 10, 30, 100, 300, 1000)
    three = next(error for error in found.errors if error.labels == 3)
    assert three.false_reject < 0.12 and three.false_accept < 0.12
    assert [error.labels for error in found.unseen] == [1, 3, 10, 30, 100, 300, 1000]
    assert found.unseen[1].false_accept < 0.12
