"""Bulk embedding over a Ray cluster: Ray Data hands the parts of a job to processes that hold the same engine.

A row of the data set is the number of a part, so that what a process computes, and in which batches, is what
`serve.offline` computes alone, and any mixture of both can finish a job. A part that Ray gives out twice, because a
process died, is written again under its name. Input and output must lie where every machine of the cluster sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from digpt.errors import BackendError, ConfigError, DataError, DigptError, MissingDependencyError
from serve.offline_embed import PartWriter
from serve.offline_inputs import open_inputs
from serve.offline_parts import Job, Parts

if TYPE_CHECKING:
    from serve.offline import OfflineConfig


class EmbedParts:
    """What a process of the cluster does: open the input and the model once, then write the parts that it is given.

    What goes wrong is answered as a sentence: Ray would wrap an exception in its own, with the tracebacks of both.
    """

    def __init__(self, config: OfflineConfig, parts: Parts) -> None:
        self._config, self._parts = config, parts

    @cached_property
    def _writer(self) -> PartWriter:
        config, parts = self._config, self._parts
        inputs = open_inputs(config.input, config.column)
        engine = config.load()
        engine.verify_golden().raise_for_failure()
        mine = Job.of(engine.info, inputs.fingerprint, len(inputs), config.part_rows, config.batch_size)
        if mine != parts.job:
            raise DataError(
                f"A process of the Ray cluster sees another input or model in {config.input} and {config.model} than "
                "the machine where the command was given; put both where every machine sees the same."
            )
        return PartWriter(engine, inputs, parts, config.workers)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        numbers = [int(part) for part in batch["part"]]
        try:
            written = dict(self._writer.write(numbers))
        except (DigptError, OSError) as error:
            return {"part": numbers, "seconds": [0.0] * len(numbers), "error": [str(error)] * len(numbers)}
        return {"part": list(written), "seconds": list(written.values()), "error": [""] * len(written)}


def write_with_ray(config: OfflineConfig, parts: Parts, missing: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Write the ``missing`` parts with ``config.ray`` processes; of each its number and the model's seconds.

    It joins the cluster that ``ray.init`` finds (``RAY_ADDRESS``), or starts one on this machine.

    Raises:
        MissingDependencyError: Ray is not installed.
        BackendError: what went wrong in a process of the cluster.
    """
    if not missing:
        return
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingDependencyError("--ray needs Ray: pip install 'digpt[ray]'.") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"part": part} for part in missing], override_num_blocks=len(missing))
    written = rows.map_batches(
        EmbedParts,
        fn_constructor_args=(config, parts),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=config.ray),
        num_cpus=config.threads or 1,
        num_gpus=gpus_each(config, ray.cluster_resources()),
    )
    for row in written.iter_rows():
        if row["error"]:
            raise BackendError(row["error"])
        yield int(row["part"]), float(row["seconds"])


def gpus_each(config: OfflineConfig, resources: Mapping[str, float]) -> int:
    """GPUs that every process asks for: Ray hides them from those that ask for none."""
    gpus, processes = int(resources.get("GPU", 0)), config.ray or 1
    if config.device == "cpu" or not gpus:
        return 0
    if gpus < processes:
        raise ConfigError(
            f"The cluster has {gpus} GPUs for --ray {processes}, and would leave some processes without one; "
            f"give --ray {gpus}, or --device cpu for all."
        )
    return 1
