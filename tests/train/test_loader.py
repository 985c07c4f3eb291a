"""Photographs and pairs from disk: the same batches whoever reads them, and what happens to samples that cannot be."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from digpt.data.images import ImageSource, open_images
from digpt.data.pairs import open_pairs
from digpt.errors import ConfigError, DataError
from digpt.preprocess import Preprocess
from train.loader import LoaderConfig, PairTraining, PhotoBatch, PhotoTraining, evaluation_batches
from train.photo_augment import CropConfig, FinetuneAugment
from train.share import Share

N, CLASSES, SIZE, BATCH = 22, 3, 16, 8
ONE = Share()
ALONE = LoaderConfig(workers=0)


def jpeg(number: int, width: int = 40, height: int = 30) -> bytes:
    pixels = np.random.RandomState(number).randint(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number in range(N):
        path = root / f"class{number % CLASSES}" / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for shard in range(5):
        with webdataset.TarWriter(str(root / f"{shard:05d}.tar")) as writer:
            for number in range(5 * shard, 5 * shard + 5):
                sample = {"jpg": jpeg(number), "cls": number % CLASSES, "txt": f"picture {number}"}
                writer.write({"__key__": f"{number:04d}", **sample})
    return root


def photos(
    source: ImageSource, augment: CropConfig | FinetuneAugment | None = None, workers: int = 0, seed: int = 3
) -> PhotoTraining:
    config = LoaderConfig(workers=workers, window=2)
    return PhotoTraining(source, seed, BATCH, augment or CropConfig(), SIZE, config, num_classes=CLASSES)


def take(training: PhotoTraining, steps: int, share: Share = ONE, first: int = 0) -> list[list[PhotoBatch]]:
    batches = training.batches(first, share)
    try:
        return list(itertools.islice(batches, steps))
    finally:
        batches.close()  # type: ignore[attr-defined]


def joined(parts: Sequence[PhotoBatch]) -> dict[str, np.ndarray]:
    """One global batch from its micro-batches, whatever their number."""
    ordered = sorted(parts, key=lambda part: part.first)
    assert [part.first for part in ordered] == np.cumsum([0, *(len(p.items) for p in ordered[:-1])]).tolist()
    fields = {name: [getattr(part, name) for part in ordered] for name in ("images", "labels", "draws", "targets")}
    tensors = {name: torch.cat(values).numpy() for name, values in fields.items() if values[0] is not None}
    permutations = torch.cat([part.permutations(3, 9, orders=2) for part in ordered]).numpy()
    texts = [text for part in ordered for text in part.texts or []]
    keys = {name: np.concatenate([getattr(part, name) for part in ordered]) for name in ("epochs", "items")}
    return {**tensors, **keys, "permutations": permutations, "texts": np.array(texts)}


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert np.array_equal(value, right[name]), name


DIVISIONS = {
    "two processes": ([Share(0, 2), Share(1, 2)], 0),
    "accumulate": ([Share(0, 1, 2)], 0),
    "two workers": ([Share()], 2),
    "two processes with accumulate and two workers": ([Share(0, 2, 2), Share(1, 2, 2)], 2),
}


@pytest.mark.parametrize("augment", [CropConfig(), FinetuneAugment()], ids=["crop", "finetune"])
@pytest.mark.parametrize("kind", ["folder", "wds"])
def test_batches_are_the_same_whoever_reads_them(
    folder: Path, shards: Path, kind: str, augment: CropConfig | FinetuneAugment
) -> None:
    source = open_images(f"{kind}:{folder if kind == 'folder' else shards}")
    steps = 3
    whole = [joined(parts) for parts in take(photos(source, augment), steps)]
    for shares, workers in DIVISIONS.values():
        taken = [take(photos(source, augment, workers), steps, share) for share in shares]
        for step, reference in enumerate(whole):
            assert_same(joined([part for process in taken for part in process[step]]), reference)
    resumed = take(photos(source, augment, workers=2), 1, first=2)
    assert_same(joined(resumed[0]), whole[2])
    assert_same(joined([photos(source, augment).batch(2)]), whole[2])
    assert not np.array_equal(whole[0]["images"], joined([photos(source, augment, seed=4).batch(0)])["images"])
    assert not np.array_equal(whole[0]["permutations"][:2], whole[0]["permutations"][2:4])


@pytest.mark.parametrize("kind", ["folder", "wds"])
def test_every_epoch_visits_each_image_once_and_crops_it_anew(folder: Path, shards: Path, kind: str) -> None:
    source = open_images(f"{kind}:{folder if kind == 'folder' else shards}")
    size = len(source)
    batches = [photos(source).batch(step) for step in range(3 * size // BATCH)]
    epochs = np.concatenate([batch.epochs for batch in batches])
    items = np.concatenate([batch.items for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    for epoch in range(2):
        assert sorted(items[epochs == epoch]) == list(range(size))
    assert labels.tolist() == [source.read(int(item))[1] for item in items]
    images = torch.cat([batch.images for batch in batches])
    for item in range(size):
        first, second = np.flatnonzero(items == item)[:2]
        assert not torch.equal(images[first], images[second])


def test_an_epoch_of_shards_stays_within_its_window(shards: Path) -> None:
    source = open_images(f"wds:{shards}")
    training = photos(source)
    items = np.concatenate([training.samples(step)[1] for step in range(4)])[:25]
    pools = [set(items[start : start + 10] // 5) for start in (0, 10)]
    assert all(len(pool) == 2 for pool in pools) and not pools[0] & pools[1]
    assert len(set(items[:5] // 5)) == 2  # shuffled together, not one after the other
    assert training.fingerprint == f"{source.fingerprint}-window2"


def test_a_reader_can_be_sent_to_a_process_that_was_not_forked(folder: Path, shards: Path) -> None:
    for source in (open_images(folder), open_images(f"wds:{shards}")):
        training = photos(source, FinetuneAugment())
        expected = training.batch(1)
        training.reader = pickle.loads(pickle.dumps(training.reader))
        assert torch.equal(training.batch(1).images, expected.images)


def test_images_travel_as_bytes_and_arrive_in_unit_range(folder: Path) -> None:
    batch = photos(open_images(folder)).batch(0)
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (BATCH, 3, SIZE, SIZE)
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.images, batch.images.float() / 255) and moved.labels is batch.labels
    assert batch.draws.shape == (BATCH, 4) and batch.targets is None
    finetune = photos(open_images(folder), FinetuneAugment()).batch(0)
    assert finetune.images.dtype == torch.float32 and finetune.images.min() < 0
    assert torch.equal(finetune.to(torch.device("cpu")).images, finetune.images)


def test_reading_leaves_the_generators_alone(folder: Path) -> None:
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    photos(open_images(folder), FinetuneAugment()).batch(0)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected


def test_mixing_refuses_to_cut_a_pair(folder: Path) -> None:
    source = open_images(folder)
    with pytest.raises(ConfigError, match="pairs of images"):
        photos(source, FinetuneAugment()).batches(0, Share(0, 8))
    assert len(take(photos(source, FinetuneAugment(mixup=0, cutmix=0)), 1, Share(0, 8))[0][0].items) == 1
    with pytest.raises(ConfigError, match="does not divide"):
        photos(source).batches(0, Share(0, 3))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """24 pairs in 3 shards: 2 damaged images, 1 text in place of an image, 1 without a caption."""
    for shard in range(3):
        with webdataset.TarWriter(str(tmp_path / f"{shard:05d}.tar")) as writer:
            for number in range(8 * shard, 8 * shard + 8):
                sample = {"jpg": jpeg(number), "txt": f"picture {number}"}
                if number in (3, 17):
                    sample["jpg"] = sample["jpg"][:200]
                if number == 9:
                    sample["jpg"] = b"<html>"
                if number == 10:
                    del sample["txt"]
                writer.write({"__key__": f"{number:04d}", **sample})
    return tmp_path


def test_bad_samples_are_replaced_and_counted_alike_at_any_world_size(broken: Path) -> None:
    def pairs(workers: int = 0) -> PairTraining:
        loader = LoaderConfig(workers=workers, window=2, max_errors=0.5)
        return PairTraining(open_pairs(f"wds:{broken}"), 3, BATCH, CropConfig(), SIZE, loader)

    alone = pairs()
    whole = [joined(parts) for parts in take(alone, 3)]
    assert dict(alone.errors) == {"undecodable": 2, "no image format": 1, "no caption": 2}  # 10 stands in for 9, too
    assert alone.notes()["bad_samples"] == 5 and alone.notes()["bad_samples/no caption"] == 2
    stand_ins = {3: 4, 9: 11, 10: 11, 17: 18}
    for batch in whole:
        items = batch["items"].tolist()
        assert batch["texts"].tolist() == [f"picture {stand_ins.get(item, item)}" for item in items]
        assert set(batch["labels"].tolist()) == {-1}
    halves = [pairs(workers=2), pairs()]
    taken = [take(half, 3, Share(rank, 2)) for rank, half in enumerate(halves)]
    for step, reference in enumerate(whole):
        assert_same(joined([part for process in taken for part in process[step]]), reference)
    assert halves[0].errors + halves[1].errors == alone.errors


def test_too_many_bad_samples_stop_the_run_and_name_some(broken: Path) -> None:
    loader = LoaderConfig(workers=0, max_errors=0.1)
    training = PairTraining(open_pairs(f"wds:{broken}"), 3, BATCH, CropConfig(), SIZE, loader)
    with pytest.raises(DataError, match=r"of \d+ samples .* cannot be used.*max_errors=0.1.*\d\.tar: 00\d\d") as caught:
        take(training, 100)
    assert 100 <= training.seen < 100 + BATCH and str(caught.value).count(".tar: ") == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_one_good_sample_ends_at_once_in_one_sentence(tmp_path: Path, workers: int) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"<html>")
    training = photos(open_images(tmp_path), workers=workers)
    with pytest.raises(DataError, match=r"^16 samples of .* in a row cannot be used; the last: \d.jpg"):
        take(training, 1)
    assert not multiprocessing.active_children()


def test_closing_ends_the_workers_and_signals_are_the_parents_business(folder: Path) -> None:
    batches = photos(open_images(folder), workers=2).batches(0, ONE)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
    assert [len(parts[0].items) for parts in itertools.islice(batches, 6)] == [BATCH] * 6
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(index: int) -> tuple[bytes, int]:
        time.sleep(0.3)  # until the parent waits: torch raises in its main thread, wherever that is
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    source = open_images(folder)
    monkeypatch.setattr(source, "read", die)
    with pytest.raises(DataError, match="loader process was killed.*lower workers"):
        next(photos(source, workers=1).batches(0, ONE))
    assert not multiprocessing.active_children()


PROTOCOLS = [Preprocess(SIZE, crop_pct=0.875), Preprocess(SIZE, resize="squash")]


@pytest.mark.parametrize("preprocess", PROTOCOLS, ids=["shortest", "squash"])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_each_image_once_over_all_processes(
    folder: Path, preprocess: Preprocess, workers: int
) -> None:
    source = open_images(folder)

    def rows(share: Share) -> Iterator[tuple[bytes, int]]:
        for images, labels in evaluation_batches(source, preprocess, 4, share, workers):
            assert len(images) <= 4 and images.dtype == torch.uint8 and labels.dtype == torch.int64
            yield from ((image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True))

    expected = [(preprocess(source.read(i)[0]).tobytes(), source.read(i)[1]) for i in range(len(source))]
    assert list(rows(ONE)) == expected and len(set(expected)) == N
    assert sorted(row for rank in range(3) for row in rows(Share(rank, 3))) == sorted(expected)


def test_evaluation_never_hides_a_bad_image(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "b.jpg").write_bytes(jpeg(2)[:100])
    with pytest.raises(DataError, match="b.jpg cannot be evaluated"):
        list(evaluation_batches(open_images(tmp_path), PROTOCOLS[0], 4))


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong in ({"workers": -1}, {"prefetch": 0}, {"window": 0}, {"max_errors": 1.5}):
        with pytest.raises(ConfigError):
            LoaderConfig(**wrong)
