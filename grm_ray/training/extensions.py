"""Where torch compiles DeepSpeed's operators, and who does it while the others wait."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from torch.utils import cpp_extension


class Baton:
    """In place of torch's `FileBaton`: the kernel takes it from a process that dies.

    Torch's is a file that exists. A rank that is killed while it compiles leaves it behind, and
    every later one would wait for it for ever.
    """

    def __init__(self, path: str) -> None:
        # The file stays: whoever waits has it open, and must wait for the same one as others do.
        # Under torch's own name it would stop those who know torch's baton only.
        self._file = os.open(f"{path}.held", os.O_CREAT | os.O_RDWR, 0o666)

    def try_acquire(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.release()

    def release(self) -> None:
        os.close(self._file)


def keep_own_extensions() -> None:
    """Keep what torch compiles in this environment, unless TORCH_EXTENSIONS_DIR says where.

    In the user's cache folder, two environments that take turns would compile DeepSpeed's
    operators anew each time, for 45 s. There others compile as well, who know torch's baton only.
    """
    own = str(Path(sys.prefix) / "torch_extensions")
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", own)
    if os.environ.get("TORCH_EXTENSIONS_DIR") == own:
        # Put in the place of torch's own, which no option would exchange.
        cpp_extension.FileBaton = Baton  # type: ignore[attr-defined,assignment]
