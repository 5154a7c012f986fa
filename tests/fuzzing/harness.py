"""One damaged input, tried in this process: what came of it, or what went wrong.

A case is named by kind, seed and number alone, and is the same whenever it is tried again.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

MOST = 4000  # characters of a message that a reader can still take in
_UNREADABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class Broken(AssertionError):
    """The program did what it must not do."""


class Hang(BaseException):
    """A case took too long; no handler of the program's own may swallow this."""


class Kind:
    """One kind of input: what it needs lies in `folder`, which is the current one in `attempt`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def attempt(self, rng: random.Random) -> str:
        """Try one input that `rng` makes; what came of it.

        Raises:
            Broken: what must not be.
        """
        raise NotImplementedError


def outcome(kind: Kind, name: str, seed: int, case: int, seconds: float = 20) -> tuple[str, str]:
    """(what came of it, why it is a failure) of case number `case`."""
    try:
        with contextlib.chdir(kind.folder), _within(seconds):
            return kind.attempt(random.Random(f"{name} {seed} {case}")), ""
    except Hang:
        return "hang", f"not done after {seconds:g} s of work:\n{traceback.format_exc()[-1500:]}"
    except Broken as broken:
        return "wrong", str(broken)[-3000:]
    except BaseException as error:  # noqa: BLE001 - that there is none is what is tested
        where = traceback.format_exc().split("\n  File ")[-4:]
        return "exception", f"{type(error).__name__}: {''.join(where)[-2500:]}"


def command(main: Callable[[], Any], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a job's entry, called as from a command line."""
    # As strict as a terminal's: what cannot be written there is an error here.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(
        io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    before, sys.argv = sys.argv, ["grm_ray", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main()
    except SystemExit as left:
        code = left.code
    finally:
        sys.argv = before
    said = [stream.buffer.getvalue().decode("utf-8") for stream in (out, err)]
    return int(code or 0), said[0], said[1]


def judged(code: int, errors: str) -> str:
    """Done without a word on the error stream, or refused with one clear message."""
    if code == 0:
        require(not errors, f"done, but errors say: {errors[:500]}")
        return "accepted"
    require(code == 2, f"exit code {code}:\n{errors[-2500:]}")
    require(errors.startswith("error: "), f"the message begins otherwise: {errors[:300]!r}")
    clear(errors.removeprefix("error: ").removesuffix("\n"))
    return "refused"


def clear(message: str) -> None:
    """One message that a reader can take in."""
    require("Traceback" not in message, f"a traceback: {message[-2500:]}")
    require(bool(message.strip()), "an empty message")
    require("error: " not in message[:7], f"two messages: {message[:300]!r}")
    require(len(message) <= MOST, f"a message of {len(message)} characters: {message[:300]!r}")
    require(not _UNREADABLE.search(message), f"signs that cannot be read: {message[:400]!r}")


def require(right: bool, what: str) -> None:
    if not right:
        raise Broken(what)


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """`Hang` after so much time at work: on a machine that others keep busy, waiting is no sign."""

    def over(*_: Any) -> NoReturn:
        raise Hang

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
