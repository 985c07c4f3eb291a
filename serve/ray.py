"""Serving on a Ray cluster: replicas of the same FastAPI application, each with its own engine and queue inside.

    python -m serve.ray --model bundled --replicas 2 --port 8000
    serve run serve.ray:app model=bundled replicas=2

The cluster is the one that RAY_ADDRESS names, or one that is started on this machine.

The second is Ray's own command, for its config files and `serve build`; whatever is an option of the first may be given
to it as `name=value`. Ray spreads requests over the replicas and restarts those that die; limits, batching, errors and
`/health/ready` are those of `python -m serve`, for each replica. The demo stays out: its sessions live in one process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError

from digpt.cli import Command
from digpt.errors import BackendError, ConfigError, MissingDependencyError, near_misses
from digpt.runtime import absolute_spec
from serve.api import create_app
from serve.cli import GROUPS, STOPPED, ServeConfig, load_engines, split_model
from serve.keys import Keys
from serve.process import settle, spin_briefly
from serve.server import patience_s
from serve.tracing import otlp
from serve.watchdog import prove

if TYPE_CHECKING:
    from ray.serve import Application

COMMAND = Command("serve.ray", __doc__, GROUPS, after=STOPPED)
NAME = "digpt"  # of the application in Ray's status


@dataclass(frozen=True)
class RayConfig(ServeConfig):
    """Options of the server and its replicas."""

    demo: Annotated[bool, tyro.conf.Suppress] = False
    replicas: int = 1
    """Processes that each hold the models and answer requests."""
    cpus: float = 1.0
    """CPUs that Ray reserves for a replica."""
    gpus: float | None = None
    """GPUs that Ray reserves for a replica, by default none; a half lets two share one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.demo:
            raise ConfigError("The demo keeps its sessions in one process; serve it with python -m serve.")
        if self.available:
            raise ConfigError("--available loads into one process; serve such models with python -m serve.")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; return the exit code."""
    return COMMAND.run(RayConfig, argv, _serve)


def _serve(config: RayConfig) -> int:
    try:
        start(config)
    except RuntimeError as error:  # how Ray says that an application failed; the reason stays in the replica's log
        raise BackendError(f"{error} Does python -m serve start with the same models?") from error
    print(f"{config.replicas} replicas; API http://{config.host}:{config.port}/docs", flush=True)
    import ray
    from ray import serve

    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()
    serve.shutdown()  # replicas answer what they have begun
    ray.shutdown()
    return 0


def start(config: RayConfig) -> None:
    """Run the application on the cluster and return when its replicas have proved their models.

    Raises:
        MissingDependencyError: Ray is not installed.
        RuntimeError: the replicas do not start; the message holds their error.
    """
    application = bound(config)
    import ray
    from ray import serve

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": config.host, "port": config.port})
    serve.run(application, name=NAME)


def app(args: Mapping[str, Any]) -> Application:
    """The application for Ray's own commands, from strings: ``serve run serve.ray:app model=bundled replicas=2``.

    Raises:
        ConfigError: a name or value that is no option of ``python -m serve.ray``.
    """
    known = [field.name for field in fields(RayConfig)]
    for name in args:
        if name not in known:
            raise ConfigError(f"Unknown option {name!r}; valid: {', '.join(known)}.{near_misses(name, known)}")
    values = dict(args)
    if isinstance(values.get("model"), str):
        values["model"] = values["model"].split(",")
    try:
        return bound(TypeAdapter(RayConfig).validate_python(values))
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"{fault['loc'][0]}: {fault['msg']}.") from None


def bound(config: RayConfig) -> Application:
    """The deployment of ``config``: Ray calls `replica` on whatever machine a replica starts.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    try:
        from ray import serve
    except ImportError:
        raise MissingDependencyError("Serving on Ray needs Ray: pip install 'digpt[ray]'.") from None

    keys = Keys.read(os.environ, config.keys_file)  # here: machines of the cluster have neither the file nor these
    config = for_any_folder(config)

    def build() -> FastAPI:
        return replica(config, keys)

    deployment = serve.deployment(
        name=NAME,
        num_replicas=config.replicas,
        max_ongoing_requests=config.max_connections,  # what waits, waits in our queue, which knows pixels and deadlines
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus or 0},
        graceful_shutdown_timeout_s=patience_s(config),
    )
    application: Application = deployment(serve.ingress(build)()).bind()
    return application


def for_any_folder(config: RayConfig) -> RayConfig:
    """The same for replicas, which start in folders of their own."""
    models = [split_model(argument) for argument in config.model]
    return replace(
        config,
        model=tuple(f"{name}={absolute_spec(spec)}" if name else absolute_spec(spec) for name, spec in models),
        class_sets_dir=config.class_sets_dir and config.class_sets_dir.absolute(),
    )


def replica(config: RayConfig, keys: Keys | None = None) -> FastAPI:
    """One replica's application, once its models have proved themselves: before that, Ray sends it nothing.

    Raises:
        DigptError: a model cannot be loaded, or does not reproduce its golden embeddings; Ray's status shows it.
    """
    spin_briefly()
    engines = load_engines(config)
    for engine in engines.values():
        prove(engine)
    tracing = otlp(config.otlp_endpoint) if config.otlp_endpoint else None
    app = create_app(engines, config, keys=keys, tracing=tracing)
    settle()
    return app


if __name__ == "__main__":
    sys.exit(main())
