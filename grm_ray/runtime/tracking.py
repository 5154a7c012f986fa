"""Where a run's numbers go: always `metrics.jsonl`, and from there to whoever watches.

`metrics.jsonl` is the record, one JSON object a step. Ray's metrics (so: Prometheus and the Ray
dashboard), TensorBoard, W&B and MLflow are views of it: one that fails is dropped with a warning
and never stops the run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import numbers
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from grm_ray.runtime.disk import writing
from grm_ray.runtime.gauges import ray_is_up
from grm_ray.runtime.metric_sinks import MAKERS, RayGauges, View

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
# Module that each backend needs; the extra of the package carries the backend's own name.
_NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def check_backends(backends: list[str]) -> None:
    """Refuse, before any work, a backend that is unknown or not installed.

    Raises:
        ValueError: naming the backend and the pip extra that brings it.
    """
    for name in backends:
        if name not in _NEEDS:
            raise ValueError(f"tracking: '{name}' is not known; use one of {', '.join(_NEEDS)}")
        if importlib.util.find_spec(_NEEDS[name]) is None:
            raise ValueError(
                f"tracking: '{name}' is requested but not installed; run `make install "
                f"EXTRAS=cpu,demo,dev,{name}`, or remove it from `tracking`"
            )


class Tracker:
    """Writes one object a step to `run_dir/metrics.jsonl` and hands its numbers to the views.

    Args:
        run_dir: the run's folder, made if absent.
        tags: what tells this run's series from others', `{"run": name, "job": "ppo"}`.
        backends: any of "tensorboard", "wandb", "mlflow". Ray's metrics need no asking: they
            are fed whenever Ray is initialised in this process.

    Raises:
        ValueError: a backend is unknown or not installed.
    """

    def __init__(self, run_dir: Path, tags: dict[str, str], backends: list[str]) -> None:
        check_backends(backends)
        self._path = Path(run_dir) / METRICS_FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._tags = dict(tags)
        self._backends = list(backends)
        self._resumed_from: int | None = None
        self._views: dict[str, View | None] | None = None
        _end_last_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one step. A NaN or infinity becomes null, and its key stands in "non_finite".

        Raises:
            ValueError: no integer "step", or a value that is no number, text, list or None.
            NotWritten: the disk is full, or the file not this user's; half a line may be there.
        """
        step = metrics.get("step")
        if isinstance(step, bool) or not isinstance(step, numbers.Integral):
            raise ValueError(  # noqa: TRY004 - the same kind for every wrong row
                f"metrics: 'step' must be a whole number, not {step!r}"
            )
        bad: list[str] = []
        row = {key: _plain(key, value, bad) for key, value in metrics.items()}
        row.setdefault("time", time.time())
        if bad:
            row["non_finite"] = sorted(set(bad))
        with writing(self._path):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        numbers_only = {
            key: float(value)
            for key, value in row.items()
            if isinstance(value, int | float) and key not in ("step", "time")
        }
        # A gauge keeps its last value: this one says how many of them are stale.
        numbers_only["non_finite"] = float(len(set(bad)))
        self._show(int(step), float(row["time"]), numbers_only)

    def resume(self, from_step: int) -> int:
        """Go on after the checkpoint of `from_step`: later lines and torn ones are dropped.

        Views are opened anew, and told where they go on. The kept lines are written beside the
        file, which is then replaced in one move: a kill at any moment leaves one of the two.
        Returns how many lines were dropped.
        """
        self._close_views()
        self._file.close()
        kept, dropped = [], 0
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            if _step_of(line) <= from_step:
                kept.append(line + "\n")
            else:
                dropped += 1
        beside = self._path.with_suffix(".jsonl.new")
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._resumed_from = from_step
        return dropped

    def close(self) -> None:
        """Close everything; a second call does nothing."""
        with contextlib.suppress(OSError):  # what `log` could not write is tried once more
            self._file.close()
        self._close_views()
        self._views = {}

    def _close_views(self) -> None:
        for name, view in (self._views or {}).items():
            if view:
                self._guarded(name, view.close)
        self._views = None

    def _show(self, step: int, at: float, values: dict[str, float]) -> None:
        if self._views is None:
            self._views = {}
            for name in self._backends:
                self._guarded(name, partial(self._open, name))
        if "ray" not in self._views and ray_is_up():
            self._views["ray"] = RayGauges(self._tags)
        for name, view in list(self._views.items()):
            if view and not self._guarded(name, partial(view.write, step, at, values)):
                self._views[name] = None

    def _open(self, name: str) -> None:
        assert self._views is not None
        self._views[name] = MAKERS[name](self._path.parent, self._tags, self._resumed_from)

    def _guarded(self, name: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a view must not take the run with it
            logger.warning("%s gets no more metrics (%s); %s has all", name, error, self._path)
            return False
        return True


def _plain(key: str, value: Any, bad: list[str]) -> Any:
    """`value` as JSON knows it; `bad` gets `key` where a number is not finite."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # NumPy and torch scalars
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        bad.append(key)
        return None
    if isinstance(value, list | tuple):
        return [_plain(key, item, bad) for item in value]
    kind = type(value).__name__
    raise ValueError(
        f"metrics: '{key}' is a {kind}; it must be a number, text, a list of those, or None"
    )


def _end_last_line(path: Path) -> None:
    """A killed process may have left half a line: what is written next starts on its own line."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _step_of(line: str) -> float:
    """The step of a line of metrics, infinity for a line that is torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
