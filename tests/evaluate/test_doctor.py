"""The doctor: a sound tree gets no error, and each thing that is wrong is found and named."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from digpt import testing_trees as trees
from digpt.data import imagenet_sets
from digpt.data.emoji import EmojiSet
from digpt.data.imagenet import IMAGENET_SETS, open_imagenet, wnids
from digpt.data.imagenet_classes import shipped_real
from digpt.data.source import seeded_choice
from digpt.errors import ConfigError, DataError
from evaluate import doctor
from evaluate.doctor import diagnose
from evaluate.findings import SAMPLE, Finding

CLASSES = (6, 11, 848)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    trees.write_imagenet_tree(root, CLASSES)
    return root


@pytest.fixture
def tree(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(sound, tmp_path / "data")
    return tmp_path / "data"


def said(findings: list[Finding], name: str, level: str) -> str:
    return "\n".join(finding.message for finding in findings if (finding.set, finding.level) == (name, level))


def errors(findings: list[Finding]) -> list[str]:
    return [finding.message for finding in findings if finding.level == "error"]


def test_a_small_but_sound_tree_gets_warnings_only(sound: Path) -> None:
    findings = diagnose(sound)
    assert errors(findings) == []
    assert list(dict.fromkeys(finding.set for finding in findings)) == [*IMAGENET_SETS, "imagenet-train"]
    assert f"{sound}/imagenet/val: class folders, 6 images of 3 classes" in said(findings, "imagenet", "ok")
    assert "6 images instead of 50,000" in said(findings, "imagenet", "warning")
    assert "997 of 1000 classes have no image: n01440764" in said(findings, "imagenet", "warning")
    assert "3 classes do not have 50 images each: n01498041 has 2" in said(findings, "imagenet", "warning")
    assert "3 classes do not have 10 images each" in said(findings, "imagenet-v2", "warning")
    assert "198 of 200 classes have no image" in said(findings, "imagenet-a", "warning")
    assert "instead of 50,889" in said(findings, "imagenet-sketch", "warning")
    assert "read as integers" in said(findings, "imagenet-v2", "ok") and "third" in said(findings, "imagenet-v2", "ok")
    assert "README" not in said(findings, "imagenet-a", "warning")
    assert "150 images could be decoded and are 224 x 224" in said(findings, "imagenet-c", "ok")
    assert f"{sound}/imagenet/train: class folders, 6 images of 3 classes" in said(findings, "imagenet-train", "ok")
    assert "6 images instead of 1,281,167" in said(findings, "imagenet-train", "warning")
    assert "validation images" not in said(findings, "imagenet-train", "warning")


def test_nothing_is_said_of_a_whole_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the published numbers lowered to the tree's."""
    trees.write_v2(tmp_path, range(1000), 1, size=8)
    entry = imagenet_sets.IMAGENET_SETS["imagenet-v2"]
    lowered = {"imagenet-v2": dataclasses.replace(entry, images=1000, per_class=1)}
    monkeypatch.setattr(imagenet_sets, "IMAGENET_SETS", {**IMAGENET_SETS, **lowered})
    findings = diagnose(tmp_path, sets=["imagenet-v2"])
    assert {finding.level for finding in findings} == {"ok"}
    assert "1,000 images of 1,000 classes" in findings[0].message
    (tmp_path / "imagenetv2-matched-frequency-format-val" / "7" / "extra.jpeg").write_bytes(trees.picture(7))
    warned = said(diagnose(tmp_path, sets=["imagenet-v2"]), "imagenet-v2", "warning")
    assert "1,001 images instead of 1,000" in warned
    assert f"1 classes do not have 1 images each: {wnids()[7]} has 2." in warned


def test_missing_sets(tree: Path) -> None:
    shutil.rmtree(tree / "imagenet-a")
    assert "was not found" in said(diagnose(tree), "imagenet-a", "warning")
    assert "was not found" in said(diagnose(tree, sets=["imagenet-a", "imagenet-r"]), "imagenet-a", "error")
    (tree / "empty").mkdir()
    findings = diagnose(tree / "empty")
    assert [finding.set for finding in findings if finding.level == "error"] == ["all"]
    assert "ReaL is asked of the validation images" in said(findings, "imagenet-real", "warning")
    with pytest.raises(DataError, match="imagenet-v2"):
        diagnose(tree, sets=["imagenet-v9"])
    with pytest.raises(DataError, match="no folder"):
        diagnose(tree / "nowhere")
    with pytest.raises(ConfigError, match="--data-root"):
        diagnose(None, sets=["imagenet"])


def test_a_layout_that_is_refused_is_an_error(tree: Path) -> None:
    (tree / "imagenet-a" / wnids()[6]).rename(tree / "imagenet-a" / wnids()[0])
    shutil.rmtree(tree / "imagenet")
    shutil.move(trees.write_val(tree / "x", CLASSES, layout="val_txt"), tree / "ILSVRC2012_img_val")
    findings = diagnose(tree, sets=["imagenet", "imagenet-a"])
    assert "not one of the 200 classes of ImageNet-A" in said(findings, "imagenet-a", "error")
    assert "no label file: put one of" in said(findings, "imagenet", "error")


def test_files_that_do_not_belong(tree: Path) -> None:
    (tree / "sketch" / "Thumbs.db").write_bytes(b"")
    (tree / "imagenet" / "val" / wnids()[6] / "x.txt").write_bytes(b"")
    findings = diagnose(tree, sets=["imagenet-sketch", "imagenet"])
    assert "1 files or folders are no images of the set and are left out: Thumbs.db" in said(
        findings, "imagenet-sketch", "warning"
    )
    assert "x.txt" in said(findings, "imagenet", "warning") and errors(findings) == []


def test_a_second_copy_is_named(tree: Path) -> None:
    shutil.copytree(tree / "imagenet" / "val", tree / "val")
    (tree / "validation").symlink_to(tree / "val")  # no copy
    warned = said(diagnose(tree, sets=["imagenet"]), "imagenet", "warning")
    assert f"Also at {tree / 'imagenet' / 'val'}; {tree / 'val'} is used." in warned


def test_images_in_the_wrong_class_folders(tmp_path: Path) -> None:
    """ReaL's labels tell it without any label file."""
    classes = range(0, 1000, 20)
    folder = trees.write_val(tmp_path, classes, 3)
    right = said(diagnose(tmp_path, sets=["imagenet"]), "imagenet", "ok")
    assert "100.0% of the labels are among ReaL's" in right
    folders = sorted(folder.iterdir())
    folders[0].rename(folder / "first")
    for one, other in zip(folders[1:], folders, strict=False):
        one.rename(other)
    (folder / "first").rename(folders[-1])
    wrong = diagnose(tmp_path, sets=["imagenet"])
    assert "of the labels are among ReaL's, where right ones are for 90 %" in said(wrong, "imagenet", "error")


def test_real(tree: Path) -> None:
    numbers = [number for number, _ in trees.val_images(CLASSES, 2)]
    shutil.rmtree(tree / "imagenet-real")
    findings = diagnose(tree, sets=["imagenet-real"])
    warned = said(findings, "imagenet-real", "warning")
    assert "6 images are scored (published: 46,837), 0 have no ReaL label" in warned and "timm" in warned
    trees.write_real(tree, {numbers[0]: [], numbers[1]: [1, 2]})
    warned = said(diagnose(tree, sets=["imagenet-real"]), "imagenet-real", "warning")
    assert "5 images are scored" in warned and "1 have no ReaL label" in warned and "real.json" in warned
    assert "not the published list" in warned
    image = next((tree / "imagenet" / "val" / wnids()[6]).iterdir())
    image.rename(image.with_name("cat.JPEG"))
    findings = diagnose(tree, sets=["imagenet", "imagenet-real"])
    assert "n01498041/cat.JPEG carries no number" in said(findings, "imagenet-real", "error")
    assert "cat.JPEG" in said(findings, "imagenet", "warning")
    assert sum(bool(labels) for labels in shipped_real()) == 46_837


def test_broken_images(tree: Path) -> None:
    folder = tree / "sketch" / wnids()[6]
    (folder / "sketch_0.JPEG").write_bytes((folder / "sketch_0.JPEG").read_bytes()[:300])
    (folder / "sketch_1.JPEG").write_bytes(b"")
    told = said(diagnose(tree, sets=["imagenet-sketch"]), "imagenet-sketch", "error")
    assert "2 of 6 images cannot be read" in told and "sketch_0.JPEG: The image is damaged" in told


def test_a_sample_is_looked_at_or_everything(tmp_path: Path) -> None:
    folder = trees.write_sketch(tmp_path, (6,), 200, size=8)
    done: list[tuple[str, int, int]] = []

    def progress(what: str, number: int, total: int) -> None:
        done.append((what, number, total))

    sampled = diagnose(tmp_path, sets=["imagenet-sketch"], progress=progress)
    assert "A sample of 64 images could be decoded" in said(sampled, "imagenet-sketch", "ok")
    assert done[-1] == ("imagenet-sketch images", 64, 64)
    assert diagnose(tmp_path, sets=["imagenet-sketch"]) == sampled  # the same sample each time
    broken = next(iter(sorted(set(folder.rglob("*.JPEG")) - chosen(folder))))
    broken.write_bytes(b"\xff\xd8\xff")
    assert errors(diagnose(tmp_path, sets=["imagenet-sketch"])) == []
    (error,) = errors(diagnose(tmp_path, sets=["imagenet-sketch"], deep=True))
    assert error.startswith("1 of 200 images cannot be read") and broken.name in error


def chosen(folder: Path) -> set[Path]:
    """The files that a sample has."""
    source = open_imagenet("imagenet-sketch", folder)
    return {folder / source.sample_name(index) for index in seeded_choice(len(source), SAMPLE).tolist()}


@pytest.mark.parametrize("layout", ["folders", "tars"])
def test_imagenet_c(tmp_path: Path, layout: trees.CLayout) -> None:
    trees.write_c(tmp_path, CLASSES, layout=layout, corruptions=("fog", "snow"), severities=(1, 2, 3, 4, 5))
    findings = diagnose(tmp_path, sets=["imagenet-c"])
    assert errors(findings) == []
    warned = said(findings, "imagenet-c", "warning")
    assert "65 of 75 cells are missing, without which there is no mCE: gaussian_noise/1" in warned
    assert "In snow/1, snow/2, snow/3 and 7 more: 3 images instead of 50,000" in warned
    assert "20 images could be decoded and are 224 x 224 pixels" in said(findings, "imagenet-c", "ok")


def test_imagenet_c_of_another_size_or_with_other_images(tmp_path: Path) -> None:
    folder = trees.write_c(tmp_path, CLASSES, corruptions=("fog",))
    findings = diagnose(tmp_path, sets=["imagenet-c"])
    assert "Not all cells have the same images" not in said(findings, "imagenet-c", "warning")
    shutil.rmtree(folder / "fog" / "4")
    trees.write_c(tmp_path, CLASSES[:1], corruptions=("fog",), severities=(4,), size=256)
    findings = diagnose(tmp_path, sets=["imagenet-c"])
    (error,) = errors(findings)
    assert "1 of 9 images are not 224 x 224 pixels" in error and "fog/4: n01498041" in error and "256 x 256" in error
    assert "imagenet-c/fog/4 differ" in said(findings, "imagenet-c", "warning")
    (folder / "fog" / "2" / wnids()[6]).rename(folder / "fog" / "2" / "sharks")
    assert "In fog/2: " in said(diagnose(tmp_path, sets=["imagenet-c"]), "imagenet-c", "error")


def test_corruptions_without_severities(tmp_path: Path) -> None:
    (tmp_path / "imagenet-c" / "fog").mkdir(parents=True)
    (error,) = errors(diagnose(tmp_path, sets=["imagenet-c"]))
    assert "none at a severity from 1 to 5" in error


def test_training_images(tree: Path) -> None:
    """They are looked at where nothing is named, or they are; neighbours cannot know a class that they lack."""
    train = tree / "imagenet" / "train"
    assert {finding.set for finding in diagnose(tree, sets=["imagenet-v2"])} == {"imagenet-v2"}
    shutil.move(train / wnids()[6], train / wnids()[7])
    broken = next((train / wnids()[11]).iterdir())
    broken.write_bytes(b"")
    findings = diagnose(tree, sets=["imagenet-train"])
    assert {finding.set for finding in findings} == {"imagenet-train"}
    told = said(findings, "imagenet-train", "error")
    assert "1 classes have validation images and no training images, so that nothing trained on these" in told
    assert f"answer them: {wnids()[6]}." in told
    assert f"1 classes have training images and no validation images: {wnids()[7]}." in said(
        findings, "imagenet-train", "warning"
    )
    assert "1 of 6 images cannot be read" in told and broken.name in told
    (train / "sharks").mkdir()
    (train / "sharks" / "a.jpg").write_bytes(trees.picture(6))
    assert "'sharks'" in said(diagnose(tree), "imagenet-train", "error")
    shutil.rmtree(train)
    assert errors(diagnose(tree)) == []
    assert "evaluate.knn and evaluate.linear_probe need them" in said(diagnose(tree), "imagenet-train", "warning")
    assert "were not found" in said(diagnose(tree, sets=["imagenet-train"]), "imagenet-train", "error")


# ------------------------------------------------------------------------------------------------ one's own pictures


def write_own(root: Path, **splits: dict[str, int]) -> str:
    """``root/mine/<split>/<class>/<number>.jpg``, as many as each class is said to have."""
    for split, classes in splits.items():
        for name, count in classes.items():
            (root / "mine" / split / name).mkdir(parents=True)
            for number in range(count):
                (root / "mine" / split / name / f"{number}.jpg").write_bytes(trees.picture(number))
    return f"folder:{root / 'mine'}"


def test_own_pictures(tmp_path: Path) -> None:
    spec = write_own(tmp_path, train={"cat": 3, "dog": 5}, val={"cat": 1, "dog": 2})
    findings = diagnose(None, data=spec)
    assert {finding.level for finding in findings} == {"ok"}
    assert "3 images of 2 classes, 1 to 2 of each class" in said(findings, "mine/val", "ok")
    assert "8 images of 2 classes, 3 to 5 of each class" in said(findings, "mine/train", "ok")
    (tmp_path / "mine" / "val" / "dog" / "0.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "mine" / "val" / "dog").rename(tmp_path / "mine" / "val" / "fox")
    findings = diagnose(None, data=spec)
    assert "1 of 3 images cannot be read" in said(findings, "mine/val", "error")
    assert "1 classes have validation images and no training images" in said(findings, "mine", "error")
    assert "fox" in said(findings, "mine", "error") and "dog" in said(findings, "mine", "warning")


def test_own_pictures_are_sampled_or_all_decoded(tmp_path: Path) -> None:
    spec = write_own(tmp_path, val={"cat": 100})
    left_out = min(set(range(100)) - set(seeded_choice(100, SAMPLE).tolist()))
    name = sorted(f"cat/{number}.jpg" for number in range(100))[left_out]
    (tmp_path / "mine" / "val" / name).write_bytes(b"")
    assert errors(diagnose(None, data=spec)) == []
    (error,) = errors(diagnose(None, data=spec, deep=True))
    assert error.startswith("1 of 100 images cannot be read") and name in error


def test_own_pictures_without_splits_or_classes(tmp_path: Path) -> None:
    spec = write_own(tmp_path, cats={"cat": 1}, dogs={"dog": 1})
    warning = said(diagnose(None, data=spec), "mine/train", "warning")
    assert "There are no splits" in warning and "Before finetuning set some pictures of each class aside" in warning
    assert "2 images of 2 classes, 1 of each class." in said(diagnose(None, data=spec), "mine/val", "ok")
    spec = write_own(tmp_path / "b", val={"cat": 1})
    assert "has no split train" in said(diagnose(None, data=spec), "mine/train", "warning")
    spec = write_own(tmp_path / "c", train={"cat": 1})
    assert "has no split val" in said(diagnose(None, data=spec), "mine/val", "error")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes(trees.picture(1))
    assert "a folder per class" in said(diagnose(None, data=f"folder:{tmp_path / 'flat'}"), "flat/val", "error")


def write_shard(path: Path, labels: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, label in enumerate(labels):
            for extension, data in (("jpg", trees.picture(number)), ("cls", label.encode())):
                info = tarfile.TarInfo(f"{number:04d}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def test_the_labels_of_own_shards(tmp_path: Path) -> None:
    """All are read, however few images are decoded."""
    write_shard(tmp_path / "mine" / "val" / "0.tar", ["0"] * 80 + ["", "3", "1"])
    write_shard(tmp_path / "mine" / "train" / "0.tar", ["0", "1"])
    findings = diagnose(None, data=f"wds:{tmp_path / 'mine'}")
    assert "Nothing names the classes" in said(findings, "mine/val", "warning")
    (error,) = [finding.message for finding in findings if (finding.set, finding.level) == ("mine/val", "error")]
    assert error == "1 of 83 images have no label: 0.tar: 0080 has no .cls file with a number."
    assert "1 classes have validation images and no training images" in said(findings, "mine", "error")
    for split in ("val", "train"):
        (tmp_path / "mine" / split / "classes.txt").write_text("cat\ndog\nfox\n")
    findings = diagnose(None, data=f"wds:{tmp_path / 'mine'}")
    assert "1 labels are none of 0 to 2: 0.tar: 0081 has 3." in said(findings, "mine/val", "error")
    assert "1 of 3 classes have no image: fox." in said(findings, "mine/val", "warning")
    assert said(findings, "mine", "error") == ""


def test_a_damaged_archive_of_imagenet_c(tmp_path: Path) -> None:
    folder = trees.write_c(tmp_path, CLASSES, layout="tars", corruptions=("fog",), severities=(1,))
    (folder / "noise.tar").write_bytes(b"<html>")
    (error,) = errors(diagnose(tmp_path, sets=["imagenet-c"]))
    assert "noise.tar cannot be read as a tar" in error


# ------------------------------------------------------------------------------------------------ the command


def test_exit_codes_and_json(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--data-root", str(sound), "--sets", "imagenet-v2", "imagenet-real", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {entry["set"] for entry in document} == {"imagenet-v2", "imagenet-real"}
    assert set(document[0]) == {"set", "level", "message"} and document[0]["level"] == "ok"
    assert doctor.main(["--data-root", str(tmp_path), "--sets", "imagenet-v2"]) == 1
    out, _ = capsys.readouterr()
    assert "error" in out and "was not found" in " ".join(out.split())
    assert doctor.main(["--data-root", str(tmp_path / "nowhere")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.strip().startswith("error: There is no folder")
    assert doctor.main(["--sets", "imagenet"]) == 2
    assert doctor.main(["--data", "folder:x", "--data-root", str(sound)]) == 2
    assert "--data excludes --data-root" in capsys.readouterr().err
    assert doctor.main(["--data", f"folder:{sound / 'imagenet' / 'val'}"]) == 0
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--dat", "x"])
    assert stopped.value.code == 2


def test_brackets_in_names_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """rich would take [red] for a colour."""
    folder = trees.write_sketch(tmp_path, CLASSES)
    (folder / "[red]x").write_bytes(b"")
    assert doctor.main(["--data-root", str(tmp_path), "--sets", "imagenet-sketch"]) == 0
    assert "[red]x" in capsys.readouterr().out


def test_without_a_data_root_the_emoji_are_checked(
    emoji: EmojiSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor.EmojiSet, "load", classmethod(lambda cls: emoji))
    monkeypatch.setattr(EmojiSet, "compute_fingerprint", lambda self: "0" * 64)
    assert doctor.main(["--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["level"] == "ok" and "confirmed" in entry["message"]
    monkeypatch.setattr(EmojiSet, "compute_fingerprint", lambda self: "1" * 64)
    assert doctor.main([]) == 1
    assert "git checkout" in capsys.readouterr().out


@pytest.mark.slow
def test_the_bundled_emoji_are_whole() -> None:
    assert [finding.level for finding in diagnose(None)] == ["ok"]
