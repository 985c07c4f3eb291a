"""Keyed randomness: a function of (seed, epoch, index), uniform, and decorrelated."""

from __future__ import annotations

import random

import numpy as np
import torch

from train.keyed import (
    WindowedOrder,
    _sorting,
    keeping_generators,
    keyed_order,
    keyed_permutations,
    keyed_uniform,
    sample_stream,
    seed_generators,
)


def test_a_draw_depends_on_its_key_alone() -> None:
    epoch, index = np.array([3, 3, 4]), np.array([7, 8, 7])
    together = keyed_uniform(1, epoch, index, 5)
    alone = keyed_uniform(1, epoch[1:2], index[1:2], 5)
    assert np.array_equal(together[1:2], alone)
    assert len(np.unique(together)) == together.size
    assert not np.array_equal(together, keyed_uniform(2, epoch, index, 5))


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = keyed_uniform(0, np.zeros(20_000, dtype=np.int64), np.arange(20_000), 4)
    assert draws.min() >= 0 and draws.max() < 1
    assert np.allclose(draws.mean(0), 0.5, atol=0.01) and np.allclose(draws.var(0), 1 / 12, atol=0.002)
    correlation = np.corrcoef(np.concatenate([draws[:-1].T, draws[1:].T]))
    assert np.abs(correlation - np.eye(8)).max() < 0.03


def test_the_order_of_an_epoch_says_nothing_about_its_draws() -> None:
    """Sorted by the bits of a draw, every batch would hold one value of what that draw decides."""
    items = keyed_order(0, 3, 4000)
    epochs = np.full(4000, 3)
    draws = keyed_uniform(0, epochs, items, 4)
    permuted = keyed_permutations(0, epochs, items, 4)
    for column in (*draws.T, *permuted.T):
        assert abs(np.corrcoef(np.arange(4000), column)[0, 1]) < 0.06
    assert abs(np.corrcoef(draws[:, 0], permuted[:, 0])[0, 1]) < 0.06


def test_a_negative_seed_is_a_seed_like_any_other() -> None:
    zero = np.zeros(1, dtype=np.int64)
    assert not np.array_equal(keyed_uniform(-1, zero, zero, 3), keyed_uniform(1, zero, zero, 3))


def test_every_epoch_visits_every_item_once_whatever_the_batch_size() -> None:
    def stream(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [sample_stream(step, batch_size, 30, seed=5) for step in range(120 // batch_size)]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    epochs, items = stream(8)
    for epoch in range(4):
        assert sorted(items[epochs == epoch]) == list(range(30))
    assert np.array_equal(items, stream(24)[1])
    assert not np.array_equal(items[:30], items[30:60])


def test_permutations_are_permutations_and_all_occur() -> None:
    drawn = keyed_permutations(0, np.zeros(600, dtype=np.int64), np.arange(600), 3)
    assert np.array_equal(np.sort(drawn, axis=1), np.tile(np.arange(3), (600, 1)))
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 6 and counts.min() > 60
    assert sorted(keyed_order(0, 0, 10)) == list(range(10))


COUNTS = np.array([5, 0, 7, 3, 6, 4, 8])
STARTS = np.cumsum(COUNTS) - COUNTS


def test_a_windowed_order_visits_every_item_once_per_epoch_whatever_the_batch_size() -> None:
    def stream(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        order = WindowedOrder(5, COUNTS, window=2)
        parts = [order.stream(step, batch_size) for step in range(132 // batch_size)]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    epochs, items = stream(3)
    for epoch in range(4):
        assert sorted(items[epochs == epoch]) == list(range(33))
    assert np.array_equal(items, stream(44)[1]) and np.array_equal(items, stream(66)[1])
    assert not np.array_equal(items[:33], items[33:66])
    assert np.array_equal(WindowedOrder(5, COUNTS, 2).stream(8, 3)[1], items[24:27])  # without what came before
    assert not np.array_equal(WindowedOrder(6, COUNTS, 2).stream(0, 33)[1], items[:33])


def test_a_windowed_order_never_has_more_than_its_window_of_shards_open() -> None:
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    for window, most in ((1, 1), (3, 3)):
        items = WindowedOrder(0, COUNTS, window).stream(0, 33)[1]
        shards = shard_of[items]
        first = {shard: int(np.flatnonzero(shards == shard)[0]) for shard in set(shards.tolist())}
        last = {shard: int(np.flatnonzero(shards == shard)[-1]) for shard in first}
        open_at_once = [sum(first[s] <= place <= last[s] for s in first) for place in range(33)]
        assert max(open_at_once) == most
    opened = sorted(first, key=first.__getitem__)
    assert opened != sorted(opened)  # the shards are permuted themselves
    whole = WindowedOrder(0, COUNTS, window=7)
    assert np.abs(np.corrcoef(np.arange(33), whole.stream(0, 33)[1])[0, 1]) < 0.5


def test_equal_bits_keep_their_order() -> None:
    bits = np.array([3, 1, 3, 1, 2] * 50, dtype=np.uint64)
    assert np.array_equal(_sorting(bits), np.argsort(bits, kind="stable"))
    assert keyed_order(0, 0, 6).tolist() == [0, 4, 3, 2, 5, 1]  # a resumed run relies on it


def test_a_remembered_order_cannot_be_changed_by_who_received_it() -> None:
    first = sample_stream(0, 4, 30, seed=5)[1]
    expected = first.copy()
    first[:] = 0
    assert np.array_equal(sample_stream(0, 4, 30, seed=5)[1], expected)


def test_generators_are_seeded_by_all_bits_and_given_back() -> None:
    def draws(*bits: int) -> tuple[float, float, float]:
        seed_generators(np.array(bits, dtype=np.uint64))
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with keeping_generators():
        base = draws(1, 2, 4)
        assert draws(1, 2, 4) == base
        assert draws(1, 2 + 2**63, 4)[1] != base[1] and draws(2, 2, 4)[0] != base[0] and draws(1, 2, 8)[2] != base[2]
    assert torch.equal(torch.rand(1), expected)
