"""Safe unless told otherwise: local, no foreign origins, careful headers, and nothing unpickled anywhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve.cli import ServeConfig
from serve.keys import Keys

ROOT = Path(__file__).resolve().parents[2]
UNPICKLERS = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
ORIGIN = {"Origin": "https://example.org"}


def unpickling(path: Path, source: str) -> Iterator[str]:
    """Every place where a file could unpickle what somebody else wrote."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if names == ["pickle"]:  # for the name of its error
            names = [] if isinstance(node, ast.Import) else [f"pickle.{alias.name}" for alias in node.names]
        if any(name.partition(".")[0] in UNPICKLERS for name in names):
            yield f"{path}:{node.lineno} imports {', '.join(names)}"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in ("torch.load", "np.load", "numpy.load"):
            name, safe = ("weights_only", "True") if called == "torch.load" else ("allow_pickle", "False")
            if given.get(name, "False" if name == "allow_pickle" else None) != safe:
                yield f"{path}:{node.lineno} {called} without {name}={safe}"
        elif called in ("pickle.load", "pickle.loads", "pickle.Unpickler") or called.endswith("read_pickle"):
            yield f"{path}:{node.lineno} {called}"


def test_nothing_is_unpickled() -> None:
    found = [
        line
        for package in ("digpt", "serve", "app", "export", "evaluate", "train")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in unpickling(path.relative_to(ROOT), path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(data)",
        "from pickle import load",
        "from joblib import load",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
    ],
)
def test_unpickling_is_found(source: str) -> None:
    assert list(unpickling(Path("x.py"), source))


def test_defaults() -> None:
    config = ServeConfig()
    assert config.host == "127.0.0.1"
    assert (config.cors_origin, config.allow_url_host, config.allow_http) == ((), (), False)
    assert (config.available, config.keys_file, config.open_demo, config.open_metrics) == ((), None, False, False)


def test_headers_of_every_answer(client: httpx.Client) -> None:
    for path in ("/health/live", "/nowhere", "/docs", "/models"):
        headers = client.get(path, headers=ORIGIN).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
    assert "server" not in client.get("/models").headers or "uvicorn" in client.get("/models").headers["server"]
    assert re.match("default-src 'none'", client.get("/docs").headers["content-security-policy"])


def test_origins_that_are_named(serving: Callable[..., Any]) -> None:
    client = serving(
        Engine(FakeRuntime(dim=8)), cors_origin=("https://example.org",), keys=Keys(["user-key-0123456789"])
    )
    asked = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
    preflight = client.options("/class-sets/x", headers={**ORIGIN, **asked})
    assert preflight.status_code == 200  # a browser shows no key before it is allowed to
    assert preflight.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    assert "access-control-allow-credentials" not in preflight.headers
    other = client.options("/class-sets/x", headers={**asked, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    refused = client.get("/models", headers=ORIGIN)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN["Origin"]  # so that the page can read why
