"""Policy weights on their way from the learner to the rollout engines: versions and files.

A version is (incarnation, step), ordered as a pair: a resumed or rolled back run raises the
incarnation, so that versions only ever grow although the step goes back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch
import xxhash

SHARED_MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
ON_DEVICE = ""  # in place of a path: weights that stay on the learner's GPU
_PREFIX = "grm_ray-weights-"
_ALIGNMENT = 64  # bytes; a tensor can be viewed in its dtype only from an aligned place


@dataclass(frozen=True, order=True)
class Version:
    """Order of weights: `incarnation` counts restarts of the run, `step` the updates in it."""

    incarnation: int
    step: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.step}"


class ChecksumError(RuntimeError):
    """The bytes that arrived are not the bytes that were sent."""


@dataclass(frozen=True)
class WeightUpdate:
    """Where one version's weights lie: a flat file in shared memory, and its table of contents.

    `path` is `ON_DEVICE` where they go from GPU to GPU; the rest is then empty.
    """

    version: Version
    path: str
    host: str
    checksum: str  # xxh3-128 of the whole file
    names: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, as vLLM's control channel carries them."""
        plain = asdict(self)
        plain["version"] = [self.version.incarnation, self.version.step]
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> WeightUpdate:
        return cls(**{**plain, "version": Version(*plain["version"])})

    @property
    def is_here(self) -> bool:
        """Whether the file lies on this machine."""
        return self.host == host() and os.path.exists(self.path)


def host() -> str:
    """A name for this machine that two containers with one kernel do not share."""
    return f"{socket.gethostname()}:{os.stat(SHARED_MEMORY).st_dev}"


class WeightFiles:
    """Where one writer lays its versions: two shared-memory files that take turns.

    Written over, a file costs a memory copy and no new page; and the file that a late reader may
    still have open is not the one that is written next. Both are locked while this lives, so that
    `remove_stale` can tell when their writer died.
    """

    def __init__(self) -> None:
        self._paths = [_new_path() for _ in range(2)]
        self._locks = [_locked(path) for path in self._paths]

    def reserve(self, size: int) -> None:
        """Take up `size` bytes a file beforehand: while engines start, new pages cost nobody time.

        Short of shared memory it is left to `write` to say so.
        """
        for path in self._paths:
            with path.open("wb") as file, contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)

    def write(self, weights: Iterable[tuple[str, torch.Tensor]], version: Version) -> WeightUpdate:
        """Lay `weights` end to end in the file whose turn it is."""
        self._paths.reverse()
        path = self._paths[0]
        names: list[str] = []
        dtypes: list[str] = []
        shapes: list[list[int]] = []
        digest = xxhash.xxh3_128()
        with path.open("r+b") as file:
            for name, weight in weights:
                weight = weight.detach().contiguous().cpu()
                view = weight.reshape(-1).view(torch.uint8).numpy().data
                for part in (view, bytes(-len(view) % _ALIGNMENT)):
                    digest.update(part)
                    file.write(part)
                names.append(name)
                dtypes.append(str(weight.dtype).removeprefix("torch."))
                shapes.append(list(weight.shape))
            file.truncate()
        return WeightUpdate(version, str(path), host(), digest.hexdigest(), names, dtypes, shapes)

    def remove(self) -> None:
        """Free both files; readers that have one mapped keep it."""
        for path, lock in zip(self._paths, self._locks, strict=True):
            path.unlink(missing_ok=True)
            lock.close()


def read(update: WeightUpdate) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of `update`, mapped, not copied; the checksum is verified before the first.

    Raises:
        ChecksumError: the file is not what the learner wrote.
    """
    size = os.path.getsize(update.path)
    buffer = torch.from_file(update.path, shared=False, size=size, dtype=torch.uint8)
    found = xxhash.xxh3_128(buffer.numpy().data).hexdigest()
    if found != update.checksum:
        raise ChecksumError(
            f"weights {update.version}: checksum is {found}, but {update.checksum} was sent"
        )
    at = 0
    for name, dtype_name, shape in zip(update.names, update.dtypes, update.shapes, strict=True):
        dtype = getattr(torch, dtype_name)
        count = dtype.itemsize
        for dimension in shape:
            count *= dimension
        yield name, buffer[at : at + count].view(dtype).reshape(shape)
        at += count + -count % _ALIGNMENT


def remove_stale() -> None:
    """Free files whose writer was killed before it could; another user's stay."""
    for path in SHARED_MEMORY.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its writer lives
            path.unlink()


@contextlib.contextmanager
def laid_here(blob: Any, update: WeightUpdate) -> Iterator[WeightUpdate]:
    """Another machine's bytes in this machine's shared memory, as long as the context lasts."""
    path = _new_path()
    lock = _locked(path)
    try:
        path.write_bytes(memoryview(blob))
        yield replace(update, path=str(path), host=host())
    finally:
        path.unlink(missing_ok=True)
        lock.close()


def _new_path() -> Path:
    return SHARED_MEMORY / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"


def _locked(path: Path) -> IO[bytes]:
    """`path`, made and locked until what is returned is closed, or this process ends: a lock says
    that a writer lives, in whichever container it does."""
    while True:
        file = path.open("ab")
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # `remove_stale` of another process came between
