"""An exported ONNX artifact over HTTP answers what the model it was made of answers."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from digpt.artifact import write_checkpoint
from digpt.engine import Engine
from digpt.manifest import engine_hash, read_manifest
from digpt.testing import tiny_checkpoint
from export.__main__ import main

LABELS = ["red apple", "dog", "house"]


def test_onnx_over_http_equals_torch(serving: Callable[..., Any], tmp_path: Path, image: Callable[..., bytes]) -> None:
    checkpoint, artifact = str(tmp_path / "tiny.pt"), str(tmp_path / "artifact")
    write_checkpoint(Path(checkpoint), tiny_checkpoint(encoder={"depth": 1}))
    assert main([checkpoint, "--to", "onnx", "--output", artifact, "--parity-images", "40", "--threads", "1"]) == 0
    torch, onnx = Engine.load(checkpoint, threads=1), Engine.load(artifact, threads=1)
    assert (torch.info.backend, onnx.info.backend) == ("torch", "onnx")
    client = serving({"onnx": onnx})
    card = client.get("/models/onnx").json()
    assert card["engine"] == engine_hash(read_manifest(artifact), "onnx") and len(card["engine"]) == 71
    files = [image(1), image(2, "JPEG", (33, 47))]
    request = {"images": [base64.b64encode(data).decode() for data in files]}
    crops = [torch.decode(data) for data in files]
    embedded = client.post("/embed", json={**request, "texts": LABELS}).json()["data"]
    expected = np.concatenate([torch.embed_images(crops), torch.embed_texts(LABELS)])
    np.testing.assert_allclose([item["embedding"] for item in embedded], expected, atol=1e-4)
    classified = client.post("/classify", json={**request, "labels": LABELS}).json()["data"]
    for item, best in zip(classified, torch.classify(crops, LABELS), strict=True):
        scores = {given["label"]: given["score"] for given in item["predictions"]}
        np.testing.assert_allclose([scores[p.label] for p in best], [p.score for p in best], atol=1e-4)
