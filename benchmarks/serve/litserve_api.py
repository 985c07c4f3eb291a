"""The model as LitServe wants it.

LitServe reads annotations while it runs, so they are not postponed here.
"""

import base64
from typing import Any

import litserve as ls
import numpy as np

from digpt.engine import Engine


class Embedding(ls.LitAPI):
    """What LitServe's processes are given a copy of."""

    model: str
    backend: str | None

    def setup(self, device: str) -> None:
        self.engine = Engine.load(self.model, self.backend)

    def decode_request(self, request: dict[str, Any], **_: Any) -> np.ndarray:
        return self.engine.decode(base64.b64decode(request["images"][0]))

    def predict(self, x: np.ndarray, **_: Any) -> np.ndarray:
        return self.engine.embed_images([x])[0]

    def encode_response(self, output: np.ndarray, **_: Any) -> dict[str, list[float]]:
        return {"embedding": output.tolist()}


def run(model: str, backend: str | None, port: int) -> None:
    """Serve with LitServe's defaults."""
    api = Embedding(api_path="/embed")
    api.model, api.backend = model, backend
    server = ls.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
