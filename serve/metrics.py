"""What the server counts, for Prometheus: one registry per application, read at ``GET /metrics``.

Who calls what (``metrics`` is ``service.metrics``; every method is safe to call from any thread):

- ``request_started``, ``request_finished``: the middleware in observe.py, nowhere else.
- ``with admitted(model, pixels=, items=)``: around all that one request does from its admission to its answer. It
  counts the items as dropped when a TimeoutError or a CancelledError passes through it.
- ``images_decoded(model, seconds)``: once per request, after decoding.
- ``item_failed(model, code)``: once per item that is answered with an error of its own.
- ``queue_left(model, seconds)``: once per request, with the time from its decoded images to the start of its batch.
- ``batch_computed(model, images=, texts=, seconds=)``: where the backend is called, once per call that succeeded: in a
  batcher once per batch (``Service`` is told of each), never once per request.

Labels are bounded: models are those served (anything else is ""), endpoints are routes (anything else is "other"),
codes are those of errors.py. docs/observability.md says what every metric means.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from digpt.engine import Engine

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Watched(Protocol):
    """What is read of a served model at every scrape."""

    @property
    def engine(self) -> Engine: ...

    @property
    def state(self) -> str: ...


class Registry(CollectorRegistry):
    """A registry without the ``_created`` series, which would add a third to every scrape."""

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class BusyTime:
    """Seconds in which each model had work. While several have, the time is split evenly, so that it adds up to that
    of the machine.

    Args:
        clock: seconds from any origin.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._active: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def enter(self, model: str) -> None:
        with self._lock:
            self._advance()
            self._active[model] = self._active.get(model, 0) + 1

    def leave(self, model: str) -> None:
        with self._lock:
            self._advance()
            self._active[model] -= 1
            if not self._active[model]:
                del self._active[model]

    def seconds(self, model: str) -> float:
        with self._lock:
            self._advance()
            return self._seconds.get(model, 0.0)

    def _advance(self) -> None:
        now = self._clock()
        for model in self._active:
            self._seconds[model] = self._seconds.get(model, 0.0) + (now - self._since) / len(self._active)
        self._since = now


class Metrics:
    """All counters, gauges and histograms of one application.

    Args:
        models: the served models by name; read again at every scrape.
        price_per_hour: of the machine, in any currency; without it no cost is shown.
        clock: seconds from any origin.
    """

    def __init__(
        self,
        models: Mapping[str, Watched],
        price_per_hour: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.registry = Registry()
        self._models, self._names = models, set(models)
        self._busy = BusyTime(clock)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=SECONDS)
        of_model = ["model"]
        self._requests = counter("digpt_requests", "Requests answered.", ["endpoint", "status", "model"])
        self._errors = counter("digpt_errors", "Requests answered with an error, by its code.", ["endpoint", "code"])
        self._in_flight = gauge("digpt_requests_in_flight", "Requests being answered.")
        self._duration = histogram(
            "digpt_request_duration_seconds",
            "From a request's first line to the last byte of its answer.",
            ["endpoint", "model"],
        )
        self._item_errors = counter(
            "digpt_item_errors", "Items answered with an error of their own.", ["model", "code"]
        )
        self._dropped = counter("digpt_dropped_items", "Items given up on before their answer.", ["model", "reason"])
        self._images = counter("digpt_images", "Images computed.", of_model)
        self._texts = counter("digpt_texts", "Texts computed.", of_model)
        self._pixels_waiting = gauge("digpt_queue_pixels", "Pixels admitted and not answered yet.", of_model)
        self._items_waiting = gauge("digpt_queue_items", "Items admitted and not answered yet.", of_model)
        self._decode = histogram("digpt_decode_seconds", "Decoding the images of one request.", of_model)
        self._queue = histogram("digpt_queue_seconds", "One request's wait for the model, after decoding.", of_model)
        self._inference = histogram("digpt_inference_seconds", "Computing one batch.", of_model)
        self._batch = histogram("digpt_batch_items", "Images and texts of one batch.", of_model, buckets=BATCH_SIZES)
        self._show_zeros()
        self.registry.register(ModelCollector(models))
        self.registry.register(CostCollector(models, self._busy, self._images, price_per_hour))
        ProcessCollector(registry=self.registry)

    def request_started(self) -> None:
        """A request's first line has arrived."""
        self._in_flight.inc()

    def request_finished(self, endpoint: str, status: int, model: str, seconds: float, code: str = "") -> None:
        """A request's answer has left; ``code`` is its error's, if it has one."""
        model = self._known(model)
        self._in_flight.dec()
        self._requests.labels(endpoint, str(status), model).inc()
        self._duration.labels(endpoint, model).observe(seconds)
        if code:
            self._errors.labels(endpoint, code).inc()

    @contextmanager
    def admitted(self, model: str, *, pixels: int, items: int) -> Iterator[None]:
        """Count a request's pixels and items as waiting, and as dropped if it is given up on."""
        model = self._known(model)
        self._busy.enter(model)
        self._pixels_waiting.labels(model).inc(pixels)
        self._items_waiting.labels(model).inc(items)
        try:
            yield
        except TimeoutError:
            self._dropped.labels(model, "deadline").inc(items)
            raise
        except asyncio.CancelledError:
            self._dropped.labels(model, "cancelled").inc(items)
            raise
        finally:
            self._items_waiting.labels(model).dec(items)
            self._pixels_waiting.labels(model).dec(pixels)
            self._busy.leave(model)

    def images_decoded(self, model: str, seconds: float) -> None:
        """One request's images were decoded in so long, failures included."""
        self._decode.labels(self._known(model)).observe(seconds)

    def item_failed(self, model: str, code: str) -> None:
        """One image or text is answered with this error."""
        self._item_errors.labels(self._known(model), code).inc()

    def queue_left(self, model: str, seconds: float) -> None:
        """One request waited so long for the model."""
        self._queue.labels(self._known(model)).observe(seconds)

    def batch_computed(self, model: str, *, images: int, texts: int, seconds: float) -> None:
        """The backend answered for so many images and texts in so long."""
        model = self._known(model)
        self._images.labels(model).inc(images)
        self._texts.labels(model).inc(texts)
        self._batch.labels(model).observe(images + texts)
        self._inference.labels(model).observe(seconds)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All values in the format that an ``Accept`` header asks for, Prometheus' text by default; and its type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _known(self, model: str) -> str:
        if model in self._models:
            self._names.add(model)
        return model if model in self._names else ""  # also of one that is being unloaded

    def _show_zeros(self) -> None:
        """Let the series of every model exist before its first request: a rate needs a value to start from."""
        for name in self._models:
            for count in (self._images, self._texts):
                count.labels(name)
            for depth in (self._pixels_waiting, self._items_waiting):
                depth.labels(name)
            for distribution in (self._decode, self._queue, self._inference, self._batch):
                distribution.labels(name)
            for reason in ("cancelled", "deadline"):
                self._dropped.labels(name, reason)


class ModelCollector(Collector):
    """What models say about themselves, asked at every scrape: state, identity, caches."""

    def __init__(self, models: Mapping[str, Watched]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("digpt_model_ready", "1 once the model has proved itself.", labels=["model"])
        about = GaugeMetricFamily(
            "digpt_model_info",
            "Always 1; the labels say what answers.",
            labels=["model", "backend", "precision", "fingerprint"],
        )
        of_cache = ["model", "cache"]
        hits = CounterMetricFamily("digpt_cache_hits", "Lookups that found something.", labels=of_cache)
        misses = CounterMetricFamily("digpt_cache_misses", "Lookups that found nothing.", labels=of_cache)
        entries = GaugeMetricFamily("digpt_cache_entries", "Entries held.", labels=of_cache)
        for name, model in list(self._models.items()):  # it may change meanwhile
            info = model.engine.info
            ready.add_metric([name], float(model.state == "ready"))
            about.add_metric([name, info.backend, info.precision, info.fingerprint], 1.0)
            for cache, stats in model.engine.cache_stats().items():
                hits.add_metric([name, cache], stats["hits"])
                misses.add_metric([name, cache], stats["misses"])
                entries.add_metric([name, cache], stats["entries"])
        yield from (ready, about, hits, misses, entries)


class CostCollector(Collector):
    """Busy time and, at a price, what a million images cost at the throughput measured while busy.

    cost = price per hour / 3600 x busy seconds / images computed x 1e6, both since the start.
    """

    def __init__(self, models: Mapping[str, Watched], busy: BusyTime, images: Counter, price: float | None) -> None:
        self._models, self._busy, self._images, self._price = models, busy, images, price

    def collect(self) -> Iterator[Metric]:
        busy = CounterMetricFamily(
            "digpt_busy_seconds", "Seconds with work; shared evenly by models.", labels=["model"]
        )
        cost = GaugeMetricFamily("digpt_cost_per_million_images", "At --price-per-hour, while busy.", labels=["model"])
        counted = {
            sample.labels["model"]: sample.value
            for family in self._images.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }
        for name in list(self._models):
            seconds = self._busy.seconds(name)
            busy.add_metric([name], seconds)
            if self._price is not None and counted.get(name):
                cost.add_metric([name], self._price / 3600 * seconds / counted[name] * 1e6)
        yield busy
        if self._price is not None:
            yield cost
