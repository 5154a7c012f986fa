"""Ends of a run that are known beforehand: one message says why and what to do."""

from __future__ import annotations

from pathlib import Path


class ConfigError(ValueError):
    """The configuration or the data is wrong: the user's to mend (exit code 2)."""


class RunStopped(RuntimeError):
    """The run cannot go on as it is (exit code 1); no step is lost that a checkpoint holds."""


class NotWritten(RunStopped):
    """A file of the run could not be written; what was there before is whole."""


def not_written(path: Path, error: Exception) -> NotWritten:
    """The end of a run for which `path` could not be written, with the reason."""
    reason = getattr(error, "strerror", None) or error
    return NotWritten(
        f"{path} could not be written ({reason}): free space there, or let this user write to it"
    )
