"""The same model behind two other servers, as their first pages show it: each request alone, nothing tuned.

    python -m benchmarks.serve.rivals litserve --model bundled --port 8001
    python -m benchmarks.serve.rivals naive --model bundled --port 8001

Both take ``{"images": [base64]}`` at ``/embed`` and answer ``{"embedding": [...]}``.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
import uvicorn
from fastapi import FastAPI, Request

from digpt.engine import Engine


@dataclass(frozen=True)
class Config:
    """Serve a model by another server."""

    server: Annotated[Literal["litserve", "naive"], tyro.conf.Positional]
    model: str = "bundled"
    """What serve takes."""
    backend: str | None = None
    """What serve takes."""
    port: int = 8001
    """On loopback."""


def naive(config: Config) -> None:
    """An ``async def`` endpoint that decodes and computes on the event loop."""
    app, engine = FastAPI(), Engine.load(config.model, config.backend)

    @app.post("/embed")
    async def embed(request: Request) -> dict[str, list[float]]:
        body = await request.json()
        crop = engine.decode(base64.b64decode(body["images"][0]))
        return {"embedding": engine.embed_images([crop])[0].tolist()}

    uvicorn.run(app, port=config.port, log_level="warning")


def litserve(config: Config) -> None:
    """LitServe with its defaults."""
    try:
        from benchmarks.serve import litserve_api
    except ImportError:
        raise SystemExit("LitServe is not installed: pip install 'digpt[bench]'.") from None
    litserve_api.run(config.model, config.backend, config.port)


if __name__ == "__main__":
    config = tyro.cli(Config)
    {"litserve": litserve, "naive": naive}[config.server](config)
