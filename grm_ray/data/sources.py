"""Reading preference pairs, contests, graded answers and prompts: one at a time, none kept.

Formats are TRL's, standard (strings) or conversational (lists of messages), with the prompt
explicit or contained in both answers, and the data sets of `adapters`. A row that cannot be used is
quarantined with its file, line and reason; a file that cannot be used is a `ConfigError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grm_ray.config.document import legible
from grm_ray.config.errors import ConfigError, not_written
from grm_ray.config.schema import Source
from grm_ray.data import files, parse, selection
from grm_ray.data.adapters import Adapter, adapter_of
from grm_ray.data.curate import flipped
from grm_ray.data.records import (
    BadRow,
    Contest,
    Pair,
    Prompt,
    Rated,
    Turns,
    as_messages,
    prompt_id,
    written,
)


@dataclass
class Quarantine:
    """Rows left out, each with file, line and reason; written at once, never silently lost."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, file: str, line: int, reason: str, row: str | None = None) -> None:
        """`row` names a row whose line is not known any more (it was read well before)."""
        # A reason may quote the row, in which anything can stand.
        said = legible(" ".join(reason.split()))
        found: dict[str, Any] = {"file": file, "line": line, "reason": said}
        self.rows.append(found if row is None else {**found, "row": row})

    def add_many(self, file: str, count: int, reason: str) -> None:
        """`count` rows left out for one reason that lies not in the rows: one entry for all."""
        if count:
            self.rows.append({"file": file, "rows": count, "reason": reason})

    def counts(self) -> dict[str, int]:
        """How many rows were left out, by reason."""
        counts: dict[str, int] = {}
        for row in self.rows:
            reason = row["reason"].split(":")[0]
            counts[reason] = counts.get(reason, 0) + row.get("rows", 1)
        return counts

    def write(self, path: Path) -> None:
        """A row a line.

        Raises:
            NotWritten: the disk is full, or the file not this user's.
        """
        try:
            # Half a surrogate pair in a row must not cost the whole file.
            with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        except OSError as error:
            raise not_written(path, error) from error


def check(source: Source, columns: set[str]) -> str | None:
    """Whether `source` can be opened and has `columns`; what could not be checked offline.

    Raises:
        ConfigError: a missing file, an unknown ending, or missing columns.
    """
    if files.is_hub(source.path):
        return f"data set '{source.path}', split '{source.split}' (hub id: not looked up)"
    columns = needed(source, columns)
    for _, _, row in files.rows(source, columns):
        if isinstance(row, dict) and columns <= set(row):
            return None
    raise ConfigError(f"{source.path}: no usable row; each needs {files.named(columns)}")


def needed(source: Source, columns: set[str]) -> set[str]:
    """The columns to look for in `source`: `columns`, or those of its own format."""
    return columns if source.format == "trl" else set(adapter_of(source).columns)


# ------------------------------------------------------------------ what a source is read as


def pairs(source: Source, quarantine: Quarantine) -> list[Pair]:
    """`iterate` as a list, for small sets."""
    return list(iterate(source, quarantine))


def iterate(source: Source, quarantine: Quarantine, seed: int = 0) -> Iterator[Pair]:
    """All usable, distinct pairs of `source` in file order; its selection not yet applied.

    Raises:
        ConfigError: when a file is unusable as a whole, or at the end, when there was no pair.
    """
    for _, pair in numbered(source, seed, quarantine):
        yield pair


def numbered(
    source: Source,
    seed: int = 0,
    quarantine: Quarantine | None = None,
    seen: set[bytes] | None = None,
) -> Iterator[tuple[int, Pair]]:
    """(number, pair), with `source.flip` of the pairs turned round as `seed` says.

    Numbers count all pairs, repeated ones too, so that a second reading gives a pair the same
    number. With a quarantine the bad rows go there, and so do repeated pairs and pairs that an
    earlier one contradicts, which are left out (but for formats in which every row counts);
    without one, only bad rows are left out.

    Args:
        seen: digests of the pairs of other sources of a mixture, to which these are added.

    Raises:
        ConfigError: as `iterate`.
    """
    every_row = adapter_of(source).every_row
    share = getattr(source, "flip", 0.0)
    seen = set() if seen is None else seen  # digests of 16 bytes and the label's side
    number = -1
    for file, line, contest in _contests(source, quarantine):
        for pair in contest.pairs():
            number += 1
            key = pair.key if share or quarantine is not None else b""
            if quarantine is not None and not every_row:
                sides = key + b"+", key + b"-"
                own, other = sides if pair.names[1] < pair.names[2] else sides[::-1]
                if own in seen or other in seen:
                    again = own in seen
                    quarantine.add(
                        file, line, "duplicate" if again else "contradicts an earlier row"
                    )
                    continue
                seen.add(own)
            yield number, pair.turned() if share and flipped([key], share, seed)[0] else pair
    if number < 0:
        raise ConfigError(
            f"{source.path} (split '{source.split}'): no usable preference pair{_why(quarantine)}"
        )


def contests(source: Source, quarantine: Quarantine, seed: int = 0) -> Iterator[Contest]:
    """The contests of an evaluation set, in file order, cut to `limit` and `pairs_per_prompt`.

    Raises:
        ConfigError: as `iterate`.
    """
    limited = source.limit is not None or source.pairs_per_prompt is not None
    if not limited:
        yield from (contest for _, contest in _distinct(source, quarantine))
        return
    # Two readings: which prompts there are, then the ones that were drawn.
    numbers, prompts = [], []
    for number, contest in _distinct(source, quarantine):
        numbers.append(number)
        prompts.append(int(contest.prompt_id, 16))
    drawn = selection.choose(prompts, source.limit, source.pairs_per_prompt, source.shuffle, seed)
    kept = {numbers[row] for row in drawn}
    for number, (_, _, contest) in enumerate(_contests(source)):
        if number in kept:
            yield contest


def rated(source: Source, attributes: Sequence[str], quarantine: Quarantine) -> Iterator[Rated]:
    """All usable, distinct answers with the grades of `attributes`, in file order.

    Read are format `helpsteer2`, and `trl` with columns prompt, response and the attributes.

    Raises:
        ConfigError: another format, a file that is unusable as a whole, or no row left.
    """
    for _, answer in numbered_rated(source, attributes, quarantine):
        yield answer


def numbered_rated(
    source: Source,
    attributes: Sequence[str],
    quarantine: Quarantine | None = None,
    seen: set[bytes] | None = None,
) -> Iterator[tuple[int, Rated]]:
    """(number, answer), numbered as `numbered` does."""
    adapter = adapter_of(source)
    if adapter.graded is None:
        raise ConfigError(
            f"{source.path}: format '{source.format}' has no graded answers; "
            "use helpsteer2, or trl with columns prompt, response and the attributes"
        )
    seen = set() if seen is None else seen
    number = -1
    for file, line, row in _raw(source, {"prompt", "response", *attributes}, quarantine):
        try:
            answer = parse.rated(row, adapter.graded, attributes)
        except BadRow as error:
            if quarantine is not None:
                quarantine.add(file, line, str(error))
            continue
        number += 1
        if quarantine is not None:
            digest = answer.digest
            if digest in seen:
                quarantine.add(file, line, "duplicate")
                continue
            seen.add(digest)
        yield number, answer
    if number < 0:
        raise ConfigError(f"{source.path} (split '{source.split}'): no usable graded answer")


def prompts(source: Source, quarantine: Quarantine) -> list[Prompt]:
    """All usable, distinct prompts of `source` in file order.

    Raises:
        ConfigError: when the file is unusable as a whole or no prompt is left.
    """
    return list(iterate_prompts(source, quarantine))


def iterate_prompts(source: Source, quarantine: Quarantine) -> Iterator[Prompt]:
    """`prompts` one by one: of those that went by only the names are kept.

    Raises:
        ConfigError: as `prompts`.
    """
    seen: set[int] = set()
    for file, line, messages in _prompts(source, quarantine):
        prompt = Prompt(prompt_id(as_messages(messages)), messages)
        name = int(prompt.prompt_id, 16)
        if name in seen:
            quarantine.add(file, line, "duplicate")
        else:
            seen.add(name)
            yield prompt
    if not seen:
        raise ConfigError(
            f"{source.path} (split '{source.split}'): no usable prompt{_why(quarantine)}"
        )


def _prompts(source: Source, quarantine: Quarantine) -> Iterator[tuple[str, int, Turns]]:
    if source.format != "trl":  # its prompts come out of its pairs
        for file, line, contest in _contests(source, quarantine):
            yield file, line, contest.prompt
        return
    too_long = 0
    for file, line, row in _raw(source, {"prompt"}, quarantine):
        try:
            asked = parse.prompt(row)
        except BadRow as error:
            quarantine.add(file, line, str(error))
            continue
        if source.max_characters is not None and written(asked) > source.max_characters:
            too_long += 1
            continue
        yield file, line, asked
    quarantine.add_many(source.path, too_long, f"max_characters: over {source.max_characters}")


# ------------------------------------------------------------------ rows to contests


def _distinct(source: Source, quarantine: Quarantine) -> Iterator[tuple[int, Contest]]:
    """(number, contest) without repeated ones and without pairs that an earlier one contradicts."""
    every_row = adapter_of(source).every_row
    seen: set[bytes] = set()
    number = -1
    for number, (file, line, contest) in enumerate(_contests(source, quarantine)):
        other = replace(contest, chosen=contest.rejected, rejected=contest.chosen)
        if not every_row and contest.digest in seen:
            quarantine.add(file, line, "duplicate")
        elif not every_row and other.digest in seen:
            quarantine.add(file, line, "contradicts an earlier row")
        else:
            seen.add(contest.digest)
            yield number, contest
    if number < 0:
        raise ConfigError(
            f"{source.path} (split '{source.split}'): no usable preference pair{_why(quarantine)}"
        )


def _contests(
    source: Source, quarantine: Quarantine | None = None
) -> Iterator[tuple[str, int, Contest]]:
    """(file, line, contest) of every row that gives one; the others go to the quarantine."""
    adapter = adapter_of(source)
    too_long = 0
    for file, line, row in _together(_raw(source, set(adapter.columns), quarantine), adapter):
        try:
            contest = parse.contest(row, adapter, source)
        except BadRow as error:
            if quarantine is not None:
                quarantine.add(file, line, str(error))
            continue
        if source.max_characters is not None and contest.characters > source.max_characters:
            too_long += 1
            continue
        yield file, line, contest
    if quarantine is not None:
        quarantine.add_many(source.path, too_long, f"max_characters: over {source.max_characters}")


def _raw(
    source: Source, columns: set[str], quarantine: Quarantine | None
) -> Iterator[tuple[str, int, Any]]:
    hub = adapter_of(source).hub
    passed: dict[str, int] = {}
    yield from files.rows(source, columns, hub(source) if hub else None, passed)
    if quarantine is not None:
        for file, count in passed.items():
            quarantine.add_many(file, count, f"where not met: {source.where}")


def _together(
    rows: Iterator[tuple[str, int, Any]], adapter: Adapter
) -> Iterator[tuple[str, int, Any]]:
    """Rows one by one or, where the adapter says so, neighbours that share a column as a tuple."""
    if adapter.together is None:
        yield from rows
        return
    held: list[Any] = []
    at = ("", 0)
    for file, line, row in rows:
        alone = not isinstance(row, dict)
        if held and (
            alone
            or file != at[0]
            or row.get(adapter.together) != held[0].get(adapter.together)
            or len(held) == adapter.at_most
        ):
            yield *at, tuple(held)
            held = []
        if alone:
            yield file, line, row
            continue
        if not held:
            at = (file, line)
        held.append(row)
    if held:
        yield *at, tuple(held)


def _why(quarantine: Quarantine | None) -> str:
    """The reasons so far, most frequent first, for a message."""
    if quarantine is None or not quarantine.rows:
        return ""
    counts = sorted(quarantine.counts().items(), key=lambda item: -item[1])
    return ": " + ", ".join(f"{count} {reason}" for reason, count in counts[:4])
