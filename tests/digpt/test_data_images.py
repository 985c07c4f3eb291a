"""Labelled images in each layout: what is found, what it is called, and what is refused."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_in_tar import extract_tarinfos

from digpt.data.images import FolderImages, ImageSource, TarImages, open_images
from digpt.data.source import SampleError
from digpt.errors import DataError, MissingDependencyError

NAMES = ("c2", "c10", "C9")  # in timm's natural order: c2, C9, c10
ORDER = ("c2", "C9", "c10")
PER_CLASS = 3


def picture(number: int, kind: str = "PNG") -> bytes:
    """8 x 8 pixels of one colour, which tells the image."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 2 * number, 255 - number)).save(buffer, kind)
    return buffer.getvalue()


FILES = {f"{name}/{i}.png": picture(10 * k + i) for k, name in enumerate(NAMES) for i in range(PER_CLASS)}


def write_folder(root: Path) -> Path:
    for path, data in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_class_tars(root: Path) -> Path:
    """As ImageNet-21K comes; the same names in every tar, so that their order could depend on the file system."""
    for name in reversed(NAMES):
        files = {path.split("/")[1]: data for path, data in FILES.items() if path.startswith(f"{name}/")}
        write_tar(root / f"{name}.tar", files)
    return root


def write_tar_of_tars(path: Path) -> Path:
    inner = write_class_tars(path.parent / "inner")
    return write_tar(path, {f"{name}.tar": (inner / f"{name}.tar").read_bytes() for name in NAMES})


def content(source: ImageSource) -> dict[bytes, str]:
    """Which class each image's bytes belong to."""
    assert source.classes is not None
    samples = [source.read(index) for index in range(len(source))]
    return {data: source.classes[label] for data, label in samples}


@pytest.mark.parametrize("layout", ["folder", "class tars", "tar of folders", "tar of tars"])
def test_every_layout_gives_the_same_images_and_classes(tmp_path: Path, layout: str) -> None:
    spec = {
        "folder": lambda: f"folder:{write_folder(tmp_path / 'images')}",
        "class tars": lambda: f"tar:{write_class_tars(tmp_path / 'images')}",
        "tar of folders": lambda: f"tar:{write_tar(tmp_path / 'images.tar', FILES)}",
        "tar of tars": lambda: f"tar:{write_tar_of_tars(tmp_path / 'images.tar')}",
    }[layout]()
    source = open_images(spec)
    assert source.classes == ORDER
    assert content(source) == {data: path.split("/")[0] for path, data in FILES.items()}
    assert source.labels is not None
    assert [source.read(index)[1] for index in range(len(source))] == source.labels.tolist()
    again = pickle.loads(pickle.dumps(source))
    assert again.read(4) == source.read(4) and again.fingerprint == source.fingerprint
    assert "png" in source.sample_name(0)


def test_the_order_is_the_names_and_the_fingerprint_follows_the_listing(tmp_path: Path) -> None:
    root = write_class_tars(tmp_path / "images")
    source = open_images(f"tar:{root}")
    assert [source.sample_name(index) for index in range(3)] == ["C9.tar:0.png", "C9.tar:1.png", "C9.tar:2.png"]
    moved = tmp_path / "elsewhere" / "images"
    write_class_tars(moved)
    assert open_images(f"tar:{moved}").fingerprint == source.fingerprint
    write_tar(moved / "c11.tar", {"0.png": picture(99)})
    assert open_images(f"tar:{moved}").fingerprint != source.fingerprint


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_the_fingerprint_follows_the_sizes_of_the_files(tmp_path: Path, layout: str) -> None:
    """A picture that was replaced has another size, nearly always; the time it was written does not matter."""

    def opened(files: dict[str, bytes]) -> ImageSource:
        if layout == "tar":
            return open_images(f"tar:{write_tar(tmp_path / 'images.tar', files)}")
        for path, data in files.items():
            (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / path).write_bytes(data)
        return open_images(f"folder:{tmp_path / 'images'}")

    first, again = opened(FILES).fingerprint, opened(FILES).fingerprint
    assert first == again
    assert opened({**FILES, "c10/1.png": picture(99) + b"0"}).fingerprint != first
    assert opened(FILES).fingerprint == first


def test_a_link_to_nowhere_is_one_bad_sample(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images")
    (root / "c2" / "0.png").unlink()
    (root / "c2" / "0.png").symlink_to("nowhere")
    source = FolderImages(root)
    assert len(source.fingerprint) == 64
    with pytest.raises(SampleError, match="cannot be read"):
        source.read(list(source.names).index("c2/0.png"))


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def of_fewer_tars(content: bytes) -> bytes:
    info = pickle.loads(content)
    return pickle.dumps({"tartrees": info["tartrees"][:1]})


@pytest.mark.parametrize("damage", [truncated, of_fewer_tars, lambda content: b""])
def test_a_list_of_tars_that_timm_cannot_use_is_removed_and_the_tars_read(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Every process of a run writes the list, without care for the others or for a kill."""
    root = write_class_tars(tmp_path / "images")
    source = open_images(f"tar:{root}")
    extract_tarinfos(str(root), cache_tarinfo=True)
    (remembered,) = root.glob("*.pickle")
    assert open_images(f"tar:{root}").fingerprint == source.fingerprint and remembered.is_file()  # a good one stays
    remembered.write_bytes(damage(remembered.read_bytes()))
    again = open_images(f"tar:{root}")
    assert again.fingerprint == source.fingerprint and again.read(4) == source.read(4)
    assert not remembered.exists()


def test_a_bare_path_is_a_folder_or_a_tar(tmp_path: Path) -> None:
    assert len(open_images(write_folder(tmp_path / "images"))) == len(FILES)
    assert len(open_images(write_tar(tmp_path / "images.tar", FILES))) == len(FILES)


def test_splits_are_found_under_any_of_their_words(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    (tmp_path / "validation" / "c10").mkdir(parents=True)
    (tmp_path / "validation" / "c10" / "7.png").write_bytes(picture(77))
    train = open_images(f"folder:{tmp_path}", "train")
    assert len(train) == len(FILES)
    val = open_images(f"folder:{tmp_path}", "val", classes=train.classes)
    assert val.read(0) == (picture(77), 2) and val.classes == ORDER  # numbered as in training, not 0
    assert open_images(f"folder:{tmp_path}/{{split}}", "train").fingerprint == train.fingerprint
    assert open_images(f"folder:{tmp_path}/{{split}}", "val", classes=train.classes).fingerprint == val.fingerprint
    (tmp_path / "validation" / "c1").mkdir()
    (tmp_path / "validation" / "c1" / "7.png").write_bytes(picture(78))
    with pytest.raises(DataError, match="'c1'.*not among the 3 classes.*Did you mean 'c10'"):
        open_images(f"folder:{tmp_path}", "val", classes=train.classes)


def test_a_folder_without_splits_is_training_data_and_nothing_else(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert len(open_images(f"folder:{tmp_path}", "train")) == len(FILES)
    with pytest.raises(DataError, match="no split val"):
        open_images(f"folder:{tmp_path}", "val")
    assert len(open_images(f"folder:{tmp_path}", "val", whole=True)) == len(FILES)  # named for evaluation
    (tmp_path / "training").mkdir()
    with pytest.raises(DataError, match="no split val; it has training"):
        open_images(f"folder:{tmp_path}", "val", whole=True)


def test_a_folder_whose_name_stands_for_two_classes_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(DataError, match="has the class 'c2', which stands for several classes"):
        open_images(f"folder:{tmp_path}", classes=("c2", "C9", "c10", "c2"))
    labels = open_images(f"folder:{tmp_path}", classes=("c2", "C9", "c10", "other", "other")).labels
    assert labels is not None and sorted(set(labels.tolist())) == [0, 1, 2]


def test_images_without_class_folders_have_no_classes(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(picture(1, "WEBP"))
    (tmp_path / "B.JPEG").write_bytes(picture(2, "JPEG"))
    source = open_images(tmp_path)
    assert source.classes is None and [source.read(index)[1] for index in range(2)] == [0, 0]
    assert [source.sample_name(index) for index in range(2)] == ["B.JPEG", "a.webp"]


def test_a_limit_is_a_fixed_choice(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    some, whole = open_images(root, limit=5), open_images(root)
    names = [some.sample_name(index) for index in range(5)]
    assert len(some) == 5 and len(set(names)) == 5 and names != [whole.sample_name(i) for i in range(5)]
    assert some.fingerprint == open_images(root, limit=5).fingerprint != whole.fingerprint
    assert some.read(3)[0] == FILES[names[3]] and some.labels is not None and some.labels[3] == some.read(3)[1]
    assert len(open_images(root, limit=99)) == len(FILES)


def test_what_cannot_be_opened_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for spec, words in [
        (f"folder:{tmp_path}/empty", "holds no images"),
        (f"tar:{tmp_path}/empty", "holds no .tar"),
        (f"folder:{tmp_path}/missing", "There is no"),
        (f"{tmp_path}/missing", "There is no"),
        ("foldr:images", "Unknown kind of data 'foldr'.*Did you mean 'folder'"),
        ("folder:s3://bucket/images", "mount or copy"),
        (f"tar:{write_tar(tmp_path / 'text.tar', {'a.txt': b'a'})}", "holds no images"),
    ]:
        with pytest.raises(DataError, match=words):
            open_images(spec)


def test_a_file_that_went_away_and_a_tar_cut_short_are_errors_of_one_sample(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images")
    source = open_images(root)
    (root / source.sample_name(0)).unlink()
    with pytest.raises(SampleError, match=r"cannot be read") as caught:
        source.read(0)
    assert caught.value.kind == "unreadable file" and source.read(1)
    assert pickle.loads(pickle.dumps(caught.value)).kind == "unreadable file"

    tar = write_tar(tmp_path / "images.tar", FILES)
    packed = open_images(tar)
    assert isinstance(packed, TarImages)
    last = int(np.argmax(packed.spans[:, 0]))
    with tar.open("r+b") as file:
        file.truncate(int(packed.spans[last].sum()) - 1)
    with pytest.raises(SampleError, match="cut off"):
        packed.read(last)


def test_hugging_face_sets_from_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(ORDER))})
    rows = [
        {"image": {"bytes": data, "path": None}, "label": ORDER.index(p.split("/")[0])} for p, data in FILES.items()
    ]
    whole = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": whole, "validation": whole.select([4, 0])}).save_to_disk(str(tmp_path / "set"))
    source = open_images(f"hfds:{tmp_path / 'set'}", "train")
    assert source.classes == ORDER
    assert content(source) == {data: path.split("/")[0] for path, data in FILES.items()}
    val = open_images(f"hfds:{tmp_path / 'set'}", "val")
    assert val.labels is not None and val.labels.tolist() == [rows[4]["label"], rows[0]["label"]]
    assert val.read(0) == (list(FILES.values())[4], rows[4]["label"]) and val.fingerprint != source.fingerprint
    with pytest.raises(DataError, match="no split extra; it has train, validation"):
        open_images(f"hfds:{tmp_path / 'set'}", "extra")
    assert len(open_images(f"hfds:{tmp_path / 'set' / 'train'}", "val", whole=True)) == len(FILES)
    with pytest.raises(DataError, match="has no splits"):
        open_images(f"hfds:{tmp_path / 'set' / 'train'}", "val")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"digpt\[data\]"):
        open_images("hfds:cifar10")
