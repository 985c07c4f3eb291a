"""Effective robustness: planted lines are found, a model on the line gains nothing, and which models are standard."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from digpt.errors import DataError
from evaluate.effective import Baseline, effective, expit, fit, logit
from evaluate.population import (
    SETS,
    SHIFTED,
    TIMM_FILES,
    Population,
    is_standard,
    read_population,
    shipped_population,
    write_population,
)
from evaluate.references import REFERENCES

ROOT = Path(__file__).resolve().parents[2]
STANDARD = ("deit_tiny_patch16_224.fb_in1k", "deit_base_patch16_224.fb_in1k", "deit3_base_patch16_224.fb_in1k")


def published(name: str) -> dict[str, float]:
    return dict(REFERENCES[f"timm:{name}"].top1)


def planted(slope: float, intercept: float, noise: float = 0.0, n: int = 200) -> Population:
    generator = np.random.default_rng(3)
    clean = generator.uniform(0.5, 0.85, n)
    shifted = expit(slope * logit(clean) + intercept + noise * generator.normal(size=n))
    top1 = {name: clean if name == "imagenet" else shifted for name in SETS}
    return Population(tuple(f"m{row}" for row in range(n)), top1, "planted")


def write_timm(root: Path, rows: list[tuple[str, int, dict[str, float]]]) -> Path:
    """timm's files, with columns that are not asked for, and a thousands separator as timm has it."""
    root.mkdir(parents=True, exist_ok=True)
    for dataset, file in TIMM_FILES.items():
        with open(root / file, "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["model", "img_size", "top1", "top1_err", "param_count", "crop_pct"])
            for name, size, values in rows:
                if dataset in values:
                    value = values[dataset]
                    writer.writerow([name, size, f"{value:.3f}", f"{100 - value:.3f}", "1,013.01", "0.900"])
    return root


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    rows = [(name, 224, published(name)) for name in STANDARD]
    rows.append((STANDARD[1], 384, dict.fromkeys(SETS, 99.0)))  # the same checkpoint at a higher resolution
    rows.append(("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 224, dict.fromkeys(SETS, 75.0)))
    rows.append(("resnet50.tv_in1k", 224, {"imagenet": 76.13, "imagenet-r": 36.2}))  # no IN-A, as timm has it
    return write_timm(tmp_path / "results", rows)


# ------------------------------------------------------------------------------------------------------ the line


def test_logit_and_expit() -> None:
    assert logit(0.9) == pytest.approx(np.log(9))
    assert expit(logit([0.001, 0.5, 0.98])) == pytest.approx([0.001, 0.5, 0.98])
    assert expit(-800.0) == 0 and expit(800.0) == 1  # no overflow


def test_a_planted_line_is_found() -> None:
    baseline = fit(planted(1.3, -0.7), "imagenet-r")
    assert (baseline.slope, baseline.intercept, baseline.r2) == pytest.approx((1.3, -0.7, 1.0))
    assert baseline.draws == pytest.approx(np.tile([1.3, -0.7], (1000, 1)))  # every resample lies on the same line


def test_a_planted_line_is_found_under_noise_and_its_resamples_say_how_well() -> None:
    baseline = fit(planted(1.3, -0.7, noise=0.2), "imagenet-r")
    spread = baseline.draws.std(axis=0)
    assert abs(baseline.slope - 1.3) < 3 * spread[0] and abs(baseline.intercept + 0.7) < 3 * spread[1]
    # least squares on 200 points of spread 0.2: the standard error of the slope is 0.2 / (sqrt(200) sd(x))
    expected = 0.2 / (np.sqrt(200) * logit(planted(1, 0).top1["imagenet"]).std())
    assert spread[0] == pytest.approx(expected, rel=0.25)
    assert 0.5 < baseline.r2 < 1


def test_a_model_on_the_line_gains_nothing_and_one_above_what_it_is_above() -> None:
    baseline = fit(planted(1.3, -0.7), "imagenet-r")
    expected = float(expit(1.3 * logit(0.8) - 0.7))
    on = effective(baseline, (0.8, (0.796, 0.804)), (expected, (expected - 0.01, expected + 0.01)))
    assert on and on.value == pytest.approx(0, abs=1e-12) and not on.beyond
    assert on.ci95 and on.ci95[0] < 0 < on.ci95[1]
    above = effective(baseline, (0.8, None), (expected + 0.05, None))
    assert above and above.value == pytest.approx(0.05) and above.ci95 is None


def test_the_interval_joins_both_accuracies_and_the_line() -> None:
    exact, noisy = fit(planted(1.3, -0.7), "imagenet-r"), fit(planted(1.3, -0.7, noise=1.0), "imagenet-r")

    def width(baseline: Baseline, clean: float, shifted: float) -> float:
        gain = effective(baseline, (0.8, (0.8 - clean, 0.8 + clean)), (0.7, (0.7 - shifted, 0.7 + shifted)))
        assert gain and gain.ci95
        return gain.ci95[1] - gain.ci95[0]

    assert width(exact, 0.0, 0.01) == pytest.approx(0.02, rel=0.1)  # its own interval, carried over
    p = float(expit(1.3 * logit(0.8) - 0.7))
    steep = 1.3 * p * (1 - p) / (0.8 * 0.2)  # the line's derivative at 80 %
    assert width(exact, 0.01, 0.0) == pytest.approx(0.02 * steep, rel=0.1)
    assert width(exact, 0.01, 0.01) == pytest.approx(0.02 * np.hypot(1, steep), rel=0.1)
    assert width(noisy, 0.0, 0.0) > 0.02 > width(exact, 0.0, 0.0) == pytest.approx(0, abs=1e-9)


def test_a_clean_accuracy_beyond_the_population_is_told() -> None:
    baseline = fit(planted(1.3, -0.7), "imagenet-r")
    gain = effective(baseline, (0.9, None), (0.8, None))
    assert gain and gain.beyond
    assert effective(baseline, (1.0, None), (0.8, None)) is None


def test_models_without_a_logit_or_an_accuracy_are_left_out_of_the_fit() -> None:
    population = planted(1.3, -0.7)
    shifted = population.top1["imagenet-a"].copy()
    shifted[:3], shifted[3:5] = 0.0, np.nan
    baseline = fit(Population(population.models, {**population.top1, "imagenet-a": shifted}, "x"), "imagenet-a")
    assert (baseline.models, baseline.left_out) == (195, 3)
    assert baseline.slope == pytest.approx(1.3)
    few = {**population.top1, "imagenet-a": np.where(np.arange(200) < 2, shifted[10:11], np.nan)}
    with pytest.raises(DataError, match="too few models with an accuracy on imagenet-a"):
        fit(Population(population.models, few, "x"), "imagenet-a")


def test_clip_lies_far_above_the_line_and_deit_near_it(tables: Path) -> None:
    """The published rows that this package knows: CLIP B/16 zero-shot has 68.34 on ImageNet and 77.70 on R."""
    baseline = fit(read_population(tables), "imagenet-r")
    clip = effective(baseline, (0.6834, None), (0.7770, None))
    deit = effective(baseline, (0.8198, None), (0.4491, None))
    assert clip and deit and clip.value > 0.4 and abs(deit.value) < 0.06


# ------------------------------------------------------------------------------------------------ the population


@pytest.mark.parametrize(
    ("name", "standard"),
    [
        ("deit_tiny_patch16_224.fb_in1k", True),
        ("resnet50.tv2_in1k", True),
        ("rdnet_large.nv_in1k_ft_in1k_384", True),
        ("convnextv2_base.fcmae_ft_in1k", True),  # self-supervised on the same images
        ("efficientvit_b1.r224_in1k", True),
        ("tf_efficientnet_b0.aa_in1k", True),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", False),
        ("convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384", False),
        ("tf_efficientnet_b7.ns_jft_in1k", False),
        ("resnext101_32x8d.fb_wsl_ig1b_ft_in1k", False),
        ("regnety_160.swag_ft_in1k", False),
        ("regnety_320.seer_ft_in1k", False),
        ("vit_so400m_patch14_siglip_378.webli_ft_in1k", False),
        ("eva02_large_patch14_448.mim_m38m_ft_in1k", False),
        ("hgnet_base.ssld_in1k", False),
        ("hrnet_w18_ssld.paddle_in1k", False),
        ("beitv2_base_patch16_224.in1k_ft_in1k", False),  # its tokenizer learned from CLIP
        ("resnetv2_50x1_bit.goog_distilled_in1k", False),
        ("tf_efficientnet_b0.ap_in1k", False),
        ("inception_v3.tf_adv_in1k", False),
        ("vit_base_patch16_224.dino", False),
        ("resnet50", False),
    ],
)
def test_which_models_are_standard(name: str, standard: bool) -> None:
    assert is_standard(name) == standard


def test_timms_tables_are_read_at_the_models_own_resolution(tables: Path) -> None:
    population = read_population(tables)
    assert population.models == tuple(sorted([*STANDARD, "resnet50.tv_in1k"]))
    for name in STANDARD:
        row = population.models.index(name)
        for dataset, value in published(name).items():
            assert 100 * population.top1[dataset][row] == pytest.approx(value, abs=0.05), (name, dataset)
    assert np.isnan(population.top1["imagenet-a"][population.models.index("resnet50.tv_in1k")])


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("population_script", ROOT / "scripts" / "population.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_what_reads_back(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "population.csv"
    assert script().main([str(tables), "--output", str(path), "--version", "2025-10-30"]) == 0
    assert "4 models" in capsys.readouterr().out
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and "Tables of 2025-10-30." in lines[3]
    assert lines[4] == "model,trained_on,imagenet,imagenet-v2,imagenet-real,imagenet-a,imagenet-r,imagenet-sketch"
    assert "deit_tiny_patch16_224.fb_in1k,imagenet-1k,72.19,59.92,80.03,7.21,32.71,20.14" in lines
    whole, again = read_population(tables), read_population(path)
    assert whole.models == again.models
    for name in SETS:
        assert again.top1[name] == pytest.approx(whole.top1[name], abs=1e-4, nan_ok=True)
    assert script().main([str(tmp_path / "nowhere")]) == 2
    assert "huggingface/pytorch-image-models" in capsys.readouterr().err


def test_a_population_trained_otherwise_is_no_baseline(tables: Path, tmp_path: Path) -> None:
    path = tmp_path / "population.csv"
    write_population(read_population(tables), path)
    path.write_text(path.read_text() + "mine,laion-2b,90,90,90,90,90,90\n")
    assert "mine" not in read_population(path).models


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model,imagenet\n", "has no column 'trained_on'"),
        ("{header}\nm,imagenet-1k,x,1,1,1,1,1\n", "'x' where m should have a number"),
        ("{header}\nm,imagenet-1k,172,1,1,1,1,1\n", "gives m 172.0, which is no percentage"),
        ("{header}\nm,imagenet-1k,72,1,1,1,1,1\n", "holds 1 standard models"),
    ],
)
def test_a_damaged_population_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "population.csv"
    path.write_text(content.format(header="model,trained_on,imagenet," + ",".join(SHIFTED)))
    with pytest.raises(DataError, match=message):
        read_population(path)


def test_the_shipped_population_is_that_of_the_references():
    population = shipped_population()
    assert len(population) == 7 and "deit_tiny_patch16_224.fb_in1k" in population.models
    row = population.models.index("deit_base_patch16_224.fb_in1k")
    assert [round(100 * population.top1[name][row], 2) for name in ("imagenet", "imagenet-r")] == [81.98, 44.91]
    assert 0.85 < fit(population, "imagenet-v2").slope < 1.15
