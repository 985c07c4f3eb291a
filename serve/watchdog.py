"""Whether a model answers: proved at the start, watched while it works, probed while it is idle.

While a call lasts longer than ``stall_s`` the model is ``stalled``: requests are refused (503) until the call ends and
the model has proved itself again. A native call cannot be interrupted, so one that lasts ``HOPELESS`` times as long
makes ``/health/live`` fail: only a new process helps then. A thread that ended is started again. What failed through
no fault of its input raises suspicion, and a probe follows: one odd image changes nothing, a device that is gone makes
the model ``failed`` instead of leaving it to fail every request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Literal

import numpy as np

from digpt.engine import Engine
from serve.batcher import Batcher
from serve.errors import NotReadyError

log = logging.getLogger("serve")

State = Literal["starting", "ready", "failed", "stalled"]

PROBE_S = 30.0  # between probes of a model that has nothing to do, and between proofs of one that failed
HOPELESS = 10.0  # times stall_s
LOOKS = 20  # within stall_s, but at least one a second


def prove(engine: Engine) -> str:
    """Let the live backend reproduce its golden embeddings, or warm it up where it has none; return what was found.

    Raises:
        BackendError: it did not reproduce them.
    """
    report = engine.verify_golden()
    report.raise_for_failure()
    info = engine.info
    if not report.checked:
        probe(engine)
    if info.has_text and info.labels and info.head is None:
        engine.class_matrix(info.labels)  # a thousand labels take seconds: here, not in somebody's first request
    return report.message if report.checked else "it answers; it came without golden embeddings to compare with"


def probe(engine: Engine) -> None:
    """Embed one black image; raises whatever the backend raises."""
    size = engine.info.preprocess.size
    engine.embed_images(np.zeros((1, size, size, 3), np.uint8))


class Watchdog:
    """Keeps ``state`` and ``detail``, what it is waiting for or why it is not ready, of one model. On the event loop.

    Args:
        stall_s: seconds that a call may last.
    """

    def __init__(self, name: str, engine: Engine, batcher: Batcher, stall_s: float) -> None:
        self.state: State = "starting"
        self.detail = "it has not been checked yet"
        self._name, self._engine, self._batcher, self._stall_s = name, engine, batcher, stall_s
        self._proof = ""
        self._check: asyncio.Task[None] | None = None
        self._checked = 0.0

    @property
    def hopeless(self) -> bool:
        """Whether a call lasts so long that it will not end."""
        return self.state == "stalled" and self._batcher.call_s() > HOPELESS * self._stall_s

    def proved(self, detail: str) -> None:
        """Take the model for proved, as ``detail`` says."""
        self.state, self.detail, self._proof, self._checked = "ready", detail, detail, time.monotonic()

    async def watch(self) -> None:
        """Prove the model if it is not proved yet, then look after it until cancelled."""
        if self.state == "starting":
            self.detail = "its backend is being checked"
            self._begin(self._prove)
        try:
            while True:
                await asyncio.sleep(min(1.0, self._stall_s / LOOKS))
                self.look()
        finally:
            if self._check is not None:
                self._check.cancel()

    def look(self) -> None:
        """Find out what the model is doing, and begin a check where one is due."""
        batcher = self._batcher
        if not batcher.alive:
            self._unready("failed", "its inference thread ended and is being started again")
            batcher.start()
            self._begin(self._prove)
        checking = self._check is not None and not self._check.done()
        if self.state == "starting":
            return
        lasted = batcher.call_s()
        if lasted > self._stall_s:
            self._unready("stalled", f"its backend has not answered for {lasted:.0f} seconds")
        elif checking:
            return
        elif self.state == "stalled" or (self.state == "failed" and self._since_check() > PROBE_S):
            self._begin(self._prove)
        elif self.state == "ready" and (batcher.suspect or min(batcher.idle_s(), self._since_check()) > PROBE_S):
            batcher.suspect = False
            self._begin(self._probe)

    def _since_check(self) -> float:
        return time.monotonic() - self._checked

    def _begin(self, check: Callable[[], str]) -> None:
        if self._check is not None:
            self._check.cancel()
        self._check = asyncio.create_task(self._run(check))

    async def _run(self, check: Callable[[], str]) -> None:
        try:
            self.detail, self.state = await self._batcher.call(check), "ready"
        except NotReadyError:
            pass  # it waited, and was refused with all others: `look` said why, and checks again when it is due
        except Exception as error:  # whatever a backend raises
            log.exception("model %s failed its check", self._name)
            self._unready("failed", f"its backend failed the check ({error})")
        finally:
            self._checked = time.monotonic()

    def _prove(self) -> str:
        self._proof = prove(self._engine)
        return self._proof

    def _probe(self) -> str:
        probe(self._engine)
        return self._proof

    def _unready(self, state: State, detail: str) -> None:
        if state != self.state:
            log.error("model %s: %s", self._name, detail)
        self.state, self.detail = state, detail
        self._batcher.refuse_all(NotReadyError(f"Model {self._name!r} is not ready: {detail}.", retry_after=1))
