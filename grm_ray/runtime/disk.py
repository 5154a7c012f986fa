"""Files that a run must not lose: what cannot be written ends in one message."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from grm_ray.config.errors import not_written

# What a full or unwritable disk leads to: torch's own writer knows RuntimeError only.
FAILURES = (OSError, SafetensorError)
TORCH_WRITER = "PytorchStreamWriter"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written inside goes to `path`.

    Raises:
        NotWritten: it could not be, with the path and the reason.
    """
    try:
        yield
    except FAILURES as error:
        raise not_written(path, error) from error
    except RuntimeError as error:
        if TORCH_WRITER not in str(error):
            raise
        raise not_written(path, error) from error


def synced(path: Path) -> None:
    """Have what `path`, a file or a folder, holds reach the disk before this returns."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot
            raise
    finally:
        os.close(number)


def check_writable(folder: Path) -> None:
    """Write and remove a file of 1 MiB where `folder` is or will be made.

    Raises:
        OSError: it could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(1 << 20))
    finally:
        probe.unlink(missing_ok=True)


def check_place(folder: Path) -> None:
    """As `check_writable`, and nothing is left there: a file without a name is made in what there
    is of `folder` and its parents.

    Raises:
        OSError: no file can be made there.
    """
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass
