"""Composed scenes: repeatable, exact masks, and no drawing that a split must not use."""

from __future__ import annotations

import io
import pickle
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from digpt.data import scenes
from digpt.data.ade20k import decode_mask, palette
from digpt.data.emoji import TRAIN_STYLES, Concept, EmojiImage, EmojiSet
from digpt.data.scenes import SPLITS, SUBGROUPS, Draws, SceneSet, contact_sheet, draw_background, main, on_paper, paste
from digpt.errors import DataError

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    return EmojiSet.load()


def allowed(split: str, concept: Concept, style: str) -> bool:
    """The rule in other words than the code's."""
    if concept.unseen or concept.subgroup not in SUBGROUPS:
        return False
    if split in ("flat", "contrast"):
        return style == split
    return style in TRAIN_STYLES and (concept.val_style == style) == (split == "val")


def drawings(scene_set: SceneSet) -> list[EmojiImage]:
    return [image for images in scene_set.sprites for image in images]


def test_a_scene_is_a_function_of_seed_split_and_index(emoji: EmojiSet) -> None:
    first, again = (SceneSet(emoji, "train", size=64) for _ in range(2))
    later = first.pixels(7)
    first.pixels(3)
    for one, other in zip(later, again.pixels(7), strict=True):
        assert (one == other).all()
    for another in (SceneSet(emoji, "train", size=64, seed=1).pixels(7), again.pixels(8)):
        assert (another[0] != later[0]).mean() > 0.5
    flat, contrast = (SceneSet(emoji, split, size=64).pixels(7)[0] for split in ("flat", "contrast"))
    assert (flat != contrast).mean() > 0.5  # a split's scenes are its own, not another's in a new style
    assert (pickle.loads(pickle.dumps(first)).pixels(7)[0] == later[0]).all()


def test_the_bits_of_the_draws_are_fixed() -> None:
    draws = Draws(np.array([1, 2], dtype=np.uint64), 5)
    # Philox of counter (1, 5, 0, 0) and key (1, 2), as NumPy 2.4 gives it: another version has to draw the same.
    assert draws.bytes(16).tolist() == [37, 90, 128, 77, 131, 243, 47, 103, 113, 155, 121, 215, 98, 26, 127, 126]
    values = np.array([draws.uniform(2, 4) for _ in range(2000)])
    assert 2 <= values.min() < 2.01 and 3.99 < values.max() < 4 and abs(values.mean() - 3) < 0.05
    assert {draws.below(3) for _ in range(50)} == {0, 1, 2}


@pytest.mark.parametrize("split", SPLITS)
def test_no_forbidden_drawing_is_ever_used(emoji: EmojiSet, split: str) -> None:
    scene_set = SceneSet(emoji, split, size=32, count=150)
    by_key = {image.key: image for image in drawings(scene_set)}
    wanted = {
        f"{concept.codepoint}.{style}"
        for concept in emoji.concepts
        for style in concept.styles
        if allowed(split, concept, style)
    }
    assert by_key.keys() == wanted
    for label, images in enumerate(scene_set.sprites):
        assert {emoji.concepts[image.concept].subgroup for image in images} <= {scene_set.classes[label]}
    for index in range(150):
        scene_set.pixels(index)
    assert len(scene_set._cache) > 100 and scene_set._cache.keys() <= wanted  # what was decoded to be pasted


def test_splits_share_no_drawing(emoji: EmojiSet) -> None:
    keys = {split: {image.key for image in drawings(SceneSet(emoji, split))} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not keys[one] & keys[other]


@pytest.mark.parametrize("split", ["train", "flat"])
def test_every_class_occurs_and_the_background_leaves_room(emoji: EmojiSet, split: str) -> None:
    scene_set = SceneSet(emoji, split, size=64, count=300)
    share = np.array([np.bincount(scene_set.pixels(index)[1].ravel(), minlength=33) / 64**2 for index in range(300)])
    assert share.shape == (300, 33)
    assert ((share > 0).sum(axis=0) >= 15).all()  # of 300 * 4.5 drawings in 32 classes, some hidden
    assert 0.4 < share[:, 0].mean() < 0.6
    assert share[:, 0].max() < 0.99 and share[:, 0].min() > 0.1


def test_classes_are_the_background_and_the_largest_subgroups_with_held_out_drawings(emoji: EmojiSet) -> None:
    train, val, flat = (SceneSet(emoji, split) for split in ("train", "val", "flat"))
    assert train.classes == ("background", *SUBGROUPS) and len(train.classes) == 33
    assert train.sprites[0] == []
    sizes = [len(images) for images in flat.sprites[1:]]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) >= 13
    assert min(len(images) for images in val.sprites[1:]) >= 2 and min(map(len, train.sprites[1:])) >= 35
    few = SceneSet(emoji, "train", n_classes=5, size=32, count=40)
    assert few.classes == train.classes[:5]
    assert set(np.unique(np.stack([few.pixels(index)[1] for index in range(40)]))) == set(range(5))


def test_masks_show_the_topmost_drawing(emoji: EmojiSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole scenes again, one pixel at a time, searching the drawings from the top."""
    pasted: list[tuple[Pixels, int, int, int]] = []

    def recording(scene: NDArray[np.uint16], labels: Pixels, sprite: Pixels, top: int, left: int, label: int) -> None:
        pasted.append((sprite, top, left, label))
        paste(scene, labels, sprite, top, left, label)

    def from_the_top(y: int, x: int) -> list[tuple[list[int], int]]:
        return [
            (sprite[y - top, x - left].tolist(), label)
            for sprite, top, left, label in reversed(pasted)
            if 0 <= y - top < sprite.shape[0] and 0 <= x - left < sprite.shape[1] and sprite[y - top, x - left, 3]
        ]

    monkeypatch.setattr(scenes, "paste", recording)
    scene_set = SceneSet(emoji, "train", size=40)
    counts = set()
    for index in range(12):
        pasted.clear()
        image, labels = scene_set.pixels(index)
        counts.add(len(pasted))
        for y, x in np.ndindex(40, 40):
            layers = from_the_top(y, x)
            assert labels[y, x] == next((label for rgba, label in layers if rgba[3] / 255 > 0.5), 0)
            if layers and layers[0][0][3] == 255:
                assert image[y, x].tolist() == layers[0][0][:3]
    assert counts <= {3, 4, 5, 6} and len(counts) >= 3


def test_pasting_by_hand() -> None:
    """Two drawings of 2 x 2 pixels, the second over the corner of the first and beyond the edge."""
    scene, labels = np.full((3, 3, 3), 100, np.uint16), np.zeros((3, 3), np.uint8)
    solid = np.full((2, 2, 4), 255, np.uint8)
    solid[..., :3] = (200, 10, 20)
    paste(scene, labels, solid, 0, 1, 7)
    assert labels.tolist() == [[0, 7, 7], [0, 7, 7], [0, 0, 0]]
    half = np.zeros((2, 2, 4), np.uint8)
    half[0, 0], half[0, 1], half[1, 0] = (64, 0, 0, 127), (64, 0, 0, 128), (1, 2, 3, 255)
    paste(scene, labels, half, 1, 1, 9)
    assert labels.tolist() == [[0, 7, 7], [0, 7, 9], [0, 9, 0]]  # alpha of 127 is below one half, of 128 above
    mixed = [round(value * (255 - 127) / 255) for value in (200, 10, 20)]
    assert scene[1, 1].tolist() == [64 + mixed[0], mixed[1], mixed[2]]
    assert scene[2, 1].tolist() == [1, 2, 3] and scene[2, 2].tolist() == [100, 100, 100]
    for top, left, touched in ((-1, -1, (0, 0)), (2, 2, (2, 2))):
        labels[:] = 0
        paste(scene, labels, solid, top, left, 5)
        assert np.argwhere(labels == 5).tolist() == [list(touched)]
    labels[:] = 0
    large = np.full((8, 8, 4), 255, np.uint8)
    for top, left in ((-8, 0), (0, 3), (5, 5), (-9, -9)):
        paste(scene, labels, large, top, left, 5)
    assert not labels.any()


def test_drawings_have_the_stated_extent(emoji: EmojiSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "TURN", 0.0)
    scene_set = SceneSet(emoji, "train", size=100)
    image = drawings(scene_set)[0]
    assert scene_set.sprite(image).mode == "RGBa"
    for extent in (0.2, 0.6):
        sprite = scene_set._transformed(image, extent, 0.0)
        assert max(sprite.shape[:2]) == 100 * extent
        visible = np.argwhere(sprite[..., 3] > 0)
        assert (visible.min(axis=0) <= 1).all()  # cut to what is visible
        assert (sprite[..., :3] <= sprite[..., 3:]).all()  # premultiplied
    assert scene_set._transformed(image, 0.6, 20.0).shape > sprite.shape  # turned, nothing is cut off


def test_line_art_is_laid_on_paper(emoji: EmojiSet) -> None:
    ring = np.zeros((12, 12, 4), np.uint8)
    ring[2:10, 2:10, 3], ring[4:8, 4:8, 3] = 255, 0
    ring[5, 8:10, 3] = 0  # a gap of one pixel
    filled = on_paper(ring)
    assert (filled[4:8, 4:8] == 255).all() and (filled[2, 2:10] == [0, 0, 0, 255]).all()
    assert (filled[0] == 0).all() and (filled[:, 11] == 0).all()  # nothing outside
    # The flat style is drawn from the same outlines, filled: with paper, the line art covers nearly the same pixels.
    flat = {image.codepoint: emoji.rgba(image)[..., 3] > 127 for image in emoji.images("flat")[::20]}
    overlap: list[list[float]] = [[], []]
    for image in emoji.images("contrast"):
        if image.codepoint in flat:
            for values, rgba in zip(overlap, (emoji.rgba(image), on_paper(emoji.rgba(image))), strict=True):
                one, other = rgba[..., 3] > 127, flat[image.codepoint]
                values.append((one & other).sum() / (one | other).sum())
    assert np.mean(overlap[0]) < 0.6 and np.mean(overlap[1]) > 0.8


def test_backgrounds_are_of_four_kinds_and_never_dark() -> None:
    key = np.array([3, 4], dtype=np.uint64)
    backgrounds = [draw_background(Draws(key, index), 32) for index in range(80)]
    colors = [len(np.unique(background.reshape(-1, 3), axis=0)) for background in backgrounds]
    flat, striped = sum(count == 1 for count in colors), sum(count == 2 for count in colors)
    assert 10 <= flat <= 30 and 8 <= striped <= 30
    smooth = [np.abs(np.diff(background.astype(int), axis=1)).max() for background in backgrounds]
    assert sum(count > 2 and step < 20 for count, step in zip(colors, smooth, strict=True)) >= 10  # gradients
    assert sum(count > 2 and step >= 20 for count, step in zip(colors, smooth, strict=True)) >= 5  # noise
    assert min(background.mean() for background in backgrounds) > 48


@pytest.mark.parametrize("size", [64, 128])
def test_sizes_types_and_files(emoji: EmojiSet, size: int) -> None:
    scene_set = SceneSet(emoji, "val", size=size, count=3)
    image, labels = scene_set.pixels(2)
    assert image.shape == (size, size, 3) and labels.shape == (size, size)
    assert image.dtype == labels.dtype == np.uint8
    picture, mask = scene_set.read(2)
    assert (np.asarray(Image.open(io.BytesIO(picture))) == image).all()
    assert (decode_mask(mask) == labels).all()
    assert (scene_set.labels(mask, "x") == labels).all()  # the background is class 0: no zero rule here
    assert len(scene_set) == 3 and scene_set.sample_name(2) == "scene 2 of val"
    for index in (3, -1):
        with pytest.raises(IndexError):
            scene_set.pixels(index)


def test_the_fingerprint_names_all_that_decides(emoji: EmojiSet) -> None:
    sets = [
        SceneSet(emoji, "flat"),
        SceneSet(emoji, "contrast"),
        SceneSet(emoji, "flat", size=64),
        SceneSet(emoji, "flat", count=10),
        SceneSet(emoji, "flat", seed=1),
        SceneSet(emoji, "flat", n_classes=9),
    ]
    assert len({scene_set.fingerprint for scene_set in sets}) == len(sets)
    assert SceneSet(emoji, "flat").fingerprint == sets[0].fingerprint


def test_what_cannot_be_is_refused(emoji: EmojiSet) -> None:
    with pytest.raises(DataError, match="no split 'trian'.*Did you mean 'train'"):
        SceneSet(emoji, "trian")
    for wrong in ({"size": 8}, {"count": 0}, {"n_classes": 1}, {"n_classes": 34}):
        with pytest.raises(DataError, match="Scenes need"):
            SceneSet(emoji, "train", **wrong)


def test_the_contact_sheet_shows_scenes_beside_their_masks(
    emoji: EmojiSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene_set = SceneSet(emoji, "flat", size=32, count=5)
    sheet = np.asarray(contact_sheet(scene_set, rows=2, columns=3))
    assert sheet.shape == (2 * 36, 3 * 68, 3)
    image, labels = scene_set.pixels(4)  # second row, second column
    assert (sheet[38:70, 70:102] == image).all() and (sheet[38:70, 102:134] == palette(33)[labels]).all()
    assert not sheet[36:, 136:].any()
    main(["--output", str(tmp_path / "scenes.png"), "--split", "flat", "--size", "32"])
    with Image.open(tmp_path / "scenes.png") as written:
        assert written.size == (4 * 68, 4 * 36)
    assert "16 scenes of flat, 33 classes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path / "scenes.png"), "--split", "trian"])
    assert stopped.value.code == 2 and "no split 'trian'" in capsys.readouterr().err
