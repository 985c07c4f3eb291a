"""Embedding files: the engine's own decoder, the order, the batches, the errors."""

from __future__ import annotations

import numpy as np
import pytest

from digpt.engine import Engine
from digpt.errors import UnreadableImageError
from digpt.runtime.fake import FakeRuntime
from evaluate.features import embed_files


@pytest.fixture
def files(emoji) -> list[bytes]:
    return [image.encoded for image in emoji.images("flat")[:11]]


def test_equals_the_engine_one_by_one_in_order(files):
    runtime = FakeRuntime(dim=6)
    engine = Engine(runtime)
    calls = []
    got = embed_files(engine, files, batch_size=4, progress=lambda *call: calls.append(call))
    assert runtime.batches == [4, 4, 3]
    assert calls == [("images", done, 11) for done in (0, 4, 8, 11)]
    one_by_one = np.concatenate([engine.embed_images([engine.decode(file)]) for file in files])
    np.testing.assert_allclose(got, one_by_one, atol=1e-7)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
    assert len(np.unique(got, axis=0)) == 11


def test_at_most_two_batches_are_decoded_ahead(files):
    engine = Engine(FakeRuntime(dim=6))
    decoded, ahead = [], []
    decode, embed = engine.decode, engine.embed_images
    engine.decode = lambda data: decoded.append(data) or decode(data)
    engine.embed_images = lambda images, **options: ahead.append(len(decoded)) or embed(images, **options)
    embed_files(engine, files, batch_size=2)
    assert all(seen <= 2 * (batch + 2) for batch, seen in enumerate(ahead))


def test_no_files_and_a_broken_one(files):
    engine = Engine(FakeRuntime(dim=6))
    assert embed_files(engine, []).shape == (0, 6)
    with pytest.raises(UnreadableImageError):
        embed_files(engine, [files[0], files[1][:30]])
