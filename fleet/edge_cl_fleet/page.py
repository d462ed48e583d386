"""The fleet page: one HTML page that needs no JavaScript, Prometheus' ``/metrics``, ``/healthz``.

It shows and changes nothing. It asks for no password: bind it to the loopback, or put a proxy in front of it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from html import escape
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from edge_cl.errors import ConfigError, StoreUnavailable
from edge_cl_fleet.disagreement import Outlier, find_outliers, label_shares
from edge_cl_fleet.figures import FleetFigures
from edge_cl_fleet.progress import Progress, list_progress
from edge_cl_fleet.queries import Device, list_devices, recent
from edge_cl_fleet.showing import ago
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.waves import Wave
from edge_cl_fleet.worker import Worker

LATELY_S = 24 * 3600.0
REFRESH_S = 15
KEEP_S = 5.0
MAX_POINTS = 60
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}
body{color:#222;background:#fff}
table{border-collapse:collapse;width:100%;margin-bottom:2rem}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;vertical-align:middle}
th{font-weight:600;color:#555}.n{text-align:right;font-variant-numeric:tabular-nums}.on{color:#1a7f37}.off{color:#999}
.alarm{color:#b3261e}svg{vertical-align:middle}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}th{color:#aaa}th,td{border-color:#333}}
"""


def create_app(store: FleetStore, worker: Worker) -> Starlette:
    """The application that `serve --http` serves."""
    figures = FleetFigures(store, worker)
    kept: list[Any] = [0.0, ""]
    turn = threading.Lock()

    def page(_request: Request) -> Response:
        with turn:  # however many look, the store is asked once in a while
            if time.monotonic() - kept[0] > KEEP_S:
                try:
                    kept[:] = time.monotonic(), render(store, worker.alarm, time.time())
                except StoreUnavailable as error:
                    return PlainTextResponse(f"{error}\n", 503)
            return HTMLResponse(kept[1], headers=_HEADERS)

    def metrics(_request: Request) -> Response:
        return PlainTextResponse(figures.render(), media_type="text/plain; version=0.0.4")

    def healthz(_request: Request) -> Response:
        return PlainTextResponse(f"{worker.alarm or 'ok'}\n", 503 if worker.alarm else 200)

    # plain functions: starlette runs them in threads, since the store blocks
    return Starlette(routes=[Route("/", page), Route("/metrics", metrics), Route("/healthz", healthz)])


class PageServer:
    """Serves an application at ``host:port`` in a thread of its own."""

    def __init__(self, app: Starlette, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._socket = socket.create_server((host.strip("[]") or "127.0.0.1", int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"--http is {address!r} ({error}); write HOST:PORT of this machine, such as 127.0.0.1:8080"
            ) from error
        self.port = int(self._socket.getsockname()[1])
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def start(self) -> None:
        """Begin serving."""
        self._thread.start()

    def stop(self) -> None:
        """End; who is being answered is answered."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(5.0)
        self._socket.close()


def render(store: FleetStore, alarm: str, now_s: float) -> str:
    """The page as HTML."""
    devices = list_devices(store)
    health = recent(store, "health", since_s=now_s - LATELY_S)
    summaries = recent(store, "summary", since_s=now_s - LATELY_S)
    outliers = find_outliers(
        {device.name: device.group_name for device in devices},
        {f"{site}/{name}": label_shares(found) for (site, name), found in summaries.items()},
        {device.name: device.accuracy_now for device in devices},
    )
    online = sum(device.online for device in devices)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content={REFRESH_S}>"
        f"<meta name=viewport content='width=device-width'><title>Fleet</title><style>{_STYLE}</style>"
        f"<h1>Fleet</h1><p>{online} of {len(devices)} devices online</p>",
        f"<p class=alarm>{escape(alarm)}</p>" if alarm else "",
        _device_table(devices, health, now_s),
        _outlier_table(outliers),
        _rollout_table(list_progress(store, now_s), now_s),
        "</html>",
    ]
    return "".join(parts)


def sparkline(values: Sequence[float]) -> str:
    """Numbers from 0 to 1 as a small inline SVG; "" for fewer than two."""
    if len(values) < 2:
        return ""
    step = max(1, len(values) // MAX_POINTS)
    shown = [min(max(value, 0.0), 1.0) for value in values[::step]]
    points = " ".join(
        f"{2 + 96 * i / max(1, len(shown) - 1):.1f},{18 - 16 * value:.1f}" for i, value in enumerate(shown)
    )
    said = f"accuracy from {values[0]:.2f} to {values[-1]:.2f}"
    return (
        f"<svg width=100 height=20 role=img aria-label='{said}'>"
        f"<polyline points='{points}' fill=none stroke=currentColor stroke-width=1.5 /></svg>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}" for text in heads)
    body = "".join(f"<tr>{''.join(row)}" for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _device_table(devices: list[Device], health: dict[Any, list[dict[str, Any]]], now_s: float) -> str:
    heads = ["Device", "Group", "Bundle", "Accuracy", "", "Drift", "Labels", "Seen", "Alarm"]
    rows = [_device_row(device, health.get((device.site, device.device), []), now_s) for device in devices]
    return _table(heads, rows) if rows else "<p>No device has spoken yet.</p>"


def _device_row(device: Device, health: list[dict[str, Any]], now_s: float) -> list[str]:
    values = [one.get("accuracy_now") for one in health]
    line = sparkline([float(value) for value in values if isinstance(value, int | float)])
    accuracy = "" if device.accuracy_now is None else f"{device.accuracy_now:.2f}"
    drift = "" if device.drift_points is None else f"{device.drift_points:.1f}"
    dot = "<span class=on>●</span>" if device.online else "<span class=off>○</span>"
    said = "online" if device.online else "offline"
    alarm = "two boards speak under this name" if device.cloned_s else device.alarm
    bundle = str(device.status.get("bundle_name", "")) or device.bundle_id[:12]
    return [
        f"<td title={said}>{dot} {escape(device.name)}",
        f"<td>{escape(device.group_name)}",
        f"<td>{escape(bundle)}",
        f"<td class=n>{accuracy}",
        f"<td>{line}",
        f"<td class=n title='points below its best since the last sleep'>{drift}",
        f"<td class=n>{device.n_labels}",
        f"<td>{ago(now_s - device.last_seen_s)} ago",
        f"<td class=alarm>{escape(alarm)}",
    ]


def _outlier_table(outliers: list[Outlier]) -> str:
    if not outliers:
        return ""
    rows = [[f"<td>{escape(one.device)}", f"<td>{escape(one.why)}"] for one in outliers[:10]]
    return "<h2>Unlike their group</h2>" + _table(["Device", "How"], rows)


def _rollout_table(rollouts: list[Progress], now_s: float) -> str:
    if not rollouts:
        return ""
    rows = []
    for one in rollouts:
        gained = f"{100 * one.compared.gained:+.1f} points" if one.compared.n_devices else ""
        rows.append(
            [
                f"<td>{escape(one.name)} {escape(one.sha256[:12])}",
                f"<td>{escape(one.group_name)}",
                f"<td>{escape(one.state)}",
                f"<td>{''.join(_wave_bar(number, wave, one) for number, wave in enumerate(one.waves))}",
                f"<td class=n>{gained}",
                f"<td>{ago(now_s - one.started_s)} ago",
                f"<td class=alarm>{escape(one.reason)}",
            ]
        )
    heads = ["Bundle", "Group", "State", "Waves", "Accuracy", "Started", "Why"]
    return "<h2>Rollouts</h2>" + _table(heads, rows)


def _wave_bar(number: int, wave: Wave, rollout: Progress) -> str:
    """A wave as a bar: what took it, what did not, what is under way, in shares of its devices."""
    said = ", ".join(f"{n} {state}" for state, n in sorted(wave.states.items()))
    if wave.n_silent:
        said += f" ({wave.n_silent} silent)"
    under_way = wave.n - wave.n_judged if number <= rollout.step else 0
    parts, x = [], 0.0
    for n, colour in ((wave.n_committed, "#1a7f37"), (wave.n_bad, "#b3261e"), (under_way, "#d4a72c")):
        width = 60 * n / max(1, wave.n)
        if n:
            parts.append(f"<rect x={x:.1f} width={width:.1f} height=12 fill={colour} />")
        x += width
    text = escape(f"wave {number + 1}: {said}")
    return (
        f"<svg width=66 height=16 viewBox='-1 -1 66 16' role=img aria-label='{text}'><title>{text}</title>"
        f"{''.join(parts)}<rect width=60 height=12 fill=none stroke=currentColor /></svg>"
    )
