"""Prometheus: how the fleet and this worker do. What the store knows is read when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from edge_cl.errors import StoreUnavailable
from edge_cl_fleet import tables
from edge_cl_fleet.progress import Progress, list_progress
from edge_cl_fleet.queries import Device, count_by, list_devices
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.worker import Worker


class FleetFigures:
    """A Prometheus collector; register it, or use `render`."""

    def __init__(self, store: FleetStore, worker: Worker) -> None:
        self._store, self._worker = store, worker
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """Everything, as Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Of this worker first: that works without the store, too."""
        yield from self._of_worker()
        try:
            devices = list_devices(self._store)
            commands = count_by(self._store, tables.commands.c.state)
            rollouts = count_by(self._store, tables.rollouts.c.state)
            newest = list_progress(self._store, time.time())
        except StoreUnavailable:
            yield GaugeMetricFamily("edgecl_store_up", "Whether the store answers.", 0)
            return
        yield GaugeMetricFamily("edgecl_store_up", "Whether the store answers.", 1)
        yield _labelled("edgecl_commands", "Commands by state.", "state", commands)
        yield _labelled("edgecl_rollouts", "Rollouts by state.", "state", rollouts)
        yield from _of_rollouts(newest)
        yield from _of_devices(devices, time.time())

    def _of_worker(self) -> Iterator[Metric]:
        counts = self._worker.collector.counts
        stored = CounterMetricFamily(
            "edgecl_messages_stored", "Messages confirmed as stored, by this worker.", labels=["kind"]
        )
        for kind, n in counts.by_kind.items():
            stored.add_metric([kind], n)
        yield stored
        for name, help_text, value in (
            ("batches", "Transactions.", counts.batches),
            ("events", "Decisions that passed by; they are not stored.", counts.events),
            (
                "overflowed",
                "Messages dropped at a full queue; their devices send them again.",
                counts.overflowed,
            ),
            ("refused", "Messages that the database would not take.", counts.refused),
            ("malformed", "Messages that could not be read.", sum(counts.bad.values())),
            ("connections", "Connections made to the broker.", self._worker.connection.n_connections),
            ("restarted_threads", "Threads that died and were started again.", self._worker.n_restarted),
            ("resends_asked", "Requests for missing numbers.", self._worker.gaps.n_asked),
            ("chunks_sent", "Pieces of bundles.", self._worker.chunks.n_sent),
        ):
            yield CounterMetricFamily(f"edgecl_worker_{name}", help_text, value)
        connected = int(self._worker.connection.is_up)
        yield GaugeMetricFamily("edgecl_worker_connected", "Whether the broker is there.", connected)


def _labelled(name: str, help_text: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _of_rollouts(newest: list[Progress]) -> Iterator[Metric]:
    labels = ["rollout", "bundle", "group"]
    by_state = GaugeMetricFamily(
        "edgecl_rollout_devices", "Devices of the newest rollouts by state.", labels=[*labels, "state"]
    )
    silent = GaugeMetricFamily("edgecl_rollout_silent", "Devices that say nothing of it.", labels=labels)
    for one in newest:
        of_it = [one.id[:8], one.name, one.group_name]
        for state, n in one.states.items():
            by_state.add_metric([*of_it, state], n)
        silent.add_metric(of_it, sum(wave.n_silent for wave in one.waves))
    yield from (by_state, silent)


def _of_devices(devices: list[Device], now_s: float) -> Iterator[Metric]:
    online = sum(device.online for device in devices)
    yield GaugeMetricFamily("edgecl_devices", "Devices known.", len(devices))
    yield GaugeMetricFamily("edgecl_devices_online", "Devices connected.", online)
    labels = ["site", "device", "group"]
    accuracy = GaugeMetricFamily("edgecl_device_accuracy", "Over its last labels.", labels=labels)
    drift = GaugeMetricFamily(
        "edgecl_device_drift_points", "Below its best since the last sleep.", labels=labels
    )
    n_labels = GaugeMetricFamily("edgecl_device_labels", "Labels learned.", labels=labels)
    seen = GaugeMetricFamily("edgecl_device_seen_seconds", "Since it last spoke.", labels=labels)
    alarm = GaugeMetricFamily(
        "edgecl_device_alarm", "1 while it says that something is wrong.", labels=labels
    )
    cloned = GaugeMetricFamily("edgecl_device_cloned", "1 when two boards spoke as one.", labels=labels)
    for device in devices:
        whose = [device.site, device.device, device.group_name]
        if device.accuracy_now is not None:
            accuracy.add_metric(whose, device.accuracy_now)
        if device.drift_points is not None:
            drift.add_metric(whose, device.drift_points)
        n_labels.add_metric(whose, device.n_labels)
        seen.add_metric(whose, max(0.0, now_s - device.last_seen_s))
        alarm.add_metric(whose, int(bool(device.alarm)))
        cloned.add_metric(whose, int(device.cloned_s is not None))
    yield from (accuracy, drift, n_labels, seen, alarm, cloned)
