"""What sources are read as: pairs, contests, graded answers, prompts, each with its names.

Names are digests of content: the same in every file, run and process.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

from grm_ray.data.chat import Message

Turns = tuple[tuple[str, str], ...]  # (role, content)
# An answer's text, or, where two dialogues differ before the last turn, all turns from there on:
# the assistant's, the user's, ..., the assistant's.
Answer = str | Turns
_LARGEST = 3.4e38


class BadRow(ValueError):
    """One row cannot be used; the run goes on without it."""


def number(value: Any, name: str) -> float:
    """A row's number in column `name`; JSON may bring integers of any size.

    Raises:
        BadRow: it is none, or none that float32 can hold, as all tables do.
    """
    plain = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if plain and value == value and abs(value) <= _LARGEST:
        return float(value)
    raise BadRow(f"'{name}' is not a number: {type(value).__name__}")


class _Prompted:
    """What has a prompt, a tuple of (role, content) that ends with a user turn."""

    prompt: Turns

    @property
    def prompt_id(self) -> str:
        return prompt_id(as_messages(self.prompt))

    @property
    def plain_prompt(self) -> str:
        return plain_prompt(self.prompt)


@dataclass(frozen=True)
class Pair(_Prompted):
    """One preference: `chosen` was preferred over `rejected` as the answer to `prompt`."""

    prompt: Turns
    chosen: Answer
    rejected: Answer
    margin: float | None = None  # how much better, in the data set's own units
    smoothing: float | None = None  # chance that the label is wrong, from curation
    subset: str | None = None

    @cached_property
    def names(self) -> tuple[bytes, bytes, bytes]:
        """Digests of the prompt, the chosen and the rejected answer, 16 bytes each."""
        return _digest(self.prompt), _digest(self.chosen), _digest(self.rejected)

    @property
    def key(self) -> bytes:
        """Name of the pair whichever answer is preferred, 16 bytes."""
        prompt, *answers = self.names
        return _digest([prompt, *sorted(answers)])

    @property
    def digest(self) -> bytes:
        """Name of all that training sees of the pair, 16 bytes."""
        return _digest([*self.names, self.margin, self.smoothing])

    def turned(self) -> Pair:
        """The same with the answers in each other's place."""
        return replace(self, chosen=self.rejected, rejected=self.chosen)


@dataclass(frozen=True)
class Contest(_Prompted):
    """Answers to one prompt, of which each chosen one is better than each rejected one.

    A pair is one against one. The answers keep the order that the data set gives them (RM-Bench:
    the three styles).
    """

    prompt: Turns
    chosen: tuple[Answer, ...]
    rejected: tuple[Answer, ...]
    margin: float | None = None
    smoothing: float | None = None
    subset: str | None = None
    name: str | None = None  # the row's own id, where the data set has one

    @property
    def digest(self) -> bytes:
        return _digest([self.prompt, self.chosen, self.rejected])

    @property
    def characters(self) -> int:
        """Of the prompt and the longest answer."""
        answers = [*self.chosen, *self.rejected]
        longest = max(len(a) if isinstance(a, str) else written(a) for a in answers)
        return written(self.prompt) + longest

    def pairs(self) -> Iterator[Pair]:
        """Each chosen answer against each rejected one."""
        for chosen in self.chosen:
            for rejected in self.rejected:
                yield Pair(self.prompt, chosen, rejected, self.margin, self.smoothing, self.subset)


@dataclass(frozen=True)
class Rated(_Prompted):
    """An answer with graded attributes; None: the attribute was not graded."""

    prompt: Turns
    answer: str
    labels: tuple[float | None, ...]

    @property
    def digest(self) -> bytes:
        return _digest([self.prompt, self.answer, self.labels])


@dataclass(frozen=True)
class Prompt:
    """What a policy is asked: a conversation that ends with a user turn, and its name."""

    prompt_id: str
    messages: Turns

    @property
    def plain_prompt(self) -> str:
        return plain_prompt(self.messages)


def as_turns(answer: Answer) -> Turns:
    """An answer as the turns that it is; text is one turn of the assistant's."""
    return (("assistant", answer),) if isinstance(answer, str) else answer


def as_messages(turns: Turns) -> list[Message]:
    """Turns as a chat template takes them."""
    return [{"role": role, "content": content} for role, content in turns]


def prompt_id(messages: list[Message]) -> str:
    """Name of a prompt: a hash of its conversation, the same in every file and run."""
    text = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def plain_prompt(prompt: Turns) -> str:
    """Name of a prompt as a reader sees it: case, spacing, Unicode forms and system turns aside.
    Two sets that share it share the prompt."""
    said = [(role, _plain(text)) for role, text in prompt if role != "system"]
    return _digest(said).hex()[:16]


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def written(turns: Turns) -> int:
    """Characters of all turns."""
    return sum(len(text) for _, text in turns)


def _digest(value: Any) -> bytes:
    hashed = hashlib.blake2b(digest_size=16)
    _feed(hashed, value)
    return hashed.digest()


def _feed(hashed: Any, value: Any) -> None:
    """Hash a value in such a way that no two values look alike: everything with its length."""
    if isinstance(value, list | tuple):
        hashed.update(b"%d(" % len(value))
        for part in value:
            _feed(hashed, part)
    else:
        kind = b"b" if isinstance(value, bytes) else b"s" if isinstance(value, str) else b"v"
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8")
        hashed.update(b"%s%d:" % (kind, len(raw)))
        hashed.update(raw)
