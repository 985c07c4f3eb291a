"""Log lines for people (text) or machines (JSON, one object per line), each under the id of its request.

>>> configure("json")
>>> logging.getLogger("serve").warning("hello")
{"time": "2025-01-01T12:00:00.000Z", "level": "warning", "logger": "serve", "message": "hello"}
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PLAIN = re.compile(r"[A-Za-z0-9._:/{}-]+")
FIELDS = "fields"  # the attribute of a log record that holds what a JSON line says beside its message
request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request being answered; never reset, since servers log after the application has returned, in its task."""


def choose_id(given: bytes | None) -> str:
    """Keep a client's id if it is at most 64 letters, digits, dots, dashes and underscores; else make one."""
    text = "" if given is None else given.decode("latin-1")
    return text if SAFE_ID.fullmatch(text) else uuid.uuid4().hex


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time (UTC), level, logger, message, then request id, fields and traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identity := request_id.get():
            line["request_id"] = identity
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A record as ``LEVEL logger: message key=value ...``; line breaks in what clients sent are spelled out."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        identity = request_id.get()
        fields = {**({"request_id": identity} if identity else {}), **getattr(record, FIELDS, {})}
        said = "".join(f" {name}={_shown(value)}" for name, value in fields.items())
        traceback = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{record.levelname} {record.name}: {message}{said}{traceback}"


def configure(log_format: LogFormat) -> None:
    """Send every logger's lines, the HTTP server's among them, to stderr in one format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text if PLAIN.fullmatch(text) or not isinstance(value, str) else json.dumps(text)
