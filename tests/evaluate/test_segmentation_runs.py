"""A segmentation that is killed, asked otherwise, compared and reported; models that do not fit the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from digpt.artifact import Checkpoint, write_checkpoint
from digpt.data.ade20k import ADE20K_CLASSES
from digpt.encoder import encoder_config
from digpt.engine import Engine
from digpt.preprocess import Preprocess
from digpt.results import read_results
from digpt.runtime.fake import FakeRuntime
from digpt.segment_metrics import Scores, miou_resampled
from digpt.segmentation import SegmentConfig, Segmenter, segment_encoder, segmenter_config, segmenter_weights
from evaluate import cli, compare, recompute, report, segment_run, segmentation, suite_masks
from evaluate.doctor import diagnose
from evaluate.doctor_masks import ade20k_findings
from evaluate.measure import Bootstraps
from evaluate.segment_measure import mask_views, parts_of
from evaluate.segment_model import SegmentModel
from evaluate.store import Store
from evaluate.testing_masks import Painted, Pair, painted_model, write_ade20k, write_masks

CROP, CLASSES = 32, ("floor", "cat", "dog")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, SegmentModel]:
    """The model that every spec loads, under "model"."""
    found = {"model": painted_model(CLASSES, CROP)}
    monkeypatch.setattr(segment_run, "load_pixel_model", lambda options: found["model"])
    return found


def noisy(count: int = 7, seed: int = 0, right: float = 0.7) -> dict[str, Pair]:
    """Square images of the crop's size; a share of the pixels is right."""
    random = np.random.default_rng(seed)
    pairs: dict[str, Pair] = {}
    for number in range(count):
        label = np.full((CROP, CROP), 255, np.uint8)
        label[4:] = random.integers(0, len(CLASSES), (CROP - 4, 1))
        noise = random.integers(0, len(CLASSES), label.shape).astype(np.uint8)
        kept = (np.random.default_rng(number).random(label.shape) < right) & (label != 255)
        pairs[f"{number}"] = (np.where(kept, label, noise), label)
    return pairs


def measured(data: Path, output: Path, *more: str) -> int:
    return segmentation.main(["m.pt", "--data", f"masks:{data}", "--output", str(output), *more])


def test_a_killed_run_computes_only_what_is_missing(
    asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_masks, "SHARD", 2)
    data = write_masks(tmp_path / "data", noisy(), CLASSES)
    assert measured(data, tmp_path / "whole") == 0
    assert asked["model"].pixels.images == 7

    def killed(images: int) -> None:
        if images == 5:
            raise KeyboardInterrupt

    asked["model"] = replace(asked["model"], pixels=Painted(3, before=killed))
    assert measured(data, tmp_path / "cut") == 130
    shards = sorted(path.name for path in (tmp_path / "cut" / "store").rglob("0*.npz"))
    assert shards == ["00000.npz", "00001.npz"] and not (tmp_path / "cut" / "results.json").exists()
    asked["model"] = replace(asked["model"], pixels=Painted(3))
    assert measured(data, tmp_path / "cut") == 0
    assert asked["model"].pixels.images == 3  # of the shard that was cut, and of the last
    assert (tmp_path / "cut" / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()
    assert measured(data, tmp_path / "cut") == 0 and asked["model"].pixels.images == 3
    assert measured(data, tmp_path / "cut", "--overwrite") == 0 and asked["model"].pixels.images == 10


def test_numbers_come_from_the_store_alone(asked: Any, tmp_path: Path) -> None:
    data = write_masks(tmp_path / "data", noisy(), CLASSES)
    assert measured(data, tmp_path / "out") == 0
    document, table = read_results(tmp_path / "out"), (tmp_path / "out" / "per_class.csv").read_text()
    for name in ("results.json", "per_class.csv"):
        (tmp_path / "out" / name).unlink()
    assert recompute.main([str(tmp_path / "out")]) == 0
    assert read_results(tmp_path / "out") == document and (tmp_path / "out" / "per_class.csv").read_text() == table


@pytest.mark.parametrize(
    ("more", "ref", "message"),
    [
        (("--inference", "whole"), {}, 'protocol.segmentation.inference: "slide" against "whole"'),
        (("--flip",), {}, "protocol.segmentation.flip: false against true"),
        (("--limit", "3"), {}, "protocol.limit: null against 3"),
        ((), {"fingerprint": "sha256:other"}, "model.fingerprint"),
    ],
)
def test_another_question_or_model_is_refused(
    asked: Any, tmp_path: Path, capsys: Any, more: tuple[str, ...], ref: dict[str, str], message: str
) -> None:
    data = write_masks(tmp_path / "data", noisy(), CLASSES)
    assert measured(data, tmp_path / "out") == 0
    asked["model"] = painted_model(CLASSES, CROP, **ref)
    assert measured(data, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert measured(data, tmp_path / "out", *more, "--overwrite") == 0


def test_the_limit_is_a_seeded_subset_and_a_smaller_one_is_part_of_it(asked: Any, tmp_path: Path) -> None:
    data = write_masks(tmp_path / "data", noisy(12), CLASSES)
    names = {}
    for limit, seed in ((3, 0), (5, 0), (5, 1)):
        output = tmp_path / f"{limit}-{seed}"
        assert measured(data, output, "--limit", str(limit), "--seed", str(seed)) == 0
        names[limit, seed] = set(Store.open(output).keys("data/val"))
        assert {result.n for result in read_results(output).results} == {limit}
    assert names[3, 0] < names[5, 0] != names[5, 1]


def test_the_scenes_are_asked_without_data(asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_masks, "SCENES", 3)
    asked["model"] = painted_model(("background", "person-role", "animal-mammal"), CROP)
    assert segmentation.main(["m.pt", "--output", str(tmp_path)]) == 0
    document = read_results(tmp_path)
    assert {(r.dataset, r.split, r.n) for r in document.results} == {
        ("scenes", split, 3) for split in ("val", "flat", "contrast")
    }
    assert document.protocol["scenes"] == {"size": CROP, "count": 3, "seed": 0}
    assert asked["model"].pixels.images == 9  # one window each


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("floor", "dog", "cat"), "the same classes in another order than"),
        (("floor", "cat", "dogs"), "other classes than"),
        (("floor", "cat"), "tells 2 classes apart"),
    ],
)
def test_a_model_of_other_classes_is_refused(
    asked: Any, tmp_path: Path, capsys: Any, classes: tuple[str, ...], message: str
) -> None:
    data = write_masks(tmp_path / "data", noisy(2), CLASSES)
    asked["model"] = painted_model(classes, CROP)
    assert measured(data, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and "trained for" in error and not (tmp_path / "out" / "store").exists()


def test_masks_that_count_from_1_are_reduced_when_asked(asked: Any, tmp_path: Path) -> None:
    pairs = noisy()
    assert measured(write_masks(tmp_path / "plain", pairs, CLASSES), tmp_path / "a") == 0
    raised = {name: (found, (label.astype(np.int64) + 1).astype(np.uint8)) for name, (found, label) in pairs.items()}
    data = write_masks(tmp_path / "raised", raised, CLASSES)
    assert measured(data, tmp_path / "b", "--reduce-zero", "True") == 0
    plain, reduced = read_results(tmp_path / "a"), read_results(tmp_path / "b")
    assert [result.value for result in plain.results] == [result.value for result in reduced.results]
    assert reduced.protocol["segmentation"]["reduce_zero"] is True
    assert measured(data, tmp_path / "c") == 2  # without the rule there is a class too many
    asked["model"] = replace(asked["model"], reduce_zero=True)  # the rule that a model was trained with
    assert measured(data, tmp_path / "d") == 0
    assert [r.value for r in read_results(tmp_path / "d").results] == [result.value for result in plain.results]


def test_masks_without_names_take_those_of_the_model(asked: Any, tmp_path: Path) -> None:
    data = write_masks(tmp_path / "data", noisy(2), CLASSES)
    (data / "classes.txt").unlink()
    assert measured(data, tmp_path / "out") == 0
    assert Store.open(tmp_path / "out").header["class_names"] == list(CLASSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "masks:x", "--data-root", "y"), "exclude each other"),
        (("--overlays", "3"), "give --output DIR"),
        (("--data-root", "nowhere"), "There is no ADE20K below nowhere"),
        (("--limit", "0"), "must be at least 1"),
        (("--reduce-zero", "True"), "is for --data masks:DIR"),
        (("--split", "fat"), "Did you mean 'flat'"),
    ],
)
def test_wrong_commands_are_one_sentence(asked: Any, capsys: Any, arguments: tuple[str, ...], message: str) -> None:
    assert segmentation.main(["m.pt", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_nothing_labelled_is_no_figure(asked: Any, tmp_path: Path, capsys: Any) -> None:
    empty = np.full((CROP, CROP), 255, np.uint8)
    data = write_masks(tmp_path / "data", {"a": (np.zeros_like(empty), empty)}, CLASSES)
    assert measured(data, tmp_path / "out") == 2
    assert "No pixel of data/val has a class" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- a model of its own


def tiny_segmenter(path: Path, crop: int = 64) -> Path:
    """Patch 16, width 24, 4 blocks; seeded random weights."""
    torch.manual_seed(0)
    start = encoder_config("Ti/16", 32, embed_dim=24, depth=4, num_heads=2)
    config, weights = segment_encoder(start, timm.create_model(**start).state_dict(), crop)
    encoder: Any = timm.create_model(**config)
    encoder.load_state_dict(weights)
    segment = SegmentConfig.for_encoder(config, CLASSES, crop=crop, channels=16, aux_channels=0)
    segmenter = Segmenter(encoder, segment, (0.5,) * 3, (0.5,) * 3)
    described = segmenter_config(config, segment, Preprocess(size=crop))
    write_checkpoint(path, Checkpoint(described, segmenter_weights(segmenter.state_dict()), {}))
    return path


@pytest.mark.parametrize(("width", "same"), [(64, True), (150, False)])
def test_windows_are_the_whole_for_an_image_of_one_crop(tmp_path: Path, width: int, same: bool) -> None:
    random = np.random.default_rng(0)
    pair = tuple(random.integers(0, 3, (64, width)).astype(np.uint8) for _ in range(2))
    data = write_masks(tmp_path / "data", {"a": (pair[0] * 80, pair[1])}, CLASSES)
    spec, parts = tiny_segmenter(tmp_path / "ckpt.pt"), []
    for mode in ("slide", "whole"):
        arguments = [str(spec), "--data", f"masks:{data}", "--inference", mode, "--device", "cpu", "--threads", "1"]
        assert segmentation.main([*arguments, "--output", str(tmp_path / mode)]) == 0
        store = Store.open(tmp_path / mode)
        parts.append(parts_of(store, mask_views(store)[0]))
        assert parts[-1][..., 2].sum() == 64 * width
    assert np.array_equal(*parts) == same
    model = read_results(tmp_path / "slide").model
    assert (model.backend, model.classifier, model.preprocess["size"]) == ("torch", "segmentation head", 64)


def test_any_runtime_segments_in_batches_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(text=False, labels=CLASSES, segment_crop=CROP, size=CROP, max_batch=1)
    monkeypatch.setattr(cli.Engine, "load", lambda *_, **options: Engine(runtime))
    label = np.random.default_rng(0).integers(0, 3, (CROP, 3 * CROP)).astype(np.uint8)
    shown = label.copy()
    shown[:, :CROP] = (shown[:, :CROP] + 1) % 3
    data = write_masks(tmp_path / "data", {"a": (shown * 85 + 40, label)}, CLASSES)
    assert measured(data, tmp_path / "out") == 0
    found = {result.metric: result.value for result in read_results(tmp_path / "out").results}
    assert found["aacc"] == 2 / 3
    assert runtime.batches == [1] * 5 and runtime.closed  # windows of 32 every 21 over 96 pixels


def test_a_model_that_cannot_segment(capsys: Any) -> None:
    assert segmentation.main(["bundled", "--device", "cpu"]) == 2
    assert "no segmentation head" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- several runs together


def two_runs(asked: dict[str, SegmentModel], tmp_path: Path, shares: tuple[float, float]) -> list[str]:
    """Two models on the same labels; returns what they were given as --output."""
    outputs = []
    for name, share in zip("ab", shares, strict=True):
        data = write_masks(tmp_path / name / "data", noisy(30, right=share), CLASSES)
        asked["model"] = painted_model(CLASSES, CROP, name=name, fingerprint=f"sha256:{name}")
        outputs.append(str(tmp_path / name / "out"))
        assert measured(data, Path(outputs[-1])) == 0
    return outputs


def test_two_runs_are_compared_by_common_resamples(asked: Any, tmp_path: Path, capsys: Any) -> None:
    outputs = two_runs(asked, tmp_path, (0.7, 0.6))
    found = compare.compare(*compare.open_pair(*map(Path, outputs)))
    (row,) = found.family
    stores = [Store.open(Path(output)) for output in outputs]
    parts = [parts_of(store, mask_views(store)[0]) for store in stores]
    scores = [Scores.of_parts(each.sum(axis=0)).miou for each in parts]
    assert (row.metric, row.n, row.test) == ("miou", 30, "paired bootstrap")
    assert (row.a, row.b, row.difference) == (*scores, scores[1] - scores[0])
    resamples = Bootstraps(0).of(30, None)
    drawn = [miou_resampled(each, resamples) for each in parts]
    assert row.ci95 == resamples.interval(drawn[1] - drawn[0])
    unpaired = [np.ptp(resamples.interval(each)) for each in drawn]
    assert row.ci95[1] < 0 and np.ptp(row.ci95) < np.hypot(*unpaired)
    assert compare.main([*outputs, "--fail-if-worse", "--output", str(tmp_path / "compared")]) == 1
    out = capsys.readouterr().out
    assert "data/val mIoU" in out and "data/val mAcc" in out and "data/val miou" in out
    assert "mIoU" in (tmp_path / "compared" / "compare.html").read_text(encoding="utf-8")
    assert compare.main([*outputs[::-1], "--fail-if-worse"]) == 0


def test_other_labels_are_not_compared(asked: Any, tmp_path: Path, capsys: Any) -> None:
    outputs = two_runs(asked, tmp_path, (0.7, 0.6))
    store = Store.open(Path(outputs[1]))
    parts = store.load("data/val", 0, "parts")
    parts[0, 0, 1:] += 1
    store.put("data/val", 0, {"parts": parts})
    assert compare.main(outputs) == 2
    assert "data/val has other labels in A than in B" in capsys.readouterr().err


def test_the_report_has_miou_beside_the_papers(asked: Any, tmp_path: Path, capsys: Any) -> None:
    label = np.zeros((CROP, CROP), np.uint8)
    found = label.copy()
    found[:8] = 1
    write_ade20k(tmp_path / "data", {"a": (found, label), "b": (label, label)})
    asked["model"] = painted_model(ADE20K_CLASSES, CROP, name="mine")
    arguments = ["m.pt", "--data-root", str(tmp_path / "data"), "--flip", "--output", str(tmp_path / "out")]
    assert segmentation.main(arguments) == 0
    value = next(result.value for result in read_results(tmp_path / "out").results if result.metric == "miou")
    capsys.readouterr()
    assert report.main([str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("| mine"))
    assert f"{100 * value:.1f} [" in row and "57.3" in out
    assert "mIoU with probabilities averaged over mirror images" in out
    assert "Tables 1 and 5 of the paper print 53.8 for ViT-B, Tables 6 and 8 print 53.6" in out


# ------------------------------------------------------------------------------------------------------- the doctor


def test_the_doctor_looks_at_pairs_and_values(tmp_path: Path) -> None:
    assert list(ade20k_findings(tmp_path)) == []
    assert any("holds none of the sets" in finding.message for finding in diagnose(tmp_path))
    label = np.array([[0, 1, 255, 149]], np.uint8).repeat(4, axis=0)
    for split in ("training", "validation"):
        folder = write_ade20k(tmp_path, {"a": (label, label), "b": (label, label)}, split)
    found = list(ade20k_findings(tmp_path))
    told = {(finding.set, finding.message) for finding in diagnose(tmp_path)}
    assert told >= {("ade20k", text) for _, text in found} and "all" not in {name for name, _ in told}
    assert [level for level, _ in found] == ["warning", "ok"] * 2
    assert "not the published 20,210" in found[0][1] and "not the published 2,000" in found[2][1]
    assert "3 classes, 25.0% of the pixels not labelled" in found[3][1]
    # Masks that were reduced already: classes count from 0, and 255 is not labelled.
    masks = folder / "annotations" / "validation"
    write_masks(tmp_path / "reduced", {"a": (label, label)}, CLASSES)
    (masks / "a.png").write_bytes((tmp_path / "reduced" / "masks" / "val" / "a.png").read_bytes())
    assert any(level == "error" and "the zero rule was applied" in text for level, text in ade20k_findings(tmp_path))
    (masks / "b.png").write_bytes(b"no picture")
    assert any(level == "error" and "b.png" in text for level, text in ade20k_findings(tmp_path))
    (masks / "b.png").unlink()
    assert any(level == "error" and "no mask for b" in text for level, text in ade20k_findings(tmp_path))
