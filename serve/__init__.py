"""Serving: one engine behind HTTP.

    python -m serve --model bundled --port 8000

| file | what it is for |
|---|---|
| cli.py | the command line: load the models, mount the demo, run the server |
| server.py | uvicorn, and how it stops: what was accepted is answered |
| settings.py | the limits of a server |
| api.py | ``create_app(engines, settings)``: the FastAPI application |
| routes.py | the endpoints and what they say in the OpenAPI document |
| schemas.py | what a request and an answer look like |
| body.py | a body as it arrives: how large, how late, how many at a time |
| inputs.py | JSON, multipart or one raw image -> the same request |
| limits.py | how much one request may ask for |
| images.py | base64, data URIs and bytes -> the model's crops, item by item |
| answers.py | a request -> decode, infer, answer |
| service.py | the models being served, and whether the server is stopping |
| admission.py | how much may wait for a model |
| batcher.py | one inference thread per model, batches across requests |
| watchdog.py | whether a model answers |
| observe.py | what every request leaves behind: an id, a log line, counts, a span |
| metrics.py | the counts and times at /metrics |
| logs.py | log lines as text or JSON, each under its request's id |
| tracing.py | spans for OpenTelemetry |
| errors.py | every exception -> one status and one error schema |
| offline.py, offline_*.py | embedding in bulk into Parquet, without HTTP |
| ray.py | the same application on a Ray cluster |
| docs.py | the page at /docs, which needs no network |
"""

from serve.api import create_app
from serve.settings import Settings

__all__ = ["Settings", "create_app"]
