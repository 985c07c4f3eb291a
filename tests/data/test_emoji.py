"""The bundled emoji set: what it holds, that its splits cannot leak, and what happens when it is damaged."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digpt.data import emoji as module
from digpt.data.emoji import SPLITS, STYLES, TRAIN_STYLES, EmojiSet, main, shard_metadata
from digpt.errors import DataError

ROOT = Path(__file__).resolve().parents[2] / "data" / "emoji"
FINGERPRINT = "9f43cc00cc99fa35292d75d9580085f011b32241d6ce1bd762a1ef156ba3b9e2"


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    return EmojiSet.load()


def test_counts(emoji: EmojiSet) -> None:
    counts = {split: Counter(image.style for image in emoji.images(split)) for split in SPLITS}
    assert len(emoji.concepts) == 1599
    assert len({concept.subgroup for concept in emoji.concepts}) == 95
    assert counts["seen"] == {"noto": 1393, "twemoji": 1404, "fluent3d": 1399}
    assert counts["val"] == {"noto": 106, "twemoji": 95, "fluent3d": 100}
    assert counts["flat"] == {"flat": 1462}
    assert counts["contrast"] == {"contrast": 1462}
    assert counts["unseen"] == dict.fromkeys(STYLES, 100)


def test_every_concept_has_its_training_styles_and_no_flag_slipped_in(emoji: EmojiSet) -> None:
    for concept in emoji.concepts:
        assert concept.styles in (TRAIN_STYLES, STYLES)
        assert concept.group not in ("Flags", "Component")
        assert not any(f"1F3F{tone}" in concept.codepoint for tone in "BCDEF"), "skin tones are left out"


def test_names_are_unique_and_no_caption_fits_two_concepts(emoji: EmojiSet) -> None:
    names = [concept.name for concept in emoji.concepts]
    captions = [caption for concept in emoji.concepts for caption in concept.captions]
    assert len(set(names)) == len(names)
    assert len(set(captions)) == len(captions)
    assert all(concept.captions[0] == concept.name for concept in emoji.concepts)
    assert all(caption == caption.lower().strip() and caption.isascii() for caption in captions)


def test_names_read_like_what_is_drawn(emoji: EmojiSet) -> None:
    names = {concept.codepoint: concept.name for concept in emoji.concepts}
    expected = {"1F600": "grinning face", "1F9A9": "flamingo", "1F996": "t-rex", "1F45E": "man's shoe"}
    assert {codepoint: names[codepoint] for codepoint in expected} == expected


def test_five_style_names_are_the_zero_shot_classes(emoji: EmojiSet) -> None:
    indices = emoji.five_style_indices()
    assert len(indices) == 1562
    assert emoji.five_style_names() == [emoji.concepts[index].name for index in indices]
    classes = set(indices.tolist())
    for split in ("val", "flat", "contrast", "unseen"):
        assert {image.concept for image in emoji.images(split)} <= classes, f"{split} has labels outside the class set"


def test_splits_are_disjoint_and_complete(emoji: EmojiSet) -> None:
    keys = [image.key for split in SPLITS for image in emoji.images(split)]
    assert len(keys) == len(set(keys)) == sum(len(concept.styles) for concept in emoji.concepts)
    assert emoji.images("train") == emoji.images("seen")


def test_nothing_held_out_is_trained_on(emoji: EmojiSet) -> None:
    trained = emoji.images("train")
    unseen = {image.concept for image in emoji.images("unseen")}
    assert {image.style for image in trained} == set(TRAIN_STYLES)
    for split in ("train", "val", "flat", "contrast"):
        assert unseen.isdisjoint(image.concept for image in emoji.images(split)), f"unseen concepts in {split}"
    held_out = [image.concept for image in emoji.images("val")]
    assert len(held_out) == len(set(held_out)), "at most one image per concept is held out"
    assert set(held_out) <= {image.concept for image in trained}, "val concepts are known, only that drawing is not"


def test_no_drawing_of_an_unseen_concept_has_a_twin_elsewhere(emoji: EmojiSet) -> None:
    unseen = {image.encoded for image in emoji.images("unseen")}
    for split in ("train", "val", "flat", "contrast"):
        assert unseen.isdisjoint(image.encoded for image in emoji.images(split)), split


def test_splits_depend_on_code_points_only(emoji: EmojiSet) -> None:
    samples = [(shard_metadata(concept), dict.fromkeys(concept.styles, b"")) for concept in emoji.concepts]
    random.Random(0).shuffle(samples)
    shuffled = EmojiSet(samples, "")
    assert shuffled.concepts == emoji.concepts
    fewer = EmojiSet([sample for sample in samples if "fluent3d" in sample[1]][::2], "")
    before = {concept.codepoint: concept.val_style for concept in emoji.concepts}
    for concept in fewer.concepts:
        if not concept.unseen and before[concept.codepoint] is not None:
            assert concept.val_style == before[concept.codepoint], "removing concepts must not move the others"


def test_rgba_array_agrees_with_the_single_images(emoji: EmojiSet) -> None:
    pixels, concepts = emoji.rgba_array("val")
    images = emoji.images("val")
    assert pixels.dtype == np.uint8 and pixels.shape == (len(images), 64, 64, 4)
    assert concepts.dtype == np.int64 and concepts.tolist() == [image.concept for image in images]
    for position in (0, 150, len(images) - 1):
        np.testing.assert_array_equal(pixels[position], emoji.rgba(images[position]))


def test_pictures_are_what_their_style_promises(emoji: EmojiSet) -> None:
    contrast, _ = emoji.rgba_array("contrast")
    visible = contrast[contrast[..., 3] > 0]
    assert visible[:, :3].max() == 0, "high contrast is black on transparent"
    noto, _ = emoji.rgba_array("val")
    covered = (noto[..., 3] > 0).mean(axis=(1, 2))
    assert covered.min() > 0.02, "an image is empty"
    assert not noto[noto[..., 3] == 0].any(), "colour hides under transparent pixels"


def test_pixels_and_metadata_are_the_recorded_ones(emoji: EmojiSet) -> None:
    assert emoji.fingerprint == FINGERPRINT
    assert emoji.compute_fingerprint() == FINGERPRINT


def test_shards_stay_below_four_megabytes() -> None:
    sizes = {path.name: path.stat().st_size for path in ROOT.glob("*.tar")}
    assert sizes and max(sizes.values()) < 4_000_000, sizes


def test_shards_are_plain_deterministic_webdataset_tars() -> None:
    with tarfile.open(ROOT / "emoji-000.tar") as archive:
        members = archive.getmembers()
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}
    first = [member.name for member in members[:6]]
    assert first[0].endswith(".json")
    assert {name.split(".", 1)[0] for name in first} == {first[0].removesuffix(".json")}, "one sample per concept"


def _copy(target: Path) -> Path:
    for path in [*ROOT.glob("*.tar"), ROOT / "index.json"]:
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_missing_directory_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index\.json is missing.*build\.py"):
        EmojiSet.load(tmp_path / "nowhere")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    (_copy(tmp_path) / "emoji-002.tar").unlink()
    with pytest.raises(DataError, match=r"emoji-002\.tar is missing"):
        EmojiSet.load(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    shard = _copy(tmp_path) / "emoji-001.tar"
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"emoji-001\.tar is damaged"):
        EmojiSet.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"version": 9, "shards": {}, "fingerprint": ""})])
def test_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        EmojiSet.load(tmp_path)


def test_unknown_split_lists_the_valid_ones(emoji: EmojiSet) -> None:
    with pytest.raises(DataError, match=r"seen, val, flat, contrast, unseen.*'unseen'"):
        emoji.images("unsen")


def test_wrong_image_size_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (32, 32)).save(buffer, "WEBP")
    with pytest.raises(DataError, match="32 x 32"):
        module.decode_rgba(buffer.getvalue())


def test_command_prints_the_table_of_the_data_card(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out
    assert printed.strip() in (ROOT / "README.md").read_text(encoding="utf-8"), "paste the printed table into the card"


def test_command_fails_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--root", str(tmp_path)])
    assert caught.value.code == 2
    assert "rebuild it" in capsys.readouterr().err


def test_imports_without_torch() -> None:
    program = "import sys; sys.modules['torch'] = None; import digpt.data.emoji"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT.parents[1])
