"""Examples for the OpenAPI document: an answer of every endpoint, and an error of every status.

Those of requests stand beside their schemas. Tests hold all of them against the document and against real answers.
"""

from __future__ import annotations

from typing import Any

FINGERPRINT = "sha256:" + "3f" * 32
CONTENT = "sha256:" + "a7" * 32
TIMINGS = {"decode": 1.9, "queue": 0.1, "inference": 6.2, "total": 8.4}
SAYS = {"model": "emoji-tiny", "fingerprint": FINGERPRINT}
CARD: dict[str, Any] = {
    "id": "emoji-tiny",
    "object": "model",
    "state": "ready",
    "detail": "16 golden embeddings reproduced",
    "fingerprint": FINGERPRINT,
    "backend": "torch",
    "precision": "fp32",
    "engine": None,
    "providers": ["cpu"],
    "dim": 192,
    "preprocess": {"size": 64, "resize": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "has_text": True,
    "has_head": False,
    "head": None,
    "segment_crop": None,
    "templates": ["a photo of a {}"],
    "logit_scale": 20.1,
    "logit_bias": None,
    "abstain": None,
    "num_labels": 2,
    "limits": {"max_request_bytes": 67108864, "max_items": 256, "max_scores": 65536, "max_text_chars": 2000},
    "labels": None,
}
ABSENT = {"id": "photos", "object": "model", "state": "unloaded", "detail": "an administrator may load it"}
CLASS_SET = {
    "id": "fruit",
    "object": "class_set",
    "model": "emoji-tiny",
    "fingerprint": FINGERPRINT,
    "content_hash": CONTENT,
    "num_labels": 2,
    "templates": ["a photo of a {}"],
}
OPENAI_MODEL = {"id": "emoji-tiny", "object": "model", "created": 1767225600, "owned_by": "digpt"}

METRICS = """# HELP digpt_images_total Computed images.
# TYPE digpt_images_total counter
digpt_images_total{model="emoji-tiny"} 5.0
"""
ANSWERS: dict[tuple[str, str], Any] = {
    ("get", "/metrics"): METRICS,
    ("post", "/embed"): {
        **SAYS,
        "dim": 3,
        "data": [
            {"index": 0, "type": "image", "embedding": [0.6, -0.8, 0.0]},
            {"index": 1, "type": "text", "embedding": [0.0, 0.6, 0.8]},
        ],
        "usage": {"images": 1, "texts": 1},
        "timings_ms": TIMINGS,
    },
    ("post", "/classify"): {
        **SAYS,
        "data": [
            {"index": 0, "predictions": [{"label": "red apple", "score": 0.93}, {"label": "dog face", "score": 0.07}]}
        ],
        "usage": {"images": 1, "texts": 2},
        "timings_ms": TIMINGS,
    },
    ("post", "/v1/embeddings"): {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.6, -0.8, 0.0]}],
        "model": "emoji-tiny",
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    },
    ("get", "/v1/models"): {"object": "list", "data": [OPENAI_MODEL]},
    ("get", "/v1/models/{name}"): OPENAI_MODEL,
    ("put", "/class-sets/{name}"): {**CLASS_SET, "status": "created"},
    ("get", "/class-sets"): {"object": "list", "data": [CLASS_SET]},
    ("get", "/class-sets/{name}"): {**CLASS_SET, "labels": ["red apple", "green apple"]},
    ("delete", "/class-sets/{name}"): {"id": "fruit", "object": "class_set", "deleted": True},
    ("post", "/models/{name}/load"): {**ABSENT, "state": "loading", "detail": "it is being loaded and checked"},
    ("post", "/models/{name}/unload"): {**ABSENT, "state": "unloading", "detail": "it finishes what it was asked"},
    ("get", "/models"): {"object": "list", "data": [CARD], "available": [ABSENT]},
    ("get", "/models/{name}"): {**CARD, "labels": ["red apple", "dog face"]},
    ("get", "/health/live"): {"status": "live"},
    ("get", "/health/ready"): {"status": "ready", "models": {"emoji-tiny": "16 golden embeddings reproduced"}},
}


def _error(message: str, code: str, param: str | None = None, index: int | None = None) -> dict[str, Any]:
    kind = "invalid_request_error"
    if code in ("not_ready", "deadline_exceeded"):
        kind = "server_error"
    elif code == "queue_full":
        kind = "rate_limit_error"
    return {"message": message, "type": kind, "param": param, "code": code, "index": index}


ERRORS: dict[int, dict[str, Any]] = {
    400: _error("The body is not JSON: EOF while parsing a list at line 1 column 12.", "unparsable_body"),
    401: _error("This server does not know that key.", "invalid_api_key"),
    403: _error("This takes an administrator's key.", "admin_key_required"),
    404: _error("There is no model 'clip' here; there is emoji-tiny.", "model_not_found", "model"),
    409: _error("There are 100 class sets already, as many as are allowed; delete one.", "conflict"),
    413: _error(
        "The image has 50,000 x 50,000 pixels; at most 50,000,000 are accepted. Scale it down.",
        "image_too_large",
        "images",
        0,
    ),
    415: _error(
        "Not an image of a supported format; send PNG, JPEG, WebP, GIF, BMP or TIFF.",
        "unsupported_image_format",
        "images",
        0,
    ),
    422: _error("labels: List should have at least 1 item after validation, not 0.", "invalid_request", "labels"),
    429: _error("Too much is waiting for this model already; try again later.", "queue_full"),
    503: _error("Model 'emoji-tiny' is not ready: its backend is being checked.", "not_ready", "model"),
    504: _error("No answer within 30 seconds; send fewer images at a time, or try later.", "deadline_exceeded"),
}
