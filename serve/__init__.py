"""Serving: one engine behind HTTP.

    python -m serve --model bundled --port 8000

| file | what it is for |
|---|---|
| cli.py | the command line: load the models, mount the demo, run the server |
| server.py | uvicorn, and how it stops: what was accepted is answered |
| settings.py | the limits of a server |
| api.py | ``create_app(engines, settings)``: the FastAPI application |
| routes.py | the endpoints and what they say in the OpenAPI document |
| openai.py | OpenAI's shape of the same answers |
| classset_routes.py, registry.py | the endpoints of class sets; models that come and go |
| schemas.py, classset_schemas.py | what a request and an answer look like |
| body.py | a body as it arrives: how large, how late, how many at a time |
| inputs.py | JSON, multipart or one raw image -> the same request |
| limits.py | how much one request may ask for |
| images.py | base64, data URIs and bytes -> the model's crops, item by item |
| fetch.py, fetched.py | images by URL: what may be fetched; files in place of URLs |
| answers.py | a request -> decode, infer, answer |
| service.py | the models being served, and whether the server is stopping |
| admission.py | how much may wait for a model |
| batcher.py | one inference thread per model, batches across requests |
| watchdog.py | whether a model answers |
| observe.py | what every request leaves behind: an id, a log line, counts, a span |
| metrics.py | the counts and times at /metrics |
| logs.py | log lines as text or JSON, each under its request's id |
| tracing.py | spans for OpenTelemetry |
| classsets.py, classset_*.py | stored matrices of label embeddings |
| openai.py | the same answers in OpenAI's shape |
| registry.py | models loaded and unloaded while others answer |
| connection.py | a request from its acceptance to its answer |
| server.py | uvicorn, and how it stops |
| errors.py | every exception -> one status and one error schema |
| offline.py, offline_*.py | embedding in bulk into Parquet, without HTTP |
| ray.py | the same application on a Ray cluster |
| keys.py, security.py | Bearer keys; origins and careful headers |
| documents.py, examples.py | the OpenAPI document: errors, keys, examples |
| docs.py | the page at /docs, which needs no network |
"""

from serve.api import create_app
from serve.settings import Settings

__all__ = ["Settings", "create_app"]
