"""mCE and relative mCE: AlexNet scores 100, a made-up model what a table worked out by hand says."""

from __future__ import annotations

import numpy as np
import pytest

from digpt.errors import ConfigError
from digpt.resampling import Resamples
from digpt.robustness_metrics import (
    ALEXNET_CLEAN,
    ALEXNET_ERROR,
    CORRUPTIONS,
    SEVERITIES,
    check_complete,
    corruption_error,
    mce,
    mean_error,
    relative_mce,
    severity_means,
)

CELLS = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
# A made-up model: error at severities 1 to 5, and CE and relative CE worked out in decimal arithmetic, apart from the
# code, from the mean of the five and AlexNet's published figures; its clean error is 0.20.
TABLE = {
    "gaussian_noise": ((0.30, 0.35, 0.45, 0.60, 0.80), 0.564062, 0.664264),
    "shot_noise": ((0.30, 0.40, 0.50, 0.65, 0.75), 0.581351, 0.696155),
    "impulse_noise": ((0.35, 0.45, 0.50, 0.65, 0.80), 0.596115, 0.717448),
    "defocus_blur": ((0.40, 0.45, 0.55, 0.65, 0.75), 0.683027, 0.934871),
    "glass_blur": ((0.40, 0.50, 0.70, 0.75, 0.85), 0.774567, 1.123974),
    "motion_blur": ((0.30, 0.40, 0.50, 0.65, 0.70), 0.648898, 0.882819),
    "zoom_blur": ((0.45, 0.55, 0.60, 0.65, 0.70), 0.739015, 1.072725),
    "snow": ((0.35, 0.50, 0.50, 0.60, 0.65), 0.599897, 0.740713),
    "frost": ((0.30, 0.45, 0.55, 0.60, 0.65), 0.617006, 0.791277),
    "fog": ((0.30, 0.35, 0.40, 0.45, 0.55), 0.500413, 0.546130),
    "brightness": ((0.20, 0.22, 0.24, 0.26, 0.28), 0.425086, 0.308185),
    "contrast": ((0.25, 0.30, 0.40, 0.60, 0.80), 0.550865, 0.645309),
    "elastic_transform": ((0.30, 0.45, 0.35, 0.40, 0.60), 0.650098, 1.041391),
    "pixelate": ((0.25, 0.30, 0.35, 0.45, 0.50), 0.515435, 0.600622),
    "jpeg_compression": ((0.30, 0.32, 0.35, 0.40, 0.50), 0.616653, 1.013395),
}
TABLE_MCE, TABLE_RELATIVE_MCE, TABLE_MEAN_ERROR = 0.604166, 0.785285, 0.478933


def answers(n=100):
    """The table as 0/1 errors of n images, in an order of its own in every cell."""
    rng = np.random.default_rng(0)
    cells = {}
    for name, (errors, _, _) in TABLE.items():
        for severity, error in zip(SEVERITIES, errors, strict=True):
            cells[name, severity] = rng.permutation(n) < round(n * error)
    return cells, rng.permutation(n) < round(n * 0.20)


def test_alexnets_own_answers_score_exactly_100():
    """0/1 errors of 50,000 images that have exactly the published means, harder severities worse."""
    n = 50_000
    cells = {}
    for name, error in ALEXNET_ERROR.items():
        wrong = round(error * n * 5)
        assert wrong == pytest.approx(error * n * 5, abs=1e-6)  # the constants are such counts
        for severity, share in zip((5, 4, 3, 2, 1), np.array_split(np.arange(wrong), 5), strict=True):
            cells[name, severity] = np.arange(n) < len(share)
    clean = np.arange(n) < ALEXNET_CLEAN * n
    assert 100 * mce(cells).mean() == pytest.approx(100, abs=1e-9)
    assert 100 * relative_mce(cells, clean).mean() == pytest.approx(100, abs=1e-9)
    np.testing.assert_allclose(corruption_error(cells).mean(axis=0), 1, rtol=1e-12)
    assert mean_error(cells).mean() == pytest.approx(sum(ALEXNET_ERROR.values()) / 15)
    assert 100 * relative_mce(cells, np.arange(n) < n // 2).mean() < 100 - 9  # the clean errors count


def test_a_made_up_model_has_the_figures_of_its_table():
    cells, clean = answers()
    np.testing.assert_allclose(
        severity_means(cells).mean(axis=0), [np.mean(errors) for errors, _, _ in TABLE.values()], atol=1e-12
    )
    np.testing.assert_allclose(corruption_error(cells).mean(axis=0), [ce for _, ce, _ in TABLE.values()], atol=1e-6)
    assert mce(cells).mean() == pytest.approx(TABLE_MCE, abs=1e-6)
    assert relative_mce(cells, clean).mean() == pytest.approx(TABLE_RELATIVE_MCE, abs=1e-6)
    assert mean_error(cells).mean() == pytest.approx(TABLE_MEAN_ERROR, abs=1e-6)


def test_relative_ce_of_each_corruption():
    """Only one corruption moves at a time, so that the mean over 15 shows its relative CE."""
    for name, (errors, _, expected) in TABLE.items():
        cells = {cell: [0.20] for cell in CELLS}
        cells |= {(name, severity): [error] for severity, error in zip(SEVERITIES, errors, strict=True)}
        assert 15 * relative_mce(cells, [0.20]).mean() == pytest.approx(expected, abs=1e-6)


def test_contributions_give_a_joint_interval():
    """Images that fail in all 75 cells together leave far more doubt than independent failures of the same number."""
    rng = np.random.default_rng(1)
    together = rng.random(400) < 0.5
    resamples = Resamples(400, seed=0)
    joint = mce({cell: together for cell in CELLS})
    apart = mce({cell: rng.permutation(together) for cell in CELLS})
    assert joint.mean() == pytest.approx(apart.mean())
    spread = resamples.means(joint).std() / resamples.means(apart).std()
    effective = sum((1 / np.array(list(ALEXNET_ERROR.values()))) ** 2) * 5
    expected = 5 * sum(1 / np.array(list(ALEXNET_ERROR.values()))) / np.sqrt(effective)  # about the root of 75
    assert spread == pytest.approx(expected, rel=0.15)
    # The interval is that of the figure itself, computed anew from the images of each resample.
    draws = np.random.default_rng(0).integers(0, 400, size=(1000, 400))[:3]
    cells, clean = answers(400)
    again = [relative_mce({c: v[d] for c, v in cells.items()}, clean[d]).mean() for d in draws]
    np.testing.assert_allclose(resamples.means(relative_mce(cells, clean))[:3], again, rtol=1e-12)


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"missing ones first: snow \(severity 2, 5\), fog\."):
        check_complete([c for c in CELLS if c[0] != "fog" and c not in (("snow", 2), ("snow", 5))])
    cells = {cell: [0.0] for cell in CELLS[1:]}
    for figure in (mce, mean_error, corruption_error, lambda cells: relative_mce(cells, [0.0])):
        with pytest.raises(ConfigError, match=r"gaussian_noise \(severity 1\)"):
            figure(cells)
    check_complete(CELLS)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (("spatter", 1), "one of the 4 extra corruptions"),
        (("jpeg_compresion", 1), "Did you mean 'jpeg_compression'"),
        (("fog", 6), "severity 6; severities are the integers 1 to 5"),
        (("fog", "1"), "severity '1'"),
    ],
)
def test_what_does_not_belong_is_named(cell, message):
    with pytest.raises(ConfigError, match=message):
        check_complete([*CELLS, cell])


def test_refusals():
    cells = {cell: np.zeros(3) for cell in CELLS}
    with pytest.raises(ValueError, match=r"fog at severity 4 has shape \(2,\), not \(3,\)"):
        mce(cells | {("fog", 4): np.zeros(2)})
    with pytest.raises(ValueError, match="not percentages; those of fog at severity 4"):
        mce(cells | {("fog", 4): np.full(3, 61.3)})
    with pytest.raises(ValueError, match=r"the clean set has shape \(2,\)"):
        relative_mce(cells, np.zeros(2))
    with pytest.raises(ValueError, match="not percentages"):
        mce(cells | {("fog", 4): np.full(3, np.nan)})
    with pytest.raises(ValueError, match="same images"):
        mce({cell: [] for cell in CELLS})
