"""The engine's two caches: what they save, what bounds them, what they never mix up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from digpt.cache import LruCache
from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime


def test_the_least_recently_used_entry_goes_first() -> None:
    cache: LruCache[int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    assert cache.stats() == {"hits": 3, "misses": 1, "entries": 2, "weight": 2, "capacity": 2}


def test_weights_bound_the_cache_and_too_heavy_entries_stay_out() -> None:
    cache: LruCache[int] = LruCache(10)
    cache.put("a", 1, weight=6)
    cache.put("b", 2, weight=5)
    assert cache.get("a") is None and cache.get("b") == 2
    cache.put("c", 3, weight=11)
    assert cache.get("c") is None and cache.get("b") == 2
    cache.put("b", 4, weight=10)
    assert cache.get("b") == 4 and cache.stats()["weight"] == 10


def test_a_repeated_text_is_computed_once_even_within_one_call() -> None:
    runtime = FakeRuntime()
    engine = Engine(runtime)
    first = engine.embed_texts(["cat", "dog", "cat"])
    assert runtime.text_batches == [2]
    np.testing.assert_array_equal(first[0], first[2])
    again = engine.embed_texts(["dog", "owl"])
    assert runtime.text_batches == [2, 1]
    np.testing.assert_array_equal(again[0], first[1])
    stats = engine.cache_stats()["texts"]
    assert (stats["hits"], stats["misses"], stats["entries"]) == (1, 3, 3)


def test_a_cached_text_does_not_keep_its_batch_alive() -> None:
    engine = Engine(FakeRuntime())
    expected = engine.embed_texts(["cat", "dog"], normalize=False)
    for text, row in zip(("cat", "dog"), expected, strict=True):
        cached = engine._texts.get(text)
        assert cached is not None and cached.base is None
        np.testing.assert_array_equal(cached, row)


def test_the_text_cache_is_bounded_and_correct_when_it_overflows_in_one_call() -> None:
    engine = Engine(FakeRuntime(), text_cache=2)
    texts = [f"text {i}" for i in range(5)]
    np.testing.assert_array_equal(engine.embed_texts(texts), Engine(FakeRuntime()).embed_texts(texts))
    assert engine.cache_stats()["texts"]["entries"] == 2


def test_a_class_matrix_is_computed_once_per_labels_and_templates() -> None:
    runtime = FakeRuntime()
    engine = Engine(runtime)
    first = engine.class_matrix(["cat", "dog"])
    assert engine.class_matrix(["cat", "dog"]) is first
    assert not np.array_equal(engine.class_matrix(["dog", "cat"]), first)
    assert not np.array_equal(engine.class_matrix(["cat", "dog"], ["a {}"]), first)
    stats = engine.cache_stats()["class_matrices"]
    assert (stats["hits"], stats["misses"], stats["weight"]) == (1, 3, 6)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


def test_labels_that_look_alike_when_joined_are_told_apart() -> None:
    engine = Engine(FakeRuntime())
    assert not np.array_equal(engine.class_matrix(["a', 'b"]), engine.class_matrix(["a"]))
    assert engine.class_matrix(["a,b", "c"]).shape == engine.class_matrix(["a", "b,c"]).shape
    assert engine.cache_stats()["class_matrices"]["hits"] == 0


def test_a_great_many_prompts_leave_the_other_texts_cached() -> None:
    runtime = FakeRuntime()
    engine = Engine(runtime, text_cache=8)
    engine.embed_texts(["cat"])
    matrix = engine.class_matrix([f"label {i}" for i in range(20)])
    np.testing.assert_allclose(matrix[3], engine.embed_texts(["label 3"])[0], atol=1e-6)
    before = list(runtime.text_batches)
    engine.embed_texts(["cat"])
    assert runtime.text_batches == before


def test_threads_share_the_caches_without_losing_counts() -> None:
    engine = Engine(FakeRuntime())
    expected = engine.embed_texts(["a", "b"])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: engine.embed_texts(["a", "b"]), range(50)))
    assert all(np.array_equal(answer, expected) for answer in answers)
    assert engine.cache_stats()["texts"]["hits"] == 100
