"""What a bulk job keeps on disk while it runs, so that it can be killed at any moment and given again.

``OUT.parquet.parts/`` holds ``job.json`` and a numbered file per part, a fixed stretch of the input; each is written
whole or not at all. What is missing is what remains to do. At the end they become ``OUT.parquet``, and the folder goes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from digpt.embeddings_file import About, embeddings_schema, read_about
from digpt.errors import ConfigError, DataError
from digpt.files import atomic_json, atomic_write, canonical_json
from serve.offline_inputs import PARTS_ENDING

if TYPE_CHECKING:
    import pyarrow as pa

    from digpt.runtime.base import RuntimeInfo

JOB = "job.json"
LOCK = ".lock"


@dataclass(frozen=True)
class Job:
    """Everything that decides the rows of a job; where its input lies does not.

    ``engine`` is the hash of an artifact's files. The device is left out: the machines of a cluster may differ in it,
    and each proves itself by the golden answers before it computes.
    """

    listing: str
    rows: int
    part_rows: int
    batch_size: int
    fingerprint: str
    backend: str
    precision: str
    preprocess: dict[str, object]
    engine: str | None = None

    @classmethod
    def of(cls, info: RuntimeInfo, listing: str, rows: int, part_rows: int, batch_size: int) -> Job:
        """The job of embedding ``rows`` images of that listing with the runtime of ``info``."""
        model = info.fingerprint, info.backend, info.precision, info.preprocess.to_dict(), info.engine
        return cls(listing, rows, part_rows, batch_size, *model)

    @property
    def digest(self) -> str:
        said = {name: value for name, value in asdict(self).items() if value is not None}
        return f"sha256:{hashlib.sha256(canonical_json(said)).hexdigest()}"

    @property
    def parts(self) -> int:
        return -(-self.rows // self.part_rows)

    def span(self, part: int) -> tuple[int, int]:
        """The first image of a part, and the one after its last."""
        return part * self.part_rows, min((part + 1) * self.part_rows, self.rows)


class Parts:
    """The parts of the job whose output is ``output``. ``open`` them once per job; workers of a cluster just write."""

    def __init__(self, output: Path, job: Job, about: About) -> None:
        self.output, self.job, self.about = output, job, about
        self.folder = output.with_name(output.name + PARTS_ENDING)

    @contextmanager
    def open(self, overwrite: bool = False) -> Iterator[None]:
        """Hold the job for this process.

        Raises:
            ConfigError: another process is at it, or what lies there is of another job.
        """
        if self.done and not overwrite:
            self._check_output()
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, "wb") as file:  # the system frees it at exit
            self._lock(file)
            if overwrite:
                self.output.unlink(missing_ok=True)
                for pattern in (JOB, "part-*", ".part-*"):
                    for path in self.folder.glob(pattern):
                        path.unlink()
            self._check_parts()
            yield

    def _lock(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another process is writing {self.output}: wait for it, stop it, or choose another output."
            ) from None

    def _check_output(self) -> None:
        if read_about(self.output).job != self.job.digest:
            raise ConfigError(
                f"{self.output} is there already, from another input, model or settings; choose another output, or "
                "--overwrite it."
            )

    def _check_parts(self) -> None:
        file, mine = self.folder / JOB, asdict(self.job)
        if not file.exists():
            if any(path.name != LOCK for path in self.folder.iterdir()):
                raise ConfigError(f"{self.folder} holds something else than a job's parts; move it away.")
            atomic_json(file, mine)
            return
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read ({error}); begin again with --overwrite.") from None
        differing = [name for name in mine if theirs.get(name) != mine[name]]
        if differing:
            name = differing[0]
            raise ConfigError(
                f"{self.folder} belongs to a job that differs in {', '.join(differing)} ({name}: {theirs.get(name)} "
                f"there, {mine[name]} now); give the same command as before, or begin again with --overwrite."
            )

    @property
    def done(self) -> bool:
        """Whether the output is there."""
        return self.output.exists()

    def missing(self) -> list[int]:
        """The parts that have not been written, in order."""
        written = {path.name for path in self.folder.glob("part-*.parquet")}
        return [part for part in range(self.job.parts) if self.path(part).name not in written]

    def path(self, part: int) -> Path:
        """Where a part lies."""
        return self.folder / f"part-{part:09d}.parquet"

    def write(self, part: int, table: pa.Table) -> None:
        """Keep a part, all or nothing. Two workers that both have it write the same rows: either may come last."""
        start, stop = self.job.span(part)
        assert len(table) == stop - start, (part, len(table))

        def content(file: BinaryIO) -> None:
            with _writer(file, table.schema) as writer:
                writer.write_table(table)

        atomic_write(self.path(part), content, shared=True)

    def merge(self) -> int:
        """Join the parts to the output in the input's order, one at a time in memory; return how many rows failed.

        Raises:
            DataError: a part is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        failed = 0

        def content(file: BinaryIO) -> None:
            nonlocal failed
            with _writer(file, embeddings_schema(self.about)) as writer:
                for part in range(self.job.parts):
                    try:
                        table = pq.read_table(self.path(part), partitioning=None)
                    except (OSError, pa.ArrowException) as error:
                        raise DataError(
                            f"{self.path(part)} is damaged ({error}); delete it and give the command again."
                        ) from None
                    start, stop = self.job.span(part)
                    if len(table) != stop - start or read_about(self.path(part)).job != self.job.digest:
                        raise DataError(f"{self.path(part)} is of another job; delete it and give the command again.")
                    failed += table["embedding"].null_count
                    writer.write_table(table)

        atomic_write(self.output, content)
        return failed

    def errors(self) -> int:
        """How many rows of the output have no embedding."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.output) as file:
            batches = file.iter_batches(columns=["error"])
            return sum(len(batch) - batch["error"].null_count for batch in batches)

    def clean(self) -> None:
        """Remove the parts, after the output is safe."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _writer(file: BinaryIO, schema: pa.Schema) -> pa.parquet.ParquetWriter:
    import pyarrow.parquet as pq

    # a dictionary pays for columns of few values; of embeddings it would only cost time
    return pq.ParquetWriter(file, schema, use_dictionary=["fingerprint", "error"], write_statistics=["id"])
