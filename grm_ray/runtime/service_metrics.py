"""What the reward service does, as Ray metrics: `ray_grm_ray_serve_*` on the Prometheus endpoint.

Counted is what reaches the application: connections beyond `limits.connections` are refused before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.util.metrics import Counter, Histogram

from grm_ray.runtime.gauges import Gauges
from grm_ray.runtime.service import ScoringService

_FORMS = ("/score", "/get_reward", "/classify")
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]


class Measured:
    """An ASGI application around `app` that counts its requests.

    Args:
        service: that `app` asks.
        replaced: scorers that died and were replaced so far.
        run: the tag `run`; `job` is "serve".
    """

    def __init__(
        self, app: Any, service: ScoringService, replaced: Callable[[], int], run: str
    ) -> None:
        self._app, self._service, self._replaced = app, service, replaced
        self._rows_seen = 0
        tags = {"run": run, "job": "serve"}

        def made(kind: Any, name: str, told: str, keys: tuple[str, ...] = (), **more: Any) -> Any:
            metric = kind(
                f"grm_ray_serve_{name}", description=told, tag_keys=(*tags, *keys), **more
            )
            metric.set_default_tags(tags)
            return metric

        self._requests = made(
            Counter, "requests", "answered, by status; 4xx and 5xx: refused", ("path", "status")
        )
        self._rows = made(Counter, "rows", "scored")
        self._gauges = Gauges(tags)
        self._seconds = made(
            Histogram, "seconds", "from a request's head to its answer", boundaries=_SECONDS
        )
        self._note_service()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._note_service()
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in _FORMS else "other"
            self._requests.inc(tags={"path": path, "status": str(status)})
            if status < 400:
                self._seconds.observe(time.perf_counter() - began)
            self._note_service()

    def close(self) -> None:
        self._gauges.close()

    def _note_service(self) -> None:
        waiting, deaths = self._service.waiting_rows, self._replaced()
        self._gauges.set("grm_ray_serve_waiting_rows", waiting, "rows of requests under way")
        self._gauges.set("grm_ray_serve_deaths", deaths, "scorers that died and were replaced")
        scored = self._service.scored_rows
        if scored > self._rows_seen:
            self._rows.inc(scored - self._rows_seen)
            self._rows_seen = scored
