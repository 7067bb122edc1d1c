"""What a stream worker tells Prometheus: `stream.metrics: HOST:PORT`, path `/metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from model.errors import ConfigError
from scoring.stream.kafka import NOT_INSTALLED
from scoring.stream.source import Source
from scoring.stream.worker import Worker


@contextmanager
def told(address: str | None, source: Source, worker: Worker) -> Iterator[None]:
    """Meanwhile `address` answers; None: nobody is told.

    Raises:
        ConfigError: nobody can listen there, or a package is missing.
    """
    if address is None:
        yield
        return
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise ConfigError(f"stream.metrics: {NOT_INSTALLED}") from error
    registry = CollectorRegistry()
    registry.register(_Collector(source, worker))  # type: ignore[arg-type]  # its `collect` is all that is asked of it
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise ConfigError(f"stream.metrics {address}: cannot listen there ({error.strerror}): name another") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Collector:
    """Reads what the worker counts anyway, when it is asked."""

    def __init__(self, source: Source, worker: Worker) -> None:
        self._source, self._worker = source, worker

    def collect(self) -> Iterator[object]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        worker, tally = self._worker, self._worker.tally
        posts = CounterMetricFamily("agentps_stream_posts", "Posts, by what became of them.", labels=["result"])
        for result, count in (("scored", tally.scored), ("unchanged", tally.unchanged), ("error", tally.errors)):
            posts.add_metric([result], count)
        yield posts
        yield CounterMetricFamily("agentps_stream_dead_letters", "Messages that became dead letters.", tally.dead)
        yield GaugeMetricFamily(
            "agentps_stream_waiting", "1: a broker, database or service does not answer.", float(worker.waits)
        )
        yield GaugeMetricFamily(
            "agentps_stream_last_commit_timestamp_seconds",
            "When the source was last asked and all that it gave was done; at first, when the worker began.",
            worker.committed,
        )
        if (behind := self._source.behind()) is not None:
            yield GaugeMetricFamily(
                "agentps_stream_behind", "Messages, of a folder files, that are to be taken.", behind
            )
