"""Serving: one engine behind HTTP.

    python -m serve --model bundled --port 8000

| file | what it is for |
|---|---|
| cli.py | the command line: load the models, mount the demo, run uvicorn |
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
| classsets.py | stored matrices of label embeddings |
| service.py | the models being served and whether they are ready |
| worker.py | one inference thread behind a bounded queue |
| errors.py | every exception -> one status and one error schema |
| keys.py, security.py | Bearer keys; origins and careful headers |
| documents.py, examples.py | the OpenAPI document: errors, keys, examples |
| docs.py | the page at /docs, which needs no network |
"""

from serve.api import create_app
from serve.settings import Settings

__all__ = ["Settings", "create_app"]
