"""The places that show a run's metrics besides its own file: one class a backend.

Each is opened with the run's folder, its tags, and the step it resumes after (None: a new run),
and imports its library only then.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import yaml

from grm_ray.runtime.gauges import Gauges


class View(Protocol):
    """`write` shows the finite numbers of one step, made `at` unix seconds."""

    def write(self, step: int, at: float, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class RayGauges:
    """One gauge a key, `grm_ray_<key>`; Ray's exporter shows it as `ray_grm_ray_<key>`.

    The node's metrics agent serves them, with or without the dashboard, some 10 s later.
    """

    def __init__(self, tags: dict[str, str]) -> None:
        self._gauges = Gauges(tags)

    def write(self, step: int, at: float, values: dict[str, float]) -> None:
        for key, value in {**values, "step": float(step)}.items():
            self._gauges.set(gauge_name(key), value, key)

    def close(self) -> None:
        self._gauges.close()


class TensorBoard:
    """Event files under `tensorboard/`; a resumed run hides the steps it takes again."""

    def __init__(self, run_dir: Path, tags: dict[str, str], resumed_from: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resumed_from is None else resumed_from + 1
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)

    def write(self, step: int, at: float, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step, walltime=at)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A W&B run of the project `grm_ray`; a resumed run goes on in the same one."""

    def __init__(self, run_dir: Path, tags: dict[str, str], resumed_from: int | None) -> None:
        import wandb

        self._run = wandb.init(
            project="grm_ray",
            name=tags.get("run"),
            tags=[f"{key}:{value}" for key, value in tags.items()],
            config=_config(run_dir),
            dir=str(run_dir),
            id=None if resumed_from is None else _kept_id(run_dir, "wandb"),
            resume="allow",
        )
        _keep_id(run_dir, "wandb", self._run.id)
        # W&B's own step only grows; a resumed run goes back, so that ours is the axis.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, at: float, values: dict[str, float]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """An MLflow run of the experiment `grm_ray`; a resumed run goes on in the same one."""

    def __init__(self, run_dir: Path, tags: dict[str, str], resumed_from: int | None) -> None:
        import mlflow

        self._mlflow = mlflow
        known = None if resumed_from is None else _kept_id(run_dir, "mlflow")
        if known is None:
            mlflow.set_experiment("grm_ray")
        run = mlflow.start_run(run_id=known, run_name=tags.get("run"), tags=tags)
        _keep_id(run_dir, "mlflow", run.info.run_id)

    def write(self, step: int, at: float, values: dict[str, float]) -> None:
        self._mlflow.log_metrics(values, step=step, timestamp=int(at * 1000))

    def close(self) -> None:
        self._mlflow.end_run()


MAKERS: dict[str, Callable[[Path, dict[str, str], int | None], View]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def gauge_name(key: str) -> str:
    """`objective/kl` -> `grm_ray_objective_kl`: what Prometheus allows in a name."""
    return "grm_ray_" + re.sub(r"[^a-zA-Z0-9_]", "_", key)


def _config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def _kept_id(run_dir: Path, name: str) -> str | None:
    path = run_dir / "logs" / f"{name}.id"
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _keep_id(run_dir: Path, name: str, value: str) -> None:
    path = run_dir / "logs" / f"{name}.id"
    path.parent.mkdir(exist_ok=True)
    path.write_text(value + "\n", encoding="utf-8")
