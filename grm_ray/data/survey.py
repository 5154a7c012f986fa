"""Reading training and evaluation pairs in two passes, so that a set may be larger than memory.

The first pass keeps 40 bytes a row (numbers that name the row, its prompt and its content) and
decides which rows are used; the second one reads again and hands out those rows in chunks.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from grm_ray.config.errors import ConfigError
from grm_ray.config.reward_model import PairData
from grm_ray.config.schema import Source
from grm_ray.data import selection, sources
from grm_ray.data.records import Pair, Rated
from grm_ray.data.sources import Quarantine

HELD_OUT = "held_out"


@dataclass(frozen=True)
class RowSelection:
    """Which rows are used, by their numbers in each source, ascending."""

    seed: int
    attributes: tuple[str, ...]  # graded ones, of regression; empty: pairs
    train: tuple[np.ndarray, ...]  # of each source of `data.train`
    held_out: tuple[np.ndarray, ...]  # the same; all empty where there are evaluation sets
    evals: dict[str, np.ndarray]  # of each evaluation set
    left_out: tuple[dict[str, int], ...]  # of each source: reason -> usable rows not trained on
    fingerprint: str  # SHA-256 of all that training will see

    @property
    def counts(self) -> list[int]:
        """Training rows of each source."""
        return [len(rows) for rows in self.train]

    @property
    def sets(self) -> list[str]:
        """Names of what there is to evaluate on, as `read` takes them."""
        return list(self.evals) or [HELD_OUT]


@dataclass(frozen=True)
class Chunk:
    """Rows of one source, in file order."""

    source: int  # its number in `data.train`; 0 of an evaluation set
    first: int  # rows of this reading that came before, over all sources
    rows_B: np.ndarray  # row numbers in the source
    items: list[Pair] | list[Rated]


def plan(
    data: PairData, seed: int, quarantine: Quarantine, attributes: tuple[str, ...] = ()
) -> RowSelection:
    """Read all sources once and decide which rows are used.

    Training rows whose prompt an evaluation set has (or the held-out part, case, spacing and
    system turns aside) are left out; then each source's `limit` and `pairs_per_prompt` are applied.

    Args:
        quarantine: gets every row left out, with its reason.
        attributes: graded attributes of regression: training rows are then `Rated`. Evaluation
            sets stay pairs.

    Raises:
        ConfigError: a source that cannot be read, or nothing left to train or evaluate on.
    """
    evals, asked = {}, [np.zeros(0, np.uint64)]
    for name, source in data.eval.items():
        scan = _scan(source, seed, quarantine)
        rows = _choose(scan, source, seed)
        evals[name] = scan.numbers[rows]
        asked.append(scan.plain[rows])
    scans, left_out = [], []
    seen: set[bytes] = set()  # a pair of an earlier source is a repetition in a later one
    for number, source in enumerate(data.train):
        scan = _scan(source, seed, quarantine, attributes, seen)
        taken = selection.shared(scan.plain, np.concatenate(asked))
        kept = scan.take(np.flatnonzero(~taken))
        rows = _choose(kept, source, seed, number)
        reasons = {
            "prompt shared with an evaluation set": int(taken.sum()),
            "limit or pairs_per_prompt": len(kept.numbers) - len(rows),
        }
        quarantine.add_many(source.path, int(taken.sum()), "prompt shared with an evaluation set")
        scans.append(kept.take(rows))
        left_out.append({reason: count for reason, count in reasons.items() if count})
    train, held_out = _held_apart(data, scans, seed, quarantine, left_out)
    digest = hashlib.sha256()
    for scan in train:
        digest.update(scan.digests.tobytes())
    _require(data, train, held_out)
    return RowSelection(
        seed,
        tuple(attributes),
        tuple(scan.numbers for scan in train),
        tuple(scan.numbers for scan in held_out),
        evals,
        tuple(left_out),
        digest.hexdigest(),
    )


def read(
    data: PairData, plan: RowSelection, which: str, rows_per_chunk: int = 4096
) -> Iterator[Chunk]:
    """The rows that `plan` chose, in chunks of one source each, sources in their order.

    Args:
        which: "train", or a name of `plan.sets`. Held-out pairs come with the labels of the file,
            `flip` or not: what is flipped is training.

    Raises:
        ValueError: no such set, or a source has other rows now than at the first reading.
    """
    read_from: list[tuple[Source, np.ndarray]]
    if which == "train":
        read_from = list(zip(data.train, plan.train, strict=True))
    elif which in plan.evals:
        read_from = [(data.eval[which], plan.evals[which])]
    elif which in plan.sets:
        clean = [source.model_copy(update={"flip": 0.0}) for source in data.train]
        read_from = list(zip(clean, plan.held_out, strict=True))
    else:
        raise ValueError(f"there is no set '{which}'; the sets are train, {', '.join(plan.sets)}")
    graded = plan.attributes if which not in plan.evals else ()
    first = 0
    for number, (source, rows) in enumerate(read_from):
        for start in range(0, len(rows), rows_per_chunk):
            if start == 0:
                items = _items(source, plan.seed, None, graded)
            rows_B = rows[start : start + rows_per_chunk]
            chunk = _next(items, rows_B)
            if len(chunk) < len(rows_B):
                raise ValueError(f"{source.path}: changed while it was read; start again")
            yield Chunk(number, first, rows_B, chunk)
            first += len(chunk)


# ------------------------------------------------------------------ inside


@dataclass(frozen=True)
class _Scan:
    """What the first pass keeps of N usable rows."""

    numbers: np.ndarray  # in the source
    prompts: np.ndarray  # prompt ids
    plain: np.ndarray  # prompts as a reader sees them
    digests: np.ndarray  # content, 16 bytes

    def take(self, rows: np.ndarray) -> _Scan:
        return _Scan(self.numbers[rows], self.prompts[rows], self.plain[rows], self.digests[rows])


def _scan(
    source: Source,
    seed: int,
    quarantine: Quarantine,
    attributes: tuple[str, ...] = (),
    seen: set[bytes] | None = None,
) -> _Scan:
    numbers, prompts, plain, digests = array("q"), array("Q"), array("Q"), bytearray()
    for number, item in _items(source, seed, quarantine, attributes, seen):
        numbers.append(number)
        prompts.append(int(item.prompt_id, 16))
        plain.append(int(item.plain_prompt, 16))
        digests += item.digest
    return _Scan(
        np.array(numbers, dtype=np.int64),
        np.array(prompts, dtype=np.uint64),
        np.array(plain, dtype=np.uint64),
        np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16),
    )


def _items(
    source: Source,
    seed: int,
    quarantine: Quarantine | None,
    attributes: tuple[str, ...],
    seen: set[bytes] | None = None,
) -> Iterator[tuple[int, Pair]] | Iterator[tuple[int, Rated]]:
    if attributes:
        return sources.numbered_rated(source, attributes, quarantine, seen)
    return sources.numbered(source, seed, quarantine, seen)


def _choose(scan: _Scan, source: Source, seed: int, number: int = 0) -> np.ndarray:
    return selection.choose(
        scan.prompts, source.limit, source.pairs_per_prompt, source.shuffle, seed, number
    )


def _held_apart(
    data: PairData,
    scans: list[_Scan],
    seed: int,
    quarantine: Quarantine,
    left_out: list[dict[str, int]],
) -> tuple[list[_Scan], list[_Scan]]:
    """Training and held-out rows of each source; nothing is held out where there are sets."""
    share = 0.0 if data.eval else data.holdout
    names = selection.hold_out([scan.prompts for scan in scans], share, seed)
    out = [selection.shared(scan.prompts, names) for scan in scans]
    asked = [scan.plain[mask] for scan, mask in zip(scans, out, strict=True)]
    train = []
    for source, scan, mask, reasons in zip(data.train, scans, out, left_out, strict=True):
        alike = selection.shared(scan.plain, np.concatenate(asked)) & ~mask
        train.append(scan.take(np.flatnonzero(~mask & ~alike)))
        quarantine.add_many(source.path, int(alike.sum()), "prompt shared with the held-out part")
        counts = (("held out", mask), ("prompt shared with the held-out part", alike))
        reasons |= {reason: int(rows.sum()) for reason, rows in counts if rows.any()}
    held = [scan.take(np.flatnonzero(mask)) for scan, mask in zip(scans, out, strict=True)]
    return train, held


def _require(data: PairData, train: list[_Scan], held_out: list[_Scan]) -> None:
    held = sum(len(scan.numbers) for scan in held_out)
    for source, scan in zip(data.train, train, strict=True):
        if not len(scan.numbers) or (not data.eval and data.holdout and not held):
            raise ConfigError(
                f"{source.path}: {len(scan.numbers)} training and {held} held-out pairs left; "
                "both need at least one"
                if not data.eval
                else f"{source.path}: no training pair is left: all their prompts are in the "
                "evaluation sets too"
            )


def _next(
    items: Iterator[tuple[int, Pair]] | Iterator[tuple[int, Rated]], rows: np.ndarray
) -> list:
    """The items with these numbers, which are the next ones in line."""
    found: list = []
    for number, item in items:
        if number == rows[len(found)]:
            found.append(item)
            if len(found) == len(rows):
                break
    return found
