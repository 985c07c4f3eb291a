"""One engine behind every door: HTTP, the demo, bulk embedding and Ray give the same bits at equal batch shapes."""

from __future__ import annotations

import base64
import io
import json
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from app import handlers
from digpt.artifact import write_checkpoint
from digpt.engine import Engine
from digpt.testing import tiny_checkpoint
from serve.offline import OfflineConfig, embed, main

PICTURES = 3
TOLERANCE = 1e-5  # float32, at differing batch shapes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "ckpt.pt"
    write_checkpoint(path, tiny_checkpoint())
    return str(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, image: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        (folder / f"{number}.jpg").write_bytes(image(number, "JPEG"))
    return folder


@pytest.fixture(scope="module")
def expected(model: str, pictures: Path) -> np.ndarray:
    """The engine's own answer to all of them in one batch."""
    engine = Engine.load(model, threads=1)
    crops = [engine.decode(path.read_bytes()) for path in sorted(pictures.iterdir())]
    return engine.embed_images(crops)


def over_http(client: httpx.Client, pictures: Path) -> np.ndarray:
    """All pictures in one request, so in one batch."""
    files = [base64.b64encode(path.read_bytes()).decode() for path in sorted(pictures.iterdir())]
    answer = client.post("/embed", json={"images": files, "encoding_format": "base64"}).json()
    return np.stack([np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]])


def rows_of(output: Path) -> np.ndarray:
    return np.array(pq.read_table(output)["embedding"].to_pylist(), np.float32)


def test_http_demo_and_bulk(
    model: str, pictures: Path, expected: np.ndarray, serving: Callable[..., httpx.Client], tmp_path: Path
) -> None:
    engine = Engine.load(model, threads=1)
    np.testing.assert_array_equal(over_http(serving(engine), pictures), expected)

    config = OfflineConfig(str(pictures), tmp_path / "out.parquet", model=model, threads=1, device="cpu")
    embed(config)
    np.testing.assert_array_equal(rows_of(config.output), expected)
    one_by_one = OfflineConfig(
        str(pictures), tmp_path / "one.parquet", model=model, threads=1, device="cpu", batch_size=1
    )
    embed(one_by_one)
    np.testing.assert_allclose(rows_of(one_by_one.output), expected, rtol=0, atol=TOLERANCE)

    engine = Engine.load(model, threads=1)  # the server closed its own
    first, second = sorted(pictures.iterdir())[:2]
    np.testing.assert_array_equal(handlers.crop(engine, str(first)), engine.decode(first.read_bytes()))
    cosine = dict(handlers.similarity(engine, str(first), str(second), ""))["first picture and second picture"]
    assert cosine == pytest.approx(float(expected[0] @ expected[1]), abs=TOLERANCE)


def what_fails_in_the_cluster_is_one_line(model: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "one.jpg").write_bytes((pictures / "0.jpg").read_bytes())
    given = [str(pictures), str(tmp_path / "failed.parquet"), "--model", model, "--threads", "1", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patched, redirect_stderr(io.StringIO()) as told:
        patched.setattr("serve.offline.for_any_folder", lambda one: replace(one, input=str(tmp_path / "others")))
        assert main([*given, "--ray", "1"]) == 2
    (line,) = [line for line in told.getvalue().splitlines() if "error" in line]
    assert line.startswith("error: A process of the Ray cluster sees another input or model")
    assert "Traceback" not in told.getvalue()


@pytest.fixture
def ray_here() -> Iterator[None]:
    """A Ray of two CPUs on this machine, taken down again."""
    with warnings.catch_warnings():
        # Ray's own: deprecated calls within it, and sockets and processes that it leaves to the collector.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.timeout(600)
def test_ray(model: str, pictures: Path, expected: np.ndarray, ray_here: None, tmp_path: Path, free_port: int) -> None:
    config = OfflineConfig(str(pictures), tmp_path / "out.parquet", model=model, threads=1, device="cpu", ray=1)
    embed(config)
    np.testing.assert_array_equal(rows_of(config.output), expected)
    alone = OfflineConfig(str(pictures), tmp_path / "alone.parquet", model=model, threads=1, device="cpu")
    embed(alone)
    assert config.output.read_bytes() == alone.output.read_bytes()
    what_fails_in_the_cluster_is_one_line(model, pictures, tmp_path)

    from ray import serve as ray_serve

    from serve.ray import RayConfig, start

    start(RayConfig(model=(f"tiny={model}",), threads=1, port=free_port))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{free_port}", timeout=60, trust_env=False) as client:
            assert client.get("/health/ready").json()["status"] == "ready"  # the lifespan ran, the model is proved
            np.testing.assert_array_equal(over_http(client, pictures), expected)
            refused = client.post("/embed", json={"images": ["%"]})
            assert refused.status_code == 422
            assert refused.json()["error"]["param"] == "images"
            assert json.loads(client.get("/models").text)["data"]
    finally:
        ray_serve.shutdown()
