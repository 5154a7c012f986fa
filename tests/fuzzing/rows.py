"""Damaged data files of every format and container, through the readers as the jobs use them."""

from __future__ import annotations

import copy
import gzip
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from grm_ray.config.document import legible
from grm_ray.config.errors import ConfigError
from grm_ray.config.reward_model import PairData
from grm_ray.config.schema import PairSource
from grm_ray.data import sources, survey
from grm_ray.data.adapters import ADAPTERS
from grm_ray.data.sources import Quarantine
from tests.fuzzing import values
from tests.fuzzing.formats import COLUMNS, GOOD, Row
from tests.fuzzing.harness import Kind, clear, require

ATTRIBUTES = ("helpfulness", "correctness")
_FLOAT = float(np.finfo(np.float32).max)


class Rows(Kind):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        require(set(GOOD) - {"columns"} == set(ADAPTERS), "a format has no rows here")

    def attempt(self, rng: random.Random) -> str:
        shutil.rmtree("made", ignore_errors=True)
        Path("made").mkdir()
        kind = rng.choice(sorted(GOOD))
        good = [GOOD[kind](n) for n in range(rng.choice([1, 12, 40, 60]))]
        rows, sound = damage(rng, good)
        path, count = write(rng, rows, Path("made"))
        options: Row = {"path": path, "format": kind}
        if kind == "columns":
            options["columns"] = dict(COLUMNS)
        if rng.random() < 0.2:
            options |= selected(rng)
            count = None
        try:
            source = PairSource(**options)
        except ValidationError:
            return "refused"
        return self._read(rng, source, count if sound else None)

    def _read(self, rng: random.Random, source: PairSource, count: int | None) -> str:
        quarantine, used = Quarantine(), None
        adapter = ADAPTERS.get(source.format)
        ways: list[Callable[[PairSource, Quarantine], int | None]] = [_trained, _judged]
        if source.format in ("trl", "columns"):
            ways.append(_prompted)
        if adapter is not None and adapter.graded is not None:
            ways.append(_graded)
        way = rng.choice(ways)
        try:
            used = way(source, quarantine)
        except ConfigError as error:
            clear(legible(str(error)))
        told = [kept(row) for row in quarantine.rows]
        quarantine.write(Path("made/quarantine.jsonl"))
        written = Path("made/quarantine.jsonl").read_text(encoding="utf-8").split("\n")
        require(len(written) == len(told) + 1, "the quarantine's file has other rows")
        require(all(json.loads(line)["reason"] for line in written[:-1]), "a row without a reason")
        together = adapter is not None and adapter.together is not None and way is not _graded
        if used is not None and count is not None and not together and way is not _prompted:
            left = sum(row.get("rows", 1) for row in quarantine.rows)
            require(used + left == count, f"{used} used, {left} in quarantine, {count} in the file")
        if used is None:
            return "refused"
        return "quarantined" if told else "accepted"


def _trained(source: PairSource, quarantine: Quarantine) -> int | None:
    """Both readings of training; None where pairs of a contest are more than its rows."""
    sources.check(source, {"chosen", "rejected"})
    data = PairData(train=[source], holdout=0.0)
    plan = survey.plan(data, 3, quarantine)
    items = [item for chunk in survey.read(data, plan, "train", 5) for item in chunk.items]
    for pair in items:
        for number in (pair.margin, pair.smoothing):
            require(number is None or abs(number) <= _FLOAT, f"a margin of {number}")
        for text in (*pair.prompt, pair.chosen, pair.rejected):
            str(text).encode()
    adapter = ADAPTERS.get(source.format)
    several = adapter is not None and adapter.several
    return None if several or len(items) == 0 else len(items)


def _judged(source: PairSource, quarantine: Quarantine) -> int:
    found = list(sources.contests(source, quarantine))
    for contest in found:
        json.dumps([contest.name, contest.subset], ensure_ascii=False).encode()
        require(len(contest.plain_prompt) == 16, "a prompt without a name")
    return len(found)


def _prompted(source: PairSource, quarantine: Quarantine) -> int:
    return len(sources.prompts(source, quarantine))


def _graded(source: PairSource, quarantine: Quarantine) -> int:
    found = list(sources.rated(source, ATTRIBUTES, quarantine))
    labels = [label for row in found for label in row.labels if label is not None]
    require(all(abs(x) <= _FLOAT and math.isfinite(x) for x in labels), f"labels {labels[:9]}")
    return len(found)


def kept(row: Row) -> Row:
    """An entry of the quarantine, which says which row and why in a line of bearable length."""
    require(bool(row["file"]) and (row.get("line", 1) >= 1), f"no such line: {row}")
    clear(row["reason"])
    require(
        len(row["reason"]) < 700 and "\n" not in row["reason"], f"a reason: {row['reason'][:300]!r}"
    )
    return row


# ------------------------------------------------------------------ damage


def damage(rng: random.Random, rows: list[Row]) -> tuple[list[Any], bool]:
    """`rows` with some of them changed; False: their number is no sign of what should come out."""
    rows = copy.deepcopy(rows)
    kind = rng.randrange(8)
    if kind == 0:  # one column under another name, or gone, in all rows
        name = rng.choice(sorted(rows[0]))
        for row in rows:
            value = row.pop(name, None)
            if rng.random() < 0.5:
                row[values.misspelt(rng, name)] = value
    elif kind == 1:  # whole rows that are none
        for _ in range(3):
            rows[rng.randrange(len(rows))] = rng.choice(
                [None, [], 3, "x", {}, [1], True, values.odd(rng)]
            )
    elif kind == 2:
        rows += [GOOD[rng.choice(sorted(GOOD))](n) for n in range(3)]  # mixed formats
    elif kind > 2:
        for _ in range(rng.choice([1, 3, 10])):
            row = rng.choice(rows)
            if isinstance(row, dict) and row:
                values.change(rng, row)
    for row in rows:
        if isinstance(row, dict) and "split" in row:
            return rows, False
    return rows, True


def selected(rng: random.Random) -> Row:
    """Options of a source, whether they make sense or not."""
    return rng.choice(
        [
            {"split": rng.choice(["train", "test", "", "\u202e"])},
            {"subset": rng.choice(["a", "", "none"])},
            {
                "where": {
                    rng.choice(["subset", "m", "none", "prompt"]): rng.choice(["a", 1, 0.5, True])
                }
            },
            {"max_characters": rng.choice([1, 30, 10**9])},
            {"limit": rng.choice([1, 3, 10**9]), "shuffle": rng.random() < 0.5},
            {"pairs_per_prompt": rng.choice([1, 2**40])},
            {"flip": rng.choice([0.5, 1.0]), "weight": rng.choice([1e-9, 1e9])},
            {"columns": {"prompt": "no", "chosen": "good", "rejected": "good"}},
        ]
    )


def write(rng: random.Random, rows: list[Any], folder: Path) -> tuple[str, int | None]:
    """The path of a source that holds `rows`, and how many rows a reader must account for."""
    suffix = rng.choice(["jsonl", "jsonl", "jsonl.gz", "json", "parquet", "arrow"])
    path = folder / f"rows.{suffix}"
    raw, count = encoded(rng, rows, suffix)
    if rng.random() < 0.2:
        raw, count = values.damaged(rng, raw), None
        if suffix == "jsonl.gz" and rng.random() < 0.5:
            raw = gzip.compress(values.damaged(rng, gzip.decompress(encoded(rng, rows, suffix)[0])))
    path.write_bytes(raw)
    place = rng.randrange(24)
    if place == 0:
        return str(folder), None if place else count
    if place == 1:
        return str(folder / "row*"), count
    if place == 2:
        (folder / "more.jsonl").symlink_to("nowhere.jsonl")
        return str(rng.choice([folder, folder / "more.jsonl", folder / "*.jsonl"])), None
    if place == 3:
        (folder / "train.jsonl").mkdir()
        return str(rng.choice([folder, folder / "train.jsonl", folder / "*.jsonl"])), None
    if place == 4:
        odd = [t for t in values.TEXTS if t not in ("~", "~/", "..", ".", "demo", "*", "**")]
        return rng.choice(
            [*odd, "made/[", "made/**", "made/rows", "made/rows.csv", "made/nope*"]
        ), None
    if place == 5:
        other = path.with_suffix(
            rng.choice([".csv", ".txt", ".json", ".jsonl", ".parquet", ".arrow"])
        )
        path.rename(other)
        return str(other), None
    if place == 6:
        copied = folder / rng.choice(
            ["train-0.jsonl", "test.parquet", "val-x.json", "train.é.arrow"]
        )
        shutil.copy(path, copied)
        return str(folder), None
    return str(path), count


def encoded(rng: random.Random, rows: list[Any], suffix: str) -> tuple[bytes, int | None]:
    if suffix.startswith("jsonl"):
        raw = b"".join(line(rng, row) + b"\n" for row in rows)
        return (gzip.compress(raw) if suffix.endswith("gz") else raw), len(rows)
    if suffix == "json":
        indent = rng.choice([None, 1])
        try:
            return json.dumps(rows, indent=indent).encode(), len(rows)
        except ValueError:
            return b"[" + b",".join(values.written(row).encode() for row in rows) + b"]", None
    return columnar(rng, [row for row in rows if isinstance(row, dict)], suffix)


def line(rng: random.Random, row: Any) -> bytes:
    """A row as a line of JSON, now and then with bytes that are none."""
    raw = values.written(row).encode()
    if rng.random() < 0.03:
        return raw.replace(b'"', rng.choice([b"'", b'"\xff', b'"\xed\xa0\x80', b'"\x00']), 3)
    return raw


def columnar(rng: random.Random, rows: list[Row], suffix: str) -> tuple[bytes, int | None]:
    """A table of the rows, the columns that no type fits left out or written as text."""
    names = sorted({name for row in rows for name in row})
    columns = {}
    for name in names:
        cells = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(cells)
        except (pa.ArrowException, ValueError, OverflowError, TypeError):
            columns[name] = pa.array([None if c is None else values.written(c) for c in cells])
        if rng.random() < 0.08:
            columns[name] = oddly_typed(rng, columns[name])
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    try:
        if suffix == "parquet":
            pq.write_table(table, sink, row_group_size=rng.choice([1, 7, 1000]))
        else:
            maker = rng.choice([pa.ipc.new_file, pa.ipc.new_stream])
            with maker(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=rng.choice([1, 7, 1000]))
    except (pa.ArrowException, ValueError):
        return b"", None
    return sink.getvalue().to_pybytes(), len(rows)


def oddly_typed(rng: random.Random, column: pa.Array) -> pa.Array:
    """A column of the same length in a type that is not expected there."""
    n = len(column)
    if pa.types.is_string(column.type) and rng.random() < 0.6:
        other = rng.choice([pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
        return column.cast(other)
    made = [
        pa.nulls(n),
        pa.array([b"\xff\xfe"] * n),
        pa.array([2**62] * n, pa.timestamp("s")),
        pa.array([float("nan")] * n),
        pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        # Text whose bytes are none: Arrow does not look when it is told that they are.
        pa.array([b"\xff\xfe\x80"] * n, pa.binary()).view(pa.string()),
        pa.array([[]] * n, pa.list_(pa.string())),
        pa.array([1] * n, pa.decimal128(30, 2)),
    ]
    return rng.choice(made)
