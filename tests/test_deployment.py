"""The deployment files promise ports, paths, users and times that the image and the server really have.

There is no Docker and no cluster here: what is checked is that the files agree with the code.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve import create_app
from serve.cli import ServeConfig
from serve.server import patience_s

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
KUBERNETES: dict[str, dict[str, Any]] = {
    document["kind"]: document
    for document in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8"))
}
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
COMMANDS = {"compose.yaml": COMPOSE["services"]["serve"]["command"], "kubernetes.yaml": CONTAINER["command"]}


def served(command: list[str]) -> ServeConfig:
    """What the server would run with."""
    assert command[:3] == ["python", "-m", "serve"]
    return tyro.cli(ServeConfig, args=command[3:])


def image_port() -> int:
    exposed = set(re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE))
    assert len(exposed) == 1
    return int(exposed.pop())


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_listen_where_the_image_says(name: str) -> None:
    config = served(COMMANDS[name])
    assert (config.host, config.port) == ("0.0.0.0", image_port())


def test_images_and_targets_exist() -> None:
    targets = set(re.findall(r"^FROM .* AS (\S+)$", DOCKERFILE, re.MULTILINE))
    for service in COMPOSE["services"].values():
        assert service["build"]["target"] in targets
        assert service["image"] == f"digpt:{service['build']['target']}"
    assert CONTAINER["image"].removeprefix("digpt:") in targets


def test_what_the_images_copy_is_let_in() -> None:
    let_in = [
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    ]
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    ]
    assert [name for name in copied if not any(fnmatch.fnmatch(name.split("/")[0], entry) for entry in let_in)] == []
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_compose_publishes_the_port_on_this_machine_only() -> None:
    for service in COMPOSE["services"].values():
        assert service["ports"] == [f"127.0.0.1:{image_port()}:{image_port()}"]


def test_probes_ask_what_the_server_answers() -> None:
    paths = create_app({"fake": Engine(FakeRuntime())}).openapi()["paths"]
    probes = {name: CONTAINER[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    asked = {name: probe["path"] for name, probe in probes.items()}
    assert asked == {
        "startupProbe": "/health/live",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }
    assert set(asked.values()) <= set(paths)
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert {ports[probe["port"]] for probe in probes.values()} == {image_port()}
    service = KUBERNETES["Service"]["spec"]["ports"][0]
    assert ports[service["targetPort"]] == image_port()


def test_requests_that_have_begun_are_answered_before_the_kill() -> None:
    config = served(CONTAINER["command"])
    wait = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] >= wait + patience_s(config)
    for service in COMPOSE["services"].values():
        seconds = int(service["stop_grace_period"].removesuffix("s"))
        assert seconds >= patience_s(config)


def test_the_pod_is_the_images_user_and_has_its_threads() -> None:
    users = set(re.findall(r"useradd .*--uid (\d+)", DOCKERFILE))
    assert {str(POD["securityContext"]["runAsUser"])} == users
    cpus = CONTAINER["resources"]["limits"]["cpu"]
    assert served(CONTAINER["command"]).threads == int(cpus)
    assert CONTAINER["resources"]["requests"]["cpu"] == cpus
    mounted = {mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert mounted == {volume["name"] for volume in POD["volumes"]}


def test_selectors_meet_the_pods() -> None:
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert KUBERNETES["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    assert KUBERNETES["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    scaled = KUBERNETES["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", KUBERNETES["Deployment"]["metadata"]["name"])
