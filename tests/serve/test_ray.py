"""The options of the Ray door; `test_doors.py` asks a real Ray."""

from __future__ import annotations

import pytest

from digpt.errors import ConfigError
from serve.offline import OfflineConfig
from serve.offline_ray import gpus_each
from serve.ray import app

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on .Field.:DeprecationWarning"
)  # Ray's own


def test_ray_serve_is_told_the_limits_of_the_server() -> None:
    deployment = app({"model": "a=bundled,b=bundled-teacher", "replicas": "2", "deadline_s": "7", "cpus": "0.5"})
    options = deployment._bound_deployment
    assert options.ray_actor_options is not None
    assert (options.name, options.num_replicas, options.max_ongoing_requests) == ("digpt", 2, 1000)
    assert options.ray_actor_options["num_cpus"] == 0.5
    assert options._deployment_config.graceful_shutdown_timeout_s == 7 + 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replica": "2"}, "Unknown option 'replica'.*Did you mean 'replicas'"),
        ({"replicas": "many"}, "replicas: Input should be a valid integer"),
        ({"replicas": "0"}, "replicas=0 must be above zero"),
        ({"demo": "true"}, "serve it with python -m serve"),
    ],
)
def test_wrong_options_are_named(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        app(given)


def test_processes_ask_for_a_gpu_where_there_is_one_for_each() -> None:
    config = OfflineConfig("in", "out.parquet", ray=2)  # type: ignore[arg-type]
    assert gpus_each(config, {"CPU": 8, "GPU": 2}) == 1
    assert gpus_each(config, {"CPU": 8, "GPU": 1}) == gpus_each(config, {"CPU": 8}) == 0
    cpu = OfflineConfig("in", "out.parquet", ray=2, device="cpu")  # type: ignore[arg-type]
    assert gpus_each(cpu, {"GPU": 2}) == 0
