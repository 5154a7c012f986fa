"""Policy weights on their way from the learner to the rollout engines: versions and files.

A version is (incarnation, step), ordered as a pair: a resumed or rolled back run raises the
incarnation, so that versions only ever grow although the step goes back.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import xxhash

SHARED_MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
_PREFIX = "grm_ray-weights-"
_ALIGNMENT = 64  # bytes; a tensor can be viewed in its dtype only from an aligned place


@dataclass(frozen=True, order=True)
class Version:
    incarnation: int
    step: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.step}"


class ChecksumError(RuntimeError):
    """The bytes that arrived are not the bytes that were sent."""


@dataclass(frozen=True)
class WeightUpdate:
    """Where one version's weights lie: a flat file in shared memory, and its table of contents."""

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


def write(weights: Iterable[tuple[str, torch.Tensor]], version: Version) -> WeightUpdate:
    """Lay `weights` end to end in a shared-memory file, one copy per byte.

    The file's name carries this process's id, so that `remove_stale` can tell when its writer died.
    """
    path = SHARED_MEMORY / f"{_PREFIX}{os.getpid()}-{version}"
    names: list[str] = []
    dtypes: list[str] = []
    shapes: list[list[int]] = []
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        for name, weight in weights:
            weight = weight.detach().contiguous().cpu()
            view = memoryview(weight.reshape(-1).view(torch.uint8).numpy())
            padding = bytes(-len(view) % _ALIGNMENT)
            for part in (view, padding):
                digest.update(part)
                file.write(part)
            names.append(name)
            dtypes.append(str(weight.dtype).removeprefix("torch."))
            shapes.append(list(weight.shape))
    return WeightUpdate(version, str(path), host(), digest.hexdigest(), names, dtypes, shapes)


def read(update: WeightUpdate) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of `update`, mapped, not copied; the checksum is verified before the first.

    Raises:
        ChecksumError: the file is not what the learner wrote.
    """
    size = os.path.getsize(update.path)
    buffer = torch.from_file(update.path, shared=False, size=size, dtype=torch.uint8)
    found = xxhash.xxh3_128(memoryview(buffer.numpy())).hexdigest()
    if found != update.checksum:
        raise ChecksumError(f"weights {update.version}: checksum {found}, sent {update.checksum}")
    at = 0
    for name, dtype_name, shape in zip(update.names, update.dtypes, update.shapes, strict=True):
        dtype = getattr(torch, dtype_name)
        count = dtype.itemsize
        for dimension in shape:
            count *= dimension
        yield name, buffer[at : at + count].view(dtype).reshape(shape)
        at += count + -count % _ALIGNMENT


def remove(update: WeightUpdate | None) -> None:
    """Free an update's file; one that is gone already is fine."""
    if update is not None:
        Path(update.path).unlink(missing_ok=True)


def remove_stale() -> None:
    """Free files whose writer was killed before it could."""
    for path in SHARED_MEMORY.glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            path.unlink(missing_ok=True)


def write_bytes(blob: Any, update: WeightUpdate) -> WeightUpdate:
    """Lay another machine's bytes into this machine's shared memory."""
    path = SHARED_MEMORY / f"{_PREFIX}{os.getpid()}-{update.version}"
    path.write_bytes(memoryview(blob))
    return replace(update, path=str(path), host=host())
