"""A run's folder: made fresh, or found again by `--resume`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from grm_ray.config.load import ConfigError, dump
from grm_ray.config.schema import Job

# What may differ between a run and its resumption: where things run and what is shown.
FREE_TO_CHANGE = {"name", "runs", "tracking", "checkpoint", "workers", "evaluation"}


def open_run(config: Job, resume: bool) -> Path:
    """`runs/<name>/`, with the resolved config in it; an earlier run of that name is kept aside.

    Raises:
        ConfigError: the folder cannot be written, or there is no run to resume.
    """
    folder = Path(config.runs).expanduser() / config.name
    try:
        if resume:
            if not (folder / "config.yaml").is_file():
                raise ConfigError(f"--resume: {folder} holds no run; start it without --resume")
        elif folder.exists() and any(folder.iterdir()):
            folder.rename(_aside(folder))
        for part in ("samples", "checkpoints", "logs"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"run folder {folder}: {error.strerror or error}") from None
    return folder.resolve()


def check_same_run(saved: dict, config: BaseModel) -> None:
    """Refuse to resume a checkpoint under a config that would make another run of it.

    Raises:
        ConfigError: naming each key that differs, with both values.
    """
    now = config.model_dump(mode="json")
    differing = [
        f"{key}: {then!r} in the checkpoint, {here!r} now"
        for key, then, here in _differences(saved, now)
        if key.split(".")[0] not in FREE_TO_CHANGE
    ]
    if differing:
        raise ConfigError(
            "--resume would continue another run: " + "; ".join(differing) + ". "
            "Restore these keys, or start a run under another name."
        )


def _differences(then: dict, here: dict, prefix: str = "") -> list[tuple[str, object, object]]:
    found = []
    for key in sorted(set(then) | set(here)):
        a, b, name = then.get(key), here.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, name + ".")
        elif a != b:
            found.append((name, a, b))
    return found


def _aside(folder: Path) -> Path:
    number = 1
    while (kept := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return kept
