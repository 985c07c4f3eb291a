"""Encoded images in, embeddings out: through the engine's own decoder, the next batch decoded while one is embedded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from digpt.engine import Engine

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images are done, and how many there are."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def embed_files(
    engine: Engine, files: Sequence[bytes], *, batch_size: int = 64, progress: Progress = no_progress
) -> NDArray[np.float32]:
    """Embed image files: float32 ``[N, D]`` unit rows, in the order of ``files``.

    At most two batches of decoded images are in memory. Errors are those of ``Engine.decode`` and of the runtime.
    """
    starts = range(0, len(files), batch_size)
    rows = [np.zeros((0, engine.info.dim), np.float32)]
    progress("images", 0, len(files))
    with ThreadPoolExecutor(engine.info.threads or os.cpu_count()) as pool:

        def submit(start: int) -> list[Future[NDArray[np.uint8]]]:
            return [pool.submit(engine.decode, file) for file in files[start : start + batch_size]]

        upcoming = submit(0)
        for start in starts:
            images = [decoded.result() for decoded in upcoming]
            upcoming = submit(start + batch_size)
            rows.append(engine.embed_images(images, batch_size=batch_size))
            progress("images", start + len(images), len(files))
    return np.concatenate(rows)
