"""The options of the Ray door; `test_doors.py` asks a real Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import serve.offline
import serve.ray
from digpt.embeddings_file import About
from digpt.engine import Engine
from digpt.errors import ConfigError
from digpt.runtime.fake import FakeRuntime
from serve.keys import Keys
from serve.offline import OfflineConfig
from serve.offline_inputs import absolute_input
from serve.offline_parts import Job, Parts
from serve.offline_ray import EmbedParts, gpus_each
from serve.ray import RayConfig, app, replica

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on .Field.:DeprecationWarning"
)  # Ray's own


def test_what_fails_in_a_process_of_the_cluster_is_answered_as_a_sentence(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    config = OfflineConfig(str(tmp_path), tmp_path / "out.parquet", model="absent.pt", ray=1)
    info = FakeRuntime().info
    job = Job.of(info, "sha256:listing", 1, 1, 1)
    answer = EmbedParts(config, Parts(config.output, job, About.of(info, job.digest)))({"part": np.array([0])})
    assert (answer["part"], answer["seconds"]) == ([0], [0.0])
    assert "absent.pt" in answer["error"][0] and "\n" not in answer["error"][0]


def test_ray_serve_is_told_the_limits_of_the_server() -> None:
    deployment = app({"model": "a=bundled,b=bundled-teacher", "replicas": "2", "deadline_s": "7", "cpus": "0.5"})
    options = deployment._bound_deployment
    assert options.ray_actor_options is not None
    assert (options.name, options.num_replicas, options.max_ongoing_requests) == ("digpt", 2, 1000)
    assert options.ray_actor_options["num_cpus"] == 0.5
    assert options._deployment_config.graceful_shutdown_timeout_s == 30 + 7 + 5 + 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replica": "2"}, "Unknown option 'replica'.*Did you mean 'replicas'"),
        ({"replicas": "many"}, "replicas: Input should be a valid integer"),
        ({"replicas": "0"}, "replicas=0 must be above zero"),
        ({"demo": "true"}, "serve it with python -m serve"),
        ({"available": ["a=bundled"]}, "--available loads into one process"),
        ({"keys_file": "absent"}, "The keys file absent cannot be read"),
    ],
)
def test_wrong_options_are_named(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        app(given)


def test_replicas_ask_for_the_keys_of_the_machine_that_started_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.ray.load_engines", lambda _: {"fake": Engine(FakeRuntime())})
    keys = Keys(["user-key-0123456789"])
    with TestClient(replica(RayConfig(), keys)) as client:
        assert client.post("/embed", json={"texts": ["x"]}).status_code == 401
        assert client.get("/metrics").status_code == 401


def test_replicas_find_models_from_their_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/ckpt.pt").touch()
    given = ("runs", "a=runs/ckpt.pt", "bundled", "b=timm:vit_tiny", "c=absent.pt")
    config = serve.ray.for_any_folder(RayConfig(model=given, class_sets_dir=Path("sets")))
    here = f"{tmp_path}/runs"
    assert config.model == (here, f"a={here}/ckpt.pt", "bundled", "b=timm:vit_tiny", "c=absent.pt")
    assert config.class_sets_dir == tmp_path / "sets"
    assert serve.ray.for_any_folder(RayConfig()).class_sets_dir is None


def test_bulk_processes_find_input_output_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    config = serve.offline.for_any_folder(OfflineConfig("parquet:images", Path("out.parquet"), model="runs", ray=2))
    assert (config.input, config.output) == (f"parquet:{tmp_path}/images", tmp_path / "out.parquet")
    assert config.model == f"{tmp_path}/runs"
    for given, found in (
        ("images", f"{tmp_path}/images"),
        ("a/{0..9}.tar::/b/*.tar", f"{tmp_path}/a/{{0..9}}.tar::/b/*.tar"),
        ("wds:a/{0..9}.tar::b", f"wds:{tmp_path}/a/{{0..9}}.tar::{tmp_path}/b"),
    ):
        assert absolute_input(given) == found


def test_processes_ask_for_a_gpu_where_there_is_one_for_each() -> None:
    config = OfflineConfig("in", "out.parquet", ray=2)  # type: ignore[arg-type]
    assert gpus_each(config, {"CPU": 8, "GPU": 2}) == 1
    assert gpus_each(config, {"CPU": 8}) == 0
    with pytest.raises(ConfigError, match="has 1 GPUs for --ray 2.*give --ray 1, or --device cpu"):
        gpus_each(config, {"CPU": 8, "GPU": 1})
    cpu = OfflineConfig("in", "out.parquet", ray=2, device="cpu")  # type: ignore[arg-type]
    assert gpus_each(cpu, {"GPU": 2}) == 0
