"""The bundled model: its lineage is complete in the package, and timm itself can load its encoder."""

from __future__ import annotations

import timm
import torch

from digpt.artifact import read_checkpoint
from digpt.sources import BUNDLED, BUNDLED_FILES, load_model

LIMIT = 25_000_000  # bytes, all files together
RECORDS = ("README.md", "results.json", "exhibits.json", "passport.html")


def parents(provenance: dict) -> dict[str, dict]:
    return {parent["role"]: parent for parent in provenance["parents"]}


def test_every_parent_is_bundled_under_its_recorded_fingerprint() -> None:
    model, teacher, early = (load_model(spec) for spec in BUNDLED_FILES)
    of_model = parents(model.provenance)
    assert model.provenance["command"] == "python -m train.zeroshot"
    assert of_model["teacher"]["fingerprint"] == teacher.fingerprint
    assert of_model["encoder"]["command"] == "python -m train.pretrain"
    assert parents(of_model["encoder"])["teacher"]["fingerprint"] == early.fingerprint
    assert teacher.provenance["command"] == early.provenance["command"] == "python -m train.teacher"


def test_the_text_tower_is_the_teachers() -> None:
    model, teacher = (read_checkpoint(BUNDLED / BUNDLED_FILES[spec]) for spec in ("bundled", "bundled-teacher"))
    assert model.weights["text"].keys() == teacher.weights["text"].keys()
    assert all(torch.equal(tensor, teacher.weights["text"][name]) for name, tensor in model.weights["text"].items())


def test_timm_loads_the_encoder_strictly_and_gives_the_same_features() -> None:
    checkpoint = read_checkpoint(BUNDLED / "ckpt.pt")
    ours = load_model("bundled")
    theirs = timm.create_model(**checkpoint.config["encoder"]).eval()
    theirs.load_state_dict(checkpoint.weights["encoder"], strict=True)
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    preprocess = checkpoint.config["preprocess"]
    mean, std = (torch.tensor(preprocess[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        features = theirs((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
        torch.testing.assert_close(ours.module.projection(features), ours.module(pixels), atol=1e-5, rtol=1e-5)


def test_the_files_stay_small() -> None:
    assert sum((BUNDLED / name).stat().st_size for name in BUNDLED_FILES.values()) <= LIMIT
    assert {path.name for path in BUNDLED.iterdir()} == {*BUNDLED_FILES.values(), *RECORDS}
