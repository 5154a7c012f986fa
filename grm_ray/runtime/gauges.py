"""Ray gauges that stay until they are closed.

Ray's exporter drops a gauge that was not set again for two of its reports (some 20 s). A step may
take longer, and so may the pause between two requests.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

AGAIN_S = 5.0  # half of Ray's report interval


def ray_is_up() -> bool:
    """Whether this process is part of a Ray cluster; imports nothing to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


class Gauges:
    """Gauges with the same tags, each set again every `AGAIN_S` seconds."""

    def __init__(self, tags: dict[str, str]) -> None:
        self._tags = tags
        self._gauges: dict[str, tuple[Any, float]] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        threading.Thread(target=self._again, name="gauges", daemon=True).start()

    def set(self, name: str, value: float, description: str) -> None:
        from ray.util.metrics import Gauge

        with self._lock:
            if name in self._gauges:
                gauge = self._gauges[name][0]
            else:
                gauge = Gauge(name, description=description, tag_keys=tuple(self._tags))
                gauge.set_default_tags(self._tags)
            gauge.set(value)
            self._gauges[name] = gauge, value

    def close(self) -> None:
        self._over.set()
        with self._lock:
            self._gauges.clear()

    def _again(self) -> None:
        while not self._over.wait(AGAIN_S):
            with self._lock:
                if ray_is_up():
                    for gauge, value in self._gauges.values():
                        gauge.set(value)
