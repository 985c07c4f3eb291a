"""Masks as they lie on disk: values kept exactly, the zero rule applied once, and what is refused."""

from __future__ import annotations

import io
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from digpt.data.ade20k import (
    ADE20K_CLASSES,
    MaskSource,
    decode_mask,
    keep_ratio_size,
    open_masks,
    palette,
    reduce_zero_label,
    resize_image,
    resize_labels,
)
from digpt.data.source import SampleError
from digpt.errors import ConfigError, DataError

Pixels = NDArray[np.uint8]
RAW = np.array([[0, 1, 2], [150, 255, 7]], dtype=np.uint8)  # as ADE20K's files have it: 0 is not labelled
REDUCED = [[255, 0, 1], [149, 255, 6]]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: Pixels) -> bytes:
    return encoded(Image.fromarray(values))


def with_palette(values: Pixels, bits: int = 8) -> bytes:
    """Palette indices whose colours are misleading: index i is shown in grey 255 - i."""
    image = Image.fromarray(values).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([255 - index for index in range(1 << bits) for _ in range(3)])
    return encoded(image, bits=bits)


def narrow_grey(values: Pixels, bits: int) -> bytes:
    """A grey PNG of fewer than 8 bits, which Pillow reads but does not write; one row, eight pixels at most."""
    packed = int("".join(f"{value:0{bits}b}" for value in values).ljust(8 * bits, "0"), 2).to_bytes(bits, "big")
    used = -(-len(values) * bits // 8)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    data = zlib.compress(b"\0" + packed[:used])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def photo(height: int = 2, width: int = 3, **options: object) -> bytes:
    return encoded(Image.new("RGB", (width, height), (10, 200, 30)), "JPEG", quality=100, **options)


def write(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def ade20k(root: Path, mask: bytes | None = None, image: bytes | None = None) -> Path:
    """A small tree in the very layout of ADEChallengeData2016.zip, with what else lies in it."""
    files = {"objectInfo150.txt": b"Idx\n", "sceneCategories.txt": b"ADE_train_00000001 street\n"}
    for folder, kind, numbers in (("training", "train", (2, 1, 3)), ("validation", "val", (1, 2))):
        for number in numbers:
            stem = f"ADE_{kind}_{number:08}"
            files[f"images/{folder}/{stem}.jpg"] = photo() if image is None else image
            files[f"annotations/{folder}/{stem}.png"] = grey(RAW) if mask is None else mask
    return write(root / "ADEChallengeData2016", files)


def folders(root: Path, splits: tuple[str, ...] = ("train", "val"), names: str | None = "sky\nsea\n") -> Path:
    files = {} if names is None else {"classes.txt": names.encode()}
    for split in splits:
        for stem in ("b", "a.1"):
            files[f"images/{split}/{stem}.png"] = encoded(Image.new("RGB", (3, 2)))
            files[f"masks/{split}/{stem}.png"] = grey(np.array([[0, 1, 255]] * 2, dtype=np.uint8))
    return write(root, files)


@pytest.mark.parametrize("store", [grey, with_palette], ids=["grey", "palette"])
def test_ade20k_zero_is_ignored_and_the_rest_one_less_exactly_once(
    tmp_path: Path, store: Callable[[Pixels], bytes]
) -> None:
    root = ade20k(tmp_path, store(RAW))
    source = open_masks(f"ade20k:{root}", "val")
    image, labels = source.pixels(0)
    assert labels.tolist() == REDUCED and labels.dtype == np.uint8
    assert image.shape == (2, 3, 3) and abs(image.astype(int) - [10, 200, 30]).max() <= 2
    # read() gives the file as it is, so the rule is not in there a second time
    assert decode_mask(source.read(0)[1]).tolist() == RAW.tolist()
    assert source.labels(store(np.array([[1]], np.uint8)), "x").tolist() == [[0]]


def test_the_zero_rule_is_a_table_of_256_values() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert reduce_zero_label(values).tolist() == [255, *range(254), 255]
    assert values[1] == 1  # the input stays


def test_ade20k_opens_from_the_folder_and_from_its_parent_in_the_order_of_the_names(tmp_path: Path) -> None:
    root = ade20k(tmp_path)
    direct, above = open_masks(f"ade20k:{root}", "train"), open_masks(f"ade20k:{tmp_path}", "train")
    assert [direct.sample_name(index) for index in range(3)] == [f"ADE_train_0000000{n}.jpg" for n in (1, 2, 3)]
    assert direct.fingerprint == above.fingerprint != open_masks(f"ade20k:{root}", "val").fingerprint
    assert len(open_masks(f"ade20k:{root}", "validation")) == 2
    assert direct.classes == ADE20K_CLASSES and direct.reduce_zero
    assert [direct.neighbour(2, attempt) for attempt in (1, 2)] == [0, 1]


def test_ade20k_has_the_150_names_at_their_numbers() -> None:
    assert len(ADE20K_CLASSES) == len(set(ADE20K_CLASSES)) == 150
    # numbers of objectInfo150.txt, which counts from 1
    for number, name in (
        (1, "wall"),
        (13, "person"),
        (21, "car"),
        (45, "chest of drawers"),
        (90, "television"),
        (100, "buffet"),
        (131, "screen"),
        (137, "traffic light"),
        (150, "flag"),
    ):
        assert ADE20K_CLASSES[number - 1] == name


def test_masks_take_values_as_they_are_unless_asked(tmp_path: Path) -> None:
    root = folders(tmp_path)
    source = open_masks(f"masks:{root}", "val")
    assert source.classes == ("sky", "sea") and not source.reduce_zero
    assert source.pixels(0)[1].tolist() == [[0, 1, 255]] * 2
    reduced = open_masks(f"masks:{root}", "val", reduce_zero=True)
    assert reduced.pixels(0)[1].tolist() == [[255, 0, 255]] * 2
    assert reduced.fingerprint != source.fingerprint
    assert [source.sample_name(index) for index in range(2)] == ["a.1.png", "b.png"]


def test_masks_without_split_folders_are_training_data(tmp_path: Path) -> None:
    image, mask = encoded(Image.new("RGB", (1, 1))), grey(np.zeros((1, 1), np.uint8))
    root = write(tmp_path, {"images/a.png": image, "masks/a.png": mask})
    assert len(open_masks(f"masks:{root}", "train")) == len(open_masks(f"masks:{root}", "val", whole=True)) == 1
    with pytest.raises(DataError, match="has no split val"):
        open_masks(f"masks:{root}", "val")


def test_classes_without_a_list_are_counted_over_all_splits(tmp_path: Path) -> None:
    root = folders(tmp_path, names=None)
    write(root, {"masks/train/b.png": grey(np.full((2, 3), 4, np.uint8))})
    expected = tuple(f"class {number}" for number in range(5))
    assert open_masks(f"masks:{root}", "train").classes == open_masks(f"masks:{root}", "val").classes == expected
    assert open_masks(f"masks:{root}", "val", reduce_zero=True).classes == expected[:4]
    given = open_masks(f"masks:{root}", "val", classes=["sky", "sea", "sand"])
    assert given.classes == ("sky", "sea", "sand")


def test_classes_that_contradict_the_training_data_are_refused(tmp_path: Path) -> None:
    root = folders(tmp_path)
    assert open_masks(f"masks:{root}", "val", classes=("sky", "sea")).classes == ("sky", "sea")
    with pytest.raises(DataError, match="other classes"):
        open_masks(f"masks:{root}", "val", classes=("sea", "sky"))


def test_missing_pairs_are_named(tmp_path: Path) -> None:
    root = ade20k(tmp_path)
    (root / "annotations/validation/ADE_val_00000002.png").unlink()
    with pytest.raises(DataError, match=r"annotations/validation has no mask for ADE_val_00000002 \(1 such\)"):
        open_masks(f"ade20k:{root}", "val")
    for number in (1, 2, 3):
        (root / f"images/training/ADE_train_0000000{number}.jpg").unlink()
    write(root, {f"annotations/training/more_{n}.png": b"" for n in range(3)})
    write(root, {"images/training/ADE_train_00000001.jpg": photo()})
    with pytest.raises(DataError, match=r"no image for ADE_train_00000002, ADE_train_00000003, more_0, ... \(5 such\)"):
        open_masks(f"ade20k:{root}", "train")


def test_two_images_of_one_name_are_refused_and_hidden_files_are_not_counted(tmp_path: Path) -> None:
    root = folders(tmp_path)
    write(root, {"images/val/._b.png": b"", "masks/val/.DS_Store": b"", "masks/val/Thumbs.db": b""})
    assert len(open_masks(f"masks:{root}", "val")) == 2
    write(root, {"images/val/b.jpg": photo()})
    with pytest.raises(DataError, match=r"both b\.jpg and b\.png"):
        open_masks(f"masks:{root}", "val")


def test_sizes_have_to_agree_after_the_exif_orientation(tmp_path: Path) -> None:
    source = open_masks(f"ade20k:{ade20k(tmp_path / 'a', image=photo(3, 3))}", "val")
    with pytest.raises(SampleError, match=r"ADE_val_00000001.jpg: the image has 3 x 3 .* the mask 3 x 2") as raised:
        source.pixels(0)
    assert raised.value.kind == "sizes differ"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    source = open_masks(f"ade20k:{ade20k(tmp_path / 'b', image=photo(3, 2, exif=exif))}", "val")
    assert source.pixels(0)[0].shape == (2, 3, 3)


@pytest.mark.parametrize(("value", "fine"), [(150, True), (255, True), (151, False), (254, False)])
def test_values_beyond_the_classes_are_refused(tmp_path: Path, value: int, fine: bool) -> None:
    source = open_masks(f"ade20k:{ade20k(tmp_path, grey(np.full((2, 3), value, np.uint8)))}", "val")
    if fine:
        assert set(source.pixels(0)[1].ravel()) == {149 if value == 150 else 255}
        return
    with pytest.raises(SampleError, match=f"ADE_val_00000001.jpg: the mask has the value {value}.* end at 150"):
        source.pixels(0)


def test_a_value_beyond_the_classes_of_plain_masks(tmp_path: Path) -> None:
    root = folders(tmp_path, names="only\n")
    with pytest.raises(SampleError, match="value 1, but the 1 classes end at 0"):
        open_masks(f"masks:{root}", "val").pixels(0)


def test_palette_indices_of_any_depth_are_read_as_they_are() -> None:
    for bits in (1, 2, 4, 8):
        values = np.arange(min(1 << bits, 256), dtype=np.uint8)[None]
        assert decode_mask(with_palette(values, bits)).tolist() == values.tolist()
    assert decode_mask(grey(np.arange(256, dtype=np.uint8)[None])).tolist() == [list(range(256))]


def test_narrow_grey_is_refused_because_decoders_stretch_it() -> None:
    values = np.array([0, 1, 2, 3], dtype=np.uint8)
    stretched = np.asarray(Image.open(io.BytesIO(narrow_grey(values, 2))).convert("L"))
    assert stretched.tolist() == [[0, 85, 170, 255]]  # the control: read without the check, the classes were these
    for bits in (1, 2, 4):
        with pytest.raises(SampleError, match=f"PNG of {bits} bits"):
            decode_mask(narrow_grey(values % np.uint8(2), bits))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded(Image.new("RGB", (2, 2))), "no index mask"),
        (encoded(Image.new("LA", (2, 2))), "no index mask"),
        (encoded(Image.new("I;16", (2, 2))), "no index mask"),
        (encoded(Image.new("L", (2, 2)), "JPEG"), "no PNG mask"),
        (grey(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8))[:500], "undecodable mask"),
        (b"", "undecodable mask"),
    ],
)
def test_what_is_no_mask_is_refused(data: bytes, kind: str) -> None:
    with pytest.raises(SampleError) as raised:
        decode_mask(data)
    assert raised.value.kind == kind


def test_a_damaged_file_is_named_by_its_sample(tmp_path: Path) -> None:
    root = ade20k(tmp_path)
    write(root, {"images/validation/ADE_val_00000001.jpg": b"no", "annotations/validation/ADE_val_00000002.png": b"no"})
    source = open_masks(f"ade20k:{root}", "val")
    for index in range(2):
        with pytest.raises(SampleError, match=f"ADE_val_0000000{index + 1}.jpg: "):
            source.pixels(index)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ade:{}", r"Unknown kind of masks in 'ade:.*valid: ade20k:DIR, masks:DIR\. Did you mean 'ade20k'"),
        ("{}", "Unknown kind of masks"),
        ("ade20k:{}", "There is no .*/images: give the folder ADEChallengeData2016"),
        ("masks:{}", "There is no .*/images: masks:DIR needs DIR/images and DIR/masks"),
        ("masks:https://example.org/x", "is not on this machine"),
    ],
)
def test_specs_that_lead_nowhere(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_masks(spec.format(tmp_path), "val")


def test_ade20k_cannot_do_without_its_zero_rule(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 is no class"):
        open_masks(f"ade20k:{ade20k(tmp_path)}", "val", reduce_zero=False)


def test_an_empty_folder_and_a_split_that_is_missing(tmp_path: Path) -> None:
    root = ade20k(tmp_path)
    shutil.rmtree(root / "images/validation")
    with pytest.raises(DataError, match="has no split val; it has training"):
        open_masks(f"ade20k:{root}", "val")
    (root / "images/validation").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_masks(f"ade20k:{root}", "val")


def test_a_limit_is_a_fixed_choice_with_the_same_pixels(tmp_path: Path) -> None:
    root = ade20k(tmp_path)
    whole, some = (open_masks(f"ade20k:{root}", "train", limit=limit) for limit in (None, 2))
    assert isinstance(some, MaskSource) and len(some) == 2 and some.fingerprint != whole.fingerprint
    assert some.pixels(1)[1].tolist() == REDUCED and some.classes == whole.classes
    assert some.fingerprint == open_masks(f"ade20k:{root}", "train", limit=2).fingerprint


def test_the_fingerprint_follows_the_listing_and_sources_pickle(tmp_path: Path) -> None:
    root = folders(tmp_path / "one")
    source = open_masks(f"masks:{root}", "val")
    moved = open_masks(f"masks:{shutil.copytree(root, tmp_path / 'two')}", "val")
    assert pickle.loads(pickle.dumps(source)).fingerprint == moved.fingerprint == source.fingerprint
    write(root, {"masks/val/b.png": grey(np.zeros((40, 40), np.uint8))})
    assert open_masks(f"masks:{root}", "val").fingerprint != source.fingerprint
    picture = next((tmp_path / "two" / "images" / "val").iterdir())
    picture.write_bytes(picture.read_bytes() + b" ")  # an image that changed under its old name
    assert open_masks(f"masks:{tmp_path / 'two'}", "val").fingerprint != source.fingerprint


def test_the_palette_is_distinct_and_a_longer_one_begins_with_a_shorter() -> None:
    colors = palette(256)
    assert colors.shape == (256, 3) and colors.dtype == np.uint8
    assert len({tuple(color) for color in colors.tolist()}) == 256
    assert (palette(33) == colors[:33]).all() and palette(0).shape == (0, 3)
    apart = np.abs(colors[:33, None].astype(int) - colors[None, :33]).sum(axis=2) + 999 * np.eye(33, dtype=int)
    assert apart.min() >= 70
    with pytest.raises(ValueError, match="256"):
        palette(257)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((512, 683), (2048, 512), (512, 683)),
        ((683, 512), (2048, 512), (683, 512)),
        ((256, 256), (2048, 512), (512, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),  # the long side decides
        ((333, 500), (512, 2048), (512, 769)),  # 768.77: rounded half up; either order of the scale
        ((1, 5000), (2048, 512), (1, 2048)),  # never 0
    ],
)
def test_sizes_with_the_ratio_kept(size: tuple[int, int], scale: tuple[int, int], expected: tuple[int, int]) -> None:
    assert keep_ratio_size(*size, scale) == expected


@pytest.mark.parametrize(("size", "target"), [((37, 53), (80, 115)), ((60, 91), (31, 47)), ((20, 20), (20, 20))])
def test_images_are_resized_as_opencv_does_it(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours = resize_image(image, *target)
    theirs = cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # OpenCV's weights have 11 bits
    pillow = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling.BILINEAR))
    assert (target[0] >= size[0]) or np.abs(pillow.astype(int) - theirs).max() > 20  # the control: anti-aliased
    assert (resize_image(image, *target, (3, 5, 17, 20)) == ours[3:17, 5:20]).all()


def test_labels_are_resized_as_pillow_does_it() -> None:
    labels = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    for target in ((80, 115), (19, 20), (37, 53)):
        ours = resize_labels(labels, *target)
        pillow = Image.fromarray(labels).resize(target[::-1], Image.Resampling.NEAREST)
        assert (ours == np.asarray(pillow)).all()
        assert (resize_labels(labels, *target, (3, 5, 17, 20)) == ours[3:17, 5:20]).all()


def test_image_and_labels_stay_aligned_when_resized() -> None:
    """An edge lies in the same place in both, also at a factor that is no whole number."""
    labels = np.zeros((30, 30), np.uint8)
    labels[:, 15:] = 1
    image = np.repeat(labels[..., None] * 255, 3, axis=2)
    for side in (45, 67, 21):
        lit = resize_image(image, side, side)[..., 0] > 127
        assert (lit == (resize_labels(labels, side, side) == 1)).mean() > 1 - 1 / side  # at most half a column
