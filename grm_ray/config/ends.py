"""Ends of a run that are known beforehand: one message says why and what to do, exit code 1."""

from __future__ import annotations

from pathlib import Path


class RunStopped(RuntimeError):
    """The run cannot go on as it is; no step of it is lost that a checkpoint holds."""


class NotWritten(RunStopped):
    """A file of the run could not be written; what was there before is whole."""


def not_written(path: Path, error: Exception) -> NotWritten:
    reason = getattr(error, "strerror", None) or error
    return NotWritten(
        f"{path} could not be written ({reason}): free space there, or let this user write to it"
    )
