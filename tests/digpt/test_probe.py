"""Linear probes: the optimisation against torch's and scikit-learn's own, the choice of a head, resuming."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from digpt.errors import BackendError, CheckpointError, ConfigError, DataError
from digpt.probe import LEARNING_RATES, ProbeConfig, TrainedProbe, choose, held_out_rows, refit, train_probes
from digpt.probe_training import Run

SHORT = ProbeConfig(learning_rates=(0.01, 0.1), iterations=30, batch_size=64, seed=3)


def blobs(count: int = 300, width: int = 12, classes: int = 4, seed: int = 0) -> tuple[NDArray[np.float32], Any]:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(99).standard_normal((classes, width))
    return (centres[labels] + random.standard_normal((count, width))).astype(np.float32), labels


def accuracy(probe: TrainedProbe, features: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    return float((probe.logits(features).argmax(axis=1) == labels).mean())


def arrays(probes: list[TrainedProbe]) -> list[NDArray[np.float32]]:
    return [array for probe in probes for array in (probe.weight, probe.bias)]


# ------------------------------------------------------------------------------------------------------- optimisation


def test_defaults_are_dinov2s() -> None:
    config = ProbeConfig()
    assert config.learning_rates == LEARNING_RATES and len(LEARNING_RATES) == 13
    assert (LEARNING_RATES[0], LEARNING_RATES[3], LEARNING_RATES[-1]) == (1e-5, 1e-4, 0.1)
    assert (config.iterations, config.batch_size, config.momentum, config.init_std) == (12_500, 1024, 0.9, 0.01)


def test_training_is_torchs_sgd_under_a_cosine_schedule() -> None:
    """Batches of all training rows leave nothing to chance, so torch's own optimiser must end at the same weights."""
    features, labels = blobs()
    mask = held_out_rows(labels, 0.1, 3)
    x, y = torch.from_numpy(features[~mask]), torch.from_numpy(labels[~mask])
    config = replace(SHORT, iterations=20, batch_size=len(x), init_std=0.0)
    for probe in train_probes({"f": features}, labels, 4, config):
        layer = nn.Linear(12, 4)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        rate = probe.learning_rate * len(x) / 256
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, weight_decay=0)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x), y).backward()
            optimizer.step()
            scheduler.step()
        np.testing.assert_allclose(probe.weight, layer.weight.detach().numpy(), rtol=0, atol=2e-6)
        np.testing.assert_allclose(probe.bias, layer.bias.detach().numpy(), rtol=0, atol=2e-6)
        assert np.abs(probe.weight).max() > 0.05


def test_first_weights_are_small_and_normal() -> None:
    features, labels = blobs(width=200, classes=50)
    config = ProbeConfig(learning_rates=(1e-9,), iterations=1, batch_size=8)
    (probe,) = train_probes({"f": features}, labels, 50, config)
    assert probe.weight.std() == pytest.approx(0.01, rel=0.03) and abs(probe.weight.mean()) < 5e-4
    assert np.abs(probe.bias).max() < 1e-6
    (other,) = train_probes({"g": features}, labels, 50, config)
    assert np.abs(other.weight - probe.weight).max() > 0.01  # heads do not share their first weights


def test_batches_go_through_every_row_before_any_comes_again() -> None:
    features, labels = blobs(50)
    rows = np.arange(3, 50)

    def run(seed: int = 0) -> Run:
        config = ProbeConfig(batch_size=20, seed=seed)
        return Run({"f": features}, labels, 4, config, rows, torch.device("cpu"))

    in_turn, one = run(), run()
    drawn = np.concatenate([in_turn._batch(iteration) for iteration in range(47)])  # 20 epochs of 47 rows
    assert np.array_equal(np.bincount(drawn, minlength=50)[3:], np.full(47, 20))
    first_two = np.bincount(np.concatenate([one._batch(0), one._batch(1)]), minlength=50)
    assert first_two.max() == 1
    np.testing.assert_array_equal(run()._batch(31), run()._batch(31))
    assert not np.array_equal(run()._batch(31), run(seed=1)._batch(31))
    assert not np.array_equal(run()._batch(0), run()._batch(47))  # every epoch has an order of its own
    tiny = Run({"f": features}, labels, 4, ProbeConfig(batch_size=20), rows[:3], torch.device("cpu"))
    assert sorted(np.bincount(tiny._batch(0))[3:]) == [6, 7, 7]


# ------------------------------------------------------------------------------------------------------- scikit-learn


@pytest.fixture(scope="module")
def digits() -> dict[str, NDArray[Any]]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.data / 16).astype(np.float32)[order], data.target[order]
    return {"x": x[:1000], "y": y[:1000], "test_x": x[1000:], "test_y": y[1000:]}


def test_logits_are_scikit_learns_given_equal_weights(digits: dict[str, NDArray[Any]]) -> None:
    theirs = LogisticRegression(max_iter=500).fit(digits["x"], digits["y"])
    weight, bias = theirs.coef_.astype(np.float32), theirs.intercept_.astype(np.float32)
    probe = TrainedProbe("f", 0.1, weight, bias, 0.0)
    logits = probe.logits(digits["test_x"])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, theirs.decision_function(digits["test_x"]), rtol=0, atol=1e-5)


def test_accuracy_is_that_of_scikit_learn(digits: dict[str, NDArray[Any]]) -> None:
    config = ProbeConfig(learning_rates=(0.01, 0.3), iterations=1200, batch_size=256)
    probe = choose(train_probes({"f": digits["x"]}, digits["y"], 10, config, threads=1))
    mask = held_out_rows(digits["y"], 0.1, 0)
    theirs = LogisticRegression(max_iter=1000).fit(digits["x"][~mask], digits["y"][~mask])
    ours = accuracy(probe, digits["test_x"], digits["test_y"])
    assert probe.learning_rate == 0.3 and ours > 0.95
    assert abs(ours - theirs.score(digits["test_x"], digits["test_y"])) <= 0.005
    again = refit(digits["x"], digits["y"], 10, probe, config, threads=1)
    all_rows = LogisticRegression(max_iter=1000).fit(digits["x"], digits["y"])
    theirs_again = all_rows.score(digits["test_x"], digits["test_y"])
    assert abs(accuracy(again, digits["test_x"], digits["test_y"]) - theirs_again) <= 0.005
    assert (again.name, again.learning_rate, again.held_out_accuracy) == ("f", 0.3, probe.held_out_accuracy)
    assert np.abs(again.weight - probe.weight).max() > 1e-3  # the held-out rows took part


# ------------------------------------------------------------------------------------------------------------- choice


def test_only_held_out_rows_choose() -> None:
    """One set tells the classes of training (and reported) rows, the other those of held-out rows only."""
    features, labels = blobs(400)
    noise = np.random.default_rng(5).standard_normal(features.shape).astype(np.float32)
    mask = held_out_rows(labels, 0.25, 3)
    # The first half of the classes is told by both, so that the second set has something to learn.
    told = mask | (labels < 2)
    sets = {"train": np.where(mask[:, None], noise, features), "held": np.where(told[:, None], features, noise)}
    config = replace(SHORT, learning_rates=(0.1,), iterations=300, held_out=0.25)
    in_train, in_held = train_probes(sets, labels, 4, config)
    assert accuracy(in_train, sets["train"][~mask], labels[~mask]) > accuracy(
        in_held, sets["held"][~mask], labels[~mask]
    )
    assert in_held.held_out_accuracy > in_train.held_out_accuracy + 0.1
    assert choose([in_train, in_held]) is in_held
    for name, probe in (("train", in_train), ("held", in_held)):
        assert probe.held_out_accuracy == pytest.approx(accuracy(probe, sets[name][mask], labels[mask]))


def test_held_out_rows_are_never_trained_on() -> None:
    """Whatever their features and labels are, the weights stay the same to the bit."""
    features, labels = blobs()
    mask = held_out_rows(labels, 0.1, 3)
    other = np.where(mask[:, None], 1000.0, features).astype(np.float32)
    ours, theirs = (train_probes({"f": array}, labels, 4, SHORT) for array in (features, other))
    for one, two in zip(arrays(ours), arrays(theirs), strict=True):
        np.testing.assert_array_equal(one, two)
    other = np.where(mask[:, None], features, features + 1).astype(np.float32)
    assert np.abs(train_probes({"f": other}, labels, 4, SHORT)[0].weight - ours[0].weight).max() > 1e-3


def test_equal_probes_leave_the_first() -> None:
    one = TrainedProbe("f", 0.1, np.zeros((2, 3), np.float32), np.zeros(2, np.float32), 0.5)
    two, three = replace(one, learning_rate=0.2), replace(one, learning_rate=0.3, held_out_accuracy=0.6)
    assert choose([one, two]) is one and choose([one, two, three]) is three


def test_held_out_rows_are_stratified() -> None:
    labels = np.repeat([7, 0, 3, 5, 9], [100, 10, 5, 2, 1])
    labels = labels[np.random.default_rng(0).permutation(len(labels))]
    mask = held_out_rows(labels, 0.1, 0)
    assert {int(label): int(mask[labels == label].sum()) for label in (7, 0, 3, 5, 9)} == {
        7: 10,
        0: 1,
        3: 1,
        5: 1,
        9: 0,
    }
    np.testing.assert_array_equal(held_out_rows(labels, 0.1, 0), mask)
    assert not np.array_equal(held_out_rows(labels, 0.1, 1), mask)
    assert held_out_rows(labels, 0.999, 0)[labels == 5].sum() == 1  # one row stays for training


def test_order_of_the_grid_and_heads_of_any_width() -> None:
    features, labels = blobs()
    sets = {"wide": features, "narrow": features[:, :5]}
    probes = train_probes(sets, labels, 4, SHORT)
    names = [(probe.name, probe.learning_rate, probe.weight.shape) for probe in probes]
    assert names == [(n, r, (4, d)) for n, d in (("wide", 12), ("narrow", 5)) for r in (0.01, 0.1)]
    alone = train_probes({"narrow": features[:, :5]}, labels, 4, replace(SHORT, learning_rates=(0.1,)))
    np.testing.assert_allclose(alone[0].weight, probes[3].weight, rtol=0, atol=1e-6)


def test_a_head_that_diverges_is_never_chosen_and_disturbs_no_other() -> None:
    features, labels = blobs()
    calm, wild = (
        train_probes({"f": features}, labels, 4, replace(SHORT, learning_rates=rates))
        for rates in ((0.1,), (1e38, 0.1))
    )
    assert wild[0].held_out_accuracy == 0.0 and choose(wild) is wild[1]
    assert wild[1].held_out_accuracy == calm[0].held_out_accuracy > 0.7
    np.testing.assert_allclose(wild[1].weight, calm[0].weight, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- determinism, resuming


def test_same_arguments_give_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    features, labels = blobs()
    stored = np.lib.format.open_memmap(tmp_path / "f.npy", mode="w+", dtype=np.float16, shape=(300, 20))
    stored[:, 4:16] = features
    half = features.astype(np.float16)
    first, second = (train_probes({"f": array}, labels, 4, SHORT) for array in (half, stored[:, 4:16]))
    for one, two in zip(arrays(first), arrays(second), strict=True):
        np.testing.assert_array_equal(one, two)
    other = train_probes({"f": half}, labels, 4, replace(SHORT, seed=4))
    assert np.abs(other[0].weight - first[0].weight).max() > 1e-3


class Killed(Exception):
    pass


def killer(at: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if done == at:
            raise Killed

    return progress


def test_a_resumed_run_ends_with_the_bits_of_one_never_interrupted(tmp_path: Path) -> None:
    features, labels = blobs()
    sets = {"a": features, "b": features[:, :7]}
    whole = train_probes(sets, labels, 4, SHORT)
    path = tmp_path / "state.npz"
    for at in (7, 17):
        with pytest.raises(Killed):
            train_probes(sets, labels, 4, SHORT, killer(at), state=path, save_every=5)
    seen: list[int] = []
    resumed = train_probes(sets, labels, 4, SHORT, lambda what, done, total: seen.append(done), state=path)
    assert seen == list(range(16, 31))  # it went on from the 15th, which was the last saved
    for one, two in zip(arrays(whole), arrays(resumed), strict=True):
        np.testing.assert_array_equal(one, two)
    assert [p.held_out_accuracy for p in whole] == [p.held_out_accuracy for p in resumed]
    seen.clear()
    finished = train_probes(sets, labels, 4, SHORT, lambda what, done, total: seen.append(done), state=path)
    assert seen == [] and np.array_equal(finished[0].weight, whole[0].weight)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    features, labels = blobs()
    path = tmp_path / "state.npz"
    train_probes({"a": features}, labels, 4, SHORT, state=path)
    relabelled = labels.copy()
    relabelled[0] = 1
    for sets, classes, y, config in (
        ({"a": features}, 4, labels, replace(SHORT, iterations=31)),
        ({"a": features}, 4, labels, replace(SHORT, seed=0)),
        ({"a": features}, 4, relabelled, SHORT),
        ({"a": features}, 5, labels, SHORT),
        ({"b": features}, 4, labels, SHORT),
        ({"a": features + 1}, 4, labels, SHORT),
        ({"a": features.astype(np.float16)}, 4, labels, SHORT),
    ):
        with pytest.raises(ConfigError, match="other features, labels or settings; delete it"):
            train_probes(sets, y, classes, config, state=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as the state of a linear probe .*delete it"):
        train_probes({"a": features}, labels, 4, SHORT, state=path)


def test_threads_are_given_back() -> None:
    features, labels = blobs()
    before, seen = torch.get_num_threads(), []
    train_probes({"f": features}, labels, 4, SHORT, lambda *_: seen.append(torch.get_num_threads()), threads=before + 1)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


# ------------------------------------------------------------------------------------------------------ files, errors


def test_a_saved_probe_comes_back(tmp_path: Path) -> None:
    features, labels = blobs()
    probe = train_probes({"cls+mean-4": features}, labels, 4, SHORT)[1]
    probe.save(tmp_path / "probe.npz")
    again = TrainedProbe.load(tmp_path / "probe.npz")
    assert (again.name, again.learning_rate, again.held_out_accuracy) == ("cls+mean-4", 0.1, probe.held_out_accuracy)
    np.testing.assert_array_equal(again.logits(features), probe.logits(features))
    np.savez(tmp_path / "foreign.npz", weight=probe.weight)
    (tmp_path / "text.npz").write_text("no archive")
    for name, message in (("foreign", "holds no probe"), ("text", "cannot be read"), ("gone", "FileNotFoundError")):
        with pytest.raises(CheckpointError, match=message):
            TrainedProbe.load(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=r"takes \[N, 12\] features"):
        probe.logits(features[:, :3])


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rates": ()},
        {"learning_rates": (0.1, 0.1)},
        {"learning_rates": (0.0,)},
        {"learning_rates": (float("nan"),)},
        {"iterations": 0},
        {"batch_size": 0},
        {"held_out": 0.0},
        {"held_out": 1.0},
        {"momentum": 1.0},
        {"seed": -1},
    ],
)
def test_configurations_that_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ProbeConfig(**wrong)


def test_data_that_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    mask = held_out_rows(labels, SHORT.held_out, SHORT.seed)
    for row in (np.flatnonzero(mask)[0], np.flatnonzero(~mask)[0]):
        broken = features.copy()
        broken[row, 2] = np.inf
        with pytest.raises(DataError, match=f"Row {row} of the features f is not finite"):
            train_probes({"f": broken}, labels, 4, SHORT)
    with pytest.raises(DataError, match="none can be held out"):
        train_probes({"f": features[:4]}, labels[:4], 4, SHORT)
    for sets, y in (
        ({}, labels),
        ({"f": features}, labels + 1),
        ({"f": features[1:]}, labels),
        ({"f": labels}, labels),
    ):
        with pytest.raises(ValueError):
            train_probes(sets, y, 4, SHORT)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackendError, match="device='cpu'"):
        train_probes({"f": features}, labels, 4, SHORT, device="cuda")


def test_a_trained_probe_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import digpt.probe"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
