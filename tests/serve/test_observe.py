"""Request ids, log lines in both formats, and what never gets into them; spans, by the SDK's in-memory exporter."""

from __future__ import annotations

import base64
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import benchmarks.observe
import serve.cli
import serve.server
from digpt.engine import Engine
from digpt.errors import ConfigError, MissingDependencyError
from digpt.runtime.fake import FakeRuntime
from serve import Settings, create_app
from serve.logs import JsonFormatter, TextFormatter, choose_id, request_id
from serve.observe import observation
from serve.tracing import Tracing, otlp
from tests.docs.pages import to_run

Image = Callable[..., bytes]
Serving = Callable[[FastAPI], AbstractContextManager[Any]]
ROOT = Path(__file__).resolve().parents[2]
SECRET = "sk-very-secret"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Lines(logging.Handler):
    """Keeps what a formatter makes of the records, formatted where they are logged, as a stream's handler would."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def of(self, path: str) -> dict[str, Any]:
        """The one line of a request to ``path``; it is written after the answer."""
        end = time.monotonic() + 10
        while not (found := [line for line in self.json() if line.get("path") == path]):
            assert time.monotonic() < end, f"no line of {path}"
            time.sleep(0.005)
        assert len(found) == 1
        return found[0]


@pytest.fixture
def capture() -> Iterator[Callable[[logging.Formatter], Lines]]:
    """Capture what all loggers say from INFO on."""
    root, handlers, level = logging.getLogger(), [], logging.getLogger().level
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the client's own lines

    def start(formatter: logging.Formatter) -> Lines:
        handlers.append(Lines(formatter))
        root.addHandler(handlers[-1])
        root.setLevel(logging.INFO)
        return handlers[-1]

    yield start
    root.setLevel(level)
    for handler in handlers:
        root.removeHandler(handler)


@pytest.fixture
def lines(capture: Callable[[logging.Formatter], Lines]) -> Lines:
    return capture(JsonFormatter())


def body(image: bytes, **more: Any) -> dict[str, Any]:
    return {"images": [base64.b64encode(image).decode()], **more}


@pytest.mark.parametrize("given", ["abc", "A.b-c_9", "0" * 64, "0f8fad5b-d9cb-469f-a165-70867728950e"])
def test_safe_ids_are_kept(client: httpx.Client, given: str) -> None:
    assert client.get("/health/live", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", 'a"b', "0" * 65, "-x", "a\tb", "é".encode("latin-1"), None])
def test_other_ids_are_replaced(client: httpx.Client, given: str | bytes | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    made = {client.get("/health/live", headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", identity) for identity in made)
    assert choose_id(b"a\nb") != "a\nb"


def test_errors_carry_the_id_too(client: httpx.Client) -> None:
    for path, status in (("/nope", 404), ("/embed", 405), ("/models/nope", 404)):
        answer = client.get(path, headers={"X-Request-ID": "mine"})
        assert (answer.status_code, answer.headers.get_list("x-request-id")) == (status, ["mine"])


def test_one_line_per_request(client: httpx.Client, image: Image, lines: Lines) -> None:
    headers = {"X-Request-ID": "r1", "Authorization": f"Bearer {SECRET}", "Cookie": f"key={SECRET}"}
    sent = body(image(), texts=[SECRET, "b"])
    answer = client.post(f"/embed?api_key={SECRET}", json=sent, headers=headers)
    assert answer.status_code == 422  # no such field
    answer = client.post("/embed?normalize=true", json=sent, headers={**headers, "X-Request-ID": "r2"})
    end = time.monotonic() + 10
    while len(found := [line for line in lines.json() if line.get("path") == "/embed"]) < 2:
        assert time.monotonic() < end
        time.sleep(0.005)
    refused, answered = found
    assert (refused["status"], refused["error"], refused["request_id"]) == (422, "invalid_request", "r1")
    assert list(answered) == [
        *("time", "level", "logger", "message", "request_id", "method", "path", "status", "duration_ms", "bytes_in"),
        *("bytes_out", "client", "model", "images", "texts", "timings_ms"),
    ]
    assert (answered["level"], answered["logger"], answered["message"]) == ("info", "serve.requests", "request")
    assert (answered["request_id"], answered["method"], answered["status"]) == ("r2", "POST", 200)
    assert (answered["model"], answered["images"], answered["texts"]) == ("fake", 1, 2)
    assert answered["bytes_in"] == len(answer.request.content)
    assert answered["bytes_out"] == len(answer.content)
    assert answered["client"] == "127.0.0.1"
    told = answer.json()["timings_ms"]
    assert answered["timings_ms"] == {stage: told[stage] for stage in ("decode", "queue", "inference")}
    assert answered["duration_ms"] >= told["total"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answered["time"])
    assert not any(SECRET in line or sent["images"][0][:40] in line for line in lines.lines)


def test_a_failure_is_logged_under_its_id(
    serving: Callable[..., Any], image: Image, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serving(Engine(FakeRuntime(fail_if=lambda crop: bool(crop.any()))))
    # as `python -m serve` does, which leaves uvicorn's loggers alone
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("uvicorn"), "handlers", [])
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    answer = client.post("/embed", json=body(image()), headers={"X-Request-ID": "bad"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "bad")
    request = lines.of("/embed")
    assert (request["status"], request["error"], request["request_id"]) == (500, "internal_error", "bad")
    end = time.monotonic() + 10  # the server logs after the application has returned
    while not (traced := [line for line in lines.json() if "traceback" in line]):
        assert time.monotonic() < end
        time.sleep(0.005)
    assert [line["request_id"] for line in traced] == ["bad"]
    assert "RuntimeError: fake runtime: told to fail" in traced[0]["traceback"]


def test_lines_for_people(client: httpx.Client, capture: Callable[[logging.Formatter], Lines]) -> None:
    text = capture(TextFormatter())
    client.get("/nope%0AINFO forged: line", headers={"X-Request-ID": "r1"})
    end = time.monotonic() + 10
    while not (found := [line for line in text.lines if "serve.requests" in line]):
        assert time.monotonic() < end
        time.sleep(0.005)
    start = r'INFO serve\.requests: request request_id=r1 method=GET path="/nope\\nINFO forged: line" status=404'
    assert re.match(start, found[0])
    assert found[0].endswith(" client=127.0.0.1 error=not_found")
    record = logging.LogRecord("x", logging.ERROR, "", 0, "a\nb", (), None)
    assert TextFormatter().format(record) == "ERROR x: a\\nb"


def test_a_traceback_in_text() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    shown = TextFormatter().format(record)
    assert shown.startswith("ERROR x: failed\nTraceback")
    assert shown.endswith("ValueError: why")


@pytest.mark.parametrize(("name", "kind"), [("json", JsonFormatter), ("text", TextFormatter)])
def test_the_command_line_chooses_the_format(monkeypatch: pytest.MonkeyPatch, name: str, kind: type) -> None:
    served: list[serve.server.Server] = []
    configured: list[logging.Handler] = []
    monkeypatch.setattr(serve.cli.Engine, "load", lambda *_, **__: Engine(FakeRuntime()))
    monkeypatch.setattr(serve.server.Server, "run", lambda server: served.append(server))
    monkeypatch.setattr(logging, "basicConfig", lambda *, level, handlers: configured.extend(handlers))
    assert serve.cli.main(["--no-demo", "--log-format", name]) == 0
    assert [type(handler.formatter) for handler in configured] == [kind]
    assert [(server.config.log_config, server.config.access_log) for server in served] == [(None, False)]


def test_outside_of_requests() -> None:
    observation().about("x", images=1, texts=0)
    assert (observation().model, request_id.get()) == ("", "")


@pytest.fixture
def spans(serving_app: Serving) -> Iterator[tuple[httpx.Client, Callable[[int], tuple[ReadableSpan, ...]]]]:
    """A server with traces, and a function that waits for so many spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    runtime = FakeRuntime(delay=0.02, fail_if=lambda crop: not crop.any() and crop.shape[0] == 1)
    with serving_app(create_app({"fake": Engine(runtime)}, Settings(), tracing=Tracing(provider))) as client:
        while client.get("/health/ready").status_code != 200:
            time.sleep(0.005)
        time.sleep(0.05)
        exporter.clear()

        def finished(count: int) -> tuple[ReadableSpan, ...]:
            end = time.monotonic() + 10
            while len(found := exporter.get_finished_spans()) < count:
                assert time.monotonic() < end
                time.sleep(0.005)
            return found

        yield client, finished


def test_spans_of_a_request(spans: Any, image: Image, lines: Lines) -> None:
    client, finished = spans
    before = time.time_ns()
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "r1"}
    assert client.post("/embed", json=body(image(), texts=["a"]), headers=sent).status_code == 200
    by_name = {span.name: span for span in finished(4)}
    assert set(by_name) == {"POST /embed", "decode", "queue", "inference"}
    root = by_name.pop("POST /embed")
    assert (root.kind, root.status.status_code) == (SpanKind.SERVER, StatusCode.UNSET)
    assert format(root.parent.span_id, "016x") == PARENT
    assert dict(root.attributes) == {
        "http.request.method": "POST",
        "http.route": "/embed",
        "http.response.status_code": 200,
        "digpt.request_id": "r1",
        "digpt.model": "fake",
        "digpt.images": 1,
        "digpt.texts": 1,
    }
    for child in by_name.values():
        assert child.parent.span_id == root.context.span_id
        assert format(child.context.trace_id, "032x") == TRACE
        assert before <= root.start_time <= child.start_time <= child.end_time <= root.end_time
    assert by_name["decode"].end_time <= by_name["queue"].start_time + 2  # rounding
    assert by_name["queue"].end_time <= by_name["inference"].start_time + 2
    assert by_name["inference"].end_time - by_name["inference"].start_time >= 40_000_000  # an image, then a text
    assert lines.of("/embed")["trace_id"] == TRACE


def test_spans_of_errors(spans: Any, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    client, finished = spans
    client.get("/nope/secret")
    (span,) = finished(1)
    assert (span.name, span.attributes["error.type"], span.status.status_code) == (
        "GET other",
        "not_found",
        StatusCode.UNSET,
    )
    engine = client.service.model().engine
    monkeypatch.setattr(engine, "embed_images", lambda *_, **__: np.full((1, 16), 1 / 0))
    client.post("/embed", json=body(image()))
    span = finished(2)[1]
    assert (span.attributes["error.type"], span.status.status_code) == ("internal_error", StatusCode.ERROR)
    assert span.events[0].attributes["exception.type"] == "ZeroDivisionError"


def test_traces_end_with_the_application(serving_app: Serving) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serving_app(create_app({"fake": Engine(FakeRuntime())}, tracing=Tracing(provider))):
        assert exporter._stopped is False
    assert exporter._stopped is True


def test_what_tracing_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="must be a URL such as http://127.0.0.1:4318/v1/traces"):
        otlp("localhost:4318")
    otlp("http://127.0.0.1:9/v1/traces").close()
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingDependencyError, match=r"\.\[otel\]"):
        otlp("http://127.0.0.1:9/v1/traces")
    monkeypatch.setattr(serve.cli.Engine, "load", lambda *_, **__: Engine(FakeRuntime()))
    assert serve.cli.main(["--no-demo", "--otlp-endpoint", "http://127.0.0.1:9/v1/traces"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_commands_of_the_page(client: httpx.Client) -> None:
    blocks = [block.script for block in to_run("docs/observability.md") if "curl" in block.script]
    assert len(blocks) == 1
    script = blocks[0].replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/"))
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "# HELP digpt_model_ready 1 once the model has proved itself.",
        "# TYPE digpt_model_ready gauge",
        'digpt_model_ready{model="fake"} 1.0',
        "x-request-id: my-id",
    ]


def test_the_benchmark_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.observe.main(["--requests", "200", "--rounds", "3", "--json"]) == 0
    added = json.loads(capsys.readouterr().out)
    assert list(added) == ["id and counts", "id, counts and a JSON line"]
    assert added["id, counts and a JSON line"] > 0  # busy machines may turn the smaller figures around


def test_the_real_command_logs_json(tmp_path: Path) -> None:
    """`python -m serve` in a process of its own: every line on stderr is an object, the server's too."""
    program = (
        "import sys, logging, serve.cli\n"
        "from digpt.engine import Engine\n"
        "from digpt.runtime.fake import FakeRuntime\n"
        "serve.cli.Engine.load = lambda *_, **__: Engine(FakeRuntime())\n"
        "def run(server):\n"
        "    import asyncio, httpx\n"
        "    app = server.config.app\n"
        "    logging.getLogger('uvicorn.error').warning('the server speaks')\n"
        "    async def ask():\n"
        "        transport = httpx.ASGITransport(app)\n"
        "        async with httpx.AsyncClient(transport=transport, base_url='http://x') as client:\n"
        "            await client.get('/health/live')\n"
        "    asyncio.run(ask())\n"
        "serve.cli.Server.run = run\n"
        "sys.exit(serve.cli.main(['--no-demo', '--log-format', 'json']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = {line["logger"]: line for line in lines}
    assert said["uvicorn.error"]["message"] == "the server speaks"
    assert (said["serve.requests"]["path"], said["serve.requests"]["status"]) == ("/health/live", 200)
