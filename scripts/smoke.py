"""Start a server on a free port, send it the README's requests and some bad ones, stop it.

    python scripts/smoke.py
    python scripts/smoke.py --model runs/zeroshot/ckpt.pt

Prints what it sent and got; exits 1 at the first answer that is not as it should be. Whether the answers are CORRECT
is checked for the bundled model only.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGE = ROOT / "examples" / "images" / "red-apple.png"
LABELS = ["red apple", "dog face", "rocket"]
STOP_S = 60
SHOWN = 200  # characters of an answer


class SmokeError(Exception):
    """An answer that is not as it should be."""


class Transcript:
    """Sends requests, holds the answers against what is expected, and prints both."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def send(self, what: str, status: int, method: str, path: str, **request: Any) -> Any:
        """Send one request; return the parsed answer if its status is ``status``."""
        answer = self.client.request(method, path, **request)
        body: Any = answer.json() if "json" in answer.headers.get("content-type", "") else answer.text
        shown = json.dumps(body, ensure_ascii=False) if isinstance(body, dict) else answer.text.splitlines()[0]
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        print(
            f"{method:4} {path:14} {what}\n  -> {answer.status_code} {shown[:200]}{'...' if len(shown) > 200 else ''}"
        )
        if answer.status_code != status:
            raise SmokeError(f"{what}: expected {status}, got {answer.status_code}")
        if status >= 400 and set(body["error"]) != {"message", "type", "param", "code", "index"}:
            raise SmokeError(f"{what}: the error does not follow the schema")
        return body


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(server: subprocess.Popen[bytes], client: httpx.Client, timeout_s: float) -> float:
    """Wait until the server is ready; return how long it took."""
    started = time.monotonic()
    while time.monotonic() - started < timeout_s:
        if server.poll() is not None:
            raise SmokeError(f"the server stopped with exit code {server.returncode} before it was ready")
        try:
            if client.get("/health/ready").status_code == 200:
                return time.monotonic() - started
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise SmokeError(f"the server was not ready after {timeout_s:g} s")


def good_requests(say: Transcript, correct: bool) -> None:
    """What the README shows: status, three ways to send an image, texts."""
    image = IMAGE.read_bytes()
    coded = base64.b64encode(image).decode()
    say.send("", 200, "GET", "/health/live")
    say.send("", 200, "GET", "/health/ready")
    model = say.send("", 200, "GET", "/models")["data"][0]
    say.send("the page that describes the API", 200, "GET", "/docs")
    say.send("the demo", 200, "GET", "/demo/")
    answers = [
        say.send("-F files=@red-apple.png -F labels=...", 200, "POST", "/classify",
                 files={"files": ("red-apple.png", image)}, data={"labels": LABELS}),
        say.send("--data-binary @red-apple.png ?labels=...", 200, "POST", "/classify",
                 content=image, headers={"Content-Type": "image/png"}, params={"labels": LABELS}),
        say.send('{"images": [...], "labels": [...]}', 200, "POST", "/classify",
                 json={"images": [coded], "labels": LABELS}),
    ]  # fmt: skip
    predictions = [answer["data"][0]["predictions"] for answer in answers]
    if any(given != predictions[0] for given in predictions):
        raise SmokeError("three ways to send one image gave different answers")
    if correct and predictions[0][0]["label"] != LABELS[0]:
        raise SmokeError(f"the bundled model says {predictions[0][0]['label']!r} to a red apple")
    embedded = say.send("one image, one text", 200, "POST", "/embed",
                        json={"images": [f"data:image/png;base64,{coded}"], "texts": [LABELS[0]]})  # fmt: skip
    packed = say.send("the same as base64", 200, "POST", "/embed",
                      json={"images": [coded], "texts": [LABELS[0]], "encoding_format": "base64"})  # fmt: skip
    for number, code in zip(embedded["data"], packed["data"], strict=True):
        values = struct.unpack(f"<{model['dim']}f", base64.b64decode(code["embedding"]))
        if list(values) != number["embedding"]:
            raise SmokeError("base64 and float answers differ")
    if embedded["fingerprint"] != model["fingerprint"]:
        raise SmokeError("the answer's fingerprint is not the model's")


def readme_requests(port: int, correct: bool) -> None:
    """The README's own curl lines, against this server; a picture's file name says what it shows."""
    lines = re.findall(r"^\$ (curl .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    if not lines:
        raise SmokeError("the README shows no curl lines")
    if shutil.which("curl") is None:
        print("curl is not installed: the README's lines were NOT sent")
        return
    for line in lines:
        print(f"$ {line}")
        command = shlex.split(line.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
        done = subprocess.run([*command, "--noproxy", "*"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        body = json.loads(done.stdout) if done.returncode == 0 else {}
        shown = re.search(r"@\S*/([\w-]+)\.png", line)
        if "data" not in body:
            raise SmokeError(f"the README's line got {done.stdout[:SHOWN]!r} {done.stderr[:SHOWN]}")
        if correct and shown and (best := body["data"][0]["predictions"][0]["label"]) != shown[1].replace("-", " "):
            raise SmokeError(f"the bundled model says {best!r} to {shown[0]}")


def bad_requests(say: Transcript) -> None:
    """Each gets a clear 4xx, and the server answers the next good request."""
    jpeg = io.BytesIO()
    Image.open(IMAGE).convert("RGB").save(jpeg, "JPEG")
    png, as_json = {"Content-Type": "image/png"}, {"Content-Type": "application/json"}
    say.send("text as an image", 415, "POST", "/embed", content=b"this is no image", headers=png)
    say.send("a truncated JPEG", 422, "POST", "/embed", content=jpeg.getvalue()[:3000], headers=png)
    say.send("a PNG header of 50,000 x 50,000", 413, "POST", "/embed", content=png_header(50_000), headers=png)
    say.send("no images", 422, "POST", "/embed", json={"images": []})
    say.send("no labels", 422, "POST", "/classify", json={"images": ["AAAA"], "labels": []})
    say.send("not base64", 422, "POST", "/embed", json={"images": ["%%%"]})
    say.send("half a JSON body", 400, "POST", "/embed", content=b'{"images": [', headers=as_json)
    say.send("a video", 415, "POST", "/embed", content=b"x", headers={"Content-Type": "video/mp4"})
    say.send("a model that is not here", 404, "POST", "/embed", json={"texts": ["a"], "model": "nobody"})
    say.send("a path that is not here", 404, "GET", "/nowhere")
    say.send("the wrong method", 405, "GET", "/embed")
    say.send("and a good one", 200, "POST", "/embed", content=IMAGE.read_bytes(), headers=png)


def png_header(side: int) -> bytes:
    """A PNG that claims ``side`` x ``side`` pixels and holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    end = b"\x00\x00\x00\x00IEND\xaeB`\x82"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + end


def main(argv: Sequence[str] | None = None) -> int:
    """Run the smoke test; 0 if every answer was as it should be."""
    parser = argparse.ArgumentParser(description="Start a server, send requests, stop it.")
    parser.add_argument("--model", default="bundled", help="what to serve (default: bundled)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds until it must be ready")
    arguments = parser.parse_args(argv)
    port = free_port()
    command = [sys.executable, "-m", "serve", "--model", arguments.model, "--port", str(port)]
    print("$", " ".join(["python", *command[1:]]), flush=True)
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            print(f"ready after {wait_ready(server, client, arguments.timeout):.1f} s")
            good_requests(Transcript(client), correct=arguments.model == "bundled")
            readme_requests(port, correct=arguments.model == "bundled")
            bad_requests(Transcript(client))
        server.send_signal(signal.SIGTERM)
        code = server.wait(STOP_S)
        if code not in (0, -signal.SIGTERM):
            raise SmokeError(f"the server stopped with exit code {code}")
    except (SmokeError, httpx.HTTPError, subprocess.TimeoutExpired) as error:
        print(f"smoke: FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        server.kill()
        server.wait()
    print("smoke: ok")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
