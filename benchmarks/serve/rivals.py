"""The same model behind two other servers, as their first pages show it: each request alone, nothing tuned.

    python -m benchmarks.serve.rivals litserve --model bundled --port 8001
    python -m benchmarks.serve.rivals naive --model bundled --port 8001

Both take ``{"images": [base64]}`` at ``/embed`` and answer ``{"embedding": [...]}``.
LitServe reads annotations while it runs, so they are not postponed here.
"""

import base64
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import litserve as ls
import numpy as np
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


class Embedding(ls.LitAPI):
    """The model as LitServe wants it; its processes are given a copy of this object."""

    config: Config

    def setup(self, device: str) -> None:
        self.engine = Engine.load(self.config.model, self.config.backend)

    def decode_request(self, request: dict[str, Any], **_: Any) -> np.ndarray:
        return self.engine.decode(base64.b64decode(request["images"][0]))

    def predict(self, x: np.ndarray, **_: Any) -> np.ndarray:
        return self.engine.embed_images([x])[0]

    def encode_response(self, output: np.ndarray, **_: Any) -> dict[str, list[float]]:
        return {"embedding": output.tolist()}


def litserve(config: Config) -> None:
    """LitServe with its defaults."""
    api = Embedding(api_path="/embed")
    api.config = config
    server = ls.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=config.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    config = tyro.cli(Config)
    {"litserve": litserve, "naive": naive}[config.server](config)
