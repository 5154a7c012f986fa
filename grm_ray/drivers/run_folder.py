"""A run's folder: made fresh, or found again by `--resume`."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ValidationError

from grm_ray.config.errors import ConfigError
from grm_ray.config.load import dump
from grm_ray.config.schema import Job
from grm_ray.reporting.document import put
from grm_ray.runtime.disk import check_writable
from grm_ray.runtime.snapshot import Snapshots

# Written by a reward model's training when all is saved.
DONE = "done.json"
# What may differ between a run and its resumption: where things run, in what ZeRO stage and on how
# many ranks, what is shown, and what a run whose updates were no numbers any more goes on with.
FREE_TO_CHANGE = (
    "name",
    "runs",
    "tracking",
    "checkpoint",
    "workers",
    "ns",
    "betas",
    "ensembles",
    "evaluation.every",
    "evaluation.greedy",
    "timeout_s",
    "training.optimizer.learning_rate",
    "training.optimizer.max_grad_norm",
    "training.optimizer.zero_stage",
    "training.optimizer.offload",
    "training.optimizer.tokens_per_micro_batch",
    "ppo.optimizer.learning_rate",
    "ppo.optimizer.max_grad_norm",
    "ppo.optimizer.zero_stage",
    "ppo.optimizer.offload",
    "ppo.optimizer.tokens_per_micro_batch",
)
_HELD: dict[Path, IO[str]] = {}


def open_run(config: Job, resume: bool) -> Path:
    """`runs/<name>/`, with the resolved config in it; an earlier run of that name is kept aside.

    Raises:
        ConfigError: the folder cannot be made, or there is no run to resume.
        NotWritten: the config finds no room in it.
    """
    folder = Path(config.runs).expanduser() / config.name
    try:
        hold(folder)
        if resume:
            if not (folder / "config.yaml").is_file():
                raise ConfigError(f"--resume: {folder} contains no run; start it without --resume")
        elif folder.exists() and any(folder.iterdir()):
            folder.rename(_aside(folder))
        for part in ("samples", "logs"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        put(folder / "config.yaml", dump(config))
    except OSError as error:
        raise ConfigError(f"run folder {folder}: {error.strerror or error}") from None
    return folder.resolve()


def claim(config: Job) -> None:
    """Keep the run's folder for this process, before anything is read or started for it.

    Raises:
        ConfigError: another process is using it, or the place for runs cannot be written to, or is
            full.
    """
    runs = Path(config.runs).expanduser()
    try:
        check_writable(runs)
        hold(runs / config.name)
    except OSError as error:
        raise ConfigError(
            f"runs: {runs} cannot be written to ({error.strerror or error}); free space there, or "
            "name another folder"
        ) from None


def hold(folder: Path) -> None:
    """Keep `folder` for this process until it ends: two runs of one name would mix their files.

    Raises:
        ConfigError: another process is using it.
    """
    folder = folder.resolve()
    if folder in _HELD:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder).open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"run folder {folder}: another process is using it") from None
    _HELD[folder] = lock  # closed, and so let go of, when the process ends


def held(folder: Path) -> bool:
    """Whether another process keeps `folder`."""
    folder = folder.resolve()
    if folder in _HELD or not _lock(folder).exists():
        return False
    with _lock(folder).open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def check_same_run(saved: dict, config: BaseModel) -> None:
    """Refuse to resume a checkpoint under a config that would make another run of it.

    Raises:
        ConfigError: naming each key that differs, with both values.
    """
    now = config.model_dump(mode="json")
    with contextlib.suppress(ValidationError):  # a key that came later had its default then
        saved = type(config).model_validate(saved).model_dump(mode="json")
    differing = [
        f"{key}: {then!r} in the checkpoint, {here!r} now"
        for key, then, here in _differences(saved, now)
        if not f"{key}.".startswith(tuple(f"{k}." for k in FREE_TO_CHANGE))
    ]
    if differing:
        raise ConfigError(
            "--resume would continue another run: " + "; ".join(differing) + ". "
            "Restore these keys, or start a run with another name."
        )


def saved_state(
    snapshots: Snapshots, identity: dict[str, str], config: Job, resume: bool
) -> tuple[Path, dict] | None:
    """The newest checkpoint when `resume` is asked for; None when it is not.

    Args:
        identity: what -> fingerprint of the models and the data that the run is made of.

    Raises:
        ConfigError: there is no checkpoint, or it belongs to another run.
    """
    if not resume:
        return None
    saved = snapshots.latest()
    if saved is None:
        raise ConfigError(
            f"--resume: {Path(config.runs).expanduser() / config.name} contains no checkpoint "
            f"(checkpoint.every: {config.checkpoint.every}); start it without --resume"
        )
    check_identity(saved, identity)
    check_same_run(saved[1]["config"], config)
    return saved


def check_identity(saved: tuple[Path, dict], identity: dict[str, str]) -> None:
    """Refuse a checkpoint that was made with other models or data.

    Raises:
        ConfigError: naming what is another.
    """
    for what, mine in identity.items():
        if saved[1]["identity"].get(what) != mine:
            raise ConfigError(
                f"--resume: {saved[0]} was made with a different {what} from that of the config"
            )


def next_incarnation(folder: Path) -> int:
    """A number that no earlier start or resumption of this run had: 0, 1, 2, ..."""
    file = folder / "incarnation"
    number = int(file.read_text(encoding="utf-8")) + 1 if file.exists() else 0
    fresh = file.with_name("incarnation.part")
    fresh.write_text(str(number), encoding="utf-8")
    fresh.replace(file)
    return number


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
